"""A scheduler on a real gRPC port whose answers a test sets: what the panel sees of a sweep, without running one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from screentest.client import Votes
from screentest.errors import BadRequest, FieldViolation, NotFound, NotPossibleNow, ScreentestError, grpc_code
from screentest.folding import count
from screentest.objects import attempt_object
from screentest.records import (
    Artifact,
    ArtifactKind,
    Attempt,
    ClipFacts,
    DeviceProof,
    DeviceView,
    FailureClass,
    FindingEdited,
    GpuInfo,
    GpuSample,
    HostSample,
    Job,
    JobSpec,
    JobState,
    JudgeCost,
    Keyframe,
    LanePlan,
    LaneVerdict,
    LaneView,
    Limits,
    Outcome,
    PairOutcome,
    PairVoted,
    Progress,
    Proof,
    ProofKind,
    Rated,
    RubricRef,
    Stamp,
    Sweep,
    SweepRecord,
    SweepSettled,
    SweepSpec,
    Task,
    Tick,
    Verdict,
    VitalsBatch,
    Weights,
)
from screentest.rubric import Rubric, from_json
from screentest.v1 import scheduler_pb2, scheduler_pb2_grpc
from screentest.wire import enum_member, from_wire, to_wire

NOW = datetime.now(UTC).replace(microsecond=0)
HOSTILE = "<script>alert(1)</script> **bold** [link](http://x.test) :red[red] $x$ `code` www.x.test :smile:"


def stamp(seconds: float = 0) -> Stamp:
    return Stamp(at=NOW + timedelta(seconds=seconds), boot_id="boot", boottime_ns=int((1000 + seconds) * 1e9))


def lane(
    lane_id: str,
    title: str = "",
    task: Task = Task.T2V,
    *,
    alive: bool = True,
    device: str = "cpu-0",
    tier: str = "",
    env: str = "diffusers",
) -> LaneView:
    return LaneView(
        lane_id=lane_id,
        lane_title=title or lane_id.title(),
        task=task,
        env=env,
        lane_digest="d" * 64,
        repo=f"someone/{lane_id}",
        licence="Apache-2.0",
        gated=False,
        parameters_b=1.3,
        worker_alive=alive,
        runner_warm=False,
        host="local",
        device=device,
        queued=0,
        tier=tier,
    )


def sweep_spec(**changes: Any) -> SweepSpec:
    spec = SweepSpec(
        title="Night tram",
        prompts=("A tram crosses a bridge.",),
        lane_ids=("stub",),
        seeds=(42,),
        weights=Weights.MINIATURE,
    )
    return replace(spec, **changes)


def job(job_id: str, state: JobState, *, sweep_id: str = "night-tram", ordinal: int = 0, **changes: Any) -> Job:
    """A job with the history its state needs."""
    spec = JobSpec(
        job_id=job_id,
        sweep_id=sweep_id,
        lane_id=changes.pop("lane_id", f"lane-{ordinal}"),
        lane_title=changes.pop("lane_title", f"Lane {ordinal}"),
        task=Task.T2V,
        ordinal=ordinal,
        prompt_index=0,
        prompt=changes.pop("prompt", "A tram crosses a bridge."),
        seed=42,
        weights=changes.pop("weights", Weights.MINIATURE),
        keyframe=None,
        lane_digest="d" * 64,
        host="local",
        device="cpu-0",
        width_px=96,
        height_px=64,
        num_frames=25,
        steps=4,
        fps=24,
        call=(),
        marks=(),
        limits=Limits(load_s=30, step_stall_s=30, attempt_s=120),
        rungs=("resident",),
        weights_repo="",
        weights_revision="",
        retry_of=changes.pop("retry_of", None),
        retry_index=changes.pop("retry_index", 0),
    )
    made = Job(spec=spec, state=state, attempts=_attempts(spec, state), submitted=stamp())
    if state is JobState.COMPLETED:
        made = replace(made, clip=clip_of(spec), ended=stamp(12))
    if state is JobState.FAILED:
        cause, fix = "no step for 120 s", "raise step_stall_s"
        made = replace(made, ended=stamp(12), failure_class=FailureClass.STALLED, cause=cause, fix=fix)
    return replace(made, **changes)


def _attempts(spec: JobSpec, state: JobState) -> tuple[Attempt, ...]:
    if state in (JobState.QUEUED, JobState.REFUSED):
        return ()
    attempt = Attempt(attempt=1, rung=0, rung_name="resident", admitted=stamp(1))
    if state is JobState.ADMITTED:
        return (attempt,)
    attempt = replace(attempt, started=stamp(2))
    if state is JobState.RUNNING:
        return (attempt,)
    clip = state is JobState.COMPLETED
    facts = ClipFacts(
        codec="h264", pixel_format="yuv420p", frames=25, width_px=96, height_px=64, fps=24, duration_s=25 / 24
    )
    outcome = Outcome(
        failure_class=None if clip else FailureClass.STALLED,
        artifacts=(clip_of(spec),) if clip else (replace(clip_of(spec), kind=ArtifactKind.LOG),),
        clip=facts if clip else None,
    )
    return (replace(attempt, ended=stamp(10), outcome=outcome),)


def clip_of(spec: JobSpec) -> Artifact:
    sha256 = "ab" * 32
    key = attempt_object(ArtifactKind.CLIP, spec.sweep_id, spec.lane_id, spec.job_id, 1, sha256)
    return Artifact(kind=ArtifactKind.CLIP, key=key, sha256=sha256, size_bytes=20_480, content_type="video/mp4")


def progress(spec: JobSpec, phase: str, step: int | None = None, steps: int | None = None) -> Progress:
    return Progress(
        sweep_id=spec.sweep_id,
        lane_id=spec.lane_id,
        job_id=spec.job_id,
        attempt=1,
        phase=phase,
        step=step,
        steps=steps,
        step_s=0.5 if step else None,
        eta_s=0.5 * (steps - step) if step and steps else None,
        stamp=stamp(),
    )


def proof(*, clean: bool = True, reason: str = "") -> Proof:
    return Proof(
        kind=ProofKind.HANDOVER,
        clean=clean,
        reason=reason,
        lock_held=False,
        lock_holders=(),
        processes=(),
        stamp=stamp(),
        method="proc",
    )


def device(**changes: Any) -> DeviceView:
    view = DeviceView(
        host="local", device="cpu-0", drained=False, drained_reason="", proof=proof(), job_id="", warm_lane_id=""
    )
    return replace(view, **changes)


def sweep(jobs: tuple[Job, ...], *, sweep_id: str = "night-tram", settled: bool = False, **changes: Any) -> Sweep:
    record = SweepRecord(
        sweep_id=sweep_id,
        request_id="r",
        content_sha256="c" * 64,
        submitted_at=NOW,
        spec=changes.pop("spec", sweep_spec()),
        lanes=(),
        skipped=changes.pop("skipped", ()),
    )
    proofs = (DeviceProof(host="local", device="cpu-0", proof=proof()),)
    clips = sum(job.clip is not None for job in jobs)
    return Sweep(
        record=record,
        counts=count(job.state for job in jobs),
        over=all(job.state.is_terminal for job in jobs),
        settled=SweepSettled(jobs=len(jobs), clips=clips, proofs=proofs) if settled else None,
        cursor=f"e:{len(jobs)}-{sum(job.state.is_terminal for job in jobs)}",
    )


def vitals(seconds: float, *, gpu: bool) -> VitalsBatch:
    """One second of a machine with a GPU, or of one without."""
    at = stamp(seconds)
    info = GpuInfo(uuid="GPU-1", index=0, name="GB10", memory_total_bytes=None, memory_kind="unified")
    reading = GpuSample(
        boottime_ns=at.boottime_ns,
        gpu_uuid="GPU-1",
        utilisation_percent=90 + seconds % 7,
        temperature_c=71,
        power_w=80 + seconds % 5,
        unavailable=("memory=not_supported",),
    )
    host = HostSample(boottime_ns=at.boottime_ns, cpu_percent=30 + seconds % 9, memory_used_bytes=8 * 2**30)
    return VitalsBatch(
        host="local",
        stamp=at,
        source="nvml" if gpu else "host",
        nvml_error=None if gpu else "NVML library not found",
        driver_version="580.1" if gpu else None,
        driver_is_stub=False,
        gpus=(info,) if gpu else (),
        gpu_samples=(reading,) if gpu else (),
        host_samples=(host,),
        rate_hz=1,
    )


@dataclass
class World:
    """What the scheduler answers; ``error`` set = every call fails with it."""

    lanes: list[LaneView] = field(default_factory=list)
    devices: list[DeviceView] = field(default_factory=lambda: [device()])
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    jobs: dict[str, tuple[Job, ...]] = field(default_factory=dict)
    judging: dict[str, tuple[Job, ...]] = field(default_factory=dict)
    batches: list[VitalsBatch] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    plans: dict[str, LanePlan] = field(default_factory=dict)
    memory_free_bytes: int | None = None
    submitted: dict[str, SweepSpec] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    undrained: list[str] = field(default_factory=list)
    votes: Votes = field(default_factory=lambda: Votes(ratings=(), pairs=(), findings=()))
    costs: tuple[JudgeCost, ...] = ()
    judged: list[tuple[str, ...]] = field(default_factory=list)
    rubrics: list[Rubric] = field(default_factory=list)
    too_late: set[str] = field(default_factory=set)
    error: ScreentestError | None = None

    def add(self, *jobs: Job, settled: bool = False, **changes: Any) -> None:
        """A sweep with these jobs."""
        made = sweep(jobs, settled=settled, **changes)
        self.sweeps[made.record.sweep_id] = made
        self.jobs[made.record.sweep_id] = jobs


class Servicer(scheduler_pb2_grpc.SchedulerServicer):
    """The contract's methods over a World."""

    def __init__(self, world: World) -> None:
        self.world = world

    def SubmitSweep(self, request, context):
        spec = from_wire(request.spec, SweepSpec)
        if any("forbidden" in prompt for prompt in spec.prompts):
            item = FieldViolation(field="spec.prompts[0]", description=f"not this: {HOSTILE}")
            raise BadRequest("the sweep cannot be used", (item,))
        created = request.request_id not in self.world.submitted
        self.world.submitted[request.request_id] = spec
        made = job("job-new", JobState.QUEUED, sweep_id="submitted", waits_for="no worker for stub")
        self.world.add(made, sweep_id="submitted", spec=spec)
        return scheduler_pb2.SubmitSweepResponse(sweep=to_wire(self.world.sweeps["submitted"]), created=created)

    def GetSweep(self, request, context):
        return to_wire(_found(self.world.sweeps, request.sweep_id, "sweep"))

    def ListSweeps(self, request, context):
        return scheduler_pb2.ListSweepsResponse(sweeps=[to_wire(item) for item in self.world.sweeps.values()])

    def ListJobs(self, request, context):
        jobs = _found(self.world.jobs, request.sweep_id, "sweep")
        if request.judging:
            jobs = self.world.judging.get(request.sweep_id, ())
        return scheduler_pb2.ListJobsResponse(jobs=[to_wire(item) for item in jobs])

    def GetJob(self, request, context):
        return to_wire(self._job(request.job_id))

    def CancelJob(self, request, context):
        if request.job_id in self.world.too_late:
            raise NotPossibleNow(f"job {request.job_id} cannot be cancelled any more: it is completed")
        self.world.cancelled.append(request.job_id)
        return scheduler_pb2.CancelJobResponse(job=to_wire(self._job(request.job_id)))

    def CancelSweep(self, request, context):
        self.world.cancelled.append(request.sweep_id)
        return scheduler_pb2.CancelSweepResponse(jobs=len(self.world.jobs[request.sweep_id]))

    def RetryJob(self, request, context):
        self.world.retried.append(request.job_id)
        return scheduler_pb2.RetryJobResponse(job=to_wire(self._job(request.job_id)))

    def PauseSweep(self, request, context):
        return scheduler_pb2.PauseSweepResponse(sweep=self._changed(request.sweep_id, paused=request.paused))

    def SetPriority(self, request, context):
        return scheduler_pb2.SetPriorityResponse(sweep=self._changed(request.sweep_id, priority=request.priority))

    def JudgeSweep(self, request, context):
        if not request.estimate_only:
            self.world.judged.append(tuple(request.judge_lane_ids))
        costs = [to_wire(item) for item in self.world.costs]
        return scheduler_pb2.JudgeSweepResponse(sweep=to_wire(self.world.sweeps[request.sweep_id]), costs=costs)

    def UploadRubric(self, request, context):
        asked = from_json(request.json.decode(), request.file_name)
        self.world.rubrics.append(asked)
        ref = RubricRef(
            prompt_index=request.prompt_index,
            key=f"rubrics/{asked.sha256}.json",
            sha256=asked.sha256,
            size_bytes=len(request.json),
            rubric_sha256=asked.sha256,
            approved_by=asked.approved_by or "",
        )
        return scheduler_pb2.UploadRubricResponse(rubric=to_wire(ref))

    def RateClip(self, request, context):
        rated = Rated(
            job_id=request.job_id,
            rater="a person",
            score10=request.score10 if request.HasField("score10") else None,
            ticks=tuple(from_wire(tick, Tick) for tick in request.ticks),
            rubric_sha256=request.rubric_sha256,
        )
        self.world.votes = replace(self.world.votes, ratings=(*self.world.votes.ratings, rated))
        return scheduler_pb2.RateClipResponse()

    def VotePair(self, request, context):
        voted = PairVoted(
            left_job_id=request.left_job_id,
            right_job_id=request.right_job_id,
            outcome=enum_member(request.outcome, PairOutcome),
            rater="a person",
        )
        self.world.votes = replace(self.world.votes, pairs=(*self.world.votes.pairs, voted))
        return scheduler_pb2.VotePairResponse()

    def EditFinding(self, request, context):
        edited = FindingEdited(row=request.row, text=request.text, by="a person")
        self.world.votes = replace(self.world.votes, findings=(*self.world.votes.findings, edited))
        return scheduler_pb2.EditFindingResponse()

    def ListVotes(self, request, context):
        votes = self.world.votes
        return scheduler_pb2.ListVotesResponse(
            ratings=[to_wire(item) for item in votes.ratings],
            pairs=[to_wire(item) for item in votes.pairs],
            findings=[to_wire(item) for item in votes.findings],
        )

    def Preflight(self, request, context):
        titles = {item.lane_id: item.lane_title for item in self.world.lanes}
        verdicts = [self._verdict(lane_id, titles[lane_id]) for lane_id in request.spec.lane_ids]
        return scheduler_pb2.PreflightResponse(lanes=[to_wire(item) for item in verdicts])

    def ListLanes(self, request, context):
        return scheduler_pb2.ListLanesResponse(lanes=[to_wire(item) for item in self.world.lanes])

    def ListGpus(self, request, context):
        return scheduler_pb2.ListGpusResponse(devices=[to_wire(item) for item in self.world.devices])

    def Undrain(self, request, context):
        self.world.undrained.append(request.device)
        return scheduler_pb2.UndrainResponse(device=to_wire(device()))

    def ListVitals(self, request, context):
        return scheduler_pb2.ListVitalsResponse(batches=[to_wire(item) for item in self.world.batches])

    def GetArtifact(self, request, context):
        key = request.job_id or f"{request.sweep_id}/{request.name or 'index.html'}"
        url = _found(self.world.artifacts, key, "artifact")
        kind = ArtifactKind.CLIP if request.job_id else ArtifactKind.REPORT
        artifact = Artifact(
            kind=kind,
            key=key,
            sha256=self.world.hashes.get(key, "ab" * 32),
            size_bytes=20_480,
            content_type="video/mp4",
        )
        reply = scheduler_pb2.GetArtifactResponse(artifact=to_wire(artifact), url=url)
        reply.expires_at.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        return reply

    def UploadKeyframe(self, request_iterator, context):
        content = b"".join(part.chunk for part in request_iterator)
        if not content.startswith(b"\x89PNG"):
            raise BadRequest("this file is no picture: use PNG, JPEG or WebP")
        keyframe = Keyframe(key="keyframes/k.png", sha256="cd" * 32, width_px=8, height_px=8, size_bytes=len(content))
        return scheduler_pb2.UploadKeyframeResponse(keyframe=to_wire(keyframe))

    def _changed(self, sweep_id: str, **changes: Any) -> Any:
        changed = replace(_found(self.world.sweeps, sweep_id, "sweep"), **changes)
        self.world.sweeps[sweep_id] = changed
        return to_wire(changed)

    def _job(self, job_id: str) -> Job:
        return _found({job.spec.job_id: job for jobs in self.world.jobs.values() for job in jobs}, job_id, "job")

    def _verdict(self, lane_id: str, title: str) -> LaneVerdict:
        reason = self.world.refused.get(lane_id)
        verdict = Verdict.REFUSED if reason else Verdict.OK
        return LaneVerdict(
            lane_id=lane_id,
            lane_title=title,
            verdict=verdict,
            detail=reason or "",
            plan=None if reason else self.world.plans.get(lane_id),
            fix="ask for 17 frames" if reason else "",
            memory_free_bytes=self.world.memory_free_bytes,
        )


class _Errors(grpc.ServerInterceptor):  # type: ignore[misc]
    """Turns a ScreentestError into its gRPC status, as the scheduler does."""

    def __init__(self, world: World) -> None:
        self._world = world

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.response_streaming:
            return handler
        make = grpc.unary_unary_rpc_method_handler
        if handler.request_streaming:
            make = grpc.stream_unary_rpc_method_handler
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        return make(self._guarded(inner), handler.request_deserializer, handler.response_serializer)

    def _guarded(self, inner: Any) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                if self._world.error:
                    raise self._world.error
                return inner(request, context)
            except ScreentestError as error:
                context.abort_with_status(rpc_status.to_status(_status(error)))

        return answer


def _status(error: ScreentestError) -> status_pb2.Status:
    bad = error_details_pb2.BadRequest()
    for item in getattr(error, "violations", ()):
        bad.field_violations.add(field=item.field, description=item.description)
    detail = AnyMessage()
    detail.Pack(bad)
    code = code_pb2.Code.Value(grpc_code(error))
    return status_pb2.Status(code=code, message=str(error), details=[detail] if bad.field_violations else [])


def _found(known: dict[str, Any], key: str, what: str) -> Any:
    if key not in known:
        raise NotFound(f"no {what} {key!r}")
    return known[key]


def serve(world: World, port: int = 0) -> Iterator[str]:
    """The address of a running scheduler; stops it when the generator ends."""
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=(_Errors(world),))
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(Servicer(world), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    yield f"127.0.0.1:{bound}"
    server.stop(None).wait()
