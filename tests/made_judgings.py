"""Judges, rubrics in the depot and judge jobs made by hand for tests of the scheduler."""

from __future__ import annotations

from dataclasses import replace

from screentest import objects
from screentest.records import Artifact, ArtifactKind, JobSpec, JobState, JudgePlan, Keyframe, Limits, RubricRef
from screentest_scheduler import transitions
from screentest_scheduler.transitions import Entry
from tests.made_sweeps import clip_of, stamp

LIMITS = Limits(load_s=60, step_stall_s=60, attempt_s=300)
KEYFRAME = Keyframe(key=objects.keyframe("d" * 64), sha256="d" * 64, width_px=640, height_px=360, size_bytes=9)


def ref(name: str, prompt_index: int = 0) -> RubricRef:
    """``name``: one letter, of which its hashes are made."""
    sha256 = name * 64
    return RubricRef(
        prompt_index=prompt_index, key=objects.rubric(sha256), sha256=sha256, size_bytes=5, rubric_sha256=sha256
    )


STRANGER = ref("f")


def judge(lane_id: str, tier: str = "a", device: str = "cpu-0", digest: str = "1") -> JudgePlan:
    return JudgePlan(
        lane_id=lane_id,
        lane_title=lane_id.title(),
        lane_digest=digest,
        tier=tier,
        host="local",
        device=device,
        limits=LIMITS,
    )


PIXELS = judge("pixels")
SIGLIP = judge("siglip", "b")
VLM = judge("vlm", "c", "gpu-0")


def completed(spec: JobSpec, sequence: int = 10, flags: tuple[str, ...] = ()) -> Entry:
    """A job that made its clip."""
    entry = transitions.submitted_entry(spec, stamp(0), sequence)
    return replace(entry, state=JobState.COMPLETED, clip=clip_of(spec), flags=flags)


def ended(spec: JobSpec, state: JobState, sequence: int = 20, presence: float | None = None) -> Entry:
    """A judge job that came to its end."""
    return replace(transitions.submitted_entry(spec, stamp(0), sequence), state=state, presence=presence)


def judgement_of(spec: JobSpec, sha256: str) -> Artifact:
    key = objects.attempt_object(ArtifactKind.JUDGEMENT, spec.sweep_id, spec.lane_id, spec.job_id, 1, sha256)
    return Artifact(kind=ArtifactKind.JUDGEMENT, key=key, sha256=sha256, size_bytes=10, content_type="application/json")
