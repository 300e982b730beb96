"""The messages between the supervisor and its two children (runner, encoder): JSON lines, standard library only.

Requests travel on the child's stdin. Replies travel on a private descriptor whose number is in the environment
variable `SCREENTEST_REPLY_FD`; stdout and stderr are logs. Frames never cross the pipe: they lie in a file.

A line is one JSON object: the message's fields and `"kind"`, the class name in snake case. An unknown message or
field is a `ProtocolError`, because both sides are always of the same commit.
"""

from __future__ import annotations

import json
import re
import types
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

REPLY_FD_VARIABLE = "SCREENTEST_REPLY_FD"

Weights = Literal["hub", "miniature", "full-random"]


class ProtocolError(Exception):
    """A line that is no message of this protocol; the text says which part and what was expected."""


class Phase(StrEnum):
    """Where an attempt is. `preparing` and `loading` belong to the process, the others to one attempt."""

    PREPARING = "preparing"
    LOADING = "loading"
    ENCODING_PROMPT = "encoding_prompt"
    DENOISING = "denoising"
    DECODING = "decoding"
    DECODED = "decoded"
    JUDGING = "judging"


class FailureClass(StrEnum):
    """Why an attempt failed: the closed set of the model table. Unknown is `unclassified`, never a guess.

    The runner reports the first group; the second group is for the supervisor and the scheduler.
    """

    OOM_LOAD = "oom_load"
    OOM_ENCODE = "oom_encode"
    OOM_DENOISE = "oom_denoise"
    OOM_DECODE = "oom_decode"
    HOST_OOM = "host_oom"
    BAD_KWARGS = "bad_kwargs"
    LAYOUT = "layout"
    CHANNELS = "channels"
    CONDITIONING = "conditioning"
    NAN = "nan"
    TRUNCATED = "truncated"
    GPU_FAULT = "gpu_fault"
    CANCELLED = "cancelled"
    UNCLASSIFIED = "unclassified"

    TIMEOUT = "timeout"
    STALLED = "stalled"
    CRASHED = "crashed"
    UNDECODABLE = "undecodable"
    ENCODE = "encode"
    UPLOAD = "upload"
    PREFLIGHT_REFUSED = "preflight_refused"
    INFRASTRUCTURE = "infrastructure"


# --- requests to the runner -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Start the interpreter and import what the lane's adapter needs; touches no CUDA. Answer: Prepared or Failed.

    lane: the parsed content of the lane file.
    """

    lane: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Take the device. Answer: Locked or LockBusy. Must precede Load; the flock comes before any CUDA call.

    lock_fd: an open descriptor of the device's lock file, inherited by the runner (`pass_fds`). The sender closes its
    own copy after the spawn: the lock belongs to the open file, so a kept copy would hold it past the runner's death.
    device: a torch device, `cpu` or `cuda:0` (the index within CUDA_VISIBLE_DEVICES).
    """

    lock_fd: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load the lane's pipeline onto the device. Answer: Loaded or Failed. A second Load in one process is refused.

    weights_dir: folder of the checkpoint; None for miniature weights. rung: one entry of the lane's ladder. cache_dir:
    where miniatures are kept between runs. attempt_id: for the phases that loading reports, None when no attempt waits
    for it.
    memory_cap_gib: how much device memory torch may take, to try a smaller card; None for all. Ignored on cpu.
    unified_memory: host and device share one memory, so nothing is moved between them to save it.
    endpoint: of a judge that asks another machine: `base_url`, `model`, and `key_file` (a path, or None).
    """

    lane: dict[str, Any]
    weights: Weights
    rung: dict[str, Any]
    cache_dir: str
    weights_dir: str | None = None
    attempt_id: str | None = None
    memory_cap_gib: float | None = None
    unified_memory: bool = False
    endpoint: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Make one clip with the loaded pipeline. Answer: Decoded or Failed, StepDone and PhaseChanged before it.

    call: the pipeline's final keyword arguments without image, generator and callbacks (already mapped from the
    generic names). keyframe_path: an image file, or None. frames_path: where the raw frames go, (T, H, W, 3) uint8 in
    C order without header. fps: frames per second of the clip; only the encoder and a few pipelines use it.
    limit_s: seconds this attempt may still take; it ends as `timeout` at once when its first steps say that the rest of
    them alone would take longer. None: no limit.
    """

    attempt_id: str
    call: dict[str, Any]
    seed: int
    frames_path: str
    fps: float
    keyframe_path: str | None = None
    limit_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Answer questions about one clip or picture. Answer: Judged or Failed, PhaseChanged and StepDone before it.

    purpose: `controls` makes five other clips of this one and asks about each. media_path: an MP4, or an image for
    `keyframe`. questions: the elements of a rubric as plain objects (see screentest_runner.judging.questions); windows:
    into how many parts of equal time the clip is cut. other_questions, other_windows: of another prompt, for
    `controls`. asked: what the clip should be: frames, fps, width_px, height_px, cuts_expected, keyframe_path (None
    where there is none). judgement_path: where the JSON of what was found goes.
    """

    attempt_id: str
    purpose: Literal["clip", "keyframe", "controls"]
    media_path: str
    questions: list[dict[str, Any]]
    windows: int
    asked: dict[str, Any]
    judgement_path: str
    other_questions: list[dict[str, Any]] | None = None
    other_windows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End the attempt at its next step; it answers Failed(cancelled). Ignored when that attempt is not running."""

    attempt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Cancel what runs, answer Stopped and exit 0. The end of stdin means the same without an answer."""


# --- replies of the runner --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The interpreter is up. import_s: seconds the imports took. versions: package name to version."""

    versions: dict[str, str]
    import_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """The runner holds the device's lock and keeps it until it dies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockBusy:
    """Another process holds the device's lock; the runner took nothing and may be asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged:
    """A phase began. at_boottime_ns: CLOCK_BOOTTIME, the clock that vitals use. attempt_id: None outside an attempt."""

    attempt_id: str | None
    phase: Phase
    at_boottime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The pipeline is on the device.

    load_s: seconds from Load to here, without build_s. build_s: seconds spent making miniature or full-random weights,
    None when they came from the cache or the hub. loads: how many loads this process has done.
    rss_bytes, device_bytes: memory in use after the load; None where unknown (device_bytes is None on cpu).
    """

    load_s: float
    loads: int
    versions: dict[str, str]
    build_s: float | None = None
    rss_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """Denoising step `step` of `steps` ended (1-based) after step_s seconds."""

    attempt_id: str
    step: int
    steps: int
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The frames lie in frames_path and the device is free for the next Generate.

    timings_s: phase to seconds (`encoding_prompt`, `denoising`, `decoding`, and `writing` for the uint8 file).
    finite_fraction: finite values among the decoded floats; always 1.0 here, since anything less is Failed(nan).
    loads: loads this process has done, 1 on every warm attempt. peak_rss_bytes: of the process so far.
    peak_device_bytes: of this attempt; None on cpu. peak_memory_by_phase: phase to the most device memory, in bytes,
    that torch held in it (`max_memory_reserved`: freed memory that it keeps counts); `loading` is the process's.
    peak_tensors_by_phase: the same of what tensors took (`max_memory_allocated`). Both None on cpu.
    """

    attempt_id: str
    frames: int
    height_px: int
    width_px: int
    timings_s: dict[str, float]
    versions: dict[str, str]
    finite_fraction: float
    loads: int
    peak_rss_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_memory_by_phase: dict[str, int] | None = None
    peak_tensors_by_phase: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What was found lies in judgement_path. method: pixels, embedding, logprobs, sampled. calls: questions asked.

    presence: as `judging.presence` says, 0..1, None without a valid answer. The rest as in Decoded.
    """

    attempt_id: str
    judgement_path: str
    method: str
    calls: int
    badges: list[str]
    timings_s: dict[str, float]
    versions: dict[str, str]
    loads: int
    presence: float | None = None
    peak_rss_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_memory_by_phase: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request ended without its answer. phase: where it was. attempt_id: None for Prepare, Open and Load without one.

    message: the exception's own text, or a sentence of ours. traceback: for the log, empty when the class says it all.
    peak_device_bytes, peak_memory_by_phase: as in Decoded, of the phases that there were; the last one ended here.
    """

    attempt_id: str | None
    failure_class: FailureClass
    phase: Phase
    message: str
    traceback: str = ""
    peak_device_bytes: int | None = None
    peak_memory_by_phase: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The runner got Stop and exits now."""


# --- the encoder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Write the MP4 of one clip. Answer: EncodeProgress, then Encoded or EncodeFailed; the encoder exits after it.

    frames_path: as in Generate. fps: 24, 12.5 and the like; written as an exact fraction. title: metadata of the MP4.
    comment: what made the clip (sweep, job, model, seed). random_weights: the comment then begins with these words.
    """

    frames_path: str
    clip_path: str
    frames: int
    height_px: int
    width_px: int
    fps: float
    title: str
    comment: dict[str, Any]
    random_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeProgress:
    """`done` of `frames` frames are encoded."""

    done: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The clip is written and synced. sha256: hex. encode_s: seconds from the request to here."""

    clip_path: str
    bytes: int
    sha256: str
    encode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeFailed:
    """No clip. The message says which frames or size and why."""

    message: str
    traceback: str = ""


RunnerRequest = Prepare | Open | Load | Generate | Judge | Cancel | Stop
RunnerReply = Prepared | Locked | LockBusy | PhaseChanged | Loaded | StepDone | Decoded | Judged | Failed | Stopped
EncoderReply = EncodeProgress | Encoded | EncodeFailed
Message = RunnerRequest | RunnerReply | Encode | EncoderReply


def message_name(kind: type) -> str:
    """`StepDone` -> `step_done`: the value of a line's `kind` key."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


MESSAGES: dict[str, type] = {message_name(kind): kind for kind in get_args(Message)}


def to_line(message: Message) -> bytes:
    """One JSON line with its newline. Not-a-number is refused: JSON has no word for it."""
    content = {field.name: getattr(message, field.name) for field in fields(message)}
    text = json.dumps(
        {"kind": message_name(type(message)), **content}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode() + b"\n"


def parse(line: bytes | str) -> Message:
    """The message of one line. Raises ProtocolError naming the message, the field and the nearest problem."""
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"not a JSON line: {error}: {line[:200]!r}") from error
    if not isinstance(content, dict) or content.get("kind") not in MESSAGES:
        raise ProtocolError(f"no message of this protocol: {line[:200]!r}")
    name = content.pop("kind")
    return _build(MESSAGES[name], name, content)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: type, name: str, content: dict[str, Any]) -> Message:
    hints = _hints(kind)
    if unknown := content.keys() - hints.keys():
        raise ProtocolError(f"{name}: unknown field {sorted(unknown)[0]!r}; it has {', '.join(hints) or 'none'}")
    try:
        message: Message = kind(**{key: _read(value, hints[key], f"{name}.{key}") for key, value in content.items()})
    except TypeError as error:  # a required field is missing
        raise ProtocolError(f"{name}: {error}") from error
    assert is_dataclass(message)
    return message


def _read(value: Any, hint: Any, where: str) -> Any:
    """The value in the field's type; an int is a legal float, a string a legal member of a StrEnum."""
    if hint is Any:
        return value
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _read(value, next(arg for arg in args if arg is not type(None)), where)
    if origin is Literal:
        if value not in args:
            raise ProtocolError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}")
        return value
    if origin is dict:
        _require(isinstance(value, dict), value, "an object", where)
        return {key: _read(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if origin is list:
        _require(isinstance(value, list), value, "a list", where)
        return [_read(item, args[0], f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise ProtocolError(f"{where}: {value!r} is none of {', '.join(hint)}")
        return hint(value)
    if hint is float:
        _require(isinstance(value, int | float) and not isinstance(value, bool), value, "a number", where)
        return float(value)
    _require(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), value, hint.__name__, where)
    return value


def _require(holds: bool, value: Any, wanted: str, where: str) -> None:
    if not holds:
        raise ProtocolError(f"{where}: wants {wanted}, got {value!r}")
