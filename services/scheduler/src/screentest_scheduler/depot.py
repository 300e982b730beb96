"""Signed URLs: workers hold no key of the depot, they ask for one object at a time."""

from __future__ import annotations

import asyncio
import re

import structlog

from screentest import objects, wire
from screentest.errors import BadRequest, NotFound, ScreentestError
from screentest.kit import expiry
from screentest.kit.bus import Bus
from screentest.kit.store import SignedUrl, Store
from screentest.records import Artifact, ArtifactKind, JobSpec, JudgePurpose, UrlReply, UrlRequest
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger

log = structlog.get_logger()

PUTTABLE = frozenset({ArtifactKind.CLIP, ArtifactKind.LOG, ArtifactKind.MANIFEST})
PUTTABLE_BY_JUDGES = frozenset({ArtifactKind.JUDGEMENT, ArtifactKind.LOG, ArtifactKind.MANIFEST})
# The depot's own limit for one PUT; the condition and the checksum cover the whole object only then.
SHA256 = re.compile(r"[0-9a-f]{64}")
REPORT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# Below it lies nothing: a list of it asks for the bucket and the right to look into it, and for no more.
NOTHING = "nothing/"
ANSWERS_WITHIN_S = 4.0
MAX_OBJECT_BYTES = 5 * 1024**3


class Depot:
    def __init__(self, store: Store, ledger: Ledger, journal: Journal) -> None:
        self._store = store
        self._ledger = ledger
        self._journal = journal

    async def listen(self, bus: Bus) -> None:
        await bus.answer("svc.depot.*", self._on_request)

    async def problem(self) -> str:
        """Why the depot cannot be used now; empty = it answers."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await self._store.keys(NOTHING)
        except TimeoutError:
            return f"the depot at {self._store.url} did not answer within {ANSWERS_WITHIN_S:g} s"
        except ScreentestError as error:
            return str(error)
        return ""

    async def _on_request(self, subject: str, payload: bytes) -> bytes:
        request = wire.decode(payload, UrlRequest)
        try:
            if subject.rsplit(".", 1)[-1] != request.lane_id:
                raise BadRequest(f"{subject} may not ask for objects of lane {request.lane_id}")
            return wire.encode(self._sign(request))
        except ScreentestError as error:
            log.warning(
                "url_refused",
                sweep=request.sweep_id,
                lane=request.lane_id,
                job=request.job_id,
                attempt=request.attempt,
                kind=request.kind,
                error=str(error),
            )
            return wire.encode(UrlReply(error=str(error)))

    def _sign(self, request: UrlRequest) -> UrlReply:
        """For the current attempt of a job of that lane, and nothing else."""
        entry = self._ledger.job(request.job_id)
        spec = entry.spec
        if (spec.sweep_id, spec.lane_id) != (request.sweep_id, request.lane_id):
            raise BadRequest(f"job {request.job_id} is not of sweep {request.sweep_id}, lane {request.lane_id}")
        if key := _readable(spec, request):
            return UrlReply(url=self._store.get_url(key, public=False).url, key=key)
        puttable = PUTTABLE if spec.judged is None else PUTTABLE_BY_JUDGES
        if request.kind not in puttable or not SHA256.fullmatch(request.sha256):
            named = ", ".join(sorted(puttable))
            raise BadRequest(f"the worker of {spec.lane_id} may put {named} with their sha256, not {request.kind}")
        # Admitted will do: the worker may ask before its Started has come back to us.
        if request.attempt != entry.attempt or not entry.holds_attempt:
            raise BadRequest(f"attempt {request.attempt} of {request.job_id} is not out (now {entry.state.value})")
        if not 0 < request.size_bytes <= MAX_OBJECT_BYTES:
            raise BadRequest(f"an object of {request.size_bytes} bytes cannot be stored")
        key = objects.attempt_object(
            request.kind, spec.sweep_id, spec.lane_id, spec.job_id, request.attempt, request.sha256
        )
        return UrlReply(url=self._store.put_url(key).url, key=key)

    async def job_artifact(self, job_id: str, kind: ArtifactKind) -> tuple[Artifact, SignedUrl]:
        """The newest clip, judgement, log or manifest of a job; NotFound when it has none."""
        entry = self._ledger.job(job_id)
        [job] = await self._journal.views([entry])
        found = [
            artifact
            for attempt in job.attempts
            if attempt.outcome is not None
            for artifact in (attempt.outcome.artifact(kind),)
            if artifact is not None
        ]
        if not found:
            raise NotFound(f"job {job_id} ({job.state.value}) has no {kind.value}")
        if kind is ArtifactKind.CLIP and await self._store.stat(found[-1].key) is None:
            raise NotFound(await self._whereabouts(entry.spec.sweep_id, job_id))
        return found[-1], self._store.get_url(found[-1].key)

    async def _whereabouts(self, sweep_id: str, job_id: str) -> str:
        """Why a clip that was there is not there."""
        expired = await expiry.read(self._store, sweep_id)
        why = expired.text if expired else "it was removed by hand, or lost"
        return f"the depot does not have the clip of job {job_id} any more: {why}"

    async def report_file(self, sweep_id: str, name: str) -> tuple[Artifact, SignedUrl]:
        """One file of a sweep's published report."""
        if sweep_id not in self._ledger.archived:
            self._ledger.sweep(sweep_id)
        name = name or "index.html"
        if not all(REPORT_NAME.fullmatch(part) for part in name.split("/")):
            raise BadRequest(f"{name!r} is no file of a report")
        key = objects.report_file(sweep_id, name)
        stat = await self._store.stat(key)
        if stat is None:
            raise NotFound(f"sweep {sweep_id} has no report file {name!r} yet; the reporter writes it as jobs end")
        artifact = Artifact(
            kind=ArtifactKind.REPORT,
            key=key,
            sha256="",  # a report is replaced by its next revision: only its content knows which one it is
            size_bytes=stat.size_bytes,
            content_type=objects.report_content_type(name),
        )
        return artifact, self._store.get_url(key)

    def rubric(self, sweep_id: str, name: str) -> tuple[Artifact, SignedUrl]:
        """What a sweep's prompt is judged by; ``name``: the prompt's index. NotFound where it has no rubric."""
        rubrics = {str(ref.prompt_index): ref for ref in self._ledger.sweep(sweep_id).record.rubrics}
        ref = rubrics.get(name)
        if ref is None:
            known = ", ".join(rubrics) or "none"
            raise NotFound(f"sweep {sweep_id} has no rubric {name!r}; by the index of their prompt there are: {known}")
        artifact = Artifact(
            kind=ArtifactKind.RUBRIC,
            key=ref.key,
            sha256=ref.sha256,
            size_bytes=ref.size_bytes,
            content_type=objects.content_type(ArtifactKind.RUBRIC),
        )
        return artifact, self._store.get_url(ref.key)


def _readable(spec: JobSpec, request: UrlRequest) -> str:
    """Key of what this job's worker may read, empty where it wants to put. NotFound for what the job does not have."""
    judged = spec.judged
    match request.kind:
        case ArtifactKind.KEYFRAME:
            if spec.keyframe is None:
                raise NotFound(f"job {request.job_id} has no keyframe")
            return spec.keyframe.key
        case ArtifactKind.CLIP if judged is not None:
            if judged.purpose is JudgePurpose.KEYFRAME:
                raise NotFound(f"job {request.job_id} judges a keyframe, not a clip")
            return judged.key
        case ArtifactKind.RUBRIC if judged is not None:
            asked = (judged.rubric, judged.other_rubric)
            found = next((ref.key for ref in asked if ref is not None and ref.sha256 == request.sha256), "")
            if not found:
                raise NotFound(f"job {request.job_id} is not about rubric {request.sha256[:12]!r}")
            return found
        case _:
            return ""
