"""Scene lanes: no model, but clips of which everybody knows how well they follow their prompt. For tests of judging.

The prompt names four things and where they are: `a red circle, then a green square, then a blue cross, then a white
ring, on a dark background`. The lane's [call] says with `scene` how the story is told, one of scenes.KINDS.
Call keywords: prompt, width, height, num_frames, steps, fps, scene.
"""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

from screentest_runner.failures import AttemptFailure
from screentest_runner.frames import Clip
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Generate, Load, Phase


class SceneAdapter:
    """Tells the prompt's story; the same prompt, seed and lane give the same pixels."""

    def __init__(self, lane: dict[str, Any]) -> None:
        pass

    def prepare(self) -> dict[str, str]:
        from screentest_runner import scenes  # noqa: F401  (imported so that generate does not pay for it)

        return {"python": platform.python_version(), "numpy": metadata.version("numpy")}

    def load(self, load: Load, device: str) -> float | None:
        return None

    def generate(self, generate: Generate, progress: AttemptProgress) -> Clip:
        import numpy as np

        from screentest_runner import scenes

        call = generate.call
        if call["scene"] not in scenes.KINDS:
            raise _refused(f"unknown scene {call['scene']!r}; there are {', '.join(scenes.KINDS)}")
        story = story_of(str(call["prompt"]), generate.seed)
        progress.enter(Phase.DENOISING)
        pixels = scenes.clip(
            story,
            call["scene"],
            frames=int(call["num_frames"]),
            width_px=int(call["width"]),
            height_px=int(call["height"]),
        )
        progress.step_done(1)
        return Clip(pixels=np.ascontiguousarray(pixels), finite_fraction=1.0)

    def phase_failed(self, phase: Phase) -> None:
        """It uses no device."""

    def device_bytes(self) -> int | None:
        return None

    def peak_device_bytes(self) -> int | None:
        return None

    def peak_memory_by_phase(self) -> dict[str, int] | None:
        return None

    def peak_tensors_by_phase(self) -> dict[str, int] | None:
        return None


def story_of(prompt: str, seed: int) -> Any:
    """The scenes.Story that a prompt tells. Raises AttemptFailure(bad_kwargs) for one that this world does not know."""
    from screentest_runner import scenes

    colours, shapes, places = "|".join(scenes.COLOURS), "|".join(scenes.SHAPES), "|".join(scenes.BACKGROUNDS)
    things = tuple(scenes.Thing(colour, shape) for colour, shape in re.findall(rf"({colours}) ({shapes})", prompt))
    if len(things) != scenes.BEATS:
        raise _refused(
            f"the prompt names {len(things)} things of this world, a scene tells {scenes.BEATS}: a colour "
            f"({', '.join(scenes.COLOURS)}) and a shape ({', '.join(scenes.SHAPES)}) each"
        )
    place = re.search(rf"({places}) background", prompt)
    if place is None:
        raise _refused(f"the prompt names no background; there are {', '.join(scenes.BACKGROUNDS)}")
    return scenes.Story(things=things, background=place[1], seed=seed)


def _refused(message: str) -> AttemptFailure:
    return AttemptFailure(FailureClass.BAD_KWARGS, message)
