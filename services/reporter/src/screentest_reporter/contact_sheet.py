"""Contact sheets, filmstrips and posters from a clip: a child process, because a decoder may crash on a broken file.

``python -m screentest_reporter.contact_sheet`` reads one JSON request a line on stdin and answers one line each on
stdout; it ends when stdin does, so it never outlives the reporter.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.video.frame import VideoFrame
from PIL import Image, ImageDraw, ImageFont, ImageOps

FRAMES = 12
COLUMNS = 4
CELL_WIDTH_PX = 320
# A beat strip has 8 to 16 windows: each of these frames stands above one or two of them.
STRIP_FRAMES = 8
STRIP_CELL_WIDTH_PX = 160
POSTER_WIDTH_PX = 640
KEYFRAME_WIDTH_PX = 1280
GAP_PX = 6
TITLE_HEIGHT_PX = 40
BADGE_HEIGHT_PX = 26
JPEG_QUALITY = 85

BACKGROUND = "#14161a"
TEXT = "#f2f2f0"
MUTED = "#a9adb5"
BADGE = "#f2b544"
BADGE_TEXT = "#1c1300"


class Undecodable(Exception):
    """The clip cannot be read; the message says how far it went."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame of the clip at ``seconds`` from its beginning."""

    seconds: float
    image: Image.Image


def wanted_times(duration_s: float, frames: int = FRAMES) -> tuple[float, ...]:
    """The middles of equal parts: t_i = (i + 0.5) T / n. Neither the first nor the last frame stands for a clip."""
    return tuple((index + 0.5) * duration_s / frames for index in range(frames))


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Frames at equal times of one clip, for one picture."""

    frames: int
    width_px: int


SHEET = Series(frames=FRAMES, width_px=CELL_WIDTH_PX)
STRIP = Series(frames=STRIP_FRAMES, width_px=STRIP_CELL_WIDTH_PX)
POSTER = Series(frames=1, width_px=POSTER_WIDTH_PX)


def read_shots(path: Path, *wanted: Series) -> list[list[Shot]]:
    """Of each series the frame on screen at each of its times; the clip is decoded once."""
    shots: list[list[Shot]] = [[] for _ in wanted]
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            duration_s = _duration_s(container, stream)
            for number, shot in _choose(container.decode(stream), _moments(duration_s, wanted)):
                shots[number].append(shot)
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error
    if not all(shots):
        raise Undecodable("it holds no frame")
    return shots


@dataclass(frozen=True, slots=True, order=True)
class _Moment:
    """One frame that is wanted, for the series of this number."""

    seconds: float
    series: int
    width_px: int


def _moments(duration_s: float, wanted: Sequence[Series]) -> list[_Moment]:
    return sorted(
        _Moment(seconds, number, series.width_px)
        for number, series in enumerate(wanted)
        for seconds in wanted_times(duration_s, series.frames)
    )


def _duration_s(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration / av.time_base)
    raise Undecodable("it does not say how long it is")


def _choose(frames: Iterator[VideoFrame], moments: list[_Moment]) -> Iterator[tuple[int, Shot]]:
    """Streams: one decoded frame is kept at a time, and only chosen ones become images."""
    left = deque(moments)
    shown: VideoFrame | None = None
    for frame in frames:
        while left and shown is not None and frame.time is not None and frame.time > left[0].seconds + 1e-6:
            moment = left.popleft()
            yield moment.series, _shot(shown, moment.width_px)
        shown = frame
    if shown is not None:
        for moment in left:
            yield moment.series, _shot(shown, moment.width_px)


def _shot(frame: VideoFrame, width_px: int) -> Shot:
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]  # PyAV's stub has none
    return Shot(float(frame.time or 0.0), resize(image, width_px))


def resize(image: Image.Image, width_px: int) -> Image.Image:
    """Small frames are enlarged pixel by pixel: nothing is smoothed into them."""
    height_px = max(1, round(image.height * width_px / image.width))
    method = Image.Resampling.NEAREST if image.width < width_px else Image.Resampling.LANCZOS
    return image.resize((width_px, height_px), method)


def draw_sheet(shots: list[Shot], title: str, badge: str) -> Image.Image:
    """Four columns, timestamps in the corner of each cell, title on top, the badge in a strip that cannot be missed."""
    cell_width, cell_height = shots[0].image.size
    rows = -(-len(shots) // COLUMNS)
    top = TITLE_HEIGHT_PX + (BADGE_HEIGHT_PX if badge else 0)
    size = (COLUMNS * cell_width + (COLUMNS + 1) * GAP_PX, top + rows * cell_height + (rows + 1) * GAP_PX)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (GAP_PX * 2, TITLE_HEIGHT_PX // 2), title, 18, TEXT, anchor="lm", width_px=size[0] - 4 * GAP_PX)
    if badge:
        draw_badge(draw, (0, TITLE_HEIGHT_PX), size[0], badge)
    for index, shot in enumerate(shots):
        x = GAP_PX + (index % COLUMNS) * (cell_width + GAP_PX)
        y = top + GAP_PX + (index // COLUMNS) * (cell_height + GAP_PX)
        sheet.paste(shot.image, (x, y))
        _label(draw, (x, y + cell_height), f"{shot.seconds:.2f} s")
    return sheet


def draw_strip(shots: list[Shot], badge: str) -> Image.Image:
    """One row without gaps: frame k stands for part k of the clip, above the same part of a beat strip."""
    cell_width, cell_height = shots[0].image.size
    top = BADGE_HEIGHT_PX if badge else 0
    strip = Image.new("RGB", (len(shots) * cell_width, top + cell_height), BACKGROUND)
    if badge:
        draw_badge(ImageDraw.Draw(strip), (0, 0), strip.width, badge)
    for index, shot in enumerate(shots):
        strip.paste(shot.image, (index * cell_width, top))
    return strip


def draw_poster(shot: Shot, badge: str) -> Image.Image:
    """The badge is at the top, because a player's controls cover the bottom, and large, because a card is small."""
    poster = shot.image.copy()
    if badge:
        draw_badge(ImageDraw.Draw(poster), (0, 0), poster.width, badge, scale=1.6)
    return poster


def draw_badge(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width_px: int, badge: str, scale: float = 1.0
) -> None:
    x, y = corner
    height = round(BADGE_HEIGHT_PX * scale)
    draw.rectangle((x, y, x + width_px, y + height), fill=BADGE)
    room = width_px - 4 * GAP_PX
    _text(draw, (x + 2 * GAP_PX, y + height // 2), badge, round(14 * scale), BADGE_TEXT, anchor="lm", width_px=room)


def _label(draw: ImageDraw.ImageDraw, lower_left: tuple[int, int], text: str) -> None:
    x, y = lower_left
    font = ImageFont.load_default(size=13)
    width = draw.textlength(text, font=font)
    draw.rectangle((x, y - 20, x + width + 10, y), fill=BACKGROUND)
    draw.text((x + 5, y - 10), text, font=font, fill=MUTED, anchor="lm")


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, fill: str, *, anchor: str, width_px: int
) -> None:
    """Shortened to the width it has."""
    font = ImageFont.load_default(size=size)
    shown = " ".join(text.split())
    while len(shown) > 1 and draw.textlength(shown, font=font) > width_px:
        shown = shown[:-2].rstrip() + "…"
    draw.text(at, shown, font=font, fill=fill, anchor=anchor)


def make(request: dict[str, Any]) -> None:
    """Writes sheet, strip and poster of one clip, or the small copy of a keyframe. Raises Undecodable."""
    if "picture" in request:
        shrink(Path(request["picture"]), Path(request["copy"]))
        return
    badge = request["badge"]
    of_sheet, of_strip, of_poster = read_shots(Path(request["clip"]), SHEET, STRIP, POSTER)
    _save(draw_sheet(of_sheet, request["title"], badge), request["sheet"])
    _save(draw_strip(of_strip, badge), request["strip"])
    _save(draw_poster(of_poster[0], badge), request["poster"])


def _save(image: Image.Image, path: str) -> None:
    image.save(path, "JPEG", quality=JPEG_QUALITY, optimize=True)


def shrink(source: Path, copy: Path) -> None:
    try:
        with Image.open(source) as opened:
            image = ImageOps.exif_transpose(opened.convert("RGB"))
            image.thumbnail((KEYFRAME_WIDTH_PX, KEYFRAME_WIDTH_PX))
            image.save(copy, "JPEG", quality=JPEG_QUALITY, optimize=True)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error


def answer(line: str) -> dict[str, str]:
    """``{}`` = made; otherwise the error to show."""
    try:
        make(json.loads(line))
    except Undecodable as error:
        return {"error": str(error)}
    return {}


def main() -> None:
    with contextlib.suppress(OSError):
        os.nice(10)  # pictures may wait for what a person waits for
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
