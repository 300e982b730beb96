"""When each waiting job of a device begins: what stands before it, in the order in which it will be admitted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from screentest_scheduler.admission import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a job keeps its device for. ``load_s`` only where its lane is not loaded yet; None = unknown."""

    load_s: float | None
    clip_s: float | None

    def run_s(self, *, is_loaded: bool) -> float | None:
        if self.clip_s is None or (self.load_s is None and not is_loaded):
            return None
        return self.clip_s if is_loaded else self.clip_s + (self.load_s or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """``wait_s``: until it begins. ``run_s``: from then on. None = something in it is unknown."""

    wait_s: float | None
    run_s: float | None


def in_order(candidates: Iterable[Candidate], loaded_lane: str) -> list[Candidate]:
    """As admission will choose: by priority, and within one every job of the loaded lane before another is loaded."""
    by_priority: dict[int, dict[str, list[Candidate]]] = {}
    for item in sorted(candidates, key=lambda item: item.order):
        by_priority.setdefault(item.priority, {}).setdefault(item.entry.spec.lane_id, []).append(item)
    ordered: list[Candidate] = []
    for priority in sorted(by_priority, reverse=True):
        lanes = by_priority[priority]
        for lane_id in sorted(lanes, key=lambda lane_id: lane_id != loaded_lane):  # stable: the rest by order
            ordered += lanes[lane_id]
            loaded_lane = lane_id
    return ordered


def expectations(
    candidates: Iterable[Candidate],
    cost_of: Callable[[Candidate], Cost],
    *,
    loaded_lane: str,
    busy_s: float | None,
    lanes_alive: Collection[str],
) -> dict[str, Expectation]:
    """By job id, for one device that is busy for ``busy_s`` more (None = unknown, 0 = free).

    A job of a paused sweep, one before its time or of a lane without worker keeps nobody waiting, and nobody knows when
    it begins.
    """
    found: dict[str, Expectation] = {}
    ready: list[Candidate] = []
    for item in candidates:
        if item.is_held or item.entry.spec.lane_id not in lanes_alive:
            run_s = cost_of(item).run_s(is_loaded=False)
            found[item.entry.spec.job_id] = Expectation(wait_s=None, run_s=run_s)
        else:
            ready.append(item)
    found.update(_queue(in_order(ready, loaded_lane), cost_of, loaded_lane, busy_s))
    return found


def _queue(
    ordered: Sequence[Candidate], cost_of: Callable[[Candidate], Cost], loaded_lane: str, wait_s: float | None
) -> dict[str, Expectation]:
    """One after the other; behind one of unknown length nobody knows his time."""
    found = {}
    for item in ordered:
        lane_id = item.entry.spec.lane_id
        run_s = cost_of(item).run_s(is_loaded=lane_id == loaded_lane)
        found[item.entry.spec.job_id] = Expectation(wait_s=wait_s, run_s=run_s)
        wait_s = None if wait_s is None or run_s is None else wait_s + run_s
        loaded_lane = lane_id
    return found


def left_s(run_s: float | None, elapsed_s: float) -> float | None:
    """Of a running attempt; 0 when it takes longer than expected."""
    return None if run_s is None else max(0.0, run_s - elapsed_s)
