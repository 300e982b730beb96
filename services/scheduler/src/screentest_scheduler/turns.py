"""Whose turn it is on each device: the next job is admitted when its predecessor is gone and telemetry proves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from screentest import subjects
from screentest.devices import is_cpu
from screentest.errors import NotFound, NotPossibleNow, ScreentestError, Unavailable
from screentest.kit import clock
from screentest.kit.bus import Bus, WrongLastSequence
from screentest.records import Admitted, CommandReply, Drained, JobState, LaneId, Process, ProofKind, Undrained
from screentest_scheduler import admission, transitions
from screentest_scheduler.admission import Candidate, Slot
from screentest_scheduler.dispatching import Dispatcher
from screentest_scheduler.faults import Faults
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger, subject_of
from screentest_scheduler.presence import Presence
from screentest_scheduler.telemetry import Telemetry
from screentest_scheduler.transitions import Entry

log = structlog.get_logger()

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


class Turns:
    """Owns no truth: who holds a device is found again in the ledger and the heartbeats."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        journal: Journal,
        presence: Presence,
        telemetry: Telemetry,
        faults: Faults,
        dispatcher: Dispatcher,
        devices: tuple[tuple[str, str], ...],
        wake: Callable[[], None],
        *,
        drain_after_s: float,
    ) -> None:
        self._bus = bus
        self._ledger = ledger
        self._journal = journal
        self._presence = presence
        self._telemetry = telemetry
        self._faults = faults
        self._dispatcher = dispatcher
        self._devices = devices
        self._wake = wake
        self._drain_after_s = drain_after_s
        self._turns: dict[tuple[str, str], Turn] = {}

    def take(self, group: asyncio.TaskGroup) -> None:
        """Each device that is not being looked at gets a look of its own: one that is slow to prove stops no other."""
        for place in self.places():
            turn = self._turns.setdefault(place, Turn())
            if turn.busy is None or turn.busy.done():
                turn.busy = group.create_task(self._take(place, turn))

    def begin_anew(self) -> None:
        """Time in which we were deaf is no time in which a device stayed unclean."""
        for turn in self._turns.values():
            turn.unproven_since_ns = None

    def places(self) -> tuple[tuple[str, str], ...]:
        """Configured devices, and any other that a job is addressed to."""
        addressed = {(entry.spec.host, entry.spec.device) for entry in self._ledger.open_jobs()}
        return tuple(dict.fromkeys((*self._devices, *sorted(addressed))))

    def slot(self, host: str, device: str) -> Slot:
        state = self._ledger.device(host, device)
        holder = self.holder(host, device)
        runners = self._presence.runners(host, device)
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
                places[place] = (self.slot(*place), self._presence.lanes_alive(*place), unproven)
            slot, alive, unproven = places[place]
            found[entry.spec.job_id] = admission.waits_for(slot, self._ledger.candidate(entry), alive, unproven)
        return found

    def waits_for(self, entry: Entry) -> str:
        """Why a queued job waits; empty when it does not."""
        return self.waiting([entry]).get(entry.spec.job_id, "")

    def holder(self, host: str, device: str) -> Entry | None:
        """The job whose attempt is out and has not let go of the device."""
        for entry in self._ledger.active_jobs():
            if not entry.holds_attempt or (entry.spec.host, entry.spec.device) != (host, device):
                continue
            progress = self._presence.progress(entry.spec.job_id, entry.attempt)
            has_let_go = progress is not None and progress.phase in RELEASED_PHASES
            if not has_let_go and not self.is_finishing(entry):
                return entry
        return None

    def is_finishing(self, entry: Entry) -> bool:
        """The live worker says that the current attempt encodes or uploads: it needs the device no more."""
        spec = entry.spec
        alive = self._presence.worker(spec.host, spec.device, spec.lane_id)
        return alive is not None and transitions.is_finishing(entry, alive)

    async def _take(self, place: tuple[str, str], turn: Turn) -> None:
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
        alive = self._presence.lanes_alive(*place)
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
        await self._dispatcher.dispatch(entry)

    async def _next_rung(self, entry: Entry) -> int:
        """A ladder of one rung needs no question, and a device without GPU has no other name."""
        spec = entry.spec
        has_choice = entry.attempt == 0 and len(spec.rungs) > 1
        facts = await self._telemetry.facts(spec.host, spec.device) if has_choice and not is_cpu(spec.device) else None
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
        progress = self._presence.progress(slot.holder, holder.attempt) if holder else None
        return progress is not None and progress.phase in PREPARE_PHASES

    async def _prepare(self, slot: Slot, lane_id: str, turn: Turn) -> None:
        """While the holder works, the next lane's worker may start its interpreter and imports."""
        if lane_id == slot.loaded_lane or lane_id in turn.prepared:
            return
        turn.prepared.add(lane_id)
        await self._dispatcher.prepare((slot.host, slot.device), lane_id)

    async def _retire_others(self, place: tuple[str, str], lane_id: str, turn: Turn) -> None:
        """Warm runners of other lanes let go, and so do prepared ones that were not chosen after all.

        ``lane_id`` empty: all of them.
        """
        holding = {alive.lane_id for alive in self._presence.runners(*place)}
        turn.prepared &= self._presence.lanes_alive(*place)  # a worker that is gone took its interpreter along
        for other in sorted((holding | turn.prepared) - {lane_id}):
            reason = f"{lane_id} is next" if lane_id else "the device has failed"
            try:
                reply = await self._dispatcher.retire(place, other, reason)
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
        proof = await self._telemetry.proof(slot.host, slot.device, kind, runner)
        if proof is not None and proof.fault is not None and await self._faults.take(proof.fault, proof):
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
        alive = self._presence.worker(slot.host, slot.device, lane_id)
        return alive.runner if alive else None

    # ---- orders from people

    async def drain(self, host: str, device: str, reason: str) -> None:
        """A drained device keeps the reason it has: who looks later must see the first one."""
        self._require_known(host, device)
        if self._ledger.device(host, device).drained_reason:
            return
        await self._journal.append_control(host, device, Drained(reason=reason, proof=None))
        self._wake()

    async def undrain(self, host: str, device: str, by: str) -> None:
        self._require_known(host, device)
        if not self._ledger.device(host, device).drained_reason:
            raise NotPossibleNow(f"{host}/{device} is not drained")
        await self._journal.append_control(host, device, Undrained(by=by))
        self._wake()

    def _require_known(self, host: str, device: str) -> None:
        known = sorted({*self.places(), *self._ledger.devices})
        if (host, device) not in known:
            names = ", ".join("/".join(place) for place in known)
            raise NotFound(f"there is no device {host}/{device}; there are {names}")
