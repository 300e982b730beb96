"""One rich example of every message that is stored or outlives a process: what the golden files hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from screentest.records import (
    Admitted,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    ClipFacts,
    Completed,
    ControlEvent,
    Counts,
    DeviceFault,
    DeviceProof,
    Dispatch,
    Drained,
    Estimate,
    Failed,
    FailureClass,
    FindingEdited,
    GpuInfo,
    GpuSample,
    HostSample,
    JobEvent,
    JobSpec,
    JobState,
    Judged,
    JudgementFacts,
    JudgePlan,
    JudgePurpose,
    JudgeTime,
    JudgingRequested,
    Keyframe,
    LanePlan,
    Lesson,
    Limits,
    LoadTime,
    Mark,
    MarkKind,
    Outcome,
    PairOutcome,
    PairVoted,
    Parameter,
    PhaseMemory,
    PhaseTime,
    PrioritySet,
    Process,
    Proof,
    ProofKind,
    Rated,
    Refused,
    RequestClaim,
    Requested,
    RestoreBegun,
    RetryRequested,
    RubricRef,
    SkippedLane,
    Stamp,
    Started,
    Submitted,
    SweepArchived,
    SweepEvent,
    SweepPaused,
    SweepRecord,
    SweepRestored,
    SweepSettled,
    SweepSpec,
    SweepSubmitted,
    Task,
    Tick,
    Undrained,
    Version,
    VitalsBatch,
    Weights,
    WonRung,
)

SWEEP_ID = "architects-stillness-20260508t232959z"
LANE_ID = "stable-video-diffusion-xt"
JOB_ID = "p0-s42-0123456789ab"
AT = datetime(2026, 5, 8, 23, 29, 59, 123456, tzinfo=UTC)


def _stamp(second: float) -> Stamp:
    nanoseconds = 1_000_000_000_007 + int(second * 1e9)
    return Stamp(at=AT + timedelta(seconds=second), boot_id="5f0c8f0e-boot", boottime_ns=nanoseconds)


KEYFRAME = Keyframe(
    key="keyframes/" + "a" * 64 + ".png", sha256="a" * 64, width_px=1024, height_px=576, size_bytes=654_321
)
SPEC = SweepSpec(
    title="The Architect's Stillness",
    prompts=("An obsidian cathedral shaped like the inside of a skull.", "Ein Kind hält eine Puppe — 静寂."),
    lane_ids=(LANE_ID, "wan2-1-t2v-1-3b"),
    seeds=(42, 2**63 - 1),
    weights=Weights.MINIATURE,
    keyframe=KEYFRAME,
    requested=Requested(
        width_px=1000,
        height_px=576,
        num_frames=25,
        steps=25,
        guidance_scale=7.5,
        fps=12.5,
        negative_prompt="blurred",
    ),
    skip_impossible=True,
    expires_at=AT + timedelta(days=1),
    paused=True,
    priority=-3,
    memory_cap_gib=15.5,
)
CALL = (
    Parameter(name="decode_chunk_size", value=8),
    Parameter(name="enable_tiling", value=True),
    Parameter(name="max_guidance_scale", value=7.5),
    Parameter(name="prompt", value="{prompt}"),
    Parameter(name="timesteps", value=(1000.0, 0.03)),
)
MARKS = (
    Mark(
        kind=MarkKind.CLAMPED,
        parameter="width_px",
        requested="1000",
        effective="1024",
        reason="multiples of 64 only",
    ),
    Mark(
        kind=MarkKind.RENAMED,
        parameter="guidance_scale",
        requested="7.5",
        effective="max_guidance_scale=7.5",
        reason="Stable Video Diffusion XT calls it max_guidance_scale",
    ),
)
LIMITS = Limits(load_s=900, step_stall_s=600.5, attempt_s=7200)
LANE_PLAN = LanePlan(
    lane_id=LANE_ID,
    lane_title="Stable Video Diffusion XT",
    task=Task.I2V,
    lane_digest="d" * 64,
    host="local",
    device="gpu-0",
    width_px=1024,
    height_px=576,
    num_frames=25,
    steps=25,
    fps=12.5,
    call=CALL,
    marks=MARKS,
    limits=LIMITS,
    rungs=("resident", "offload"),
    weights_repo="stabilityai/stable-video-diffusion-img2vid-xt",
    weights_revision="main",
    preflight="fixed: width_px 1000 -> 1024",
    prompt_keyword="prompt",
    estimates=(
        Estimate(
            rung=1,
            rung_name="short",
            changes_picture=True,
            load_s=4.5,
            clip_s=18.4,
            low_s=15.0,
            high_s=24.25,
            energy_wh=3.5,
            peak_memory_bytes=13 * 2**30,
            clips=3,
            basis="3 clips on NVIDIA H200",
        ),
    ),
    first_rung=1,
)
RUBRIC = RubricRef(
    prompt_index=1,
    key="rubrics/" + "e" * 64 + ".json",
    sha256="e" * 64,
    size_bytes=9_876,
    rubric_sha256="f" * 64,
    approved_by="ada",
)
JUDGE_PLAN = JudgePlan(
    lane_id="qwen3-vl-8b",
    lane_title="Qwen3-VL 8B",
    lane_digest="1" * 64,
    tier="c",
    host="local",
    device="gpu-0",
    limits=LIMITS,
    weights_repo="Qwen/Qwen3-VL-8B-Instruct",
    weights_revision="main",
)
RECORD = SweepRecord(
    sweep_id=SWEEP_ID,
    request_id="6d0c1c7e-request",
    content_sha256="c" * 64,
    submitted_at=AT,
    spec=SPEC,
    lanes=(LANE_PLAN,),
    skipped=(SkippedLane(lane_id="wan2-1-t2v-1-3b", lane_title="Wan 2.1 T2V 1.3B", reason="needs a GPU"),),
)
JOB = JobSpec(
    job_id=JOB_ID,
    sweep_id=SWEEP_ID,
    lane_id=LANE_ID,
    lane_title="Stable Video Diffusion XT",
    task=Task.I2V,
    ordinal=3,
    prompt_index=1,
    prompt=SPEC.prompts[1],
    seed=2**63 - 1,
    weights=Weights.MINIATURE,
    keyframe=KEYFRAME,
    lane_digest="d" * 64,
    host="local",
    device="gpu-0",
    width_px=1024,
    height_px=576,
    num_frames=25,
    steps=25,
    fps=12.5,
    call=CALL,
    marks=MARKS,
    limits=LIMITS,
    rungs=("resident", "offload"),
    weights_repo="stabilityai/stable-video-diffusion-img2vid-xt",
    weights_revision="main",
    expires_at=AT + timedelta(days=1),
    priority=7,
    first_rung=1,
    memory_cap_gib=15.5,
)
JUDGE_JOB = replace(
    JOB,
    job_id="judge-0123456789ab",
    lane_id=JUDGE_PLAN.lane_id,
    lane_title=JUDGE_PLAN.lane_title,
    task=Task.JUDGE,
    weights=Weights.HUB,
    judged=Judged(
        purpose=JudgePurpose.CONTROLS,
        job_id=JOB_ID,
        lane_id=LANE_ID,
        key=f"{SWEEP_ID}/clips/{LANE_ID}-{JOB_ID}-1-{'b' * 16}.mp4",
        sha256="b" * 64,
        size_bytes=1_234_567,
        rubric=RUBRIC,
        other_rubric=replace(RUBRIC, prompt_index=0, approved_by=""),
    ),
)
RETRY = replace(JOB, job_id="p1-s42-r1-ba9876543210", retry_of=JOB_ID, retry_index=1)
RUNNER = Process(
    pid=4242, start_ticks=987_654_321, command="python -m screentest_runner", device_memory_bytes=9 * 2**30
)
DESKTOP = Process(pid=77, start_ticks=5, command="Xorg", foreign=True)
PROOF = Proof(
    kind=ProofKind.CONTINUE,
    clean=True,
    reason="",
    lock_held=True,
    lock_holders=(RUNNER,),
    processes=(RUNNER, DESKTOP),
    stamp=_stamp(5.5),
    method="nvml+proc",
)
FAULT = DeviceFault(
    host="local",
    device="gpu-0",
    gpu_uuid="GPU-5c1e6d0a",
    xid=79,
    cause="XID 79: GPU has fallen off the bus",
    ends_attempts=True,
    stamp=_stamp(29),
)
NOT_CLEAN = replace(
    PROOF, kind=ProofKind.HANDOVER, clean=False, reason="the lock is held by pid 4242", method="proc", fault=FAULT
)
CLIP = Artifact(
    kind=ArtifactKind.CLIP,
    key=f"{SWEEP_ID}/clips/{LANE_ID}-{JOB_ID}-1-{'b' * 16}.mp4",
    sha256="b" * 64,
    size_bytes=1_234_567,
    content_type="video/mp4",
)
JUDGEMENT = Artifact(
    kind=ArtifactKind.JUDGEMENT,
    key=f"{SWEEP_ID}/judgements/qwen3-vl-8b-judge-0123456789ab-1-{'c' * 16}.json",
    sha256="c" * 64,
    size_bytes=4_321,
    content_type="application/json",
)
OUTCOME = Outcome(
    failure_class=FailureClass.OOM_DECODE,
    cause="CUDA out of memory while decoding",
    fix="ask for fewer frames",
    phase="decoding",
    artifacts=(CLIP,),
    clip=ClipFacts(
        codec="h264",
        pixel_format="yuv420p",
        frames=25,
        width_px=1024,
        height_px=576,
        fps=12.5,
        duration_s=2.0,
        flags=("black", "frozen"),
    ),
    phases=(PhaseTime(phase="denoising", seconds=343.94, started_boottime_ns=1_000_000_000_007),),
    versions=(Version(name="torch", version="2.13.0"), Version(name="diffusers", version="0.42.1")),
    peak_device_memory_bytes=22 * 2**30,
    peak_host_memory_bytes=0,  # known to be zero is not unknown
    infrastructure=True,
    model_loads=1,
    survivors_killed=2,
    peak_memory_by_phase=(PhaseMemory(phase="decoding", peak_bytes=22 * 2**30),),
    steps_done=25,
    step_s=0.675,
    marks=(Mark(kind=MarkKind.REDUCED, parameter="num_frames", requested="25", effective="13", reason="rung short"),),
    gpu_name="NVIDIA H200",
)
JUDGED = Outcome(
    failure_class=None,
    phase="uploading",
    artifacts=(JUDGEMENT,),
    judgement=JudgementFacts(tier="c", method="logprobs", calls=320, presence=0.625, badges=("uncalibrated",)),
)

LESSON = Lesson(
    lane_id="wan2-1-t2v-1-3b",
    lane_digest="d" * 64,
    at=AT,
    rung_name="lean",
    width_px=832,
    height_px=480,
    num_frames=81,
    gpu_name="NVIDIA H200",
    steps=50,
    clips=12,
    step_s=(1.25, 1.5),
    start_s=0.75,
    encode_s=0.5,
    decode_s=2.5,
    step_tflop=566.0,
    memory_cap_gib=24.0,
    loads=(LoadTime(weights=Weights.HUB, seconds=21.5),),
    held=(PhaseMemory(phase="denoising", peak_bytes=9 * 2**30),),
    is_unified=True,
)
WON_RUNG = WonRung(
    lane_id="wan2-1-t2v-1-3b",
    lane_digest="d" * 64,
    at=AT,
    rungs=("resident", "lean", "", "fp8"),
    rung=3,
    width_px=832,
    height_px=480,
    num_frames=81,
    is_miniature=True,
    memory_cap_gib=24.0,
    gpu_name="NVIDIA H200",
)

JobBody = Submitted | Admitted | Started | CancelRequested | AttemptEnded | Completed | Failed | Refused | Cancelled
SweepBody = (
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


def _job_event(state: JobState, body: JobBody, attempt: int = 1) -> JobEvent:
    return JobEvent(
        event_id=f"event-{type(body).__name__.lower()}",
        sweep_id=SWEEP_ID,
        lane_id=LANE_ID,
        job_id=JOB_ID,
        attempt=attempt,
        state=state,
        stamp=_stamp(10),
        body=body,
    )


def _sweep_event(body: SweepBody) -> SweepEvent:
    name = type(body).__name__.lower()
    return SweepEvent(event_id=f"event-{name}", sweep_id=SWEEP_ID, stamp=_stamp(20), body=body)


def _control_event(body: Drained | Undrained) -> ControlEvent:
    name = type(body).__name__.lower()
    return ControlEvent(event_id=f"event-{name}", host="local", device="gpu-0", stamp=_stamp(30), body=body)


VITALS = VitalsBatch(
    host="local",
    stamp=_stamp(40),
    source="nvml",
    nvml_error="one GPU of two does not answer",
    driver_version="580.95.05",
    driver_is_stub=True,
    gpus=(
        GpuInfo(
            uuid="GPU-1",
            index=1,
            name="NVIDIA GB10",
            memory_total_bytes=128 * 2**30,
            memory_kind="unified",
            power_limit_w=140.5,
        ),
    ),
    gpu_samples=(
        GpuSample(
            boottime_ns=1_000_000_000_007,
            gpu_uuid="GPU-1",
            utilisation_percent=99.0,
            memory_utilisation_percent=0.0,
            memory_used_bytes=3 * 2**30,
            memory_total_bytes=128 * 2**30,
            temperature_c=71.0,
            power_w=99.5,
            energy_mj=123_456_789_012,
            sm_clock_mhz=2418.0,
            memory_clock_mhz=8533.0,
            fan_percent=30.0,
            throttle_reasons="power_cap",
            unavailable=("violation=not_supported",),
        ),
        GpuSample(boottime_ns=1_000_100_000_007, gpu_uuid="GPU-1", unavailable=("memory=not_supported",)),
    ),
    host_samples=(
        HostSample(
            boottime_ns=1_000_000_000_007,
            cpu_percent=12.5,
            memory_used_bytes=2**33,
            memory_total_bytes=2**36,
            load_1m=0.75,
        ),
    ),
    rate_hz=10.0,
)

MESSAGES: dict[str, object] = {
    "job-submitted": _job_event(JobState.QUEUED, Submitted(spec=JOB), attempt=0),
    "job-admitted": _job_event(JobState.ADMITTED, Admitted(rung=1, rung_name="offload")),
    "job-started": _job_event(
        JobState.RUNNING, Started(runner=RUNNER, proof=PROOF, warm=True, shared_gpu=True), attempt=2
    ),
    "job-cancel-requested": _job_event(JobState.RUNNING, CancelRequested(by="ada", started=True)),
    "job-attempt-ended": _job_event(JobState.ENDED, AttemptEnded(outcome=OUTCOME)),
    "job-completed": _job_event(JobState.COMPLETED, Completed(clip=CLIP)),
    "job-submitted-judge": _job_event(JobState.QUEUED, Submitted(spec=JUDGE_JOB), attempt=0),
    "job-attempt-ended-judge": _job_event(JobState.ENDED, AttemptEnded(outcome=JUDGED)),
    "job-completed-judge": _job_event(JobState.COMPLETED, Completed(judgement=JUDGEMENT)),
    "job-failed": _job_event(
        JobState.FAILED, Failed(failure_class=FailureClass.NAN, cause="non-finite latents", fix="use float32")
    ),
    "job-refused": _job_event(JobState.REFUSED, Refused(reason="the model env is not there", fix="run `make envs`")),
    "job-cancelled": _job_event(JobState.CANCELLED, Cancelled(by="ada")),
    "sweep-submitted": _sweep_event(SweepSubmitted(record=RECORD)),
    "sweep-retry-requested": _sweep_event(RetryRequested(spec=RETRY, by="ada")),
    "sweep-submitted-judged": _sweep_event(
        SweepSubmitted(
            record=replace(
                RECORD,
                spec=replace(SPEC, judge_lane_ids=(JUDGE_PLAN.lane_id,), rubrics=(RUBRIC,)),
                judges=(JUDGE_PLAN,),
                rubrics=(RUBRIC,),
            )
        )
    ),
    "sweep-judging-requested": _sweep_event(JudgingRequested(judges=(JUDGE_PLAN,), rubrics=(RUBRIC,), by="ada")),
    "sweep-rated": _sweep_event(
        Rated(
            job_id=JOB_ID,
            rater="ada",
            score10=6.5,
            ticks=(Tick(element_id="child", present=True), Tick(element_id="doll", present=False)),
            rubric_sha256="f" * 64,
        )
    ),
    "sweep-pair-voted": _sweep_event(
        PairVoted(left_job_id=JOB_ID, right_job_id="p1-s7-ba9876543210", outcome=PairOutcome.BOTH_BAD, rater="ada")
    ),
    "sweep-settled": _sweep_event(
        SweepSettled(
            jobs=10,
            clips=9,
            proofs=(
                DeviceProof(host="local", device="gpu-0", proof=NOT_CLEAN),
                DeviceProof(host="local", device="gpu-1", proof=None),
            ),
        )
    ),
    "sweep-paused": _sweep_event(SweepPaused(paused=True, by="ada")),
    "sweep-priority-set": _sweep_event(PrioritySet(priority=-5, by="ada")),
    "sweep-finding-edited": _sweep_event(FindingEdited(row="p0-s42", text="The doll blinks.", by="ada")),
    "sweep-archived": _sweep_event(
        SweepArchived(
            record=RECORD,
            counts=Counts(queued=1, running=2, completed=3, failed=4, refused=5, cancelled=6),
            settled=SweepSettled(jobs=10, clips=3, proofs=()),
            parts=2,
            lessons=(LESSON,),
            won_rungs=(WON_RUNG,),
            judge_times=(JudgeTime(lane_id="pixels", purpose=JudgePurpose.CLIP, jobs=3, seconds=4.5),),
        )
    ),
    "sweep-restore-begun": _sweep_event(RestoreBegun(parts=2)),
    "sweep-restored": _sweep_event(SweepRestored(parts=2)),
    "control-drained": _control_event(Drained(reason="the lock is held for 60 s", proof=NOT_CLEAN, fault=FAULT)),
    "control-undrained": _control_event(Undrained(by="ada")),
    "request-claim": RequestClaim(request_id="6d0c1c7e-request", content_sha256="c" * 64, sweep_id=SWEEP_ID),
    "dispatch": Dispatch(spec=RETRY, attempt=2, rung=1, admitted_sequence=2**40),
    "vitals-batch": VITALS,
}
