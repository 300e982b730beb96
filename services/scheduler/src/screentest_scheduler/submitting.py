"""From what a person asked to a durable sweep: plan, ask live workers, claim the request id, write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from screentest import lanes, objects, subjects, wire
from screentest.devices import is_cpu
from screentest.errors import AlreadyExists, BadRequest, Conflict, FieldViolation, NotPossibleNow, Unavailable
from screentest.kit.bus import Bus, WrongLastSequence
from screentest.kit.store import Store
from screentest.records import (
    Command,
    CommandReply,
    DeviceFacts,
    JobSpec,
    LanePlan,
    LaneVerdict,
    Preflight,
    RetryRequested,
    SkippedLane,
    SweepRecord,
    SweepSpec,
    Verdict,
)
from screentest_scheduler import planning, rubrics
from screentest_scheduler.journal import Journal, new_sweep_id
from screentest_scheduler.judging import Judges
from screentest_scheduler.ledger import Ledger, SweepState
from screentest_scheduler.planning import Placement, Plan
from screentest_scheduler.presence import Place, Presence
from screentest_scheduler.telemetry import Telemetry
from screentest_scheduler.transitions import Entry

PREFLIGHT_TIMEOUT_S = 2.0
MAX_REQUEST_ID_CHARACTERS = 200
# A sweep settles in the very moment in which its last job can be retried.
RETRY_TRIES = 50
RETRY_PAUSE_S = 0.05
# Only for preflight: the worker sees a spec before the sweep has an id.
NO_SWEEP = "preflight"
SHA256 = re.compile(r"[0-9a-f]{64}")


class Submitter:
    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        journal: Journal,
        presence: Presence,
        store: Store,
        catalogue: Mapping[str, lanes.Lane],
        judges: Judges,
        default_place: Place,
        telemetry: Telemetry,
    ) -> None:
        self._bus = bus
        self._ledger = ledger
        self._journal = journal
        self._presence = presence
        self._store = store
        self._catalogue = catalogue
        self._judges = judges
        self._default_place = default_place
        self._telemetry = telemetry
        self._pen = asyncio.Lock()

    async def preflight(self, spec: SweepSpec) -> Plan:
        """What would happen. Raises BadRequest when the spec itself is wrong."""
        planning.check(spec, self._catalogue)
        await self._check_keyframe(spec)
        planned = planning.plan(spec, self._catalogue, await self._placements(spec.lane_ids), self._ledger.lessons)
        await self._judges.check(spec, planned.lanes)
        planned = _with_words(planned, rubrics.why_not(spec.prompts, spec.rubrics))
        replies = await asyncio.gather(*(self._ask(job) for job in _first_jobs(spec, planned)))
        answers = {lane.lane_id: reply for lane, reply in zip(planned.lanes, replies, strict=True)}
        return _with_answers(planned, answers)

    async def submit(self, request_id: str, spec: SweepSpec) -> tuple[SweepState, bool]:
        """(the sweep, whether it is new). The same request id and content again gives the same sweep."""
        _check_request_id(request_id)
        content_sha256 = planning.content_sha256(spec)
        known = await self._journal.known_request(request_id, content_sha256)
        if known in self._ledger.archived:
            raise AlreadyExists(
                f"request id {request_id!r} is sweep {known}, which is in the archive only; "
                f"`screentest restore {known}` brings it back, a new request id submits it anew"
            )
        if known and (known in self._ledger.sweeps or await self._journal.is_written(known)):
            await self._journal.write_missing_jobs(known)
            return self._own(known, request_id), False
        planned = await self.preflight(spec)
        planning.require_runnable(planned, spec)
        judges = await self._judges.check(spec, planned.lanes)
        drafted = await self._judges.rubrics(spec)
        async with self._pen:  # of two equal requests the second must find the first one's record
            now = datetime.now(UTC)
            sweep_id, is_new = await self._journal.claim(request_id, content_sha256, new_sweep_id(spec.title, now))
            if sweep_id in self._ledger.sweeps:
                return self._own(sweep_id, request_id), False
            record = SweepRecord(
                sweep_id=sweep_id,
                request_id=request_id,
                content_sha256=content_sha256,
                submitted_at=now,
                spec=spec,
                lanes=planned.lanes,
                skipped=planned.skipped,
                judges=judges,
                rubrics=drafted,
            )
            return await self._journal.write_sweep(record), is_new

    def _own(self, sweep_id: str, request_id: str) -> SweepState:
        """The sweep of this request id. Conflict when another one, of the same second and title, was written first."""
        sweep = self._ledger.sweep(sweep_id)
        if sweep.record.request_id != request_id:
            raise Conflict(f"sweep id {sweep_id} went to another request; submit again with a new request id")
        return sweep

    async def retry(self, entry: Entry, by: str) -> Entry:
        """A new job for the cell of a terminal one. NotPossibleNow while another job of that cell is not terminal."""
        # Asked before anything is decided: two retries at once must not both find the cell free.
        placements = await self._placements([entry.spec.lane_id])
        for _ in range(RETRY_TRIES):
            spec = self._again(entry.spec, placements[entry.spec.lane_id])
            sweep = self._ledger.sweep(spec.sweep_id)
            try:
                await self._journal.append_sweep(sweep, RetryRequested(spec=spec, by=by))
            except WrongLastSequence:
                await asyncio.sleep(RETRY_PAUSE_S)  # the sweep was just settled or changed; the tail brings it
                continue
            await self._journal.write_missing_jobs(spec.sweep_id)
            return self._ledger.job(spec.job_id)
        raise NotPossibleNow(f"sweep {entry.spec.sweep_id} changes too fast to retry in it; try again")

    def _again(self, spec: JobSpec, placement: Placement) -> JobSpec:
        """The cell's next job, as its lane stands now. NotPossibleNow while the cell has one that is not terminal."""
        for other in self._ledger.same_cell(spec):
            known = self._ledger.jobs.get(other.job_id)
            if known is None or not known.state.is_terminal:
                raise NotPossibleNow(f"{other.job_id} already tries this cell again; wait for it or cancel it")
        again = planning.retry(spec, self._ledger.next_retry_index(spec))
        lane = self._catalogue.get(spec.lane_id)
        # The lane file may have been mended since: a retry runs what the lane says now, like any new job would.
        return again if lane is None else planning.with_patience(self._replanned(again, lane, placement), lane)

    def _replanned(self, spec: JobSpec, lane: lanes.Lane, placement: Placement) -> JobSpec:
        if lanes.lane_digest(lane) == spec.lane_digest:
            return spec
        sweep = self._ledger.sweep(spec.sweep_id)
        lane_plan = planning.plan_lane(lane, sweep.record.spec, placement, self._ledger.lessons)
        if isinstance(lane_plan, SkippedLane):
            raise BadRequest(f"{lane.id} cannot take part any more: {lane_plan.reason}")
        again = planning.jobs(replace(sweep.record, lanes=(lane_plan,)))
        same = next(job for job in again if (job.prompt_index, job.seed) == (spec.prompt_index, spec.seed))
        return replace(
            same,
            job_id=spec.job_id,
            ordinal=spec.ordinal,
            retry_of=spec.retry_of,
            retry_index=spec.retry_index,
            expires_at=spec.expires_at,
        )

    async def _check_keyframe(self, spec: SweepSpec) -> None:
        """The client repeats what UploadKeyframe said; a worker builds a path and we sign a URL from it."""
        keyframe = spec.keyframe
        if keyframe is None:
            return
        is_ours = SHA256.fullmatch(keyframe.sha256) and keyframe.key == objects.keyframe(keyframe.sha256)
        stat = await self._store.stat(keyframe.key) if is_ours else None
        if stat is None or stat.size_bytes != keyframe.size_bytes:
            message = "this keyframe is not in the depot; upload it first and give what UploadKeyframe returns"
            raise BadRequest(message, (FieldViolation(field="spec.keyframe", description=message),))

    async def _placements(self, lane_ids: Sequence[str]) -> dict[str, Placement]:
        """Each device is asked once what it is."""
        alive = {lane_id: self._presence.place_of(lane_id) for lane_id in lane_ids}
        places = sorted({place or self._default_place for place in alive.values()})
        facts = dict(zip(places, await asyncio.gather(*map(self._facts, places)), strict=True))
        return {lane_id: _placement(place, self._default_place, facts) for lane_id, place in alive.items()}

    async def _facts(self, place: Place) -> DeviceFacts | None:
        return None if is_cpu(place[1]) else await self._telemetry.facts(*place)

    async def _ask(self, job: JobSpec) -> CommandReply | None:
        """The live worker's word on the first job of its lane; None when it does not answer in time."""
        if self._presence.worker(job.host, job.device, job.lane_id) is None:
            return None
        subject = subjects.command(job.host, job.device, job.lane_id)
        try:
            payload = await self._bus.request(
                subject, wire.encode(Command(body=Preflight(spec=job))), timeout_s=PREFLIGHT_TIMEOUT_S
            )
        except Unavailable:
            return None
        return wire.decode(payload, CommandReply)


def _placement(place: Place | None, default: Place, facts: Mapping[Place, DeviceFacts | None]) -> Placement:
    host, device = place or default
    return Placement(host=host, device=device, has_worker=place is not None, facts=facts[(host, device)])


def _first_jobs(spec: SweepSpec, planned: Plan) -> tuple[JobSpec, ...]:
    """One job per lane stands for all: prompt and seed change nothing that preflight looks at."""
    record = SweepRecord(
        sweep_id=NO_SWEEP,
        request_id="",
        content_sha256="",
        submitted_at=datetime.now(UTC),
        spec=replace(spec, prompts=spec.prompts[:1], seeds=spec.seeds[:1]),
        lanes=planned.lanes,
    )
    return planning.jobs(record)


def _with_answers(planned: Plan, answers: Mapping[str, CommandReply | None]) -> Plan:
    """The plan after the workers have spoken: a lane they refuse is skipped with their reason."""
    verdicts = tuple(_after(verdict, answers.get(verdict.lane_id)) for verdict in planned.verdicts)
    refused = {verdict.lane_id: verdict for verdict in verdicts if verdict.verdict is Verdict.REFUSED}
    return Plan(
        lanes=tuple(_answered(lane, answers[lane.lane_id]) for lane in planned.lanes if lane.lane_id not in refused),
        skipped=tuple(
            SkippedLane(lane_id=verdict.lane_id, lane_title=verdict.lane_title, reason=_reason(verdict))
            for verdict in refused.values()
        ),
        verdicts=verdicts,
    )


def _with_words(planned: Plan, words: Sequence[str]) -> Plan:
    """The plan with what holds for the whole sweep said of every lane that takes part."""
    if not words:
        return planned
    said = tuple(
        verdict if verdict.plan is None else replace(verdict, detail="; ".join(filter(None, (verdict.detail, *words))))
        for verdict in planned.verdicts
    )
    return replace(planned, verdicts=said)


def _answered(lane: LanePlan, answer: CommandReply | None) -> LanePlan:
    """What the worker of this moment adds to the plan: on which rung it can begin."""
    if answer is None:
        return replace(lane, preflight="not preflighted: no worker answered")
    if answer.first_rung is None or not lane.rungs[answer.first_rung :]:
        return lane
    return replace(lane, first_rung=answer.first_rung)


def _after(verdict: LaneVerdict, answer: CommandReply | None) -> LaneVerdict:
    """Planning's verdict and the worker's: whichever is worse, with the words of both."""
    if verdict.verdict is Verdict.REFUSED or answer is None:
        return verdict
    detail = "; ".join(dict.fromkeys(text for text in (verdict.detail, answer.detail) if text))
    known = replace(verdict, fix=answer.fix, memory_free_bytes=answer.memory_free_bytes)
    if answer.verdict is Verdict.REFUSED:
        return replace(known, verdict=Verdict.REFUSED, detail=answer.detail, plan=None)
    plan = _answered(verdict.plan, answer) if verdict.plan is not None else None
    fixed = Verdict.FIXED if answer.verdict is Verdict.FIXED else verdict.verdict
    return replace(known, verdict=fixed, detail=detail, plan=plan)


def _reason(verdict: LaneVerdict) -> str:
    return f"{verdict.detail.rstrip('.')}; {verdict.fix}" if verdict.fix else verdict.detail


def _check_request_id(request_id: str) -> None:
    if request_id.strip() and len(request_id) <= MAX_REQUEST_ID_CHARACTERS:
        return
    message = f"request_id must have 1 to {MAX_REQUEST_ID_CHARACTERS} characters; a random UUID is a good one"
    raise BadRequest(message, (FieldViolation(field="request_id", description=message),))
