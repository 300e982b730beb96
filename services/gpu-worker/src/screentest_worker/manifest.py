"""The manifest of an attempt: what ran, on what, with which result. Pure."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from screentest.records import Artifact, ClipFacts, DeviceFacts, Dispatch, JobSpec, JudgementFacts, Outcome
from screentest_worker import rung

SCHEMA = "manifest/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the outcome does not say. ``ran``: the job as its rung ran it. ``device`` None = no answer of telemetry."""

    ran: JobSpec
    warm: bool
    shared_gpu: bool
    rung_name: str
    device: DeviceFacts | None


def build(dispatch: Dispatch, outcome: Outcome, circumstances: Circumstances, made: Artifact | None) -> dict[str, Any]:
    """JSON-ready. ``made`` is the file that the facts were read from, None when there is none."""
    spec, ran = dispatch.spec, circumstances.ran
    return {
        "schema": SCHEMA,
        "sweep_id": spec.sweep_id,
        "lane_id": spec.lane_id,
        "job_id": spec.job_id,
        "attempt": dispatch.attempt,
        "spec": plain(spec),
        "parameters": {
            "width_px": ran.width_px,
            "height_px": ran.height_px,
            "num_frames": ran.num_frames,
            "steps": ran.steps,
            "fps": ran.fps,
            "call": rung.call_of(ran),
        },
        "marks": plain((*spec.marks, *outcome.marks)),
        "seed": spec.seed,
        "weights": spec.weights.value,
        "random_weights": spec.weights.is_random,
        "weights_repo": spec.weights_repo,
        "weights_revision": spec.weights_revision,
        "lane_digest": spec.lane_digest,
        "rung": {"index": dispatch.rung, "name": circumstances.rung_name},
        "versions": {version.name: version.version for version in outcome.versions},
        "device": plain(circumstances.device),
        "warm": circumstances.warm,
        "shared_gpu": circumstances.shared_gpu,
        "phases": plain(outcome.phases),
        "steps_done": outcome.steps_done,
        "step_s": outcome.step_s,
        "clip": _made(outcome.clip, made),
        "judgement": _made(outcome.judgement, made),
        "peak_device_memory_bytes": outcome.peak_device_memory_bytes,
        "peak_memory_by_phase": {peak.phase: peak.peak_bytes for peak in outcome.peak_memory_by_phase},
        "peak_host_memory_bytes": outcome.peak_host_memory_bytes,
        "model_loads": outcome.model_loads,
        "survivors_killed": outcome.survivors_killed,
        "failure": _failure(outcome),
    }


def to_bytes(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()


def plain(value: Any) -> Any:
    """Records as JSON values: datetimes in ISO 8601, StrEnum as their words."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _made(facts: ClipFacts | JudgementFacts | None, artifact: Artifact | None) -> dict[str, Any] | None:
    if facts is None or artifact is None:
        return None
    return {**plain(facts), "sha256": artifact.sha256, "size_bytes": artifact.size_bytes}


def _failure(outcome: Outcome) -> dict[str, str] | None:
    if outcome.failure_class is None:
        return None
    return {
        "class": outcome.failure_class.value,
        "cause": outcome.cause,
        "fix": outcome.fix,
        "phase": outcome.phase,
    }
