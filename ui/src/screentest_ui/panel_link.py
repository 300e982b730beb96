"""The panel's one connection to the scheduler, and how every page meets an error on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar, cast

import streamlit as st
from streamlit.errors import StreamlitAPIException

from screentest.client import Client, nobody_answers
from screentest.errors import BadRequest, ScreentestError, Unauthenticated, Unavailable
from screentest.kit.config import read_secret
from screentest_ui.home import client_environment, default_home
from screentest_ui.panel_text import plain

PROBE_EVERY_S = 3.0
PROBE_KEPT_S = 2.0  # a click on a page does not wait for another probe
_REACHABLE = "scheduler_reachable"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the scheduler listens, the file with the bearer token for it, and the CA file it is checked against."""

    address: str
    token_file: Path | None
    ca_file: Path | None


def place() -> Place:
    """From the environment, or from what `screentest up` wrote; read at each call: a stack may be started anew."""
    settings = client_environment(default_home())
    token_file, ca_file = settings.get("SCREENTEST_GRPC_TOKEN_FILE"), settings.get("SCREENTEST_GRPC_CA_FILE")
    return Place(
        address=settings.get("SCREENTEST_GRPC_ADDRESS", "127.0.0.1:50051"),
        token_file=Path(token_file) if token_file else None,
        ca_file=Path(ca_file) if ca_file else None,
    )


def scheduler() -> Client:
    """The client all sessions share. Unavailable at once while the banner finds the scheduler away."""
    if not st.session_state.get(_REACHABLE, True):
        raise Unavailable(nobody_answers(place().address))
    return _connected()


def _connected() -> Client:
    """A new token or address (another `screentest up`) makes a new client."""
    here = place()
    return _client(here.address, read_secret(here.token_file).get_secret_value(), here.ca_file)


@st.cache_resource(max_entries=2, show_spinner=False)
def _client(address: str, token: str, ca_file: Path | None) -> Client:
    return Client.connect(address, token=token, ca=ca_file)


def kept(key: str, for_s: float, ask: Callable[[], T]) -> T:
    """What ``ask`` answered at most ``for_s`` ago in this session: fragments refresh faster than lists change."""
    asked_at, answer = st.session_state.get(key, (-math.inf, None))
    if time.monotonic() - asked_at >= for_s:
        answer = ask()
        st.session_state[key] = (time.monotonic(), answer)
    return cast("T", answer)


def forget(key: str) -> None:
    """What was kept under this key is asked for again."""
    st.session_state.pop(key, None)


def redraw() -> NoReturn:
    """Draws the part of the page around a button again; all of it where the click came with a run of the whole page."""
    try:
        st.rerun(scope="fragment")
    except StreamlitAPIException:
        st.rerun()


@contextmanager
def errors_shown() -> Iterator[None]:
    """Shows what went wrong in place of the part of the page that needed the answer; the rest of the page stays."""
    try:
        yield
    except BadRequest as error:
        st.error("  \n".join(_sentences(error)), icon=":material/error:")
    except Unavailable as error:
        # The banner says it once for the whole page while the scheduler itself is away.
        if st.session_state.get(_REACHABLE, True):
            st.warning(plain(str(error)), icon=":material/cloud_off:")
    except ScreentestError as error:
        st.error(plain(str(error)), icon=":material/error:")


@contextmanager
def errors_told() -> Iterator[None]:
    """For what a button does: the error stays on the screen while the part of the page around the button refreshes."""
    try:
        yield
    except ScreentestError as error:
        st.toast(plain(str(error)), icon=":material/error:", duration="long")


def _sentences(error: BadRequest) -> list[str]:
    violations = [f"{plain(item.field)}: {plain(item.description)}" for item in error.violations]
    return violations or [plain(str(error))]


@st.fragment(run_every=PROBE_EVERY_S)
def banner() -> None:
    """Says that the scheduler is away, and brings the page back by itself when it returns."""
    trouble = kept("scheduler_trouble", PROBE_KEPT_S, _trouble)
    was_reachable = st.session_state.get(_REACHABLE)
    st.session_state[_REACHABLE] = trouble is None
    if trouble:
        st.error(trouble, icon=":material/link_off:")
    if was_reachable is not None and was_reachable != (trouble is None):
        st.rerun(scope="app")


def _trouble() -> str | None:
    """What keeps the panel from the scheduler, in Markdown; None = it answers."""
    address = plain(place().address)
    try:
        _connected().list_lanes()
    except Unauthenticated:
        return (
            f"The scheduler at {address} does not accept this panel's token. Start the panel with `screentest up`, "
            "or set `SCREENTEST_GRPC_TOKEN_FILE` to the token file of that scheduler."
        )
    except Unavailable as error:
        return (
            f"The scheduler is not reachable: {plain(str(error))}. "
            "Nothing is lost: running sweeps go on, and this page comes back by itself."
        )
    except ScreentestError as error:
        return f"The scheduler at {address} answers with an error: {plain(str(error))}"
    return None
