"""Which lane people prefer, from blind pairs: Bradley-Terry strengths by `choix`, ranked by their lower bound. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import choix
import numpy as np
from choix.opt import PairwiseFcts

from screentest.records import PairOutcome, PairVoted
from screentest_reporter.scoring import PRELIMINARY_BELOW

# Keeps a lane that won its only vote finite, and behind one that won most of forty. A tenth of a vote.
REGULARISATION: Final = 0.1
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
    Source: the maximum of the Bradley-Terry likelihood (Hunter 2004, doi 10.1214/aos/1079120141) with a Gaussian prior,
    and the interval from the inverse of the Hessian of that same sum.
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
    number = {lane: index for index, lane in enumerate(lanes)}
    halves = [half for pair in pairs for half in _halves(number[pair[0]], number[pair[1]], pair[2])]
    strengths = choix.opt_pairwise(len(lanes), halves, alpha=REGULARISATION)
    errors = _errors(halves, strengths)
    rows = [
        (float(strengths[index]), float(errors[index]), lane, sum(lane in pair[:2] for pair in pairs))
        for lane, index in number.items()
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


def _halves(left: int, right: int, outcome: PairOutcome) -> tuple[tuple[int, int], tuple[int, int]]:
    """Each vote as two half votes (winner, loser), so that a tie weighs as much as a win."""
    match outcome:
        case PairOutcome.LEFT:
            return (left, right), (left, right)
        case PairOutcome.RIGHT:
            return (right, left), (right, left)
        case PairOutcome.TIE | PairOutcome.BOTH_BAD:
            return (left, right), (right, left)


def _errors(halves: list[tuple[int, int]], strengths: np.ndarray) -> np.ndarray:
    """Standard errors of the strengths; the half votes carry half of the information each.

    Strengths have mean 0: what all of them have in common is known, however little a vote says about it.
    """
    covariance = np.linalg.inv(PairwiseFcts(halves, REGULARISATION).hessian(strengths) / 2)
    centred = np.eye(len(strengths)) - 1 / len(strengths)
    return np.asarray(np.sqrt(np.clip(np.diag(centred @ covariance @ centred), 0, None)))
