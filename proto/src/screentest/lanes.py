"""Lanes: one TOML file per model configuration, read strictly. A lane is data; what it cannot say is an adapter's code.

An unknown key, a wrong type or an illegal default is a BadRequest that names the file, the key and what is legal.
Standard library only, because the supervisor, the scheduler and the CLI all read lanes.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from screentest import subjects
from screentest.errors import BadRequest
from screentest.strict import read_table, require, unknown_key

Weights = Literal["hub", "miniature", "full-random"]
Task = Literal["t2v", "i2v"]
Device = Literal["gpu", "cpu", "remote"]
DType = Literal["float32", "float16", "bfloat16"]

# Our names for what a job may ask; a lane maps those it takes onto its pipeline's keywords.
GENERIC_NAMES: Final = (
    "prompt",
    "negative_prompt",
    "width_px",
    "height_px",
    "num_frames",
    "steps",
    "guidance_scale",
    "fps",
    "keyframe",
)

SIZE_NAMES: Final = ("width_px", "height_px")

Number = int | float
Value = str | int | float | bool
Content = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The published weights.

    licence: as the model card names it, None where it is not established. parameters_b: of all components, in 1e9.
    weights_gib_16bit: size of all components at two bytes per parameter. base_repo: the second repository of a lane
    that is assembled from two. root_component: the component that lies at the root of `repo` then; all others come
    from base_repo. variant: the file variant to fetch (`fp16`), None for the plain files.
    """

    repo: str
    parameters_b: Number
    weights_gib_16bit: Number
    licence: str | None = None
    revision: str = "main"
    gated: bool = False
    variant: str | None = None
    base_repo: str | None = None
    base_revision: str | None = None
    root_component: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How the runner loads the pipeline.

    adapter: a key of screentest_runner.adapters.ADAPTERS. dtype: component name, or `default`, to torch dtype.
    before_call: methods without arguments, dotted from the pipeline, called once after the load.
    prompt_template: what the model wants around the prompt, with `{prompt}` in it. init: arguments of the class that
    are no components (`boundary_ratio`); weights whose model_index.json says otherwise are refused.
    """

    adapter: str
    class_name: str = field(metadata={"key": "class"})
    dtype: Mapping[str, DType]
    before_call: tuple[str, ...] = ()
    prompt_template: str | None = None
    init: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRule:
    """Legal frame counts: multiple * k + p for a p of `plus`, from minimum to maximum (both legal themselves)."""

    multiple: int
    plus: tuple[int, ...]
    minimum: int
    maximum: int

    def is_legal(self, frames: int) -> bool:
        return self.minimum <= frames <= self.maximum and any(
            (frames - plus) % self.multiple == 0 for plus in self.plus
        )

    def at_most(self, frames: int) -> int:
        """The greatest legal count up to `frames`; the minimum where none is so small."""
        return next((count for count in range(frames, self.minimum, -1) if self.is_legal(count)), self.minimum)

    def nearest(self, frames: int) -> int:
        """The legal count nearest to `frames`; of two equally near ones the smaller, which costs less."""
        inside = min(max(frames, self.minimum), self.maximum)
        legal = (count for step in range(self.multiple + 1) for count in (inside - step, inside + step))
        return next(count for count in legal if self.is_legal(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """size_multiple_px: width and height must be multiples of it, and at least one of them long.

    size_follows_keyframe: the pipeline takes no size, it makes the clip of the size of its keyframe. Every job has the
    lane's own size then, and its keyframe is fitted to it.
    """

    size_multiple_px: int
    frames: FrameRule
    size_follows_keyframe: bool = False

    def at_most_px(self, length_px: int) -> int:
        """The greatest legal width or height up to length_px, or the least that there is."""
        return max(length_px - length_px % self.size_multiple_px, self.size_multiple_px)

    def nearest_px(self, length_px: int) -> int:
        """The legal width or height nearest to length_px; of two equally near ones the smaller."""
        below = length_px - length_px % self.size_multiple_px
        above = below + self.size_multiple_px
        nearest = below if length_px - below <= above - length_px else above
        return max(nearest, self.size_multiple_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds after which the supervisor ends a load, a silent step, a whole attempt."""

    load_s: Number
    step_stall_s: Number
    attempt_s: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What one token of the denoiser covers of the clip; of `frames` k there are (F - 1) // k + 1 latent frames."""

    frames: int
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tflop:
    """1e12 floating point operations of one forward of batch 1, in T latent frames of A tokens each:
    constant + frames T + tokens T A + spatial T A^2 + temporal T^2 A + joint T^2 A^2. Zero where an architecture has no
    such term.
    """

    constant: Number = 0.0
    frames: Number = 0.0
    tokens: Number = 0.0
    spatial: Number = 0.0
    temporal: Number = 0.0
    joint: Number = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: on when the call passes more than 1 for `keyword` (a missing keyword = on).

    doubles: what a guided step has twice: `forwards`, or the `batch` of one forward.
    """

    keyword: str
    doubles: Literal["forwards", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a clip costs, counted from the full-size architecture. guidance: None where a step is never guided."""

    token: Token
    tflop: Tflop
    guidance: Guidance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of the low-memory ladder.

    drop_text_encoders: text and image encoders leave the device after encoding. vae_tiling: the VAE decodes tile by
    tile. layerwise_fp8: the denoiser is stored as float8_e4m3fn and computed in its own dtype. group_offload: denoiser
    and text encoders stay in host memory and stream through the device (no use on unified memory). call: keywords that
    replace the call's. num_frames_ratio, size_ratio: of what was asked for; below 1 the picture is another one.
    """

    name: str
    drop_text_encoders: bool = False
    vae_tiling: bool = False
    layerwise_fp8: bool = False
    group_offload: Literal["block_level", "leaf_level"] | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    num_frames_ratio: Number = 1.0
    size_ratio: Number = 1.0

    @property
    def changes_picture(self) -> bool:
        return self.num_frames_ratio != 1 or self.size_ratio != 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One part of the full-size pipeline.

    library: as in model_index.json: `diffusers`, `transformers`, or the pipeline's own package (`ltx2`). config: its
    published architecture. miniature: the values that replace entries of config in the tiny random copy of the same
    class. params: parameter count, None for parts without weights. index_class: the class that the published
    model_index.json names, where that is not the class to use.
    """

    library: str
    class_name: str = field(metadata={"key": "class"})
    config: Mapping[str, Any] = field(default_factory=dict)
    miniature: Mapping[str, Any] = field(default_factory=dict)
    params: int | None = None
    index_class: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Miniature:
    """What differs when the weights are miniature: defaults by generic name, keywords of [call], dtypes."""

    defaults: Mapping[str, Value] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One lane file. `content` is the parsed file itself: what the digest covers and what the runner gets.

    parameters: generic name -> pipeline keyword, or `component.attribute` that is set for the call; a generic name
    that is missing is not taken by this lane (`fps` is always taken: where it is no keyword, it is the encoder's
    alone). call: keywords that every call passes. audio: `dropped` where the pipeline makes sound too; a clip has none.
    """

    id: str
    title: str
    task: Task
    env: str
    device: Device
    model: Model | None = None
    pipeline: Pipeline
    parameters: Mapping[str, str]
    defaults: Mapping[str, Value]
    call: Mapping[str, Any] = field(default_factory=dict)
    constraints: Constraints
    limits: Limits
    ladder: tuple[Rung, ...]
    components: Mapping[str, Component] = field(default_factory=dict)
    miniature: Miniature = Miniature()
    cost: Cost | None = None
    audio: Literal["dropped"] | None = None
    content: Content = field(metadata={"key": None}, repr=False, compare=False)

    def takes(self, name: str) -> bool:
        """Whether a job's generic parameter has an effect in this lane."""
        return name in self.parameters or name == "fps"

    def defaults_for(self, weights: Weights) -> dict[str, Value]:
        """The lane's own settings by generic name; miniature weights have smaller ones."""
        return {**self.defaults, **(self.miniature.defaults if weights == "miniature" else {})}

    def pipeline_call(self, weights: Weights, settings: Mapping[str, Value]) -> dict[str, Any]:
        """The pipeline's keyword arguments for settings by generic name.

        Without the keyframe, which travels as a path, and without generator and callbacks, which are the runner's.
        Names that the lane does not take are left out: planning has marked them before.
        """
        call = {**self.call, **(self.miniature.call if weights == "miniature" else {})}
        for name, keyword in self.parameters.items():
            if name in settings and name != "keyframe":
                call[keyword] = settings[name]
        if self.pipeline.prompt_template is not None and "prompt" in settings:
            call[self.parameters["prompt"]] = self.pipeline.prompt_template.format(prompt=settings["prompt"])
        return call


def load_lanes(folder: Path) -> dict[str, Lane]:
    """Every `*.toml` of the folder by lane id, in the order of file names."""
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise BadRequest(f"{folder}: no lane files (*.toml) in this folder")
    return {lane.id: lane for lane in map(load_lane, paths)}


def load_lane(path: Path) -> Lane:
    """One lane file; its name must be `<id>.toml`. Raises BadRequest."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such lane file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not a TOML file: {error}") from error
    lane = from_json(content, str(path))
    if path.stem != lane.id:
        raise BadRequest(f"{path}: holds the lane {lane.id!r}; name the file {lane.id}.toml")
    return lane


def from_json(content: Content, source: str) -> Lane:
    """A lane from the content of its file. `source` names it in errors."""
    _check_id(content.get("id"), source)
    lane = cast("Lane", read_table(Lane, content, source, "", {"content": content}))
    _check(lane, source)
    return lane


def to_json(lane: Lane) -> Content:
    """The content of the lane's file: what the runner gets and what `from_json` reads."""
    return lane.content


def lane_digest(lane: Lane) -> str:
    """sha256 in hex of the canonical JSON of the file's content; comments and layout do not count."""
    canonical = json.dumps(lane.content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def usable_rungs(lane: Lane, unified: bool) -> tuple[int, ...]:
    """Indices of the ladder's rungs that gain something on this kind of memory.

    Streaming from host memory gains nothing where host and device share it: a rung that differs from the one before it
    in nothing else is left out there.
    """
    usable: list[int] = []
    before: Rung | None = None
    for index, rung in enumerate(lane.ladder):
        effect = replace(rung, name="", group_offload=None if unified else rung.group_offload)
        if effect != before:
            usable.append(index)
        before = effect
    return tuple(usable)


def shape_at(lane: Lane, rung: int, width_px: int, height_px: int, num_frames: int) -> tuple[int, int, int]:
    """(width_px, height_px, num_frames) that a rung makes of what was asked for; legal ones, and none larger."""
    step = lane.ladder[rung]
    if step.num_frames_ratio != 1:
        num_frames = lane.constraints.frames.at_most(int(num_frames * step.num_frames_ratio))
    if step.size_ratio != 1:
        width_px, height_px = (
            lane.constraints.at_most_px(int(length * step.size_ratio)) for length in (width_px, height_px)
        )
    return width_px, height_px, num_frames


def call_at(lane: Lane, rung: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `pipeline_call` as this rung changes them; a size that is no keyword stays as it is."""
    changed = {**call, **lane.ladder[rung].call}
    names = (*SIZE_NAMES, "num_frames")
    keywords = [lane.parameters.get(name, "") for name in names]
    asked = [changed.get(keyword, lane.defaults[name]) for name, keyword in zip(names, keywords, strict=True)]
    for keyword, value in zip(keywords, shape_at(lane, rung, *asked), strict=True):
        if keyword in changed:
            changed[keyword] = value
    return changed


def _check_id(lane_id: Any, source: str) -> None:
    """A dot would split the NATS subject that carries the lane's id."""
    if not isinstance(lane_id, str) or not lane_id:
        raise BadRequest(f"{source}: id: wants a text, got {lane_id!r}")
    if not subjects.is_legal(lane_id):
        raise BadRequest(
            f"{source}: id: {lane_id!r} is not legal: a lane id has 1 to 63 characters of a-z, 0-9 and '-'; "
            f"call it {subjects.legal_form(lane_id)!r}"
        )


def _check(lane: Lane, source: str) -> None:
    """The rules that no single type can say."""
    _check_names(lane.parameters, GENERIC_NAMES, source, "parameters")
    _check_keywords(lane, source)
    taken = (*lane.parameters, "fps", *(SIZE_NAMES if lane.constraints.size_follows_keyframe else ()))
    _check_names(lane.defaults, taken, source, "defaults")
    _check_names(lane.miniature.defaults, taken, source, "miniature.defaults")
    require((lane.task == "i2v") == lane.takes("keyframe"), source, "parameters.keyframe", _KEYFRAME_RULE)
    require("fps" in lane.defaults, source, "defaults.fps", "is missing: the encoder needs a rate")
    require("default" in lane.pipeline.dtype, source, "pipeline.dtype", "wants a 'default'")
    _check_names(lane.pipeline.dtype, ("default", *lane.components), source, "pipeline.dtype")
    template = lane.pipeline.prompt_template
    require(template is None or "{prompt}" in template, source, "pipeline.prompt_template", "lacks '{prompt}'")
    _check_assembly(lane, source)
    for limit in (lane.constraints.frames.minimum, lane.constraints.frames.maximum):
        require(lane.constraints.frames.is_legal(limit), source, "constraints.frames", f"{limit} is itself not legal")
    for weights, where in (("hub", "defaults"), ("miniature", "miniature.defaults")):
        _check_settings(lane, lane.defaults_for(cast("Weights", weights)), source, where)
    _check_ladder(lane, source)


def _check_ladder(lane: Lane, source: str) -> None:
    """It begins with the rung that saves nothing, and no rung gives back of the picture what the one above it took."""
    require(bool(lane.ladder) and lane.ladder[0].name == "resident", source, "ladder", "must begin with 'resident'")
    names = [rung.name for rung in lane.ladder]
    above = lane.ladder[0]
    for index, rung in enumerate(lane.ladder):
        where = f"ladder[{index}]"
        require(rung.name not in names[:index], source, f"{where}.name", f"{rung.name!r} is there twice")
        for ratio in ("num_frames_ratio", "size_ratio"):
            here, most = getattr(rung, ratio), getattr(above, ratio)
            require(
                0 < here <= most <= 1, source, f"{where}.{ratio}", f"wants more than 0 and at most {most}, got {here}"
            )
        has_size = not lane.constraints.size_follows_keyframe
        require(has_size or rung.size_ratio == 1, source, f"{where}.size_ratio", "the size follows the keyframe here")
        above = rung


def _check_assembly(lane: Lane, source: str) -> None:
    """A lane of two repositories says which component the first one holds; a lane of one has nothing to say."""
    if lane.model is None:
        return
    root, is_assembled = lane.model.root_component, lane.model.base_repo is not None
    require((root is not None) == is_assembled, source, "model.root_component", _ROOT_RULE)
    require(root is None or root in lane.components, source, "model.root_component", f"{root!r} is no component")


_ROOT_RULE: Final = "must be there exactly when model.base_repo is"
_KEYFRAME_RULE: Final = "must be there exactly when task is 'i2v'"


def _check_keywords(lane: Lane, source: str) -> None:
    """A dotted keyword begins with a component, and a size that follows the keyframe is no keyword."""
    for name, keyword in lane.parameters.items():
        component, dot, _ = keyword.partition(".")
        if dot and component not in lane.components:
            raise BadRequest(f"{source}: parameters.{name}: {keyword!r}: there is no components.{component}")
    for name in SIZE_NAMES:
        require(
            lane.takes(name) != lane.constraints.size_follows_keyframe,
            source,
            f"parameters.{name}",
            "must be there, unless constraints.size_follows_keyframe is true",
        )
    follows = lane.constraints.size_follows_keyframe
    require(not follows or lane.task == "i2v", source, "constraints.size_follows_keyframe", "wants the task 'i2v'")


def _check_settings(lane: Lane, settings: Mapping[str, Value], source: str, where: str) -> None:
    for name, (kinds, words) in _SETTINGS.items():
        value = settings.get(name)
        require(value is None or type(value) in kinds, source, f"{where}.{name}", f"wants {words}, got {value!r}")
    for name in ("num_frames", *SIZE_NAMES):
        require(name in settings, source, f"{where}.{name}", "is missing")
    frames = int(settings["num_frames"])
    rule = f"{frames} breaks the lane's own constraints.frames; {lane.constraints.frames.nearest(frames)} is legal"
    require(lane.constraints.frames.is_legal(frames), source, f"{where}.num_frames", rule)
    for name in SIZE_NAMES:
        length, nearest = int(settings[name]), lane.constraints.nearest_px(int(settings[name]))
        rule = f"{length} is no multiple of {lane.constraints.size_multiple_px}; {nearest} is"
        require(nearest == length, source, f"{where}.{name}", rule)


_WHOLE: Final = ((int,), "a whole number")
_NUMBER: Final = ((int, float), "a number")
_SETTINGS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "width_px": _WHOLE,
    "height_px": _WHOLE,
    "num_frames": _WHOLE,
    "steps": _WHOLE,
    "guidance_scale": _NUMBER,
    "fps": _NUMBER,
    "negative_prompt": ((str,), "a text"),
}


def _check_names(names: Mapping[str, Any], legal: tuple[str, ...], source: str, where: str) -> None:
    for name in names:
        if name not in legal:
            raise BadRequest(unknown_key(source, where, name, legal))
