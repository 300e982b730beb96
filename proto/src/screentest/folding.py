"""Events to job views: the one place that knows what a sequence of events means. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from screentest.records import (
    Admitted,
    Attempt,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    Completed,
    Counts,
    Failed,
    FailureClass,
    Job,
    JobEvent,
    JobState,
    Refused,
    Started,
    Submitted,
)


def fold(job: Job | None, event: JobEvent) -> Job:
    """The job after one more event, in stream order. ValueError when a job does not begin with Submitted."""
    if isinstance(event.body, Submitted):
        return Job(spec=event.body.spec, state=event.state, attempts=(), submitted=event.stamp)
    if job is None:
        raise ValueError(f"job {event.job_id} begins with {type(event.body).__name__}, not with Submitted")
    return _apply(replace(job, state=event.state), event)


def _apply(job: Job, event: JobEvent) -> Job:
    match event.body:
        case Submitted():
            return job
        case Admitted(rung=rung, rung_name=name):
            admitted = Attempt(attempt=event.attempt, rung=rung, rung_name=name, admitted=event.stamp)
            return replace(job, attempts=(*job.attempts, admitted))
        case Started(warm=warm, shared_gpu=shared):
            return _last_attempt(job, started=event.stamp, warm=warm, shared_gpu=shared)
        case CancelRequested():
            return replace(job, cancel_requested=True)
        case AttemptEnded(outcome=outcome):
            return _last_attempt(job, ended=event.stamp, outcome=outcome)
        case Completed(clip=clip, judgement=judgement):
            return replace(job, ended=event.stamp, clip=clip, judgement=judgement)
        case Failed(failure_class=failure_class, cause=cause, fix=fix):
            return replace(job, ended=event.stamp, failure_class=failure_class, cause=cause, fix=fix)
        case Refused(reason=reason, fix=fix):
            refused = FailureClass.PREFLIGHT_REFUSED
            return replace(job, ended=event.stamp, failure_class=refused, cause=reason, fix=fix)
        case Cancelled(by=by):
            return replace(job, ended=event.stamp, failure_class=FailureClass.CANCELLED, cause=f"cancelled by {by}")
        case _:
            assert_never(event.body)


def _last_attempt(job: Job, **changes: object) -> Job:
    if not job.attempts:
        raise ValueError(f"job {job.spec.job_id} has no attempt to change; its history is not in order")
    return replace(job, attempts=(*job.attempts[:-1], replace(job.attempts[-1], **changes)))  # type: ignore[arg-type]


def count(states: Iterable[JobState]) -> Counts:
    """Jobs by the status words of the table; admitted counts as queued, ended as running."""
    tally = dict.fromkeys(("queued", "running", "completed", "failed", "refused", "cancelled"), 0)
    for state in states:
        tally[status(state)] += 1
    return Counts(**tally)


def status(state: JobState) -> str:
    """The status word of the model table: queued, running, completed, failed, refused, cancelled."""
    match state:
        case JobState.ADMITTED:
            return "queued"
        case JobState.ENDED:
            return "running"
        case _:
            return state.value
