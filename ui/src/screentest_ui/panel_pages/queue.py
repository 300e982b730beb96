"""Queue: what the devices do now, how far each job is, and why the others wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import streamlit as st

from screentest.records import DeviceView, Job
from screentest_ui import panel_link
from screentest_ui.panel_jobs import cancel_job, open_jobs, show_job
from screentest_ui.panel_queue import DeviceCard, WaitingJob, at_work, device_card, reasons, waiting
from screentest_ui.panel_text import counted, plain

EVERY_S = 1.0
MOST_WAITING = 50  # lines shown; the reasons above them count all
_COLOURS: dict[str, Literal["gray", "blue", "red"]] = {"idle": "gray", "busy": "blue", "drained": "red"}


def show_device(card: DeviceCard) -> None:
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(card.device)}** on {plain(card.host)}")
            st.badge(card.state, color=_COLOURS[card.state])
        if card.state == "drained":
            st.error(f"Drained: {plain(card.detail)}", icon=":material/block:")
            if st.button("Undrain", key=f"undrain-{card.host}-{card.device}", help="Only after you looked at the GPU."):
                undrain(card)
        else:
            st.write(plain(card.detail))
        st.caption(f"Process table: {plain(card.proof)}")


def undrain(card: DeviceCard) -> None:
    with panel_link.errors_told():
        panel_link.scheduler().undrain(card.host, card.device)
        st.toast(f"{plain(card.device)} takes jobs again")


def show_waiting(jobs: tuple[WaitingJob, ...]) -> None:
    st.subheader(f"{counted(len(jobs), 'job')} waiting")
    if not jobs:
        st.caption("Nothing waits.")
        return
    for reason, count in reasons(jobs):
        st.markdown(f"- {counted(count, 'job')}: {plain(reason)}")
    for job in jobs[:MOST_WAITING]:
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            st.markdown(f"**{plain(job.lane_title)}** · seed {job.seed}", width=260)
            words = "; ".join(part for part in (job.waits_for or "waits for its turn", job.expected) if part)
            st.caption(plain(words), width="stretch")
            if st.button("Cancel", key=f"cancel-{job.job_id}", disabled=job.cancelling, icon=":material/close:"):
                cancel_job(job.job_id)
    if len(jobs) > MOST_WAITING:
        st.caption(f"and {len(jobs) - MOST_WAITING} more.")


def show_devices(devices: Sequence[DeviceView], jobs: Sequence[Job], lane_titles: dict[str, str]) -> None:
    by_id = {job.spec.job_id: job for job in jobs}
    columns = st.columns(max(2, min(len(devices), 3)))
    for index, view in enumerate(devices):
        with columns[index % len(columns)]:
            show_device(device_card(view, by_id, lane_titles))


@st.fragment(run_every=EVERY_S)
def live() -> None:
    with panel_link.errors_shown():
        devices, jobs = panel_link.scheduler().list_gpus(), open_jobs()
        titles = {job.spec.lane_id: job.spec.lane_title for job in jobs}
        show_devices(devices, jobs, titles)
        working = at_work(jobs)
        st.subheader(f"{counted(len(working), 'job')} at work")
        if not working:
            st.caption("No job runs. Submit a sweep to see it here.")
        for card in working:
            show_job(card)
        show_waiting(waiting(jobs))


st.title("Queue")
live()
