"""The Scheduler service on gRPC: parses messages to records, calls, and answers; decides nothing itself."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from screentest import errors, subjects, wire
from screentest.errors import BadRequest, Exhausted, ScreentestError, Unauthenticated
from screentest.kit import clock
from screentest.kit.bus import STREAMS, Bus
from screentest.kit.store import Store
from screentest.kit.version import version
from screentest.records import (
    ArtifactKind,
    FindingEdited,
    JobEvent,
    PairOutcome,
    PairVoted,
    Progress,
    Rated,
    RubricRef,
    SweepEvent,
    SweepSpec,
    Tick,
    VitalsBatch,
    Waiting,
)
from screentest.v1 import scheduler_pb2, scheduler_pb2_grpc
from screentest_scheduler import keyframes, watching
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.depot import Depot
from screentest_scheduler.judging import Judges
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.people import People
from screentest_scheduler.rubrics import Rubrics
from screentest_scheduler.submitting import Submitter
from screentest_scheduler.views import Views

log = structlog.get_logger()

T = TypeVar("T")

SERVICE_NAME = "screentest.v1.Scheduler"
# A cap for callers who set no deadline; preflight of live workers takes up to 2 s, a large submit a few.
UNARY_DEADLINE_S = 60.0
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_CONCURRENT_CALLS = 256
MAX_VITALS_S = 3600.0
# The clocks of two hosts differ a little.
VITALS_MARGIN = timedelta(seconds=60)
BY = "a person"
LONGEST_NAME = 80


class SchedulerApi(scheduler_pb2_grpc.SchedulerServicer):
    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        ledger: Ledger,
        conductor: Conductor,
        submitter: Submitter,
        views: Views,
        depot: Depot,
        judges: Judges,
        rubrics: Rubrics,
        people: People,
        default_host: str,
        heartbeat_s: float,
    ) -> None:
        self._bus = bus
        self._store = store
        self._ledger = ledger
        self._conductor = conductor
        self._submitter = submitter
        self._views = views
        self._depot = depot
        self._judges = judges
        self._rubrics = rubrics
        self._people = people
        self._default_host = default_host
        self._heartbeat_s = heartbeat_s

    # ---- sweeps

    async def SubmitSweep(self, request: Any, context: Any) -> Any:  # names are the contract's
        async def call() -> Any:
            spec = wire.from_wire(request.spec, SweepSpec)
            state, created = await self._submitter.submit(request.request_id, spec)
            self._conductor.wake()
            return scheduler_pb2.SubmitSweepResponse(sweep=await self._sweep(state.record.sweep_id), created=created)

        return await _answer(context, call)

    async def GetSweep(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            return await self._sweep(request.sweep_id)

        return await _answer(context, call)

    async def ListSweeps(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            sweeps, token = self._views.sweeps(await self._epoch(), request.page_size, request.page_token)
            items = [wire.to_wire(sweep) for sweep in sweeps]
            return scheduler_pb2.ListSweepsResponse(sweeps=items, next_page_token=token)

        return await _answer(context, call)

    async def WatchSweep(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            self._ledger.sweep(request.sweep_id)
            cursor = watching.parse_cursor(request.cursor, await self._epoch())
            said = watching.watch(self._bus, self._ledger, self._conductor, request.sweep_id, cursor, self._heartbeat_s)
            async for place, item in said:
                yield _watch_response(place, item)
        except ScreentestError as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001  # a defect of ours ends this call, not the server
            await _abort_internal(context, error)

    async def CancelSweep(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            cancelled = await self._conductor.canceller.cancel_sweep(request.sweep_id, BY)
            return scheduler_pb2.CancelSweepResponse(jobs=cancelled)

        return await _answer(context, call)

    async def PauseSweep(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            await self._people.pause(request.sweep_id, request.paused, BY)
            self._conductor.wake()
            return scheduler_pb2.PauseSweepResponse(sweep=await self._sweep(request.sweep_id))

        return await _answer(context, call)

    async def SetPriority(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            await self._people.set_priority(request.sweep_id, request.priority, BY)
            self._conductor.wake()
            return scheduler_pb2.SetPriorityResponse(sweep=await self._sweep(request.sweep_id))

        return await _answer(context, call)

    # ---- judging and what people say

    async def JudgeSweep(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            rubrics = [wire.from_wire(item, RubricRef) for item in request.rubrics]
            costs = await self._judges.ask(
                request.sweep_id, list(request.judge_lane_ids), rubrics, BY, only_cost=request.estimate_only
            )
            self._conductor.wake()
            return scheduler_pb2.JudgeSweepResponse(
                sweep=await self._sweep(request.sweep_id), costs=[wire.to_wire(cost) for cost in costs]
            )

        return await _answer(context, call)

    async def RateClip(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            rated = Rated(
                job_id=request.job_id,
                rater=_who(request.rater),
                score10=request.score10 if request.HasField("score10") else None,
                ticks=tuple(wire.from_wire(item, Tick) for item in request.ticks),
                rubric_sha256=request.rubric_sha256,
            )
            await self._people.rate(rated)
            return scheduler_pb2.RateClipResponse()

        return await _answer(context, call)

    async def VotePair(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            outcome = wire.enum_member(request.outcome, PairOutcome)
            left, right = request.left_job_id, request.right_job_id
            rater = _who(request.rater)
            await self._people.vote(PairVoted(left_job_id=left, right_job_id=right, outcome=outcome, rater=rater))
            return scheduler_pb2.VotePairResponse()

        return await _answer(context, call)

    async def EditFinding(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            edited = FindingEdited(row=request.row, text=request.text, by=_who(request.by))
            await self._people.edit_finding(request.sweep_id, edited)
            return scheduler_pb2.EditFindingResponse()

        return await _answer(context, call)

    async def ListVotes(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            said = await self._people.said(request.sweep_id)
            return scheduler_pb2.ListVotesResponse(
                ratings=[wire.to_wire(item) for item in said.ratings],
                pairs=[wire.to_wire(item) for item in said.pairs],
                findings=[wire.to_wire(item) for item in said.findings],
            )

        return await _answer(context, call)

    # ---- jobs

    async def GetJob(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            return wire.to_wire(await self._views.job(request.job_id))

        return await _answer(context, call)

    async def ListJobs(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            jobs, token = await self._views.sweep_jobs(
                request.sweep_id, request.page_size, request.page_token, judging=request.judging
            )
            items = [wire.to_wire(job) for job in jobs]
            return scheduler_pb2.ListJobsResponse(jobs=items, next_page_token=token)

        return await _answer(context, call)

    async def CancelJob(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            entry = self._ledger.job(request.job_id)
            if not await self._conductor.canceller.cancel(request.job_id, BY) and not entry.is_cancelling:
                state = self._ledger.job(request.job_id).state.value
                raise errors.NotPossibleNow(f"job {request.job_id} cannot be cancelled any more: it is {state}")
            return scheduler_pb2.CancelJobResponse(job=wire.to_wire(await self._views.job(request.job_id)))

        return await _answer(context, call)

    async def RetryJob(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            entry = self._ledger.job(request.job_id)
            if entry.spec.judged is not None:
                hint = f"`screentest judge {entry.spec.sweep_id}` tries it again"
                raise errors.NotPossibleNow(f"{request.job_id} judges a clip; {hint}")
            if not entry.state.is_terminal:
                raise errors.NotPossibleNow(
                    f"job {request.job_id} is {entry.state.value}; only an ended job is retried"
                )
            again = await self._submitter.retry(entry, BY)
            self._conductor.wake()
            return scheduler_pb2.RetryJobResponse(job=wire.to_wire(await self._views.job(again.spec.job_id)))

        return await _answer(context, call)

    # ---- lanes and devices

    async def Preflight(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            planned = await self._submitter.preflight(wire.from_wire(request.spec, SweepSpec))
            return scheduler_pb2.PreflightResponse(lanes=[wire.to_wire(item) for item in planned.verdicts])

        return await _answer(context, call)

    async def ListLanes(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            return scheduler_pb2.ListLanesResponse(lanes=[wire.to_wire(lane) for lane in self._views.lane_views()])

        return await _answer(context, call)

    async def ListGpus(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            devices = [wire.to_wire(device) for device in await self._views.devices()]
            return scheduler_pb2.ListGpusResponse(devices=devices)

        return await _answer(context, call)

    async def Drain(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            host = request.host or self._default_host
            await self._conductor.turns.drain(host, request.device, request.reason.strip() or f"drained by {BY}")
            device = await self._views.device(host, request.device)
            return scheduler_pb2.DrainResponse(device=wire.to_wire(device))

        return await _answer(context, call)

    async def GetServers(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            return scheduler_pb2.GetServersResponse(
                version=version(),
                streams=[await self._stream(name) for name in STREAMS],
                depot_url=self._store.url,
                depot_bucket=self._store.bucket,
                depot_problem=await self._depot.problem(),
            )

        return await _answer(context, call)

    async def Undrain(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            await self._conductor.turns.undrain(request.host or self._default_host, request.device, BY)
            device = await self._views.device(request.host or self._default_host, request.device)
            return scheduler_pb2.UndrainResponse(device=wire.to_wire(device))

        return await _answer(context, call)

    async def ListVitals(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            if not 0 < request.last_s <= MAX_VITALS_S:
                raise BadRequest(f"last_s must be above 0 and at most {MAX_VITALS_S:g} s")
            batches = await self._vitals(request.host or self._default_host, request.last_s)
            return scheduler_pb2.ListVitalsResponse(batches=batches)

        return await _answer(context, call)

    # ---- the depot

    async def GetArtifact(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            match request.WhichOneof("of"):
                case "job_id":
                    kind = wire.enum_member(request.kind, ArtifactKind)
                    artifact, signed = await self._depot.job_artifact(request.job_id, kind)
                case "sweep_id" if wire.enum_member(request.kind, ArtifactKind) is ArtifactKind.RUBRIC:
                    artifact, signed = self._depot.rubric(request.sweep_id, request.name)
                case "sweep_id":
                    artifact, signed = await self._depot.report_file(request.sweep_id, request.name)
                case _:
                    raise BadRequest("give a job_id (clip, judgement, log, manifest) or a sweep_id (report)")
            response = scheduler_pb2.GetArtifactResponse(artifact=wire.to_wire(artifact), url=signed.url)
            response.expires_at.FromDatetime(signed.expires_at)
            return response

        return await _answer(context, call)

    async def UploadKeyframe(self, request_iterator: Any, context: Any) -> Any:
        async def call() -> Any:
            name, data = "keyframe", bytearray()
            async for part in request_iterator:
                if part.WhichOneof("part") == "file_name":
                    name = part.file_name[-80:] or name
                data += part.chunk
                keyframes.check_size(name, len(data))
            if not data:
                raise BadRequest(f"keyframe {name!r} is empty")
            keyframe = await keyframes.accept(self._store, name, bytes(data))
            return scheduler_pb2.UploadKeyframeResponse(keyframe=wire.to_wire(keyframe))

        return await _answer(context, call)

    async def UploadRubric(self, request: Any, context: Any) -> Any:
        async def call() -> Any:
            name = request.file_name[-80:] or "rubric"
            rubric = await self._rubrics.accept(name, request.json, request.prompt, request.prompt_index)
            return scheduler_pb2.UploadRubricResponse(rubric=wire.to_wire(rubric))

        return await _answer(context, call)

    # ---- inner

    async def _sweep(self, sweep_id: str) -> Any:
        return wire.to_wire(self._views.sweep(sweep_id, await self._epoch()))

    async def _epoch(self) -> str:
        return (await self._bus.stream_state(subjects.EVENTS_STREAM)).epoch

    async def _stream(self, name: str) -> Any:
        state = await self._bus.stream_state(name)
        return scheduler_pb2.StreamView(name=name, messages=state.messages, size_bytes=state.size_bytes)

    async def _vitals(self, host: str, last_s: float) -> list[Any]:
        """Found by the broker's clock, cut by the boot clock."""
        start_at = clock.stamp().at - timedelta(seconds=last_s) - VITALS_MARGIN
        since_ns = clock.boottime_ns() - int(last_s * 1e9)
        batches = []
        async for stored in self._bus.read(subjects.VITALS_STREAM, (subjects.vitals(host),), start_at=start_at):
            batch = wire.decode(stored.payload, VitalsBatch)
            if batch.stamp.boottime_ns >= since_ns:
                batches.append(wire.to_wire(batch))
        return batches


def _watch_response(cursor: watching.Cursor, item: watching.Said) -> Any:
    response = scheduler_pb2.WatchSweepResponse(cursor=str(cursor))
    match item:
        case JobEvent():
            response.job_event.CopyFrom(wire.to_wire(item))
        case SweepEvent():
            response.sweep_event.CopyFrom(wire.to_wire(item))
        case Progress():
            response.progress.CopyFrom(wire.to_wire(item))
        case Waiting():
            response.waiting.CopyFrom(wire.to_wire(item))
        case _:
            response.heartbeat.CopyFrom(wire.to_wire(item))
    return response


async def _answer(context: Any, call: Callable[[], Awaitable[T]]) -> T:
    """Errors of ours as status codes with details; anything else is a bug and says INTERNAL without its inside."""
    try:
        async with asyncio.timeout(UNARY_DEADLINE_S):
            return await call()
    except ScreentestError as error:
        await _abort(context, error)
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {UNARY_DEADLINE_S:.0f} s")
    except Exception as error:  # noqa: BLE001  # as above
        await _abort_internal(context, error)
    raise AssertionError("abort raises")


async def _abort_internal(context: Any, error: Exception) -> None:
    """A defect of ours: its inside goes to the log, not to the caller."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    log.exception("call_failed", error=str(error))
    await context.abort(grpc.StatusCode.INTERNAL, "internal error; the scheduler's log has it")


async def _abort(context: Any, error: ScreentestError) -> NoReturn:
    """Ends the call with the error's status, and its field violations as google.rpc.BadRequest."""
    code = getattr(grpc.StatusCode, errors.grpc_code(error))
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=str(error))
    if isinstance(error, BadRequest) and error.violations:
        detail = any_pb2.Any()
        detail.Pack(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=item.field, description=item.description)
                    for item in error.violations
                ]
            )
        )
        status.details.append(detail)
    if isinstance(error, Exhausted):
        log.warning("request_exhausted", error=str(error))
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no stubs
    """``authorization: Bearer <token>`` on every call but health: a probe has no secret."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        given = dict(details.invocation_metadata).get("authorization", "")
        if details.method.startswith("/grpc.health.") or hmac.compare_digest(given, self._expected):
            return await continuation(details)
        return _REFUSE


class LogInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # as above
    """Every line that a call writes names the call, and the sweep or job that it is about."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(f"/{SERVICE_NAME}/") or handler.request_streaming:
            return handler
        rpc = details.method.rpartition("/")[2]
        coding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }

        async def answer(request: Any, context: Any) -> Any:
            with structlog.contextvars.bound_contextvars(rpc=rpc, **_about(request)):
                return await handler.unary_unary(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with structlog.contextvars.bound_contextvars(rpc=rpc, **_about(request)):
                async for reply in handler.unary_stream(request, context):
                    yield reply

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **coding)
        return grpc.unary_unary_rpc_method_handler(answer, **coding)


def _about(request: Any) -> dict[str, str]:
    named = {"sweep": "sweep_id", "job": "job_id"}
    return {key: found for key, name in named.items() if (found := getattr(request, name, ""))}


async def _refuse(_request: Any, context: Any) -> NoReturn:
    await _abort(context, Unauthenticated("the bearer token is missing or wrong; the CLI reads it from its secrets"))


_REFUSE = grpc.unary_unary_rpc_method_handler(_refuse)


class Server:
    """The gRPC server with health and reflection beside the service."""

    def __init__(
        self,
        api: SchedulerApi,
        *,
        address: str,
        token: str,
        with_reflection: bool,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        interceptors = [LogInterceptor(), *([TokenInterceptor(token)] if token else [])]
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # two schedulers on one port would share the calls between them
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ]
        self._server = grpc.aio.server(
            interceptors=interceptors, options=options, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS
        )
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(api, self._server)  # type: ignore[no-untyped-call]
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if with_reflection:
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        try:
            self.port = (
                self._server.add_secure_port(address, credentials)
                if credentials is not None
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise errors.Unavailable(
                f"cannot listen on {address}: another process has the port; stop it or set SCREENTEST_GRPC_ADDRESS"
            ) from error

    async def start(self) -> None:
        await self._server.start()
        await self._serving(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Not serving first, so that callers go elsewhere; then a short grace for calls under way."""
        await self._serving(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(grace=1.0)

    async def _serving(self, status: Any) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


def _who(name: str) -> str:
    """The name that a person gave, on one line."""
    return " ".join(name.split())[:LONGEST_NAME] or BY
