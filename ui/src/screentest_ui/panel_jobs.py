"""Jobs on the page: which are open, the card of one at work, and the buttons that act on them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from screentest.records import Job, Sweep
from screentest_ui import panel_link
from screentest_ui.panel_queue import AT_WORK, JobCard, WaitingJob, judges_waited_for, trail
from screentest_ui.panel_text import RANDOM_WEIGHTS, RANDOM_WEIGHTS_HELP, counted, plain

SWEEPS_KEPT_S = 3.0
# A job's view is folded from its events at every call: a sweep of 1,000 jobs is listed every 11 s, one of ten
# each second.
JOBS_KEPT_S = 1.0
JOBS_KEPT_S_EACH = 0.01
CANCEL_RESTS_S = 1.5  # longer than the queue takes to draw itself anew
_CANCELLED_AT = "cancelled_at"
_TRAIL = {"done": ":gray[{}]", "now": "**{}**", "ahead": ":gray[{}]"}


def sweeps() -> tuple[Sweep, ...]:
    """The newest sweeps, newest first, at most a few seconds old."""
    return panel_link.kept("sweeps", SWEEPS_KEPT_S, lambda: panel_link.scheduler().list_sweeps())


def open_sweeps() -> list[Sweep]:
    """The sweeps in which something is still to do, also judgements alone."""
    return [sweep for sweep in sweeps() if not sweep.over or is_judged_now(sweep)]


def sweeps_with_clips(clips: int) -> list[Sweep]:
    """Where the last so many clips ended: the open sweeps, and of those that are over as many as it takes."""
    found: list[Sweep] = []
    missing = clips
    for sweep in sorted(sweeps(), key=lambda sweep: sweep.over):
        if sweep.archived or not sweep.counts.completed or (sweep.over and missing <= 0):
            continue
        found.append(sweep)
        missing -= sweep.counts.completed
    return found


def is_judged_now(sweep: Sweep) -> bool:
    return sweep.scoring is not None and bool(sweep.scoring.counts.queued or sweep.scoring.counts.running)


def waits_for_judges(sweep: Sweep) -> tuple[str, ...]:
    """The judges without a worker, by title, that alone keep a sweep which is over from being at rest."""
    if not sweep.over or not is_judged_now(sweep):
        return ()
    lanes = panel_link.kept("lanes", SWEEPS_KEPT_S, lambda: panel_link.scheduler().list_lanes())
    return judges_waited_for(judge_jobs_of(sweep), lanes)


def jobs_of(sweep: Sweep, *, anew: bool = False) -> tuple[Job, ...]:
    """The jobs that make the sweep's clips, at most a few seconds old; ``anew`` asks in any case."""
    sweep_id = sweep.record.sweep_id
    kept_s = 0.0 if anew else JOBS_KEPT_S + JOBS_KEPT_S_EACH * sweep.counts.total
    return panel_link.kept(f"jobs_{sweep_id}", kept_s, lambda: panel_link.scheduler().list_jobs(sweep_id))


def judge_jobs_of(sweep: Sweep) -> tuple[Job, ...]:
    """The jobs that judge this sweep now; none while nothing is judged."""
    if not is_judged_now(sweep):
        return ()
    sweep_id = sweep.record.sweep_id
    total = sweep.scoring.counts.total if sweep.scoring else 0
    kept_s = JOBS_KEPT_S + JOBS_KEPT_S_EACH * total
    return panel_link.kept(f"judging_{sweep_id}", kept_s, lambda: panel_link.scheduler().list_judge_jobs(sweep_id))


def now(job: Job) -> Job:
    """A job at work as it stands now, with its progress; any other as it was listed."""
    return panel_link.scheduler().get_job(job.spec.job_id) if job.state in AT_WORK else job


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
            offer_cancel(card)


def phase_trail(phase: str) -> str:
    """The eight phases in a row, the present one in bold."""
    return " › ".join(_TRAIL[place].format(plain(name.replace("_", " "))) for name, place in trail(phase))


def offer_cancel(job: JobCard | WaitingJob) -> None:
    """Its button. All of them rest for a moment after one was pressed: the next job takes the place of the one that is
    gone, and the second click of a hasty hand would end that one too.
    """
    label = "Cancelling …" if job.cancelling else "Cancel"
    rests = time.monotonic() - st.session_state.get(_CANCELLED_AT, -CANCEL_RESTS_S) < CANCEL_RESTS_S
    if st.button(label, key=f"cancel-{job.job_id}", disabled=job.cancelling or rests, icon=":material/close:"):
        st.session_state[_CANCELLED_AT] = time.monotonic()
        with panel_link.errors_told():
            panel_link.scheduler().cancel_job(job.job_id)
            st.toast(f"Cancel requested for {plain(f'{job.lane_title}, seed {job.seed}')}")


def retry_jobs(job_ids: Sequence[str]) -> None:
    """A new job for each cell; the first that cannot be tried again says why."""
    with panel_link.errors_told():
        for job_id in job_ids:
            panel_link.scheduler().retry_job(job_id)
        st.toast(f"{counted(len(job_ids), 'job')} queued again")
        st.rerun()
