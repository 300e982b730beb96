"""Whether this worker can do a job, and at which rung, from facts that somebody else gathered. Pure.

Every check runs: a person mends everything at once, not one thing per try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from screentest.lanes import Lane
from screentest.measured import Measured
from screentest.records import JobSpec, Task, Verdict, Weights
from screentest_worker import admission, pipeline_call, pipeline_rules, weights_layout
from screentest_worker.admission import Admission
from screentest_worker.device_memory import DeviceMemory
from screentest_worker.findings import Check, Problem
from screentest_worker.signature import PipelineSignature
from screentest_worker.weights_folder import WeightsFolder
from screentest_worker.weights_layout import Expectation


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true on this machine now; None = not looked at, because the job does not need it.

    ``missing_env``: the model env's interpreter when it is not there. ``signature``: of the lane's pipeline class, or
    why there is none. ``weights``: what is in their folder; ``expected``: what must be. ``memory``: None also where
    telemetry did not answer. ``measured``: what clips took so far.
    """

    lane: Lane
    lane_digest: str
    missing_env: str | None = None
    signature: PipelineSignature | Problem | None = None
    weights: WeightsFolder | None = None
    expected: Expectation | None = None
    memory: DeviceMemory | None = None
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``reason`` and ``fix`` are of the first problem, one line each, empty without one. ``fixed``: what will differ
    from what was asked. ``first_rung``: None where nothing is known of the memory. ``memory_free_bytes``: what the job
    may use once no runner of ours holds any.
    """

    verdict: Verdict
    problems: tuple[Problem, ...] = ()
    fixed: tuple[str, ...] = ()
    first_rung: int | None = None
    memory_free_bytes: int | None = None

    @property
    def reason(self) -> str:
        return self.problems[0].reason if self.problems else ""

    @property
    def fix(self) -> str:
        return self.problems[0].fix if self.problems else ""

    @property
    def detail(self) -> str:
        """Everything that is wrong, or everything that was fixed, in one line."""
        return "; ".join([problem.reason for problem in self.problems] or self.fixed)


def decide(facts: Facts, spec: JobSpec, rung: int | None = None) -> Decision:
    """``rung``: of an attempt that is about to start, None for a job that asks where it may begin."""
    foreign = _of_another_lane(facts, spec)
    if foreign is not None:  # everything else would be judged by the wrong lane file
        return _refused((foreign,))
    begin = spec.first_rung if rung is None else rung
    problems = (*of_lane(facts, _call(spec)), *_shape(facts.lane, spec), *_keyframe(spec))
    problems += tuple(_rung(facts.lane, spec, begin))
    admitted = _admission(facts, spec, problems)
    if admitted.problem is not None:
        problems += (admitted.problem,)
    if problems:
        return _refused(problems, admitted.available_bytes)
    fixed = (admitted.fixed,) if admitted.fixed else ()
    return Decision(
        verdict=Verdict.FIXED if fixed else Verdict.OK,
        fixed=fixed,
        first_rung=admitted.rung,
        memory_free_bytes=admitted.available_bytes,
    )


def of_lane(facts: Facts, call: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What is wrong with the lane's env, weights and pipeline, whatever the job. ``call``: keyword arguments."""
    return (*_env(facts), *_weights(facts), *_pipeline(facts, call))


def _call(spec: JobSpec) -> dict[str, Any]:
    return {parameter.name: parameter.value for parameter in spec.call}


def _admission(facts: Facts, spec: JobSpec, problems: tuple[Problem, ...]) -> Admission:
    """Miniatures fit anywhere, and of a shape or rung that is no good nothing can be said."""
    is_sound = not any(problem.check in {Check.SHAPE, Check.RUNG} for problem in problems)
    if facts.memory is None or spec.weights is Weights.MINIATURE or not is_sound:
        return Admission()
    return admission.admit(facts.lane, spec, facts.memory, facts.measured)


def _refused(problems: tuple[Problem, ...], memory_free_bytes: int | None = None) -> Decision:
    return Decision(verdict=Verdict.REFUSED, problems=problems, memory_free_bytes=memory_free_bytes)


def _of_another_lane(facts: Facts, spec: JobSpec) -> Problem | None:
    if spec.lane_id != facts.lane.id:
        reason = f"this worker runs lane {facts.lane.id!r}, the job wants {spec.lane_id!r}"
        return Problem(check=Check.LANE, reason=reason, fix="report this defect")
    if spec.lane_digest != facts.lane_digest:
        reason = f"lane {spec.lane_id!r} has changed since the sweep was planned"
        fix = "restart this lane's worker if its file is older, otherwise submit the sweep again"
        return Problem(check=Check.LANE, reason=reason, fix=fix)
    return None


def _env(facts: Facts) -> Iterator[Problem]:
    if facts.missing_env is not None:
        reason = f"the model env {facts.lane.env!r} is not there: {facts.missing_env}"
        yield Problem(check=Check.ENV, reason=reason, fix="run `make envs`, or correct env in the lane file")


def _weights(facts: Facts) -> Iterator[Problem]:
    """Only hub weights come from a folder that somebody else filled."""
    if facts.weights is not None and facts.expected is not None:
        yield from weights_layout.problems(facts.expected, facts.weights)


def _pipeline(facts: Facts, call: Mapping[str, Any]) -> Iterator[Problem]:
    keywords = {*call, *(keyword for rung in facts.lane.ladder for keyword in rung.call)}
    match facts.signature:
        case Problem() as problem:
            yield problem
        case PipelineSignature() as signature:
            yield from pipeline_call.problems(facts.lane, signature, keywords)
        case None:
            pass
    yield from pipeline_rules.problems(facts.lane, call)


def _shape(lane: Lane, spec: JobSpec) -> Iterator[Problem]:
    if spec.num_frames < 1 or spec.width_px < 2 or spec.height_px < 2 or spec.fps <= 0:
        asked = f"{spec.num_frames} frames of {spec.width_px}x{spec.height_px} at {spec.fps:g} fps"
        fix = "ask for at least one frame, 2x2 pixels and a rate above zero"
        yield Problem(check=Check.SHAPE, reason=f"{asked} is no clip", fix=fix)
        return
    rules = lane.constraints
    if not rules.frames.is_legal(spec.num_frames):
        reason = f"{lane.title} makes no {spec.num_frames} frames"
        fix = f"ask for {rules.frames.nearest(spec.num_frames)} frames"
        yield Problem(check=Check.SHAPE, reason=reason, fix=fix)
    legal = rules.nearest_px(spec.width_px), rules.nearest_px(spec.height_px)
    if legal != (spec.width_px, spec.height_px):
        reason = f"{spec.width_px}x{spec.height_px} is no multiple of {rules.size_multiple_px} pixels"
        yield Problem(check=Check.SHAPE, reason=reason, fix=f"ask for {legal[0]}x{legal[1]}")


def _keyframe(spec: JobSpec) -> Iterator[Problem]:
    """The scheduler has stored it as an RGB PNG, and the runner converts and fits it once more."""
    if spec.task is not Task.I2V:
        return
    if spec.keyframe is None:
        reason = f"lane {spec.lane_id!r} animates a keyframe and the job has none"
        yield Problem(check=Check.KEYFRAME, reason=reason, fix="submit with --keyframe")
    elif spec.keyframe.width_px < 1 or spec.keyframe.height_px < 1:
        reason = f"the keyframe has {spec.keyframe.width_px}x{spec.keyframe.height_px} pixels"
        yield Problem(check=Check.KEYFRAME, reason=reason, fix="upload the keyframe again and submit with the new one")


def _rung(lane: Lane, spec: JobSpec, rung: int) -> Iterator[Problem]:
    if rung not in range(len(lane.ladder)):
        ladder = ", ".join(step.name for step in lane.ladder)
        reason = f"lane {spec.lane_id!r} has no rung {rung}; its ladder is {ladder}"
        yield Problem(check=Check.RUNG, reason=reason, fix="submit the sweep again")
