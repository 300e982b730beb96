"""Jobs on the page: which are open, the card of one at work, and the buttons that act on them."""

from __future__ import annotations

import streamlit as st

from screentest.client import Client
from screentest.records import Job, Sweep
from screentest_ui import panel_link
from screentest_ui.panel_queue import JobCard, trail
from screentest_ui.panel_text import RANDOM_WEIGHTS, RANDOM_WEIGHTS_HELP, plain

MOST_OPEN_SWEEPS = 20
_TRAIL = {"done": ":gray[{}]", "now": "**{}**", "ahead": ":gray[{}]"}


def open_jobs(client: Client) -> list[Job]:
    """The jobs of the sweeps that are not over, the newest sweeps first."""
    return [job for sweep in open_sweeps(client) for job in jobs_of(client, sweep)]


def open_sweeps(client: Client) -> list[Sweep]:
    return [sweep for sweep in client.list_sweeps() if not sweep.over][:MOST_OPEN_SWEEPS]


def jobs_of(client: Client, sweep: Sweep) -> list[Job]:
    return list(client.list_jobs(sweep.record.sweep_id))


def show_job(card: JobCard) -> None:
    """One job at work: where it is, how far, how long still, and a way to cancel it."""
    with st.container(border=True, key=f"job-{card.job_id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(card.lane_title)}** · seed {card.seed} · {plain(card.device)}", width="content")
            if card.random_weights:
                st.badge(RANDOM_WEIGHTS, color="orange", help=RANDOM_WEIGHTS_HELP)
            if card.attempt > 1:
                st.badge(f"attempt {card.attempt}", color="violet")
        st.caption(plain(card.prompt))
        st.progress(card.fraction or 0.0, text=f"{plain(card.phase)} · {plain(card.detail)}".rstrip(" ·"))
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.caption(phase_trail(card.phase_key), width="content")
            label = "Cancelling …" if card.cancelling else "Cancel"
            if st.button(label, key=f"cancel-{card.job_id}", disabled=card.cancelling, icon=":material/close:"):
                cancel_job(card.job_id)


def phase_trail(phase: str) -> str:
    """The eight phases in a row, the present one in bold."""
    return " › ".join(_TRAIL[place].format(plain(name.replace("_", " "))) for name, place in trail(phase))


def cancel_job(job_id: str) -> None:
    with panel_link.errors_shown():
        panel_link.scheduler().cancel_job(job_id)
        st.toast(f"Cancel requested for job {plain(job_id)}")
