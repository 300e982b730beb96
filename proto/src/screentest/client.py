"""The scheduler's API for programs: synchronous, typed, records in and out.

with Client.connect("127.0.0.1:50051", token="...") as client:
    sweep = client.submit_sweep(spec, request_id="my-first").sweep
    for message in client.watch(sweep.record.sweep_id):
        ...
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from screentest import artifacts
from screentest.addresses import is_loopback
from screentest.errors import BadRequest, FieldViolation, ScreentestError, Unavailable, from_grpc_code
from screentest.records import (
    Artifact,
    ArtifactKind,
    DeviceView,
    FindingEdited,
    Heartbeat,
    Job,
    JobEvent,
    JudgeCost,
    Keyframe,
    LaneVerdict,
    LaneView,
    PairOutcome,
    PairVoted,
    Progress,
    Rated,
    RubricRef,
    StreamView,
    Sweep,
    SweepEvent,
    SweepSpec,
    Tick,
    VitalsBatch,
    Waiting,
)
from screentest.v1 import scheduler_pb2, scheduler_pb2_grpc
from screentest.wire import enum_number, from_wire, to_wire

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
# Preflight asks every worker and waits up to 2 s for each; planning 1,000 jobs is durable within 2 s.
SUBMIT_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 60.0
# A watch is renewed now and then, so that no call is without a deadline; its cursor makes that invisible.
WATCH_TIMEOUT_S = 3600.0
# The server sends a heartbeat at least every 15 s; a stream that is silent for longer is dead.
WATCH_RETRY_S = 1.0

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
PAGE_SIZE = 500

# Reading again is harmless, and a submit is idempotent by its request id. Cancel and retry are not listed.
_RETRIED = (
    "SubmitSweep",
    "GetSweep",
    "ListSweeps",
    "GetJob",
    "ListJobs",
    "Preflight",
    "ListLanes",
    "ListGpus",
    "GetServers",
    "ListVotes",
    "UploadRubric",
)
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "screentest.v1.Scheduler", "method": method} for method in _RETRIED],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

# What gRPC itself says when there is nobody at the other end; a server's own message never begins so.
_NO_ANSWER = (
    "failed to connect",
    "socket closed",
    "connection reset",
    "recvmsg",
    "broken pipe",
    "stream removed",
    "goaway",
    "keepalive",
    "cancelling all calls",
    "channel closed",
    "dns resolution failed",
    "empty address list",
)


# What gRPC says of a certificate that is of another name or another CA, or of a server without any.
_NOT_TRUSTED = ("certificate", "handshake", "ssl_error", "hostname", "peer name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """``created`` False: this request id was accepted before, with the same content."""

    sweep: Sweep
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """``costs``: what was asked for just now, per judge; without the jobs that are done or under way already."""

    sweep: Sweep
    costs: tuple[JudgeCost, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What people said about one sweep. ``findings``: one per row, without those that were taken back."""

    ratings: tuple[Rated, ...]
    pairs: tuple[PairVoted, ...]
    findings: tuple[FindingEdited, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a watch; pass ``cursor`` to a later ``watch`` to go on behind it."""

    cursor: str
    body: JobEvent | SweepEvent | Progress | Waiting | Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactUrl:
    """Where to fetch an artifact until ``expires_at``; check what arrives against ``artifact.sha256``."""

    artifact: Artifact
    url: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """``version``: of the scheduler's code. ``depot_problem``: why the depot cannot be used; empty = it answers."""

    version: str
    streams: tuple[StreamView, ...]
    depot_url: str
    depot_bucket: str
    depot_problem: str


class Client:
    """One channel to one scheduler. Every method raises a ScreentestError with the server's message.

    Unavailable: nobody answers, or not in time. BadRequest carries ``violations``, one per wrong field.
    """

    def __init__(self, channel: grpc.Channel, address: str, token: str = "") -> None:
        self.address = address
        self._channel = channel
        self._stub: Any = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    @classmethod
    def connect(cls, address: str, *, token: str = "", ca: bytes | Path | None = None) -> Client:
        """Returns at once: the first call connects.

        ``ca``: the certificate of who signed the server's, in PEM; with it the connection is encrypted. BadRequest for
        a token that would travel readable: without ``ca`` it is sent to this machine only.
        """
        if token and ca is None and not is_loopback(address):
            raise BadRequest(
                f"{address} is beyond this machine, and without a CA file the token would travel readable; "
                "name the CA file that `make certs` wrote there (SCREENTEST_GRPC_CA_FILE)"
            )
        options = [
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.enable_retries", 1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Clients with other options must not share our connection, nor its backoff.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if ca is None:
            return cls(grpc.insecure_channel(address, options=options), address, token)
        credentials = grpc.ssl_channel_credentials(root_certificates=_ca_bytes(ca))
        return cls(grpc.secure_channel(address, credentials, options=options), address, token)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Client:
        """By SCREENTEST_GRPC_ADDRESS, _GRPC_TOKEN_FILE and _GRPC_CA_FILE. BadRequest without the first."""
        address = environment.get("SCREENTEST_GRPC_ADDRESS")
        if not address:
            raise BadRequest("set SCREENTEST_GRPC_ADDRESS, for example 127.0.0.1:50051; `screentest up` says it")
        token_file, ca_file = (environment.get(f"SCREENTEST_GRPC_{name}_FILE") for name in ("TOKEN", "CA"))
        token = _token(Path(token_file)) if token_file else ""
        return cls.connect(address, token=token, ca=Path(ca_file) if ca_file else None)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- sweeps

    def submit_sweep(self, spec: SweepSpec, *, request_id: str) -> Accepted:
        """Idempotent by ``request_id``; AlreadyExists when it was used for another content."""
        request = scheduler_pb2.SubmitSweepRequest(request_id=request_id, spec=to_wire(spec))
        reply = self._call("SubmitSweep", request, SUBMIT_TIMEOUT_S)
        return Accepted(sweep=from_wire(reply.sweep, Sweep), created=reply.created)

    def preflight(self, spec: SweepSpec) -> tuple[LaneVerdict, ...]:
        """What would happen to each lane, without queueing anything."""
        reply = self._call("Preflight", scheduler_pb2.PreflightRequest(spec=to_wire(spec)), SUBMIT_TIMEOUT_S)
        return _records(reply.lanes, LaneVerdict)

    def get_sweep(self, sweep_id: str) -> Sweep:
        return from_wire(self._call("GetSweep", scheduler_pb2.GetSweepRequest(sweep_id=sweep_id)), Sweep)

    def list_sweeps(self, *, limit: int = 100) -> tuple[Sweep, ...]:
        """The newest ``limit`` sweeps, newest first."""

        def page(token: str) -> Any:
            size = min(limit, PAGE_SIZE)
            return self._call("ListSweeps", scheduler_pb2.ListSweepsRequest(page_size=size, page_token=token))

        return _paged(page, lambda reply: _records(reply.sweeps, Sweep), limit)

    def cancel_sweep(self, sweep_id: str) -> int:
        """The number of jobs for which a cancel was written now."""
        request = scheduler_pb2.CancelSweepRequest(sweep_id=sweep_id)
        return int(self._call("CancelSweep", request, SUBMIT_TIMEOUT_S).jobs)

    def pause_sweep(self, sweep_id: str, *, paused: bool = True) -> Sweep:
        """Nothing more of it is admitted until ``paused=False``; what runs goes on."""
        request = scheduler_pb2.PauseSweepRequest(sweep_id=sweep_id, paused=paused)
        return from_wire(self._call("PauseSweep", request).sweep, Sweep)

    def set_priority(self, sweep_id: str, priority: int) -> Sweep:
        """A higher one runs first; 0 is what a sweep begins with unless its spec says otherwise."""
        request = scheduler_pb2.SetPriorityRequest(sweep_id=sweep_id, priority=priority)
        return from_wire(self._call("SetPriority", request).sweep, Sweep)

    def watch(
        self,
        sweep_id: str,
        cursor: str = "",
        *,
        give_up_after_s: float | None = None,
        on_interruption: Callable[[Unavailable], None] | None = None,
    ) -> Iterator[Message]:
        """Events, live progress, waiting reasons and heartbeats of one sweep, from behind ``cursor`` on.

        It goes on by itself after a lost connection or a restart of the scheduler: no event is missed or repeated,
        progress in between is. ``on_interruption`` hears of every failed try; Unavailable is raised after
        ``give_up_after_s`` without a message (None = never). Ends when the server ends the stream. Close the
        generator to stop watching.
        """
        silent_since = time.monotonic()
        while True:
            request = scheduler_pb2.WatchSweepRequest(sweep_id=sweep_id, cursor=cursor)
            call = self._stub.WatchSweep(request, timeout=WATCH_TIMEOUT_S, metadata=self._metadata)
            try:
                for reply in call:
                    cursor, silent_since = reply.cursor or cursor, time.monotonic()
                    yield _message(reply)
                return
            except grpc.RpcError as error:
                translated = self._translate("WatchSweep", error, WATCH_TIMEOUT_S)
                if not isinstance(translated, Unavailable):
                    raise translated from error
                if give_up_after_s is not None and time.monotonic() - silent_since > give_up_after_s:
                    raise translated from error
                if on_interruption is not None:
                    on_interruption(translated)
                time.sleep(WATCH_RETRY_S)
            finally:
                call.cancel()

    # ---- jobs

    def get_job(self, job_id: str) -> Job:
        return from_wire(self._call("GetJob", scheduler_pb2.GetJobRequest(job_id=job_id)), Job)

    def list_jobs(self, sweep_id: str) -> tuple[Job, ...]:
        """Every job that makes a clip of a sweep, in the order of its cells."""
        return self._list_jobs(sweep_id, judging=False)

    def list_judge_jobs(self, sweep_id: str) -> tuple[Job, ...]:
        """Every job that judges a clip or the keyframe of a sweep; ``spec.judged`` says which."""
        return self._list_jobs(sweep_id, judging=True)

    def _list_jobs(self, sweep_id: str, *, judging: bool) -> tuple[Job, ...]:
        def page(token: str) -> Any:
            request = scheduler_pb2.ListJobsRequest(
                sweep_id=sweep_id, page_size=PAGE_SIZE, page_token=token, judging=judging
            )
            return self._call("ListJobs", request)

        return _paged(page, lambda reply: _records(reply.jobs, Job), None)

    def cancel_job(self, job_id: str) -> Job:
        return from_wire(self._call("CancelJob", scheduler_pb2.CancelJobRequest(job_id=job_id)).job, Job)

    def retry_job(self, job_id: str) -> Job:
        """A new job for the same cell, with ``retry_of``; NotPossibleNow while the old one has not ended."""
        return from_wire(self._call("RetryJob", scheduler_pb2.RetryJobRequest(job_id=job_id)).job, Job)

    # ---- judging

    def judge_sweep(
        self,
        sweep_id: str,
        *,
        judge_lane_ids: Sequence[str] = (),
        rubrics: Sequence[RubricRef] = (),
        estimate_only: bool = False,
    ) -> Judging:
        """Asks for judgements of a sweep's clips, also when it is long over; what failed before is tried again.

        ``judge_lane_ids``, ``rubrics``: empty = those that the sweep has. Another rubric has everything judged anew.
        ``estimate_only``: says what it would cost and queues nothing. BadRequest names the wrong judge or rubric.
        """
        request = scheduler_pb2.JudgeSweepRequest(
            sweep_id=sweep_id,
            judge_lane_ids=judge_lane_ids,
            rubrics=[to_wire(rubric) for rubric in rubrics],
            estimate_only=estimate_only,
        )
        reply = self._call("JudgeSweep", request, SUBMIT_TIMEOUT_S)
        return Judging(sweep=from_wire(reply.sweep, Sweep), costs=_records(reply.costs, JudgeCost))

    def upload_rubric(
        self, rubric: bytes | Path, *, file_name: str = "", prompt: str = "", prompt_index: int = 0
    ) -> RubricRef:
        """JSON of schema rubric/1; BadRequest names the wrong field, or says that it is of another ``prompt``."""
        if isinstance(rubric, Path):
            file_name = file_name or rubric.name
            rubric = _read(rubric, "rubric")
        request = scheduler_pb2.UploadRubricRequest(
            file_name=file_name or "rubric", json=rubric, prompt=prompt, prompt_index=prompt_index
        )
        return from_wire(self._call("UploadRubric", request, UPLOAD_TIMEOUT_S).rubric, RubricRef)

    def rate_clip(
        self,
        job_id: str,
        *,
        score10: float | None = None,
        ticks: Sequence[Tick] = (),
        rubric_sha256: str = "",
        rater: str = "",
    ) -> None:
        """A person's blind rating, 0 to 10, ticks of elements, or both; the last one of a rater counts.

        ``rubric_sha256``: of the rubric whose elements were ticked. NotPossibleNow for a job without a clip.
        """
        request = scheduler_pb2.RateClipRequest(
            job_id=job_id,
            score10=score10,
            ticks=[to_wire(tick) for tick in ticks],
            rubric_sha256=rubric_sha256,
            rater=rater,
        )
        self._call("RateClip", request)

    def vote_pair(self, left_job_id: str, right_job_id: str, outcome: PairOutcome, *, rater: str = "") -> None:
        """A person's blind choice between two clips of one prompt of one sweep."""
        request = scheduler_pb2.VotePairRequest(
            left_job_id=left_job_id, right_job_id=right_job_id, outcome=cast("Any", enum_number(outcome)), rater=rater
        )
        self._call("VotePair", request)

    def edit_finding(self, sweep_id: str, row: str, text: str, *, by: str = "") -> None:
        """A person's words for one row of the report; the original is kept.

        ``row``: a job id or ``note:<slug>``; ``text`` empty = back to the original.
        """
        self._call("EditFinding", scheduler_pb2.EditFindingRequest(sweep_id=sweep_id, row=row, text=text, by=by))

    def list_votes(self, sweep_id: str) -> Votes:
        """What people said about a sweep and counts: the last word of a rater on a clip or pair, and on a row."""
        reply = self._call("ListVotes", scheduler_pb2.ListVotesRequest(sweep_id=sweep_id))
        return Votes(
            ratings=_records(reply.ratings, Rated),
            pairs=_records(reply.pairs, PairVoted),
            findings=_records(reply.findings, FindingEdited),
        )

    # ---- lanes and devices

    def list_lanes(self) -> tuple[LaneView, ...]:
        return _records(self._call("ListLanes", scheduler_pb2.ListLanesRequest()).lanes, LaneView)

    def list_gpus(self) -> tuple[DeviceView, ...]:
        """Every device; ``proof`` is asked of telemetry now."""
        return _records(self._call("ListGpus", scheduler_pb2.ListGpusRequest()).devices, DeviceView)

    def drain(self, host: str, device: str, *, reason: str = "") -> DeviceView:
        """Lets no further job onto a device until ``undrain``; what runs there goes on."""
        reply = self._call("Drain", scheduler_pb2.DrainRequest(host=host, device=device, reason=reason))
        return from_wire(reply.device, DeviceView)

    def undrain(self, host: str, device: str) -> DeviceView:
        """Lets jobs onto a drained device again."""
        reply = self._call("Undrain", scheduler_pb2.UndrainRequest(host=host, device=device))
        return from_wire(reply.device, DeviceView)

    def get_servers(self) -> Servers:
        """What the scheduler stands on, asked now."""
        reply = self._call("GetServers", scheduler_pb2.GetServersRequest())
        return Servers(
            version=reply.version,
            streams=_records(reply.streams, StreamView),
            depot_url=reply.depot_url,
            depot_bucket=reply.depot_bucket,
            depot_problem=reply.depot_problem,
        )

    def list_vitals(self, *, last_s: float, host: str = "") -> tuple[VitalsBatch, ...]:
        """The last ``last_s`` seconds of a host's vitals, oldest first; ``host`` empty = the only one."""
        reply = self._call("ListVitals", scheduler_pb2.ListVitalsRequest(host=host, last_s=last_s))
        return _records(reply.batches, VitalsBatch)

    # ---- artifacts

    def get_artifact(
        self, *, kind: ArtifactKind, job_id: str | None = None, sweep_id: str | None = None, name: str = ""
    ) -> ArtifactUrl:
        """A job's clip, judgement, log or manifest, or of a sweep one file of its report or the rubric of a prompt.

        ``name``: of the report's file, empty = index.html; of a rubric the prompt's index.
        """
        if (job_id is None) == (sweep_id is None):
            raise BadRequest("name either a job (clip, log, manifest) or a sweep (report)")
        request = scheduler_pb2.GetArtifactRequest(kind=cast("Any", enum_number(kind)), name=name)
        if job_id is not None:
            request.job_id = job_id
        else:
            request.sweep_id = cast("str", sweep_id)
        reply = self._call("GetArtifact", request)
        return ArtifactUrl(
            artifact=from_wire(reply.artifact, Artifact),
            url=reply.url,
            expires_at=reply.expires_at.ToDatetime(tzinfo=UTC),
        )

    def fetch_artifact(
        self,
        path: Path,
        *,
        kind: ArtifactKind,
        job_id: str | None = None,
        sweep_id: str | None = None,
        name: str = "",
    ) -> Artifact:
        """``get_artifact`` and its content, checked, as the file ``path``. Its folder is made when it is missing."""
        found = self.get_artifact(kind=kind, job_id=job_id, sweep_id=sweep_id, name=name)
        artifacts.save(found.url, found.artifact.key, found.artifact.sha256, path)
        return found.artifact

    def upload_keyframe(self, image: bytes | Path, *, file_name: str = "") -> Keyframe:
        """PNG, JPEG or WebP, one frame, at most 20 MB and 40 megapixels; BadRequest says what is wrong with it."""
        if isinstance(image, Path):
            file_name = file_name or image.name
            image = _read(image, "keyframe")
        reply = self._call("UploadKeyframe", _chunks(file_name or "keyframe", image), UPLOAD_TIMEOUT_S)
        return from_wire(reply.keyframe, Keyframe)

    # ---- the one way out

    def _call(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(method, error, timeout_s) from error

    def _translate(self, method: str, error: grpc.RpcError, timeout_s: float) -> ScreentestError:
        """The error of the contract for a gRPC error, with its field violations."""
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(
                f"the scheduler at {self.address} did not answer {method} within {timeout_s:.0f} s; look at its log"
            )
        if code is grpc.StatusCode.UNAVAILABLE and any(phrase in details.lower() for phrase in _NO_ANSWER):
            if any(phrase in details.lower() for phrase in _NOT_TRUSTED):
                return Unavailable(
                    f"the scheduler at {self.address} does not prove who it is; use the CA file and a name that "
                    "`make certs` wrote there (SCREENTEST_GRPC_CA_FILE)"
                )
            return Unavailable(nobody_answers(self.address))
        return from_grpc_code(code.name, details or code.name, _violations(error))


def nobody_answers(address: str) -> str:
    """What a person can do about it: `screentest up` starts a scheduler on this machine, and on no other."""
    if is_loopback(address):
        return f"no scheduler answers at {address}; start it with `screentest up`"
    return (
        f"no scheduler answers at {address}; check on that machine that it runs and listens beyond loopback, and from "
        "here that the name (SCREENTEST_GRPC_ADDRESS) is right and no firewall holds the port"
    )


def _violations(error: grpc.RpcError) -> tuple[FieldViolation, ...]:
    """The google.rpc.BadRequest details of an error; none when it has none."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details contradict the status: a proxy rewrote one of them
        return ()
    found: list[FieldViolation] = []
    for detail in status.details if status is not None else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            found.extend(
                FieldViolation(field=violation.field, description=violation.description)
                for violation in bad_request.field_violations
            )
    return tuple(found)


def _message(reply: Any) -> Message:
    kinds: dict[str, type] = {
        "job_event": JobEvent,
        "sweep_event": SweepEvent,
        "progress": Progress,
        "waiting": Waiting,
        "heartbeat": Heartbeat,
    }
    chosen = reply.WhichOneof("body")
    if chosen is None:
        raise ScreentestError("the scheduler sent a message this version does not know; update this side")
    body: Any = from_wire(getattr(reply, chosen), kinds[chosen])
    return Message(cursor=reply.cursor, body=body)


def _records(messages: Iterable[Any], record_class: type[T]) -> tuple[T, ...]:
    return tuple(from_wire(message, record_class) for message in messages)


def _paged(page: Callable[[str], Any], items: Callable[[Any], Sequence[T]], limit: int | None) -> tuple[T, ...]:
    """All pages, or as many as hold ``limit`` items."""
    found: list[T] = []
    token = ""
    while True:
        reply = page(token)
        found.extend(items(reply))
        token = reply.next_page_token
        if not token or (limit is not None and len(found) >= limit):
            return tuple(found[:limit])


def _chunks(file_name: str, image: bytes) -> Iterator[Any]:
    yield scheduler_pb2.UploadKeyframeRequest(file_name=file_name)
    for start in range(0, len(image), CHUNK_BYTES):
        yield scheduler_pb2.UploadKeyframeRequest(chunk=image[start : start + CHUNK_BYTES])


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise BadRequest(f"token file {path} cannot be read ({error.strerror}); run `make secrets`") from error
    if not token:
        raise BadRequest(f"token file {path} is empty; delete it and run `make secrets`")
    return token


def _ca_bytes(ca: bytes | Path) -> bytes:
    if isinstance(ca, bytes):
        return ca
    try:
        return ca.read_bytes()
    except OSError as error:
        raise BadRequest(f"CA file {ca} cannot be read ({error.strerror}); check SCREENTEST_GRPC_CA_FILE") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{what} {path} cannot be read ({error.strerror}); check the path") from error
