"""What the camera does, from optical flow: a cheap second opinion for the camera elements of a rubric.

Flow cannot tell a dolly from a zoom. The motion of most of the picture is taken for the camera's, so a thing that fills
the frame is mistaken for it; where most of the picture does not move as one, the answer is that it is unclear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from screentest_runner.judging.motion import Flow, Pair
from screentest_runner.judging.picture import Luma
from screentest_runner.judging.thresholds import Camera

MOVES: Final = ("zoom_in", "zoom_out", "pan", "tilt", "roll", "still")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Per second: growth of the picture, shift of its centre in widths and heights, degrees of roll."""

    zoom: float
    pan: float
    tilt: float
    roll_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraMotion:
    """evidence: share of clear pairs that show each move, 0..1; empty where too few pairs are clear.

    rates: medians over clear pairs, None where there are too few. clear_share: of all pairs.
    """

    evidence: dict[str, float]
    rates: Rates | None
    clear_share: float


def watch(luma: Luma, pairs: Sequence[Pair], times_s: Sequence[float], thresholds: Camera) -> CameraMotion:
    found = [_rates(luma[p.first], p.flow, times_s[p.second] - times_s[p.first], thresholds) for p in pairs]
    clear = [rates for rates in found if rates is not None]
    clear_share = len(clear) / len(found) if found else 0.0
    if not clear or clear_share < thresholds.clear_share:
        return CameraMotion(evidence={}, rates=None, clear_share=clear_share)
    moves = [_moves(rates, thresholds) for rates in clear]
    return CameraMotion(
        evidence={move: sum(move in seen for seen in moves) / len(moves) for move in MOVES},
        rates=_median(clear),
        clear_share=clear_share,
    )


def _rates(luma: Luma, flow: Flow, seconds: float, thresholds: Camera) -> Rates | None:
    """A similarity fitted to the flow at places that have contrast; None where most of them do not follow it."""
    points, moved = _places(luma, flow, thresholds)
    if len(points) < thresholds.min_points:
        return None
    matrix, inliers = cv2.estimateAffinePartial2D(
        points, moved, method=cv2.RANSAC, ransacReprojThreshold=thresholds.inlier_px
    )
    if matrix is None or inliers.mean() < thresholds.inlier_share:
        return None
    height, width = luma.shape
    return Rates(
        zoom=float(np.hypot(matrix[0, 0], matrix[1, 0]) - 1.0) / seconds,
        pan=float(matrix[0, 2]) / width / seconds,
        tilt=float(matrix[1, 2]) / height / seconds,
        roll_deg=float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))) / seconds,
    )


def _places(luma: Luma, flow: Flow, thresholds: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Grid points from the middle of the picture, (N, 2) float32 as x, y, and where the flow takes them."""
    height, width = luma.shape
    grid = thresholds.grid_px
    y, x = (part.ravel() for part in np.mgrid[grid // 2 : height : grid, grid // 2 : width : grid])
    smooth = cv2.blur(luma.astype(np.float32), (grid, grid))
    contrast = np.sqrt(np.maximum(0.0, cv2.blur(luma.astype(np.float32) ** 2, (grid, grid)) - smooth**2))
    has_contrast = contrast[y, x] >= thresholds.contrast
    y, x = y[has_contrast], x[has_contrast]
    points = np.stack([x - width / 2, y - height / 2], axis=1).astype(np.float32)
    return points, points + flow[y, x]


def _moves(rates: Rates, thresholds: Camera) -> set[str]:
    moves = {
        "zoom_in": rates.zoom > thresholds.zoom_per_s,
        "zoom_out": rates.zoom < -thresholds.zoom_per_s,
        "pan": abs(rates.pan) > thresholds.shift_per_s,
        "tilt": abs(rates.tilt) > thresholds.shift_per_s,
        "roll": abs(rates.roll_deg) > thresholds.roll_deg_per_s,
    }
    return {move for move, is_seen in moves.items() if is_seen} or {"still"}


def _median(rates: Sequence[Rates]) -> Rates:
    return Rates(
        zoom=float(np.median([r.zoom for r in rates])),
        pan=float(np.median([r.pan for r in rates])),
        tilt=float(np.median([r.tilt for r in rates])),
        roll_deg=float(np.median([r.roll_deg for r in rates])),
    )
