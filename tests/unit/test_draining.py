"""A device is at rest when neither a clip nor a judgement is on its way there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from screentest.records import JobState
from screentest_ui import draining

HERE, ELSEWHERE = ("local", "gpu-0"), ("local", "cpu-0")


def job(name: str, state: JobState, place: tuple[str, str] = HERE) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(job_id=name, lane_id="l", host=place[0], device=place[1]), state=state)


def sweep(name: str, *, over: bool = False, judging: int | None = None) -> Any:
    scoring = None if judging is None else SimpleNamespace(counts=SimpleNamespace(queued=0, running=judging))
    return SimpleNamespace(record=SimpleNamespace(sweep_id=name), over=over, scoring=scoring)


class Client:
    def __init__(self, jobs: list[Any], judge_jobs: list[Any], *sweeps: Any) -> None:
        self.jobs, self.judge_jobs, self.sweeps = jobs, judge_jobs, sweeps
        self.asked: list[str] = []

    def list_sweeps(self) -> tuple[Any, ...]:
        return self.sweeps

    def list_jobs(self, sweep_id: str) -> list[Any]:
        self.asked.append(f"jobs of {sweep_id}")
        return self.jobs

    def list_judge_jobs(self, sweep_id: str) -> list[Any]:
        self.asked.append(f"judge jobs of {sweep_id}")
        return self.judge_jobs


def out(client: Client) -> list[str]:
    return [found.spec.job_id for found in draining.jobs_out(client, *HERE)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "is_out"),
    [
        (JobState.QUEUED, False),
        (JobState.ADMITTED, True),
        (JobState.RUNNING, True),
        (JobState.ENDED, False),  # its next attempt is not admitted while the device is drained
        (JobState.COMPLETED, False),
    ],
)
def test_attempts_on_their_way_are_waited_for(state: JobState, is_out: bool) -> None:
    client = Client([job("a", state), job("b", state, ELSEWHERE)], [], sweep("s"))
    assert out(client) == (["a"] if is_out else [])


def test_judging_of_a_sweep_that_is_over_is_waited_for() -> None:
    client = Client([job("a", JobState.COMPLETED)], [job("j", JobState.RUNNING)], sweep("s", over=True, judging=1))
    assert out(client) == ["j"]
    assert client.asked == ["judge jobs of s"]


def test_sweeps_at_rest_are_not_asked_for_their_jobs() -> None:
    client = Client([], [], sweep("old", over=True), sweep("scored", over=True, judging=0))
    assert out(client) == []
    assert client.asked == []


def test_each_job_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running = [job("a", JobState.RUNNING)]
    client, told, pauses = Client(running, [], sweep("s")), [], []

    def pause(_seconds: float) -> None:
        pauses.append(1)
        if len(pauses) == 3:
            running.clear()

    monkeypatch.setattr(draining.time, "sleep", pause)
    draining.wait_until_idle(client, *HERE, note=told.append)  # type: ignore[arg-type]
    assert told == ["waits for a of l (running)"]
