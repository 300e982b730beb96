"""What a job's events mean to the scheduler, and which event must follow. Pure.

Attempts lost to the machine and attempts lost to the job are counted apart: a machine may lose a few, a job none. An
attempt that ran out of device memory is neither: the next rung of the ladder follows it, down to the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from screentest.records import (
    Admitted,
    Alive,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    Completed,
    Failed,
    FailureClass,
    JobEvent,
    JobSpec,
    JobState,
    Outcome,
    Refused,
    Stamp,
    Started,
    Submitted,
)
from screentest_scheduler import ladder

# A worker that died once may be bad luck; a job that loses its worker three times is the likelier cause.
INFRASTRUCTURE_BUDGET = 3
# In a row. What ends attempts before they start (no keyframe, no runner) is not the job's doing, but it may never heal.
UNSTARTED_BUDGET = 10
# Heartbeats come every 2 s; a broker restart or a leader change takes up to 7 s.
WORKER_LOST_AFTER_S = 60.0
# The worker enforces attempt_s itself; this is how long after that the scheduler does it instead.
ATTEMPT_GRACE_S = 60.0

# An admitted attempt waits for the proof (60 s) and the interpreter only; ten times that is no waiting any more.
START_WITHIN_S = 600.0

Terminal = Completed | Failed | Refused | Cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """All the scheduler keeps of a job: small, because ten thousand finished ones stay in memory.

    ``sequence`` is the last of the job's subject: what the next append must expect. ``outcome`` is kept only while
    the attempt has ended and nothing has followed yet. ``began``: when the current attempt Started, None before that;
    ``is_warm``: on a loaded runner; ``shared_gpu``: it found processes of strangers on the device. ``clip``: of a
    completed job, with the probe's ``flags``. ``presence``: of a judgement, see JudgementFacts.
    """

    spec: JobSpec
    sequence: int
    state: JobState
    submitted: Stamp
    attempt: int = 0
    rung: int = 0
    admitted: Stamp | None = None
    began: Stamp | None = None
    is_warm: bool = False
    shared_gpu: bool = False
    outcome: Outcome | None = None
    infrastructure_losses: int = 0
    unstarted_losses: int = 0
    cancel_by: str = ""
    clip: Artifact | None = None
    flags: tuple[str, ...] = ()
    presence: float | None = None

    @property
    def holds_attempt(self) -> bool:
        """An attempt is out: admitted or running, not yet ended."""
        return self.state in {JobState.ADMITTED, JobState.RUNNING}

    @property
    def is_cancelling(self) -> bool:
        return bool(self.cancel_by) and not self.state.is_terminal

    @property
    def may_be_admitted(self) -> bool:
        """Queued, or its last attempt was lost to the machine within the budget, or a lower rung is left to try."""
        if self.cancel_by:
            return False
        return self.state is JobState.QUEUED or (self.state is JobState.ENDED and terminal(self) is None)


def submitted_entry(spec: JobSpec, stamp: Stamp, sequence: int) -> Entry:
    return Entry(spec=spec, sequence=sequence, state=JobState.QUEUED, submitted=stamp)


def apply(entry: Entry, event: JobEvent, sequence: int) -> Entry:
    """The entry after one more event. An event it has seen before changes nothing."""
    if sequence <= entry.sequence:
        return entry
    entry = replace(entry, sequence=sequence, state=event.state)
    match event.body:
        case Submitted():
            return entry
        case Admitted(rung=rung):
            return replace(entry, attempt=event.attempt, rung=rung, admitted=event.stamp, began=None, outcome=None)
        case Started(warm=warm, shared_gpu=shared):
            return replace(entry, began=event.stamp, is_warm=warm, shared_gpu=shared, unstarted_losses=0)
        case CancelRequested(by=by):
            return replace(entry, cancel_by=by)
        case AttemptEnded(outcome=outcome):
            return _ended(entry, outcome)
        case Completed(clip=clip):
            return replace(entry, outcome=None, clip=clip)
        case Failed() | Refused() | Cancelled():
            return replace(entry, outcome=None)
        case _:
            assert_never(event.body)


def _ended(entry: Entry, outcome: Outcome) -> Entry:
    flags = outcome.clip.flags if outcome.clip else ()
    presence = outcome.judgement.presence if outcome.judgement else None
    entry = replace(entry, flags=flags, presence=presence)
    if not outcome.infrastructure:
        return replace(entry, outcome=outcome)
    if entry.began is None:
        return replace(entry, outcome=outcome, unstarted_losses=entry.unstarted_losses + 1)
    return replace(entry, outcome=outcome, infrastructure_losses=entry.infrastructure_losses + 1)


def terminal(entry: Entry) -> Terminal | None:
    """The one terminal event that must follow now; None while the job may still run or be tried again."""
    if entry.cancel_by and entry.state is not JobState.RUNNING:
        return None if entry.state.is_terminal else Cancelled(by=entry.cancel_by)
    if entry.state is not JobState.ENDED or entry.outcome is None:
        return None
    outcome = entry.outcome
    if outcome.infrastructure:
        return _lost_for_good(entry, outcome)
    if ladder.rung_after(entry.spec, entry.rung, outcome) is not None:
        return None
    match outcome.failure_class:
        case None:
            return _completed(entry.spec, outcome)
        case FailureClass.CANCELLED:
            return Cancelled(by=entry.cancel_by or "the worker")
        case FailureClass.PREFLIGHT_REFUSED:
            return Refused(reason=outcome.cause, fix=outcome.fix)
        case failure_class:
            return Failed(failure_class=failure_class, cause=outcome.cause, fix=outcome.fix)


def next_rung(entry: Entry, first_rung: int) -> int:
    """The rung of the attempt to admit. ``first_rung``: where this job begins."""
    if entry.attempt == 0:
        return first_rung
    lower = ladder.rung_after(entry.spec, entry.rung, entry.outcome) if entry.outcome else None
    return entry.rung if lower is None else lower


def state_after(body: Terminal) -> JobState:
    match body:
        case Completed():
            return JobState.COMPLETED
        case Failed():
            return JobState.FAILED
        case Refused():
            return JobState.REFUSED
        case Cancelled():
            return JobState.CANCELLED
        case _:
            assert_never(body)


def expired(entry: Entry, now: datetime) -> Failed | None:
    """A job that waits to be admitted, for the first time or again, ends when its time has passed."""
    limit = entry.spec.expires_at
    if limit is None or not entry.may_be_admitted or now < limit:
        return None
    cause = f"expired at {limit:%Y-%m-%d %H:%M:%S} UTC before it could start"
    return Failed(failure_class=FailureClass.TIMEOUT, cause=cause, fix="submit again with a later expires_at")


def lost(entry: Entry, now: Stamp, worker_silent_s: float, *, is_finishing: bool = False) -> Outcome | None:
    """The outcome to write for a worker that cannot: it is silent, or the attempt is far past its limit.

    is_finishing: the live worker says that the attempt encodes or uploads. Its clip may wait in the spool for the
    depot, or for us: the worker gives up by itself, and only it knows when.
    """
    if not entry.holds_attempt:
        return None
    if worker_silent_s >= WORKER_LOST_AFTER_S:
        return Outcome(
            failure_class=FailureClass.INFRASTRUCTURE,
            cause=f"no sign of life from the worker of {entry.spec.lane_id} for {worker_silent_s:.0f} s",
            fix="start the worker again (`screentest up`); the job is tried again by itself",
            infrastructure=True,
        )
    if entry.began is None and entry.admitted is not None and elapsed_s(entry.admitted, now) >= START_WITHIN_S:
        return Outcome(
            failure_class=FailureClass.INFRASTRUCTURE,
            cause=f"the worker of {entry.spec.lane_id} is alive but has not started it within {START_WITHIN_S:.0f} s",
            fix="look at the worker's log; the job is tried again by itself",
            infrastructure=True,
        )
    if is_finishing:
        return None
    limit_s = entry.spec.limits.attempt_s
    # From Started, as the worker counts: waiting for the keyframe, the proof and the runner is not the attempt's time.
    if entry.began is not None and elapsed_s(entry.began, now) >= limit_s + ATTEMPT_GRACE_S:
        return Outcome(
            failure_class=FailureClass.TIMEOUT,
            cause=f"no outcome {ATTEMPT_GRACE_S:.0f} s after the attempt's limit of {limit_s:g} s",
            fix="look at the worker's log; a retry has limits.attempt_s of the lane file: raise it for an honest job",
        )
    return None


def is_finishing(entry: Entry, alive: Alive) -> bool:
    """Whether this heartbeat of the job's worker says that the current attempt encodes or uploads.

    A heartbeat names jobs, not attempts: one from before the attempt began, or with the job on the device, speaks of
    an earlier attempt of it that is still being acknowledged.
    """
    if entry.began is None or alive.job_id == entry.spec.job_id:
        return False
    return entry.spec.job_id in alive.finishing_job_ids and elapsed_s(entry.began, alive.stamp) > 0


def elapsed_s(since: Stamp, now: Stamp) -> float:
    """By the boot clock where both are of one boot: the wall clock may have been set meanwhile."""
    if since.boot_id == now.boot_id:
        return (now.boottime_ns - since.boottime_ns) / 1e9
    return (now.at - since.at).total_seconds()


def _completed(spec: JobSpec, outcome: Outcome) -> Completed | Failed:
    kind = ArtifactKind.CLIP if spec.judged is None else ArtifactKind.JUDGEMENT
    made = outcome.artifact(kind)
    if made is None:
        cause = f"the worker reported success without a {kind.value}"
        return Failed(failure_class=FailureClass.UNCLASSIFIED, cause=cause)
    return Completed(clip=made) if kind is ArtifactKind.CLIP else Completed(judgement=made)


def _lost_for_good(entry: Entry, outcome: Outcome) -> Failed | None:
    """None while a budget lasts."""
    if entry.infrastructure_losses >= INFRASTRUCTURE_BUDGET:
        lost = f"{entry.infrastructure_losses} attempts were lost through no fault of the job"
    elif entry.unstarted_losses >= UNSTARTED_BUDGET:
        lost = f"{entry.unstarted_losses} attempts in a row did not even start"
    else:
        return None
    cause = f"{lost}, the last one: {outcome.cause}"
    return Failed(failure_class=FailureClass.INFRASTRUCTURE, cause=cause, fix=outcome.fix)
