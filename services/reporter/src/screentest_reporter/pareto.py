"""Which clips nothing else beats in both score and cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from screentest_reporter.model_table import ReportRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One scored clip, or the means of a lane's. ``wh`` and ``memory_bytes``: None = not measured."""

    lane_title: str
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
        lane_title=row.lane_title,
        model=row.row.model,
        score10=score.score10,
        low=score.low,
        high=score.high,
        seconds=row.row.latency_s,
        wh=row.energy_wh,
        memory_bytes=row.peak_device_memory_bytes,
    )


def lane_means(clips: Sequence[Point]) -> tuple[Point, ...]:
    """One point a lane: means over its clips, the largest memory of any."""
    by_lane: dict[str, list[Point]] = {}
    for clip in clips:
        by_lane.setdefault(clip.lane_title, []).append(clip)
    return tuple(_means(title, found) for title, found in by_lane.items())


def _means(title: str, clips: Sequence[Point]) -> Point:
    measured = [clip.wh for clip in clips if clip.wh is not None]
    return Point(
        lane_title=title,
        model=title,
        score10=fmean(clip.score10 for clip in clips),
        low=fmean(clip.low for clip in clips),
        high=fmean(clip.high for clip in clips),
        seconds=fmean(clip.seconds for clip in clips),
        wh=fmean(measured) if measured else None,
        memory_bytes=max((clip.memory_bytes for clip in clips if clip.memory_bytes is not None), default=None),
    )


def front(costs_and_scores: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Of (cost, score): those that no other one beats by costing no more and scoring no less; the cheapest first."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(costs_and_scores, key=lambda item: (item[0], -item[1])):
        if not kept or score > kept[-1][1]:
            kept.append((cost, score))
    return tuple(kept)
