"""Shows that the panel's image holds all that the panel needs. Runs in the image's build; ends it with what is missing.

Imports every module of the panel, logging in included; opens each page without a scheduler; and draws, with data, each
kind of element that goes through one of the heavy libraries: tables and editors through pandas and Arrow, charts
through Altair, pictures through Pillow. tests/engine opens the same pages on a real stack.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from streamlit.testing.v1 import AppTest

import screentest_ui

HOME = Path(screentest_ui.__file__).parent
# Streamlit imports it when the first person logs in.
LOGIN = "authlib.integrations.starlette_client"


def elements() -> None:
    """An app of its own: Streamlit runs the source of this function."""
    import altair
    import streamlit as st
    from PIL import Image

    rows = [{"Lane": "a", "Seconds": 1.5, "Alive": True}, {"Lane": "b", "Seconds": None, "Alive": False}]
    column = st.column_config
    st.dataframe(rows, hide_index=True, column_config={"Seconds": column.NumberColumn(format="%.1f")})
    edited = st.data_editor(
        rows, num_rows="dynamic", column_config={"Lane": column.TextColumn(), "Alive": column.CheckboxColumn()}
    )
    assert edited == rows, edited
    values = altair.InlineData(values=[{"at": "2026-05-08T23:29:59Z", "value": 1.0}])
    st.altair_chart(altair.Chart(values).mark_line().encode(x="at:T", y="value:Q"))
    st.image(Image.new("RGB", (8, 8)))


def complaints(app: AppTest) -> list[str]:
    return [f"{error.value}\n{''.join(error.stack_trace)}" for error in app.exception]


def main() -> None:
    os.environ.update(SCREENTEST_PANEL_BIND="127.0.0.1", SCREENTEST_GRPC_ADDRESS="127.0.0.1:1")
    for module in (LOGIN, *(f"screentest_ui.{path.stem}" for path in sorted(HOME.glob("panel_*.py")))):
        importlib.import_module(module)
    drawn = AppTest.from_function(elements, default_timeout=60).run()
    found = complaints(drawn)
    if not found:
        assert list(drawn.dataframe[0].value.columns) == ["Lane", "Seconds", "Alive"]
    pages = sorted(path.stem for path in (HOME / "panel_pages").glob("*.py"))
    assert pages, f"no pages below {HOME}"
    for page in pages:
        app = AppTest.from_file(str(HOME / "panel.py"), default_timeout=60).run()
        opened = app.switch_page(f"panel_pages/{page}.py").run()
        found += [f"page {page}: {text}" for text in complaints(opened)]
        assert any("scheduler is not reachable" in error.value for error in opened.error), f"page {page} says nothing"
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
