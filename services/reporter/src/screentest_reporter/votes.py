"""Which lane people prefer, from blind pairs: Bradley-Terry strengths, ranked by their lower bound. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from screentest.records import PairOutcome, PairVoted
from screentest_reporter import bradley_terry
from screentest_reporter.scoring import PRELIMINARY_BELOW

# Two-sided 80 %, as every interval of the report.
Z80: Final = 1.2816


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """strength: log-odds against the mean of the lanes, low and high its 80 % interval. votes: in which it stood.

    rank: from 1, by low, the same for equal ones. preliminary: too few votes on the prompt for the rank to mean much.
    """

    lane_id: str
    strength: float
    low: float
    high: float
    votes: int
    rank: int
    preliminary: bool

    @property
    def win_share(self) -> float:
        """Expected share of votes won against a lane of mean strength, 0..1."""
        return 1 / (1 + math.exp(-self.strength))


def preferred(votes: Iterable[PairVoted], lane_of: Mapping[str, str]) -> tuple[Preferred, ...]:
    """The lanes of one prompt, the best first; empty without a vote between two lanes. ``lane_of``: by job id.

    A tie, also one of two bad clips, is half a win for both. Two clips of one lane say nothing about lanes.
    """
    pairs = [
        (lane_of[vote.left_job_id], lane_of[vote.right_job_id], vote.outcome)
        for vote in votes
        if vote.left_job_id in lane_of and vote.right_job_id in lane_of
    ]
    pairs = [(left, right, outcome) for left, right, outcome in pairs if left != right]
    lanes = sorted({lane for left, right, _ in pairs for lane in (left, right)})
    if not lanes:
        return ()
    strengths, errors = bradley_terry.strengths(_wins(pairs, lanes))
    rows = [
        (strength, error, lane, sum(lane in pair[:2] for pair in pairs))
        for lane, strength, error in zip(lanes, strengths, errors, strict=True)
    ]
    # rounded: what differs by the last bits of a solver is no order
    rows.sort(key=lambda row: (-_low(row[0], row[1]), row[2]))
    lows = [_low(strength, error) for strength, error, _, _ in rows]
    return tuple(
        Preferred(
            lane_id=lane,
            strength=strength,
            low=strength - Z80 * error,
            high=strength + Z80 * error,
            votes=count,
            rank=1 + lows.index(low),
            preliminary=len(pairs) < PRELIMINARY_BELOW,
        )
        for low, (strength, error, lane, count) in zip(lows, rows, strict=True)
    )


def _low(strength: float, error: float) -> float:
    return round(strength - Z80 * error, 6)


def _wins(pairs: Sequence[tuple[str, str, PairOutcome]], lanes: Sequence[str]) -> list[list[float]]:
    """Row i, column j: how often lane i was preferred to lane j."""
    number = {lane: index for index, lane in enumerate(lanes)}
    wins = [[0.0] * len(lanes) for _ in lanes]
    for left, right, outcome in pairs:
        i, j = number[left], number[right]
        share = _left_share(outcome)
        wins[i][j] += share
        wins[j][i] += 1 - share
    return wins


def _left_share(outcome: PairOutcome) -> float:
    """Of one vote."""
    match outcome:
        case PairOutcome.LEFT:
            return 1.0
        case PairOutcome.RIGHT:
            return 0.0
        case PairOutcome.TIE | PairOutcome.BOTH_BAD:
            return 0.5
