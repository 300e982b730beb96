"""Every value the services pass around: frozen, typed, one class per message of the contract.

Names, units and meaning are those of ``proto/screentest/v1/*.proto``; ``wire`` converts both ways.
Absent is None, never 0 or "". Times are aware UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

SweepId = NewType("SweepId", str)
LaneId = NewType("LaneId", str)
JobId = NewType("JobId", str)

ParameterType = bool | int | float | str | tuple[float, ...]


class Task(StrEnum):
    T2V = "t2v"
    I2V = "i2v"
    T2I = "t2i"
    JUDGE = "judge"


class Weights(StrEnum):
    HUB = "hub"
    MINIATURE = "miniature"
    FULL_RANDOM = "full-random"

    @property
    def is_random(self) -> bool:
        """Random weights show what runs and how fast, never what a picture looks like."""
        return self is not Weights.HUB


class JobState(StrEnum):
    QUEUED = "queued"
    ADMITTED = "admitted"
    RUNNING = "running"
    ENDED = "ended"
    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.REFUSED, JobState.CANCELLED})


class FailureClass(StrEnum):
    PREFLIGHT_REFUSED = "preflight_refused"
    OOM_LOAD = "oom_load"
    OOM_ENCODE = "oom_encode"
    OOM_DENOISE = "oom_denoise"
    OOM_DECODE = "oom_decode"
    HOST_OOM = "host_oom"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    CRASHED = "crashed"
    BAD_KWARGS = "bad_kwargs"
    LAYOUT = "layout"
    CHANNELS = "channels"
    CONDITIONING = "conditioning"
    NAN = "nan"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    ENCODE = "encode"
    UPLOAD = "upload"
    GPU_FAULT = "gpu_fault"
    CANCELLED = "cancelled"
    INFRASTRUCTURE = "infrastructure"
    UNCLASSIFIED = "unclassified"


class MarkKind(StrEnum):
    RENAMED = "renamed"
    DROPPED = "dropped"
    CLAMPED = "clamped"
    DEFAULTED = "defaulted"
    REDUCED = "reduced"


class ArtifactKind(StrEnum):
    CLIP = "clip"
    LOG = "log"
    MANIFEST = "manifest"
    REPORT = "report"
    KEYFRAME = "keyframe"
    JUDGEMENT = "judgement"
    RUBRIC = "rubric"


class JudgePurpose(StrEnum):
    CLIP = "clip"
    KEYFRAME = "keyframe"
    CONTROLS = "controls"


class PairOutcome(StrEnum):
    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"
    BOTH_BAD = "both-bad"


class ProofKind(StrEnum):
    HANDOVER = "handover"
    CONTINUE = "continue"


class Verdict(StrEnum):
    OK = "ok"
    FIXED = "fixed"
    REFUSED = "refused"
    NOT_PREFLIGHTED = "not-preflighted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One keyword argument of a pipeline call, with its type kept."""

    name: str
    value: ParameterType


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What was asked for and what ran instead. ``requested`` is empty where nobody asked: the lane's default ran."""

    kind: MarkKind
    parameter: str
    requested: str
    effective: str
    reason: str

    @property
    def is_change(self) -> bool:
        """Whether something else ran than was asked for."""
        return self.kind is not MarkKind.DEFAULTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyframe:
    """A validated keyframe in the depot; ``sha256`` is of the PNG under ``key``."""

    key: str
    sha256: str
    width_px: int
    height_px: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricRef:
    """A validated rubric in the depot.

    ``sha256`` is of the file under ``key``; ``rubric_sha256`` of what it asks, which every score carries.
    ``approved_by``: empty = a draft.
    """

    prompt_index: int
    key: str
    sha256: str
    size_bytes: int
    rubric_sha256: str
    approved_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a judge job looks at: a clip (``job_id`` made it) or a keyframe, by its key in the depot.

    ``other_rubric``: of another prompt, asked as a control.
    """

    purpose: JudgePurpose
    job_id: str
    lane_id: str
    key: str
    sha256: str
    size_bytes: int
    rubric: RubricRef
    other_rubric: RubricRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """Generic parameters a sweep asks of every lane; None = the lane's own default."""

    width_px: int | None = None
    height_px: int | None = None
    num_frames: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    fps: float | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """What a person submits."""

    title: str
    prompts: tuple[str, ...]
    lane_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    weights: Weights
    keyframe: Keyframe | None = None
    requested: Requested = field(default_factory=Requested)
    skip_impossible: bool = False
    expires_at: datetime | None = None
    paused: bool = False
    priority: int = 0
    memory_cap_gib: float | None = None
    judge_lane_ids: tuple[str, ...] = ()
    rubrics: tuple[RubricRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an attempt is expected to take at one rung; None = nothing is known that would allow a number.

    ``clip_s`` is everything after the load, ``low_s`` to ``high_s`` its range. ``clips``: completed clips on this GPU
    that the rate was learned from, 0 = carried over from another GPU. ``basis`` says in one line where it comes from.
    """

    rung: int
    rung_name: str
    changes_picture: bool = False
    load_s: float | None = None
    clip_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    energy_wh: float | None = None
    peak_memory_bytes: int | None = None
    clips: int = 0
    basis: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    load_s: float
    step_stall_s: float
    attempt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """What a lane file said when the sweep was planned, resolved for this sweep.

    ``call``: the pipeline's keyword arguments but for keyframe and generator; the value of ``prompt_keyword`` is a
    template with ``{prompt}``. An empty ``prompt_keyword`` = the pipeline takes no prompt. ``rungs``: by index of the
    lane's ladder, "" where the device has no use for that rung.
    """

    lane_id: str
    lane_title: str
    task: Task
    lane_digest: str
    host: str
    device: str
    width_px: int
    height_px: int
    num_frames: int
    steps: int
    fps: float
    call: tuple[Parameter, ...]
    marks: tuple[Mark, ...]
    limits: Limits
    rungs: tuple[str, ...]
    weights_repo: str
    weights_revision: str
    preflight: str = ""
    prompt_keyword: str = ""
    estimates: tuple[Estimate, ...] = ()
    first_rung: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """What a judge's file said when judging was planned; ``tier``: a (pixels), b (embeddings), c (language model)."""

    lane_id: str
    lane_title: str
    lane_digest: str
    tier: str
    host: str
    device: str
    limits: Limits
    weights_repo: str = ""
    weights_revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedLane:
    lane_id: str
    lane_title: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRecord:
    """The durable record of a sweep; every JobSpec can be derived from it."""

    sweep_id: str
    request_id: str
    content_sha256: str
    submitted_at: datetime
    spec: SweepSpec
    lanes: tuple[LanePlan, ...]
    skipped: tuple[SkippedLane, ...] = ()
    judges: tuple[JudgePlan, ...] = ()
    rubrics: tuple[RubricRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One cell of a sweep, or one judgement of a clip. Never changes. ``rungs``: as in LanePlan.

    ``judged``: only where the task is judge; size, frames and fps are then those that the clip should have.
    """

    job_id: str
    sweep_id: str
    lane_id: str
    lane_title: str
    task: Task
    ordinal: int
    prompt_index: int
    prompt: str
    seed: int
    weights: Weights
    keyframe: Keyframe | None
    lane_digest: str
    host: str
    device: str
    width_px: int
    height_px: int
    num_frames: int
    steps: int
    fps: float
    call: tuple[Parameter, ...]
    marks: tuple[Mark, ...]
    limits: Limits
    rungs: tuple[str, ...]
    weights_repo: str
    weights_revision: str
    retry_of: str | None = None
    retry_index: int = 0
    expires_at: datetime | None = None
    priority: int = 0
    first_rung: int = 0
    memory_cap_gib: float | None = None
    judged: Judged | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """``boottime_ns`` is CLOCK_BOOTTIME of the machine with ``boot_id``: it joins events to vitals."""

    at: datetime
    boot_id: str
    boottime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An object in the depot that is known to be there."""

    kind: ArtifactKind
    key: str
    sha256: str
    size_bytes: int
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """What the probe read from the finished MP4; flags: black, flat, noise, frozen."""

    codec: str
    pixel_format: str
    frames: int
    width_px: int
    height_px: int
    fps: float
    duration_s: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    phase: str
    seconds: float
    started_boottime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """Peak device memory that the runner held in one phase."""

    phase: str
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgementFacts:
    """What scheduler and panel need of a judgement; its answers are in the depot.

    ``method``: pixels, embedding, logprobs or sampled. ``calls``: questions asked. ``presence``: mean of the best
    answer to each question, beats in their order, 0..1, None = no valid answer; only good for choosing a clip.
    """

    tier: str
    method: str
    calls: int = 0
    presence: float | None = None
    badges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended; ``failure_class`` None = a clip (of a judge job: a judgement) is in the depot.

    ``step_s``: median of the denoising steps without the first. ``marks``: what the attempt's rung changed in the
    picture. ``gpu_name``: as the driver says it, None = computed without a GPU.
    """

    failure_class: FailureClass | None
    cause: str = ""
    fix: str = ""
    phase: str = ""
    artifacts: tuple[Artifact, ...] = ()
    clip: ClipFacts | None = None
    phases: tuple[PhaseTime, ...] = ()
    versions: tuple[Version, ...] = ()
    peak_device_memory_bytes: int | None = None
    peak_host_memory_bytes: int | None = None
    infrastructure: bool = False
    model_loads: int = 0
    survivors_killed: int = 0
    peak_memory_by_phase: tuple[PhaseMemory, ...] = ()
    steps_done: int = 0
    step_s: float | None = None
    marks: tuple[Mark, ...] = ()
    gpu_name: str | None = None
    judgement: JudgementFacts | None = None

    def artifact(self, kind: ArtifactKind) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.kind is kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """``start_ticks`` is /proc/<pid>/stat field 22 and tells a recycled pid."""

    pid: int
    start_ticks: int
    command: str = ""
    device_memory_bytes: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFault:
    """Why a device is not to be used again before a person has looked at it; ``cause`` is one line for that person.

    ``xid``: the driver's error number, None = the device was lost without one. ``ends_attempts``: what computes on
    the device now cannot be trusted or cannot end by itself.
    """

    host: str
    device: str
    gpu_uuid: str | None
    xid: int | None
    cause: str
    ends_attempts: bool
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The state of one device at one moment, freshly read; ``method`` is "nvml+proc" or "proc".

    ``fault``: the newest that telemetry knows of, looked at by a person or not; it does not decide ``clean``.
    """

    kind: ProofKind
    clean: bool
    reason: str
    lock_held: bool
    lock_holders: tuple[Process, ...]
    processes: tuple[Process, ...]
    stamp: Stamp
    method: str
    fault: DeviceFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRequest:
    kind: ProofKind
    runner: Process | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What telemetry knows of a device; ``lock_name`` is a file below the lock directory."""

    host: str
    device: str
    lock_name: str
    gpu_uuid: str | None = None
    gpu_name: str | None = None
    driver_version: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_kind: str
    foreign: tuple[Process, ...] = ()


# ---- events of one job


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    spec: JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    rung: int
    rung_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    runner: Process
    proof: Proof
    warm: bool
    shared_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    by: str
    started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """One of the two: ``judgement`` of a judge job."""

    clip: Artifact | None = None
    judgement: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    failure_class: FailureClass
    cause: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """``state`` is the state this event leads to; ``attempt`` is 0 before the first Admitted."""

    event_id: str
    sweep_id: str
    lane_id: str
    job_id: str
    attempt: int
    state: JobState
    stamp: Stamp
    body: Submitted | Admitted | Started | CancelRequested | AttemptEnded | Completed | Failed | Refused | Cancelled


# ---- events of one sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSubmitted:
    record: SweepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested:
    spec: JobSpec
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProof:
    """``proof`` None = telemetry did not answer."""

    host: str
    device: str
    proof: Proof | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettled:
    """Every generation job is terminal."""

    jobs: int
    clips: int
    proofs: tuple[DeviceProof, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPaused:
    paused: bool
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrioritySet:
    priority: int
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingEdited:
    row: str
    text: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingRequested:
    """``rubrics``: one per prompt; empty = those of the sweep's record."""

    judges: tuple[JudgePlan, ...]
    rubrics: tuple[RubricRef, ...]
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    element_id: str
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A person's blind rating of one clip, 0..10; None = only ticks. The last one of a rater counts."""

    job_id: str
    rater: str
    score10: float | None = None
    ticks: tuple[Tick, ...] = ()
    rubric_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairVoted:
    """A person's blind choice between two clips of one prompt."""

    left_job_id: str
    right_job_id: str
    outcome: PairOutcome
    rater: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.queued + self.running + self.completed + self.failed + self.refused + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTime:
    weights: Weights
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the clips of one sweep taught of a lane at one rung, shape, GPU and memory cap, as in measured.Experience.

    ``lane_digest``: of the file that taught it. ``at``: of the last of the clips.
    """

    lane_id: str
    lane_digest: str
    at: datetime
    rung_name: str
    width_px: int
    height_px: int
    num_frames: int
    gpu_name: str
    steps: int
    clips: int
    step_s: tuple[float, ...]
    start_s: float
    encode_s: float | None = None
    decode_s: float | None = None
    step_tflop: float | None = None
    memory_cap_gib: float | None = None
    loads: tuple[LoadTime, ...] = ()
    held: tuple[PhaseMemory, ...] = ()
    is_unified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WonRung:
    """The rung that made a clip where a higher one had not been enough. ``rungs``: as in LanePlan. ``gpu_name`` None =
    computed without a GPU.
    """

    lane_id: str
    lane_digest: str
    at: datetime
    rungs: tuple[str, ...]
    rung: int
    width_px: int
    height_px: int
    num_frames: int
    is_miniature: bool
    memory_cap_gib: float | None = None
    gpu_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTime:
    """Seconds that jobs of one judge took together."""

    lane_id: str
    purpose: JudgePurpose
    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepArchived:
    """The sweep has left the stream for its archive in the depot: what a list still shows, and what it has taught."""

    record: SweepRecord
    counts: Counts
    settled: SweepSettled
    parts: int
    lessons: tuple[Lesson, ...] = ()
    won_rungs: tuple[WonRung, ...] = ()
    judge_times: tuple[JudgeTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreBegun:
    """Nothing of the sweep counts until SweepRestored stands behind it."""

    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRestored:
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    event_id: str
    sweep_id: str
    stamp: Stamp
    body: (
        SweepSubmitted
        | RetryRequested
        | SweepSettled
        | SweepPaused
        | PrioritySet
        | FindingEdited
        | SweepArchived
        | RestoreBegun
        | SweepRestored
        | JudgingRequested
        | Rated
        | PairVoted
    )


# ---- events of one device


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """``fault``: what telemetry reported, None = it was not proven clean for too long."""

    reason: str
    proof: Proof | None
    fault: DeviceFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrained:
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlEvent:
    event_id: str
    host: str
    device: str
    stamp: Stamp
    body: Drained | Undrained


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClaim:
    request_id: str
    content_sha256: str
    sweep_id: str


# ---- plain NATS, never stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """One message per attempt; ``admitted_sequence`` is the stream sequence of its Admitted event."""

    spec: JobSpec
    attempt: int
    rung: int
    admitted_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    sweep_id: str
    lane_id: str
    job_id: str
    attempt: int
    phase: str
    step: int | None = None
    steps: int | None = None
    step_s: float | None = None
    eta_s: float | None = None
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """A worker's heartbeat: what it holds and what it works on."""

    host: str
    device: str
    lane_id: str
    lane_digest: str
    worker_id: str
    runner: Process | None = None
    runner_rung: int | None = None
    runner_weights: str | None = None
    job_id: str | None = None
    attempt: int | None = None
    finishing_job_ids: tuple[str, ...] = ()
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Start the interpreter and the imports; touch no GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """End the warm runner and let go of the GPU."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAttempt:
    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    spec: JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAttempt:
    """The device has failed: the attempt ends as gpu_fault, lost to the machine, and its runner goes."""

    job_id: str
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    body: Prepare | Retire | CancelAttempt | Preflight | EndAttempt


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandReply:
    """``fix``, ``first_rung`` and ``memory_free_bytes`` are of a preflight; None = unknown."""

    done: bool
    detail: str = ""
    verdict: Verdict | None = None
    fix: str = ""
    first_rung: int | None = None
    memory_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlRequest:
    """Worker to scheduler: one conditional PUT (clip, judgement, log, manifest) or one GET.

    What it may get: keyframe and rubrics of its job, and the clip that it judges.
    """

    sweep_id: str
    lane_id: str
    job_id: str
    attempt: int
    kind: ArtifactKind
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlReply:
    url: str = ""
    key: str = ""
    error: str = ""


# ---- vitals


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One NVML reading set; None = the driver does not give it (see ``unavailable``)."""

    boottime_ns: int
    gpu_uuid: str
    utilisation_percent: float | None = None
    memory_utilisation_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_mj: int | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    fan_percent: float | None = None
    throttle_reasons: str | None = None
    unavailable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSample:
    boottime_ns: int
    cpu_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    load_1m: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInfo:
    """``memory_kind``: "device", "unified" or "unknown"."""

    uuid: str
    index: int
    name: str | None
    memory_total_bytes: int | None
    memory_kind: str
    power_limit_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VitalsBatch:
    """One second of samples; ``source`` "host" = no GPU is visible, and ``nvml_error`` says why."""

    host: str
    stamp: Stamp
    source: str
    nvml_error: str | None
    driver_version: str | None
    driver_is_stub: bool
    gpus: tuple[GpuInfo, ...]
    gpu_samples: tuple[GpuSample, ...]
    host_samples: tuple[HostSample, ...]
    rate_hz: float


# ---- folds, as the API shows them


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    attempt: int
    rung: int
    rung_name: str
    admitted: Stamp
    started: Stamp | None = None
    ended: Stamp | None = None
    outcome: Outcome | None = None
    warm: bool = False
    shared_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The fold of a job's events; ``failure_class``, ``cause`` and ``fix`` are of the terminal event."""

    spec: JobSpec
    state: JobState
    attempts: tuple[Attempt, ...]
    submitted: Stamp
    cancel_requested: bool = False
    waits_for: str = ""
    ended: Stamp | None = None
    failure_class: FailureClass | None = None
    cause: str = ""
    fix: str = ""
    clip: Artifact | None = None
    progress: Progress | None = None
    expected_wait_s: float | None = None
    expected_run_s: float | None = None
    judgement: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How far judging is: the second state of a sweep."""

    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCost:
    """What one judge would do; ``seconds`` None = it has not been measured here."""

    lane_id: str
    tier: str
    jobs: int
    calls: int
    seconds: float | None = None
    basis: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    record: SweepRecord
    counts: Counts
    over: bool
    settled: SweepSettled | None
    cursor: str
    archived: bool = False
    scoring: Scoring | None = None
    paused: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneVerdict:
    lane_id: str
    lane_title: str
    verdict: Verdict
    detail: str
    plan: LanePlan | None = None
    fix: str = ""
    memory_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    lane_id: str
    lane_title: str
    task: Task
    env: str
    lane_digest: str
    repo: str
    licence: str
    gated: bool
    parameters_b: float | None
    worker_alive: bool
    runner_warm: bool
    host: str
    device: str
    queued: int
    tier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamView:
    name: str
    messages: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    host: str
    device: str
    drained: bool
    drained_reason: str
    proof: Proof | None
    job_id: str
    warm_lane_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    job_id: str
    waits_for: str
