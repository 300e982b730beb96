"""How far a score moves when a judge's answers move: drawn from one fixed seed, so equal answers give equal widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

Answers = Mapping[str, tuple[float | None, ...]]

# An answer of p counts as ten looks of which 10 p said yes. Source: scoring note 1.4, p ~ Beta(10 p, 10 (1 - p)).
LOOKS = 10
DRAWS = 200
SEED = 20261122


def half_width(answers: Answers, score: Callable[[Answers], float | None]) -> float:
    """Half of the 10-90 % range of `score` over drawn answers; 0 where it says None.

    The range is that of the noise alone. The caller puts it around the score it has: the drawn scores have another
    middle, because the mean of the two largest answers grows with noise.
    """
    random = Random(SEED)
    ordered = sorted(answers.items())  # the order in which a judge answered must not change the draws
    drawn = (score({key: _drawn(row, random) for key, row in ordered}) for _ in range(DRAWS))
    found = sorted(value for value in drawn if value is not None)
    return (_quantile(found, 0.9) - _quantile(found, 0.1)) / 2 if found else 0.0


def _drawn(row: Sequence[float | None], random: Random) -> tuple[float | None, ...]:
    return tuple(p if p is None or p <= 0 or p >= 1 else random.betavariate(LOOKS * p, LOOKS * (1 - p)) for p in row)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]
