"""Where a pipeline's components lie, and in what storage: how a rung of the low-memory ladder is carried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from screentest_runner import full_random

DENOISERS = ("transformer", "transformer_2", "unet")
# by a group_offload rung, where present
STREAMED = (*DENOISERS, "text_encoder", "text_encoder_2", "image_encoder", "connectors")


def denoiser_names(pipe: Any) -> list[str]:
    """Two where a pipeline has one for high and one for low noise."""
    return [name for name in DENOISERS if getattr(pipe, name, None) is not None]


def place(pipe: Any, rung: dict[str, Any], device: Any, dtype_of: Callable[[str], Any]) -> None:
    """Put the pipeline on the device as the rung says. dtype_of: by component name."""
    import torch

    if rung.get("layerwise_fp8"):
        for name in denoiser_names(pipe):
            getattr(pipe, name).enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype_of(name)
            )
    offload_type = rung.get("group_offload")
    if offload_type is None:
        pipe.to(device)
        return
    if hasattr(pipe.vae, "use_tiling"):  # all VAEs but SVD's, which decodes in chunks of frames instead
        pipe.vae.enable_tiling()
    pipe.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=offload_type,
        num_blocks_per_group=1 if offload_type == "block_level" else None,
        use_stream=device.type == "cuda",
        # without it the host waits for the device at every leaf; with it Hunyuan's step on an H200 falls from 1.22
        # to 1.00 of the resident one, for memory that is freed later (6.1 -> 11.9 GiB)
        record_stream=device.type == "cuda",
        exclude_modules=[part for part in pipe.components if part not in STREAMED],
    )


def home(name: str, rung: dict[str, Any], device: Any) -> full_random.Home:
    """Where full-random weights are made: on the device what stays there, on the host what a rung stores smaller or
    streams, as a checkpoint read from disk would be.
    """
    import torch

    is_streamed = "group_offload" in rung and name in STREAMED
    is_cast = bool(rung.get("layerwise_fp8")) and name in DENOISERS
    if not (is_streamed or is_cast):
        return full_random.Home(device=device)
    # page-locked at once, or streaming would make a second copy of tens of gigabytes
    return full_random.Home(device=torch.device("cpu"), is_pinned=is_streamed and device.type == "cuda")
