"""What is due for a sweep's archive, and which vitals belong into a part."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from screentest import windows
from screentest.records import FailureClass, SweepRestored
from screentest_scheduler import archiving, planning
from screentest_scheduler.archiving import MARGIN_NS, Standing, Step
from tests.made_sweeps import BEGAN_AT, BOOT_ID, History, plan, record

SWEEP = record([plan("wan", "Wan"), plan("svd", "SVD")])
WAN, SVD = planning.jobs(SWEEP)
AFTER, KEPT = timedelta(seconds=60), timedelta(days=30)
SETTLED = Standing(is_settled=True, changed_at=BEGAN_AT, last_sequence=9, archived_sequence=9)


@pytest.mark.parametrize(
    ("standing", "passed", "step"),
    [
        (replace(SETTLED, is_settled=False), timedelta(days=99), Step.WAIT),
        (replace(SETTLED, is_settled=False, archived_sequence=0), timedelta(days=99), Step.WAIT),
        (replace(SETTLED, archived_sequence=0), timedelta(seconds=59), Step.WAIT),
        (replace(SETTLED, archived_sequence=0), timedelta(seconds=60), Step.WRITE),
        (replace(SETTLED, archived_sequence=8), timedelta(days=99), Step.WRITE),
        (SETTLED, timedelta(days=29), Step.WAIT),
        (SETTLED, timedelta(days=30), Step.LET_GO),
        (SETTLED, timedelta(days=-1), Step.WAIT),
    ],
)
def test_next_step(standing: Standing, passed: timedelta, step: Step) -> None:
    assert archiving.next_step(standing, BEGAN_AT + passed, after=AFTER, kept=KEPT) is step


def test_parts_of_another_stream_say_nothing_about_this_one_but_a_restore_does() -> None:
    parts = [("old", 40), ("old", 50)]
    assert archiving.archived_sequence(parts, "new", None, 0) == 0
    assert archiving.archived_sequence(parts, "old", None, 0) == 50
    assert archiving.archived_sequence(parts, "new", SweepRestored(parts=2), 30) == 30
    assert archiving.archived_sequence([*parts, ("new", 35)], "new", SweepRestored(parts=2), 30) == 35


def test_restore_of_parts_that_are_gone_archives_nothing() -> None:
    assert archiving.archived_sequence([], "new", SweepRestored(parts=2), 30) == 0


def test_vitals_of_a_part_reach_a_margin_beyond_the_sitting_of_its_attempts() -> None:
    jobs = [History(WAN, second=2).complete(10).job, History(SVD, second=20).fail(FailureClass.NAN, latency_s=5).job]
    (stretch,) = archiving.stretches(jobs, {SVD.job_id: frozenset({1})})
    (window,) = stretch.windows
    assert stretch.host == "local"
    assert stretch.begin_at < BEGAN_AT < stretch.end_at
    assert stretch.has(BOOT_ID, window.begin_ns - MARGIN_NS)
    assert not stretch.has(BOOT_ID, window.begin_ns - MARGIN_NS - 1)
    assert stretch.has(BOOT_ID, window.end_ns + MARGIN_NS)
    assert not stretch.has("another boot", window.begin_ns)


def test_part_without_an_ended_attempt_has_no_vitals() -> None:
    assert archiving.stretches([History(WAN).complete().job], {}) == ()


def test_retry_long_after_is_a_sitting_of_its_own() -> None:
    first = History(WAN, second=2).complete(10).job
    again = planning.retry(WAN, 1)
    late = History(again, second=5000).complete(10).job
    assert len(windows.sweep_windows([first, late])) == 2
    (stretch,) = archiving.stretches([first, late], {again.job_id: frozenset({1})})
    assert len(stretch.windows) == 1
    assert stretch.windows[0].begin_ns > int(4000 * 1e9)
    soon = History(again, second=100).complete(10).job
    assert len(windows.sweep_windows([soon, first])) == 1


def test_another_boot_is_another_sitting() -> None:
    job = History(WAN, second=2).complete(10).job
    [attempt] = job.attempts
    assert attempt.started is not None
    assert attempt.ended is not None
    other = replace(
        attempt,
        started=replace(attempt.started, boot_id="boot-b"),
        ended=replace(attempt.ended, boot_id="boot-b"),
    )
    split = replace(attempt, ended=replace(attempt.ended, boot_id="boot-b"))
    assert len(windows.sweep_windows([replace(job, attempts=(attempt, other))])) == 2
    assert windows.sweep_windows([replace(job, attempts=(split,))]) == ()
