"""Vitals: the last minutes of every GPU and of its host, or those of one sweep with its attempts above them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import altair
import streamlit as st

from screentest.records import Sweep, VitalsBatch
from screentest_ui import panel_link
from screentest_ui.panel_jobs import jobs_of
from screentest_ui.panel_text import plain
from screentest_ui.panel_vitals import (
    Curve,
    Point,
    Span,
    curves,
    figure,
    merge,
    points,
    readings,
    refused_fields,
    shown,
    source_line,
    spans,
    within,
)

EVERY_S = 2.0
OVERLAP_S = 5.0  # asked for again each time: a batch may arrive late
WINDOWS = {"2 min": 120.0, "5 min": 300.0, "15 min": 900.0}
HEIGHT_PX = 190
SPAN_PX = 22
# Never by colour alone: the words stand in the legend and in each bar's tooltip.
SPAN_COLOURS = {
    "completed": "#3b6fd4",
    "running": "#e0a32e",
    "failed": "#c8443b",
    "refused": "#8a63c9",
    "cancelled": "#8a8f98",
    "tried again": "#b9bec7",
}
LIVE = ""
SWEEP_EVERY_S = 5.0
MOST_SWEEPS = 50
KEPT_S = 3600.0  # the scheduler gives the last hour
MARGIN = timedelta(seconds=2)

Domain = tuple[datetime, datetime]


def recent(host: str, last_s: float) -> tuple[VitalsBatch, ...]:
    """The last seconds of a host. Only the first look reads them all; then each asks for what is new."""
    key = f"vitals_{host}_{last_s}"
    known: tuple[VitalsBatch, ...] = st.session_state.get(key, ())
    wanted_s = EVERY_S + OVERLAP_S if _is_fresh(known) else last_s
    batches = merge(known, panel_link.scheduler().list_vitals(host=host, last_s=wanted_s), last_s)
    st.session_state[key] = batches
    return batches


def _is_fresh(known: Sequence[VitalsBatch]) -> bool:
    """Whether what is new begins inside the overlap (a page left and opened again has missed more)."""
    if not known:
        return False
    return (datetime.now(UTC) - known[-1].stamp.at).total_seconds() < OVERLAP_S


def chart(curve: Curve, drawn_points: Sequence[Point], domain: Domain | None = None) -> altair.Chart:
    """One line per GPU or host. A missing reading breaks the line: nothing is drawn where nothing was measured."""
    values = [{"at": point.at.isoformat(), "series": point.series, "value": point.value} for point in drawn_points]
    scale = altair.Scale(domain=[0, curve.ceiling]) if curve.ceiling else altair.Scale(zero=True, nice=True)
    several = len({point.series for point in drawn_points}) > 1
    legend = altair.Legend(orient="top") if several else None
    drawn: altair.Chart = (
        altair.Chart(altair.InlineData(values=values))
        .mark_line(invalid="break-paths-show-domains", strokeWidth=1.5)
        .encode(
            x=time_axis("at", domain),
            y=altair.Y("value:Q", title=None, scale=scale),
            color=altair.Color("series:N", title=None, legend=legend),
            tooltip=[
                altair.Tooltip("series:N", title="of"),
                altair.Tooltip("at:T", title="at", format="%H:%M:%S"),
                altair.Tooltip("value:Q", title=curve.unit, format=".1f"),
            ],
        )
        .properties(height=HEIGHT_PX)
    )
    return drawn


def time_axis(field: str, domain: Domain | None) -> altair.X:
    """One axis for all charts of a sweep, so that a job stands above what it drew."""
    scale = altair.Scale(domain=[end.isoformat() for end in domain]) if domain else altair.Undefined
    axis = altair.Axis(format="%H:%M:%S", labelOverlap=True, tickCount=5)
    return altair.X(f"{field}:T", title=None, axis=axis, scale=scale)


def span_chart(found: Sequence[Span], domain: Domain) -> altair.Chart:
    """A bar for each attempt. Two attempts at once on one device would be seen here at once."""
    values = [
        {
            "job": span.job,
            "attempt": span.attempt,
            "status": span.status,
            "from": span.started_at.isoformat(),
            "to": span.ended_at.isoformat(),
        }
        for span in found
    ]
    present = {
        status: colour for status, colour in SPAN_COLOURS.items() if any(span.status == status for span in found)
    }
    drawn: altair.Chart = (
        altair.Chart(altair.InlineData(values=values))
        .mark_bar(cornerRadius=3)
        .encode(
            x=time_axis("from", domain),
            x2="to:T",
            y=altair.Y("job:N", title=None, sort=None, axis=altair.Axis(labelLimit=0)),  # spans() keeps them short
            color=altair.Color(
                "status:N",
                title=None,
                legend=altair.Legend(orient="top", columns=1),  # a phone has room for one
                scale=altair.Scale(domain=list(present), range=list(present.values())),
            ),
            tooltip=["job:N", "attempt:Q", "status:N", altair.Tooltip("from:T", format="%H:%M:%S")],
        )
        .properties(height=altair.Step(SPAN_PX))
    )
    return drawn


def panel_of(curve: Curve, batches: Sequence[VitalsBatch], domain: Domain | None = None) -> None:
    found = readings(batches, curve)
    figures = figure(found)
    with st.container(border=True):
        st.markdown(f"**{plain(curve.name)}** in {plain(curve.unit)}")
        if figures.last is None:
            st.caption("unknown: the driver gives no reading")
            return
        st.caption(
            f"{'last' if domain else 'now'} {shown(figures.last, curve.unit)} · p95 {shown(figures.p95, curve.unit)} · "
            f"peak {shown(figures.peak, curve.unit)}"
        )
        st.altair_chart(chart(curve, points(found), domain), key=f"chart-{curve.name}", alt=f"{curve.name} over time")


def show_curves(batches: Sequence[VitalsBatch], domain: Domain | None = None) -> None:
    st.caption(plain(source_line(batches[-1])))
    shown_curves = curves(batches)
    for start in range(0, len(shown_curves), 2):
        for column, curve in zip(st.columns(2), shown_curves[start : start + 2], strict=False):
            with column:
                panel_of(curve, batches, domain)
    refused = refused_fields(batches)
    if refused:
        st.caption(plain("The driver does not give: " + ", ".join(refused)))


@st.fragment(run_every=EVERY_S)
def live(host: str, last_s: float) -> None:
    with panel_link.errors_shown():
        batches = recent(host, last_s)
        if not batches:
            st.info(
                "No vitals in this window: telemetry has published nothing. Its log says why: `logs/telemetry.log`."
            )
            return
        show_curves(batches)


# ---- of one sweep


def of_sweep(sweep_id: str) -> None:
    """The vitals of a sweep's attempts, with the attempts above them on the same axis."""
    with panel_link.errors_shown():
        now = datetime.now(UTC)
        jobs = jobs_of(panel_link.scheduler().get_sweep(sweep_id))
        found = spans(jobs, now)
        if not found:
            st.info("No attempt of this sweep has started.")
            return
        begins, ends = found[0].started_at - MARGIN, max(span.ended_at for span in found) + MARGIN
        if (now - ends).total_seconds() > KEPT_S:
            st.info("This sweep ended more than an hour ago. Its report has the vitals of all of it.")
            st.page_link("panel_pages/report.py", label="Its report", query_params={"sweep": sweep_id})
            return
        if (now - begins).total_seconds() > KEPT_S:
            begins = now - timedelta(seconds=KEPT_S)
            st.caption("The last hour of it; its report has all of it.")
        last_s = min((now - begins).total_seconds() + OVERLAP_S, KEPT_S)
        batches = within(panel_link.scheduler().list_vitals(host=jobs[0].spec.host, last_s=last_s), begins, ends)
        with st.container(border=True):
            st.markdown("**Attempts**")
            st.altair_chart(span_chart(found, (begins, ends)), key="spans", alt="The attempts of the sweep over time")
        if not batches:
            st.info("Telemetry has published nothing in this time.")
            return
        show_curves(batches, (begins, ends))


def choose_sweep(sweeps: Sequence[Sweep]) -> str:
    """ "" = live. The choice stands in the address: a refresh keeps it."""
    titles = {LIVE: "Live", **{sweep.record.sweep_id: sweep.record.spec.title for sweep in sweeps}}
    asked = st.query_params.get("sweep", LIVE)
    if asked not in titles:
        titles[asked] = asked
    chosen = st.selectbox(
        "Of", list(titles), index=list(titles).index(asked), format_func=lambda name: titles[name], key="vitals_of"
    )
    if chosen:
        st.query_params["sweep"] = chosen
    else:
        st.query_params.pop("sweep", None)
    return chosen or LIVE


def show() -> None:
    sweep_id = choose_sweep(panel_link.scheduler().list_sweeps(limit=MOST_SWEEPS))
    if sweep_id != LIVE:
        is_over = panel_link.scheduler().get_sweep(sweep_id).over
        st.fragment(of_sweep, run_every=None if is_over else SWEEP_EVERY_S)(sweep_id)
        return
    hosts = sorted({device.host for device in panel_link.scheduler().list_gpus()})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox("Host", hosts, width=220) if len(hosts) > 1 else (hosts[0] if hosts else "")
        window = st.segmented_control("Window", list(WINDOWS), default="5 min", required=True)
    live(chosen or "", WINDOWS[window or "5 min"])


st.title("Vitals")
with panel_link.errors_shown():
    show()
