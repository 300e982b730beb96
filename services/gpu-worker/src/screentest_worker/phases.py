"""Where an attempt is, since when, and telling it: the record for the manifest and the progress for people."""

from __future__ import annotations

import contextlib

from screentest import subjects, wire
from screentest.errors import ScreentestError
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import Dispatch, PhaseTime, Progress


class PhaseLog:
    """The phases of one attempt in order, by CLOCK_BOOTTIME, which is the clock of the vitals."""

    def __init__(self) -> None:
        self._begun: list[tuple[str, int]] = []

    @property
    def current(self) -> str:
        """Empty before the first phase."""
        return self._begun[-1][0] if self._begun else ""

    def enter(self, phase: str, at_boottime_ns: int) -> None:
        """A phase begins and the one before ends; the same phase twice goes on."""
        if phase != self.current:
            self._begun.append((phase, at_boottime_ns))

    def times(self, until_boottime_ns: int) -> tuple[PhaseTime, ...]:
        """Every phase with its seconds; the last one until now. ``decoded`` is a moment, so it is left out."""
        ends = [*(began for _, began in self._begun[1:]), until_boottime_ns][: len(self._begun)]
        return tuple(
            PhaseTime(phase=phase, seconds=max(0, end - began) / 1e9, started_boottime_ns=began)
            for (phase, began), end in zip(self._begun, ends, strict=True)
            if phase != "decoded"
        )


class ProgressFeed:
    """Publishes the progress of one attempt. Nobody may be listening, and the broker may be away: that is fine."""

    def __init__(self, bus: Bus, dispatch: Dispatch) -> None:
        self._bus = bus
        self._dispatch = dispatch
        spec = dispatch.spec
        self._subject = subjects.progress(spec.sweep_id, spec.lane_id, spec.job_id)
        self._steps_s: list[float] = []

    async def phase(self, phase: str) -> None:
        await self._publish(self._progress(phase))

    async def step(self, phase: str, step: int, steps: int, step_s: float) -> None:
        """One step of denoising or judging ended. ETA: what is left at the mean pace of the steps but the first."""
        self._steps_s.append(step_s)
        paced = self._steps_s[1:] or self._steps_s
        eta_s = (steps - step) * sum(paced) / len(paced)
        await self._publish(self._progress(phase, step=step, steps=steps, step_s=step_s, eta_s=eta_s))

    def _progress(
        self,
        phase: str,
        *,
        step: int | None = None,
        steps: int | None = None,
        step_s: float | None = None,
        eta_s: float | None = None,
    ) -> Progress:
        spec = self._dispatch.spec
        return Progress(
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=self._dispatch.attempt,
            phase=phase,
            step=step,
            steps=steps,
            step_s=step_s,
            eta_s=eta_s,
            stamp=clock.stamp(),
        )

    async def _publish(self, progress: Progress) -> None:
        with contextlib.suppress(ScreentestError):
            await self._bus.publish(self._subject, wire.encode(progress))
