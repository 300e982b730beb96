"""A clip or a picture, decoded once and small enough to look at: what every judge is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

LONGEST_SIDE_PX: Final = 320  # enough for what pixels alone can say; a judge that reads details asks for more
MOST_FRAMES: Final = 256
DETAIL_PX: Final = 256
PLANAR_YUV: Final = frozenset({"yuv420p", "yuv422p", "yuv444p"})
FULL_RANGE: Final = 2  # Source: FFmpeg AVCOL_RANGE_JPEG
BT709: Final = 1  # Source: FFmpeg AVCOL_SPC_BT709, SWS_CS_ITU709
# As in screentest_worker.clipfile: by default the decoder paints over damage and says nothing.
STRICT: Final = {"err_detect": "crccheck+bitstream+buffer+explode"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Media:
    """What could be decoded. A file that is cut short or no video at all has an `error` and the frames before it.

    frames: (T, h, w, 3) uint8 RGB, scaled so that the longest side is `longest_side_px` at most; T <= `most_frames`,
    every `stride`-th frame of the file. T is 0 where nothing could be decoded. times_s: (T,) presentation times, from
    the clip's first frame on, rising. details: (T, <= 256, <= 256) uint8 luma of the middle at full size, full range:
    scaling down would smooth noise away. first, last: (H, W, 3) uint8 RGB at full size; None without a frame.
    frames_decoded, frames_announced: of the whole file; announced is None where the container does not say. fps: the
    average rate, None where there is none. duration_s: to the end of the last frame. error: the decoder's words, empty
    where the whole file could be decoded. is_image: a picture, which has no motion to speak of.
    """

    frames: Pixels
    times_s: NDArray[np.float64]
    details: Pixels
    first: Pixels | None
    last: Pixels | None
    frames_decoded: int
    frames_announced: int | None
    stride: int
    width_px: int
    height_px: int
    fps: float | None
    duration_s: float
    is_image: bool
    error: str = ""

    @property
    def interval_s(self) -> float | None:
        """Seconds between two frames that were kept; None with fewer than two."""
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """One part of a clip. frames: (n, h, w, 3) uint8 RGB in time order; times_s: when each of them is shown."""

    begin_s: float
    end_s: float
    frames: Pixels
    times_s: tuple[float, ...]


def read(path: Path, *, longest_side_px: int = LONGEST_SIDE_PX, most_frames: int = MOST_FRAMES) -> Media:
    """Decode the file to its end. Raises OSError where it cannot be opened: an absent file is no bad clip."""
    path.open("rb").close()
    reading = _Reading(longest_side_px, most_frames)
    try:
        with av.open(str(path)) as container:
            reading.all_of(container)
    except (av.FFmpegError, OSError, ValueError) as error:
        # without the name of a file that was only fetched for this: the words go into the report
        reading.error = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reading.media()


def windows(
    media: Media, count: int, frames_per_window: int = 2, at: Sequence[float] | None = None
) -> tuple[Window, ...]:
    """The clip in `count` parts of equal time, `frames_per_window` frames of each.

    at: where in a window its frames lie, shares of it in 0..1; by default evenly inside (1/3 and 2/3 of two). A frame
    is the one shown at that time, so a short clip gives the same frame more than once. Raises ValueError without a
    frame, or for fewer than one window or frame.
    """
    if count < 1 or frames_per_window < 1:
        raise ValueError(f"{count} windows of {frames_per_window} frames; at least one of each is needed")
    if not len(media.frames):
        raise ValueError(f"there is no frame to look at: {media.error or 'the file holds none'}")
    shares = [(i + 1) / (frames_per_window + 1) for i in range(frames_per_window)] if at is None else list(at)
    if len(shares) != frames_per_window:
        raise ValueError(f"{len(shares)} places were given for {frames_per_window} frames")
    length_s = media.duration_s / count
    return tuple(_window(media, k * length_s, length_s, shares) for k in range(count))


def _window(media: Media, begin_s: float, length_s: float, shares: Sequence[float]) -> Window:
    wanted = np.array([begin_s + share * length_s for share in shares])
    chosen = np.clip(np.searchsorted(media.times_s, wanted + 1e-9, side="right") - 1, 0, None)
    return Window(
        begin_s=begin_s,
        end_s=begin_s + length_s,
        frames=media.frames[chosen],
        times_s=tuple(float(media.times_s[i]) for i in chosen),
    )


class _Reading:
    """Gathers frames while they are decoded. What a container announces is not believed: when there are too many
    frames, every second one is dropped and the stride doubles.
    """

    def __init__(self, longest_side_px: int, most_frames: int) -> None:
        self.error = ""
        self._longest_side_px, self._most_frames = longest_side_px, most_frames
        self._stride = 1
        self._kept: list[tuple[float, Pixels, Pixels]] = []
        self._count = 0
        self._first: Pixels | None = None
        self._last_frame: av.VideoFrame | None = None
        self._first_s = self._last_s = 0.0
        self._announced: int | None = None
        self._fps: float | None = None
        self._is_image = False

    def all_of(self, container: av.container.InputContainer) -> None:
        if not container.streams.video:
            self.error = "the file holds no video"
            return
        stream = container.streams.video[0]
        stream.codec_context.options = STRICT
        self._is_image = _is_of_images(container.format.name)
        self._announced = stream.frames or None
        self._fps = float(stream.average_rate) if stream.average_rate and not self._is_image else None
        for frame in container.decode(stream):
            if frame.is_corrupt:
                self.error = f"frame {self._count + 1} is damaged"
                return
            if self._last_frame is not None and _size(frame) != _size(self._last_frame):
                self.error = f"frame {self._count + 1} is {_size(frame)}, the ones before are {_size(self._last_frame)}"
                return
            self._take(frame)
        if not self._count:
            self.error = "the file holds no frame that can be decoded"

    def _take(self, frame: av.VideoFrame) -> None:
        time_s = self._time_s(frame)
        if self._first is None:
            self._first, self._first_s = _rgb(frame, frame.width, frame.height), time_s
        if self._count % self._stride == 0:
            small = _rgb(frame, *_fitted(frame.width, frame.height, self._longest_side_px))
            self._kept.append((time_s - self._first_s, small, _detail(frame)))
            self._thin()
        self._count += 1
        self._last_frame, self._last_s = frame, time_s

    def _time_s(self, frame: av.VideoFrame) -> float:
        """Frames without a time, or that stand still in it, follow each other at the file's rate."""
        step_s = 1.0 / (self._fps or 1.0)
        if frame.time is not None and (not self._count or frame.time > self._last_s):
            return float(frame.time)
        return self._last_s + step_s if self._count else 0.0

    def _thin(self) -> None:
        if len(self._kept) > self._most_frames:
            del self._kept[1::2]
            self._stride *= 2

    def media(self) -> Media:
        last = self._last_frame
        last_s = self._last_s - self._first_s
        step_s = 0.0 if self._is_image else 1.0 / (self._fps or 1.0)
        return Media(
            frames=_stacked([small for _, small, _ in self._kept], (0, 0, 0, 3)),
            times_s=np.array([time_s for time_s, _, _ in self._kept], np.float64),
            details=_stacked([detail for _, _, detail in self._kept], (0, 0, 0)),
            first=self._first,
            last=None if last is None else _rgb(last, last.width, last.height),
            frames_decoded=self._count,
            frames_announced=self._announced,
            stride=self._stride,
            width_px=0 if last is None else last.width,
            height_px=0 if last is None else last.height,
            fps=self._fps,
            duration_s=last_s + step_s if self._count else 0.0,
            is_image=self._is_image,
            error=self.error,
        )


def _is_of_images(format_name: str) -> bool:
    """Demuxers of single pictures. Source: FFmpeg's names, image2 and png_pipe, jpeg_pipe and the like."""
    return format_name.startswith("image2") or format_name.endswith("_pipe")


def _size(frame: av.VideoFrame) -> str:
    return f"{frame.width}x{frame.height}"


def _fitted(width_px: int, height_px: int, longest_side_px: int) -> tuple[int, int]:
    """Never enlarged, never below two pixels."""
    scale = min(1.0, longest_side_px / max(width_px, height_px))
    return max(2, round(width_px * scale)), max(2, round(height_px * scale))


def _rgb(frame: av.VideoFrame, width_px: int, height_px: int) -> Pixels:
    return frame.to_ndarray(
        format="rgb24", width=width_px, height=height_px, interpolation="AREA", src_colorspace=_colour_matrix(frame)
    )


def _colour_matrix(frame: av.VideoFrame) -> int | None:
    """swscale takes BT.601 for granted; a clip that says BT.709 must be read as such, or its colours shift."""
    return BT709 if frame.colorspace == BT709 else None


def _detail(frame: av.VideoFrame) -> Pixels:
    """Luma of the middle, (<= DETAIL_PX, <= DETAIL_PX) uint8 in 0..255, full range."""
    if frame.format.name not in PLANAR_YUV:
        return _middle(frame.to_ndarray(format="gray"))
    # The plane itself: asking swscale for gray costs a millisecond a frame, whatever the size.
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    middle = _middle(rows)
    return middle.copy() if frame.color_range == FULL_RANGE else FULL_OF_LIMITED[middle]


def _middle(luma: Pixels) -> Pixels:
    height, width = luma.shape
    top, left = max(0, (height - DETAIL_PX) // 2), max(0, (width - DETAIL_PX) // 2)
    return luma[top : top + DETAIL_PX, left : left + DETAIL_PX]


def _stacked(arrays: Sequence[Pixels], empty: tuple[int, ...]) -> Pixels:
    return np.stack(arrays) if arrays else np.zeros(empty, np.uint8)


def _full_of_limited() -> Pixels:
    """Studio range 16..235 to 0..255, as a table by value. Source: ITU-R BT.709."""
    return np.clip(np.rint((np.arange(256) - 16.0) * (255.0 / 219.0)), 0, 255).astype(np.uint8)


FULL_OF_LIMITED: Final = _full_of_limited()
