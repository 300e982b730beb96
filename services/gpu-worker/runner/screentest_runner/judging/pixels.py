"""Tier a: what pixels alone prove of a clip or a picture, without any weights, with every number that was measured.

The order of tests matters: black, flat, noise, frozen, motion. A black clip is also flat and frozen; noise has the
largest flow of all; a clip that is only very dark is alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from screentest_runner.judging import camera, cuts, fidelity, motion, picture, thresholds
from screentest_runner.judging.camera import CameraMotion
from screentest_runner.judging.fidelity import KeyframeFidelity
from screentest_runner.judging.media import Media
from screentest_runner.judging.motion import Motion
from screentest_runner.judging.picture import Luma, Picture
from screentest_runner.judging.thresholds import Thresholds

DIGITS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a clip should be; None = nothing was asked. Built from the `asked` object of a Judge request."""

    frames: int | None = None
    fps: float | None = None
    width_px: int | None = None
    height_px: int | None = None
    cuts_expected: int | None = None
    keyframe_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was measured of a clip that is not dead. Motion and the rest are None where a clip has none."""

    cut_indices: tuple[int, ...]
    motion: Motion | None
    camera: CameraMotion
    fidelity: KeyframeFidelity | None


def examine(media: Media, asked: Mapping[str, Any], limits: Thresholds | None = None) -> dict[str, Any]:
    """Flags, camera evidence and every measured number; a value that does not apply is None.

    asked: see Asked; a key that is not there is one that nobody asked. Raises TypeError on an unknown key, OSError
    where the keyframe cannot be read.
    """
    limits = limits or thresholds.shipped()
    wanted = Asked(**asked)
    if not len(media.frames):
        return _result(media, wanted, limits, ["no-frames"], None, None, None)
    luma = picture.luma_of(media.frames)
    seen = picture.look(media, luma, limits)
    found = None
    if dead := picture.dead_flag(seen, limits):
        flags = [dead]
    else:
        found = _living(media, luma, wanted, limits)
        flags = _living_flags(media, seen, found, wanted, limits)
    return _result(media, wanted, limits, flags, luma, seen, found)


def _living(media: Media, luma: Luma, asked: Asked, limits: Thresholds) -> _Found:
    flows = motion.Flows(luma)
    cut_indices = () if media.is_image else cuts.find(media, limits.cuts)
    pairs = () if media.is_image else motion.pairs_of(media, luma, cut_indices, flows, limits)
    return _Found(
        cut_indices=cut_indices,
        motion=motion.measure(media, luma, pairs, cut_indices, flows, limits),
        camera=camera.watch(luma, pairs, media.times_s.tolist(), limits.camera),
        fidelity=_fidelity(media, asked, limits),
    )


def _fidelity(media: Media, asked: Asked, limits: Thresholds) -> KeyframeFidelity | None:
    if asked.keyframe_path is None or media.is_image:
        return None
    return fidelity.compare(media, Path(asked.keyframe_path), limits.fidelity)


def _living_flags(media: Media, seen: Picture, found: _Found, asked: Asked, limits: Thresholds) -> list[str]:
    flags = [] if found.motion is None else motion.flags(found.motion, limits)
    flags += picture.flags(seen, limits)
    if not media.is_image and asked.cuts_expected is not None:
        flags += _cut_flags(len(found.cut_indices), asked.cuts_expected)
    if found.fidelity is not None:
        flags += fidelity.flags(found.fidelity, "frozen" in flags, limits.fidelity)
    return flags


def _cut_flags(cut_count: int, expected: int) -> list[str]:
    if cut_count == expected:
        return []
    return ["cuts-missing"] if cut_count < expected else ["cuts-unexpected"]


def _as_asked(media: Media, asked: Asked, limits: Thresholds) -> dict[str, bool | None]:
    """None where nothing was asked or nothing can be said."""
    frames = fps = size = None
    if asked.frames is not None:
        frames = abs(media.frames_decoded - asked.frames) <= limits.as_asked.frames
    if asked.fps is not None and media.fps is not None:
        fps = abs(media.fps - asked.fps) <= limits.as_asked.fps_share * asked.fps
    if asked.width_px is not None and asked.height_px is not None and media.width_px:
        size = (media.width_px, media.height_px) == (asked.width_px, asked.height_px)
    return {"frames": frames, "fps": fps, "size": size}


def _is_truncated(media: Media) -> bool:
    """Damaged, or with fewer frames than its container announces. What is no video at all is not cut short."""
    has_begun = bool(media.frames_decoded or media.frames_announced)
    return has_begun and (bool(media.error) or media.frames_decoded < (media.frames_announced or 0))


def _result(
    media: Media,
    asked: Asked,
    limits: Thresholds,
    flags: list[str],
    luma: Luma | None,
    seen: Picture | None,
    found: _Found | None,
) -> dict[str, Any]:
    as_asked = _as_asked(media, asked, limits)
    file_flags = ["truncated"] if _is_truncated(media) else []
    if len(media.frames):
        file_flags += [f"wrong-{name}" for name, is_right in as_asked.items() if is_right is False]
    return _rounded(
        {
            "thresholds_version": limits.version,
            "flags": flags + file_flags,
            "camera": {} if found is None else found.camera.evidence,
            "camera_motion": None if found is None or found.motion is None else _camera(found.camera),
            "file": _file(media),
            "as_asked": as_asked,
            "picture": None if seen is None else asdict(seen),
            "motion": None if found is None or found.motion is None else asdict(found.motion),
            "cuts": None if found is None or media.is_image else _cuts(media, found, asked),
            "fidelity": None if found is None or found.fidelity is None else asdict(found.fidelity),
            "luma_by_frame": None if luma is None else luma.mean(axis=(1, 2)).tolist(),
            "times_s": media.times_s.tolist(),
        }
    )


def _camera(watched: CameraMotion) -> dict[str, Any]:
    return {"clear_share": watched.clear_share, "rates": None if watched.rates is None else asdict(watched.rates)}


def _file(media: Media) -> dict[str, Any]:
    return {
        "error": media.error,
        "frames": media.frames_decoded,
        "frames_announced": media.frames_announced,
        "looked_at_every": media.stride,
        "width_px": media.width_px or None,
        "height_px": media.height_px or None,
        "fps": media.fps,
        "duration_s": media.duration_s,
        "is_image": media.is_image,
    }


def _cuts(media: Media, found: _Found, asked: Asked) -> dict[str, Any]:
    return {
        "times_s": [float(media.times_s[i]) for i in found.cut_indices],
        "count": len(found.cut_indices),
        "expected": asked.cuts_expected,
    }


def _rounded(value: Any) -> Any:
    """Plain Python values of as many digits as mean something."""
    match value:
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case bool() | np.bool_():
            return bool(value)
        case float() | np.floating():
            return round(float(value), DIGITS)
        case _:
            return value
