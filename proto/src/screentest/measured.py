"""What clips took on GPUs: the numbers shipped in `deploy/measured/`, in the form in which new ones are learned.

One JSON file per GPU, made by bench/carry_over.py, and gpus.toml with the speed of GPUs that only others have measured.
Standard library only.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from screentest.errors import BadRequest
from screentest.strict import read_table

GPUS_FILE: Final = "gpus.toml"

Number = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a clip."""

    width_px: int
    height_px: int
    num_frames: int

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.width_px * self.height_px * self.num_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What clips of one lane, rung, shape, GPU and memory cap took; full-random and hub weights alike.

    gpu: as the driver says it. steps: of a whole clip. step_tflop: 1e12 operations of one step. memory_cap_gib: what
    torch was allowed, None = all there is. clips: completed ones. step_s: of each of the last ones, the median of its
    steps. encode_s, decode_s: the last clip's phases; start_s: what its denoising took beside the steps, such as the
    choice of kernels in the first one. load_s: by kind of weights, the last load; a build counts as one.
    held_bytes: by phase, the peak that torch held, in the clip where that was least: known to suffice. tensor_bytes: by
    phase, what tensors took of it. energy_wh: of a whole clip, on average. None or empty = not known. is_unified: host
    and device share their memory.
    """

    lane_id: str
    rung: str
    shape: Shape
    gpu: str
    steps: int
    clips: int
    step_s: tuple[Number, ...]
    step_tflop: Number | None = None
    memory_cap_gib: Number | None = None
    encode_s: Number | None = None
    start_s: Number = 0.0
    decode_s: Number | None = None
    load_s: Mapping[str, Number] = field(default_factory=dict)
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    tensor_bytes: Mapping[str, int] = field(default_factory=dict)
    energy_wh: Number | None = None
    is_unified: bool = False

    @property
    def key(self) -> Key:
        """What two clips must share to teach the same."""
        return (self.lane_id, self.rung, self.shape, self.gpu, self.memory_cap_gib)


Key = tuple[str, str, Shape, str, Number | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a GPU is that nobody here has measured: seconds that others published for clips.

    gpus: names as drivers say them. clip_s: lane id to seconds of a clip at the lane's own settings. source: where the
    seconds stand.
    """

    gpus: tuple[str, ...]
    clip_s: Mapping[str, Number]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the numbers of a file come from: a result file of bench/, when, on what, with which versions."""

    result: str
    measured_at: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything that is known: what is shipped, and what this house's own clips have taught, the latest last."""

    shipped: tuple[Experience, ...] = ()
    speeds: tuple[Speed, ...] = ()
    learned: Mapping[Key, Experience] = field(default_factory=dict)

    @property
    def clips(self) -> tuple[Experience, ...]:
        return (*self.shipped, *self.learned.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    gpu: str
    sources: tuple[Source, ...]
    clips: tuple[Experience, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speeds:
    speed: tuple[Speed, ...]


def load_measured(folder: Path) -> Measured:
    """Every `*.json` of the folder and its gpus.toml. Raises BadRequest; a folder that is not there holds nothing."""
    clips = [clip for path in sorted(folder.glob("*.json")) for clip in clips_from_json(_json(path), str(path))]
    gpus = folder / GPUS_FILE
    speeds = speeds_from_toml(gpus.read_text(encoding="utf-8"), str(gpus)) if gpus.is_file() else ()
    return Measured(shipped=tuple(clips), speeds=speeds)


def clips_from_json(content: Any, source: str) -> tuple[Experience, ...]:
    """The clips of one file. `source` names it in errors. Raises BadRequest."""
    read = cast("_File", read_table(_File, content, source, ""))
    for clip in read.clips:
        if clip.gpu != read.gpu:
            raise BadRequest(f"{source}: clips: one of {clip.lane_id!r} is of {clip.gpu!r}; one file holds one GPU")
        if clip.clips < 1 or not clip.step_s:
            raise BadRequest(f"{source}: clips: {clip.lane_id!r} at {clip.rung!r} has no completed clip; leave it out")
    return read.clips


def speeds_from_toml(text: str, source: str) -> tuple[Speed, ...]:
    """The published speeds. Raises BadRequest."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"{source}: not a TOML file: {error}") from error
    return cast("_Speeds", read_table(_Speeds, content, source, "")).speed


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not a JSON file: {error}; make it again with bench/carry_over.py") from error
