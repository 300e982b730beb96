"""What moves between frames: still, frozen, near static, freezing midway; flicker, doubled frames, a loop.

Pairs of frames are an eighth of a second apart, as in VBench's dynamic degree, and never straddle a cut. Motion is
judged by optical flow: by pixel difference a dim clip that moves looks frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from screentest_runner.judging.media import Media
from screentest_runner.judging.picture import Luma
from screentest_runner.judging.thresholds import Flicker, Pairs, Thresholds

Flow = NDArray[np.float32]

CONTRAST_SPAN = 200.0  # luma between the darkest and brightest percentile that flow is given
MOST_GAIN = 6.0  # more would lift grain and coding blocks into motion
SMOOTHING_SIGMA_PX = 1.2  # what grain does to a pixel is no motion
COHERENT_PX = 7  # motion of a thing has neighbours that move alike; that of grain has none
SMALLEST_PX = 16  # DIS refuses less
LIKENESS_SIDE_PX = 80  # grain averages away at this size


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two frames of one shot. first, second: indices into the frames. flow: (h, w, 2) in pixels, x then y.

    top_px, moving_px: mean length of the largest flow, over dynamic_share and moving_share of the picture. difference:
    mean absolute luma difference of neighbours within the pair, 0..255. warp_error: what remains of the difference when
    the second frame is moved back by the flow, 0..1; unexplained_share: as a share of that difference.
    """

    first: int
    second: int
    flow: Flow
    top_px: float
    moving_px: float
    difference: float
    warp_error: float
    unexplained_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """kind: one word for how a clip does not move; None where it does. Shares are of pairs, 0..1.

    top_px: mean over pairs, at the size of Media.frames with short_side_px; moving_px: per pair. drift_px: like it,
    from the first frame of a shot to its middle and last, the largest. still_share: pairs without flow;
    unchanged_share: pairs without difference. freeze_from_s: when the longest still run begins, None where there is
    none. is_dynamic: VBench's rule. warp_error, unexplained_share: mean and median over pairs. first_last: SSIM of the
    first and last frame when small; furthest: the least SSIM of the first and one in between. unique_share: different
    perceptual hashes per frame. duplicate_share: neighbours that do not differ in a clip that moves. flip_share,
    second_difference: of the mean luma. The last three need three frames.
    """

    kind: str | None
    short_side_px: int
    pairs: int
    top_px: float
    moving_px: tuple[float, ...]
    drift_px: float
    still_share: float
    unchanged_share: float
    longest_still_share: float
    freeze_from_s: float | None
    is_dynamic: bool
    warp_error: float
    unexplained_share: float
    first_last: float
    furthest: float
    unique_share: float
    duplicate_share: float | None
    flip_share: float | None
    second_difference: float | None


class Flows:
    """Dense optical flow between frames of one clip. Source: OpenCV DISOpticalFlow (arXiv 1603.03590)."""

    def __init__(self, luma: Luma) -> None:
        dark, bright = np.percentile(luma[:, ::2, ::2], (1, 99))
        self._gain = float(np.clip(CONTRAST_SPAN / max(1.0, bright - dark), 1.0, MOST_GAIN))
        self._dark = float(dark)
        self._luma = luma
        self._ready: dict[int, Luma] = {}
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def between(self, first: int, second: int) -> Flow:
        """(h, w, 2) in pixels: where each pixel of the first frame has gone in the second."""
        return self._dis.calc(self.frame(first), self.frame(second), None)

    def frame(self, index: int) -> Luma:
        """Smooth, and with the contrast of a bright clip."""
        if index not in self._ready:
            smooth = cv2.GaussianBlur(self._luma[index].astype(np.float32), (0, 0), SMOOTHING_SIGMA_PX)
            self._ready[index] = np.clip((smooth - self._dark) * self._gain, 0, 255).astype(np.uint8)
        return self._ready[index]


def pairs_of(media: Media, luma: Luma, cuts: Sequence[int], flows: Flows, thresholds: Thresholds) -> tuple[Pair, ...]:
    """Pairs an eighth of a second apart, or neighbours where frames are further apart; none across a cut.

    None at all of a clip whose pictures are too small for flow.
    """
    interval_s = media.interval_s
    if interval_s is None or min(luma.shape[1:]) < SMALLEST_PX:
        return ()
    step = max(1, round(thresholds.pairs.interval_s / interval_s))
    step = min(step, len(luma) - 1)
    starts = range(0, len(luma) - step, step)
    return tuple(
        _pair(luma, first, first + step, flows, thresholds.pairs)
        for first in starts
        if not any(first < cut <= first + step for cut in cuts)
    )


def _pair(luma: Luma, first: int, second: int, flows: Flows, thresholds: Pairs) -> Pair:
    flow = flows.between(first, second)
    lengths = _coherent_lengths(flow)
    differences = [cv2.absdiff(luma[i], luma[i + 1]).mean() for i in range(first, second)]
    warp_error = _warp_error(luma[first], luma[second], flow)
    difference = float(cv2.absdiff(luma[first], luma[second]).mean()) / 255.0
    return Pair(
        first=first,
        second=second,
        flow=flow,
        top_px=_top(lengths, thresholds.dynamic_share),
        moving_px=_top(lengths, thresholds.moving_share),
        difference=float(np.mean(differences)),
        warp_error=warp_error,
        unexplained_share=warp_error / difference if difference > 0 else 0.0,
    )


def _coherent_lengths(flow: Flow) -> NDArray[np.float32]:
    """In pixels, in no order."""
    coherent = cv2.blur(flow, (COHERENT_PX, COHERENT_PX))
    return cv2.magnitude(coherent[..., 0], coherent[..., 1]).ravel()


def _top(lengths: NDArray[np.float32], share: float) -> float:
    """Mean of the largest share of them."""
    count = max(1, round(share * lengths.size))
    return float(np.partition(lengths, lengths.size - count)[-count:].mean())


def _warp_error(first: Luma, second: Luma, flow: Flow) -> float:
    height, width = first.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    back = cv2.remap(second, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return float(cv2.absdiff(back, first).mean()) / 255.0


def measure(
    media: Media, luma: Luma, pairs: Sequence[Pair], cuts: Sequence[int], flows: Flows, thresholds: Thresholds
) -> Motion | None:
    """None where there is no pair: a picture, a single frame, or nothing but cuts."""
    if not pairs:
        return None
    short_px = min(luma.shape[1:])
    small_px = thresholds.still.flow_share * short_px
    is_still = [pair.moving_px < small_px for pair in pairs]
    is_unchanged = [pair.difference < thresholds.still.difference for pair in pairs]
    run_begin, run_length = _longest_run([a and b for a, b in zip(is_still, is_unchanged, strict=True)])
    tops = [pair.top_px for pair in pairs]
    last = len(luma) - 1
    measured = Motion(
        kind=None,
        short_side_px=short_px,
        pairs=len(pairs),
        top_px=float(np.mean(tops)),
        moving_px=tuple(pair.moving_px for pair in pairs),
        drift_px=max(_drifts(len(luma), cuts, flows, thresholds.pairs.moving_share), default=0.0),
        still_share=float(np.mean(is_still)),
        unchanged_share=float(np.mean(is_unchanged)),
        longest_still_share=run_length / len(pairs),
        freeze_from_s=float(media.times_s[pairs[run_begin].first]) if run_length else None,
        is_dynamic=_is_dynamic(tops, short_px, thresholds),
        warp_error=float(np.mean([pair.warp_error for pair in pairs])),
        unexplained_share=float(np.median([pair.unexplained_share for pair in pairs])),
        first_last=_likeness(flows.frame(0), flows.frame(last)),
        furthest=min(_likeness(flows.frame(0), flows.frame(round(share * last))) for share in (0.25, 0.5, 0.75)),
        unique_share=_unique_share(media, thresholds.duplicates.hash_distance),
        duplicate_share=None,
        **_flicker(luma, thresholds.flicker),
    )
    kind = _kind(measured, thresholds)
    return replace(measured, kind=kind, duplicate_share=None if kind else _duplicate_share(luma, thresholds))


def flags(motion: Motion, thresholds: Thresholds) -> list[str]:
    found = [motion.kind] if motion.kind else []
    flip_share, second_difference = motion.flip_share or 0.0, motion.second_difference or 0.0
    flicker = thresholds.flicker
    if flip_share > flicker.flip_share and second_difference > flicker.second_difference:
        found.append("flicker")
    if (motion.duplicate_share or 0.0) > thresholds.duplicates.pair_share:
        found.append("duplicate-frames")
    if (
        motion.kind is None
        and motion.first_last > thresholds.loop.likeness
        and motion.furthest < thresholds.loop.furthest
    ):
        found.append("loop")
    return found


def _kind(motion: Motion, thresholds: Thresholds) -> str | None:
    """The first that holds. Without flow a clip may still change: by dissolving into another picture, or by grain.

    Grain gives every pair a little flow, as slow motion does; but over the whole clip only motion gets anywhere.
    """
    if _is_dissolve(motion, thresholds):
        return "dissolve"
    slow_share = _share_below(motion, thresholds.near_static.flow_share)
    is_anywhere_else = motion.drift_px >= thresholds.still.drift_share * motion.short_side_px
    if slow_share >= thresholds.still.pair_share and not is_anywhere_else:
        return "frozen" if motion.unchanged_share >= thresholds.still.pair_share else "static-with-grain"
    if motion.longest_still_share > thresholds.freeze.run_share:
        return "freezes-midway"
    return "near-static" if slow_share >= thresholds.near_static.pair_share else None


def _is_dissolve(motion: Motion, thresholds: Thresholds) -> bool:
    """Another picture at the end, though nothing moves: what differs within a pair is not explained by its flow."""
    limits = thresholds.dissolve
    is_other = motion.first_last < limits.likeness and motion.unexplained_share > limits.unexplained_share
    is_changing = motion.unchanged_share < thresholds.still.pair_share
    return is_other and is_changing and _share_below(motion, limits.flow_share) >= thresholds.near_static.pair_share


def _share_below(motion: Motion, flow_share: float) -> float:
    """Of pairs whose flow is below a share of the short side."""
    return float(np.mean([px < flow_share * motion.short_side_px for px in motion.moving_px]))


def _longest_run(values: Sequence[bool]) -> tuple[int, int]:
    """Where the longest run of true begins, and its length."""
    best_begin = best = length = 0
    for index, value in enumerate(values):
        length = length + 1 if value else 0
        if length > best:
            best_begin, best = index - length + 1, length
    return best_begin, best


def _drifts(count: int, cuts: Sequence[int], flows: Flows, share: float) -> list[float]:
    """From the first to the middle and last frame of each shot."""
    edges = [0, *cuts, count]
    shots = [(begin, end - 1) for begin, end in pairwise(edges) if end - begin > 1]
    ends = [(begin, end) for begin, last in shots for end in {(begin + last + 1) // 2, last}]
    return [_top(_coherent_lengths(flows.between(begin, end)), share) for begin, end in ends]


def _is_dynamic(tops: Sequence[float], short_px: int, thresholds: Thresholds) -> bool:
    """Source: VBench dynamic_degree.py; its n is the number of frames at 8 a second, that is of pairs and one."""
    wanted = round(thresholds.dynamic.pairs_per_16_frames * (len(tops) + 1) / 16.0)
    limit_px = thresholds.dynamic.flow_per_256_px * short_px / 256.0
    return sum(top_px > limit_px for top_px in tops) >= max(1, wanted)


def _likeness(first: Luma, second: Luma) -> float:
    """SSIM at a size where grain is no difference."""
    height, width = first.shape
    scale = min(1.0, LIKENESS_SIDE_PX / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in (first, second)]
    return _similar(*small)


def _similar(first: Luma, second: Luma) -> float:
    """SSIM of luma. A window of 7 pixels must fit."""
    if min(first.shape) < 7:
        return float(np.array_equal(first, second))
    return float(structural_similarity(first, second, data_range=255))


def _unique_share(media: Media, distance: int) -> float:
    """Different perceptual hashes per frame; a hash within `distance` bits of an earlier one is the same."""
    seen: list[imagehash.ImageHash] = []
    for frame in media.frames:
        found = imagehash.phash(Image.fromarray(frame))
        if all(found - other > distance for other in seen):
            seen.append(found)
    return len(seen) / len(media.frames)


def _duplicate_share(luma: Luma, thresholds: Thresholds) -> float | None:
    """Neighbours that hardly differ, against what the others of this clip differ by.

    None for fewer than three frames, and where hardly any differ: a still scene is no doubled one.
    """
    if len(luma) < 3:
        return None
    differences = np.array([float(cv2.absdiff(a, b).mean()) for a, b in pairwise(luma)])
    usual = float(np.percentile(differences, 75))
    if usual < thresholds.still.difference:
        return None
    return float((differences < thresholds.duplicates.difference_share * usual).mean())


def _flicker(luma: Luma, thresholds: Flicker) -> dict[str, float | None]:
    """Sign flips of the mean luma's difference, and its mean absolute second difference over 255."""
    if len(luma) < 3:
        return {"flip_share": None, "second_difference": None}
    steps = np.diff(luma.mean(axis=(1, 2)))
    steps[np.abs(steps) <= thresholds.step] = 0.0
    return {
        "flip_share": float((steps[:-1] * steps[1:] < 0).mean()),
        "second_difference": float(np.abs(np.diff(steps)).mean()) / 255.0,
    }
