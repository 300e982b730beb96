"""Reads a finished MP4 the way a stranger would: every frame decoded, counted and looked at.

`python -m screentest_worker.clipfile` is the short-lived child that does it, because a broken file may take its decoder
down. It is started while the runner denoises and waits for one JSON line, `{"path": ..., "expected_frames": ...}`.
av and numpy are imported by that child alone; the supervisor stays small.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

REPLY_FD_VARIABLE: Final = "SCREENTEST_REPLY_FD"  # as in screentest_runner.protocol; the child imports little

# Thresholds of the checks. Sources: ffmpeg blackdetect (pix_th .10, pic_th .98) and freezedetect (n .001) defaults;
# flatness and correlation were measured on synthetic clips (noise .56/.02, 1/f texture .09/.89).
BLACK_LUMA: Final = 0.10 * 255
BLACK_PIXEL_SHARE: Final = 0.98
BLACK_FRAME_SHARE: Final = 0.9
BLACK_BRIGHTEST: Final = 48.0  # 99.9th percentile; a street with a few lamps is lit (as in judging/thresholds.toml)
FLAT_DEVIATION: Final = 4.0
NOISE_FLATNESS: Final = 0.30
NOISE_CORRELATION: Final = 0.5
STILL_PAIR_DIFFERENCE: Final = 0.001 * 255
FROZEN_PAIR_SHARE: Final = 0.95
# A dim clip that moves looks still by pixel difference alone: what moved in all must be small against the contrast.
FROZEN_DRIFT: Final = 0.02

LONGEST_SIDE_PX: Final = 320  # enough to see whether a picture is black, flat or still
MOST_FRAMES_LOOKED_AT: Final = 256
NOISE_FRAMES: Final = 8
PLANAR_YUV: Final = frozenset({"yuv420p", "yuv422p", "yuv444p"})
FULL_RANGE: Final = 2  # Source: FFmpeg AVCOL_RANGE_JPEG
NOISE_CROP_PX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was found. ``error`` is empty when the whole file could be decoded, else the decoder's own words."""

    error: str = ""
    codec: str = ""
    pixel_format: str = ""
    frames: int = 0
    width_px: int = 0
    height_px: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    flags: tuple[str, ...] = ()


def request_line(path: Path, expected_frames: int) -> bytes:
    return json.dumps({"path": str(path), "expected_frames": expected_frames}).encode() + b"\n"


def read_reply(line: bytes) -> Probe:
    content = json.loads(line)
    return Probe(**{**content, "flags": tuple(content["flags"])})


def probe(path: Path, expected_frames: int) -> Probe:
    """Decodes the file to its end. ``expected_frames`` only decides which frames are looked at closely."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return Probe(error="the file holds no video")
            return _read(container, container.streams.video[0], max(1, expected_frames))
    except (av.FFmpegError, OSError) as error:
        return Probe(error=str(error) or type(error).__name__)


def _read(container: Any, stream: Any, expected_frames: int) -> Probe:
    # By default the decoder paints over damage and says nothing: 44 of 60 files with one wrong byte passed that way.
    stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    look = Look(expected_frames)
    frames, end_s = 0, 0.0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            return Probe(error=f"frame {frames + 1} is damaged")
        look.at(frame, frames)
        frames += 1
        if frame.pts is not None and frame.time_base is not None:
            end_s = float((frame.pts + (frame.duration or 0)) * frame.time_base)
    if not frames:
        return Probe(error="the file holds no frame that can be decoded")
    context = stream.codec_context
    return Probe(
        codec=context.name,
        pixel_format=context.pix_fmt or "",
        frames=frames,
        width_px=context.width,
        height_px=context.height,
        fps=float(stream.average_rate or 0),
        duration_s=end_s,
        flags=look.flags(),
    )


class Look:
    """Statistics of the luma of a clip, gathered frame by frame so that no clip has to fit into memory."""

    def __init__(self, expected_frames: int) -> None:
        self._every = math.ceil(expected_frames / MOST_FRAMES_LOOKED_AT)
        self._noise_every = math.ceil(expected_frames / NOISE_FRAMES)
        self._black: list[bool] = []
        self._deviations: list[float] = []
        self._noise: list[tuple[float, float]] = []
        self._pair_differences: list[float] = []
        self._drifts: list[float] = []
        self._first: Any = None
        self._before: Any = None

    def at(self, frame: Any, index: int) -> None:
        is_looked_at, is_measured = index % self._every == 0, index % self._noise_every == 0
        if not (is_looked_at or is_measured):
            return
        luma = _luma(frame)
        if is_looked_at:
            self._at_small(_shrunk(luma))
        if is_measured:
            self._noise.append(noise_measures(_crop(luma)))

    def _at_small(self, luma: Any) -> None:
        self._black.append(_is_black(luma))
        self._deviations.append(float(luma.std()))
        if self._before is None:
            self._first = luma
        else:
            self._pair_differences.append(float(abs(luma - self._before).mean()))
            self._drifts.append(float(abs(luma - self._first).mean()) / (float(self._first.std()) + 1e-6))
        self._before = luma

    def flags(self) -> tuple[str, ...]:
        """At most one: a black clip is also flat and frozen, which tells nothing more."""
        if _mean(self._black) >= BLACK_FRAME_SHARE:
            return ("black",)
        if _mean(self._deviations) < FLAT_DEVIATION:
            return ("flat",)
        flatness = _mean([flat for flat, _ in self._noise])
        correlation = _mean([corr for _, corr in self._noise])
        if flatness > NOISE_FLATNESS and correlation < NOISE_CORRELATION:
            return ("noise",)
        return ("frozen",) if self._is_frozen() else ()

    def _is_frozen(self) -> bool:
        """A single frame is a picture, not a frozen clip."""
        if not self._pair_differences:
            return False
        still = _mean([difference < STILL_PAIR_DIFFERENCE for difference in self._pair_differences])
        return still >= FROZEN_PAIR_SHARE and max(self._drifts) < FROZEN_DRIFT


def _is_black(luma: Any) -> bool:
    import numpy as np

    is_dark = float((luma < BLACK_LUMA).mean()) >= BLACK_PIXEL_SHARE
    return is_dark and float(np.percentile(luma, 99.9)) < BLACK_BRIGHTEST


def noise_measures(luma: Any) -> tuple[float, float]:
    """Spectral flatness (geometric over arithmetic mean of the 2-D power spectrum, without its mean) and the
    correlation of horizontal neighbours. ``luma``: (H, W) float32 in 0..255.
    """
    import numpy as np

    centred = luma - luma.mean()
    power = np.abs(np.fft.rfft2(centred)) ** 2
    power = power.ravel()[1:] + 1e-12
    if centred.std() < 1e-3:  # one colour has no spectrum
        return 0.0, 1.0
    flatness = float(np.exp(np.log(power).mean()) / power.mean())
    left, right = centred[:, :-1].ravel(), centred[:, 1:].ravel()
    scale = float(left.std() * right.std())
    return flatness, float((left * right).mean()) / scale if scale > 1e-6 else 1.0


def _luma(frame: Any) -> Any:
    """(H, W) float32 in 0..255, full range."""
    import numpy as np

    if frame.format.name not in PLANAR_YUV:
        return frame.reformat(format="gray").to_ndarray().astype(np.float32)
    # The plane itself: asking swscale for gray costs a millisecond a frame, whatever the size.
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    luma = rows.astype(np.float32)
    return luma if frame.color_range == FULL_RANGE else np.clip((luma - 16.0) * (255.0 / 219.0), 0.0, 255.0)


def _shrunk(luma: Any) -> Any:
    """Block means, so that the longest side is about LONGEST_SIDE_PX; never enlarged."""
    height, width = luma.shape
    factor = max(1, max(height, width) // LONGEST_SIDE_PX)
    if factor == 1:
        return luma
    rows, columns = max(1, height // factor), max(1, width // factor)
    blocks = luma[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    return blocks.mean(axis=(1, 3))


def _crop(luma: Any) -> Any:
    """The middle at full size: scaling down would smooth noise away."""
    height, width = luma.shape
    top, left = max(0, (height - NOISE_CROP_PX) // 2), max(0, (width - NOISE_CROP_PX) // 2)
    return luma[top : top + NOISE_CROP_PX, left : left + NOISE_CROP_PX]


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0


def main() -> int:
    """Exit status: 0 after an answer or when stdin ended without a request."""
    import av  # noqa: F401  (imported while the runner denoises)
    import numpy as np

    noise_measures(np.zeros((8, 8), np.float32))  # numpy loads its FFT at the first use
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    request = json.loads(line)
    found = probe(Path(request["path"]), request["expected_frames"])
    os.write(int(os.environ[REPLY_FD_VARIABLE]), json.dumps(asdict(found)).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
