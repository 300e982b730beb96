"""Queue: what the devices do now, how far each job is, why the others wait, and which sweep goes first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

import streamlit as st

from screentest.records import DeviceView, Job, Sweep
from screentest_ui import panel_link
from screentest_ui.panel_artifacts import Link, links
from screentest_ui.panel_clips import poster_of
from screentest_ui.panel_jobs import (
    jobs_of,
    judge_jobs_of,
    now,
    offer_cancel,
    open_sweeps,
    retry_jobs,
    show_job,
    sweeps_with_clips,
    waits_for_judges,
)
from screentest_ui.panel_queue import (
    DeviceCard,
    EndedClip,
    WaitingJob,
    at_work,
    device_card,
    just_ended,
    left_words,
    reasons,
    waiting,
)
from screentest_ui.panel_sweep import retryable
from screentest_ui.panel_text import RANDOM_WEIGHTS, RANDOM_WEIGHTS_HELP, counted, moment, plain, shortened, tally

EVERY_S = 1.0
ENDED_EVERY_S = 5.0
MOST_ENDED = 4  # one row
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
            offer_cancel(job)
    if len(jobs) > MOST_WAITING:
        st.caption(f"and {len(jobs) - MOST_WAITING} more.")


def show_idle(*, is_anything_open: bool) -> None:
    st.caption("No job runs.")
    if not is_anything_open:
        st.page_link("panel_pages/submit.py", label="Submit a sweep", icon=":material/send:")


@st.fragment(run_every=ENDED_EVERY_S)
def show_latest() -> None:
    """Apart from what is live: the depot may be slow, and the progress above must not wait for it."""
    with panel_link.errors_shown():
        found = sweeps_with_clips(MOST_ENDED)
        clips = just_ended([job for sweep in found for job in jobs_of(sweep)], MOST_ENDED)
        if not clips:
            return
        titles = {sweep.record.sweep_id: sweep.record.spec.title for sweep in found}
        posters = links([poster_of(clip.sweep_id, clip.job_id) for clip in clips])
        st.subheader("Latest clips")
        for column, clip in zip(st.columns(MOST_ENDED), clips, strict=False):
            with column, st.container(border=True):
                show_ended(clip, titles[clip.sweep_id], posters[poster_of(clip.sweep_id, clip.job_id)])


def show_ended(clip: EndedClip, title: str, poster: Link) -> None:
    if poster.url:
        st.image(poster.url, width="stretch", alt=f"Poster of {clip.lane_title}, seed {clip.seed}")
    else:
        st.caption(":material/image: Its poster comes with the next revision of the report.")
    st.markdown(f"**{plain(clip.lane_title)}** · seed {clip.seed}")
    if clip.random_weights:
        st.badge(RANDOM_WEIGHTS, color="orange", help=RANDOM_WEIGHTS_HELP)
    st.caption(plain(moment(clip.ended_at)))
    st.page_link(
        "panel_pages/sweeps.py",
        label=plain(shortened(title, 40)),
        icon=":material/movie:",
        query_params={"sweep": clip.sweep_id},
    )


def show_devices(devices: Sequence[DeviceView], jobs: Sequence[Job], lane_titles: dict[str, str]) -> None:
    by_id = {job.spec.job_id: job for job in jobs}
    columns = st.columns(max(2, min(len(devices), 3)))
    for index, view in enumerate(devices):
        with columns[index % len(columns)]:
            show_device(device_card(view, by_id, lane_titles))


def show_sweeps(sweeps: Sequence[Sweep], jobs: dict[str, tuple[Job, ...]]) -> None:
    """One line for each sweep that is not over: how far, how long still, pause, priority, and what failed in it."""
    if not sweeps:
        return
    st.subheader(counted(len(sweeps), "open sweep"))
    for sweep in sweeps:
        with st.container(border=True):
            show_sweep(sweep, jobs[sweep.record.sweep_id])


def show_judging(sweep: Sweep, waited_for: Sequence[str]) -> None:
    """A sweep that is over is not open because of a judge that nobody has started: one line says what it waits for."""
    if not waited_for:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        words = f"{sweep.record.spec.title}: over; judging waits for a worker of {', '.join(waited_for)}"
        st.caption(f":material/hourglass: {plain(words)}", width="stretch")
        st.page_link("panel_pages/sweeps.py", label="Open", query_params={"sweep": sweep.record.sweep_id})


def show_sweep(sweep: Sweep, jobs: Sequence[Job]) -> None:
    sweep_id = sweep.record.sweep_id
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(sweep.record.spec.title)}**", width="content")
        if sweep.paused:
            st.badge("paused", color="violet", help="What runs goes on; nothing more of it is admitted.")
        if sweep.priority:
            st.badge(f"priority {sweep.priority}", color="blue")
    st.caption(plain("; ".join(filter(None, (tally(sweep), left_words(jobs))))))
    with st.container(horizontal=True, vertical_alignment="center"):
        label, icon = ("Resume", ":material/play_arrow:") if sweep.paused else ("Pause", ":material/pause:")
        if st.button(label, key=f"pause-{sweep_id}", icon=icon):
            pause(sweep)
        if st.button("Earlier", key=f"up-{sweep_id}", icon=":material/arrow_upward:", help="Priority + 1: first."):
            set_priority(sweep, sweep.priority + 1)
        if st.button("Later", key=f"down-{sweep_id}", icon=":material/arrow_downward:", help="Priority - 1: last."):
            set_priority(sweep, sweep.priority - 1)
        failed = retryable(jobs)
        if failed and st.button(f"Retry {counted(len(failed), 'failed job')}", key=f"retry-{sweep_id}"):
            retry_jobs(failed)
        st.page_link("panel_pages/sweeps.py", label="Open", query_params={"sweep": sweep_id})


def pause(sweep: Sweep) -> None:
    with panel_link.errors_told():
        panel_link.scheduler().pause_sweep(sweep.record.sweep_id, paused=not sweep.paused)
        changed()


def set_priority(sweep: Sweep, priority: int) -> None:
    with panel_link.errors_told():
        panel_link.scheduler().set_priority(sweep.record.sweep_id, priority)
        changed()


def changed() -> None:
    """The list of sweeps is asked for again at once, not when it is old."""
    panel_link.forget("sweeps")
    panel_link.redraw()


@st.fragment(run_every=EVERY_S)
def live() -> None:
    with panel_link.errors_shown():
        sweeps = open_sweeps()
        by_sweep = {sweep.record.sweep_id: jobs_of(sweep) for sweep in sweeps}
        devices = panel_link.scheduler().list_gpus()
        judging = [job for sweep in sweeps for job in judge_jobs_of(sweep)]
        jobs = [now(job) for job in (*chain.from_iterable(by_sweep.values()), *judging)]
        titles = {job.spec.lane_id: job.spec.lane_title for job in jobs}
        show_devices(devices, jobs, titles)
        working = at_work(jobs)
        st.subheader(f"{counted(len(working), 'job')} at work")
        if not working:
            show_idle(is_anything_open=bool(sweeps))
        for card in working:
            show_job(card)
        waited_for = {sweep.record.sweep_id: waits_for_judges(sweep) for sweep in sweeps}
        show_sweeps([sweep for sweep in sweeps if not waited_for[sweep.record.sweep_id]], by_sweep)
        for sweep in sweeps:
            show_judging(sweep, waited_for[sweep.record.sweep_id])
        show_waiting(waiting(jobs))


st.title("Queue")
live()
show_latest()
