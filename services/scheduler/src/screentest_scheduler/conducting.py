"""Does what transitions and admission decide: one pass over the open jobs, whenever something changed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from screentest import subjects, wire
from screentest.errors import NotFound, NotPossibleNow, ScreentestError, Unavailable
from screentest.kit import clock, logging
from screentest.kit.bus import Bus, WrongLastSequence
from screentest.kit.store import Store
from screentest.records import (
    Admitted,
    AttemptEnded,
    CancelAttempt,
    CancelRequested,
    Command,
    CommandReply,
    Completed,
    DeviceFault,
    Dispatch,
    Drained,
    EndAttempt,
    Failed,
    FailureClass,
    JobState,
    LaneId,
    Prepare,
    Process,
    ProofKind,
    Retire,
    RubricRef,
    Undrained,
)
from screentest_scheduler import admission, transitions
from screentest_scheduler.admission import Candidate, Slot
from screentest_scheduler.faults import Faults
from screentest_scheduler.journal import Journal
from screentest_scheduler.judging import JudgeJobs
from screentest_scheduler.ledger import Ledger, subject_of
from screentest_scheduler.planning import is_cpu
from screentest_scheduler.presence import Presence
from screentest_scheduler.settling import Settler
from screentest_scheduler.telemetry import Telemetry
from screentest_scheduler.transitions import Entry

log = structlog.get_logger()

# A pass runs at every change and at least this often: silence of a worker is no event.
IDLE_PASS_S = 1.0
# A pass that comes this late slept through a suspend or a blocked machine.
LATE_PASS_S = 5.0
REDISPATCH_EVERY_S = 10.0
CANCEL_EVERY_S = 2.0
# The worker's stop ladder takes at most this long.
RETIRE_TIMEOUT_S = 45.0
CANCEL_TRIES = 50
# Appends to different jobs that are on their way together: one after the other, the cancel of a sweep of 10,000 takes
# longer than its caller waits, and nothing else is followed up meanwhile.
AT_ONCE = 64
# Phases of the holder in which the successor's interpreter may start: it takes seconds, decoding may take less.
PREPARE_PHASES = frozenset({"denoising", "decoding"})
# Phases in which the attempt no longer needs the device.
RELEASED_PHASES = frozenset({"decoded", "encoding", "uploading"})


@dataclass(slots=True)
class Turn:
    """What one device waits for between passes. ``uncertain``: the job whose Admitted may or may not be written."""

    unproven: str = ""
    unproven_since_ns: int | None = None
    prepared: set[str] = field(default_factory=set)
    uncertain: str = ""
    busy: asyncio.Task[None] | None = None


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
        self._devices = devices
        self._ack_wait_s = ack_wait_s
        self._drain_after_s = drain_after_s
        self._consumers: set[tuple[str, str, str]] = set()
        self._completing: set[str] = set()
        self._cancelling: set[asyncio.Future[int]] = set()
        self._changed = asyncio.Event()
        self._turns: dict[tuple[str, str], Turn] = {}
        self._cancel_sent_ns: dict[str, int] = {}
        self._fault_sent_ns: dict[str, int] = {}
        self._redispatched_ns: dict[str, int] = {}
        self.presence = Presence(self.wake)
        self.telemetry = Telemetry(bus)
        self.faults = Faults(ledger, journal, self.wake)
        self.settler = Settler(bus, ledger, journal, self.presence, self.telemetry)
        self.judging = JudgeJobs(ledger, journal, stranger)

    def wake(self) -> None:
        self._changed.set()

    async def follow(self) -> None:
        """The tail of EVENTS into the ledger: what workers append, and our own once more."""
        start = self._ledger.sequence + 1
        filters = subjects.EVENTS_SUBJECTS
        async for stored in self._bus.read(subjects.EVENTS_STREAM, filters, start_sequence=start, follow=True):
            self._journal.take(stored)
            self.wake()

    async def make_consumers(self, lane_ids: Iterable[str]) -> None:
        """The queue of every lane on every configured device, so that workers find theirs before the first job."""
        for host, device in self._devices:
            for lane_id in lane_ids:
                await self._make_consumer(host, device, lane_id)

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
        """Time in which we were deaf is nobody else's silence, and no time in which a device stayed unclean."""
        self.presence.begin_anew()
        for turn in self._turns.values():
            turn.unproven_since_ns = None

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
        for place in self.places():
            turn = self._turns.setdefault(place, Turn())
            if turn.busy is None or turn.busy.done():
                turn.busy = group.create_task(self._take_turn(place, turn))

    async def _guarded(self, work: Awaitable[object], **about: str) -> None:
        try:
            await work
        except WrongLastSequence:
            pass  # somebody else wrote first: the tail brings it, then we decide again
        except ScreentestError as error:
            log.warning("follow_up_interrupted", error=str(error), **about)

    # ---- what follows for one job

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
        is_finishing = self._is_finishing(entry) or self.presence.listening_s < transitions.WORKER_LOST_AFTER_S
        outcome = transitions.lost(entry, clock.stamp(), silent_s, is_finishing=is_finishing)
        if outcome is None:
            return entry
        # The guard of this append fences the worker; its message is only tidied away.
        ended = await self._journal.append_job(entry, JobState.ENDED, AttemptEnded(outcome=outcome))
        await self._withdraw(ended)
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
            await self._withdraw(entry)
        await self._journal.append_job(entry, transitions.state_after(ending), ending)
        self.presence.forget(entry.spec.job_id)
        self._cancel_sent_ns.pop(entry.spec.job_id, None)
        self._fault_sent_ns.pop(entry.spec.job_id, None)
        self._redispatched_ns.pop(entry.spec.job_id, None)
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
        if (
            entry.state is JobState.RUNNING
            and entry.cancel_by
            and self._due(self._cancel_sent_ns, entry, CANCEL_EVERY_S)
        ):
            await self._order(entry, CancelAttempt(job_id=entry.spec.job_id, attempt=entry.attempt))
        fault = self._ledger.device(entry.spec.host, entry.spec.device).fault
        if fault is not None and self._is_below(fault, entry) and self._due(self._fault_sent_ns, entry, CANCEL_EVERY_S):
            await self._order(entry, EndAttempt(job_id=entry.spec.job_id, attempt=entry.attempt, cause=fault.cause))
        if entry.state is JobState.ADMITTED and self._due(self._redispatched_ns, entry, REDISPATCH_EVERY_S):
            await self._dispatch(entry)

    async def _order(self, entry: Entry, body: CancelAttempt | EndAttempt) -> None:
        subject = subjects.command(entry.spec.host, entry.spec.device, entry.spec.lane_id)
        await self._bus.publish(subject, wire.encode(Command(body=body)))

    def _is_below(self, fault: DeviceFault, entry: Entry) -> bool:
        """Whether the device failed below this attempt: one that only encodes or uploads has let go of it."""
        if not fault.ends_attempts:
            return False
        holder = self._holder(entry.spec.host, entry.spec.device)
        return holder is not None and holder.spec.job_id == entry.spec.job_id

    def _due(self, sent: dict[str, int], entry: Entry, every_s: float) -> bool:
        now_ns = clock.boottime_ns()
        if now_ns - sent.get(entry.spec.job_id, 0) < every_s * 1e9:
            return False
        sent[entry.spec.job_id] = now_ns
        return True

    # ---- one device

    def places(self) -> tuple[tuple[str, str], ...]:
        """Configured devices, and any other that a job is addressed to."""
        addressed = {(entry.spec.host, entry.spec.device) for entry in self._ledger.open_jobs()}
        return tuple(dict.fromkeys((*self._devices, *sorted(addressed))))

    def slot(self, host: str, device: str) -> Slot:
        state = self._ledger.device(host, device)
        holder = self._holder(host, device)
        runners = self.presence.runners(host, device)
        loaded = holder.spec.lane_id if holder else (runners[0].lane_id if runners else "")
        return Slot(
            host=host,
            device=device,
            drained_reason=state.drained_reason,
            fault=state.fault,
            holder=holder.spec.job_id if holder else "",
            loaded_lane=loaded,
        )

    def waiting(self, entries: Iterable[Entry]) -> dict[str, str]:
        """Why each queued job waits, by job id; jobs that do not wait are left out."""
        places: dict[tuple[str, str], tuple[Slot, frozenset[LaneId], str]] = {}
        found = {}
        for entry in entries:
            if not entry.may_be_admitted:
                continue
            place = (entry.spec.host, entry.spec.device)
            if place not in places:
                unproven = self._turns.get(place, Turn()).unproven
                places[place] = (self.slot(*place), self.presence.lanes_alive(*place), unproven)
            slot, alive, unproven = places[place]
            found[entry.spec.job_id] = admission.waits_for(slot, self._ledger.candidate(entry), alive, unproven)
        return found

    def waits_for(self, entry: Entry) -> str:
        """Why a queued job waits; empty when it does not."""
        return self.waiting([entry]).get(entry.spec.job_id, "")

    def _holder(self, host: str, device: str) -> Entry | None:
        """The job whose attempt is out and has not let go of the device."""
        for entry in self._ledger.active_jobs():
            if not entry.holds_attempt or (entry.spec.host, entry.spec.device) != (host, device):
                continue
            progress = self.presence.progress(entry.spec.job_id, entry.attempt)
            has_let_go = progress is not None and progress.phase in RELEASED_PHASES
            if not has_let_go and not self._is_finishing(entry):
                return entry
        return None

    def _is_finishing(self, entry: Entry) -> bool:
        """The live worker says that the current attempt encodes or uploads: it needs the device no more."""
        spec = entry.spec
        alive = self.presence.worker(spec.host, spec.device, spec.lane_id)
        return alive is not None and transitions.is_finishing(entry, alive)

    async def _take_turn(self, place: tuple[str, str], turn: Turn) -> None:
        with structlog.contextvars.bound_contextvars(host=place[0], device=place[1]):
            try:
                await self._admit_next(place, turn)
            except WrongLastSequence:
                pass  # decided on old news; the next pass decides again
            except ScreentestError as error:
                log.warning("admission_interrupted", error=str(error))

    async def _admit_next(self, place: tuple[str, str], turn: Turn) -> None:
        if not await self._is_certain(turn):
            return
        slot = self.slot(*place)
        if slot.has_failed and not slot.holder:
            await self._retire_others(place, "", turn)  # a warm runner's context died with the device
            return
        if slot.holder and not self._may_prepare(slot):
            return
        alive = self.presence.lanes_alive(*place)
        chosen = admission.choose(slot, self._ledger.candidates(*place), alive)
        if chosen is None:
            self._proven(turn)
            return
        if slot.holder:
            await self._prepare(slot, chosen.entry.spec.lane_id, turn)
            return
        lane_id = chosen.entry.spec.lane_id
        await self._retire_others(place, lane_id, turn)
        if not await self._is_proven(self.slot(*place), chosen, turn):
            return
        entry = self._ledger.job(chosen.entry.spec.job_id)
        if not entry.may_be_admitted:
            return
        turn.prepared.discard(lane_id)
        rung = await self._next_rung(entry)
        admitted = Admitted(rung=rung, rung_name=entry.spec.rungs[rung] if entry.spec.rungs else "")
        turn.uncertain = entry.spec.job_id
        entry = await self._journal.append_job(entry, JobState.ADMITTED, admitted, attempt=entry.attempt + 1)
        turn.uncertain = ""
        self._redispatched_ns[entry.spec.job_id] = clock.boottime_ns()
        await self._dispatch(entry)

    async def _next_rung(self, entry: Entry) -> int:
        """A ladder of one rung needs no question, and a device without GPU has no other name."""
        spec = entry.spec
        has_choice = entry.attempt == 0 and len(spec.rungs) > 1
        facts = await self.telemetry.facts(spec.host, spec.device) if has_choice and not is_cpu(spec.device) else None
        first_rung = self._ledger.lessons.winning_rungs.first_rung(spec, facts.gpu_name if facts else None)
        return transitions.next_rung(entry, first_rung)

    async def _is_certain(self, turn: Turn) -> bool:
        """An Admitted whose answer got lost may be written: nobody else is admitted before the tail has passed it."""
        if turn.uncertain:
            subject = subject_of(self._ledger.job(turn.uncertain).spec)
            last = await self._bus.last(subjects.EVENTS_STREAM, subject)
            if last is not None and last.sequence > self._ledger.sequence:
                return False
            turn.uncertain = ""
        return True

    def _may_prepare(self, slot: Slot) -> bool:
        """Whether the holder is far enough for its successor to start."""
        holder = self._ledger.jobs.get(slot.holder)
        progress = self.presence.progress(slot.holder, holder.attempt) if holder else None
        return progress is not None and progress.phase in PREPARE_PHASES

    async def _prepare(self, slot: Slot, lane_id: str, turn: Turn) -> None:
        """While the holder works, the next lane's worker may start its interpreter and imports."""
        if lane_id == slot.loaded_lane or lane_id in turn.prepared:
            return
        turn.prepared.add(lane_id)
        await self._bus.publish(subjects.command(slot.host, slot.device, lane_id), wire.encode(Command(body=Prepare())))

    async def _retire_others(self, place: tuple[str, str], lane_id: str, turn: Turn) -> None:
        """Warm runners of other lanes let go, and so do prepared ones that were not chosen after all.

        ``lane_id`` empty: all of them.
        """
        holding = {alive.lane_id for alive in self.presence.runners(*place)}
        turn.prepared &= self.presence.lanes_alive(*place)  # a worker that is gone took its interpreter along
        for other in sorted((holding | turn.prepared) - {lane_id}):
            command = Command(body=Retire(reason=f"{lane_id} is next" if lane_id else "the device has failed"))
            try:
                reply = await self._command(place, other, command, RETIRE_TIMEOUT_S)
            except Unavailable:
                if other in holding:
                    raise
                reply = CommandReply(done=True)  # it held nothing: only a prepared interpreter is forgotten
            if not reply.done:
                raise Unavailable(f"the runner of {other} does not let go: {reply.detail}")
            turn.prepared.discard(other)

    async def _is_proven(self, slot: Slot, chosen: Candidate, turn: Turn) -> bool:
        """Asks telemetry; counts how long the answer has been no, and drains the device when it was no for too long."""
        kind = admission.proof_kind(slot, chosen)
        runner = self._runner_of(slot, chosen.entry.spec.lane_id) if kind is ProofKind.CONTINUE else None
        proof = await self.telemetry.proof(slot.host, slot.device, kind, runner)
        if proof is not None and proof.fault is not None and await self.faults.take(proof.fault, proof):
            self._proven(turn)
            return False
        if proof is not None and proof.clean:
            self._proven(turn)
            return True
        turn.unproven = proof.reason if proof else f"telemetry of {slot.host} does not answer"
        now_ns = clock.boottime_ns()
        turn.unproven_since_ns = turn.unproven_since_ns or now_ns
        unproven_s = (now_ns - turn.unproven_since_ns) / 1e9
        reason = admission.drain_reason(proof, unproven_s, self._drain_after_s) if proof else ""
        if reason:
            await self._journal.append_control(slot.host, slot.device, Drained(reason=reason, proof=proof))
            self._proven(turn)
        return False

    def _proven(self, turn: Turn) -> None:
        turn.unproven, turn.unproven_since_ns = "", None

    def _runner_of(self, slot: Slot, lane_id: str) -> Process | None:
        alive = self.presence.worker(slot.host, slot.device, lane_id)
        return alive.runner if alive else None

    # ---- orders from people

    async def cancel(self, job_id: str, by: str) -> bool:
        """Writes CancelRequested; False when the job is terminal or already being cancelled."""
        for _ in range(CANCEL_TRIES):
            entry = self._ledger.job(job_id)
            if entry.state.is_terminal or entry.cancel_by:
                return False
            if entry.state is JobState.ENDED and transitions.terminal(entry) is not None:
                return False  # the work is done; its terminal event is being written
            started = entry.state is JobState.RUNNING
            try:
                await self._journal.append_job(entry, entry.state, CancelRequested(by=by, started=started))
            except WrongLastSequence:
                await asyncio.sleep(0.05)  # the worker wrote first; the tail brings it
                continue
            self.wake()
            return True
        raise NotPossibleNow(f"job {job_id} changes too fast to cancel it; try again")

    async def cancel_sweep(self, sweep_id: str, by: str) -> int:
        """``cancel`` of all its jobs, also of those that are not written yet, of a broken submit or to judge a clip.

        Returns for how many it was new.

        It goes on when its caller has given up: half a sweep would go on computing.
        """
        working = asyncio.ensure_future(self._cancel_sweep(sweep_id, by))
        self._cancelling.add(working)
        working.add_done_callback(self._cancelling.discard)
        return await asyncio.shield(working)

    async def _cancel_sweep(self, sweep_id: str, by: str) -> int:
        """Raises the first error after all of them were tried."""
        await self._journal.write_missing_jobs(sweep_id)
        await self.judging.write(sweep_id)
        entries = (*self._ledger.sweep_jobs(sweep_id), *self._ledger.judge_jobs(sweep_id))
        job_ids = [entry.spec.job_id for entry in entries]
        written, errors = 0, []
        for some in batched(job_ids):
            for result in await asyncio.gather(*(self.cancel(job_id, by) for job_id in some), return_exceptions=True):
                if isinstance(result, BaseException):
                    errors.append(result)
                else:
                    written += result
        if errors:
            raise errors[0]
        return written

    async def drain(self, host: str, device: str, reason: str) -> None:
        """A drained device keeps the reason it has: who looks later must see the first one."""
        self._require_known(host, device)
        if self._ledger.device(host, device).drained_reason:
            return
        await self._journal.append_control(host, device, Drained(reason=reason, proof=None))
        self.wake()

    async def undrain(self, host: str, device: str, by: str) -> None:
        self._require_known(host, device)
        if not self._ledger.device(host, device).drained_reason:
            raise NotPossibleNow(f"{host}/{device} is not drained")
        await self._journal.append_control(host, device, Undrained(by=by))
        self.wake()

    def _require_known(self, host: str, device: str) -> None:
        known = sorted({*self.places(), *self._ledger.devices})
        if (host, device) not in known:
            names = ", ".join("/".join(place) for place in known)
            raise NotFound(f"there is no device {host}/{device}; there are {names}")

    # ---- talking

    async def _command(self, place: tuple[str, str], lane_id: str, command: Command, timeout_s: float) -> CommandReply:
        payload = await self._bus.request(subjects.command(*place, lane_id), wire.encode(command), timeout_s=timeout_s)
        return wire.decode(payload, CommandReply)

    async def _make_consumer(self, host: str, device: str, lane_id: str) -> None:
        if (host, device, lane_id) not in self._consumers:
            await self._bus.ensure_lane_consumer(host, device, lane_id, ack_wait_s=self._ack_wait_s)
            self._consumers.add((host, device, lane_id))

    async def _dispatch(self, entry: Entry) -> None:
        spec = entry.spec
        # A worker on a device that nobody configured here has no queue before its first job.
        await self._make_consumer(spec.host, spec.device, spec.lane_id)
        dispatch = Dispatch(spec=spec, attempt=entry.attempt, rung=entry.rung, admitted_sequence=entry.sequence)
        subject = subjects.dispatch(spec.host, spec.device, spec.lane_id, spec.job_id, entry.attempt)
        await self._bus.dispatch(subject, wire.encode(dispatch))

    async def _withdraw(self, entry: Entry) -> None:
        spec = entry.spec
        await self._bus.withdraw(subjects.dispatch(spec.host, spec.device, spec.lane_id, spec.job_id, entry.attempt))


def batched(job_ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """AT_ONCE of them at a time, in order."""
    remaining = iter(job_ids)
    while some := tuple(itertools.islice(remaining, AT_ONCE)):
        yield some
