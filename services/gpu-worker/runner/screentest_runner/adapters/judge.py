"""A judge instead of a pipeline: the adapter of every judge lane.

The judges themselves are `screentest_runner.judging`. That package is imported when a judge is prepared, because its
libraries are in the judges' environment only.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from screentest_runner.adapters.device_memory import PhaseMemory, cap_memory
from screentest_runner.failures import AttemptFailure
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Judge, Load, Phase


class JudgeAdapter:
    """Holds one judge of `screentest_runner.judging.judge.JUDGES`, by the `adapter` of its file."""

    def __init__(self, lane: dict[str, Any]) -> None:
        self._lane = lane
        self._judge: Any = None
        self._memory = PhaseMemory(is_known=False)

    def prepare(self) -> dict[str, str]:
        from screentest_runner.judging.judge import JUDGES

        name = self._lane["adapter"]
        if name not in JUDGES:
            raise AttemptFailure(
                FailureClass.LAYOUT, f"judge {self._lane['id']!r} wants adapter {name!r}; there are {', '.join(JUDGES)}"
            )
        self._judge = JUDGES[name](self._lane)
        return {"python": platform.python_version(), **self._judge.prepare()}

    def load(self, load: Load, device: str) -> float | None:
        """Only a judge that has weights touches the device."""
        uses_gpu = device != "cpu" and load.weights_dir is not None
        self._memory = PhaseMemory(is_known=uses_gpu)
        if uses_gpu and load.memory_cap_gib is not None:
            cap_memory(load.memory_cap_gib)
        self._judge.load(asdict(load), device)
        self._memory.phase_ended(Phase.LOADING)
        return None

    def judge(self, request: Judge, progress: AttemptProgress) -> dict[str, Any]:
        """What was found, as `judge.run` gives it; it lies in request.judgement_path too."""
        from screentest_runner.judging import judge

        self._memory.reset()
        progress.on_phase_end(self._memory.phase_ended)
        found = judge.run(self._judge, asdict(request), progress.reached, progress.cancelled)
        _write(found, Path(request.judgement_path))
        return found

    def phase_failed(self, phase: Phase) -> None:
        self._memory.phase_failed(phase)

    def device_bytes(self) -> int | None:
        return self._memory.held_now()

    def peak_device_bytes(self) -> int | None:
        return self._memory.peak()

    def peak_memory_by_phase(self) -> dict[str, int] | None:
        return dict(self._memory.held) or None


def _write(found: Mapping[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(found, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise AttemptFailure(
            FailureClass.INFRASTRUCTURE, f"the judgement cannot be written to {path.parent}: {error}"
        ) from error
