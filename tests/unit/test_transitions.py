"""What a job's events mean and which event must follow: the table, case by case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from screentest.records import (
    Admitted,
    Alive,
    Artifact,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    Completed,
    Failed,
    FailureClass,
    JobEvent,
    JobState,
    Judged,
    JudgementFacts,
    JudgePurpose,
    Outcome,
    Refused,
    Stamp,
    Started,
    Submitted,
)
from screentest_scheduler import transitions
from screentest_scheduler.ladder import OUT_OF_MEMORY
from screentest_scheduler.transitions import Entry
from tests.made_judgings import judgement_of, ref
from tests.made_sweeps import BEGAN_AT, RUNNER, clip_of, plan, proof, record, specs, stamp, success

[SPEC] = specs(record([plan("wan", "Wan")]))
INFRASTRUCTURE = Outcome(
    failure_class=FailureClass.INFRASTRUCTURE, cause="the worker died", fix="start it", infrastructure=True
)
STATES = {
    Admitted: JobState.ADMITTED,
    Started: JobState.RUNNING,
    AttemptEnded: JobState.ENDED,
    Completed: JobState.COMPLETED,
    Failed: JobState.FAILED,
    Refused: JobState.REFUSED,
    Cancelled: JobState.CANCELLED,
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """An entry and the events behind it; ``then`` adds one in the next sequence."""

    entry: Entry

    def then(self, body: Any, *, second: float = 0) -> Told:
        entry = self.entry
        attempt = entry.attempt + isinstance(body, Admitted)
        state = STATES.get(type(body), entry.state)
        return Told(
            entry=transitions.apply(entry, event(body, state, attempt, stamp(second)), entry.sequence + 1),
        )

    def admitted(self, second: float = 0, rung: int = 0) -> Told:
        return self.then(Admitted(rung=rung, rung_name="r"), second=second)

    def started(self, second: float = 0) -> Told:
        return self.then(Started(runner=RUNNER, proof=proof(), warm=False), second=second)

    def ended(self, outcome: Outcome) -> Told:
        return self.then(AttemptEnded(outcome=outcome))

    def cancel(self) -> Told:
        return self.then(CancelRequested(by="ada", started=self.entry.state is JobState.RUNNING))


def event(body: Any, state: JobState, attempt: int = 0, at: Stamp | None = None) -> JobEvent:
    return JobEvent(
        event_id="e",
        sweep_id=SPEC.sweep_id,
        lane_id=SPEC.lane_id,
        job_id=SPEC.job_id,
        attempt=attempt,
        state=state,
        stamp=at or stamp(0),
        body=body,
    )


QUEUED = Told(entry=transitions.submitted_entry(SPEC, stamp(0), 10))
RUNNING = QUEUED.admitted().started()


def failed(failure_class: FailureClass) -> Outcome:
    return Outcome(failure_class=failure_class, cause="it broke", fix="mend it")


# ---- folding


def test_a_new_job_is_queued_and_may_be_admitted() -> None:
    entry = QUEUED.entry
    assert (entry.state, entry.attempt, entry.sequence) == (JobState.QUEUED, 0, 10)
    assert entry.may_be_admitted
    assert not entry.holds_attempt


@pytest.mark.parametrize("sequence", [1, 9, 10])
def test_an_event_seen_before_changes_nothing(sequence: int) -> None:
    late = event(Admitted(rung=1, rung_name="r"), JobState.ADMITTED, 1)
    assert transitions.apply(QUEUED.entry, late, sequence) is QUEUED.entry


def test_admission_begins_a_fresh_attempt() -> None:
    entry = RUNNING.ended(INFRASTRUCTURE).admitted(second=9, rung=2).entry
    assert (entry.state, entry.attempt, entry.rung) == (JobState.ADMITTED, 2, 2)
    assert (entry.began, entry.outcome) == (None, None)
    assert entry.holds_attempt
    assert not entry.may_be_admitted


def test_a_started_attempt_knows_since_when() -> None:
    entry = QUEUED.admitted(second=1).started(second=7).entry
    assert (entry.state, entry.began) == (JobState.RUNNING, stamp(7))
    assert entry.holds_attempt


def test_a_cancel_request_keeps_the_state() -> None:
    for told in (QUEUED, QUEUED.admitted(), RUNNING):
        entry = told.cancel().entry
        assert (entry.state, entry.cancel_by) == (told.entry.state, "ada")
        assert entry.is_cancelling
        assert not entry.may_be_admitted


def test_a_terminal_event_drops_what_only_deciding_needed() -> None:
    entry = RUNNING.ended(failed(FailureClass.NAN)).then(Failed(failure_class=FailureClass.NAN, cause="")).entry
    assert (entry.state, entry.outcome) == (JobState.FAILED, None)
    assert not entry.is_cancelling


def test_submitted_again_changes_only_the_sequence() -> None:
    again = transitions.apply(QUEUED.entry, event(Submitted(spec=SPEC), JobState.QUEUED), 11)
    assert again == replace(QUEUED.entry, sequence=11)


# ---- what must follow


@pytest.mark.parametrize(
    "told",
    [QUEUED, QUEUED.admitted(), RUNNING, RUNNING.cancel()],
    ids=["queued", "admitted", "running", "running, cancel asked"],
)
def test_nothing_ends_a_job_while_its_attempt_is_to_come_or_out(told: Told) -> None:
    assert transitions.terminal(told.entry) is None


def test_a_clip_completes_the_job() -> None:
    assert transitions.terminal(RUNNING.ended(success(SPEC)).entry) == Completed(clip=clip_of(SPEC))


def test_success_without_a_clip_is_a_failure() -> None:
    ending = transitions.terminal(RUNNING.ended(Outcome(failure_class=None)).entry)
    assert isinstance(ending, Failed)
    assert ending.failure_class is FailureClass.UNCLASSIFIED
    assert "without a clip" in ending.cause


def test_a_judge_job_is_completed_with_its_judgement_and_with_nothing_else() -> None:
    judged = Judged(
        purpose=JudgePurpose.CLIP, job_id="j", lane_id="l", key="k", sha256="c", size_bytes=1, rubric=ref("a")
    )
    judging = replace(RUNNING.entry, spec=replace(RUNNING.entry.spec, judged=judged))
    made = judgement_of(judging.spec, "e" * 64)
    facts = JudgementFacts(tier="b", method="embedding", presence=0.4)

    def ending(*artifacts: Artifact) -> object:
        outcome = Outcome(failure_class=None, artifacts=artifacts, judgement=facts)
        return transitions.terminal(replace(judging, state=JobState.ENDED, outcome=outcome))

    assert ending(made) == Completed(judgement=made)
    failed = ending(clip_of(judging.spec))
    assert isinstance(failed, Failed)
    assert "without a judgement" in failed.cause


@pytest.mark.parametrize(
    "failure_class",
    sorted(set(FailureClass) - {FailureClass.CANCELLED, FailureClass.PREFLIGHT_REFUSED}),
)
def test_a_failure_of_the_job_itself_ends_it_at_once_with_its_own_words(failure_class: FailureClass) -> None:
    entry = RUNNING.ended(failed(failure_class)).entry
    assert transitions.terminal(entry) == Failed(failure_class=failure_class, cause="it broke", fix="mend it")
    assert not entry.may_be_admitted
    assert (entry.infrastructure_losses, entry.unstarted_losses) == (0, 0)


def test_a_refusal_before_the_start_refuses_the_job() -> None:
    entry = QUEUED.admitted().ended(failed(FailureClass.PREFLIGHT_REFUSED)).entry
    assert transitions.terminal(entry) == Refused(reason="it broke", fix="mend it")


def test_a_cancelled_attempt_cancels_the_job_in_the_name_of_who_asked() -> None:
    cancelled = failed(FailureClass.CANCELLED)
    assert transitions.terminal(RUNNING.cancel().ended(cancelled).entry) == Cancelled(by="ada")
    assert transitions.terminal(RUNNING.ended(cancelled).entry) == Cancelled(by="the worker")


@pytest.mark.parametrize("told", [QUEUED, QUEUED.admitted()], ids=["queued", "admitted"])
def test_a_cancel_before_the_start_ends_the_job_at_once(told: Told) -> None:
    assert transitions.terminal(told.cancel().entry) == Cancelled(by="ada")


@pytest.mark.parametrize("outcome", [success(SPEC), failed(FailureClass.NAN), INFRASTRUCTURE])
def test_a_cancel_of_a_running_attempt_wins_whatever_its_end(outcome: Outcome) -> None:
    entry = RUNNING.cancel().ended(outcome).entry
    assert transitions.terminal(entry) == Cancelled(by="ada")
    assert not entry.may_be_admitted


@pytest.mark.parametrize(
    "ending",
    [
        Completed(clip=clip_of(SPEC)),
        Failed(failure_class=FailureClass.NAN, cause=""),
        Refused(reason=""),
        Cancelled(by="ada"),
    ],
)
@pytest.mark.parametrize("told", [RUNNING, RUNNING.cancel()], ids=["", "after a cancel"])
def test_a_terminal_job_is_never_ended_again(ending: transitions.Terminal, told: Told) -> None:
    entry = told.ended(success(SPEC)).then(ending).entry
    assert entry.state is transitions.state_after(ending)
    assert entry.state.is_terminal
    assert transitions.terminal(entry) is None
    assert not entry.may_be_admitted
    assert transitions.expired(replace(entry, spec=replace(SPEC, expires_at=BEGAN_AT)), BEGAN_AT) is None
    assert transitions.lost(entry, stamp(1e6), 1e6) is None


# ---- lost to the machine


def test_an_attempt_lost_to_the_machine_is_tried_again_until_the_budget_is_used() -> None:
    told = QUEUED
    for lost in range(1, transitions.INFRASTRUCTURE_BUDGET):
        told = told.admitted().started().ended(INFRASTRUCTURE)
        assert transitions.terminal(told.entry) is None
        assert told.entry.may_be_admitted
        assert told.entry.infrastructure_losses == lost
    ending = transitions.terminal(told.admitted().started().ended(INFRASTRUCTURE).entry)
    assert ending == Failed(
        failure_class=FailureClass.INFRASTRUCTURE,
        cause="3 attempts were lost through no fault of the job, the last one: the worker died",
        fix="start it",
    )


def test_a_failure_of_the_job_after_losses_is_the_jobs_own() -> None:
    told = RUNNING.ended(INFRASTRUCTURE).admitted().started().ended(failed(FailureClass.OOM_DENOISE))
    ending = transitions.terminal(told.entry)
    assert isinstance(ending, Failed)
    assert ending.failure_class is FailureClass.OOM_DENOISE


def test_attempts_that_never_started_cost_nothing_of_the_jobs_budget() -> None:
    told = QUEUED
    for _ in range(transitions.UNSTARTED_BUDGET - 1):
        told = told.admitted().ended(INFRASTRUCTURE)
        assert told.entry.may_be_admitted
    assert told.entry.infrastructure_losses == 0
    told = told.admitted().started().ended(INFRASTRUCTURE).admitted().ended(INFRASTRUCTURE)
    assert told.entry.may_be_admitted, "a start begins the row anew"


def test_attempts_that_never_start_end_at_last() -> None:
    """A keyframe that is gone, a runner that does not start: it was tried again without end."""
    told = QUEUED
    for _ in range(transitions.UNSTARTED_BUDGET):
        told = told.admitted().ended(INFRASTRUCTURE)
    ending = transitions.terminal(told.entry)
    assert isinstance(ending, Failed)
    assert ending.failure_class is FailureClass.INFRASTRUCTURE
    assert ending.cause == "10 attempts in a row did not even start, the last one: the worker died"
    assert not told.entry.may_be_admitted


@pytest.mark.parametrize("told", [QUEUED.admitted(), RUNNING, RUNNING.cancel()])
def test_an_attempt_of_a_silent_worker_is_lost_to_the_machine(told: Told) -> None:
    silence = transitions.WORKER_LOST_AFTER_S
    assert transitions.lost(told.entry, stamp(0), silence - 0.1) is None
    outcome = transitions.lost(told.entry, stamp(0), silence)
    assert outcome is not None
    assert (outcome.failure_class, outcome.infrastructure) == (FailureClass.INFRASTRUCTURE, True)
    assert "worker of wan for 60 s" in outcome.cause
    assert "screentest up" in outcome.fix


@pytest.mark.parametrize("told", [QUEUED, RUNNING.ended(success(SPEC)), QUEUED.cancel()])
def test_a_job_without_attempt_out_is_not_lost(told: Told) -> None:
    assert transitions.lost(told.entry, stamp(1e6), 1e6) is None


def test_an_attempt_past_its_limit_and_the_grace_times_out_for_good() -> None:
    told = QUEUED.admitted(second=0).started(second=100)
    over = 100 + SPEC.limits.attempt_s + transitions.ATTEMPT_GRACE_S
    assert transitions.lost(told.entry, stamp(over - 1), 0) is None
    outcome = transitions.lost(told.entry, stamp(over), 0)
    assert outcome is not None
    assert (outcome.failure_class, outcome.infrastructure) == (FailureClass.TIMEOUT, False)
    assert f"{SPEC.limits.attempt_s:g} s" in outcome.cause


@pytest.mark.parametrize(("late_s", "ends"), [(-1, False), (0, True)])
def test_an_attempt_that_a_live_worker_never_starts_is_tried_again(late_s: float, ends: bool) -> None:
    """Review of the first version: an unreadable dispatch held its device for ever."""
    entry = QUEUED.admitted().entry
    assert entry.admitted is not None
    late_ns = int((transitions.START_WITHIN_S + late_s) * 1e9)
    now = replace(entry.admitted, boottime_ns=entry.admitted.boottime_ns + late_ns)
    outcome = transitions.lost(entry, now, 0)
    assert (outcome is not None) == ends
    assert outcome is None or outcome.infrastructure


def heartbeat(second: float, *, on_device: str | None = None, finishing: tuple[str, ...] = ()) -> Alive:
    return Alive(
        host="local",
        device="gpu-0",
        lane_id="wan",
        lane_digest="d",
        worker_id="w",
        job_id=on_device,
        finishing_job_ids=finishing,
        stamp=stamp(second),
    )


@pytest.mark.parametrize(
    ("told", "alive", "is_finishing"),
    [
        (RUNNING, heartbeat(1, finishing=("other", SPEC.job_id)), True),
        (RUNNING, heartbeat(1, finishing=("other",)), False),
        (QUEUED.admitted(), heartbeat(1, finishing=(SPEC.job_id,)), False),
        (QUEUED.admitted().started(second=2), heartbeat(1, finishing=(SPEC.job_id,)), False),
        (RUNNING, heartbeat(1, on_device=SPEC.job_id, finishing=(SPEC.job_id,)), False),
    ],
    ids=["it is", "others are", "not started", "heard before the start", "an earlier attempt beside it"],
)
def test_a_heartbeat_speaks_of_the_current_attempt_only_when_it_can_mean_no_other(
    told: Told, alive: Alive, is_finishing: bool
) -> None:
    """It names the job: taken for the next attempt of it, the device was given away while that one was out."""
    assert transitions.is_finishing(told.entry, alive) == is_finishing


def test_a_clip_that_waits_for_its_upload_has_no_limit_of_ours() -> None:
    """The worker gives up by itself; a scheduler that was away must not destroy what waits in the spool."""
    assert transitions.lost(RUNNING.entry, stamp(1e6), 0, is_finishing=True) is None


# ---- time


@pytest.mark.parametrize(("seconds", "ends"), [(-1, False), (0, True), (1, True)])
def test_a_queued_job_ends_when_its_time_has_passed(seconds: int, ends: bool) -> None:
    entry = replace(QUEUED.entry, spec=replace(SPEC, expires_at=BEGAN_AT))
    ending = transitions.expired(entry, BEGAN_AT + timedelta(seconds=seconds))
    assert (ending is not None) == ends
    if ending is not None:
        assert "expired at 2026-05-08 23:29:59 UTC" in ending.cause
        assert ending.failure_class is FailureClass.TIMEOUT


@pytest.mark.parametrize(
    ("told", "ends"), [(QUEUED.admitted(), False), (RUNNING, False), (RUNNING.ended(INFRASTRUCTURE), True)]
)
def test_only_jobs_that_wait_to_be_admitted_expire(told: Told, ends: bool) -> None:
    entry = replace(told.entry, spec=replace(SPEC, expires_at=BEGAN_AT))
    assert (transitions.expired(entry, BEGAN_AT + timedelta(days=1)) is not None) == ends


def test_a_job_without_expiry_waits_for_ever() -> None:
    assert transitions.expired(QUEUED.entry, datetime.max.replace(tzinfo=BEGAN_AT.tzinfo)) is None


def test_elapsed_time_is_of_the_boot_clock_within_one_boot() -> None:
    """Somebody may set the wall clock while a job runs."""
    set_back = replace(stamp(5), at=BEGAN_AT - timedelta(days=1))
    assert transitions.elapsed_s(stamp(0), set_back) == 5


def test_elapsed_time_over_a_reboot_is_of_the_wall_clock() -> None:
    rebooted = replace(stamp(90, boot_id="boot-b"), boottime_ns=1)
    assert transitions.elapsed_s(stamp(0), rebooted) == 90


# ---- the ladder

LADDER = replace(SPEC, rungs=("resident", "", "offload", "short"))
ON_LADDER = Told(entry=transitions.submitted_entry(LADDER, stamp(0), 10))


@pytest.mark.parametrize("failure_class", sorted(OUT_OF_MEMORY))
def test_out_of_device_memory_is_followed_by_the_next_usable_rung(failure_class: FailureClass) -> None:
    entry = ON_LADDER.admitted().started().ended(failed(failure_class)).entry
    assert transitions.terminal(entry) is None
    assert entry.may_be_admitted
    assert transitions.next_rung(entry, first_rung=0) == 2
    assert (entry.infrastructure_losses, entry.unstarted_losses) == (0, 0)


def test_out_of_memory_before_the_start_steps_down_too() -> None:
    entry = ON_LADDER.admitted().ended(failed(FailureClass.OOM_LOAD)).entry
    assert transitions.next_rung(entry, first_rung=0) == 2


def test_the_last_rung_ends_with_what_it_ended_with() -> None:
    entry = ON_LADDER.admitted(rung=3).started().ended(failed(FailureClass.OOM_DECODE)).entry
    assert transitions.terminal(entry) == Failed(failure_class=FailureClass.OOM_DECODE, cause="it broke", fix="mend it")


@pytest.mark.parametrize("failure_class", [FailureClass.HOST_OOM, FailureClass.NAN, FailureClass.TIMEOUT])
def test_other_failures_stay_on_their_rung(failure_class: FailureClass) -> None:
    entry = ON_LADDER.admitted().started().ended(failed(failure_class)).entry
    assert isinstance(transitions.terminal(entry), Failed)


def test_an_attempt_lost_to_the_machine_is_tried_again_on_its_rung() -> None:
    entry = ON_LADDER.admitted(rung=2).started().ended(INFRASTRUCTURE).entry
    assert transitions.next_rung(entry, first_rung=0) == 2


def test_the_first_attempt_begins_where_it_is_told() -> None:
    assert transitions.next_rung(ON_LADDER.entry, first_rung=2) == 2


def test_a_cancel_ends_the_way_down() -> None:
    entry = ON_LADDER.admitted().started().cancel().ended(failed(FailureClass.OOM_LOAD)).entry
    assert transitions.terminal(entry) == Cancelled(by="ada")
    assert not entry.may_be_admitted
