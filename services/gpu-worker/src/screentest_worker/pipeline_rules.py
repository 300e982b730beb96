"""What pipeline classes want beyond their signatures, as found by running them (reference lane facts). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from screentest.lanes import Lane
from screentest_worker.findings import Check, Problem

# These hand their tensors from part to part without a cast: a float32 VAE beside bfloat16 parts ends in "Input type
# (c10::BFloat16) and bias type (float) should be the same" (run on diffusers 0.42.1 with every class).
_ONE_DTYPE: Final = frozenset(
    {
        "CogVideoXPipeline",
        "CogVideoXImageToVideoPipeline",
        "MochiPipeline",
        "LTXPipeline",
        "LTXImageToVideoPipeline",
        "LTXConditionPipeline",
        "StableVideoDiffusionPipeline",
    }
)

_DIFFUSION_FORCING: Final = frozenset(
    {"SkyReelsV2DiffusionForcingPipeline", "SkyReelsV2DiffusionForcingImageToVideoPipeline"}
)


def problems(lane: Lane, call: Mapping[str, Any]) -> Iterator[Problem]:
    """``call``: the job's keyword arguments."""
    kind, dtypes = lane.pipeline.class_name, lane.pipeline.dtype
    if kind in _ONE_DTYPE and len(set(dtypes.values())) > 1:
        said = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        reason = f"{kind} computes in one dtype, the lane names several: {said}"
        yield Problem(check=Check.DTYPE, reason=reason, fix="name only a default in pipeline.dtype of the lane")
    if kind.startswith("CogVideoX") and _is_rotary(lane) and "float16" in dtypes.values():
        reason = "CogVideoX with rotary positions (5B) overflows in float16: its clips are black (zai-org/CogVideo#637)"
        yield Problem(check=Check.DTYPE, reason=reason, fix='set pipeline.dtype = { default = "bfloat16" } in the lane')
    if kind in _DIFFUSION_FORCING:
        yield from _windows(call)


def _is_rotary(lane: Lane) -> bool:
    """The 5B has rotary positional embeddings, the 2B, which is made for float16, has not."""
    transformer = lane.components.get("transformer")
    return transformer is not None and bool(transformer.config.get("use_rotary_positional_embeddings"))


def _windows(call: Mapping[str, Any]) -> Iterator[Problem]:
    """More frames than one window holds need frames to carry over."""
    frames, base = call.get("num_frames"), call.get("base_num_frames", 97)
    if isinstance(frames, int) and isinstance(base, int) and frames > base and call.get("overlap_history") is None:
        reason = f"{frames} frames are more than one window of {base}, and the call passes no overlap_history"
        yield Problem(
            check=Check.SHAPE, reason=reason, fix=f"ask for at most {base} frames, or set overlap_history = 17"
        )
