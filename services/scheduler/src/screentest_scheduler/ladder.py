"""Which rung of its lane's ladder an attempt begins on, and which follows when device memory was too small. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime

from screentest.records import FailureClass, JobSpec, Outcome, Weights, WonRung

# Host memory is no matter of rungs: the lower ones need more of it, not less.
OUT_OF_MEMORY = frozenset(
    {FailureClass.OOM_LOAD, FailureClass.OOM_ENCODE, FailureClass.OOM_DENOISE, FailureClass.OOM_DECODE}
)


def rung_after(spec: JobSpec, rung: int, outcome: Outcome) -> int | None:
    """The rung to try after this ending; None when it was no want of device memory or no usable rung is left."""
    if outcome.failure_class not in OUT_OF_MEMORY or outcome.infrastructure:
        return None
    return next((lower for lower in range(rung + 1, len(spec.rungs)) if spec.rungs[lower]), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstance:
    """What decides which rung is enough. ``gpu_name`` None = computed without a GPU.

    Whether the weights are the published ones or random ones of the same size is not in it: memory is the same.
    """

    lane_id: str
    lane_digest: str
    rungs: tuple[str, ...]
    width_px: int
    height_px: int
    num_frames: int
    is_miniature: bool
    memory_cap_gib: float | None
    gpu_name: str | None


_CIRCUMSTANCE = tuple(part.name for part in fields(Circumstance))


def circumstance(spec: JobSpec, gpu_name: str | None) -> Circumstance:
    return Circumstance(
        lane_id=spec.lane_id,
        lane_digest=spec.lane_digest,
        rungs=spec.rungs,
        width_px=spec.width_px,
        height_px=spec.height_px,
        num_frames=spec.num_frames,
        is_miniature=spec.weights is Weights.MINIATURE,
        memory_cap_gib=spec.memory_cap_gib,
        gpu_name=gpu_name,
    )


class WinningRungs:
    """The rung of the last clip in each circumstance whose plan said a higher one: that one had not been enough.

    A clip at the rung of its plan teaches nothing: the same numbers say it again, and when memory was short for a
    while, they may say better.
    """

    def __init__(self) -> None:
        self._won: dict[Circumstance, WonRung] = {}

    def learn(self, spec: JobSpec, rung: int, outcome: Outcome, at: datetime) -> None:
        """From the end of an attempt, which was then."""
        if outcome.failure_class is None and rung > spec.first_rung:
            here = circumstance(spec, outcome.gpu_name)
            self.recall((WonRung(rung=rung, at=at, **{name: getattr(here, name) for name in _CIRCUMSTANCE}),))

    def told(self) -> tuple[WonRung, ...]:
        """Everything that is known, to be recalled another day."""
        return tuple(self._won.values())

    def recall(self, won: Iterable[WonRung]) -> None:
        """What was told before, in any order: restored sweeps are older than what was learned. The latest counts."""
        for item in won:
            here = Circumstance(**{name: getattr(item, name) for name in _CIRCUMSTANCE})
            known = self._won.get(here)
            if known is None or known.at <= item.at:
                self._won[here] = item

    def rung(self, here: Circumstance) -> int:
        """Where the ladder begins by experience: 0 without one."""
        known = self._won.get(here)
        return 0 if known is None else known.rung

    def first_rung(self, spec: JobSpec, gpu_name: str | None) -> int:
        """Where the first attempt of this job begins: as planned, or lower where more was learned since."""
        return max(spec.first_rung, self.rung(circumstance(spec, gpu_name)))
