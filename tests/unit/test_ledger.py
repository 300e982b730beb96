"""The scheduler's memory says what the stream says, however often and however late it hears it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest

from screentest import subjects, wire
from screentest.errors import NotFound, NotPossibleNow
from screentest.kit.bus import Stored
from screentest.records import (
    Admitted,
    CancelRequested,
    ControlEvent,
    Counts,
    Drained,
    FailureClass,
    FindingEdited,
    JobEvent,
    JobSpec,
    JobState,
    JudgementFacts,
    JudgePurpose,
    JudgingRequested,
    Outcome,
    PairOutcome,
    PairVoted,
    PrioritySet,
    Rated,
    RequestClaim,
    RestoreBegun,
    RetryRequested,
    SweepArchived,
    SweepEvent,
    SweepPaused,
    SweepRecord,
    SweepRestored,
    SweepSettled,
    SweepSubmitted,
    Undrained,
)
from screentest_scheduler import followups, planning
from screentest_scheduler.followups import Judging, Scene
from screentest_scheduler.ledger import Ledger, subject_of
from tests.made_judgings import PIXELS, STRANGER, ref
from tests.made_judgings import completed as completed_entry
from tests.made_sweeps import History, plan, record, stamp

SWEEP = record([plan("wan", "Wan"), plan("svd", "SVD")], seeds=(1, 2))
JOBS = planning.jobs(SWEEP)
LATER = replace(SWEEP, sweep_id="later", submitted_at=SWEEP.submitted_at + timedelta(seconds=1))


def judge_job(of: JobSpec) -> JobSpec:
    """A wish to have this job's clip judged by pixels."""
    scene = Scene(
        record=SWEEP,
        judgings=(Judging(judges=(PIXELS,), rubrics=(ref("a"),), sequence=1),),
        known={},
        judge_ids=(),
        open_clips={},
        stranger=STRANGER,
        is_settled=False,
    )
    [spec] = followups.judge_jobs(scene, [completed_entry(of)])
    return spec


def judged_history(spec: JobSpec) -> History:
    """With a rung to start from: its own list is empty."""
    history = History(replace(spec, rungs=("",)))
    return history.start().wait(3).end(Outcome(failure_class=None, judgement=JudgementFacts(tier="a", method="pixels")))


class Stream:
    """EVENTS as one list; ``add`` gives each message the next sequence."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []

    def add(self, subject: str, event: object) -> Stored:
        sequence = len(self.messages) + 1
        stored = Stored(subject=subject, sequence=sequence, event_id=f"e{sequence}", payload=wire.encode(event))
        self.messages.append(stored)
        return stored

    def sweep(self, body: object, sweep_id: str = SWEEP.sweep_id) -> None:
        event = SweepEvent(event_id="e", sweep_id=sweep_id, stamp=stamp(0), body=body)  # type: ignore[arg-type]
        self.add(subjects.sweep_events(sweep_id), event)

    def job(self, spec: JobSpec, events: Iterable[JobEvent]) -> None:
        for event in events:
            self.add(subject_of(spec), event)

    def control(self, body: Drained | Undrained) -> None:
        event = ControlEvent(event_id="e", host="local", device="gpu-0", stamp=stamp(0), body=body)
        self.add(subjects.control("local", "gpu-0"), event)

    def replayed(self) -> Ledger:
        return replayed(self.messages)


def replayed(messages: Iterable[Stored]) -> Ledger:
    ledger = Ledger()
    for message in messages:
        ledger.apply(message)
    return ledger


def submitted_stream(*sweeps: SweepRecord) -> Stream:
    stream = Stream()
    for sweep in sweeps or (SWEEP,):
        stream.sweep(SweepSubmitted(record=sweep), sweep.sweep_id)
        for spec in planning.jobs(sweep):
            stream.job(spec, History(spec).events)
    return stream


def snapshot(ledger: Ledger) -> object:
    sweeps = {
        sweep_id: (
            sweep.record,
            sweep.sequence,
            sweep.is_paused,
            sweep.priority,
            sweep.settled,
            sweep.expected,
            sweep.judgings,
            sweep.judge_ids,
            sweep.judged_sequence,
            sweep.open_clips,
        )
        for sweep_id, sweep in ledger.sweeps.items()
    }
    devices = {name: (device.sequence, device.drained_reason) for name, device in ledger.devices.items()}
    open_jobs = {entry.spec.job_id for entry in ledger.open_jobs()}
    active = {entry.spec.job_id for entry in ledger.active_jobs()}
    return sweeps, ledger.jobs, devices, open_jobs, active, ledger.sequence


def busy_stream() -> Stream:
    """Every kind of event once."""
    stream = submitted_stream(SWEEP, LATER)
    completed, failed, cancelled, running = JOBS
    stream.job(completed, History(completed).complete(5).events[1:])
    stream.sweep(SweepPaused(paused=True, by="ada"))
    stream.job(failed, History(failed).fail(FailureClass.NAN, "nan").events[1:])
    stream.sweep(PrioritySet(priority=4, by="ada"))
    stream.job(cancelled, History(cancelled).cancel().events[1:])
    stream.job(running, History(running).start().events[1:])
    stream.control(Drained(reason="the lock is held", proof=None))
    stream.sweep(RetryRequested(spec=planning.retry(failed, 1), by="ada"))
    stream.job(planning.retry(failed, 1), History(planning.retry(failed, 1)).events)
    stream.sweep(FindingEdited(row="r", text="t", by="ada"))
    stream.sweep(JudgingRequested(judges=(PIXELS,), rubrics=(ref("a"),), by="ada"))
    stream.sweep(Rated(job_id=completed.job_id, rater="ada", score10=6))
    vote = PairVoted(left_job_id=completed.job_id, right_job_id=failed.job_id, outcome=PairOutcome.TIE, rater="ada")
    stream.sweep(vote)
    judged = judge_job(completed)
    stream.job(judged, judged_history(judged).events)
    stream.sweep(SweepSettled(jobs=4, clips=1, proofs=()))
    stream.add(subjects.request_claim("a" * 64), RequestClaim(request_id="r", content_sha256="c", sweep_id="s"))
    return stream


# ---- hearing


def test_the_ledger_follows_a_stream_with_every_kind_of_event() -> None:
    stream = busy_stream()
    ledger = stream.replayed()
    assert ledger.counts(SWEEP.sweep_id) == Counts(queued=1, running=1, completed=1, failed=1, cancelled=1)
    sweep = ledger.sweep(SWEEP.sweep_id)
    assert (sweep.is_paused, sweep.priority, sweep.settled) == (True, 4, SweepSettled(jobs=4, clips=1, proofs=()))
    assert ledger.devices[("local", "gpu-0")].drained_reason == "the lock is held"
    assert ledger.sequence == len(stream.messages)


def test_hearing_everything_twice_changes_nothing() -> None:
    stream = busy_stream()
    once = stream.replayed()
    for message in stream.messages:
        once.apply(message)
    assert snapshot(once) == snapshot(stream.replayed())


def test_late_repeats_among_new_events_change_nothing() -> None:
    stream, chance = busy_stream(), random.Random(3)
    heard = []
    for index, message in enumerate(stream.messages):
        heard.append(message)
        heard += chance.sample(stream.messages[: index + 1], min(3, index + 1))
    assert snapshot(replayed(heard)) == snapshot(stream.replayed())


def test_a_job_that_begins_in_the_middle_is_left_alone() -> None:
    """Its sweep may have been archived; nothing can be decided about it."""
    stream = Stream()
    stream.job(JOBS[0], History(JOBS[0]).start().events[1:])
    assert stream.replayed().jobs == {}


def test_a_job_of_an_unknown_sweep_is_refused_and_forgotten() -> None:
    stream = Stream()
    stream.job(JOBS[0], History(JOBS[0]).events)
    ledger = Ledger()
    with pytest.raises(NotFound, match="which is not in the stream"):
        ledger.apply(stream.messages[0])
    assert (ledger.jobs, ledger.open_jobs()) == ({}, [])


def test_the_open_jobs_of_a_sweep_are_its_own() -> None:
    stream = submitted_stream(SWEEP, LATER)
    stream.job(JOBS[0], History(JOBS[0]).complete(1).events[1:])
    ledger = stream.replayed()
    assert [entry.spec for entry in ledger.open_jobs_of(SWEEP.sweep_id)] == list(JOBS[1:])
    assert len(ledger.open_jobs_of("later")) == 4


def test_an_undrain_frees_the_device() -> None:
    stream = Stream()
    stream.control(Drained(reason="x", proof=None))
    stream.control(Undrained(by="ada"))
    for heard in (stream.messages, [*stream.messages, stream.messages[0]]):
        assert replayed(heard).devices[("local", "gpu-0")].drained_reason == ""


def test_an_event_of_an_unknown_sweep_is_ignored() -> None:
    stream = Stream()
    stream.sweep(SweepPaused(paused=True, by="ada"), "nowhere")
    assert stream.replayed().sweeps == {}


# ---- asking


def test_unknown_names_are_refused_with_where_to_look() -> None:
    ledger = Ledger()
    with pytest.raises(NotFound, match="no sweep 'x'; `screentest status`"):
        ledger.sweep("x")
    with pytest.raises(NotFound, match="no job 'x'; `screentest status <sweep>`"):
        ledger.job("x")


def test_a_new_job_waits_and_asks_for_nothing() -> None:
    ledger = submitted_stream().replayed()
    assert [entry.spec.job_id for entry in ledger.open_jobs()] == [spec.job_id for spec in JOBS]
    assert ledger.active_jobs() == []


@pytest.mark.parametrize("body", [Admitted(rung=0, rung_name="r"), CancelRequested(by="ada", started=False)])
def test_a_job_that_something_follows_for_is_active(body: object) -> None:
    stream = submitted_stream()
    state = JobState.ADMITTED if isinstance(body, Admitted) else JobState.QUEUED
    event = replace(History(JOBS[1]).events[0], state=state, body=body, attempt=1)  # type: ignore[arg-type]
    stream.job(JOBS[1], [event])
    assert [entry.spec for entry in stream.replayed().active_jobs()] == [JOBS[1]]


def test_a_terminal_job_leaves_every_list_but_its_sweeps() -> None:
    sweep = replace(SWEEP, spec=replace(SWEEP.spec, expires_at=stamp(99).at))
    stream = submitted_stream(sweep)
    first = planning.jobs(sweep)[0]
    stream.job(first, History(first).complete(1).events[1:])
    ledger = stream.replayed()
    for listed in (ledger.open_jobs(), ledger.active_jobs(), ledger.expiring_jobs()):
        assert first.job_id not in [entry.spec.job_id for entry in listed]
    assert len(ledger.expiring_jobs()) == 3
    assert len(ledger.sweep_jobs(sweep.sweep_id)) == 4


def test_jobs_without_expiry_are_not_watched_for_it() -> None:
    assert submitted_stream().replayed().expiring_jobs() == []


def test_candidates_are_the_admissible_jobs_of_that_device() -> None:
    stream = submitted_stream()
    stream.job(JOBS[0], History(JOBS[0]).start().events[1:])
    ledger = stream.replayed()
    found = [candidate.entry.spec.job_id for candidate in ledger.candidates("local", "cpu-0")]
    assert found == [spec.job_id for spec in JOBS[1:]]
    assert list(ledger.candidates("local", "gpu-0")) == []


def test_a_candidate_carries_what_its_sweep_says_now() -> None:
    stream = submitted_stream(SWEEP, LATER)
    stream.sweep(PrioritySet(priority=-3, by="ada"), "later")
    stream.sweep(SweepPaused(paused=True, by="ada"), "later")
    ledger = stream.replayed()
    early, *_, late = ledger.candidates("local", "cpu-0")
    assert (early.priority, early.is_paused) == (0, False)
    assert (late.priority, late.is_paused) == (-3, True)
    assert early.order < late.order, "submitted earlier comes first"


def test_a_sweep_may_be_submitted_paused_and_with_a_priority() -> None:
    sweep = replace(SWEEP, spec=replace(SWEEP.spec, paused=True, priority=5))
    state = submitted_stream(sweep).replayed().sweep(SWEEP.sweep_id)
    assert (state.is_paused, state.priority) == (True, 5)


def test_missing_jobs_are_derived_from_the_record_and_the_retries() -> None:
    stream = Stream()
    stream.sweep(SweepSubmitted(record=SWEEP))
    stream.job(JOBS[2], History(JOBS[2]).events)
    again = planning.retry(JOBS[2], 1)
    stream.sweep(RetryRequested(spec=again, by="ada"))
    missing = stream.replayed().missing_jobs(SWEEP.sweep_id)
    assert missing == [JOBS[0], JOBS[1], JOBS[3], again]


def test_a_sweep_is_over_when_every_job_it_promised_is_terminal() -> None:
    stream = submitted_stream()
    for spec in JOBS[:3]:
        stream.job(spec, History(spec).complete(1).events[1:])
    assert not stream.replayed().is_over(SWEEP.sweep_id)
    stream.job(JOBS[3], History(JOBS[3]).cancel().events[1:])
    assert stream.replayed().is_over(SWEEP.sweep_id)
    stream.sweep(RetryRequested(spec=planning.retry(JOBS[3], 1), by="ada"))
    assert not stream.replayed().is_over(SWEEP.sweep_id), "the retry is promised though not written yet"


def test_a_sweep_whose_jobs_are_not_all_written_is_not_over() -> None:
    stream = Stream()
    stream.sweep(SweepSubmitted(record=SWEEP))
    stream.job(JOBS[0], History(JOBS[0]).complete(1).events)
    assert not stream.replayed().is_over(SWEEP.sweep_id)


def test_retries_stand_behind_the_cell_they_retry() -> None:
    stream = submitted_stream()
    again = planning.retry(JOBS[0], 1)
    stream.sweep(RetryRequested(spec=again, by="ada"))
    stream.job(again, History(again).events)
    listed = [entry.spec.job_id for entry in stream.replayed().sweep_jobs(SWEEP.sweep_id)]
    assert listed == [JOBS[0].job_id, again.job_id, *(spec.job_id for spec in JOBS[1:])]


def test_the_next_retry_of_a_cell_is_numbered_by_the_cell_not_by_the_job() -> None:
    """Two retries of the same first job, or a retry of a retry, must not share an id."""
    stream = submitted_stream()
    assert stream.replayed().next_retry_index(JOBS[0]) == 1
    again = planning.retry(JOBS[0], 1)
    stream.sweep(RetryRequested(spec=again, by="ada"))
    ledger = stream.replayed()
    assert ledger.next_retry_index(JOBS[0]) == ledger.next_retry_index(again) == 2
    assert ledger.next_retry_index(JOBS[1]) == 1


def test_the_entries_of_a_sweep_share_their_prompt_and_parameters() -> None:
    """Ten thousand finished jobs must stay small in memory: the decoded copy of each event is let go."""
    ledger = submitted_stream().replayed()
    first, second, *_ = (entry.spec for entry in ledger.sweep_jobs(SWEEP.sweep_id))
    assert first.call is second.call
    assert first.prompt is second.prompt


def test_a_replay_brings_back_the_rung_that_won() -> None:
    sweep = record([replace(plan("wan", "Wan"), rungs=("resident", "lean", "fp8"))], seeds=(1, 2))
    first, second = planning.jobs(sweep)
    stream = submitted_stream(sweep)
    stream.job(first, History(first).complete(5, rung=1).events[1:])
    for ledger in (stream.replayed(), replayed(stream.messages * 2)):
        assert ledger.lessons.winning_rungs.first_rung(second, None) == 1


# ---- archive and restore


def archived_stream() -> Stream:
    stream = submitted_stream()
    for spec in JOBS:
        stream.job(spec, History(spec).complete(5).events[1:])
    stream.sweep(SweepSettled(jobs=4, clips=4, proofs=()))
    farewell = SweepArchived(
        record=SWEEP, counts=Counts(completed=4), settled=SweepSettled(jobs=4, clips=4, proofs=()), parts=1
    )
    stream.sweep(farewell)
    return stream


def restored_stream() -> Stream:
    """The history, the farewell, and all of it again as a restore writes it."""
    stream = archived_stream()
    history = stream.messages[:-1]
    stream.sweep(RestoreBegun(parts=1))
    for message in history:
        stream.messages.append(replace(message, sequence=len(stream.messages) + 1))
    stream.sweep(SweepRestored(parts=1))
    return stream


def test_archived_sweep_is_listed_without_its_jobs() -> None:
    stream = archived_stream()
    ledger = stream.replayed()
    assert (ledger.sweeps, ledger.jobs, ledger.open_jobs()) == ({}, {}, [])
    assert ledger.submitted_at() == {SWEEP.sweep_id: SWEEP.submitted_at}
    assert ledger.is_taken(SWEEP.sweep_id)
    assert ledger.archived[SWEEP.sweep_id].must_purge
    ledger.apply(stream.messages[-1])  # the tail brings what we appended ourselves
    assert ledger.archived[SWEEP.sweep_id].must_purge
    with pytest.raises(NotPossibleNow, match="screentest restore"):
        ledger.sweep(SWEEP.sweep_id)


def test_purged_sweep_needs_no_purge() -> None:
    assert not replayed(archived_stream().messages[-1:]).archived[SWEEP.sweep_id].must_purge


def test_half_restored_sweep_has_no_job_to_run() -> None:
    """Submitted without its end would be queued work."""
    stream = restored_stream()
    begun = len(archived_stream().messages)
    for known in (stream.messages, stream.messages[begun - 1 :], stream.messages[begun:]):
        for end in range(begun + 1 - len(stream.messages) + len(known), len(known)):
            ledger = replayed(known[:end])
            assert (ledger.sweeps, ledger.jobs, ledger.open_jobs()) == ({}, {}, [])
            with pytest.raises(NotPossibleNow, match="being restored"):
                ledger.sweep(SWEEP.sweep_id)


def test_restored_sweep_is_as_it_was() -> None:
    before = replayed(archived_stream().messages[:-1])
    ledger = restored_stream().replayed()
    assert ledger.archived == {}
    after, was = ledger.sweep(SWEEP.sweep_id), before.sweep(SWEEP.sweep_id)
    assert (after.record, after.settled, after.expected) == (was.record, was.settled, was.expected)
    assert {job_id: replace(entry, sequence=0) for job_id, entry in ledger.jobs.items()} == {
        job_id: replace(entry, sequence=0) for job_id, entry in before.jobs.items()
    }
    assert after.restored_sequence == ledger.last_sequence(SWEEP.sweep_id) == len(restored_stream().messages)


def test_judge_jobs_are_kept_apart_from_those_that_make_clips() -> None:
    stream = submitted_stream()
    made = JOBS[0]
    stream.job(made, History(made).complete(5).events[1:])
    before = replayed(stream.messages)
    spec = judge_job(made)
    history = judged_history(spec)
    stream.job(spec, history.events)
    after = replayed(stream.messages)
    sweep = after.sweep(SWEEP.sweep_id)
    assert (after.counts(SWEEP.sweep_id), after.is_over(SWEEP.sweep_id)) == (before.counts(SWEEP.sweep_id), False)
    assert [entry.spec.job_id for entry in after.judge_jobs(SWEEP.sweep_id)] == [spec.job_id]
    assert spec.job_id not in sweep.expected
    assert after.last_sequence(SWEEP.sweep_id) == after.sequence
    assert sweep.changed_at == history.events[-1].stamp.at
    assert sweep.open_clips == {"pixels": 1}
    assert after.judge_times.job_s("pixels", JudgePurpose.CLIP) == 3


def test_a_completed_job_and_a_new_wish_leave_clips_to_be_judged() -> None:
    stream = submitted_stream()
    ledger = replayed(stream.messages)
    sweep = ledger.sweep(SWEEP.sweep_id)
    sweep.has_judge_news = False
    made = JOBS[0]
    stream.job(made, History(made).complete(5).events[1:])
    for message in stream.messages:
        ledger.apply(message)
    assert (list(sweep.unjudged), sweep.has_judge_news) == ([made.job_id], True)
    sweep.unjudged, sweep.has_judge_news = {}, False
    stream.sweep(JudgingRequested(judges=(PIXELS,), rubrics=(ref("a"),), by="ada"))
    ledger.apply(stream.messages[-1])
    assert (list(sweep.unjudged), sweep.has_judge_news) == ([made.job_id], True)
    assert sweep.judgings[-1].sequence == stream.messages[-1].sequence


def test_a_judge_job_leaves_with_its_sweep() -> None:
    stream = busy_stream()
    counts = Counts(completed=1)
    stream.sweep(SweepArchived(record=SWEEP, counts=counts, settled=SweepSettled(jobs=4, clips=1, proofs=()), parts=1))
    ledger = replayed(stream.messages)
    assert not [job_id for job_id, entry in ledger.jobs.items() if entry.spec.sweep_id == SWEEP.sweep_id]
