"""Adapters: how one kind of pipeline is loaded and called. A lane file names its adapter by a key of ADAPTERS."""

from __future__ import annotations

from typing import Any, Protocol

from screentest_runner.adapters.diffusers import DiffusersAdapter
from screentest_runner.adapters.judge import JudgeAdapter
from screentest_runner.adapters.scene import SceneAdapter
from screentest_runner.adapters.stub import StubAdapter
from screentest_runner.failures import AttemptFailure
from screentest_runner.frames import Clip
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Generate, Load, Phase


class Holder(Protocol):
    """What a runner holds, a pipeline or a judge. Made once per process with the content of the lane file.

    Any exception ends the request it came from.
    """

    def __init__(self, lane: dict[str, Any]) -> None: ...

    def prepare(self) -> dict[str, str]:
        """Import what load and generate need, without CUDA; returns package versions for the manifest."""

    def load(self, load: Load, device: str) -> float | None:
        """Put the pipeline on the device. Returns seconds spent making weights, None when none were."""

    def phase_failed(self, phase: Phase) -> None:
        """This phase of the attempt wanted more memory than there is: take what it had as its peak."""

    def device_bytes(self) -> int | None:
        """Device memory in use now, None where unknown."""

    def peak_device_bytes(self) -> int | None:
        """Largest device memory since the last attempt began, None where unknown."""

    def peak_memory_by_phase(self) -> dict[str, int] | None:
        """Phase to the largest device memory held in it, of the load and the last attempt; None where unknown."""


class Adapter(Holder, Protocol):
    """Of a pipeline."""

    def generate(self, generate: Generate, progress: AttemptProgress) -> Clip:
        """One clip; enters `denoising` and reports every step."""

    def peak_tensors_by_phase(self) -> dict[str, int] | None:
        """The same of the memory that tensors took."""


ADAPTERS: dict[str, type[Adapter]] = {
    "diffusers": DiffusersAdapter,
    "scene": SceneAdapter,
    "stub": StubAdapter,
}


def holder_of(lane: dict[str, Any]) -> Holder:
    """The adapter of a model's lane or of a judge's. Raises AttemptFailure(layout) when there is none of that name."""
    if lane["task"] == "judge":
        return JudgeAdapter(lane)
    name = lane["pipeline"]["adapter"]
    if name not in ADAPTERS:
        raise AttemptFailure(
            FailureClass.LAYOUT, f"lane {lane['id']!r} wants adapter {name!r}; there are {', '.join(ADAPTERS)}"
        )
    return ADAPTERS[name](lane)
