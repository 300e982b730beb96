"""Small MP4s as the encoder writes them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path, frames: int = 25, *, width_px: int = 96, height_px: int = 64, fps: int = 16, title: str = ""
) -> None:
    """H.264, yuv420p: a bar that moves over a gradient, so that every frame differs."""
    gradient = np.linspace(30, 200, width_px, dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        if title:
            container.metadata["title"] = container.metadata["comment"] = title
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for number in range(frames):
            image = np.zeros((height_px, width_px, 3), dtype=np.uint8)
            image[:, :, 0] = gradient
            image[:, :, 2] = gradient[::-1]
            at = number * (width_px - 12) // max(frames - 1, 1)
            image[:, at : at + 12] = (240, 220, 120)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
