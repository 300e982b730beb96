"""An attempt is stopped by its own first steps only when it is certain not to end in time."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import pytest

from screentest_runner import pace, progress
from screentest_runner.failures import AttemptFailure
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass


def judge(done: int, *, elapsed_s: float = 20.0, limit_s: float = 400.0) -> None:
    pace.check_pace(limit_s, elapsed_s=elapsed_s, fastest_s=10.0, done=done, steps=50)


def test_projection_past_the_limit_names_step_projection_and_limit() -> None:
    with pytest.raises(AttemptFailure) as failed:
        judge(2)
    assert failed.value.failure_class is FailureClass.TIMEOUT
    assert "a step takes 10 s" in str(failed.value)
    assert "would end after 500 s, the limit is 400 s: stopped after step 2" in str(failed.value)


def test_projection_within_the_limit_goes_on() -> None:
    judge(2, limit_s=500.0)


@pytest.mark.parametrize("done", [1, 50])
def test_first_step_and_the_end_are_not_judged(done: int) -> None:
    judge(done, elapsed_s=399.0)


def test_a_slow_first_step_is_forgiven_and_one_hiccup_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 60, 1, 1, 30 and 1 s: only the fastest after the first one says what is certain."""
    moments = iter([0.0, 60.0, 61.0, 62.0, 92.0, 93.0])
    clock = SimpleNamespace(perf_counter=lambda: next(moments), clock_gettime_ns=lambda _: 0, CLOCK_BOOTTIME=7)
    monkeypatch.setattr(progress, "time", clock)
    attempt = AttemptProgress("a", lambda _reply: None, Event(), limit_s=200.0)
    for _ in range(5):
        attempt.step_done(100)
    assert next(moments, None) is None
