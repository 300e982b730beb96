"""A sweep as asked becomes job specs: resolves parameters per lane, marks every change, derives ids. Pure."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Protocol

from screentest import devices, lanes, subjects, wire
from screentest.errors import BadRequest, FieldViolation
from screentest.records import (
    DeviceFacts,
    Estimate,
    JobSpec,
    LanePlan,
    LaneVerdict,
    Limits,
    Mark,
    MarkKind,
    Parameter,
    ParameterType,
    Requested,
    SkippedLane,
    SweepRecord,
    SweepSpec,
    Task,
    Verdict,
    Weights,
)

# Longer prompts than any text encoder of the catalogue reads; a limit keeps one event below the broker's payload.
MAX_PROMPT_CHARACTERS = 20_000
MAX_JOBS = 20_000
MAX_SIZE_PX = 8192
MAX_STEPS = 1000
MAX_MEMORY_GIB = 1024
# 0 is what everybody gets; a hundred steps both ways are more than anybody can tell apart.
MAX_PRIORITY = 100
# An attempt that takes three times what was expected is stuck; one of seconds may meet a slow disk.
PATIENCE = 3.0
SHORTEST_ATTEMPT_S = 600.0
# torch.Generator takes 64 bit; the contract's int64 is the narrower one.
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a lane's jobs go, and whether a worker is there now. ``facts`` None = telemetry does not answer."""

    host: str
    device: str
    has_worker: bool
    facts: DeviceFacts | None = None

    @property
    def is_cpu(self) -> bool:
        return devices.is_cpu(self.device)

    @property
    def is_unified(self) -> bool:
        return devices.is_unified(self.device, self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a sweep would run, lane by lane, before anything is written."""

    lanes: tuple[LanePlan, ...]
    skipped: tuple[SkippedLane, ...]
    verdicts: tuple[LaneVerdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an attempt computes, as far as time and memory depend on it. ``call``: as in JobSpec."""

    weights: Weights
    width_px: int
    height_px: int
    num_frames: int
    steps: int
    call: tuple[Parameter, ...]
    memory_cap_gib: float | None

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for jobs that take the same: what is written in a prompt costs nothing."""
        numbers = tuple(item for item in self.call if not isinstance(item.value, str))
        size = (self.width_px, self.height_px, self.num_frames, self.steps)
        return (self.weights, *size, numbers, self.memory_cap_gib)


class Foreknowledge(Protocol):
    """What is known of work before it is done."""

    def estimates(self, lane: lanes.Lane, work: Work, placement: Placement) -> tuple[Estimate, ...]:
        """What each rung that this device can use is expected to take."""

    def first_rung(self, lane: lanes.Lane, work: Work, placement: Placement) -> int:
        """Where an attempt begins."""


class Ignorance:
    """Nobody knows anything."""

    def estimates(self, lane: lanes.Lane, work: Work, placement: Placement) -> tuple[Estimate, ...]:
        return ()

    def first_rung(self, lane: lanes.Lane, work: Work, placement: Placement) -> int:
        return 0


IGNORANCE = Ignorance()


def sweep_id(title: str, submitted_at: datetime, collision: int = 0) -> str:
    """``architects-stillness-20260508t232959z``, the depot prefix too. ``collision`` tells equal ones apart."""
    suffix = f"-{submitted_at:%Y%m%dt%H%M%Sz}".lower() + (f"-{collision + 1}" if collision else "")
    slug = subjects.legal_form(title)[: 63 - len(suffix)].strip("-")
    return f"{slug}{suffix}"


def content_sha256(spec: SweepSpec) -> str:
    """Identity of what was asked: a client request id belongs to exactly one."""
    return hashlib.sha256(wire.encode(spec)).hexdigest()


def check(spec: SweepSpec, catalogue: Mapping[str, lanes.Lane]) -> None:
    """Raises BadRequest with every violation at once."""
    violations = tuple(_violations(spec, catalogue))
    if violations:
        raise BadRequest("; ".join(violation.description for violation in violations), violations)


def plan(
    spec: SweepSpec,
    catalogue: Mapping[str, lanes.Lane],
    placements: Mapping[str, Placement],
    known: Foreknowledge = IGNORANCE,
) -> Plan:
    """Resolves every lane; BadRequest when the spec itself is wrong. A lane that cannot take part is in ``skipped``."""
    check(spec, catalogue)
    resolved = [plan_lane(catalogue[lane_id], spec, placements[lane_id], known) for lane_id in spec.lane_ids]
    verdicts = tuple(_verdict(item, placements) for item in resolved)
    plans = tuple(item for item in resolved if isinstance(item, LanePlan))
    skipped = tuple(item for item in resolved if isinstance(item, SkippedLane))
    return Plan(lanes=plans, skipped=skipped, verdicts=verdicts)


def require_runnable(planned: Plan, spec: SweepSpec) -> None:
    """BadRequest when a lane cannot take part and the submitter did not choose to skip such lanes, or none is left."""
    if not planned.skipped or (spec.skip_impossible and planned.lanes):
        return
    violations = tuple(
        FieldViolation(
            field=f"spec.lane_ids[{spec.lane_ids.index(lane.lane_id)}]", description=f"{lane.lane_id}: {lane.reason}"
        )
        for lane in planned.skipped
    )
    lanes_of: dict[str, list[str]] = {}  # by reason: without a GPU it is one for all
    for lane in planned.skipped:
        lanes_of.setdefault(lane.reason, []).append(lane.lane_id)
    told = "; ".join(f"{', '.join(lane_ids)}: {reason}" for reason, lane_ids in lanes_of.items())
    choice = "" if not planned.lanes else ". Or choose to skip such lanes (--skip-impossible)"
    raise BadRequest(f"{told}{choice}", violations)


def plan_lane(
    lane: lanes.Lane, spec: SweepSpec, placement: Placement, known: Foreknowledge = IGNORANCE
) -> LanePlan | SkippedLane:
    """One lane's parameters for this sweep, every departure from what was asked as a mark."""
    impossible = _impossible(lane, spec, placement)
    if impossible:
        return SkippedLane(lane_id=lane.id, lane_title=lane.title, reason=impossible)
    settings, marks = resolve(lane, spec)
    named = lane.pipeline_call(spec.weights.value, {**settings, "prompt": "{prompt}"})
    call = tuple(Parameter(name=name, value=_typed(value)) for name, value in sorted(named.items()))
    work = Work(
        weights=spec.weights,
        width_px=int(settings["width_px"]),
        height_px=int(settings["height_px"]),
        num_frames=int(settings["num_frames"]),
        steps=_steps(settings, named),
        call=call,
        memory_cap_gib=spec.memory_cap_gib,
    )
    estimates = known.estimates(lane, work, placement)
    return LanePlan(
        lane_id=lane.id,
        lane_title=lane.title,
        task=Task(lane.task),
        lane_digest=lanes.lane_digest(lane),
        host=placement.host,
        device=placement.device,
        width_px=work.width_px,
        height_px=work.height_px,
        num_frames=work.num_frames,
        steps=work.steps,
        fps=float(settings["fps"]),
        call=call,
        marks=marks,
        limits=limits(lane, estimates),
        rungs=rung_names(lane, placement),
        weights_repo=lane.model.repo if lane.model else "",
        weights_revision=lane.model.revision if lane.model else "",
        preflight=_preflight_word(marks, placement),
        prompt_keyword=lane.parameters.get("prompt", ""),
        estimates=estimates,
        first_rung=known.first_rung(lane, work, placement),
    )


def rung_names(lane: lanes.Lane, placement: Placement) -> tuple[str, ...]:
    """Names by index of the ladder; empty where this device has no use for the rung."""
    usable = lanes.usable_rungs(lane, placement.is_unified)
    return tuple(rung.name if index in usable else "" for index, rung in enumerate(lane.ladder))


def limits(lane: lanes.Lane, estimates: Iterable[Estimate]) -> Limits:
    """The lane's own, but for the attempt: ten minutes, or three times what its slowest rung is expected to take.

    Never less than the top of that estimate's own range; the lane's number stands where nothing is known, which is
    always so for miniatures.
    """
    load_s = float(lane.limits.load_s)
    found = [_patience_s(estimate, load_s) for estimate in estimates]
    known = [seconds for seconds in found if seconds is not None]
    is_known = bool(found) and len(known) == len(found)
    return Limits(
        load_s=load_s,
        step_stall_s=float(lane.limits.step_stall_s),
        attempt_s=max(SHORTEST_ATTEMPT_S, *known) if is_known else float(lane.limits.attempt_s),
    )


def _patience_s(estimate: Estimate, load_limit_s: float) -> float | None:
    """None when the estimate knows no time. An unknown load counts with its limit."""
    if estimate.clip_s is None:
        return None
    whole_s = PATIENCE * ((estimate.load_s or 0.0) + estimate.clip_s)
    load_s = load_limit_s if estimate.load_s is None else estimate.load_s
    return max(whole_s, load_s + (estimate.high_s or estimate.clip_s))


def resolve(lane: lanes.Lane, spec: SweepSpec) -> tuple[dict[str, lanes.Value], tuple[Mark, ...]]:
    """Settings by generic name, and the marks of what was asked but not taken as asked, or not asked at all."""
    settings = lane.defaults_for(spec.weights.value)
    defaulted = tuple(_defaulted(settings, spec.requested))
    fixed = _fixed(lane, spec)
    marks: list[Mark] = []
    for name, value in _asked(spec.requested):
        if not lane.takes(name):
            own = fixed.get(name, settings.get(name, "none"))
            if own != value:
                reason = f"{lane.title} takes no {name}"
                marks.append(_mark(MarkKind.DROPPED, name, value, own, reason))
            continue
        effective, reason = _legal(lane, name, value, settings)
        settings[name] = effective
        if reason:
            marks.append(_mark(MarkKind.CLAMPED, name, value, effective, reason))
        elif lane.parameters.get(name, name) in _UNLIKE_NAMES:
            keyword = lane.parameters[name]
            marks.append(_mark(MarkKind.RENAMED, name, value, f"{keyword}={value}", f"{lane.title} calls it {keyword}"))
    if not lane.takes("prompt"):
        marks.append(_mark(MarkKind.DROPPED, "prompt", "given", "none", f"{lane.title} takes no prompt"))
    marks += _cut_keyframe(lane, spec, settings)
    if lane.audio == "dropped":
        marks.append(_mark(MarkKind.DROPPED, "audio", "given", "none", f"{lane.title} makes sound, a clip has none"))
    return settings, (*marks, *defaulted)


def _defaulted(defaults: Mapping[str, lanes.Value], requested: Requested) -> Iterable[Mark]:
    """Nobody asked, so the lane decides; an empty negative prompt is none."""
    for name in _REQUESTED_NAMES:
        if getattr(requested, name) is None and defaults.get(name, "") != "":
            yield _mark(MarkKind.DEFAULTED, name, "", defaults[name], "")


def _cut_keyframe(lane: lanes.Lane, spec: SweepSpec, settings: Mapping[str, lanes.Value]) -> Iterable[Mark]:
    """Of another aspect ratio it loses its edges: the runner scales to cover and cuts at the centre."""
    picture = spec.keyframe if lane.task == "i2v" else None
    width_px, height_px = int(settings["width_px"]), int(settings["height_px"])
    if picture is None or picture.width_px * height_px == picture.height_px * width_px:
        return
    asked, made = f"{picture.width_px}x{picture.height_px}", f"{width_px}x{height_px}"
    yield _mark(MarkKind.CLAMPED, "keyframe", asked, made, "scaled to cover, its edges cut")


# Keywords that mean something else than our name says: the reader must know which knob was turned.
_UNLIKE_NAMES = frozenset({"max_guidance_scale", "true_cfg_scale"})
_REQUESTED_NAMES = tuple(part.name for part in fields(Requested))


def jobs(record: SweepRecord) -> tuple[JobSpec, ...]:
    """Every cell of a sweep in its order: lane by lane (a loaded model serves all its cells), prompt, then seed."""
    cells = [
        (lane_plan, prompt_index, call, seed)
        for lane_plan in record.lanes
        for prompt_index, prompt in enumerate(record.spec.prompts)
        for call in (_call(lane_plan, prompt),)  # shared by all seeds: ten thousand jobs stay small in memory
        for seed in record.spec.seeds
    ]
    return tuple(_job(record, *cell, ordinal) for ordinal, cell in enumerate(cells))


def retry(spec: JobSpec, retry_index: int) -> JobSpec:
    """A new job for the same cell."""
    return replace(
        spec,
        job_id=job_id(spec.sweep_id, spec.lane_id, spec.prompt_index, spec.seed, retry_index),
        retry_of=spec.job_id,
        retry_index=retry_index,
        expires_at=None,  # a person wants it now, whatever the sweep once allowed
    )


def with_patience(spec: JobSpec, lane: lanes.Lane) -> JobSpec:
    """The job with at least the attempt limit of its lane file.

    One that follows from an estimate too short would end every retry like the first job, and no file could raise it.
    """
    attempt_s = max(spec.limits.attempt_s, float(lane.limits.attempt_s))
    return replace(spec, limits=replace(spec.limits, attempt_s=attempt_s))


def job_id(of_sweep: str, lane_id: str, prompt_index: int, seed: int, retry_index: int) -> str:
    """Deterministic and unique over all sweeps: ``p0-s42-`` (``p0-s42-r1-``) and 12 hex of what makes the cell."""
    cell = f"{of_sweep}/{lane_id}/{prompt_index}/{seed}/{retry_index}"
    digest = hashlib.sha256(cell.encode()).hexdigest()[:12]
    again = f"-r{retry_index}" if retry_index else ""
    return f"p{prompt_index}-s{seed}{again}-{digest}"


def _call(lane: LanePlan, prompt: str) -> tuple[Parameter, ...]:
    return tuple(
        replace(item, value=str(item.value).replace("{prompt}", prompt)) if item.name == lane.prompt_keyword else item
        for item in lane.call
    )


def _job(
    record: SweepRecord, lane: LanePlan, prompt_index: int, call: tuple[Parameter, ...], seed: int, ordinal: int
) -> JobSpec:
    return JobSpec(
        job_id=job_id(record.sweep_id, lane.lane_id, prompt_index, seed, 0),
        sweep_id=record.sweep_id,
        lane_id=lane.lane_id,
        lane_title=lane.lane_title,
        task=lane.task,
        ordinal=ordinal,
        prompt_index=prompt_index,
        prompt=record.spec.prompts[prompt_index],
        seed=seed,
        weights=record.spec.weights,
        keyframe=record.spec.keyframe if lane.task is Task.I2V else None,
        lane_digest=lane.lane_digest,
        host=lane.host,
        device=lane.device,
        width_px=lane.width_px,
        height_px=lane.height_px,
        num_frames=lane.num_frames,
        steps=lane.steps,
        fps=lane.fps,
        call=call,
        marks=lane.marks,
        limits=lane.limits,
        rungs=lane.rungs,
        weights_repo=lane.weights_repo,
        weights_revision=lane.weights_revision,
        expires_at=record.spec.expires_at,
        priority=record.spec.priority,
        first_rung=lane.first_rung,
        memory_cap_gib=record.spec.memory_cap_gib,
    )


def _violations(spec: SweepSpec, catalogue: Mapping[str, lanes.Lane]) -> Iterable[FieldViolation]:
    def wrong(field: str, description: str) -> FieldViolation:
        return FieldViolation(field=f"spec.{field}", description=description)

    if not spec.title.strip():
        yield wrong("title", "the title is empty; give the sweep a name")
    if not spec.prompts:
        yield wrong("prompts", "there is no prompt; give at least one")
    for index, prompt in enumerate(spec.prompts):
        if not prompt.strip():
            yield wrong(f"prompts[{index}]", f"prompt {index} is empty; write what the scene shows")
        elif len(prompt) > MAX_PROMPT_CHARACTERS:
            length = f"prompt {index} has {len(prompt)} characters; {MAX_PROMPT_CHARACTERS} fit"
            yield wrong(f"prompts[{index}]", length)
    if not spec.lane_ids:
        yield wrong("lane_ids", f"no lane is chosen; choose from {', '.join(sorted(catalogue))}")
    for index, lane_id in enumerate(spec.lane_ids):
        yield from _lane_violations(index, lane_id, spec, catalogue)
    if not spec.seeds:
        yield wrong("seeds", "there is no seed; give at least one, for example 42")
    for index, seed in enumerate(spec.seeds):
        if not 0 <= seed <= MAX_SEED:
            yield wrong(f"seeds[{index}]", f"seed {seed} is not between 0 and {MAX_SEED}")
    if len(set(spec.seeds)) != len(spec.seeds):
        yield wrong("seeds", "a seed is given twice; the same seed would make the same clip")
    if spec.memory_cap_gib is not None and not 0 < spec.memory_cap_gib <= MAX_MEMORY_GIB:
        cap = f"memory_cap_gib {spec.memory_cap_gib:g} is not above 0 and at most {MAX_MEMORY_GIB:g}"
        yield wrong("memory_cap_gib", f"{cap}; leave it out for the whole card")
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        yield wrong("priority", f"priority {spec.priority} is not between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    if len(spec.prompts) * len(spec.lane_ids) * len(spec.seeds) > MAX_JOBS:
        yield wrong("seeds", f"more than {MAX_JOBS} jobs in one sweep; submit several sweeps")
    yield from _range_violations(spec.requested)


def _lane_violations(
    index: int, lane_id: str, spec: SweepSpec, catalogue: Mapping[str, lanes.Lane]
) -> Iterable[FieldViolation]:
    field = f"spec.lane_ids[{index}]"
    if spec.lane_ids.index(lane_id) != index:
        yield FieldViolation(field=field, description=f"lane {lane_id!r} is chosen twice")
    if lane_id in catalogue:
        return
    legal = subjects.legal_form(lane_id)
    if legal in catalogue and legal != lane_id:
        yield FieldViolation(field=field, description=f"lane id {lane_id!r} is not legal; the lane is {legal!r}")
        return
    near = difflib.get_close_matches(legal, catalogue, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "`screentest lanes` lists them"
    yield FieldViolation(field=field, description=f"there is no lane {lane_id!r}; {hint}")


def _range_violations(requested: Requested) -> Iterable[FieldViolation]:
    limits: tuple[tuple[str, float | None, float, float], ...] = (
        ("width_px", requested.width_px, 16, MAX_SIZE_PX),
        ("height_px", requested.height_px, 16, MAX_SIZE_PX),
        ("num_frames", requested.num_frames, 1, 10_000),
        ("steps", requested.steps, 1, MAX_STEPS),
        ("guidance_scale", requested.guidance_scale, 0, 100),
        ("fps", requested.fps, 1, 240),
    )
    for name, value, low, high in limits:
        if value is not None and not low <= value <= high:  # NaN fails both comparisons
            yield FieldViolation(
                field=f"spec.requested.{name}", description=f"{name} {value:g} is not between {low:g} and {high:g}"
            )


def _impossible(lane: lanes.Lane, spec: SweepSpec, placement: Placement) -> str:
    """Why this lane cannot take part at all; empty when it can."""
    if lane.task == "i2v" and spec.keyframe is None:
        return "image-to-video needs a keyframe; give one"
    if spec.weights is not Weights.MINIATURE and lane.device == "gpu" and placement.is_cpu:
        what = "hub weights" if spec.weights is Weights.HUB else "full-size random weights"
        start = "start with `screentest up --device gpu-0`"
        return f"{what} need a GPU; {start}, or try it with --weights miniature"
    return ""


def _fixed(lane: lanes.Lane, spec: SweepSpec) -> Mapping[str, object]:
    """What the lane passes whatever is asked, by keyword, and the steps of a list of timesteps."""
    call = lane.pipeline_call(spec.weights.value, {})
    return {**call, "steps": _steps({}, call)} if "timesteps" in call else call


def _asked(requested: Requested) -> tuple[tuple[str, lanes.Value], ...]:
    pairs = ((name, getattr(requested, name)) for name in _REQUESTED_NAMES)
    return tuple((name, value) for name, value in pairs if value is not None)


def _legal(
    lane: lanes.Lane, name: str, value: lanes.Value, settings: Mapping[str, lanes.Value]
) -> tuple[lanes.Value, str]:
    """(value this lane can do, why it differs from what was asked; empty when it does not)."""
    if name in {"width_px", "height_px"}:
        nearest = lane.constraints.nearest_px(int(value))
        return nearest, "" if nearest == value else f"multiples of {lane.constraints.size_multiple_px} only"
    if name == "num_frames":
        frames = lane.constraints.frames.nearest(int(value))
        return frames, "" if frames == value else _frame_rule(lane.constraints.frames)
    if name == "fps" and "fps" not in lane.parameters:
        native = settings["fps"]
        return native, "" if native == value else f"{lane.title} is made for {native} fps"
    return value, ""


def _frame_rule(rule: lanes.FrameRule) -> str:
    if rule.multiple == 1:
        return f"{rule.minimum} to {rule.maximum} frames only"
    forms = " or ".join(f"{rule.multiple}k+{plus}" if plus else f"{rule.multiple}k" for plus in rule.plus)
    return f"{forms} frames from {rule.minimum} to {rule.maximum} only"


def _steps(settings: Mapping[str, lanes.Value], call: Mapping[str, object]) -> int:
    """A distilled model has its timesteps instead of a step count."""
    timesteps = call.get("timesteps")
    return len(timesteps) if isinstance(timesteps, list | tuple) else int(settings["steps"])


def _typed(value: object) -> ParameterType:
    """As the wire carries it: a list of numbers is a tuple of floats."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(float(item) for item in value)
    raise BadRequest(f"a pipeline argument of type {type(value).__name__} cannot be recorded: {value!r}")


def _mark(kind: MarkKind, name: str, requested: object, effective: object, reason: str) -> Mark:
    return Mark(kind=kind, parameter=name, requested=_short(requested), effective=_short(effective), reason=reason)


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _preflight_word(marks: tuple[Mark, ...], placement: Placement) -> str:
    if not placement.has_worker:
        return "not preflighted: no worker"
    changes = "; ".join(f"{mark.parameter} {mark.requested} -> {mark.effective}" for mark in marks if mark.is_change)
    return f"fixed: {changes}" if changes else "ok"


def _verdict(item: LanePlan | SkippedLane, placements: Mapping[str, Placement]) -> LaneVerdict:
    if isinstance(item, SkippedLane):
        return LaneVerdict(
            lane_id=item.lane_id, lane_title=item.lane_title, verdict=Verdict.REFUSED, detail=item.reason
        )
    if not placements[item.lane_id].has_worker:
        verdict, detail = Verdict.NOT_PREFLIGHTED, f"no worker for {item.lane_id}; checked again before it starts"
    elif any(mark.is_change for mark in item.marks):
        verdict, detail = Verdict.FIXED, item.preflight.removeprefix("fixed: ")
    else:
        verdict, detail = Verdict.OK, ""
    return LaneVerdict(lane_id=item.lane_id, lane_title=item.lane_title, verdict=verdict, detail=detail, plan=item)
