"""The scheduler's pen: every append to EVENTS, each guarded by what the ledger believes, and reading history back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

import structlog

from screentest import folding, subjects, wire
from screentest.errors import AlreadyExists, NotPossibleNow, ScreentestError, Unavailable
from screentest.kit import clock
from screentest.kit.bus import Append, Bus, Stored, WrongLastSequence
from screentest.records import (
    ControlEvent,
    Drained,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    RequestClaim,
    Submitted,
    SweepEvent,
    SweepRecord,
    SweepSubmitted,
    Undrained,
)
from screentest_scheduler import planning
from screentest_scheduler.ledger import Ledger, SweepState, subject_of
from screentest_scheduler.transitions import Entry

log = structlog.get_logger()

# Appends to different jobs that are on their way together: one after the other, the cancel of a sweep of 10,000 takes
# longer than its caller waits, and nothing else is followed up meanwhile.
AT_ONCE = 64
# Jobs of one filtered read; the broker's limit for subjects in one filter is far above.
READ_AT_ONCE = 200
# The tail is behind by milliseconds; after a reconnect by a few seconds.
CATCH_UP_TRIES = 100
CATCH_UP_EVERY_S = 0.1
# A sweep settles in the very moment in which somebody votes.
SAY_TRIES = 50
SAY_PAUSE_S = 0.05


class Journal:
    """Writes through to the ledger: after a successful append the ledger knows the event already."""

    def __init__(self, bus: Bus, ledger: Ledger) -> None:
        self._bus = bus
        self._ledger = ledger
        self._writing: dict[str, asyncio.Lock] = {}

    # ---- submit

    async def known_request(self, request_id: str, content_sha256: str) -> str:
        """The sweep id this request id has claimed before; empty when it is new.

        Raises AlreadyExists when the same request id came with other content.
        """
        stored = await self._bus.last(subjects.EVENTS_STREAM, claim_subject(request_id))
        if stored is None:
            return ""
        earlier = wire.decode(stored.payload, RequestClaim)
        if earlier.content_sha256 != content_sha256:
            raise AlreadyExists(
                f"request id {request_id!r} belongs to sweep {earlier.sweep_id} with other content; "
                "use a new request id for a new sweep"
            )
        return earlier.sweep_id

    async def claim(self, request_id: str, content_sha256: str, make_id: Callable[[int], str]) -> tuple[str, bool]:
        """(sweep id, whether it is new); ``make_id(collision)`` names it. AlreadyExists as in known_request."""
        collision = 0
        while self._ledger.is_taken(make_id(collision)):
            collision += 1
        claim = RequestClaim(request_id=request_id, content_sha256=content_sha256, sweep_id=make_id(collision))
        try:
            await self._append(claim_subject(request_id), wire.encode(claim), 0, clock.new_event_id())
        except WrongLastSequence:  # the same request came twice at once, or again after a crash
            return await self.known_request(request_id, content_sha256), False
        return claim.sweep_id, True

    async def write_sweep(self, record: SweepRecord) -> SweepState:
        """The record first, then each job once; both may be repeated. The first record that was written stands."""
        if record.sweep_id not in self._ledger.sweeps and not await self.is_written(record.sweep_id):
            event = SweepEvent(
                event_id=f"submit-{record.sweep_id}",
                sweep_id=record.sweep_id,
                stamp=clock.stamp(),
                body=SweepSubmitted(record=record),
            )
            sequence = await self._append(subjects.sweep_events(record.sweep_id), wire.encode(event), 0, event.event_id)
            self._ledger.apply_sweep(event, sequence)
        await self.write_missing_jobs(record.sweep_id)
        return self._ledger.sweep(record.sweep_id)

    async def is_written(self, sweep_id: str) -> bool:
        """Whether the stream has the sweep; waits until the ledger has it too. Unavailable when it does not come."""
        if await self._bus.last(subjects.EVENTS_STREAM, subjects.sweep_events(sweep_id)) is None:
            return False
        for _ in range(CATCH_UP_TRIES):
            if sweep_id in self._ledger.sweeps:
                return True
            await asyncio.sleep(CATCH_UP_EVERY_S)
        raise Unavailable(f"sweep {sweep_id} is written but not read back yet; submit again with the same request id")

    async def write_missing_jobs(self, sweep_id: str) -> int:
        """Appends Submitted for every job the stream lacks; returns how many. Raises the first error, if any."""
        self._ledger.sweep(sweep_id)  # an unknown one leaves no lock behind
        async with self._writing.setdefault(sweep_id, asyncio.Lock()):
            return await self._write_jobs(sweep_id, self._ledger.missing_jobs(sweep_id))

    async def write_judge_jobs(self, sweep_id: str, specs: Sequence[JobSpec]) -> int:
        """Appends Submitted for each; one that is there already is left as it is. Raises the first error, if any."""
        async with self._writing.setdefault(sweep_id, asyncio.Lock()):
            return await self._write_jobs(sweep_id, specs)

    def is_writing(self, sweep_id: str) -> bool:
        lock = self._writing.get(sweep_id)
        return lock is not None and lock.locked()

    async def _write_jobs(self, sweep_id: str, specs: Sequence[JobSpec]) -> int:
        started_ns = clock.boottime_ns()
        events = [self._event(spec, 0, JobState.QUEUED, Submitted(spec=spec)) for spec in specs]
        appends = [
            Append(
                subject=subject_of(event.body.spec),
                payload=wire.encode(event),
                expected_sequence=0,
                event_id=event.event_id,
            )
            for event in events
            if isinstance(event.body, Submitted)
        ]
        results = await self._bus.append_all(appends)
        first_error: ScreentestError | None = None
        for event, result in zip(events, results, strict=True):
            if isinstance(result, int):
                self._ledger.apply_job(event, result)
            elif not isinstance(result, WrongLastSequence):  # that one is there already; the tail brings it
                first_error = first_error or result
        if first_error is not None:
            raise first_error
        if events:
            log.info("jobs_submitted", sweep=sweep_id, jobs=len(events), seconds=_seconds_since(started_ns))
        return len(events)

    # ---- one job, one sweep, one device

    async def append_job(self, entry: Entry, state: JobState, body: object, *, attempt: int | None = None) -> Entry:
        """Appends behind what the ledger believes is the last event; WrongLastSequence when it is not."""
        event = self._event(entry.spec, entry.attempt if attempt is None else attempt, state, body)
        sequence = await self._append(subject_of(entry.spec), wire.encode(event), entry.sequence, event.event_id)
        self._ledger.apply_job(event, sequence)
        log.info(
            f"job_{_snake(type(body).__name__)}",
            sweep=entry.spec.sweep_id,
            lane=entry.spec.lane_id,
            job=entry.spec.job_id,
            attempt=event.attempt,
        )
        return self._ledger.job(entry.spec.job_id)

    async def append_sweep(self, sweep: SweepState, body: object) -> None:
        sweep_id = sweep.record.sweep_id
        event = SweepEvent(
            event_id=clock.new_event_id(),
            sweep_id=sweep_id,
            stamp=clock.stamp(),
            body=body,  # type: ignore[arg-type]  # the caller gives one of the union
        )
        subject = subjects.sweep_events(sweep_id)
        sequence = await self._append(subject, wire.encode(event), sweep.sequence, event.event_id)
        self._ledger.apply_sweep(event, sequence)
        log.info(f"sweep_{_snake(type(body).__name__)}", sweep=sweep_id)

    async def say(self, sweep_id: str, body: object) -> None:
        """`append_sweep` of what holds whatever else is said meanwhile. NotPossibleNow after many tries."""
        for _ in range(SAY_TRIES):
            try:
                await self.append_sweep(self._ledger.sweep(sweep_id), body)
            except WrongLastSequence:
                await asyncio.sleep(SAY_PAUSE_S)  # somebody wrote first; the tail brings it
                continue
            return
        raise NotPossibleNow(f"sweep {sweep_id} changes too fast; try again")

    async def sweep_history(self, sweep_id: str) -> list[SweepEvent]:
        """Every event of the sweep itself, in order."""
        filters = [subjects.sweep_events(sweep_id)]
        async with contextlib.aclosing(self._bus.read(subjects.EVENTS_STREAM, filters)) as history:
            return [wire.decode(stored.payload, SweepEvent) async for stored in history]

    async def append_control(self, host: str, device: str, body: Drained | Undrained) -> None:
        state = self._ledger.device(host, device)
        event = ControlEvent(event_id=clock.new_event_id(), host=host, device=device, stamp=clock.stamp(), body=body)
        subject = subjects.control(host, device)
        sequence = await self._append(subject, wire.encode(event), state.sequence, event.event_id)
        self._ledger.apply_control(event, sequence)
        log.warning(f"device_{_snake(type(body).__name__)}", host=host, device=device)

    # ---- history

    async def replay(self) -> None:
        """Everything there is into the ledger."""
        started_ns = clock.boottime_ns()
        async for stored in self._bus.read(subjects.EVENTS_STREAM, subjects.EVENTS_SUBJECTS):
            self.take(stored)
        log.info(
            "events_replayed",
            sequence=self._ledger.sequence,
            sweeps=len(self._ledger.sweeps),
            jobs=len(self._ledger.jobs),
            seconds=_seconds_since(started_ns),
        )

    def take(self, stored: Stored) -> None:
        """One message of the stream into the ledger. One that cannot be read must not stop all the others."""
        try:
            self._ledger.apply(stored)
        except ScreentestError as error:
            log.error("event_unreadable", subject=stored.subject, sequence=stored.sequence, error=str(error))

    async def views(self, entries: Sequence[Entry]) -> list[Job]:
        """The full fold of some jobs, read from the stream: the ledger keeps only what deciding needs."""
        folded: dict[str, Job] = {}
        for start in range(0, len(entries), READ_AT_ONCE):
            await self._fold([subject_of(entry.spec) for entry in entries[start : start + READ_AT_ONCE]], folded)
        return [folded[entry.spec.job_id] for entry in entries if entry.spec.job_id in folded]

    async def sweep_views(self, sweep_id: str) -> list[Job]:
        """The same of all jobs of a sweep, in one read: ten thousand filters, one for each, cost the broker minutes."""
        folded: dict[str, Job] = {}
        await self._fold([subjects.sweep_job_events(sweep_id)], folded)
        return list(folded.values())

    async def _fold(self, filters: Sequence[str], folded: dict[str, Job]) -> None:
        """What is read goes into ``folded``, by job id."""
        async with contextlib.aclosing(self._bus.read(subjects.EVENTS_STREAM, filters)) as history:
            async for stored in history:
                event = wire.decode(stored.payload, JobEvent)
                folded[event.job_id] = folding.fold(folded.get(event.job_id), event)

    async def _append(self, subject: str, payload: bytes, expected_sequence: int, event_id: str) -> int:
        append = Append(subject=subject, payload=payload, expected_sequence=expected_sequence, event_id=event_id)
        try:
            return await self._bus.append(append)
        except Unavailable:
            # Nobody knows whether it was written: the same event id makes a second try harmless.
            return await self._bus.append(append)

    def _event(self, spec: JobSpec, attempt: int, state: JobState, body: object) -> JobEvent:
        # The id of a Submitted event is derived: two writers of the same job write the same event.
        event_id = f"submit-{spec.job_id}" if isinstance(body, Submitted) else clock.new_event_id()
        return JobEvent(
            event_id=event_id,
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=attempt,
            state=state,
            stamp=clock.stamp(),
            body=body,  # type: ignore[arg-type]  # the caller gives one of the union
        )


def claim_subject(request_id: str) -> str:
    return subjects.request_claim(hashlib.sha256(request_id.encode()).hexdigest())


def new_sweep_id(title: str, now: datetime) -> Callable[[int], str]:
    return lambda collision: planning.sweep_id(title, now, collision)


def _seconds_since(boottime_ns: int) -> float:
    return round((clock.boottime_ns() - boottime_ns) / 1e9, 3)


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def batched(job_ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """AT_ONCE of them at a time, in order."""
    remaining = iter(job_ids)
    while some := tuple(itertools.islice(remaining, AT_ONCE)):
        yield some
