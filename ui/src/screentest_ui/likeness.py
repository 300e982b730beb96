"""How alike two clips are: the same pictures bit by bit, or their structural similarity by FFmpeg's ``ssim`` filter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.filter import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """``exact``: every decoded frame is equal (files differ in what they say of their job). ``ssim``: mean over frames
    of all planes, 0 to 1; ``worst``: its lowest frame. None where ``why`` says why they cannot be compared.
    """

    exact: bool = False
    ssim: float | None = None
    worst: float | None = None
    why: str = ""

    @property
    def text(self) -> str:
        """``bit-exact``, ``SSIM 0.982 (worst frame 0.961)``, or why there is none."""
        if self.exact:
            return "bit-exact"
        if self.ssim is None or self.worst is None:
            return f"not compared: {self.why}"
        return f"SSIM {self.ssim:.3f} (worst frame {self.worst:.3f})"


def likeness(a: Path, b: Path) -> Likeness:
    """Frame by frame; clips of other sizes or lengths are not stretched to fit."""
    try:
        with av.open(str(a)) as left, av.open(str(b)) as right:
            return _compared(left, right)
    except (av.FFmpegError, OSError) as error:
        return Likeness(why=f"a clip cannot be decoded: {error}")


def _compared(left: av.container.InputContainer, right: av.container.InputContainer) -> Likeness:
    size_a, size_b = (
        (container.streams.video[0].width, container.streams.video[0].height) for container in (left, right)
    )
    if size_a != size_b:
        return Likeness(why=f"{size_a[0]}x{size_a[1]} and {size_b[0]}x{size_b[1]} pixels")
    graph = Graph()
    inputs = [graph.add_buffer(template=container.streams.video[0]) for container in (left, right)]
    comparing, out = graph.add("ssim"), graph.add("buffersink")
    for number, source in enumerate(inputs):
        source.link_to(comparing, 0, number)
    comparing.link_to(out)
    graph.configure()
    frames_a, frames_b = left.decode(video=0), right.decode(video=0)
    found: list[float] = []
    exact = True
    while True:
        frame_a, frame_b = next(frames_a, None), next(frames_b, None)
        if frame_a is None or frame_b is None:
            break
        exact = exact and _is_same(frame_a, frame_b)
        for source, frame in zip(inputs, (frame_a, frame_b), strict=True):
            source.push(frame)
        found += _pulled(out)
    if (frame_a is None) != (frame_b is None):
        return Likeness(why=f"one has more frames than the other's {len(found)}")
    if not found:
        return Likeness(why="there are no frames")
    return Likeness(exact=exact, ssim=sum(found) / len(found), worst=min(found))


def _is_same(a: av.VideoFrame, b: av.VideoFrame) -> bool:
    return np.array_equal(a.to_ndarray(), b.to_ndarray())


def _pulled(out: av.filter.context.FilterContext) -> list[float]:
    found: list[float] = []
    while True:
        try:
            frame = out.pull()
        except (av.BlockingIOError, av.EOFError):
            return found
        found.append(float(frame.metadata["lavfi.ssim.All"]))
