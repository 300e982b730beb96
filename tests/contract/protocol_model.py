"""A small world in which the real decisions of scheduler and worker meet every fault the design names.

Real: ``ledger``, ``transitions``, ``ladder``, ``admission``, ``followups``, ``planning.retry`` of the scheduler; what
a delivery, a refused append and a reconnect mean to the worker (``decide``, ``after_refusal``, ``stop_reason``).
Modelled: the broker (guarded appends whose answers get lost, work queue with leases, lossy plain messages), the device
with its lock, time, and the thin code that carries the decisions out. One seeded generator of chance chooses the order:
actors are Python generators, and each ``yield`` is a point where anything may come between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from screentest import subjects
from screentest.errors import Unavailable
from screentest.kit.bus import WrongLastSequence
from screentest.records import (
    Admitted,
    Alive,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    CancelRequested,
    Completed,
    ControlEvent,
    Dispatch,
    Drained,
    FailureClass,
    JobEvent,
    JobSpec,
    JobState,
    Outcome,
    PrioritySet,
    Process,
    Proof,
    ProofKind,
    RetryRequested,
    Stamp,
    Started,
    Submitted,
    SweepEvent,
    SweepPaused,
    SweepRecord,
    SweepSettled,
    SweepSubmitted,
    Task,
    Undrained,
)
from screentest_scheduler import admission, followups, planning, transitions
from screentest_scheduler.admission import Slot
from screentest_scheduler.ladder import OUT_OF_MEMORY
from screentest_scheduler.ledger import Ledger, subject_of
from screentest_scheduler.transitions import Entry
from screentest_worker.consume import Action, decide
from screentest_worker.ledger import AfterRefusal, StopReason, after_refusal, stop_reason
from screentest_worker.outcome import as_cancelled
from tests.made_sweeps import BEGAN_AT, plan, record

HOST, DEVICE = "local", "gpu-0"
LANES = ("wan", "svd", "mochi")
ATTEMPT_S = 120
ACK_WAIT_S = 30
ALIVE_FOR_S = 7
REDISPATCH_EVERY_S = 10
CANCEL_EVERY_S = 2
NOT_PROVEN_S = 60
RUNNER = Process(pid=1, start_ticks=1)

Steps = Generator[None, None, Any]
Key = tuple[str, int]  # job id, attempt


@dataclass(frozen=True, slots=True)
class Written:
    subject: str
    sequence: int
    event: Any


class Log:
    """EVENTS: one sequence for all, and a guard per subject."""

    def __init__(self) -> None:
        self.written: list[Written] = []
        self._last: dict[str, Written] = {}
        self.watchers: list[Callable[[Written], None]] = []

    def last(self, subject: str) -> Written | None:
        return self._last.get(subject)

    def last_event(self, subject: str) -> JobEvent | None:
        found = self._last.get(subject)
        return found.event if found else None

    def append(self, subject: str, event: Any, expected_sequence: int) -> int:
        """As ``Bus.append``: the same event again is the same success."""
        last = self._last.get(subject)
        if (last.sequence if last else 0) != expected_sequence:
            if last is not None and last.event.event_id == event.event_id:
                return last.sequence
            raise WrongLastSequence(subject)
        written = Written(subject, len(self.written) + 1, event)
        self.written.append(written)
        self._last[subject] = written
        for watch in self.watchers:
            watch(written)
        return written.sequence


@dataclass(slots=True)
class Message:
    dispatch: Dispatch
    hidden_until: float = 0


@dataclass(slots=True)
class Device:
    """``lock``: the lane whose runner holds it; ``is_orphan``: its worker has died and the runner has not."""

    lock: str = ""
    is_orphan: bool = False


@dataclass(slots=True)
class Hand:
    dispatch: Dispatch
    sequence: int
    has_started: bool = False
    deadline: float = 0
    stop: StopReason | None = None

    @property
    def key(self) -> Key:
        return self.dispatch.spec.job_id, self.dispatch.attempt

    def request_stop(self, reason: StopReason) -> None:
        self.stop = self.stop or reason


class Dropped(Exception):
    """The attempt is not this worker's any more."""


class World:
    """Everything there is. ``calm`` ends all faults; ``progress`` and ``heard`` are what plain messages have told."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.calm = False
        self.log = Log()
        self.jobs_queue: dict[Key, Message] = {}
        self.device = Device()
        self.depot: set[str] = set()
        self.released: set[Key] = set()
        self.forgotten: set[Key] = set()
        self.actors: list[Steps] = []
        self._ids = 0
        # Some worlds have a bad broker, some a slow tail of the stream, some a machine that loses attempts, some a lane
        # that never starts, not even when all is calm, some runners that outlive their workers, some a small card.
        self.loss = self.chance.choice((0.03, 0.05, 0.3))
        self.deafness = self.chance.choice((0.2, 0.2, 0.7))
        self.pace_s = self.chance.choice((1, 3))
        self.frailty = self.chance.choice((0.02, 0.02, 0.4))
        self.dead_lane = self.chance.choice(("", "", "", LANES[0]))
        self.repair = self.chance.choice((0.03, 0.001))
        self.orphans = self.chance.choice((0.2, 1.0))
        self.tightness = self.chance.choice((0.01, 0.3))
        self.workers = {lane: Worker(self, lane) for lane in LANES[: self.chance.randint(1, 3)]}
        self.scheduler = Scheduler(self)

    # ---- chance and time

    def happens(self, probability: float) -> bool:
        """A fault, perhaps; never when the world is calm."""
        return not self.calm and self.chance.random() < probability

    def next_id(self) -> str:
        self._ids += 1
        return f"e{self._ids}"

    def stamp(self) -> Stamp:
        return Stamp(at=BEGAN_AT + timedelta(seconds=self.now), boot_id="boot", boottime_ns=int(self.now * 1e9))

    def step(self) -> None:
        """One actor goes one step further, and time passes."""
        actor = self.actors[int(self.chance.random() * len(self.actors))]
        try:
            next(actor)
        except StopIteration:
            self.actors.remove(actor)
        except (WrongLastSequence, Unavailable):
            self.actors.remove(actor)  # decided on old news, or nobody answered: the next pass decides again
        jump = self.chance.choice((8, 35, 70)) if self.happens(0.01) else self.pace_s * self.chance.random()
        self.now += jump
        for worker in self.workers.values():
            worker.breathe()

    # ---- the broker

    def append(self, subject: str, event: Any, expected_sequence: int, tries: int, link: Callable[[], bool]) -> Steps:
        """The sequence. An answer may get lost after the write; Unavailable after so many tries."""
        for _ in range(tries):
            yield
            while not link():
                yield
            if self.happens(self.loss):
                continue  # the request got lost
            sequence = self.log.append(subject, event, expected_sequence)
            if not self.happens(self.loss):
                return sequence
        raise Unavailable(subject)


class Worker:
    """One lane's worker: pulls, runs one attempt on the device, finishes others beside it. Its spool outlives it."""

    def __init__(self, world: World, lane_id: str) -> None:
        self.world = world
        self.lane_id = lane_id
        self.is_up = False
        self.is_connected = True
        self.hands: dict[Key, Hand] = {}
        self.on_device: Hand | None = None
        self.spool: dict[Key, tuple[Hand, Outcome]] = {}
        self.interrupted: dict[Key, Hand] = {}
        self.own: list[Steps] = []

    @property
    def answers(self) -> bool:
        return self.is_up and self.is_connected

    @property
    def holds_lock(self) -> bool:
        return self.world.device.lock == self.lane_id and not self.world.device.is_orphan

    def breathe(self) -> None:
        """Heartbeat and lease renewal; either may get lost."""
        if not self.answers:
            return
        if not self.world.happens(0.1):
            self.world.scheduler.heard[self.lane_id] = self._alive()
        for key in self.hands:
            message = self.world.jobs_queue.get(key)
            if message is not None and not self.world.happens(0.1):
                message.hidden_until = self.world.now + ACK_WAIT_S

    def _alive(self) -> Alive:
        return Alive(
            host=HOST,
            device=DEVICE,
            lane_id=self.lane_id,
            lane_digest="",
            worker_id="",
            runner=RUNNER if self.holds_lock else None,
            job_id=self.on_device.key[0] if self.on_device else None,
            finishing_job_ids=tuple(hand.key[0] for hand in self.hands.values() if hand is not self.on_device),
            stamp=self.world.stamp(),
        )

    # ---- life and death

    def start(self) -> None:
        self.is_up, self.is_connected = True, True
        self._spawn(self._pull())

    def die(self) -> None:
        """SIGKILL of everything; sometimes the runner survives for a while."""
        self.is_up = False
        for steps in self.own:
            if steps in self.world.actors:
                self.world.actors.remove(steps)
        self.own.clear()
        self.hands.clear()
        self.on_device = None
        if self.holds_lock:
            self.world.device.is_orphan = self.world.happens(self.world.orphans)
            if not self.world.device.is_orphan:
                self.world.device.lock = ""

    def reconnect(self) -> None:
        self.is_connected = True
        for hand in self.hands.values():
            if hand.has_started:
                last = self.world.log.last_event(subject_of(hand.dispatch.spec))
                reason = stop_reason(last, hand.dispatch.attempt)
                if reason is not None:
                    hand.request_stop(reason)

    def _spawn(self, steps: Steps) -> None:
        self.own.append(steps)
        self.world.actors.append(steps)

    def _kill_leftovers(self) -> None:
        if self.world.device.lock == self.lane_id and self.world.device.is_orphan:
            self.world.device.lock, self.world.device.is_orphan = "", False

    # ---- commands

    def retire(self) -> bool:
        """Whether the runner is gone; a busy one does not go."""
        if not self.answers or self.on_device is not None:
            return False
        self._release()
        return True

    def cancel(self, key: Key) -> None:
        if self.answers and key in self.hands:
            self.hands[key].request_stop(StopReason.CANCELLED)

    def _release(self) -> None:
        if self.holds_lock:
            self.world.device.lock = ""

    # ---- pulling

    def _pull(self) -> Steps:
        for hand, outcome in list(self.spool.values()):
            self._deliver(hand, outcome)
        for hand in list(self.interrupted.values()):
            if hand.key not in self.spool:
                yield from self._wait_for_link()
                yield from self._act(hand.dispatch, only_lost=True)
        while True:
            yield
            message = self._next_message()
            if message is not None:
                yield
                yield from self._wait_for_link()
                yield from self._act(message.dispatch)

    def _next_message(self) -> Message | None:
        if not self.is_connected:
            return None
        for message in self.world.jobs_queue.values():
            is_due = message.hidden_until <= self.world.now or self.world.happens(0.02)  # a duplicate delivery
            if message.dispatch.spec.lane_id == self.lane_id and is_due:
                message.hidden_until = self.world.now + ACK_WAIT_S
                return message
        return None

    def _wait_for_link(self) -> Iterator[None]:
        while not self.is_connected:
            yield

    def _act(self, dispatch: Dispatch, *, only_lost: bool = False) -> Steps:
        key = (dispatch.spec.job_id, dispatch.attempt)
        last = self.world.log.last(subject_of(dispatch.spec))
        event = last.event if last else None
        spooled = key in self.spool and key not in self.hands
        action = decide(event, dispatch.attempt, in_hand=key in self.hands, spooled=spooled)
        lost = {Action.END_LOST: _lost(), Action.END_CANCELLED: _failure(FailureClass.CANCELLED)}
        if action in lost:
            assert last is not None
            self._kill_leftovers()
            self._deliver(Hand(dispatch=dispatch, sequence=last.sequence, has_started=True), lost[action])
        elif only_lost:
            self.interrupted.pop(key, None)
        elif action is Action.START:
            yield from self._turn(Hand(dispatch=dispatch, sequence=dispatch.admitted_sequence))
        elif action is Action.DELIVER:
            self._deliver(*self.spool[key])
        elif action is Action.ACKNOWLEDGE:
            self._acknowledge(key)

    def _acknowledge(self, key: Key) -> None:
        self.spool.pop(key, None)
        self.interrupted.pop(key, None)
        if not self.world.happens(0.1):
            self.world.jobs_queue.pop(key, None)

    # ---- one attempt

    def _turn(self, hand: Hand) -> Steps:
        self.hands[hand.key] = self.on_device = hand
        try:
            outcome = yield from self._compute(hand)
        except Dropped:
            self._acknowledge(hand.key)
            self.hands.pop(hand.key)
            return
        finally:
            self.on_device = None
        if outcome.failure_class is None:
            self._tell(hand.key, "decoded")
        self.world.released.add(hand.key)  # failed or decoded: nothing of it is on the device any more
        self._spawn(self._finish(hand, outcome))

    def _compute(self, hand: Hand) -> Steps:
        if self.world.happens(0.02):
            return _failure(FailureClass.PREFLIGHT_REFUSED)
        if self.lane_id == self.world.dead_lane or self.world.happens(0.04):
            return _lost()  # no keyframe, no runner
        was_warm = yield from self._take_device(hand)
        if was_warm is None:
            self._release()
            return _lost()
        yield from self._begin(hand, was_warm)
        hand.deadline = self.world.now + ATTEMPT_S
        hangs = self.world.happens(0.03)
        for _ in range(self.world.chance.randint(1, 8)):
            yield
            while hangs and self.world.now < hand.deadline + 2 * transitions.ATTEMPT_GRACE_S:
                yield
            assert self.holds_lock, "computing without the lock"
            failure = self._breaks(hand)
            if failure is not None:
                self._release()
                if hand.stop is StopReason.ABANDONED:
                    raise Dropped
                return failure
        return _success(hand)

    def _breaks(self, hand: Hand) -> Outcome | None:
        if hand.stop is not None:
            return _failure(FailureClass.CANCELLED)
        if self.world.now > hand.deadline:
            return _failure(FailureClass.TIMEOUT)
        if self.world.happens(0.02):
            return _failure(self.world.chance.choice((FailureClass.NAN, FailureClass.CRASHED)))
        if self.world.happens(self.world.tightness):
            return _failure(self.world.chance.choice(sorted(OUT_OF_MEMORY)))
        return _lost() if self.world.happens(self.world.frailty) else None

    def _take_device(self, hand: Hand) -> Steps:
        """Whether the runner was warm, None when the device was not ours in time."""
        deadline = self.world.now + NOT_PROVEN_S
        subject = subject_of(hand.dispatch.spec)
        while True:
            yield
            if self.holds_lock:
                return True
            self._kill_leftovers()
            if not self.world.device.lock:
                self.world.device.lock = self.lane_id
                return False
            if self.world.now > deadline:
                return None
            yield from self._wait_for_link()
            last = self.world.log.last(subject)
            if last is None or last.sequence != hand.dispatch.admitted_sequence:
                raise Dropped

    def _begin(self, hand: Hand, was_warm: bool) -> Steps:
        proof = Proof(
            kind=ProofKind.CONTINUE if was_warm else ProofKind.HANDOVER,
            clean=True,
            reason="",
            lock_held=was_warm,
            lock_holders=(),
            processes=(),
            stamp=self.world.stamp(),
            method="proc",
        )
        body = Started(runner=RUNNER, proof=proof, warm=was_warm)
        try:
            hand.sequence = yield from self._append(hand, JobState.RUNNING, body, hand.sequence)
        except WrongLastSequence:
            last = self.world.log.last(subject_of(hand.dispatch.spec))
            meaning = after_refusal(last.event if last else None, hand.dispatch.attempt)
            if last is None or meaning is not AfterRefusal.END_CANCELLED:
                if not was_warm:
                    self._release()
                raise Dropped from None
            hand.sequence = last.sequence
            hand.request_stop(StopReason.CANCELLED)
        hand.has_started = True
        self.interrupted[hand.key] = hand

    def _tell(self, key: Key, phase: str) -> None:
        if self.is_connected and not self.world.happens(0.2):
            self.world.scheduler.progress[key] = phase

    # ---- after the device

    def _deliver(self, hand: Hand, outcome: Outcome) -> None:
        if hand.key not in self.hands:
            self.hands[hand.key] = hand
            self.world.released.add(hand.key)
            self._spawn(self._finish(hand, outcome))

    def _finish(self, hand: Hand, outcome: Outcome) -> Steps:
        if outcome.failure_class is None and hand.key not in self.spool:
            yield
            self._tell(hand.key, "encoding")
            if hand.stop is StopReason.CANCELLED:
                outcome = _failure(FailureClass.CANCELLED)
        if hand.stop is not StopReason.ABANDONED:
            self.spool[hand.key] = (hand, outcome)
            yield
            yield from self._wait_for_link()
            self.world.depot.update(artifact.key for artifact in outcome.artifacts)
            self._tell(hand.key, "uploading")
            yield from self._end(hand, outcome)
        self._acknowledge(hand.key)
        self.hands.pop(hand.key, None)

    def _end(self, hand: Hand, outcome: Outcome) -> Steps:
        expected = hand.sequence
        while True:
            try:
                yield from self._append(hand, JobState.ENDED, AttemptEnded(outcome=outcome), expected)
            except WrongLastSequence:
                last = self.world.log.last(subject_of(hand.dispatch.spec))
                if after_refusal(last.event if last else None, hand.dispatch.attempt) is AfterRefusal.DISCARD:
                    return
                assert last is not None
                outcome, expected = as_cancelled(outcome), last.sequence
            else:
                return

    def _append(self, hand: Hand, state: JobState, body: Any, expected: int) -> Steps:
        event = _job_event(self.world, hand.dispatch.spec, hand.dispatch.attempt, state, body)
        subject = subject_of(hand.dispatch.spec)
        return self.world.append(subject, event, expected, 10**6, lambda: self.is_connected)


class Scheduler:
    """Carries out what the pure modules decide, as ``conducting`` and ``journal`` do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = Ledger()
        self.heard: dict[str, Alive] = {}
        self.progress: dict[Key, str] = {}
        self.cursor = 0
        self.since = 0.0
        self.unproven_since: float | None = None
        self.uncertain = ""  # the job whose Admitted may or may not be written
        self.due: dict[tuple[str, str], float] = {}
        self.own: list[Steps] = []
        self.turn: Steps | None = None

    def start(self) -> None:
        self.since = self.world.now
        self._spawn(self._passes())

    def crash(self) -> None:
        """A new process knows what the stream says and nothing else."""
        for steps in self.own:
            if steps in self.world.actors:
                self.world.actors.remove(steps)
        fresh = Scheduler(self.world)
        self.world.scheduler = fresh
        fresh.hear()
        fresh.start()

    def hear(self) -> None:
        """The tail of the stream, now and then with what was heard before."""
        if self.cursor == len(self.world.log.written):
            return
        start = max(0, self.cursor - 3) if self.world.happens(0.05) else self.cursor
        for written in self.world.log.written[start:]:
            kind = written.subject.partition(".")[0]
            if kind == "events":
                self.ledger.apply_job(written.event, written.sequence)
            elif kind == "sweeps":
                self.ledger.apply_sweep(written.event, written.sequence)
            else:
                self.ledger.apply_control(written.event, written.sequence)
        self.cursor = len(self.world.log.written)

    def _spawn(self, steps: Steps) -> Steps:
        self.own = [item for item in self.own if item in self.world.actors]
        self.own.append(steps)
        self.world.actors.append(steps)
        return steps

    # ---- one pass

    def _passes(self) -> Steps:
        while True:
            yield
            if not self.world.happens(self.world.deafness):
                self.hear()
            try:
                yield from self._pass()
            except (WrongLastSequence, Unavailable):
                continue

    def _pass(self) -> Steps:
        for sweep_id, sweep in list(self.ledger.sweeps.items()):
            if len(sweep.job_ids) != len(sweep.expected):
                for spec in self.ledger.missing_jobs(sweep_id):
                    yield from self._submit(spec)
        for entry in (*self.ledger.active_jobs(), *self.ledger.expiring_jobs()):
            yield from self._follow_up(self.ledger.job(entry.spec.job_id))
        for sweep_id in list(self.ledger.sweeps):
            if self._must_settle(sweep_id):
                yield from self._settle(sweep_id)
        if self.turn is None or self.turn not in self.world.actors:
            self.turn = self._spawn(self._admit_next())

    def _submit(self, spec: JobSpec) -> Steps:
        event = _job_event(self.world, spec, 0, JobState.QUEUED, Submitted(spec=spec), f"submit-{spec.job_id}")
        try:
            sequence = yield from self._append(subject_of(spec), event, 0)
        except WrongLastSequence:
            return  # that one is there already
        self.ledger.apply_job(event, sequence)

    def _follow_up(self, entry: Entry) -> Steps:
        if entry.state.is_terminal:
            return
        alive = self.heard.get(entry.spec.lane_id)
        silent_s = self.world.now - max(self.since, _second_of(alive) if alive else self.since)
        # Until every worker had time to say what it finishes, no limit is applied to anybody.
        is_finishing = self._is_finishing(entry) or self.world.now - self.since < transitions.WORKER_LOST_AFTER_S
        outcome = transitions.lost(entry, self.world.stamp(), silent_s, is_finishing=is_finishing)
        if outcome is not None:
            is_forgotten = outcome.failure_class is FailureClass.TIMEOUT and not self._is_somewhere(entry)
            entry = yield from self.append_job(entry, JobState.ENDED, AttemptEnded(outcome=outcome))
            self._withdraw(entry)
            if is_forgotten:
                self.world.forgotten.add((entry.spec.job_id, entry.attempt))
        ending = transitions.terminal(entry) or transitions.expired(entry, self.world.stamp().at)
        if ending is None:
            self._pursue(entry)
            return
        if entry.state is JobState.ADMITTED:
            self._withdraw(entry)
        if isinstance(ending, Completed):
            assert ending.clip.key in self.world.depot, "completed without a clip in the depot"
        yield from self.append_job(entry, transitions.state_after(ending), ending)

    def _is_somewhere(self, entry: Entry) -> bool:
        """Whether the attempt's worker has it, or its message will bring it."""
        worker, key = self.world.workers[entry.spec.lane_id], (entry.spec.job_id, entry.attempt)
        return any(key in place for place in (worker.hands, worker.spool, worker.interrupted, self.world.jobs_queue))

    def _pursue(self, entry: Entry) -> None:
        key = (entry.spec.job_id, entry.attempt)
        is_cancelling = entry.state is JobState.RUNNING and entry.cancel_by
        if is_cancelling and self._is_due("cancel", entry, CANCEL_EVERY_S) and not self.world.happens(0.2):
            self.world.workers[entry.spec.lane_id].cancel(key)
        if entry.state is JobState.ADMITTED and self._is_due("dispatch", entry, REDISPATCH_EVERY_S):
            self._dispatch(entry)

    def _is_due(self, what: str, entry: Entry, every_s: float) -> bool:
        key = (what, entry.spec.job_id)
        if self.world.now - self.due.get(key, -every_s) < every_s:
            return False
        self.due[key] = self.world.now
        return True

    def _must_settle(self, sweep_id: str) -> bool:
        sweep = self.ledger.sweep(sweep_id)
        if len(sweep.job_ids) != len(sweep.expected):
            return False
        if sweep.settled is not None and sweep.settled.jobs == len(sweep.expected):
            return False
        return followups.must_settle(self.ledger.sweep_jobs(sweep_id), sweep.settled)

    def _settle(self, sweep_id: str) -> Steps:
        jobs = self.ledger.sweep_jobs(sweep_id)
        yield from self.append_sweep(sweep_id, SweepSettled(jobs=len(jobs), clips=followups.clips(jobs), proofs=()))

    # ---- the device

    def _slot(self) -> Slot:
        device = self.ledger.devices.get((HOST, DEVICE))
        holder = self._holder()
        runners = self._runners()
        loaded = holder.spec.lane_id if holder else (runners[0] if runners else "")
        return Slot(
            host=HOST,
            device=DEVICE,
            drained_reason=device.drained_reason if device else "",
            holder=holder.spec.job_id if holder else "",
            loaded_lane=loaded,
        )

    def _holder(self) -> Entry | None:
        for entry in self.ledger.active_jobs():
            has_let_go = (entry.spec.job_id, entry.attempt) in self.progress
            if entry.holds_attempt and not has_let_go and not self._is_finishing(entry):
                return entry
        return None

    def _is_finishing(self, entry: Entry) -> bool:
        return entry.spec.lane_id in self._alive() and transitions.is_finishing(entry, self.heard[entry.spec.lane_id])

    def _alive(self) -> set[str]:
        return {lane for lane, alive in self.heard.items() if self.world.now - _second_of(alive) < ALIVE_FOR_S}

    def _runners(self) -> list[str]:
        return [lane for lane in sorted(self._alive()) if self.heard[lane].runner is not None]

    def _admit_next(self) -> Steps:
        yield
        if not self._is_certain():
            return
        slot = self._slot()
        if slot.holder:
            return
        chosen = admission.choose(slot, self.ledger.candidates(HOST, DEVICE), self._alive())
        if chosen is None:
            return
        lane_id = chosen.entry.spec.lane_id
        for other in self._runners():
            yield
            if other != lane_id and not self.world.workers[other].retire():
                return
        slot = self._slot()
        if admission.proof_kind(slot, chosen) is ProofKind.CONTINUE:
            proof = self._proof(self.world.device.lock == lane_id, ProofKind.CONTINUE)
        else:
            proof = self._proof(not self.world.device.lock, ProofKind.HANDOVER)
        yield
        if not proof.clean:
            yield from self._unproven(proof)
            return
        self.unproven_since = None
        entry = self.ledger.job(chosen.entry.spec.job_id)
        if not entry.may_be_admitted:
            return
        rung = transitions.next_rung(entry, self.ledger.lessons.winning_rungs.first_rung(entry.spec, None))
        body = Admitted(rung=rung, rung_name=entry.spec.rungs[rung])
        self.uncertain = entry.spec.job_id
        entry = yield from self.append_job(entry, JobState.ADMITTED, body, entry.attempt + 1)
        self.uncertain = ""
        self.due[("dispatch", entry.spec.job_id)] = self.world.now
        self._dispatch(entry)

    def _is_certain(self) -> bool:
        """An Admitted whose answer never came may be written: nobody else is admitted before that is heard."""
        if self.uncertain:
            last = self.world.log.last(subject_of(self.ledger.job(self.uncertain).spec))
            if last is not None and last.sequence > self.cursor:
                return False
            self.uncertain = ""
        return True

    def _proof(self, clean: bool, kind: ProofKind) -> Proof:
        return Proof(
            kind=kind,
            clean=clean,
            reason="" if clean else "held",
            lock_held=bool(self.world.device.lock),
            lock_holders=(),
            processes=(),
            stamp=self.world.stamp(),
            method="proc",
        )

    def _unproven(self, proof: Proof) -> Steps:
        self.unproven_since = self.world.now if self.unproven_since is None else self.unproven_since
        reason = admission.drain_reason(proof, self.world.now - self.unproven_since)
        if reason:
            yield from self.append_control(Drained(reason=reason, proof=proof))
            self.unproven_since = None

    def _dispatch(self, entry: Entry) -> None:
        if not self.world.happens(0.1):
            dispatch = Dispatch(
                spec=entry.spec, attempt=entry.attempt, rung=entry.rung, admitted_sequence=entry.sequence
            )
            self.world.jobs_queue.setdefault((entry.spec.job_id, entry.attempt), Message(dispatch))

    def _withdraw(self, entry: Entry) -> None:
        if not self.world.happens(0.1):
            self.world.jobs_queue.pop((entry.spec.job_id, entry.attempt), None)

    # ---- people

    def cancel(self, job_id: str) -> Steps:
        for _ in range(50):
            yield
            entry = self.ledger.jobs.get(job_id)
            if entry is None or entry.state.is_terminal or entry.cancel_by:
                return
            if entry.state is JobState.ENDED and transitions.terminal(entry) is not None:
                return
            body = CancelRequested(by="ada", started=entry.state is JobState.RUNNING)
            try:
                yield from self.append_job(entry, entry.state, body)
            except WrongLastSequence:
                continue
            return

    def retry(self, job_id: str) -> Steps:
        entry = self.ledger.jobs.get(job_id)
        if entry is None or not entry.state.is_terminal:
            return
        cell = (entry.spec.lane_id, entry.spec.prompt_index, entry.spec.seed)
        jobs = self.ledger.sweep(entry.spec.sweep_id).expected.values()
        cell_jobs = [job for job in jobs if (job.lane_id, job.prompt_index, job.seed) == cell]
        known = [self.ledger.jobs.get(job.job_id) for job in cell_jobs]
        if any(other is None or not other.state.is_terminal for other in known):
            return
        spec = planning.retry(entry.spec, max(job.retry_index for job in cell_jobs) + 1)
        yield from self.append_sweep(spec.sweep_id, RetryRequested(spec=spec, by="ada"))

    # ---- the pen

    def append_job(self, entry: Entry, state: JobState, body: Any, attempt: int | None = None) -> Steps:
        event = _job_event(self.world, entry.spec, entry.attempt if attempt is None else attempt, state, body)
        sequence = yield from self._append(subject_of(entry.spec), event, entry.sequence)
        self.ledger.apply_job(event, sequence)
        return self.ledger.job(entry.spec.job_id)

    def append_sweep(self, sweep_id: str, body: Any) -> Steps:
        event = SweepEvent(event_id=self.world.next_id(), sweep_id=sweep_id, stamp=self.world.stamp(), body=body)
        expected = self.ledger.sweep(sweep_id).sequence
        sequence = yield from self._append(subjects.sweep_events(sweep_id), event, expected)
        self.ledger.apply_sweep(event, sequence)

    def append_control(self, body: Drained | Undrained) -> Steps:
        event_id = self.world.next_id()
        event = ControlEvent(event_id=event_id, host=HOST, device=DEVICE, stamp=self.world.stamp(), body=body)
        state = self.ledger.devices.get((HOST, DEVICE))
        sequence = yield from self._append(subjects.control(HOST, DEVICE), event, state.sequence if state else 0)
        self.ledger.apply_control(event, sequence)

    def _append(self, subject: str, event: Any, expected: int) -> Steps:
        return self.world.append(subject, event, expected, 2, lambda: True)


# ---- making things


def _second_of(alive: Alive) -> float:
    return alive.stamp.boottime_ns / 1e9


def _job_event(
    world: World, spec: JobSpec, attempt: int, state: JobState, body: Any, event_id: str | None = None
) -> JobEvent:
    return JobEvent(
        event_id=event_id or world.next_id(),
        sweep_id=spec.sweep_id,
        lane_id=spec.lane_id,
        job_id=spec.job_id,
        attempt=attempt,
        state=state,
        stamp=world.stamp(),
        body=body,
    )


def _failure(failure_class: FailureClass) -> Outcome:
    return Outcome(failure_class=failure_class, cause=failure_class.value)


def _lost() -> Outcome:
    return replace(_failure(FailureClass.INFRASTRUCTURE), infrastructure=True)


def _success(hand: Hand) -> Outcome:
    key = f"{hand.dispatch.spec.job_id}-{hand.dispatch.attempt}.mp4"
    clip = Artifact(kind=ArtifactKind.CLIP, key=key, sha256="a" * 64, size_bytes=1, content_type="video/mp4")
    return Outcome(failure_class=None, artifacts=(clip,))


def _sweep(world: World, name: str, lane_ids: tuple[str, ...]) -> SweepRecord:
    chance = world.chance
    lanes = [plan(lane, lane, Task.T2V) for lane in lane_ids]
    limits = replace(lanes[0].limits, attempt_s=ATTEMPT_S)
    ladders = (("resident",), ("resident", "lean", "fp8"), ("resident", "", "fp8"))
    lanes = [replace(lane, host=HOST, device=DEVICE, limits=limits, rungs=chance.choice(ladders)) for lane in lanes]
    made = record(lanes, sweep_id=name, seeds=range(1, chance.randint(1, 2) + 1))
    expires_at = BEGAN_AT + timedelta(seconds=chance.randint(0, 300)) if chance.random() < 0.2 else None
    spec = replace(made.spec, priority=chance.randint(-1, 1), expires_at=expires_at)
    return replace(made, spec=spec, submitted_at=BEGAN_AT + timedelta(seconds=chance.randint(0, 9)))


@dataclass
class History:
    """One seed's life: a stormy time, then a calm one in which everything must end."""

    seed: int
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.seed)

    def live(self, storm_steps: int = 220, calm_steps: int = 6000) -> World:
        world = self.world
        for number in range(world.chance.randint(1, 2)):
            sweep = _sweep(world, f"sweep-{number}", tuple(world.workers))
            body = SweepSubmitted(record=sweep)
            event = SweepEvent(event_id=world.next_id(), sweep_id=sweep.sweep_id, stamp=world.stamp(), body=body)
            world.log.append(subjects.sweep_events(sweep.sweep_id), event, 0)
        world.scheduler.start()
        for worker in world.workers.values():
            worker.start()
        for _ in range(world.chance.choice((storm_steps // 2, storm_steps, 2 * storm_steps))):
            self._disturb()
            world.step()
        self._calm()
        for number in range(calm_steps):
            if number % 8 == 0:
                if self._is_settled():
                    return world
                self._tend()
            world.step()
        raise AssertionError(f"not ended: {[(e.spec.job_id, e.state) for e in world.scheduler.ledger.open_jobs()]}")

    def _disturb(self) -> None:
        """One event of fate, now and then."""
        world, chance = self.world, self.world.chance
        roll = chance.random()
        if roll > 0.15:
            return
        worker = chance.choice(list(world.workers.values()))
        jobs = list(world.scheduler.ledger.jobs)
        if roll < 0.010 and worker.is_up:
            worker.die()
        elif roll < 0.010 + world.repair and not worker.is_up:
            worker.start()
        elif roll < 0.050 and worker.answers:
            worker.is_connected = False
        elif roll < 0.080 and worker.is_up and not worker.is_connected:
            worker.reconnect()
        elif roll < 0.084:
            world.scheduler.crash()
        elif roll < 0.085 and world.device.is_orphan:
            world.device = Device()
        elif jobs and roll < 0.104:
            world.actors.append(world.scheduler.cancel(chance.choice(jobs)))
        elif jobs and roll < 0.120:
            world.actors.append(world.scheduler.retry(chance.choice(jobs)))
        elif roll < 0.135:
            self._reorder()
        else:
            self._tend()

    def _reorder(self) -> None:
        """A person pauses, resumes or ranks a sweep."""
        scheduler, chance = self.world.scheduler, self.world.chance
        paused = SweepPaused(paused=chance.random() < 0.4, by="ada")
        ranked = PrioritySet(priority=chance.randint(-2, 2), by="ada")
        if scheduler.ledger.sweeps:
            sweep_id = chance.choice(list(scheduler.ledger.sweeps))
            self.world.actors.append(scheduler.append_sweep(sweep_id, chance.choice((paused, ranked))))

    def _tend(self) -> None:
        """What a person does who looks: undrain a free device, resume what was paused."""
        scheduler = self.world.scheduler
        device = scheduler.ledger.devices.get((HOST, DEVICE))
        if device and device.drained_reason and not self.world.device.is_orphan:
            self.world.actors.append(scheduler.append_control(Undrained(by="ada")))
        if self.world.calm:
            for sweep_id, sweep in scheduler.ledger.sweeps.items():
                if sweep.is_paused:
                    self.world.actors.append(scheduler.append_sweep(sweep_id, SweepPaused(paused=False, by="ada")))

    def _calm(self) -> None:
        self.world.calm = True
        if self.world.device.is_orphan:
            self.world.device = Device()
        for worker in self.world.workers.values():
            if not worker.is_up:
                worker.start()
            if not worker.is_connected:
                worker.reconnect()

    def _is_settled(self) -> bool:
        ledger = self.world.scheduler.ledger
        if self.world.scheduler.cursor != len(self.world.log.written):
            return False  # the last thing written may be a retry
        return bool(ledger.sweeps) and all(
            sweep.settled is not None and sweep.settled.jobs == len(sweep.expected) and ledger.is_over(sweep_id)
            for sweep_id, sweep in ledger.sweeps.items()
        )
