"""How much a clip begins as its keyframe, which is fitted to the clip exactly as the lane fits it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from screentest_runner.judging.media import Media
from screentest_runner.judging.thresholds import Fidelity
from screentest_runner.keyframe import read_keyframe

Rgb = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyframeFidelity:
    """likeness: SSIM of luma with the first frame; last_likeness with the last one. distance: bits of 64 between
    perceptual hashes. colour_difference: mean CIEDE2000.
    """

    likeness: float
    last_likeness: float
    distance: int
    colour_difference: float


def compare(media: Media, keyframe_path: Path, thresholds: Fidelity) -> KeyframeFidelity:
    """media must have frames. Raises OSError where the keyframe cannot be read."""
    assert media.first is not None and media.last is not None
    keyframe = np.asarray(read_keyframe(keyframe_path, media.width_px, media.height_px))
    wanted, first, last = (_small(image, thresholds.side_px) for image in (keyframe, media.first, media.last))
    return KeyframeFidelity(
        likeness=_likeness(wanted, first),
        last_likeness=_likeness(wanted, last),
        distance=int(imagehash.phash(Image.fromarray(wanted)) - imagehash.phash(Image.fromarray(first))),
        colour_difference=float(deltaE_ciede2000(rgb2lab(wanted), rgb2lab(first)).mean()),
    )


def flags(fidelity: KeyframeFidelity, is_frozen: bool, thresholds: Fidelity) -> list[str]:
    if fidelity.likeness < thresholds.ignored_likeness and fidelity.distance > thresholds.ignored_distance:
        return ["source-ignored"]
    held = min(fidelity.likeness, fidelity.last_likeness) > thresholds.still_likeness
    return ["still-of-source"] if held and is_frozen else []


def _small(image: Rgb, side_px: int) -> Rgb:
    height, width = image.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _likeness(first: Rgb, second: Rgb) -> float:
    luma = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
    return float(structural_similarity(*luma, data_range=255))
