"""Bradley-Terry strengths of a few contestants with their standard errors, in plain Python. Pure.

A sweep has some ten lanes: the matrices are small enough to need no numerical library, which would be two thirds of the
reporter's image (choix brings SciPy, NumPy and OpenBLAS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# Precision of the Gaussian prior that every strength has: it keeps who won the only vote finite, and behind one that
# won most of forty.
PRIOR: Final = 0.1
# The posterior is concave and the steps are Newton's: some ten are enough. Cut short, so that none oversteps its peak.
STEPS: Final = 200
LONGEST_STEP: Final = 1.0
CLOSE_ENOUGH: Final = 1e-10

Matrix = list[list[float]]


def strengths(wins: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Log-odds against the mean of all, and their standard errors. ``wins[i][j]``: how often i was preferred to j; a
    tie is half a win for both.

    Strengths have mean 0: what all of them have in common is known, however little a vote says about it.
    Source: the posterior's mode by Newton's method (Hunter 2004, doi 10.1214/aos/1079120141, section 3 for the
    likelihood); the errors from the inverse of its Hessian.
    """
    found = [0.0] * len(wins)
    for _ in range(STEPS):
        covariance = _inverse(_information(wins, found))
        step = _times(covariance, _gradient(wins, found))
        length = max(map(abs, step))
        share = LONGEST_STEP / max(LONGEST_STEP, length)
        found = [value + share * change for value, change in zip(found, step, strict=True)]
        if length < CLOSE_ENOUGH:
            return found, _errors(covariance)
    raise ArithmeticError(f"no Bradley-Terry strengths for these wins: {wins}")


def _gradient(wins: Sequence[Sequence[float]], found: Sequence[float]) -> list[float]:
    return [
        sum(won - (won + wins[j][i]) * _probability(found[i] - found[j]) for j, won in enumerate(row) if j != i)
        - PRIOR * found[i]
        for i, row in enumerate(wins)
    ]


def _information(wins: Sequence[Sequence[float]], found: Sequence[float]) -> Matrix:
    """The Hessian of the negative log-posterior: symmetric and positive definite, thanks to the prior."""
    size = range(len(wins))
    known = [[0.0] * len(wins) for _ in size]
    for i in size:
        known[i][i] += PRIOR
        for j in size:
            if i != j:
                chance = _probability(found[i] - found[j])
                weight = (wins[i][j] + wins[j][i]) * chance * (1 - chance)
                known[i][i] += weight
                known[i][j] -= weight
    return known


def _probability(difference: float) -> float:
    """That the first of two is preferred: the logistic function, for differences that no exp() overflows at."""
    return 0.5 * (1 + math.tanh(difference / 2))


def _inverse(matrix: Matrix) -> Matrix:
    """Gauss-Jordan; without pivoting, because the matrix is positive definite."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column, pivot in enumerate(rows):
        scale = pivot[column]
        pivot[:] = [value / scale for value in pivot]
        for row in rows:
            if row is not pivot:
                factor = row[column]
                row[:] = [value - factor * above for value, above in zip(row, pivot, strict=True)]
    return [row[size:] for row in rows]


def _times(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _errors(covariance: Matrix) -> list[float]:
    """Standard errors of what remains of the strengths when their mean is taken away."""
    size = len(covariance)
    means = [sum(row) / size for row in covariance]
    mean = sum(means) / size
    return [math.sqrt(max(0.0, row[i] - 2 * means[i] + mean)) for i, row in enumerate(covariance)]
