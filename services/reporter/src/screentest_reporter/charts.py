"""What the page's plots draw, as plain data: the timeline, the energy per job, and score against cost. Pure.

`report.js` gives these to Plotly; no number is computed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from screentest_reporter import pareto
from screentest_reporter.energy_ledger import Ledger
from screentest_reporter.model_table import GIB, ReportRow
from screentest_reporter.vitals import Chart, Curve, Span

# One axis for all: what happened, then what the machine said to it.
QUANTITIES: Final = ("utilisation", "power", "temperature", "memory")
# Above these a single bar or point cannot be seen, and a browser draws the page for minutes: what lies side by side
# becomes one bar, and the clips of a lane one point.
PHASES_UP_TO: Final = 300
ENERGY_BARS_UP_TO: Final = 200
POINTS_UP_TO: Final = 200
WIDTH_PX: Final = 1000


def figures(chart: Chart | None, ledger: Ledger, rows: Sequence[ReportRow]) -> dict[str, Any]:
    """One entry per plot that has something to draw."""
    found = {
        "timeline": _timeline(chart) if chart else None,
        "energy": _energy(ledger),
        "pareto_s": _pareto(rows, "seconds"),
        "pareto_wh": _pareto(rows, "wh"),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _timeline(chart: Chart) -> dict[str, Any]:
    few = len(chart.spans) <= PHASES_UP_TO
    bars = [bar for span in chart.spans for bar in _phases(span)] if few else _merged(chart)
    return {
        "duration_s": _short(chart.duration_s),
        "bars": bars,
        "curves": [_curve(curve) for curve in sorted(chart.curves, key=lambda c: QUANTITIES.index(c.quantity))],
    }


def _phases(span: Span) -> list[list[Any]]:
    """[row, phase, begin_s, seconds, status]; an attempt without phases is one bar."""
    found = [(stretch.phase, stretch.begin_s, stretch.end_s) for stretch in span.stretches]
    if not found:
        found = [("attempt", span.begin_s, span.end_s)]
    elif found[0][1] > span.begin_s:
        found.insert(0, ("preparing", span.begin_s, found[0][1]))
    return [
        [span.label, phase, _short(begin_s), _short(end_s - begin_s), span.status] for phase, begin_s, end_s in found
    ]


def _merged(chart: Chart) -> list[list[Any]]:
    """As `_phases`, with attempts of one lane and one ending joined where less than a pixel lies between them."""
    pixel_s = chart.duration_s / WIDTH_PX
    open_bars: dict[tuple[str, str], list[float]] = {}
    done: list[tuple[tuple[str, str], list[float]]] = []
    for span in sorted(chart.spans, key=lambda span: span.begin_s):
        key = (span.label, span.status)
        bar = open_bars.get(key)
        if bar is not None and span.begin_s - bar[1] < pixel_s:
            bar[1] = max(bar[1], span.end_s)
        else:
            open_bars[key] = bar = [span.begin_s, span.end_s]
            done.append((key, bar))
    return [
        [label, "attempts", _short(begin_s), _short(end_s - begin_s), status]
        for (label, status), (begin_s, end_s) in done
    ]


def _curve(curve: Curve) -> dict[str, Any]:
    """A None between two pieces leaves the line open there."""
    times: list[float | None] = []
    values: list[float | None] = []
    for piece in curve.pieces:
        if times:
            times.append(times[-1])
            values.append(None)
        times += [_short(at_s) for at_s, _ in piece]
        values += [_short(value) for _, value in piece]
    return {"title": curve.title, "quantity": curve.quantity, "unit": curve.unit, "x": times, "y": values}


def _energy(ledger: Ledger) -> dict[str, Any] | None:
    """Stacked bars, one a try; what is between the phases is the rest of the attempt's number."""
    entries = [entry for entry in ledger.entries if entry.wh is not None][:ENERGY_BARS_UP_TO]
    if not entries:
        return None
    rest = [(entry.wh or 0.0) - sum(wh or 0.0 for wh in entry.by_phase.values()) for entry in entries]
    named = [(phase, [_short(entry.by_phase.get(phase) or 0.0) for entry in entries]) for phase in ledger.phases]
    return {
        "jobs": [f"{entry.model}, attempt {entry.attempt} ({entry.ended_as})" for entry in entries],
        "phases": [
            *({"phase": phase, "wh": wh} for phase, wh in named),
            {"phase": "between phases", "wh": [_short(max(0.0, wh)) for wh in rest]},
        ],
    }


def _pareto(rows: Sequence[ReportRow], cost: Literal["seconds", "wh"]) -> dict[str, Any] | None:
    clips = [point for point in pareto.points(rows) if cost == "seconds" or point.wh is not None]
    points = clips if len(clips) <= POINTS_UP_TO else pareto.lane_means(clips)
    shown = [(point.seconds if cost == "seconds" else point.wh or 0.0, point) for point in points]
    if not shown:
        return None
    return {
        "clips": len(clips),
        "points": [
            {
                "model": point.model,
                "x": _short(value),
                "y": _short(point.score10),
                "low": _short(point.low),
                "high": _short(point.high),
                "gib": None if point.memory_bytes is None else _short(point.memory_bytes / GIB),
            }
            for value, point in shown
        ],
        "front": [
            [_short(value), _short(score)]
            for value, score in pareto.front([(value, point.score10) for value, point in shown])
        ],
    }


def _short(number: float) -> float:
    """Six digits that count are more than a screen can show."""
    return float(f"{number:.6g}")
