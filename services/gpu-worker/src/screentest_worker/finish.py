"""The attempt after the device: what it made, manifest, upload, AttemptEnded, acknowledgement.

It runs beside the next attempt. Whatever is away (scheduler, broker, depot), the result waits in the spool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

import structlog

from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.records import Artifact, ArtifactKind, FailureClass, Outcome
from screentest_worker import manifest, outcome, spool
from screentest_worker.hand import InHand, WithoutResult, WithResult
from screentest_worker.ledger import Ledger, StopReason, stop_reason
from screentest_worker.spool import Spool
from screentest_worker.upload import Depot, DepotAway, UrlRefused
from screentest_worker.work import Made, Work

log = structlog.get_logger()

T = TypeVar("T")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
# A failed attempt's log is welcome but must not hold up its end.
LOG_WITHIN_S = 5.0
# A result that an earlier process of this worker left has no attempt clock any more.
LEFTOVER_WITHIN_S = 600.0
ACK_TRIES = 3


class Finisher:
    """Finishes and delivers attempts; each in a task of its own."""

    def __init__(self, *, work: Work, spool: Spool, depot: Depot, ledger: Ledger) -> None:
        self._work = work
        self._spool = spool
        self._depot = depot
        self._ledger = ledger

    async def finish(self, hand: InHand, end: WithResult | WithoutResult) -> None:
        """From the end of the device's turn to the acknowledgement."""
        made: Artifact | None = None
        ending = end.outcome
        if isinstance(end, WithResult):
            found = await self._until_stopped(hand, self._work.make(hand, end))
            if hand.stop_reason is StopReason.ABANDONED:
                await self._discard(hand)
                return
            if isinstance(found, Made):
                made, ending = found.artifact, found.outcome
            else:
                ending = _ended_with_nothing(ending, found or hand.stopped())
            ending = replace(ending, phases=hand.phases.times(clock.boottime_ns()))
        ended = spool.Ended(dispatch=hand.dispatch, outcome=ending, expected_sequence=hand.sequence)
        await asyncio.to_thread(self._write_down, ended, end, made)
        await self.deliver(hand, ended)

    async def deliver(self, hand: InHand, ended: spool.Ended) -> None:
        """Uploads, writes AttemptEnded and acknowledges, for as long as it takes."""
        uploaded = await self._upload(hand, ended)
        if hand.stop_reason is StopReason.ABANDONED:
            await self._discard(hand)
            return
        written = await self._ledger.end(hand.dispatch, uploaded, ended.expected_sequence)
        if written is None:
            log.warning("result_discarded", why="the job's history has moved on")
        else:
            log.info("attempt_ended", failure_class=written.failure_class, cause=written.cause)
            if written.failure_class is FailureClass.UPLOAD:
                self._spool.keep(hand.dispatch, self._work.result)
        await self._discard(hand)

    async def acknowledge(self, hand: InHand) -> None:
        """Failing that the message comes again, and the job's history then says that it is done."""
        for _ in range(ACK_TRIES):
            if hand.delivery is None:
                return
            try:
                await hand.delivery.ack()
            except Unavailable as error:
                log.warning("acknowledgement_failed", error=str(error))
                await asyncio.sleep(FIRST_PAUSE_S)
            else:
                return

    async def _discard(self, hand: InHand) -> None:
        await self.acknowledge(hand)
        self._spool.remove(hand.dispatch)

    # ---- on disk

    def _write_down(self, ended: spool.Ended, end: WithResult | WithoutResult, made: Artifact | None) -> None:
        """Log, manifest and outcome. On a full disk the result goes on in memory alone."""
        content = manifest.build(ended.dispatch, ended.outcome, end.circumstances, made)
        try:
            self._spool.file(ended.dispatch, ArtifactKind.LOG).write_bytes(_log_text(ended) + end.log)
            self._spool.file(ended.dispatch, ArtifactKind.MANIFEST).write_bytes(manifest.to_bytes(content))
            self._spool.store(ended)
        except OSError as error:
            log.error("spool_not_written", error=str(error))

    # ---- upload

    async def _upload(self, hand: InHand, ended: spool.Ended) -> Outcome:
        """The outcome with what is in the depot now; ``upload`` when the result could not get there in time."""
        if ended.outcome.failure_class is not None:
            return replace(ended.outcome, artifacts=await self._upload_log(hand))
        hand.phases.enter("uploading", clock.boottime_ns())
        await hand.feed.phase("uploading")
        kinds = (self._work.result, ArtifactKind.LOG, ArtifactKind.MANIFEST)
        left_s = hand.left_s() or LEFTOVER_WITHIN_S
        there = await self._until_stopped(hand, self._upload_all(hand, kinds, left_s, patient=True))
        if there is None:
            return outcome.as_cancelled(replace(ended.outcome, phase="uploading"))
        done = replace(ended.outcome, artifacts=_artifacts(there))
        if hand.deadline is not None:  # a leftover's phases are of another process
            done = replace(done, phases=hand.phases.times(clock.boottime_ns()))
        if done.artifact(self._work.result) is not None:
            return done
        cause = next((why for why in there if isinstance(why, str)), f"no {self._work.result.value}")
        return _ended_with_nothing(done, outcome.failed(FailureClass.UPLOAD, cause, "uploading"))

    async def _upload_log(self, hand: InHand) -> tuple[Artifact, ...]:
        """Log and manifest of a failed attempt, as far as they get there soon."""
        kinds = (ArtifactKind.LOG, ArtifactKind.MANIFEST)
        try:
            async with asyncio.timeout(2 * LOG_WITHIN_S):
                return _artifacts(await self._upload_all(hand, kinds, LOG_WITHIN_S, patient=False))
        except TimeoutError:
            return ()

    async def _upload_all(
        self, hand: InHand, kinds: tuple[ArtifactKind, ...], within_s: float, *, patient: bool
    ) -> list[Artifact | str]:
        """Each kind's artifact, or why it is not in the depot."""
        deadline = time.monotonic() + within_s
        return list(await asyncio.gather(*(self._upload_one(hand, kind, deadline, patient) for kind in kinds)))

    async def _upload_one(self, hand: InHand, kind: ArtifactKind, deadline: float, patient: bool) -> Artifact | str:
        """``patient``: a scheduler that is away is waited for without limit, because only it can sign a URL."""
        path = self._spool.file(hand.dispatch, kind)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._depot.put(hand.dispatch.spec, hand.dispatch.attempt, kind, path)
            except FileNotFoundError:
                return f"the {kind.value} is not in the spool"
            except Unavailable as error:
                if isinstance(error, UrlRefused):
                    await self._look_whether_ours(hand)
                is_final = isinstance(error, DepotAway) or not patient
                if is_final and time.monotonic() + pause_s > deadline:
                    return str(error)
                log.warning("upload_waits", kind=kind.value, error=str(error), again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _look_whether_ours(self, hand: InHand) -> None:
        last = await self._ledger.last(hand.dispatch)
        reason = stop_reason(last.event if last else None, hand.dispatch.attempt)
        if reason is not None and hand.has_started:
            hand.request_stop(reason)

    async def _until_stopped(self, hand: InHand, work: Awaitable[T]) -> T | None:
        """What the work returns, or None when the attempt was stopped first."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(_as_coroutine(work))
            stopped = group.create_task(hand.stop.wait())
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not working.done():
                working.cancel()
        return None if working.cancelled() else working.result()


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work


def _log_text(ended: spool.Ended) -> bytes:
    """The head of a log: what the runner's own words below belong to. So no log is empty."""
    spec, result = ended.dispatch.spec, ended.outcome
    how = "completed" if result.failure_class is None else f"{result.failure_class.value}: {result.cause}"
    phases = ", ".join(f"{phase.phase} {phase.seconds:.2f} s" for phase in result.phases)
    return f"{spec.job_id}, attempt {ended.dispatch.attempt}, lane {spec.lane_id}: {how}\n{phases}\n\n".encode()


def _ended_with_nothing(known: Outcome, ending: Outcome) -> Outcome:
    """What was measured stays; how it ended comes from ``ending``."""
    return replace(
        known,
        failure_class=ending.failure_class,
        cause=ending.cause,
        fix=ending.fix,
        phase=ending.phase,
        clip=None,
        judgement=None,
        infrastructure=ending.infrastructure,
    )


def _artifacts(found: list[Artifact | str]) -> tuple[Artifact, ...]:
    return tuple(item for item in found if isinstance(item, Artifact))
