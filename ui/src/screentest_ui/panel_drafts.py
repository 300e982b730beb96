"""The half-written Submit form: kept in the panel's memory under `?draft=`, so that a browser refresh loses nothing."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import streamlit as st

MOST = 100  # forms of one panel process; the one that was touched longest ago goes first
_ID = "draft"


def restore() -> None:
    """Before the first widget: what the form held when this session, or another one at the same address, left it."""
    draft_id = st.query_params.get(_ID, "") or st.session_state.get(_ID, "")
    # Streamlit forgets a widget's value when its page is left: only what is missing is put back.
    for name, value in _shelf().get(draft_id, {}).items():
        st.session_state.setdefault(name, value)
    st.session_state[_ID] = draft_id or uuid.uuid4().hex[:12]
    st.query_params[_ID] = st.session_state[_ID]


def keep(names: Iterable[str]) -> None:
    """After the last widget: the values under these names in the session."""
    shelf = _shelf()
    shelf[st.session_state[_ID]] = {name: st.session_state[name] for name in names if name in st.session_state}
    shelf.move_to_end(st.session_state[_ID])
    while len(shelf) > MOST:
        shelf.popitem(last=False)


def drop() -> None:
    """The form was sent: the next one begins empty."""
    _shelf().pop(st.session_state.pop(_ID, ""), None)


@st.cache_resource(show_spinner=False)
def _shelf() -> OrderedDict[str, dict[str, Any]]:
    return OrderedDict()
