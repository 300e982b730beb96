"""Whether this worker can do a job at all, from facts that somebody else gathered. Pure.

Thin on purpose: what the lane file, the folders and the job itself say. It knows nothing of memory yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from screentest.records import JobSpec, Task, Verdict, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true on this machine now.

    ``lane_id``, ``lane_digest``, ``rungs``: of the lane file this worker runs. ``missing_weights``: the file that hub
    weights lack, None when they are complete. ``missing_env``: the model env's interpreter when it is not there.
    """

    lane_id: str
    lane_digest: str
    rungs: tuple[str, ...]
    missing_weights: str | None
    missing_env: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``reason`` and ``fix`` are one line each, empty when the verdict is ok."""

    verdict: Verdict
    reason: str = ""
    fix: str = ""


OK = Decision(verdict=Verdict.OK)


def decide(facts: Facts, spec: JobSpec, rung: int = 0) -> Decision:
    """The first thing that makes the job impossible here, or OK."""
    if spec.lane_id != facts.lane_id:
        return _refused(
            f"this worker runs lane {facts.lane_id!r}, the job wants {spec.lane_id!r}", "report this defect"
        )
    if facts.missing_env is not None:
        return _refused(f"the model env is not there: {facts.missing_env}", "run `make envs`")
    if spec.lane_digest != facts.lane_digest:
        reason = f"lane {spec.lane_id!r} has changed since the sweep was planned"
        return _refused(reason, "restart this lane's worker if its file is older, otherwise submit the sweep again")
    return _weights(facts, spec) or _inputs(spec) or _rung(facts, spec, rung) or OK


def _weights(facts: Facts, spec: JobSpec) -> Decision | None:
    match spec.weights:
        case Weights.FULL_RANDOM:
            reason = f"lane {spec.lane_id!r} cannot make full-size random weights yet"
            return _refused(reason, "submit with --weights miniature or --weights hub")
        case Weights.HUB if facts.missing_weights is not None:
            reason = f"the weights of {spec.weights_repo or spec.lane_id} lack {facts.missing_weights}"
            return _refused(reason, "fetch the weights of this lane into the models folder")
        case _:
            return None


def _inputs(spec: JobSpec) -> Decision | None:
    if spec.task is Task.I2V and spec.keyframe is None:
        return _refused(f"lane {spec.lane_id!r} animates a keyframe and the job has none", "submit with --keyframe")
    if spec.num_frames < 1 or spec.width_px < 2 or spec.height_px < 2 or spec.fps <= 0:
        asked = f"{spec.num_frames} frames of {spec.width_px}x{spec.height_px} at {spec.fps:g} fps"
        return _refused(f"{asked} is no clip", "ask for at least one frame, 2x2 pixels and a rate above zero")
    return None


def _rung(facts: Facts, spec: JobSpec, rung: int) -> Decision | None:
    if rung in range(len(facts.rungs)):
        return None
    ladder = ", ".join(facts.rungs)
    return _refused(f"lane {spec.lane_id!r} has no rung {rung}; its ladder is {ladder}", "submit the sweep again")


def _refused(reason: str, fix: str) -> Decision:
    return Decision(verdict=Verdict.REFUSED, reason=reason, fix=fix)
