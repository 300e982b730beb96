"""Does what transitions and admission decide: one pass over the open jobs, whenever something changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog

from screentest import subjects
from screentest.errors import ScreentestError
from screentest.kit import clock, logging
from screentest.kit.bus import Bus, WrongLastSequence
from screentest.kit.store import Store
from screentest.records import (
    AttemptEnded,
    CancelAttempt,
    Completed,
    DeviceFault,
    EndAttempt,
    Failed,
    FailureClass,
    JobState,
    RubricRef,
)
from screentest_scheduler import transitions
from screentest_scheduler.cancelling import Canceller
from screentest_scheduler.dispatching import Dispatcher
from screentest_scheduler.faults import Faults
from screentest_scheduler.journal import Journal, batched
from screentest_scheduler.judging import JudgeJobs
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.presence import Presence
from screentest_scheduler.settling import Settler
from screentest_scheduler.telemetry import Telemetry
from screentest_scheduler.transitions import Entry
from screentest_scheduler.turns import Turns

log = structlog.get_logger()

# A pass runs at every change and at least this often: silence of a worker is no event.
IDLE_PASS_S = 1.0
# A pass that comes this late slept through a suspend or a blocked machine.
LATE_PASS_S = 5.0


class Conductor:
    """Owns no truth: everything here can be lost and is found again in the ledger and the heartbeats."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        ledger: Ledger,
        journal: Journal,
        devices: tuple[tuple[str, str], ...],
        *,
        stranger: RubricRef,
        ack_wait_s: float,
        drain_after_s: float,
    ):
        self._bus = bus
        self._store = store
        self._ledger = ledger
        self._journal = journal
        self._completing: set[str] = set()
        self._changed = asyncio.Event()
        self.presence = Presence(self.wake)
        self.telemetry = Telemetry(bus)
        self.faults = Faults(ledger, journal, self.wake)
        self.settler = Settler(bus, ledger, journal, self.presence, self.telemetry)
        self.judging = JudgeJobs(ledger, journal, stranger)
        self.canceller = Canceller(ledger, journal, self.judging, self.wake)
        self.dispatcher = Dispatcher(bus, ack_wait_s=ack_wait_s)
        self.turns = Turns(
            bus,
            ledger,
            journal,
            self.presence,
            self.telemetry,
            self.faults,
            self.dispatcher,
            devices,
            self.wake,
            drain_after_s=drain_after_s,
        )

    def wake(self) -> None:
        self._changed.set()

    async def follow(self) -> None:
        """The tail of EVENTS into the ledger: what workers append, and our own once more."""
        start = self._ledger.sequence + 1
        filters = subjects.EVENTS_SUBJECTS
        async for stored in self._bus.read(subjects.EVENTS_STREAM, filters, start_sequence=start, follow=True):
            self._journal.take(stored)
            self.wake()

    async def run(self) -> None:
        """Passes until cancelled. What fails in one pass is tried again in the next."""
        reconnected = self._bus.reconnected()
        passed_ns = clock.boottime_ns()
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                if reconnected.is_set() or (clock.boottime_ns() - passed_ns) / 1e9 > LATE_PASS_S:
                    reconnected.clear()
                    self._begin_anew()
                passed_ns = clock.boottime_ns()
                await self._pass(group)
                try:
                    async with asyncio.timeout(IDLE_PASS_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def _begin_anew(self) -> None:
        """Time in which we were deaf is nobody else's silence."""
        self.presence.begin_anew()
        self.turns.begin_anew()

    async def _pass(self, group: asyncio.TaskGroup) -> None:
        """One job's trouble is its own: the others are followed up all the same."""
        for sweep in list(self._ledger.sweeps.values()):
            sweep_id = sweep.record.sweep_id
            if len(sweep.job_ids) != len(sweep.expected) and not self._journal.is_writing(sweep_id):
                await self._guarded(self._journal.write_missing_jobs(sweep_id), sweep=sweep_id)
        entries = (*self._ledger.active_jobs(), *self._ledger.expiring_jobs())
        for some in batched(dict.fromkeys(entry.spec.job_id for entry in entries)):
            await asyncio.gather(*(self._guarded(self._follow_up_named(job_id, group)) for job_id in some))
        for sweep_id in self.judging.due():
            await self._guarded(self.judging.write(sweep_id), sweep=sweep_id)
        for sweep in self.settler.due():
            group.create_task(self.settler.settle(sweep))
        self.turns.take(group)

    async def _guarded(self, work: Awaitable[object], **about: str) -> None:
        try:
            await work
        except WrongLastSequence:
            pass  # somebody else wrote first: the tail brings it, then we decide again
        except ScreentestError as error:
            log.warning("follow_up_interrupted", error=str(error), **about)

    async def _follow_up_named(self, job_id: str, group: asyncio.TaskGroup) -> None:
        entry = self._ledger.job(job_id)
        with logging.about(entry.spec, entry.attempt):
            await self._guarded(self._follow_up(job_id, group))

    async def _follow_up(self, job_id: str, group: asyncio.TaskGroup) -> None:
        """Appends what must follow: at most one terminal event. NotFound when its sweep has left meanwhile."""
        entry = self._ledger.job(job_id)
        if entry.state.is_terminal or job_id in self._completing:
            return
        entry = await self._end_if_lost(entry)
        ending = transitions.terminal(entry) or transitions.expired(entry, clock.stamp().at)
        if ending is None:
            await self._pursue(entry)
        elif isinstance(ending, Completed):
            # The depot may be slow or away: nobody else waits for it.
            self._completing.add(job_id)
            group.create_task(self._complete(entry, ending))
        else:
            await self._end(entry, ending)

    async def _end_if_lost(self, entry: Entry) -> Entry:
        if not self._bus.is_connected:
            return entry  # the silence may be ours
        spec = entry.spec
        silent_s = self.presence.silent_s(spec.host, spec.device, spec.lane_id)
        # Until every worker had time to say what it finishes, no limit is applied to anybody.
        is_finishing = self.turns.is_finishing(entry) or self.presence.listening_s < transitions.WORKER_LOST_AFTER_S
        outcome = transitions.lost(entry, clock.stamp(), silent_s, is_finishing=is_finishing)
        if outcome is None:
            return entry
        # The guard of this append fences the worker; its message is only tidied away.
        ended = await self._journal.append_job(entry, JobState.ENDED, AttemptEnded(outcome=outcome))
        await self.dispatcher.withdraw(ended)
        return ended

    async def _complete(self, entry: Entry, ending: Completed) -> None:
        try:
            await self._guarded(self._check_and_end(entry, ending))
        finally:
            self._completing.discard(entry.spec.job_id)

    async def _check_and_end(self, entry: Entry, ending: Completed) -> None:
        await self._end(entry, await self._checked(ending))

    async def _end(self, entry: Entry, ending: transitions.Terminal) -> None:
        if entry.state is JobState.ADMITTED:
            await self.dispatcher.withdraw(entry)
        await self._journal.append_job(entry, transitions.state_after(ending), ending)
        self.presence.forget(entry.spec.job_id)
        self.dispatcher.forget(entry.spec.job_id)
        self.wake()

    async def _checked(self, ending: Completed) -> Completed | Failed:
        """Completed means that the object exists: the depot has the last word."""
        made = ending.clip or ending.judgement
        assert made is not None, "transitions completes a job with what it made"
        found = await self._store.stat(made.key)
        if found is not None and found.size_bytes == made.size_bytes:
            return ending
        what = "is not there" if found is None else f"has {found.size_bytes} bytes instead of {made.size_bytes}"
        cause = f"the worker reported the {made.kind.value} as uploaded, but {made.key} {what}"
        return Failed(failure_class=FailureClass.UPLOAD, cause=cause, fix="check the depot, then retry the job")

    async def _pursue(self, entry: Entry) -> None:
        """Keeps an attempt that is out on its way: cancel again, or put a lost dispatch message back."""
        spec = entry.spec
        if entry.state is JobState.RUNNING and entry.cancel_by:
            await self.dispatcher.order(entry, CancelAttempt(job_id=spec.job_id, attempt=entry.attempt))
        fault = self._ledger.device(spec.host, spec.device).fault
        if fault is not None and self._is_below(fault, entry):
            await self.dispatcher.order(entry, EndAttempt(job_id=spec.job_id, attempt=entry.attempt, cause=fault.cause))
        if entry.state is JobState.ADMITTED:
            await self.dispatcher.dispatch_again(entry)

    def _is_below(self, fault: DeviceFault, entry: Entry) -> bool:
        """Whether the device failed below this attempt: one that only encodes or uploads has let go of it."""
        if not fault.ends_attempts:
            return False
        holder = self.turns.holder(entry.spec.host, entry.spec.device)
        return holder is not None and holder.spec.job_id == entry.spec.job_id
