"""The panel: its pages, and the banner that says when the scheduler is away. `streamlit run` starts this file."""

from __future__ import annotations

import streamlit as st

from screentest_ui import panel_link

# The folder is not called "pages": Streamlit would take that name for its older way of multi-page apps, and open a
# bookmarked page of a fresh server without this file (1.67, measured).
st.set_page_config(page_title="Screentest", page_icon=":material/movie:", layout="wide")

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
