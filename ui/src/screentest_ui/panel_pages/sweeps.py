"""Sweeps: all of them, and one of them with its table, its clips and what people say of them.

`?sweep=` names the open one, `?view=` what is looked at below its table: both outlive a refresh.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from screentest.errors import NotFound, ScreentestError, Unavailable
from screentest.records import ArtifactKind, Job, Sweep
from screentest_ui import panel_link
from screentest_ui.panel_artifacts import Link, Wanted, fetched, links, newest
from screentest_ui.panel_clips import log_of, show_clips, show_side_by_side
from screentest_ui.panel_jobs import jobs_of, now, retry_jobs, show_job
from screentest_ui.panel_judging import show_judging
from screentest_ui.panel_queue import at_work, reasons, waiting
from screentest_ui.panel_rating import show_findings, show_pairs, show_rating
from screentest_ui.panel_report import Revision, revision_of
from screentest_ui.panel_sweep import (
    ClipCard,
    EndingCard,
    clips,
    endings,
    headline,
    model_rows,
    notes,
    progress_of,
    proof_lines,
    retryable,
)
from screentest_ui.panel_text import (
    RANDOM_WEIGHTS,
    RANDOM_WEIGHTS_HELP,
    counted,
    last_lines,
    moment,
    plain,
    shortened,
    tally,
)

LIST_EVERY_S = 3.0
DETAIL_EVERY_S = 1.0
REDRAW_EACH_S = 0.01  # a sweep of 1,000 jobs is drawn again at most every 10 s
PAGE = 20
MOST_ENDINGS = 30
MOST_ROWS = 25  # a longer table scrolls in itself
MOST_ROWS_PX = 900
VIEWS = ("Results", "Side by side", "Rate blind", "Blind pairs", "Findings", "Judge again")


# ---- the list


@st.fragment(run_every=LIST_EVERY_S)
def show_list() -> None:
    shown = st.session_state.get("sweeps_shown", PAGE)
    with panel_link.errors_shown():
        sweeps = panel_link.scheduler().list_sweeps(limit=shown + 1)
        if not sweeps:
            st.info("No sweep yet. Submit one, and it appears here.")
            st.page_link("panel_pages/submit.py", label="Submit a sweep", icon=":material/send:")
        for sweep in sweeps[:shown]:
            show_line(sweep)
        if len(sweeps) > shown and st.button("Older sweeps", icon=":material/expand_more:"):
            st.session_state["sweeps_shown"] = shown + PAGE
            panel_link.redraw()


def show_line(sweep: Sweep) -> None:
    record = sweep.record
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(record.spec.title)}**", width="content")
            show_badges(sweep)
        st.progress(progress_of(sweep), text=plain(tally(sweep)))
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.caption(plain(f"{record.sweep_id}, submitted {moment(record.submitted_at)}"), width="content")
            if st.button("Open", key=f"open-{record.sweep_id}"):
                st.query_params["sweep"] = record.sweep_id
                st.rerun(scope="app")


def show_badges(sweep: Sweep) -> None:
    if sweep.record.spec.weights.is_random:
        st.badge(RANDOM_WEIGHTS, color="orange", help=RANDOM_WEIGHTS_HELP)
    if sweep.paused:
        st.badge("paused", color="violet", help="Nothing more of it is admitted; the Queue page resumes it.")
    if sweep.archived:
        st.badge("archived", color="gray", help="Only its archive in the depot has its jobs: `screentest restore`.")
    st.badge(headline(sweep), color="gray" if sweep.over else "blue")


# ---- one sweep


def show_sweep(sweep_id: str) -> None:
    if st.button("All sweeps", icon=":material/arrow_back:", type="tertiary"):
        close_sweep()
        st.rerun()
    with panel_link.errors_shown():
        try:
            sweep = panel_link.scheduler().get_sweep(sweep_id)
        except NotFound:
            close_sweep()
            raise
        jobs = jobs_of(sweep, anew=True)
        st.session_state["sweep_drawn"] = (what_stands(sweep), time.monotonic())
        show_header(sweep)
        st.fragment(show_progress, run_every=None if sweep.over and sweep.settled else DETAIL_EVERY_S)(sweep_id)
        show_actions(sweep, jobs)
        show_view(sweep, jobs)
        for line in proof_lines(sweep):
            st.caption(f":material/verified: {plain(line)}")


def close_sweep() -> None:
    """The address without the sweep; what else stands in it belongs to the widgets."""
    st.query_params.pop("sweep", None)


def what_stands(sweep: Sweep) -> tuple[str, int, bool]:
    """What the lower page depends on: it is drawn again only when a job has ended, so that players keep their place."""
    counts = sweep.counts
    ended = counts.completed + counts.failed + counts.refused + counts.cancelled
    return sweep.record.sweep_id, ended, sweep.settled is not None


def is_stale(sweep: Sweep) -> bool:
    seen, drawn_at = st.session_state.get("sweep_drawn", (None, 0.0))
    pause_s = REDRAW_EACH_S * sweep.counts.total
    return bool(what_stands(sweep) != seen and time.monotonic() - drawn_at > pause_s)


def show_header(sweep: Sweep) -> None:
    record = sweep.record
    st.header(plain(record.spec.title))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(plain(f"{record.sweep_id}, submitted {moment(record.submitted_at)}"), width="content")
        show_badges(sweep)
    if record.spec.weights.is_random:
        st.caption(f":orange[:material/casino: {RANDOM_WEIGHTS_HELP}]")
    with st.expander(f"{counted(len(record.spec.prompts), 'prompt')}: {plain(shortened(record.spec.prompts[0], 90))}"):
        for prompt in record.spec.prompts:
            st.text(prompt)
    for lane in record.skipped:
        st.caption(f":material/skip_next: {plain(lane.lane_title)} skipped: {plain(lane.reason)}")


def show_progress(sweep_id: str) -> None:
    """The live part: counts, the jobs at work, and the model table as it fills."""
    with panel_link.errors_shown():
        sweep = panel_link.scheduler().get_sweep(sweep_id)
        if is_stale(sweep):
            st.rerun(scope="app")
        jobs = jobs_of(sweep)
        st.progress(progress_of(sweep), text=plain(tally(sweep)))
        for card in at_work([now(job) for job in jobs]):
            show_job(card)
        for reason, count in reasons(waiting(jobs)):
            st.caption(f":material/hourglass: {counted(count, 'job')}: {plain(reason)}")
        rows = model_rows(jobs, sweep.record.lanes)
        st.dataframe(
            rows,
            hide_index=True,
            height="content" if len(rows) <= MOST_ROWS else MOST_ROWS_PX,
            column_config={"Finding": st.column_config.TextColumn(width="large")},
            alt="The model table of this sweep",
        )
        footnotes = notes(jobs)
        if footnotes:
            st.caption("  \n".join(map(plain, footnotes)))  # one paragraph: a phone has few lines


def show_actions(sweep: Sweep, jobs: Sequence[Job]) -> None:
    sweep_id = sweep.record.sweep_id
    with st.container(horizontal=True, vertical_alignment="center"):
        if not sweep.over:
            with st.popover("Cancel sweep", icon=":material/close:"):
                st.write("Queued jobs end at once; the running one is stopped and its process tree removed.")
                if st.button("Cancel all its jobs", type="primary", key="cancel-sweep"):
                    cancel_sweep(sweep_id)
        failed = retryable(jobs)
        if failed and st.button(f"Retry {counted(len(failed), 'failed job')}", icon=":material/replay:", key="retry"):
            retry_jobs(failed)
        st.page_link(
            "panel_pages/report.py", label="Report", icon=":material/article:", query_params={"sweep": sweep_id}
        )
        st.page_link(
            "panel_pages/vitals.py", label="Vitals", icon=":material/monitor_heart:", query_params={"sweep": sweep_id}
        )


def show_view(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """One look at a time: what is not looked at asks nothing of the depot and keeps no player busy.

    Each is a fragment: what a person does in it draws it again and leaves the rest of the page alone.
    """
    sweep_id = sweep.record.sweep_id
    view = st.segmented_control(
        "Look at",
        VIEWS,
        default=VIEWS[0],
        required=True,
        key="view",
        bind="query-params",
        label_visibility="collapsed",
    )
    match view:
        case "Side by side":
            st.fragment(show_side_by_side)(sweep_id, clips(jobs))
        case "Rate blind":
            said = newest_revision(sweep_id)
            st.fragment(show_rating)(sweep_id, said.conflicts if said is not None else frozenset())
        case "Blind pairs":
            st.fragment(show_pairs)(sweep_id)
        case "Findings":
            said = newest_revision(sweep_id)
            st.fragment(show_findings)(sweep_id, dict(said.findings) if said is not None else {})
        case "Judge again":
            st.fragment(show_judging)(sweep_id)
        case _:
            show_results(sweep_id, clips(jobs), endings(jobs))


def show_results(sweep_id: str, cards: Sequence[ClipCard], ended: Sequence[EndingCard]) -> None:
    if cards:
        st.subheader(counted(len(cards), "clip"))
        st.fragment(show_clips)(sweep_id, cards)
    if ended:
        st.subheader(f"{counted(len(ended), 'job')} without a clip")
        show_endings(ended)


def newest_revision(sweep_id: str) -> Revision | None:
    """Of the report; None while it is not out, then the model table's own words stand."""
    document = Wanted(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name="report.json")
    try:
        return revision_of(fetched(newest(document)))
    except ScreentestError:
        return None


def show_endings(cards: Sequence[EndingCard]) -> None:
    visible = cards[:MOST_ENDINGS]
    logs = links([log_of(card.job_id) for card in visible if card.has_log])
    for card in visible:
        with st.container(border=True):
            ending = plain(f"{card.status}: {card.failure_class}" if card.failure_class else card.status)
            st.markdown(f"**{plain(card.lane_title)}** · seed {card.seed} · {ending}")
            if card.cause:
                st.text(card.cause)
            if card.fix:
                st.caption(f":material/lightbulb: {plain(card.fix)}")
            with st.container(horizontal=True):
                if card.has_log and logs[log_of(card.job_id)].url:
                    st.link_button("Log", logs[log_of(card.job_id)].url, icon=":material/description:")
                if not card.can_retry:
                    st.caption("tried again since")
                elif st.button("Retry", key=f"retry-{card.job_id}", icon=":material/replay:"):
                    retry_jobs([card.job_id])
            if card.has_log and st.toggle("Last lines of the log", key=f"log-{card.job_id}"):
                show_log(logs[log_of(card.job_id)])
    if len(cards) > len(visible):
        st.caption(f"and {len(cards) - len(visible)} more: see the report.")


def show_log(link: Link) -> None:
    """The end of the runner's log as it lies in the depot, checked by its hash."""
    try:
        content = fetched(link)
    except Unavailable as error:
        st.warning(plain(str(error)), icon=":material/cloud_off:")
        return
    st.code(last_lines(content.decode(errors="replace")), language=None, wrap_lines=True)


def cancel_sweep(sweep_id: str) -> None:
    with panel_link.errors_told():
        jobs = panel_link.scheduler().cancel_sweep(sweep_id)
        st.toast(f"Cancel requested for {counted(jobs, 'job')}")


opened = st.query_params.get("sweep", "")
if opened:
    show_sweep(opened)
else:
    st.title("Sweeps")
    show_list()
