"""The keyframe as every image-to-video pipeline wants it: PIL, RGB, exactly the size of the clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_keyframe(path: Path, width_px: int, height_px: int) -> Any:
    """A PIL image in RGB, width_px x height_px: scaled to cover, cut at the centre, never distorted.

    RGB, because an alpha channel reaches the VAE as a fourth channel and fails there minutes later.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return ImageOps.fit(image.convert("RGB"), (width_px, height_px), Image.Resampling.LANCZOS)
