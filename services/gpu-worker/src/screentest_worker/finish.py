"""The attempt after the device: encode, probe, manifest, upload, AttemptEnded, acknowledgement.

It runs beside the next attempt. Whatever is away (scheduler, broker, depot), the result waits in the spool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from screentest import objects
from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.records import Artifact, ArtifactKind, ClipFacts, Dispatch, FailureClass, JobSpec, Outcome
from screentest_runner import protocol
from screentest_runner.protocol import Encode, Encoded, EncodeFailed, EncodeProgress
from screentest_worker import clipfile, manifest, outcome, spool
from screentest_worker.clipfile import Probe
from screentest_worker.hand import Helpers, InHand, WithFrames, WithoutFrames
from screentest_worker.ledger import Ledger, StopReason, stop_reason
from screentest_worker.spool import Spool
from screentest_worker.supervisor import Child, Supervisor
from screentest_worker.upload import Depot, DepotAway, UrlRefused

log = structlog.get_logger()

T = TypeVar("T")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
# A failed attempt's log is welcome but must not hold up its end.
LOG_WITHIN_S = 5.0
# A result that an earlier process of this worker left has no attempt clock any more.
LEFTOVER_WITHIN_S = 600.0
ACK_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A finished file and what the probe read from it."""

    facts: ClipFacts
    artifact: Artifact


class Finisher:
    """Finishes and delivers attempts; each in a task of its own."""

    def __init__(self, *, supervisor: Supervisor, spool: Spool, depot: Depot, ledger: Ledger) -> None:
        self._supervisor = supervisor
        self._spool = spool
        self._depot = depot
        self._ledger = ledger

    async def finish(self, hand: InHand, end: WithFrames | WithoutFrames) -> None:
        """From the end of the device's turn to the acknowledgement."""
        clip: Clip | None = None
        ending = end.outcome
        if isinstance(end, WithFrames):
            made = await self._until_stopped(hand, self._make_clip(hand, end))
            if hand.stop_reason is StopReason.ABANDONED:
                await self._discard(hand)
                return
            if isinstance(made, Clip):
                clip, ending = made, replace(ending, clip=made.facts)
            else:
                ending = _ended_without_clip(ending, made or hand.stopped())
            ending = replace(ending, phases=hand.phases.times(clock.boottime_ns()))
        ended = spool.Ended(dispatch=hand.dispatch, outcome=ending, expected_sequence=hand.sequence)
        await asyncio.to_thread(self._write_down, ended, end, clip)
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
                self._spool.keep_clip(hand.dispatch)
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

    # ---- the clip

    async def _make_clip(self, hand: InHand, end: WithFrames) -> Clip | Outcome:
        """Encode and probe. The frames are removed whatever happens."""
        helpers = end.helpers
        try:
            helpers = helpers or Helpers(encoder=self._supervisor.start_encoder(), probe=self._supervisor.start_probe())
            async with asyncio.timeout(_left_s(hand)):
                return await self._encode_and_probe(hand, end, helpers)
        except TimeoutError:
            seconds = hand.dispatch.spec.limits.attempt_s
            return outcome.from_breach(outcome.Limit.ATTEMPT, seconds, hand.phases.current)
        except OSError as error:
            return outcome.failed(FailureClass.ENCODE, f"the encoder cannot start: {error}", "encoding")
        finally:
            end.frames_path.unlink(missing_ok=True)
            for child in (helpers.encoder, helpers.probe) if helpers else ():
                self._supervisor.end_helper(child)

    async def _encode_and_probe(self, hand: InHand, end: WithFrames, helpers: Helpers) -> Clip | Outcome:
        hand.phases.enter("encoding", clock.boottime_ns())
        self._spool.note(hand.dispatch, "encoding")
        await hand.feed.phase("encoding")
        path = self._spool.file(hand.dispatch, ArtifactKind.CLIP)
        encoded = await _encode(helpers.encoder, _encode_request(hand.dispatch, end, path))
        if isinstance(encoded, Outcome):
            return encoded
        return await _probe(helpers.probe, end.circumstances.ran, path, encoded)

    # ---- on disk

    def _write_down(self, ended: spool.Ended, end: WithFrames | WithoutFrames, clip: Clip | None) -> None:
        """Log, manifest and outcome. On a full disk the result goes on in memory alone."""
        content = manifest.build(ended.dispatch, ended.outcome, end.circumstances, clip.artifact if clip else None)
        try:
            self._spool.file(ended.dispatch, ArtifactKind.LOG).write_bytes(_log_text(ended) + end.log)
            self._spool.file(ended.dispatch, ArtifactKind.MANIFEST).write_bytes(manifest.to_bytes(content))
            self._spool.store(ended)
        except OSError as error:
            log.error("spool_not_written", error=str(error))

    # ---- upload

    async def _upload(self, hand: InHand, ended: spool.Ended) -> Outcome:
        """The outcome with what is in the depot now; ``upload`` when the clip could not get there in time."""
        if ended.outcome.failure_class is not None:
            return replace(ended.outcome, artifacts=await self._upload_log(hand))
        hand.phases.enter("uploading", clock.boottime_ns())
        await hand.feed.phase("uploading")
        kinds = (ArtifactKind.CLIP, ArtifactKind.LOG, ArtifactKind.MANIFEST)
        left_s = _left_s(hand) or LEFTOVER_WITHIN_S
        there = await self._until_stopped(hand, self._upload_all(hand, kinds, left_s, patient=True))
        if there is None:
            return outcome.as_cancelled(replace(ended.outcome, phase="uploading"))
        done = replace(ended.outcome, artifacts=_artifacts(there))
        if hand.deadline is not None:  # a leftover's phases are of another process
            done = replace(done, phases=hand.phases.times(clock.boottime_ns()))
        if done.artifact(ArtifactKind.CLIP) is not None:
            return done
        cause = next((why for why in there if isinstance(why, str)), "no clip")
        return _ended_without_clip(done, outcome.failed(FailureClass.UPLOAD, cause, "uploading"))

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


def _encode_request(dispatch: Dispatch, end: WithFrames, path: Path) -> Encode:
    spec = dispatch.spec
    return Encode(
        frames_path=str(end.frames_path),
        clip_path=str(path),
        frames=end.decoded.frames,
        height_px=end.decoded.height_px,
        width_px=end.decoded.width_px,
        fps=spec.fps,
        title=f"{spec.lane_title}, seed {spec.seed}",
        comment={
            "sweep": spec.sweep_id,
            "job": spec.job_id,
            "attempt": dispatch.attempt,
            "lane": spec.lane_id,
            "model": spec.weights_repo,
            "weights": spec.weights.value,
            "seed": spec.seed,
        },
        random_weights=spec.weights.is_random,
    )


async def _encode(encoder: Child, request: Encode) -> Encoded | Outcome:
    encoder.send(protocol.to_line(request))
    while (line := await encoder.receive()) is not None:
        match protocol.parse(line):
            case Encoded() as encoded:
                return encoded
            case EncodeFailed(message=message):
                return outcome.failed(FailureClass.ENCODE, message, "encoding")
            case EncodeProgress():
                pass
            case other:
                return outcome.failed(FailureClass.ENCODE, f"the encoder answered {type(other).__name__}", "encoding")
    return outcome.failed(FailureClass.ENCODE, f"the encoder died with status {encoder.returncode}", "encoding")


async def _probe(probe: Child, ran: JobSpec, path: Path, encoded: Encoded) -> Clip | Outcome:
    """The clip as a stranger reads it, or why it does not count as one. ``ran``: what it must be."""
    probe.send(clipfile.request_line(path, ran.num_frames))
    line = await probe.receive()
    if line is None:
        cause = f"the probe died with status {probe.returncode} while it decoded the clip"
        return outcome.failed(FailureClass.UNDECODABLE, cause, "encoding")
    found = clipfile.read_reply(line)
    if found.error:
        return outcome.failed(FailureClass.UNDECODABLE, f"the clip cannot be decoded: {found.error}", "encoding")
    clip_facts = _clip_facts(found)
    wrong = outcome.from_probe(ran, clip_facts)
    if wrong is not None:
        return wrong
    artifact = Artifact(
        kind=ArtifactKind.CLIP,
        key="",
        sha256=encoded.sha256,
        size_bytes=encoded.bytes,
        content_type=objects.content_type(ArtifactKind.CLIP),
    )
    return Clip(facts=clip_facts, artifact=artifact)


def _clip_facts(found: Probe) -> ClipFacts:
    return ClipFacts(
        codec=found.codec,
        pixel_format=found.pixel_format,
        frames=found.frames,
        width_px=found.width_px,
        height_px=found.height_px,
        fps=found.fps,
        duration_s=found.duration_s,
        flags=found.flags,
    )


def _ended_without_clip(known: Outcome, ending: Outcome) -> Outcome:
    """What was measured stays; how it ended comes from ``ending``."""
    return replace(
        known,
        failure_class=ending.failure_class,
        cause=ending.cause,
        fix=ending.fix,
        phase=ending.phase,
        clip=None,
        infrastructure=ending.infrastructure,
    )


def _artifacts(found: list[Artifact | str]) -> tuple[Artifact, ...]:
    return tuple(item for item in found if isinstance(item, Artifact))


def _left_s(hand: InHand) -> float | None:
    """Seconds of the attempt limit that are left, at least enough for one try; None = no limit is known."""
    return None if hand.deadline is None else max(5.0, hand.deadline - time.monotonic())
