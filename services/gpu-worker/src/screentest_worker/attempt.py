"""One attempt on the device: from its dispatch to what the runner made, or to the reason why there is nothing.

The order is the guarantee: preflight, proof that the device is ours alone, registration, the runner's lock, Started,
load, and what the lane's work orders (frames, or a judgement). What follows on the device's side of it is `finish`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from screentest.devices import is_cpu, is_unified
from screentest.errors import BadRequest, Unavailable
from screentest.kit import clock
from screentest.kit.bus import WrongLastSequence
from screentest.records import (
    Dispatch,
    FailureClass,
    Outcome,
    Proof,
    ProofKind,
    Started,
    Verdict,
    Version,
)
from screentest_runner.protocol import (
    Decoded,
    Failed,
    Generate,
    Judge,
    Judged,
    LockBusy,
    Locked,
    Open,
    Phase,
    PhaseChanged,
    Prepare,
)
from screentest_worker import device_memory, outcome, preflight, processes
from screentest_worker.computation import Computation, Requests, exit_of, peaks_of
from screentest_worker.hand import Dropped, InHand, TurnEnd, WithoutResult, WithResult
from screentest_worker.ledger import AfterRefusal, Ledger, StopReason, after_refusal
from screentest_worker.manifest import Circumstances
from screentest_worker.runner import Runner, RunnerSlot, WarmKey
from screentest_worker.spool import Spool
from screentest_worker.supervisor import Supervisor
from screentest_worker.telemetry import Telemetry, explain
from screentest_worker.work import Work

log = structlog.get_logger()

PROOF_PAUSE_S = 0.1
LONGEST_PROOF_PAUSE_S = 1.0
OPEN_WITHIN_S = 60.0  # a prepared runner may still import torch when it is told to open
LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A runner that holds the device's lock, and the proof that allowed it."""

    runner: Runner
    proof: Proof
    warm: bool
    log_from: int


class Turns:
    """Runs attempts on one device, one after the other."""

    def __init__(
        self,
        *,
        work: Work,
        device: str,
        scratch: Path,
        not_proven_s: float,
        cancel_grace_s: float,
        ledger: Ledger,
        telemetry: Telemetry,
        slot: RunnerSlot,
        supervisor: Supervisor,
        spool: Spool,
    ) -> None:
        self._work = work
        self._device = device
        self._scratch = scratch
        self._not_proven_s = not_proven_s
        self._cancel_grace_s = cancel_grace_s
        self._ledger = ledger
        self._telemetry = telemetry
        self._slot = slot
        self._supervisor = supervisor
        self._spool = spool

    async def run(self, hand: InHand) -> TurnEnd:
        """One attempt, up to the moment when the device is free for the next one."""
        decision = await self._preflight(hand.dispatch)
        if decision.verdict is Verdict.REFUSED:
            refused = outcome.failed(FailureClass.PREFLIGHT_REFUSED, decision.reason, "preparing", fix=decision.fix)
            return self._without_result(hand, refused)
        await self._enter(hand, Phase.PREPARING, clock.boottime_ns())
        order = await self._order(hand)
        if isinstance(order, Outcome):
            return self._without_result(hand, order)
        try:
            return await self._carry_out(hand, order)
        finally:
            self._work.forget(order)

    async def _carry_out(self, hand: InHand, order: Generate | Judge) -> TurnEnd:
        hold = await self._take_device(hand)
        if isinstance(hold, Dropped):
            return hold
        if isinstance(hold, Outcome):
            killed = await self._slot.retire(hold.cause)
            return self._without_result(hand, replace(hold, survivors_killed=killed))
        if not await self._start(hand, hold):
            if not hold.warm:  # it holds the lock but has loaded nothing
                await self._slot.retire("the attempt was withdrawn before it started")
            return Dropped()
        return await self._compute(hand, hold, order)

    async def _preflight(self, dispatch: Dispatch) -> preflight.Decision:
        """Without memory: that is looked at when the device is proven ours alone."""
        return await asyncio.to_thread(self._work.preflight, dispatch.spec, dispatch.rung, None)

    # ---- before Started

    async def _order(self, hand: InHand) -> Generate | Judge | Outcome:
        """What the runner will be asked, with everything fetched."""
        deadline, pause_s = time.monotonic() + self._not_proven_s, PROOF_PAUSE_S
        while True:
            try:
                return await self._work.order(hand.dispatch, _attempt_id(hand), self.result_path(hand))
            except BadRequest as error:
                # Of the job, not of the machine: the next attempt would find the same.
                fix = self._work.bad_input_fix
                return outcome.failed(FailureClass.CONDITIONING, str(error), "preparing", fix=fix)
            except (Unavailable, OSError) as error:
                if time.monotonic() + pause_s > deadline:
                    cause = f"what the job needs cannot be fetched: {error}"
                    return outcome.infrastructure(cause, "preparing", "start the depot and retry")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PROOF_PAUSE_S)

    async def _take_device(self, hand: InHand) -> Hold | Outcome | Dropped:
        """A runner that holds the lock of a device proven to be ours alone, or why there is none in time."""
        deadline, pause_s = time.monotonic() + self._not_proven_s, PROOF_PAUSE_S
        while True:
            try:
                found = await self._try_device(hand)
            except Unavailable as error:  # no answer is no proof
                found = str(error)
            except OSError as error:
                return outcome.infrastructure(f"the runner cannot start: {error}", "preparing", "run `make envs`")
            if not isinstance(found, str):
                return found
            if hand.stop_reason is StopReason.GPU_FAULT:
                return hand.stopped()
            if time.monotonic() + pause_s > deadline:
                return outcome.not_proven(self._device, self._not_proven_s, found)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PROOF_PAUSE_S)
            if not await self._is_still_admitted(hand):
                return Dropped()

    async def _try_device(self, hand: InHand) -> Hold | Outcome | str:
        """One try: the hold, a final outcome, or in words why not yet."""
        key = self._key(hand.dispatch)
        current = self._slot.current
        if current is not None and current.is_open and current.key != key:
            await self._slot.retire("another rung or other weights come next")
        # A warm runner has its lock file already: asking again would only cost time between two jobs.
        known = self._telemetry.known_facts if self._slot.is_warm_for(key) else None
        # The interpreter starts while telemetry looks; it opens nothing before it is told to.
        runner = await self._slot.started(known or await self._telemetry.facts())
        if runner.key == key:
            return await self._continued(runner)
        proof = await self._telemetry.proof(ProofKind.HANDOVER)
        if not proof.clean:
            return explain(proof)
        return await self._short_of_memory(hand.dispatch) or await self._open(runner, proof)

    async def _short_of_memory(self, dispatch: Dispatch) -> Outcome | None:
        """Ends an attempt that cannot fit, before anything is read: the scheduler admits it at a lower rung.

        Only now that nothing of ours is on the device what is free says what this attempt can have.
        """
        if not self._work.counts_memory(dispatch.spec):
            return None
        memory = device_memory.read(await self._telemetry.facts())
        found = self._work.shortage(dispatch, memory)
        if found is None:
            return None
        failure_class = FailureClass.OOM_LOAD if found.has_lower_rung else FailureClass.PREFLIGHT_REFUSED
        return outcome.failed(failure_class, found.reason, "preparing", fix=found.fix)

    async def _continued(self, runner: Runner) -> Hold | str:
        await self._telemetry.register(runner.process)  # telemetry may have been restarted meanwhile
        proof = await self._telemetry.proof(ProofKind.CONTINUE, runner.process)
        log_from = _size(runner.child.log_path)
        return Hold(runner=runner, proof=proof, warm=True, log_from=log_from) if proof.clean else explain(proof)

    async def _open(self, runner: Runner, proof: Proof) -> Hold | Outcome | str:
        runner.is_open = True  # even if telemetry's answer gets lost: it may be registered
        await self._telemetry.register(runner.process)
        runner.send(Open(lock_fd=runner.lock_fd, device="cpu" if is_cpu(self._device) else "cuda:0"))
        answer = await self._opened(runner)
        match answer:
            case Locked():
                return Hold(runner=runner, proof=proof, warm=False, log_from=0)
            case LockBusy():
                # Registered but without the lock it would spoil the next proof.
                await self._slot.retire("another process took the lock first")
                holder = await self._telemetry.proof(ProofKind.HANDOVER)
                return explain(holder) if not holder.clean else "another process held the lock for a moment"
            case _:
                return answer

    async def _opened(self, runner: Runner) -> Locked | LockBusy | Outcome:
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                while True:
                    match await runner.receive():
                        case Locked() | LockBusy() as answer:
                            return answer
                        case Failed(failure_class=failure_class, message=message, phase=phase):
                            return outcome.from_reply(failure_class, message, phase)
                        case None:
                            return outcome.from_exit(exit_of(runner, None), "preparing")
                        case _:  # what an earlier Prepare still had to say
                            pass
        except TimeoutError:
            return outcome.infrastructure(f"the runner did not open the device within {OPEN_WITHIN_S:g} s", "preparing")

    async def _is_still_admitted(self, hand: InHand) -> bool:
        """Whether waiting for the device is still worth it: a queued job may be cancelled meanwhile."""
        last = await self._ledger.last(hand.dispatch)
        return last is not None and last.sequence == hand.dispatch.admitted_sequence

    async def _start(self, hand: InHand, hold: Hold) -> bool:
        """Appends Started; False when the job has moved on since it was admitted."""
        shared = any(process.foreign for process in hold.proof.processes)
        body = Started(runner=hold.runner.process, proof=hold.proof, warm=hold.warm, shared_gpu=shared)
        try:
            hand.sequence = await self._ledger.start(hand.dispatch, body)
        except WrongLastSequence:
            # The answer of an earlier try may be lost, and a person's cancel may stand behind our Started already.
            last = await self._ledger.last(hand.dispatch)
            if last is None or after_refusal(last.event, hand.dispatch.attempt) is not AfterRefusal.END_CANCELLED:
                return False
            hand.sequence = last.sequence
            hand.request_stop(StopReason.CANCELLED)
        hand.has_started = True
        hand.began_ns = clock.boottime_ns()
        hand.deadline = time.monotonic() + hand.dispatch.spec.limits.attempt_s
        self._spool.note(hand.dispatch, hand.phases.current)
        log.info("attempt_started", warm=hold.warm, runner=hold.runner.process.pid)
        return True

    # ---- after Started

    async def _compute(self, hand: InHand, hold: Hold, order: Generate | Judge) -> TurnEnd:
        computation = Computation(
            hand=hand,
            runner=hold.runner,
            requests=self._requests(hand, order),
            key=self._key(hand.dispatch),
            supervisor=self._supervisor,
            cancel_grace_s=self._cancel_grace_s,
            entered=lambda message: self._runner_entered(hand, message),
        )
        try:
            found = await computation.run(warm=hold.warm)
            if isinstance(found, Decoded | Judged):
                hold.runner.used_at = time.monotonic()
                return self._with_result(hand, hold, found, computation)
            return await self._failed(hand, hold, found, computation)
        except BaseException:  # nobody else knows of the helpers and the result
            computation.end_helpers()
            self.remove_result(hand)
            raise

    def _with_result(self, hand: InHand, hold: Hold, answer: Decoded | Judged, computation: Computation) -> WithResult:
        known = Outcome(
            failure_class=None,
            versions=self._versions(answer.versions),
            peak_device_memory_bytes=answer.peak_device_bytes,
            peak_host_memory_bytes=answer.peak_rss_bytes,
            peak_memory_by_phase=peaks_of(answer),
            model_loads=computation.loads,
            marks=self._work.ran(hand.dispatch).marks,
            gpu_name=self._gpu_name,
        )
        return WithResult(
            answer=answer,
            path=self.result_path(hand),
            helpers=computation.helpers,
            outcome=computation.with_steps(known),
            log=_tail(hold.runner.child.log_path, hold.log_from),
            circumstances=self._circumstances(hand, hold),
        )

    async def _failed(self, hand: InHand, hold: Hold, ending: Outcome, computation: Computation) -> TurnEnd:
        """Ends what must end, then tells what is known."""
        peak = processes.peak_rss_bytes(hold.runner.process.pid)
        computation.end_helpers()
        killed = 0
        is_sound = outcome.keeps_runner(ending.failure_class) or computation.has_let_go
        if is_sound and hold.runner.child.is_alive:
            hold.runner.used_at = time.monotonic()
        else:
            silent = ending.failure_class in {FailureClass.STALLED, FailureClass.TIMEOUT}
            killed = await self._slot.retire(ending.cause, dump_first=silent)
            ending = await self._blamed(hand, ending)
        self.remove_result(hand)
        log.warning("attempt_failed", failure_class=ending.failure_class, cause=ending.cause, killed=killed)
        if hand.stop_reason is StopReason.ABANDONED:
            return Dropped()
        known = replace(
            computation.with_steps(self._explained(ending)),
            versions=self._versions(computation.versions),
            peak_host_memory_bytes=peak,
            model_loads=computation.loads,
            survivors_killed=killed,
            marks=self._work.ran(hand.dispatch).marks,
            gpu_name=self._gpu_name,
        )
        text = _tail(hold.runner.child.log_path, hold.log_from) + computation.traceback.encode()
        return self._without_result(hand, known, text[-LOG_BYTES:], self._circumstances(hand, hold))

    def _explained(self, ending: Outcome) -> Outcome:
        """With the fix that fits this lane's work, where that differs."""
        better = self._work.fixes.get(ending.failure_class) if ending.failure_class is not None else None
        return ending if better is None else replace(ending, fix=better)

    async def _blamed(self, hand: InHand, ending: Outcome) -> Outcome:
        """The same ending, or the device's own failure: the runner hears of that first, and in many words."""
        if hand.stop_reason is not None or is_cpu(self._device):
            return ending
        try:
            fault = (await self._telemetry.proof(ProofKind.HANDOVER)).fault
        except Unavailable as error:
            log.warning("device_not_asked", error=str(error))
            return ending
        if fault is None or not fault.ends_attempts or fault.stamp.boot_id != clock.boot_id():
            return ending
        if fault.stamp.boottime_ns < hand.began_ns:
            return ending
        return outcome.gpu_fault(f"{fault.cause}; the runner's end: {ending.cause}", ending.phase)

    def _without_result(
        self, hand: InHand, ending: Outcome, text: bytes = b"", circumstances: Circumstances | None = None
    ) -> WithoutResult:
        return WithoutResult(
            outcome=replace(ending, phases=hand.phases.times(clock.boottime_ns())),
            log=text,
            circumstances=circumstances or self._circumstances(hand, None),
        )

    def _circumstances(self, hand: InHand, hold: Hold | None) -> Circumstances:
        ran = self._work.ran(hand.dispatch)
        return Circumstances(
            ran=ran.spec,
            warm=hold is not None and hold.warm,
            shared_gpu=hold is not None and any(process.foreign for process in hold.proof.processes),
            rung_name=ran.rung_name,
            device=self._telemetry.known_facts,
        )

    def _versions(self, found: dict[str, str]) -> tuple[Version, ...]:
        known = self._telemetry.known_facts
        driver = {"driver": known.driver_version} if known is not None and known.driver_version else {}
        return tuple(Version(name=name, version=version) for name, version in sorted({**found, **driver}.items()))

    @property
    def _is_unified(self) -> bool:
        return is_unified(self._device, self._telemetry.known_facts)

    @property
    def _gpu_name(self) -> str | None:
        known = self._telemetry.known_facts
        return known.gpu_name if known is not None else None

    async def _enter(self, hand: InHand, phase: Phase, at_boottime_ns: int) -> None:
        hand.phases.enter(phase.value, at_boottime_ns)
        if hand.has_started:
            self._spool.note(hand.dispatch, phase.value)
        await hand.feed.phase(phase.value)

    def result_path(self, hand: InHand) -> Path:
        """Where the runner puts what it makes."""
        return self._scratch / f"{_attempt_id(hand)}.result"

    def remove_result(self, hand: InHand) -> None:
        """Frames are hundreds of MiB of scratch; a runner that lives may write them again."""
        self.result_path(hand).unlink(missing_ok=True)

    async def _runner_entered(self, hand: InHand, message: PhaseChanged) -> None:
        """A phase of the runner, but for `decoded`: that one is told when the device is really free."""
        if message.phase is not Phase.DECODED:
            await self._enter(hand, message.phase, message.at_boottime_ns)

    def _requests(self, hand: InHand, order: Generate | Judge) -> Requests:
        return Requests(
            prepare=Prepare(lane=self._work.content),
            load=self._work.load(hand.dispatch, _attempt_id(hand), unified_memory=self._is_unified),
            order=order,
        )

    def _key(self, dispatch: Dispatch) -> WarmKey:
        return WarmKey(
            lane_digest=dispatch.spec.lane_digest,
            weights=self._work.weights(dispatch.spec),
            rung=dispatch.rung,
            memory_cap_gib=dispatch.spec.memory_cap_gib,
        )


def _attempt_id(hand: InHand) -> str:
    job_id, attempt = hand.key
    return f"{job_id}-{attempt}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tail(path: Path, start: int) -> bytes:
    """What was written after ``start``, at most the last 1 MiB of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, _size(path) - LOG_BYTES))
            return file.read(LOG_BYTES)
    except FileNotFoundError:
        return b""
