"""The conversation with the runner during one attempt, under the limits of its job."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from screentest.records import Outcome, PhaseMemory
from screentest_runner import protocol
from screentest_runner.protocol import (
    Cancel,
    Decoded,
    Failed,
    Generate,
    Judge,
    Judged,
    Load,
    Loaded,
    Message,
    Phase,
    PhaseChanged,
    Prepare,
    StepDone,
)
from screentest_worker import outcome, processes
from screentest_worker.hand import Helpers, InHand
from screentest_worker.ledger import StopReason
from screentest_worker.outcome import Limit
from screentest_worker.runner import Runner, WarmKey
from screentest_worker.supervisor import Supervisor

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What one attempt asks of the runner, one after the other; a warm one is asked only the last."""

    prepare: Prepare
    load: Load
    order: Generate | Judge


class Computation:
    """One attempt's load and what comes after it. ``entered`` is told every phase of the runner."""

    def __init__(
        self,
        *,
        hand: InHand,
        runner: Runner,
        requests: Requests,
        key: WarmKey,
        supervisor: Supervisor,
        cancel_grace_s: float,
        entered: Callable[[PhaseChanged], Awaitable[None]],
    ) -> None:
        self._hand = hand
        self._runner = runner
        self._requests = requests
        self._key = key
        self._supervisor = supervisor
        self._cancel_grace_s = cancel_grace_s
        self._entered = entered
        self._is_computing = False
        self._oom_kills_before = processes.host_oom_kills()
        self.helpers: Helpers | None = None
        self.loads = 0
        self.versions: dict[str, str] = {}
        self.traceback = ""
        self._steps_s: list[float] = []
        self.has_let_go = False  # the runner gave the attempt up by itself: it is as good as before

    async def run(self, *, warm: bool) -> Decoded | Judged | Outcome:
        """What the runner made, or how the attempt ended. The runner is left as it is, whatever happens."""
        if not warm:
            failed = await self._load()
            if failed is not None:
                return failed
        return await self._carry_out()

    def with_steps(self, ending: Outcome) -> Outcome:
        """The outcome with what was counted here: steps and their pace.

        The first step is left out of the pace: it compiles kernels and fills caches.
        """
        paced = self._steps_s[1:]
        step_s = statistics.median(paced) if paced else None
        return replace(ending, steps_done=len(self._steps_s), step_s=step_s)

    def end_helpers(self) -> None:
        if self.helpers is not None:
            self._supervisor.end_helper(self.helpers.encoder)
            self._supervisor.end_helper(self.helpers.probe)

    def _start_helpers(self) -> Helpers | None:
        """None when they cannot start now; `finish` then tries again and says why."""
        try:
            encoder = self._supervisor.start_encoder()
            return Helpers(encoder=encoder, probe=self._supervisor.start_probe())
        except OSError as error:
            log.error("helpers_not_started", error=str(error))
            return None

    async def _load(self) -> Outcome | None:
        """None when the pipeline is on the device."""
        if not self._runner.is_prepared:
            self._runner.send(self._requests.prepare)
            self._runner.is_prepared = True
        self._runner.send(self._requests.load)
        until = time.monotonic() + self._hand.dispatch.spec.limits.load_s
        while True:
            message = await self._next(Limit.LOAD, until)
            match message:
                case Outcome():
                    return message
                case Loaded(versions=versions):
                    self.loads += 1
                    self.versions = versions
                    self._runner.key = self._key
                    return None
                case _:
                    await self._tell(message)

    async def _carry_out(self) -> Decoded | Judged | Outcome:
        assert self._hand.deadline is not None
        order = self._requests.order
        if isinstance(order, Generate):  # what the load has left of the attempt's time
            order = replace(order, limit_s=self._hand.deadline - time.monotonic())
        self._runner.send(order)
        self._is_computing = True
        while True:
            stall_s = self._hand.dispatch.spec.limits.step_stall_s
            message = await self._next(Limit.STEP_STALL, time.monotonic() + stall_s)
            if isinstance(message, Outcome | Decoded | Judged):
                return message
            await self._tell(message)
            if self.helpers is None and isinstance(message, PhaseChanged) and message.phase is Phase.DENOISING:
                self.helpers = self._start_helpers()

    async def _next(self, limit: Limit, until: float) -> Message | Outcome:
        """The next reply, or the outcome that ends the attempt."""
        assert self._hand.deadline is not None
        deadline = min(until, self._hand.deadline)
        message = await _first(self._runner, self._hand.stop, deadline - time.monotonic())
        if self._hand.stop.is_set():
            if self._hand.stop_reason is not StopReason.GPU_FAULT:  # a failed device lets nobody go
                self.has_let_go = await self._call_off(message)
            return self._hand.stopped()
        match message:
            case _Silence():
                return self._breach(limit if deadline == until else Limit.ATTEMPT)
            case None:
                return outcome.from_exit(exit_of(self._runner, self._oom_kills_before), self._phase)
            case Failed() as failed:
                self.traceback = failed.traceback
                # it saw in its first steps that the time would not do, and gave up as it does after a cancel
                self.has_let_go = failed.failure_class is protocol.FailureClass.TIMEOUT
                ending = outcome.from_reply(failed.failure_class, failed.message, failed.phase)
                return replace(
                    ending,
                    peak_device_memory_bytes=failed.peak_device_bytes,
                    peak_memory_by_phase=peaks_of(failed),
                )
            case _:
                return message

    async def _call_off(self, message: Message | _Silence | None) -> bool:
        """Whether the runner has given the attempt up by itself and may serve the next one.

        It looks for a Cancel at every step and phase, but not in a load. ``message``: what came with the stop.
        """
        if not self._is_computing:
            return False
        self._runner.send(Cancel(attempt_id=self._requests.order.attempt_id))
        grace_s = min(self._cancel_grace_s, self._hand.dispatch.spec.limits.step_stall_s)
        try:
            async with asyncio.timeout(grace_s):
                while True:
                    match message:
                        case Failed(failure_class=failure_class):
                            return failure_class is protocol.FailureClass.CANCELLED
                        case Decoded() | Judged():  # it was done before it heard
                            return True
                        case None:
                            return False
                        case _:  # a step or phase on the way
                            message = await self._runner.receive()
        except TimeoutError:
            log.warning("cancel_not_answered", within_s=grace_s)
            return False

    def _breach(self, limit: Limit) -> Outcome:
        limits = self._hand.dispatch.spec.limits
        seconds = {
            Limit.LOAD: limits.load_s,
            Limit.STEP_STALL: limits.step_stall_s,
            Limit.ATTEMPT: limits.attempt_s,
        }
        return outcome.from_breach(limit, seconds[limit], self._phase)

    async def _tell(self, message: Message) -> None:
        match message:
            case PhaseChanged():
                await self._entered(message)
            case StepDone(step=step, steps=steps, step_s=step_s):
                self._steps_s.append(step_s)
                await self._hand.feed.step(self._phase, step, steps, step_s)
            case protocol.Prepared(versions=versions):
                self.versions = versions
            case _:
                log.warning("reply_out_of_place", reply=type(message).__name__)

    @property
    def _phase(self) -> str:
        return self._hand.phases.current


@dataclass(frozen=True, slots=True)
class _Silence:
    """Nothing came in time."""


async def _first(runner: Runner, stop: asyncio.Event, timeout_s: float) -> Message | _Silence | None:
    """The runner's next reply, None after its death, or silence after the time or a stop."""
    async with asyncio.TaskGroup() as group:
        reply = group.create_task(runner.receive())
        stopped = group.create_task(stop.wait())
        await asyncio.wait({reply, stopped}, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not reply.done():
            reply.cancel()
    return _Silence() if reply.cancelled() else reply.result()


def peaks_of(reply: Decoded | Judged | Failed) -> tuple[PhaseMemory, ...]:
    """Peak device memory by phase, in the order of the phases; empty without a GPU."""
    found = reply.peak_memory_by_phase or {}
    order = [phase.value for phase in Phase]
    return tuple(PhaseMemory(phase=phase, peak_bytes=found[phase]) for phase in sorted(found, key=order.index))


def exit_of(runner: Runner, oom_kills_before: int | None) -> outcome.Exit:
    """How a dead runner died. ``oom_kills_before``: the kernel's count before the attempt, None = not counted."""
    now = processes.host_oom_kills()
    kills = None if now is None or oom_kills_before is None else now - oom_kills_before
    returncode = runner.child.returncode
    return outcome.Exit(returncode=returncode if returncode is not None else 0, oom_kills=kills)
