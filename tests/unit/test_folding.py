"""Events become the view of a job that people and reports see."""

from __future__ import annotations

import pytest

from screentest import folding
from screentest.records import (
    Admitted,
    AttemptEnded,
    CancelRequested,
    Counts,
    FailureClass,
    Job,
    JobEvent,
    JobState,
)
from tests.made_sweeps import History, clip_of, failure, fold, plan, record, specs, stamp, success

[SPEC] = specs(record([plan("wan", "Wan")]))


def event(body: object, state: JobState, attempt: int = 1, second: float = 1) -> JobEvent:
    return JobEvent(
        event_id="e",
        sweep_id=SPEC.sweep_id,
        lane_id=SPEC.lane_id,
        job_id=SPEC.job_id,
        attempt=attempt,
        state=state,
        stamp=stamp(second),
        body=body,  # type: ignore[arg-type]
    )


def after(job: Job, body: object, state: JobState, attempt: int = 1) -> Job:
    return folding.fold(job, event(body, state, attempt))


def test_a_submitted_job_is_queued_without_attempts() -> None:
    job = History(SPEC).job
    assert (job.spec, job.state, job.attempts, job.submitted) == (SPEC, JobState.QUEUED, (), stamp(0))
    assert (job.ended, job.clip, job.failure_class) == (None, None, None)


def test_a_completed_job_has_its_clip_times_and_outcome() -> None:
    job = History(SPEC, second=3).complete(5).job
    [attempt] = job.attempts
    assert (job.state, job.clip, job.ended) == (JobState.COMPLETED, clip_of(SPEC), stamp(8))
    assert (attempt.admitted, attempt.started, attempt.ended) == (stamp(3), stamp(3), stamp(8))
    assert attempt.outcome == success(SPEC)
    assert (job.failure_class, job.cause) == (None, "")


def test_an_attempt_knows_rung_warmth_and_company() -> None:
    job = History(SPEC).job
    job = after(job, Admitted(rung=2, rung_name="offload"), JobState.ADMITTED)
    assert (job.attempts[0].rung, job.attempts[0].rung_name, job.attempts[0].started) == (2, "offload", None)
    job = History(SPEC).start(shared_gpu=True).job
    assert (job.attempts[0].shared_gpu, job.attempts[0].warm) == (True, False)


def test_a_second_attempt_leaves_the_first_as_it_was() -> None:
    lost = failure(FailureClass.INFRASTRUCTURE, "the worker died")
    history = History(SPEC).start().wait(2).end(lost).complete(4)
    first, second = history.job.attempts
    assert (first.attempt, first.outcome, first.ended) == (1, lost, stamp(2))
    assert (second.attempt, second.outcome) == (2, success(SPEC))
    assert fold(history.events[:4]).attempts == (first,)


def test_a_failed_job_carries_the_reason_of_its_end_not_of_an_attempt() -> None:
    history = History(SPEC).start().end(failure(FailureClass.NAN, "attempt's words"))
    job = history.give_up(FailureClass.INFRASTRUCTURE, "the last words", "do this").job
    assert (job.state, job.failure_class, job.cause, job.fix) == (
        JobState.FAILED,
        FailureClass.INFRASTRUCTURE,
        "the last words",
        "do this",
    )


def test_a_refused_job_has_the_class_of_a_refusal() -> None:
    job = History(SPEC).refuse("the env is not there", "run `make envs`").job
    assert (job.failure_class, job.cause, job.fix) == (
        FailureClass.PREFLIGHT_REFUSED,
        "the env is not there",
        "run `make envs`",
    )


def test_a_cancelled_job_says_who_did_it() -> None:
    job = History(SPEC).start().wait(1).cancel("ada").job
    assert (job.state, job.failure_class, job.cause) == (
        JobState.CANCELLED,
        FailureClass.CANCELLED,
        "cancelled by ada",
    )
    assert job.ended == stamp(1)


def test_a_requested_cancel_shows_before_the_end() -> None:
    job = after(History(SPEC).start().job, CancelRequested(by="ada", started=True), JobState.RUNNING)
    assert (job.cancel_requested, job.state, job.ended) == (True, JobState.RUNNING, None)


def test_a_job_that_does_not_begin_with_submitted_is_named() -> None:
    with pytest.raises(ValueError, match=f"{SPEC.job_id} begins with Admitted"):
        folding.fold(None, event(Admitted(rung=0, rung_name=""), JobState.ADMITTED))


def test_an_end_without_attempt_is_named() -> None:
    with pytest.raises(ValueError, match=f"{SPEC.job_id} has no attempt"):
        after(History(SPEC).job, AttemptEnded(outcome=success(SPEC)), JobState.ENDED)


def test_counts_speak_the_words_of_the_table() -> None:
    counts = folding.count(list(JobState))
    assert counts == Counts(queued=2, running=2, completed=1, failed=1, refused=1, cancelled=1)
    assert counts.total == len(JobState)
    assert folding.count([]) == Counts()


@pytest.mark.parametrize("state", list(JobState))
def test_the_status_of_a_terminal_job_is_its_state(state: JobState) -> None:
    words = {"queued", "running", "completed", "failed", "refused", "cancelled"}
    assert folding.status(state) in words
    assert (folding.status(state) not in {"queued", "running"}) == state.is_terminal
