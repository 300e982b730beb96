"""Reads the one file of tier a's thresholds, strictly: an unknown, absent or mistyped number is an error."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

FILE = Path(__file__).with_name("thresholds.toml")
Table = TypeVar("Table")


@dataclass(frozen=True, slots=True, kw_only=True)
class Black:
    luma: float
    pixel_share: float
    frame_share: float
    brightest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    flatness: float
    correlation: float
    coarse_correlation: float
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dark:
    bright: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    low: float
    high: float
    high_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    sharpness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    interval_s: float
    dynamic_share: float
    moving_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    difference: float
    flow_share: float
    pair_share: float
    drift_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearStatic:
    flow_share: float
    pair_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    run_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    flow_per_256_px: float
    pairs_per_16_frames: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flicker:
    flip_share: float
    step: float
    second_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    hash_distance: int
    difference_share: float
    pair_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dissolve:
    likeness: float
    flow_share: float
    unexplained_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    likeness: float
    furthest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    ratio: float
    content: float
    min_scene_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    grid_px: int
    contrast: float
    min_points: int
    inlier_px: float
    inlier_share: float
    clear_share: float
    zoom_per_s: float
    shift_per_s: float
    roll_deg_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    side_px: int
    ignored_likeness: float
    ignored_distance: int
    still_likeness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AsAsked:
    frames: int
    fps_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Every number with its unit and source stands in thresholds.toml; the names here are its tables and keys."""

    version: str
    black: Black
    flat: Flat
    noise: Noise
    dark: Dark
    clipping: Clipping
    cast: Cast
    blur: Blur
    pairs: Pairs
    still: Still
    near_static: NearStatic
    freeze: Freeze
    dynamic: Dynamic
    flicker: Flicker
    duplicates: Duplicates
    dissolve: Dissolve
    loop: Loop
    cuts: Cuts
    camera: Camera
    fidelity: Fidelity
    as_asked: AsAsked


@cache
def shipped() -> Thresholds:
    """The thresholds of this package."""
    return load(FILE)


def load(path: Path) -> Thresholds:
    """Raises ValueError that names the file, the key and what it wants."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    return _table(Thresholds, content, f"{path}: ")


def _table(kind: type[Table], content: dict[str, Any], where: str) -> Table:
    hints = get_type_hints(kind)
    if odd := content.keys() ^ hints.keys():
        name = sorted(odd)[0]
        raise ValueError(f"{where}{name}: {'no such threshold' if name in content else 'is missing'}")
    return kind(
        **{field.name: _value(content[field.name], hints[field.name], f"{where}{field.name}") for field in fields(kind)}
    )  # type: ignore[arg-type]  # each value was read by its field's own type


def _value(value: Any, hint: type, where: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: wants a table, got {value!r}")
        return _table(hint, value, f"{where}.")
    if type(value) is not hint:
        raise ValueError(f"{where}: wants {hint.__name__}, got {value!r}")
    return value
