"""An attempt that a defect or the worker's end breaks off leaves neither helpers nor what was made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from screentest_worker import attempt
from screentest_worker.attempt import Turns


class BrokenOff:
    """A computation that has written its result when it breaks off."""

    def __init__(self, result: Path, error: BaseException) -> None:
        self._result = result
        self._error = error
        self.has_ended_helpers = False

    async def run(self, *, warm: bool) -> None:
        self._result.write_bytes(b"result")
        raise self._error

    def end_helpers(self) -> None:
        self.has_ended_helpers = True


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), asyncio.CancelledError()])
async def test_broken_off_attempt_leaves_no_helpers_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    broken = BrokenOff(tmp_path / "job-1.result", error)
    monkeypatch.setattr(attempt, "Computation", lambda **_: broken)
    monkeypatch.setattr(Turns, "_key", lambda *_: None)
    monkeypatch.setattr(Turns, "_requests", lambda *_: None)
    turns = Turns.__new__(Turns)  # only what the computation is made of matters here
    turns._scratch = tmp_path
    turns._cancel_grace_s = 1.0
    turns._supervisor = None  # type: ignore[assignment]
    hand: Any = SimpleNamespace(key=("job", 1), dispatch=None)
    hold: Any = SimpleNamespace(runner=None, warm=True)
    with pytest.raises(type(error)):
        await turns._compute(hand, hold, None)  # type: ignore[arg-type]
    assert broken.has_ended_helpers
    assert left_in(tmp_path) == []
