"""A runner that holds a judge: its steps, its failures, and what it puts on disk. No judge library is imported here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from screentest_runner.adapters import holder_of
from screentest_runner.adapters.judge import JudgeAdapter
from screentest_runner.failures import OOM_BY_PHASE, AttemptFailure
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Judge, Load, Phase, PhaseChanged, RunnerReply, StepDone

LANE = {"id": "scripted", "task": "judge", "adapter": "scripted"}


def progress_of(told: list[RunnerReply], cancelled: Event | None = None) -> AttemptProgress:
    return AttemptProgress("a", told.append, cancelled or Event(), first=Phase.JUDGING)


def request_to(path: Path) -> Judge:
    return Judge(
        attempt_id="a",
        purpose="clip",
        media_path="clip.mp4",
        questions=[],
        windows=2,
        asked={},
        judgement_path=str(path),
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A judge that says what a test wants, in the place of the real ones."""
    script = SimpleNamespace(found={"answers": {}}, loaded=[], run=None)

    class Scripted:
        def __init__(self, lane: dict[str, Any]) -> None:
            pass

        def prepare(self) -> dict[str, str]:
            return {"scripted": "1"}

        def load(self, load: dict[str, Any], device: str) -> None:
            script.loaded.append((load["lane"]["id"], device))

    def run(judge: Any, request: dict[str, Any], progress: Any, cancelled: Event) -> dict[str, Any]:
        if script.run is not None:
            script.run(progress, cancelled)
        return script.found

    module = ModuleType("screentest_runner.judging.judge")
    module.JUDGES, module.run = {"scripted": Scripted}, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "screentest_runner.judging.judge", module)
    import screentest_runner.judging

    monkeypatch.setattr(screentest_runner.judging, "judge", module, raising=False)
    return script


def loaded() -> JudgeAdapter:
    adapter = JudgeAdapter(LANE)
    adapter.prepare()
    adapter.load(Load(lane=LANE, weights="hub", rung={}, cache_dir=""), "cuda:0")
    return adapter


def test_judge_is_prepared_loaded_and_asked(scripted: SimpleNamespace, tmp_path: Path) -> None:
    scripted.found = {"answers": {"a": [0.5]}, "method": "pixels"}
    adapter = loaded()
    assert scripted.loaded == [("scripted", "cuda:0")]
    assert adapter.judge(request_to(tmp_path / "a.json"), progress_of([])) == scripted.found
    assert json.loads((tmp_path / "a.json").read_text()) == scripted.found
    # without weights it takes no GPU, so nothing is known of one
    assert (adapter.device_bytes(), adapter.peak_device_bytes(), adapter.peak_memory_by_phase()) == (None, None, None)


def test_unknown_adapter_is_named_with_those_that_there_are(scripted: SimpleNamespace) -> None:
    adapter = holder_of({**LANE, "adapter": "guess"})
    with pytest.raises(AttemptFailure, match="wants adapter 'guess'; there are scripted") as caught:
        adapter.prepare()
    assert caught.value.failure_class is FailureClass.LAYOUT


def test_judgement_that_cannot_be_written_is_lost_to_the_machine(scripted: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(AttemptFailure, match="cannot be written") as caught:
        loaded().judge(request_to(tmp_path / "absent" / "a.json"), progress_of([]))
    assert caught.value.failure_class is FailureClass.INFRASTRUCTURE


def test_not_a_number_never_reaches_a_judgement(scripted: SimpleNamespace, tmp_path: Path) -> None:
    scripted.found = {"answers": {"a": [float("nan")]}}
    with pytest.raises(ValueError, match="JSON compliant"):
        loaded().judge(request_to(tmp_path / "a.json"), progress_of([]))


def test_steps_are_told_as_the_judge_counts_them(scripted: SimpleNamespace, tmp_path: Path) -> None:
    def three_windows(progress: Any, _: Event) -> None:
        for done in (10, 20, 15):  # the last control may ask less than the one before
            progress(done, 40)

    scripted.run = three_windows
    told: list[RunnerReply] = []
    progress = progress_of(told)
    loaded().judge(request_to(tmp_path / "a.json"), progress)
    progress.end_phase()
    assert [(reply.step, reply.steps) for reply in told if isinstance(reply, StepDone)] == [
        (10, 40),
        (20, 40),
        (20, 40),
    ]
    assert [reply.phase for reply in told if isinstance(reply, PhaseChanged)] == [Phase.JUDGING]
    assert list(progress.timings_s) == ["judging"]


def test_cancel_ends_a_judgement_between_two_questions(scripted: SimpleNamespace, tmp_path: Path) -> None:
    cancelled = Event()

    def cancelled_after_the_first(progress: Any, seen: Event) -> None:
        assert seen is cancelled  # a judge that waits for a server looks at it by itself
        progress(1, 3)
        cancelled.set()
        progress(2, 3)
        raise AssertionError("it went on after the cancel")

    scripted.run = cancelled_after_the_first
    with pytest.raises(AttemptFailure, match="cancelled while judging") as caught:
        loaded().judge(request_to(tmp_path / "a.json"), progress_of([], cancelled))
    assert caught.value.failure_class is FailureClass.CANCELLED
    assert not (tmp_path / "a.json").exists()


def test_want_of_memory_has_a_class_in_every_phase() -> None:
    assert OOM_BY_PHASE.keys() == set(Phase)
