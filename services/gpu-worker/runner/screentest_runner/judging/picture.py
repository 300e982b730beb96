"""What single frames show: black, flat, noise, dark, clipped, cast, blurred. Motion has a room of its own."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from screentest_runner.judging.media import Media
from screentest_runner.judging.thresholds import Noise, Thresholds

Luma = NDArray[np.uint8]

BT709_WEIGHTS = np.array([[0.2126, 0.7152, 0.0722]], np.float32)  # Source: ITU-R BT.709, of R, G, B
COARSE_BLOCKS = 24  # across the longer side: fine grain averages away, a scene does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Means over frames where nothing else is said. Luma is in 0..255, shares in 0..1.

    deviation: of luma within a frame. bright, brightest: 99th and 99.9th percentile of luma over all frames. flatness:
    geometric over arithmetic mean of the 2-D power spectrum. correlation: of horizontal neighbours at full size;
    coarse_correlation: of blocks. cast: hypot of mean a* and b*. sharpness: var(Laplacian) / var(luma), None where
    nothing varies.
    """

    black_frame_share: float
    luma: float
    bright: float
    brightest: float
    deviation: float
    clipped_low_share: float
    clipped_high_share: float
    flatness: float
    correlation: float
    coarse_correlation: float
    cast: float
    sharpness: float | None


def luma_of(frames: NDArray[np.uint8]) -> Luma:
    """(T, h, w) of (T, h, w, 3) RGB."""
    return np.stack([cv2.transform(frame, BT709_WEIGHTS) for frame in frames])


def look(media: Media, luma: Luma, thresholds: Thresholds) -> Picture:
    """luma: that of media.frames, at least one frame."""
    noise = [_noise_measures(detail) for detail in media.details[_spread(len(media.details), thresholds.noise.frames)]]
    blocks = [_noise_measures(_coarse(luma[i])) for i in _spread(len(luma), thresholds.noise.frames)]
    black = (luma < thresholds.black.luma).mean(axis=(1, 2)) >= thresholds.black.pixel_share
    bright, brightest = np.percentile(luma[:, ::2, ::2], (99, 99.9))
    return Picture(
        black_frame_share=float(black.mean()),
        luma=float(luma.mean()),
        bright=float(bright),
        brightest=float(brightest),
        deviation=float(luma.std(axis=(1, 2)).mean()),
        clipped_low_share=float((luma <= thresholds.clipping.low).mean()),
        clipped_high_share=float((luma >= thresholds.clipping.high).mean()),
        flatness=float(np.mean([flatness for flatness, _ in noise])),
        correlation=float(np.mean([correlation for _, correlation in noise])),
        coarse_correlation=float(np.mean([correlation for _, correlation in blocks])),
        cast=_cast(media.frames),
        sharpness=_sharpness(luma),
    )


def dead_flag(picture: Picture, thresholds: Thresholds) -> str | None:
    """The first that holds, in the order black, flat, noise: a black clip is also flat, which tells nothing more."""
    is_dark = picture.black_frame_share >= thresholds.black.frame_share
    if is_dark and picture.brightest < thresholds.black.brightest:
        return "black"
    if picture.deviation < thresholds.flat.deviation:
        return "flat"
    return "noise" if _is_noise(picture, thresholds.noise) else None


def flags(picture: Picture, thresholds: Thresholds) -> list[str]:
    """What is said of a living clip."""
    found = []
    if picture.bright < thresholds.dark.bright:
        found.append("very-dark")
    if picture.clipped_high_share > thresholds.clipping.high_share:
        found.append("clipped")
    if picture.cast > thresholds.cast.distance:
        found.append("colour-cast")
    if picture.sharpness is not None and picture.sharpness < thresholds.blur.sharpness:
        found.append("blurred")
    return found


def _is_noise(picture: Picture, noise: Noise) -> bool:
    """Grain over a dark wall looks like noise at full size; its blocks still show the wall."""
    is_fine = picture.flatness > noise.flatness and picture.correlation < noise.correlation
    return is_fine and picture.coarse_correlation < noise.coarse_correlation


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _noise_measures(luma: Luma | NDArray[np.float32]) -> tuple[float, float]:
    """Spectral flatness, without the mean, and the correlation of horizontal neighbours. luma: (H, W)."""
    centred = luma.astype(np.float32) - luma.mean()
    if centred.std() < 1e-3:  # one colour has no spectrum
        return 0.0, 1.0
    power = (np.abs(np.fft.rfft2(centred)) ** 2).ravel()[1:] + 1e-12
    flatness = float(np.exp(np.log(power).mean()) / power.mean())
    left, right = centred[:, :-1].ravel(), centred[:, 1:].ravel()
    scale = float(left.std() * right.std())
    return flatness, float((left * right).mean()) / scale if scale > 1e-6 else 1.0


def _coarse(luma: Luma) -> NDArray[np.float32]:
    height, width = luma.shape
    scale = min(1.0, COARSE_BLOCKS / max(height, width))
    size = max(2, round(width * scale)), max(2, round(height * scale))
    return cv2.resize(luma.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _cast(frames: NDArray[np.uint8]) -> float:
    """Of the first, middle and last frame: a cast is over the whole clip."""
    means = [_lab(frames[i])[..., 1:].mean(axis=(0, 1)) for i in _spread(len(frames), 3)]
    return float(np.hypot(*np.mean(means, axis=0)))


def _lab(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIELab, L in 0..100. Source: OpenCV, COLOR_RGB2LAB of float32 in 0..1."""
    return cv2.cvtColor(frame.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)


def _sharpness(luma: Luma) -> float | None:
    """Normalised by the variance: raw Laplacian variance is the square of the contrast as well."""
    found = []
    for i in _spread(len(luma), 8):
        variance = float(luma[i].var())
        if variance > 1.0:
            found.append(float(cv2.Laplacian(luma[i], cv2.CV_32F).var()) / variance)
    return float(np.mean(found)) if found else None
