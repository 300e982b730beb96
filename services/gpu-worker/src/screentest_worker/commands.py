"""Answers the scheduler's commands: prepare, retire, cancel, end, preflight."""

from __future__ import annotations

import asyncio
from typing import assert_never

import structlog

from screentest import wire
from screentest.errors import Unavailable
from screentest.records import (
    CancelAttempt,
    Command,
    CommandReply,
    DeviceFacts,
    EndAttempt,
    JobSpec,
    Preflight,
    Prepare,
    Retire,
    Verdict,
)
from screentest_runner import protocol
from screentest_worker.consume import Consumer
from screentest_worker.ledger import StopReason
from screentest_worker.runner import RunnerSlot
from screentest_worker.telemetry import Telemetry
from screentest_worker.work import Work

log = structlog.get_logger()

# Of the 2 s that the scheduler waits for a preflight.
TELEMETRY_WITHIN_S = 1.0


class Commands:
    """Each answer comes within 2 s, but for a retirement: that one is answered when the runner is gone."""

    def __init__(
        self,
        *,
        work: Work,
        consumer: Consumer,
        slot: RunnerSlot,
        telemetry: Telemetry,
    ) -> None:
        self._work = work
        self._consumer = consumer
        self._slot = slot
        self._telemetry = telemetry

    async def answer(self, subject: str, payload: bytes) -> bytes:
        command = wire.decode(payload, Command)
        match command.body:
            case Prepare():
                reply = await self._prepare()
            case Retire(reason=reason):
                reply = await self._retire(reason)
            case CancelAttempt(job_id=job_id, attempt=attempt):
                reply = self._cancel(job_id, attempt)
            case EndAttempt(job_id=job_id, attempt=attempt, cause=cause):
                reply = self._end(job_id, attempt, cause)
            case Preflight() as asked:
                reply = await self._preflight(asked.spec)
            case _:
                assert_never(command.body)
        log.info("command_answered", command=type(command.body).__name__, done=reply.done, detail=reply.detail)
        return wire.encode(reply)

    async def _prepare(self) -> CommandReply:
        """The interpreter and the imports, no device: the runner takes the lock only when its attempt comes."""
        if self._slot.current is not None:
            return CommandReply(done=True, detail="a runner is there")
        try:
            runner = await self._slot.started(await self._telemetry.facts())
        except (Unavailable, OSError) as error:
            return CommandReply(done=False, detail=str(error))
        runner.send(protocol.Prepare(lane=self._work.content))
        runner.is_prepared = True
        return CommandReply(done=True, detail=f"runner {runner.process.pid} imports")

    async def _retire(self, reason: str) -> CommandReply:
        if (busy := self._consumer.on_device) is not None:
            return CommandReply(done=False, detail=f"job {busy.dispatch.spec.job_id} is on the device")
        killed = await self._slot.retire(reason)
        return CommandReply(done=True, detail=f"{killed} processes had to be killed" if killed else "")

    def _cancel(self, job_id: str, attempt: int) -> CommandReply:
        """Only asks for the end: AttemptEnded follows when the runner has given up or is gone."""
        hand = self._consumer.find(job_id, attempt)
        if hand is None:
            return CommandReply(done=False, detail=f"attempt {attempt} of job {job_id} is not here")
        hand.request_stop(StopReason.CANCELLED)
        return CommandReply(done=True)

    def _end(self, job_id: str, attempt: int, cause: str) -> CommandReply:
        """Only what is on the device: frames that are decoded were computed before it failed."""
        hand = self._consumer.on_device
        if hand is None or hand.key != (job_id, attempt):
            return CommandReply(done=False, detail=f"attempt {attempt} of job {job_id} is not on the device")
        hand.request_stop(StopReason.GPU_FAULT, cause)
        return CommandReply(done=True)

    async def _preflight(self, spec: JobSpec) -> CommandReply:
        device = await self._device_facts() if self._work.counts_memory(spec) else None
        decision = await asyncio.to_thread(self._work.preflight, spec, None, device)
        return CommandReply(
            done=decision.verdict is not Verdict.REFUSED,
            detail=decision.detail,
            verdict=decision.verdict,
            fix=decision.fix,
            first_rung=decision.first_rung,
            memory_free_bytes=decision.memory_free_bytes,
        )

    async def _device_facts(self) -> DeviceFacts | None:
        """None when telemetry does not answer in time: then memory is unknown, and the rest is still said."""
        try:
            async with asyncio.timeout(TELEMETRY_WITHIN_S):
                return await self._telemetry.facts()
        except (Unavailable, TimeoutError) as error:
            log.warning("preflight_without_memory", error=str(error))
            return None
