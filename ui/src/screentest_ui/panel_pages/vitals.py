"""Vitals: the last minutes of every GPU and of its host, as telemetry measured them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import altair
import streamlit as st

from screentest.records import VitalsBatch
from screentest_ui import panel_link
from screentest_ui.panel_text import plain
from screentest_ui.panel_vitals import (
    Curve,
    Point,
    curves,
    figure,
    merge,
    points,
    refused_fields,
    shown,
    source_line,
)

EVERY_S = 2.0
OVERLAP_S = 5.0  # asked for again each time: a batch may arrive late
WINDOWS = {"2 min": 120.0, "5 min": 300.0, "15 min": 900.0}
HEIGHT_PX = 190


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


def chart(curve: Curve, readings: Sequence[Point]) -> altair.Chart:
    """One line per GPU or host. A missing reading breaks the line: nothing is drawn where nothing was measured."""
    values = [{"at": point.at.isoformat(), "series": point.series, "value": point.value} for point in readings]
    scale = altair.Scale(domain=[0, curve.ceiling]) if curve.ceiling else altair.Scale(zero=True, nice=True)
    several = len({point.series for point in readings}) > 1
    legend = altair.Legend(orient="top") if several else None
    drawn: altair.Chart = (
        altair.Chart(altair.InlineData(values=values))
        .mark_line(invalid="break-paths-show-domains", strokeWidth=1.5)
        .encode(
            x=altair.X("at:T", title=None, axis=altair.Axis(format="%H:%M:%S", labelOverlap=True, tickCount=5)),
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


def panel_of(curve: Curve, batches: Sequence[VitalsBatch]) -> None:
    readings = points(batches, curve)
    figures = figure(readings)
    with st.container(border=True):
        st.markdown(f"**{plain(curve.name)}** in {plain(curve.unit)}")
        if figures.last is None:
            st.caption("unknown: the driver gives no reading")
            return
        st.caption(
            f"now {shown(figures.last, curve.unit)} · p95 {shown(figures.p95, curve.unit)} · "
            f"peak {shown(figures.peak, curve.unit)}"
        )
        st.altair_chart(chart(curve, readings), key=f"chart-{curve.name}", alt=f"{curve.name} over time")


@st.fragment(run_every=EVERY_S)
def live(host: str, last_s: float) -> None:
    with panel_link.errors_shown():
        batches = recent(host, last_s)
        if not batches:
            st.info(
                "No vitals in this window: telemetry has published nothing. Its log says why: `logs/telemetry.log`."
            )
            return
        st.caption(plain(source_line(batches[-1])))
        shown_curves = curves(batches)
        for start in range(0, len(shown_curves), 2):
            for column, curve in zip(st.columns(2), shown_curves[start : start + 2], strict=False):
                with column:
                    panel_of(curve, batches)
        refused = refused_fields(batches)
        if refused:
            st.caption(plain("The driver does not give: " + ", ".join(refused)))


st.title("Vitals")
with panel_link.errors_shown():
    hosts = sorted({device.host for device in panel_link.scheduler().list_gpus()})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox("Host", hosts, width=220) if len(hosts) > 1 else (hosts[0] if hosts else "")
        window = st.segmented_control("Window", list(WINDOWS), default="5 min", required=True)
    live(chosen or "", WINDOWS[window or "5 min"])
