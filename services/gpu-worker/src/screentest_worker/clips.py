"""A clip from the frames of an attempt: encoded by one child, probed by another."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from screentest import objects
from screentest.kit import clock
from screentest.records import Artifact, ArtifactKind, ClipFacts, Dispatch, FailureClass, JobSpec, Outcome
from screentest_runner import protocol
from screentest_runner.protocol import Decoded, Encode, Encoded, EncodeFailed, EncodeProgress
from screentest_worker import clipfile, outcome
from screentest_worker.clipfile import Probe
from screentest_worker.hand import Helpers, InHand, WithResult
from screentest_worker.spool import Spool
from screentest_worker.supervisor import Child, Supervisor
from screentest_worker.work import Made


class ClipMaking:
    """Encodes and probes; the clip lies in the spool."""

    def __init__(self, supervisor: Supervisor, spool: Spool) -> None:
        self._supervisor = supervisor
        self._spool = spool

    async def make(self, hand: InHand, end: WithResult) -> Made | Outcome:
        """Encode and probe. The frames are removed whatever happens."""
        helpers = end.helpers
        try:
            helpers = helpers or Helpers(encoder=self._supervisor.start_encoder(), probe=self._supervisor.start_probe())
            async with asyncio.timeout(hand.left_s()):
                return await self._encode_and_probe(hand, end, helpers)
        except TimeoutError:
            seconds = hand.dispatch.spec.limits.attempt_s
            return outcome.from_breach(outcome.Limit.ATTEMPT, seconds, hand.phases.current)
        except OSError as error:
            return outcome.failed(FailureClass.ENCODE, f"the encoder cannot start: {error}", "encoding")
        finally:
            end.path.unlink(missing_ok=True)
            for child in (helpers.encoder, helpers.probe) if helpers else ():
                self._supervisor.end_helper(child)

    async def _encode_and_probe(self, hand: InHand, end: WithResult, helpers: Helpers) -> Made | Outcome:
        hand.phases.enter("encoding", clock.boottime_ns())
        self._spool.note(hand.dispatch, "encoding")
        await hand.feed.phase("encoding")
        path = self._spool.file(hand.dispatch, ArtifactKind.CLIP)
        encoded = await _encode(helpers.encoder, _encode_request(hand.dispatch, end, path))
        if isinstance(encoded, Outcome):
            return encoded
        found = await _probe(helpers.probe, end.circumstances.ran, path)
        if isinstance(found, Outcome):
            return found
        artifact = Artifact(
            kind=ArtifactKind.CLIP,
            key="",
            sha256=encoded.sha256,
            size_bytes=encoded.bytes,
            content_type=objects.content_type(ArtifactKind.CLIP),
        )
        return Made(artifact=artifact, outcome=replace(end.outcome, clip=found))


def _encode_request(dispatch: Dispatch, end: WithResult, path: Path) -> Encode:
    spec, decoded = dispatch.spec, end.answer
    assert isinstance(decoded, Decoded)
    return Encode(
        frames_path=str(end.path),
        clip_path=str(path),
        frames=decoded.frames,
        height_px=decoded.height_px,
        width_px=decoded.width_px,
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


async def _probe(probe: Child, ran: JobSpec, path: Path) -> ClipFacts | Outcome:
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
    return outcome.from_probe(ran, clip_facts) or clip_facts


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
