"""What a clip costs in floating point operations: the polynomial of a lane file's `[cost]`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from screentest.lanes import Cost
from screentest.measured import Shape


def forward_tflop(cost: Cost, shape: Shape, *, guided: bool = True) -> float:
    """1e12 operations of one call of the denoiser."""
    t = (shape.num_frames - 1) // cost.token.frames + 1
    a = (shape.width_px // cost.token.width_px) * (shape.height_px // cost.token.height_px)
    count = cost.tflop
    one = (
        count.constant + count.frames * t + count.tokens * t * a + count.spatial * t * a**2 + count.temporal * t**2 * a
    )
    one += count.joint * (t * a) ** 2
    return one * (2 if guided and _doubles(cost) == "batch" else 1)


def forwards(cost: Cost, steps: int, *, guided: bool = True) -> int:
    """Calls of the denoiser in a clip."""
    return steps * (2 if guided and _doubles(cost) == "forwards" else 1)


def clip_tflop(cost: Cost, shape: Shape, steps: int, *, guided: bool = True) -> float:
    """1e12 operations of a clip's denoising."""
    return forwards(cost, steps, guided=guided) * forward_tflop(cost, shape, guided=guided)


def is_guided(cost: Cost, call: Mapping[str, object]) -> bool:
    """Whether the pipeline's keyword arguments switch guidance on; without the keyword the class's default does."""
    if cost.guidance is None:
        return False
    scale = call.get(cost.guidance.keyword)
    return not isinstance(scale, int | float) or scale > 1


def tokens(cost: Cost, shape: Shape) -> int:
    """That the denoiser computes at a time, text aside."""
    t = (shape.num_frames - 1) // cost.token.frames + 1
    return t * (shape.width_px // cost.token.width_px) * (shape.height_px // cost.token.height_px)


def _doubles(cost: Cost) -> str | None:
    return None if cost.guidance is None else cost.guidance.doubles
