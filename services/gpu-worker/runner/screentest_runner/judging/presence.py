"""How much of its prompt a clip shows, its beats in order: good for choosing a clip, no score. Pure.

The controls are made of the clip with the most of it. Those of them that take the order away say nothing about a judge
unless the clip has its beats in order, so what stands out of order does not count here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Sequence[float | None]


def presence(answers: Mapping[str, Row], questions: Sequence[Mapping[str, Any]] | None) -> float | None:
    """Mean of the best answer to each question, 0..1, for beats on their best way in order; None without a valid one.

    questions: as in the runner's Judge message. Of kind negative are those for what should not be there: left out.
    """
    asked = {question["id"]: question for question in questions or ()}
    wanted = {key: row for key, row in answers.items() if asked.get(key, {}).get("kind") != "negative"}
    valid = {key: row for key, row in wanted.items() if any(p is not None for p in row)}
    beats: dict[int, dict[str, Row]] = {}
    for key, row in valid.items():
        if (beat := asked.get(key, {}).get("beat")) is not None:
            beats.setdefault(beat, {})[key] = row
    in_beats = {key for rows in beats.values() for key in rows}
    best = [_best(row) for key, row in valid.items() if key not in in_beats]
    total = sum(best) + _in_order([_summed(beats[n].values()) for n in sorted(beats)])
    return total / len(valid) if valid else None


def _best(row: Row) -> float:
    return max(p for p in row if p is not None)


def _summed(rows: Iterable[Row]) -> list[float]:
    """Of one beat, window by window; what has no valid answer adds nothing."""
    return [sum(p or 0.0 for p in column) for column in zip(*rows, strict=True)]


def _in_order(beats: Sequence[Sequence[float]]) -> float:
    """The largest sum over strictly increasing windows, at most one a beat: a beat may be skipped.

    The reporter's `best_path` without the path. Dynamic programming over beats x windows.
    """
    best = [0.0] * (1 + max(map(len, beats), default=0))  # best[k]: with the first k windows
    for row in beats:
        before = best.copy()
        for k, p in enumerate(row, start=1):
            best[k] = max(before[k], best[k - 1], before[k - 1] + p)
    return best[-1]
