"""The panel: who may in, its pages, and the banner that says when the scheduler is away. `streamlit run` starts it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from screentest_ui import panel_access, panel_link

# The folder is not called "pages": Streamlit would take that name for its older way of multi-page apps, and open a
# bookmarked page of a fresh server without this file (1.67, measured).
# A file of our own: Streamlit's named icons are fetched from a public host.
ICON = Path(__file__).with_name("panel_icon.svg")
# Streamlit leaves 6 rem free above every page: a third of a phone's first screen.
LESS_ROOM_ABOVE = "<style>[data-testid='stMainBlockContainer'] {padding-top: 3.75rem; padding-bottom: 3rem}</style>"

st.set_page_config(page_title="Screentest", page_icon=str(ICON), layout="wide")
st.html(LESS_ROOM_ABOVE)
panel_access.guard()

page = st.navigation(
    [
        st.Page("panel_pages/submit.py", title="Submit", icon=":material/send:", default=True),
        st.Page("panel_pages/queue.py", title="Queue", icon=":material/pending_actions:"),
        st.Page("panel_pages/sweeps.py", title="Sweeps", icon=":material/video_library:"),
        st.Page("panel_pages/vitals.py", title="Vitals", icon=":material/monitor_heart:"),
        st.Page("panel_pages/lanes.py", title="Lanes", icon=":material/view_list:"),
        st.Page("panel_pages/report.py", title="Report", icon=":material/article:"),
    ],
    position="top",
)
panel_link.banner()
page.run()
