"""Who may use the panel: on loopback whoever sits at the machine, beyond it only people who have logged in (OIDC)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from screentest.addresses import is_loopback
from screentest_ui.panel_text import plain

# The address people reach the panel under, where the process cannot know it: a container listens on 0.0.0.0 inside,
# and its port is published on loopback or not.
BIND = "SCREENTEST_PANEL_BIND"
_SETTINGS = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What is known of the door before anybody is let in. ``people``: addresses, or "@domain" for all of a domain."""

    address: str
    oidc: Mapping[str, Any]
    people: tuple[str, ...]
    can_log_in: bool

    @property
    def wants_login(self) -> bool:
        """Also on loopback where it is set up: somebody wants to know who rated what."""
        return bool(self.oidc) or not is_loopback(f"{self.address}:0")


def problem(door: Door) -> str:
    """Why the panel must not be shown to anybody as it stands, and what to do; "" = it may."""
    if not door.wants_login:
        return ""
    missing = [name for name in _SETTINGS if not door.oidc.get(name)]
    if missing:
        return (
            f"The panel is bound to {door.address}, beyond this machine, and nobody would have to log in. Bind it to "
            "127.0.0.1 and come by ssh (`ssh -L 8501:127.0.0.1:8501 host`), or set up OIDC: an `[auth]` section with "
            f"{', '.join(missing)} in `.streamlit/secrets.toml` (docs/operations.md)."
        )
    if not door.people:
        return (
            "OIDC is set up, and everybody whom the provider knows would be let in. Name the people in "
            '`.streamlit/secrets.toml`: `[people]` with `allowed = ["ann@studio.example", "@studio.example"]`.'
        )
    if not door.can_log_in:
        return "OIDC is set up, and Authlib, which Streamlit logs people in with, is missing: `pip install Authlib`."
    return ""


def is_allowed(email: object, is_verified: object, people: Sequence[str]) -> bool:
    """Whether this login is one of the people. An address that its provider says is unverified proves nobody."""
    if not isinstance(email, str) or is_verified is False:
        return False
    name, at, domain = email.strip().lower().rpartition("@")
    wanted = {person.strip().lower() for person in people}
    return bool(name and at) and (f"{name}@{domain}" in wanted or f"@{domain}" in wanted)


def door(address: str = "") -> Door:
    """``address``: where the panel is about to listen; "" = ask the server that runs."""
    oidc = _section("auth")
    allowed = _section("people").get("allowed", ())
    return Door(
        address=os.environ.get(BIND) or address or str(st.get_option("server.address") or "0.0.0.0"),
        oidc=oidc,
        people=tuple(allowed) if isinstance(allowed, list | tuple) else (),
        can_log_in=importlib.util.find_spec("authlib") is not None,
    )


def guard() -> None:
    """Before anything of a page: ends the run unless this person may see it."""
    here = door()
    refusal = problem(here)
    if refusal:
        st.error(refusal, icon=":material/lock:")
        st.stop()
    if not here.wants_login:
        return
    if not st.user.is_logged_in:
        st.title("Screentest")
        st.button("Log in", on_click=st.login, type="primary", icon=":material/login:")
        st.stop()
    if not is_allowed(st.user.get("email"), st.user.get("email_verified"), here.people):
        st.error(f"{plain(str(st.user.get('email')))} is not on the list of this panel.", icon=":material/lock:")
        st.button("Log out", on_click=st.logout)
        st.stop()


def person() -> str:
    """The name of who is logged in; "" on a panel without a login."""
    if not door().oidc or not st.user.is_logged_in:
        return ""
    return str(st.user.get("name") or st.user.get("email") or "")


def _section(name: str) -> Mapping[str, Any]:
    """A section of secrets.toml; empty without the file or the section."""
    if not st.secrets.load_if_toml_exists():
        return {}
    section = st.secrets.get(name, {})
    return section if isinstance(section, Mapping) else {}
