"""Archives settled sweeps in the depot, and lets them leave EVENTS after their time: one sweep after the other.

It may be killed between any two lines: what it knows it reads again from the depot, a part exists when its manifest
does, and a sweep leaves only behind a guarded SweepArchived, which is the fence between the purge and a late retry.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import structlog

from screentest import subjects, wire
from screentest.errors import BadRequest, ScreentestError
from screentest.kit import clock
from screentest.kit.archive import Archive, ArchiveDamaged, Manifest, Message, message_of
from screentest.kit.bus import Bus, Stored, WrongLastSequence
from screentest.records import (
    JobEvent,
    JobSpec,
    JobState,
    RestoreBegun,
    Stamp,
    SweepArchived,
    SweepEvent,
    SweepRestored,
    VitalsBatch,
)
from screentest_scheduler import archiving, followups
from screentest_scheduler.archiving import Standing, Step, Stretch
from screentest_scheduler.journal import Journal, claim_subject
from screentest_scheduler.ledger import Ledger, SweepState

log = structlog.get_logger()

# After an error of the depot or the broker.
RETRY_AFTER_S = 5.0
# A damaged archive stays so until a person looked; meanwhile it is said again.
LOOK_AGAIN_AFTER_S = 600.0


class Archiver:
    """``after``, ``kept``: see ``archiving.next_step``. ``every_s``: between two looks at all sweeps."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        journal: Journal,
        archive: Archive,
        *,
        after: timedelta,
        kept: timedelta,
        every_s: float,
        has_worker: Callable[[JobSpec], bool] = lambda _spec: False,
    ) -> None:
        """``has_worker``: whether somebody is there who can do a queued job."""
        self._bus = bus
        self._ledger = ledger
        self._journal = journal
        self._archive = archive
        self._after = after
        self._kept = kept
        self._every_s = every_s
        self._has_worker = has_worker
        self._manifests: dict[str, tuple[Manifest, ...]] = {}
        self._not_before_ns: dict[str, int] = {}
        self._archived_at: dict[str, int] = {}

    def is_archived(self, sweep_id: str) -> bool:
        """Whether its archive has everything that the stream has, as far as the last look at it saw."""
        sweep = self._ledger.sweeps.get(sweep_id)
        return sweep is not None and self._archived_at.get(sweep_id) == sweep.sequence

    async def run(self) -> None:
        """Until cancelled. What fails for one sweep is tried again later, and holds up no other."""
        while True:
            await self.work()
            await asyncio.sleep(self._every_s)

    async def work(self) -> None:
        """One look at all sweeps."""
        for sweep_id, archived in list(self._ledger.archived.items()):
            if archived.must_purge:
                await self._guarded(sweep_id, self._purge(sweep_id))
        for sweep_id in list(self._ledger.sweeps):
            if clock.boottime_ns() >= self._not_before_ns.get(sweep_id, 0):
                await self._guarded(sweep_id, self._step(sweep_id))

    async def _guarded(self, sweep_id: str, work: Awaitable[None]) -> None:
        try:
            await work
        except WrongLastSequence:
            self._forget(sweep_id)  # somebody wrote: the tail brings it, then we decide again
        except ArchiveDamaged as error:
            self._postpone(sweep_id, LOOK_AGAIN_AFTER_S)
            log.error(
                "archive_damaged",
                sweep=sweep_id,
                error=str(error),
                action="the sweep stays in EVENTS; look at the depot, then delete the sweep's folder below archives/ "
                "to have it written again",
            )
        except ScreentestError as error:
            self._postpone(sweep_id)
            log.warning("archiving_interrupted", sweep=sweep_id, error=str(error))
        except Exception:  # a sweep that cannot be archived must not cost the others their scheduler
            self._postpone(sweep_id)
            log.exception("archiving_failed", sweep=sweep_id)

    def _forget(self, sweep_id: str) -> None:
        self._manifests.pop(sweep_id, None)

    def _postpone(self, sweep_id: str, seconds: float = RETRY_AFTER_S) -> None:
        self._forget(sweep_id)
        self._not_before_ns[sweep_id] = clock.boottime_ns() + int(seconds * 1e9)

    async def _step(self, sweep_id: str) -> None:
        sweep = self._ledger.sweeps.get(sweep_id)
        if sweep is None or self._rests(sweep) or not self._is_settled(sweep):
            return
        if sweep_id not in self._manifests:
            self._manifests[sweep_id] = await self._archive.manifests(sweep_id)
        epoch = (await self._bus.stream_state(subjects.EVENTS_STREAM)).epoch
        manifests = self._manifests[sweep_id]
        standing = self._standing(sweep, manifests, epoch)
        match archiving.next_step(standing, clock.stamp().at, after=self._after, kept=self._kept):
            case Step.WRITE:
                await self._write(sweep, manifests, epoch, standing)
            case Step.LET_GO:
                await self._let_go(sweep, standing)
            case Step.WAIT:
                if standing.is_archived:
                    self._archived_at[sweep_id] = max(sweep.sequence, sweep.judged_sequence)

    def _rests(self, sweep: SweepState) -> bool:
        """Whether all of it was archived already and its time has not come: thousands of jobs need no second look."""
        newest = max(sweep.sequence, sweep.judged_sequence)
        is_archived = self._archived_at.get(sweep.record.sweep_id) == newest
        return is_archived and clock.stamp().at - sweep.changed_at < self._kept

    def _is_settled(self, sweep: SweepState) -> bool:
        entries = self._ledger.sweep_jobs(sweep.record.sweep_id)
        has_all = len(entries) == len(sweep.expected) and sweep.settled is not None
        return (
            has_all
            and self._ledger.is_over(sweep.record.sweep_id)
            and not followups.must_settle(entries, sweep.settled)
            and not self._is_judged_now(sweep)
        )

    def _is_judged_now(self, sweep: SweepState) -> bool:
        """Whether judge jobs are due or under way.

        One that waits for a judge without worker keeps nothing waiting: what it says some day is a part of its own.
        """
        if sweep.has_judge_news and any(judging.judges for judging in sweep.judgings):
            return True
        still = [entry for entry in map(self._ledger.job, sweep.judge_ids) if not entry.state.is_terminal]
        return any(entry.state is not JobState.QUEUED or self._has_worker(entry.spec) for entry in still)

    def _standing(self, sweep: SweepState, manifests: Sequence[Manifest], epoch: str) -> Standing:
        parts = [(manifest.epoch, manifest.last_sequence) for manifest in manifests]
        return Standing(
            is_settled=True,
            changed_at=sweep.changed_at,
            last_sequence=self._ledger.last_sequence(sweep.record.sweep_id),
            archived_sequence=archiving.archived_sequence(parts, epoch, sweep.restored, sweep.restored_sequence),
        )

    # ---- writing a part

    async def _write(self, sweep: SweepState, manifests: tuple[Manifest, ...], epoch: str, standing: Standing) -> None:
        sweep_id = sweep.record.sweep_id
        events = await self._new_events(sweep, standing.archived_sequence)
        if self._ledger.last_sequence(sweep_id) != standing.last_sequence:
            return  # it changed while we read
        vitals = await self._vitals(sweep_id, events)
        manifest = await self._archive.write(sweep_id, manifests, epoch, events, vitals)
        if manifest is None:
            self._forget(sweep_id)
            return
        self._manifests[sweep_id] = (*manifests, manifest)
        log.info(
            "sweep_archive_written",
            sweep=sweep_id,
            part=manifest.number,
            events=manifest.events,
            vitals=manifest.vitals,
            bytes=manifest.size_bytes,
        )

    async def _new_events(self, sweep: SweepState, after_sequence: int) -> list[Message]:
        """In stream order: the claim of its request, its own events, its jobs', and those of its devices meanwhile."""
        sweep_id = sweep.record.sweep_id
        places = followups.devices((*self._ledger.sweep_jobs(sweep_id), *self._ledger.judge_jobs(sweep_id)))
        filters = [*_own_filters(sweep_id), *(subjects.control(*place) for place in places)]
        messages = [] if after_sequence else await self._claim(sweep)
        has_begun = bool(after_sequence)
        async with contextlib.aclosing(
            self._bus.read(subjects.EVENTS_STREAM, filters, start_sequence=after_sequence + 1)
        ) as history:
            async for stored in history:
                has_begun = has_begun or stored.subject == subjects.sweep_events(sweep_id)
                if has_begun and not _is_mark(stored):
                    messages.append(message_of(subjects.EVENTS_STREAM, stored))
        return messages

    async def _claim(self, sweep: SweepState) -> list[Message]:
        subject = claim_subject(sweep.record.request_id)
        stored = await self._bus.last(subjects.EVENTS_STREAM, subject)
        return [message_of(subjects.EVENTS_STREAM, stored)] if stored is not None else []

    async def _vitals(self, sweep_id: str, events: Sequence[Message]) -> list[Message]:
        ended = await asyncio.to_thread(_ended_attempts, events)
        if not ended:
            return []
        jobs = await self._journal.sweep_views(sweep_id)
        stretches = await asyncio.to_thread(archiving.stretches, jobs, ended)
        return [message for stretch in stretches for message in await self._vitals_of(stretch)]

    async def _vitals_of(self, stretch: Stretch) -> list[Message]:
        found = []
        async with contextlib.aclosing(
            self._bus.read(subjects.VITALS_STREAM, [subjects.vitals(stretch.host)], start_at=stretch.begin_at)
        ) as batches:
            async for stored in batches:
                stamp = _stamp_of(stored)
                if stamp is None:
                    continue
                if stamp.at > stretch.end_at:
                    break
                if stretch.has(stamp.boot_id, stamp.boottime_ns):
                    found.append(message_of(subjects.VITALS_STREAM, stored))
        return found

    # ---- leaving the stream

    async def _let_go(self, sweep: SweepState, standing: Standing) -> None:
        """Only behind a check of everything: the depot's bytes against the manifests, and against the stream."""
        sweep_id = sweep.record.sweep_id
        manifests = await self._archive.manifests(sweep_id)
        await self._check_covered(sweep_id, manifests)
        if self._ledger.last_sequence(sweep_id) != standing.last_sequence or sweep.settled is None:
            return  # it changed while we read; what another process writes from here on, the append's guard refuses
        farewell = SweepArchived(
            record=sweep.record,
            counts=self._ledger.counts(sweep_id),
            settled=sweep.settled,
            parts=len(manifests),
            lessons=sweep.lessons.told(),
            won_rungs=sweep.lessons.winning_rungs.told(),
            judge_times=sweep.judge_times.told(),
        )
        await self._journal.append_sweep(sweep, farewell)
        self._forget(sweep_id)
        await self._purge(sweep_id)

    async def _check_covered(self, sweep_id: str, manifests: Sequence[Manifest]) -> None:
        archived = {
            (message.subject, message.event_id, message.payload)
            for manifest in manifests
            for message in await self._archive.read(manifest)
        }
        async with contextlib.aclosing(self._bus.read(subjects.EVENTS_STREAM, _own_filters(sweep_id))) as history:
            async for stored in history:
                if (stored.subject, stored.event_id, stored.payload) not in archived and not _is_mark(stored):
                    raise ArchiveDamaged(f"event {stored.sequence} ({stored.subject}) is in no part of {sweep_id}")

    async def _purge(self, sweep_id: str) -> None:
        """Jobs first: while the sweep's record stands before its farewell, everybody knows that this is not done."""
        archived = self._ledger.archived[sweep_id]
        for subject in (subjects.sweep_job_events(sweep_id), subjects.sweep_events(sweep_id)):
            await self._bus.purge(subjects.EVENTS_STREAM, subject, before_sequence=archived.sequence)
        archived.must_purge = False
        log.info("sweep_left_the_stream", sweep=sweep_id)


def _own_filters(sweep_id: str) -> list[str]:
    return [subjects.sweep_events(sweep_id), subjects.sweep_job_events(sweep_id)]


def _is_mark(stored: Stored) -> bool:
    """Whether it tells of the archive itself: that is of this stream and no history of the sweep."""
    if not stored.subject.startswith("sweeps."):
        return False
    return isinstance(wire.decode(stored.payload, SweepEvent).body, SweepArchived | RestoreBegun | SweepRestored)


def _ended_attempts(messages: Sequence[Message]) -> dict[str, frozenset[int]]:
    """Attempt numbers by job id."""
    ended: dict[str, frozenset[int]] = {}
    for message in messages:
        if message.subject.startswith("events."):
            # The bare message: a record costs twenty times as much, and there may be fifty thousand.
            event: Any = wire.message_class(JobEvent).FromString(message.payload)
            if event.WhichOneof("body") == "attempt_ended":
                ended[event.job_id] = ended.get(event.job_id, frozenset()) | {event.attempt}
    return ended


def _stamp_of(stored: Stored) -> Stamp | None:
    try:
        return wire.decode(stored.payload, VitalsBatch).stamp
    except BadRequest as error:
        log.error("vitals_unreadable", sequence=stored.sequence, error=str(error))
        return None
