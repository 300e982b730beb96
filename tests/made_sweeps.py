"""Sweeps made by hand for tests: records and events as the scheduler and the workers write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from screentest import folding
from screentest.records import (
    Admitted,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    Cancelled,
    ClipFacts,
    Completed,
    DeviceProof,
    Failed,
    FailureClass,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    Keyframe,
    LanePlan,
    Limits,
    Mark,
    Outcome,
    Parameter,
    PhaseTime,
    Process,
    Proof,
    ProofKind,
    Refused,
    SkippedLane,
    Stamp,
    Started,
    Submitted,
    SweepEvent,
    SweepRecord,
    SweepSettled,
    SweepSpec,
    SweepSubmitted,
    Task,
    Version,
    Weights,
)

SWEEP_ID = "architects-stillness-20260508t232959z"
BEGAN_AT = datetime(2026, 5, 8, 23, 29, 59, tzinfo=UTC)
BOOT_ID = "boot-a"
RUNNER = Process(pid=4242, start_ticks=99, command="python -m screentest_runner")
LIMITS = Limits(load_s=900, step_stall_s=600, attempt_s=7200)


def stamp(second: float, boot_id: str = BOOT_ID) -> Stamp:
    return Stamp(at=BEGAN_AT + timedelta(seconds=second), boot_id=boot_id, boottime_ns=int((1000 + second) * 1e9))


def proof(kind: ProofKind = ProofKind.HANDOVER, *, clean: bool = True, second: float = 0, **changes: object) -> Proof:
    made = Proof(
        kind=kind,
        clean=clean,
        reason="lock free" if clean else "the lock is held by pid 77",
        lock_held=not clean,
        lock_holders=(),
        processes=(),
        stamp=stamp(second),
        method="proc",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def plan(lane_id: str, title: str, task: Task = Task.T2V, marks: Sequence[Mark] = ()) -> LanePlan:
    return LanePlan(
        lane_id=lane_id,
        lane_title=title,
        task=task,
        lane_digest=f"digest-{lane_id}",
        host="local",
        device="cpu-0",
        width_px=96,
        height_px=64,
        num_frames=25,
        steps=2,
        fps=16,
        call=(Parameter(name="guidance_scale", value=5.0),),
        marks=tuple(marks),
        limits=LIMITS,
        rungs=("resident",),
        weights_repo=f"example/{lane_id}",
        weights_revision="main",
        preflight="ok",
    )


def record(
    lanes: Sequence[LanePlan],
    *,
    sweep_id: str = SWEEP_ID,
    title: str = "The Architect's Stillness",
    prompts: Sequence[str] = ("An obsidian cathedral shaped like the inside of a skull.",),
    seeds: Sequence[int] = (42,),
    weights: Weights = Weights.MINIATURE,
    keyframe: Keyframe | None = None,
    skipped: Sequence[SkippedLane] = (),
) -> SweepRecord:
    return SweepRecord(
        sweep_id=sweep_id,
        request_id=f"request-of-{sweep_id}",
        content_sha256="0" * 64,
        submitted_at=BEGAN_AT,
        spec=SweepSpec(
            title=title,
            prompts=tuple(prompts),
            lane_ids=tuple(lane.lane_id for lane in lanes),
            seeds=tuple(seeds),
            weights=weights,
            keyframe=keyframe,
        ),
        lanes=tuple(lanes),
        skipped=tuple(skipped),
    )


def specs(sweep: SweepRecord) -> tuple[JobSpec, ...]:
    """One JobSpec per cell, in the order of the plan."""
    cells = [
        (lane, prompt_index, prompt, seed)
        for lane in sweep.lanes
        for prompt_index, prompt in enumerate(sweep.spec.prompts)
        for seed in sweep.spec.seeds
    ]
    return tuple(
        JobSpec(
            job_id=f"job-{ordinal}",
            sweep_id=sweep.sweep_id,
            lane_id=lane.lane_id,
            lane_title=lane.lane_title,
            task=lane.task,
            ordinal=ordinal,
            prompt_index=prompt_index,
            prompt=prompt,
            seed=seed,
            weights=sweep.spec.weights,
            keyframe=sweep.spec.keyframe if lane.task is Task.I2V else None,
            lane_digest=lane.lane_digest,
            host=lane.host,
            device=lane.device,
            width_px=lane.width_px,
            height_px=lane.height_px,
            num_frames=lane.num_frames,
            steps=lane.steps,
            fps=lane.fps,
            call=lane.call,
            marks=lane.marks,
            limits=lane.limits,
            rungs=lane.rungs,
            weights_repo=lane.weights_repo,
            weights_revision=lane.weights_revision,
        )
        for ordinal, (lane, prompt_index, prompt, seed) in enumerate(cells)
    )


def retry_of(spec: JobSpec) -> JobSpec:
    return replace(spec, job_id=f"{spec.job_id}-r1", retry_of=spec.job_id, retry_index=spec.retry_index + 1)


def clip_of(spec: JobSpec, sha256: str = "c" * 64) -> Artifact:
    return Artifact(
        kind=ArtifactKind.CLIP,
        key=f"{spec.sweep_id}/clips/{spec.lane_id}-{spec.job_id}-1-{sha256[:16]}.mp4",
        sha256=sha256,
        size_bytes=1000,
        content_type="video/mp4",
    )


def success(spec: JobSpec, flags: Sequence[str] = ()) -> Outcome:
    facts = ClipFacts(
        codec="h264",
        pixel_format="yuv420p",
        frames=spec.num_frames,
        width_px=spec.width_px,
        height_px=spec.height_px,
        fps=spec.fps,
        duration_s=spec.num_frames / spec.fps,
        flags=tuple(flags),
    )
    return Outcome(
        failure_class=None,
        artifacts=(clip_of(spec),),
        clip=facts,
        phases=(PhaseTime(phase="denoising", seconds=3.0, started_boottime_ns=0),),
        versions=(Version(name="torch", version="2.13.0"), Version(name="diffusers", version="0.42.1")),
        peak_host_memory_bytes=2**30,
    )


def failure(failure_class: FailureClass, cause: str = "it broke", fix: str = "", phase: str = "denoising") -> Outcome:
    return Outcome(failure_class=failure_class, cause=cause, fix=fix, phase=phase)


@dataclass
class History:
    """The events of one job, written step by step; ``second`` is its clock."""

    spec: JobSpec
    second: float = 0
    attempt: int = 0
    events: list[JobEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._append(JobState.QUEUED, Submitted(spec=self.spec))

    def _append(self, state: JobState, body: object) -> History:
        self.events.append(
            JobEvent(
                event_id=f"{self.spec.sweep_id}-{self.spec.job_id}-{len(self.events)}",
                sweep_id=self.spec.sweep_id,
                lane_id=self.spec.lane_id,
                job_id=self.spec.job_id,
                attempt=self.attempt,
                state=state,
                stamp=stamp(self.second),
                body=body,  # type: ignore[arg-type]
            )
        )
        return self

    def wait(self, seconds: float) -> History:
        self.second += seconds
        return self

    def start(self, *, shared_gpu: bool = False, rung: int = 0) -> History:
        self.attempt += 1
        self._append(JobState.ADMITTED, Admitted(rung=rung, rung_name=self.spec.rungs[rung]))
        started = Started(runner=RUNNER, proof=proof(second=self.second), warm=False, shared_gpu=shared_gpu)
        return self._append(JobState.RUNNING, started)

    def end(self, outcome: Outcome) -> History:
        return self._append(JobState.ENDED, AttemptEnded(outcome=outcome))

    def complete(
        self, latency_s: float = 5, flags: Sequence[str] = (), clip: Artifact | None = None, rung: int = 0
    ) -> History:
        outcome = success(self.spec, flags)
        artifact = clip or outcome.artifacts[0]
        self.start(rung=rung).wait(latency_s).end(replace(outcome, artifacts=(artifact,)))
        return self.succeed(artifact)

    def succeed(self, clip: Artifact | None = None) -> History:
        """The terminal event after an attempt that made the clip."""
        return self._append(JobState.COMPLETED, Completed(clip=clip or clip_of(self.spec)))

    def fail(self, failure_class: FailureClass, cause: str = "", fix: str = "", latency_s: float = 5) -> History:
        self.start().wait(latency_s).end(failure(failure_class, cause, fix))
        return self.give_up(failure_class, cause, fix)

    def give_up(self, failure_class: FailureClass, cause: str = "", fix: str = "") -> History:
        return self._append(JobState.FAILED, Failed(failure_class=failure_class, cause=cause, fix=fix))

    def refuse(self, reason: str, fix: str = "") -> History:
        return self._append(JobState.REFUSED, Refused(reason=reason, fix=fix))

    def cancel(self, by: str = "ada") -> History:
        return self._append(JobState.CANCELLED, Cancelled(by=by))

    @property
    def job(self) -> Job:
        return fold(self.events)


def fold(events: Iterable[JobEvent]) -> Job:
    job: Job | None = None
    for event in events:
        job = folding.fold(job, event)
    assert job is not None
    return job


def submitted(sweep: SweepRecord) -> SweepEvent:
    return SweepEvent(
        event_id=f"{sweep.sweep_id}-submitted",
        sweep_id=sweep.sweep_id,
        stamp=stamp(0),
        body=SweepSubmitted(record=sweep),
    )


def settled(sweep: SweepRecord, jobs: Sequence[Job], proofs: Sequence[DeviceProof], second: float) -> SweepEvent:
    clips = sum(job.clip is not None for job in jobs)
    return SweepEvent(
        event_id=f"{sweep.sweep_id}-settled",
        sweep_id=sweep.sweep_id,
        stamp=stamp(second),
        body=SweepSettled(jobs=len(jobs), clips=clips, proofs=tuple(proofs)),
    )
