"""Decoded pictures on their way to the scratch file: the finite check, uint8, the raw write."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """pixels: numpy (T, H, W, 3) uint8, C order. finite_fraction: of the floats it was made from."""

    pixels: Any
    finite_fraction: float


def check_shape(clip: Clip, *, frames: int | None, height_px: int | None, width_px: int | None) -> None:
    """Raises AttemptFailure(truncated) on another frame count than asked, `layout`-free text on another size.

    None means that the lane does not take that parameter, so nothing was asked.
    """
    got_frames, got_height_px, got_width_px, _ = clip.pixels.shape
    if frames is not None and got_frames != frames:
        raise AttemptFailure(FailureClass.TRUNCATED, f"the pipeline returned {got_frames} frames, asked for {frames}")
    if (height_px or got_height_px, width_px or got_width_px) != (got_height_px, got_width_px):
        raise AttemptFailure(
            FailureClass.UNCLASSIFIED,
            f"the pipeline returned {got_width_px}x{got_height_px}, asked for {width_px}x{height_px}",
        )


def write(clip: Clip, path: Path) -> None:
    """The raw file. Raises AttemptFailure(infrastructure) when the disk is full, and leaves no partial file then."""
    try:
        with path.open("wb") as file:
            file.write(memoryview(clip.pixels).cast("B"))
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        need_mib = clip.pixels.nbytes / 2**20
        raise AttemptFailure(
            FailureClass.INFRASTRUCTURE,
            f"no space left for {need_mib:.0f} MiB of frames in {path.parent}; free the scratch disk and retry the job",
        ) from error
