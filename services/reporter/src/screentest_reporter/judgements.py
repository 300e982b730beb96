"""Reads the judgements and rubrics of a sweep from the depot, each once, and has them made into scores."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from screentest import judgement, rubric
from screentest.errors import BadRequest, NotFound
from screentest.judgement import Judgement
from screentest.kit.store import Store
from screentest.records import Artifact, RubricRef
from screentest.rubric import Rubric
from screentest_reporter import tally
from screentest_reporter.scores import NO_SCORES, Scores
from screentest_reporter.sweeps import SweepState
from screentest_reporter.tally import Findings, Memo

log = structlog.get_logger()

AT_ONCE = 16
# Of one judgement or rubric. A judgement with every detail and all controls has a few hundred KiB.
MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Broken:
    why: str


class Judgements:
    """What lies in the depot by content never changes: a judgement is fetched once for all revisions of a report, and
    kept as long as a report in work is made of it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, Judgement | Rubric] = {}
        self._wanted: dict[str, set[str]] = {}  # by sweep, the sha256 of what its report is made of
        self._memos: dict[str, Memo] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def scores(self, state: SweepState) -> Scores:
        """Of a snapshot. Raises Unavailable when the depot is away; what is missing or broken is told in its row."""
        refs = list(tally.current_rubrics(state).values())
        if not refs:
            return NO_SCORES
        jobs = {job.spec.job_id: job.judgement for job in tally.current_judging(state) if job.judgement is not None}
        others = (job.spec.judged.other_rubric for job in tally.current_judging(state) if job.spec.judged)
        refs += [ref for ref in others if ref is not None]
        self._want(state.sweep_id, {artifact.sha256 for artifact in jobs.values()} | {ref.sha256 for ref in refs})
        read = await asyncio.gather(*(self._judgement(artifact) for artifact in jobs.values()))
        rubrics = await asyncio.gather(*(self._rubric(ref) for ref in refs))
        by_job = dict(zip(jobs, read, strict=True))
        by_hash = {ref.rubric_sha256: item for ref, item in zip(refs, rubrics, strict=True)}
        found = Findings(
            judgements={key: item for key, item in by_job.items() if isinstance(item, Judgement)},
            rubrics={key: item for key, item in by_hash.items() if isinstance(item, Rubric)},
            broken={key: item.why for key, item in (*by_job.items(), *by_hash.items()) if isinstance(item, _Broken)},
        )
        memo = self._memos.setdefault(state.sweep_id, {})
        return await asyncio.to_thread(tally.scores, state, found, memo)

    def forget(self, sweep_id: str) -> None:
        """Frees the memory of a sweep whose report is finished; if it is opened again, all is read again."""
        self._memos.pop(sweep_id, None)
        self._want(sweep_id, set())
        del self._wanted[sweep_id]

    def _want(self, sweep_id: str, hashes: set[str]) -> None:
        """Lets go of what no report is made of any more, for example of a rubric that was replaced."""
        before = self._wanted.get(sweep_id, set())
        self._wanted[sweep_id] = hashes
        for sha256 in before.difference(*self._wanted.values()):
            self._read.pop(sha256, None)

    async def _judgement(self, artifact: Artifact) -> Judgement | Rubric | _Broken:
        return await self._once(artifact, "the judgement", lambda data: _kept(judgement.from_json(data, artifact.key)))

    async def _rubric(self, ref: RubricRef) -> Judgement | Rubric | _Broken:
        return await self._once(ref, "the rubric", lambda data: rubric.from_json(data.decode("utf-8"), ref.key))

    async def _once(
        self, lies: Artifact | RubricRef, what: str, parse: Callable[[bytes], Judgement | Rubric]
    ) -> Judgement | Rubric | _Broken:
        """What is broken is not remembered: a person may have put it back."""
        known = self._read.get(lies.sha256)
        if known is not None:
            return known
        try:
            data = await self._fetched(lies, what)
            self._read[lies.sha256] = known = await asyncio.to_thread(parse, data)
        except NotFound:
            return _broken(lies.key, f"{what} is gone from the depot")
        except (BadRequest, UnicodeDecodeError) as error:
            return _broken(lies.key, str(error))
        return known

    async def _fetched(self, lies: Artifact | RubricRef, what: str) -> bytes:
        """What was recorded, and no more of it than was recorded. BadRequest says what lies there instead."""
        if lies.size_bytes > MOST_BYTES:
            raise BadRequest(f"{what} has {lies.size_bytes / 2**20:.0f} MiB; {MOST_BYTES // 2**20} are read")
        async with self._gate:
            try:
                data = await self._store.get(lies.key, most_bytes=lies.size_bytes)
            except BadRequest as error:
                raise BadRequest(f"{what} in the depot is larger than what was recorded") from error
        if hashlib.sha256(data).hexdigest() != lies.sha256:
            raise BadRequest(f"{what} in the depot is not what was recorded")
        return data


def _kept(read: Judgement) -> Judgement:
    """Without what no score is made of: the curves of ten thousand clips would fill the memory."""
    pixels = read.pixels
    kept = None if pixels is None else {key: pixels[key] for key in tally.MEASURED if key in pixels}
    return replace(read, details={}, pixels=kept)


def _broken(key: str, why: str) -> _Broken:
    log.warning("judgement_not_read", key=key, error=why)
    return _Broken(why=why)
