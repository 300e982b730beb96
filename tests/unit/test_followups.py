"""When a sweep settles, and what its settlement counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest.records import JobState, SweepSettled
from screentest_scheduler import followups, transitions
from screentest_scheduler.transitions import Entry
from tests.made_sweeps import plan, record, specs, stamp

[SPEC] = specs(record([plan("wan", "Wan")]))
NEW = transitions.submitted_entry(SPEC, stamp(0), 1)


def entries(*states: JobState) -> list[Entry]:
    return [replace(NEW, state=state) for state in states]


def settled(jobs: int) -> SweepSettled:
    return SweepSettled(jobs=jobs, clips=0, proofs=())


@pytest.mark.parametrize("state", list(JobState))
def test_a_sweep_settles_when_every_job_is_terminal(state: JobState) -> None:
    assert followups.must_settle(entries(JobState.COMPLETED, state), None) == state.is_terminal


def test_a_sweep_without_jobs_does_not_settle() -> None:
    """Its jobs may not be written yet."""
    assert not followups.must_settle([], None)


def test_a_settled_sweep_does_not_settle_again() -> None:
    assert not followups.must_settle(entries(JobState.FAILED, JobState.COMPLETED), settled(2))


def test_a_retry_reopens_the_settlement_until_it_has_ended() -> None:
    assert not followups.must_settle(entries(JobState.FAILED, JobState.RUNNING), settled(1))
    assert followups.must_settle(entries(JobState.FAILED, JobState.COMPLETED), settled(1))


def test_only_completed_jobs_leave_a_clip() -> None:
    assert followups.clips(entries(*JobState)) == 1
    assert followups.clips(entries(JobState.COMPLETED, JobState.COMPLETED, JobState.FAILED)) == 2


def test_every_device_of_a_sweep_is_proven_once_in_a_stable_order() -> None:
    used = [("b", "gpu-0"), ("a", "gpu-1"), ("b", "gpu-0"), ("a", "cpu-0")]
    jobs = [replace(NEW, spec=replace(SPEC, host=host, device=device)) for host, device in used]
    assert followups.devices(jobs) == (("a", "cpu-0"), ("a", "gpu-1"), ("b", "gpu-0"))
