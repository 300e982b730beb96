"""Which clips nothing else beats in both score and cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from screentest_reporter.model_table import ReportRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One scored clip. ``wh`` and ``memory_bytes``: None = not measured."""

    job_id: str
    model: str
    score10: float
    low: float
    high: float
    seconds: float
    wh: float | None
    memory_bytes: int | None


def points(rows: Sequence[ReportRow]) -> tuple[Point, ...]:
    """Rows with a score and a latency, in the order of the table."""
    return tuple(point for row in rows if (point := _point(row)) is not None)


def _point(row: ReportRow) -> Point | None:
    score = row.score.score if row.score is not None else None
    if score is None or row.row.latency_s is None:
        return None
    if score.score10 is None or score.low is None or score.high is None:
        return None
    return Point(
        job_id=row.row.job_id,
        model=row.row.model,
        score10=score.score10,
        low=score.low,
        high=score.high,
        seconds=row.row.latency_s,
        wh=row.energy_wh,
        memory_bytes=row.peak_device_memory_bytes,
    )


def front(costs_and_scores: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Of (cost, score): those that no other one beats by costing no more and scoring no less; the cheapest first."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(costs_and_scores, key=lambda item: (item[0], -item[1])):
        if not kept or score > kept[-1][1]:
            kept.append((cost, score))
    return tuple(kept)
