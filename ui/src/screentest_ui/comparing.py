"""Two reports side by side: what survived, how long, how much, how good; and what differed when a number does. Pure.

Cells are compared where both sweeps have them: the same lane, prompt and seed. A difference of scores whose intervals
overlap is no difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from screentest_ui.likeness import Likeness

Cell = tuple[str, int, int]

# What two manifests are compared by, dotted; the rest names the job itself or is what was measured.
CAUSES: Final = (
    "parameters",
    "seed",
    "weights",
    "weights_repo",
    "weights_revision",
    "lane_digest",
    "rung.name",
    "versions",
    "device.gpu_name",
    "device.driver_version",
    "shared_gpu",
    "spec.prompt",
    "spec.keyframe.sha256",
    "spec.memory_cap_gib",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One sweep's row of a cell; None = unknown."""

    job_id: str
    status: str
    failure_class: str | None
    latency_s: float | None
    energy_wh: float | None
    score10: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One cell in both sweeps. ``causes``: what differs in the manifests, ``field: A -> B``; None = one is missing."""

    lane_id: str
    model: str
    a: Side
    b: Side
    likeness: Likeness | None
    causes: tuple[str, ...] | None

    @property
    def latency_ratio(self) -> float | None:
        return _ratio(self.a.latency_s, self.b.latency_s)

    @property
    def energy_ratio(self) -> float | None:
        return _ratio(self.a.energy_wh, self.b.energy_wh)

    @property
    def score_drop(self) -> float | None:
        """Points that B lost; 0 where the intervals overlap."""
        a, b = self.a, self.b
        if None in (a.score10, a.low, a.high, b.score10, b.low, b.high):
            return None
        assert a.score10 is not None and b.score10 is not None
        assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
        is_told_apart = a.high < b.low or b.high < a.low
        return a.score10 - b.score10 if is_told_apart else 0.0

    @property
    def outcome(self) -> str:
        """``completed``, ``failed (timeout) -> completed``."""
        before, after = _outcome(self.a), _outcome(self.b)
        return before if before == after else f"{before} -> {after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``only_a``, ``only_b``: models of cells that the other sweep does not have."""

    a: str
    b: str
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def latency_ratio(self) -> float | None:
        """Median over the cells that completed in both."""
        return _median(pair.latency_ratio for pair in self._completed)

    @property
    def energy_ratio(self) -> float | None:
        return _median(pair.energy_ratio for pair in self._completed)

    @property
    def score_drop(self) -> float | None:
        """The largest of any cell."""
        known = [drop for pair in self._completed if (drop := pair.score_drop) is not None]
        return max(known, default=None)

    @property
    def survival(self) -> tuple[int, int]:
        """Completed cells of A and of B, of those that both have."""
        sides = ((pair.a, pair.b) for pair in self.pairs)
        done = [(a.status == "completed", b.status == "completed") for a, b in sides]
        return sum(a for a, _ in done), sum(b for _, b in done)

    @property
    def _completed(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.a.status == pair.b.status == "completed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What B may cost more than A; None = no limit. ``min_survival``: completed cells of B."""

    max_latency_ratio: float | None = None
    max_energy_ratio: float | None = None
    max_score_drop: float | None = None
    min_survival: int | None = None

    def broken(self, found: Comparison) -> tuple[str, ...]:
        """A sentence per limit that is broken, or that cannot be held because a number is unknown."""
        return tuple(
            line
            for line in (
                _over("latency", "times A's", found.latency_ratio, self.max_latency_ratio),
                _over("energy", "times A's", found.energy_ratio, self.max_energy_ratio),
                _over("score drop", "points", found.score_drop, self.max_score_drop),
                self._too_few(found.survival[1], len(found.pairs)),
            )
            if line
        )

    def _too_few(self, completed: int, cells: int) -> str:
        if self.min_survival is None or completed >= self.min_survival:
            return ""
        return f"survival: {completed} of {cells} cells completed in B, at least {self.min_survival} are asked for"


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    likenesses: Mapping[Cell, Likeness],
    manifests: Mapping[str, Mapping[str, Any]],
) -> Comparison:
    """Of two ``report.json``. ``manifests``: by job id, as far as they could be had."""
    rows_a, rows_b = _rows(a), _rows(b)
    return Comparison(
        a=a["sweep"]["id"],
        b=b["sweep"]["id"],
        pairs=tuple(
            Pair(
                lane_id=cell[0],
                model=row["model"],
                a=_side(row),
                b=_side(rows_b[cell]),
                likeness=likenesses.get(cell),
                causes=_causes(manifests.get(row["job_id"]), manifests.get(rows_b[cell]["job_id"])),
            )
            for cell, row in rows_a.items()
            if cell in rows_b
        ),
        only_a=tuple(row["model"] for cell, row in rows_a.items() if cell not in rows_b),
        only_b=tuple(row["model"] for cell, row in rows_b.items() if cell not in rows_a),
    )


def cells(report: Mapping[str, Any]) -> dict[Cell, str]:
    """Job id of every cell that has a clip."""
    return {cell: row["job_id"] for cell, row in _rows(report).items() if row.get("clip")}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of two manifests that differ and could explain another result: ``rung.name: resident -> lean``."""
    found = []
    for name in CAUSES:
        left, right = _at(a, name), _at(b, name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            inner = _flat(left, name), _flat(right, name)
            keys = sorted(inner[0].keys() | inner[1].keys())
            found += [_change(key, inner[0].get(key), inner[1].get(key)) for key in keys if _differ(inner, key)]
        elif left != right:
            found.append(_change(name, left, right))
    return tuple(found)


def _rows(report: Mapping[str, Any]) -> dict[Cell, Mapping[str, Any]]:
    return {(row["lane_id"], row["prompt_index"], row["seed"]): row for row in report["rows"]}


def _side(row: Mapping[str, Any]) -> Side:
    score = row.get("score") or {}
    return Side(
        job_id=row["job_id"],
        status=row["status"],
        failure_class=row["failure_class"],
        latency_s=row["latency_s"],
        energy_wh=row.get("gpu_energy_wh"),
        score10=score.get("score10"),
        low=score.get("low"),
        high=score.get("high"),
    )


def _causes(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    return None if a is None or b is None else differences(a, b)


def _outcome(side: Side) -> str:
    return f"{side.status} ({side.failure_class})" if side.failure_class else side.status


def _at(manifest: Mapping[str, Any], dotted: str) -> Any:
    found: Any = manifest
    for key in dotted.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _flat(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}.{key}"
        flat.update(_flat(value, name) if isinstance(value, Mapping) else {name: value})
    return flat


def _differ(tables: tuple[Mapping[str, Any], Mapping[str, Any]], key: str) -> bool:
    return bool(tables[0].get(key) != tables[1].get(key))


def _change(name: str, a: object, b: object) -> str:
    return f"{name}: {_short(a)} -> {_short(b)}"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or a <= 0 else b / a


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _over(what: str, unit: str, found: float | None, limit: float | None) -> str:
    if limit is None:
        return ""
    if found is None:
        return f"{what}: unknown, so the limit of {limit:g} {unit} cannot be held"
    return f"{what}: {found:.2f} {unit}, at most {limit:g} are allowed" if found > limit else ""
