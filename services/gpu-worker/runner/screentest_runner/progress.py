"""One attempt as the runner sees it: its phases, steps, durations, and whether it was cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

from screentest_runner import pace
from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass, Phase, PhaseChanged, RunnerReply, StepDone

Reply = Callable[[RunnerReply], None]
PhaseEnded = Callable[[Phase], None]


def phase_changed(attempt_id: str | None, phase: Phase) -> PhaseChanged:
    """The message for a phase that begins now."""
    return PhaseChanged(attempt_id=attempt_id, phase=phase, at_boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class AttemptProgress:
    """Told by the adapter what happens; tells the supervisor and raises when the attempt was cancelled, or when its
    steps are too slow for its limit. limit_s: seconds from its beginning, None when nobody set any. first: the phase
    it begins in.
    """

    def __init__(
        self,
        attempt_id: str,
        reply: Reply,
        cancelled: Event,
        limit_s: float | None = None,
        first: Phase = Phase.ENCODING_PROMPT,
    ) -> None:
        self.attempt_id = attempt_id
        self.phase = first
        self.cancelled = cancelled
        self.timings_s: dict[str, float] = {}
        self.steps_done = 0
        self._reply = reply
        self._limit_s = limit_s
        self._fastest_s: float | None = None  # of the steps after the first
        self._phase_ended: PhaseEnded | None = None
        self._began = self._phase_began = self._step_began = time.perf_counter()
        reply(phase_changed(attempt_id, self.phase))

    def on_phase_end(self, phase_ended: PhaseEnded) -> None:
        """Have it called with every phase that ends, before its time is taken."""
        self._phase_ended = phase_ended

    def enter(self, phase: Phase) -> None:
        """Begin a phase, unless it has begun already; phases never go back."""
        self.check_cancelled()
        if list(Phase).index(phase) <= list(Phase).index(self.phase):
            return
        self.end_phase()
        now = time.perf_counter()
        self.phase, self._phase_began, self._step_began = phase, now, now
        self._reply(phase_changed(self.attempt_id, phase))

    def end_phase(self) -> None:
        """Take the time of the phase that this attempt is in: the last one has none after it."""
        if self._phase_ended is not None:
            self._phase_ended(self.phase)
        self.timings_s[self.phase.value] = time.perf_counter() - self._phase_began

    def step_done(self, steps: int) -> None:
        """One more denoising step of `steps` ended. After the last one the decoding begins."""
        now = time.perf_counter()
        step_s = now - self._step_began
        self.steps_done += 1
        self._reply(StepDone(attempt_id=self.attempt_id, step=self.steps_done, steps=steps, step_s=step_s))
        self._step_began = now
        self.check_cancelled()
        self._check_pace(now - self._began, step_s, steps)
        if self.steps_done == steps:
            self.enter(Phase.DECODING)

    def reached(self, done: int, steps: int) -> None:
        """`done` of `steps` steps of judging ended, several at once perhaps. They are not held against the limit: how
        many there are is known only at their end.
        """
        now = time.perf_counter()
        ended = max(1, done - self.steps_done)
        self.steps_done = max(self.steps_done, done)
        step_s = (now - self._step_began) / ended
        self._reply(StepDone(attempt_id=self.attempt_id, step=self.steps_done, steps=steps, step_s=step_s))
        self._step_began = now
        self.check_cancelled()

    def _check_pace(self, elapsed_s: float, step_s: float, steps: int) -> None:
        if self.steps_done > 1:
            self._fastest_s = min(step_s, self._fastest_s or step_s)
        if self._limit_s is not None and self._fastest_s is not None:
            pace.check_pace(
                self._limit_s, elapsed_s=elapsed_s, fastest_s=self._fastest_s, done=self.steps_done, steps=steps
            )

    def check_cancelled(self) -> None:
        """Raises AttemptFailure(cancelled) after a Cancel. A raise, because StableVideoDiffusionPipeline ignores the
        `_interrupt` flag and the other pipelines still decode after it.
        """
        if self.cancelled.is_set():
            raise AttemptFailure(FailureClass.CANCELLED, f"cancelled while {self.phase.value}")
