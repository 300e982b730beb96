"""Which lane is better, where that can be said: ranks with ties, and what makes lanes hard to compare. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from screentest_reporter.scoring import Score

# One prompt and one seed are one number; a rank needs at least this many seeds. Source: scoring note 1.4.
LEAST_SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneScores:
    """A lane's clips of one prompt, one per seed. changes: parameters that are not as asked, in words."""

    lane_id: str
    scores: tuple[Score, ...]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """score10, low, high: means over the scored seeds, None without one. rank: from 1; None = not scored.

    tied_with: lanes whose interval overlaps this one's. notes: what stands beside the rank.
    """

    lane_id: str
    score10: float | None
    low: float | None
    high: float | None
    seeds: int
    rank: int | None
    tied_with: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def rank_text(self) -> str:
        """`1`, `2 (tie)`, `not scored`."""
        if self.rank is None:
            return "not scored"
        return f"{self.rank} (tie)" if self.tied_with else str(self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interval:
    lane_id: str
    middle: float
    low: float
    high: float


def ranked(lanes: Sequence[LaneScores]) -> tuple[Ranked, ...]:
    """The best first, not scored lanes last, equals in the order given.

    A lane's rank is 1 + the number of lanes that lie above its whole interval: overlapping ones are not told apart.
    """
    known = {lane.lane_id: interval for lane in lanes if (interval := _interval(lane)) is not None}
    rows = [_row(lane, known) for lane in lanes]
    return tuple(sorted(rows, key=lambda row: (row.rank is None, row.rank or 0, -(row.score10 or 0.0))))


def _interval(lane: LaneScores) -> _Interval | None:
    """Mean of the scores, and the wider of the mean interval and the range over seeds."""
    scored = [(s.score10, s.low, s.high) for s in lane.scores]
    known = [(m, low, high) for m, low, high in scored if m is not None and low is not None and high is not None]
    if not known:
        return None
    middles = [middle for middle, _, _ in known]
    return _Interval(
        lane_id=lane.lane_id,
        middle=sum(middles) / len(known),
        low=min(sum(low for _, low, _ in known) / len(known), *middles),
        high=max(sum(high for _, _, high in known) / len(known), *middles),
    )


def _row(lane: LaneScores, known: dict[str, _Interval]) -> Ranked:
    seeds = sum(score.score10 is not None for score in lane.scores)
    own = known.get(lane.lane_id)
    if own is None:
        return Ranked(
            lane_id=lane.lane_id,
            score10=None,
            low=None,
            high=None,
            seeds=0,
            rank=None,
            tied_with=(),
            notes=lane.changes,
        )
    others = [interval for interval in known.values() if interval.lane_id != lane.lane_id]
    return Ranked(
        lane_id=lane.lane_id,
        score10=own.middle,
        low=own.low,
        high=own.high,
        seeds=seeds,
        rank=1 + sum(other.low > own.high for other in others),
        tied_with=tuple(other.lane_id for other in others if other.low <= own.high and own.low <= other.high),
        notes=(*_few(seeds), *lane.changes),
    )


def _few(seeds: int) -> tuple[str, ...]:
    if seeds >= LEAST_SEEDS:
        return ()
    return (f"{seeds} seed{'' if seeds == 1 else 's'}: a rank needs {LEAST_SEEDS}",)
