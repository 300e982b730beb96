"""A real worker process on a real NATS, between a stand-in scheduler, telemetry and depot. For tests of the worker.

The stand-ins answer what the worker asks and nothing more; the real services have tests of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from screentest import lanes, objects, subjects, wire
from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.kit.bus import Append, Bus
from screentest.records import (
    Admitted,
    Alive,
    ArtifactKind,
    AttemptEnded,
    CancelRequested,
    Command,
    CommandReply,
    DeviceFacts,
    Dispatch,
    JobEvent,
    JobSpec,
    JobState,
    Limits,
    Outcome,
    Parameter,
    Process,
    Progress,
    Proof,
    ProofKind,
    ProofRequest,
    Started,
    Submitted,
    Task,
    UrlReply,
    UrlRequest,
    Weights,
)

REPOSITORY = Path(__file__).parents[2]
HOST, DEVICE = "local", "cpu-0"
SWEEP = "test-20260101t000000z"
VENVS = Path(os.environ.get("SCREENTEST_VENVS", REPOSITORY / ".venvs"))

T = TypeVar("T")


class DepotServer:
    """A web server that takes conditional PUTs and gives what it holds. ``down``: it answers 503 to everything."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.down = False
        self.puts: list[tuple[str, int]] = []
        depot = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = 503 if depot.down else 412 if self.path in depot.objects else 200
                depot.puts.append((self.path, status))
                if status == 200:
                    depot.objects[self.path] = body
                    depot.headers[self.path] = dict(self.headers)
                self._answer(status, b"")

            def do_GET(self) -> None:
                found = None if depot.down else depot.objects.get(self.path)
                self._answer(404 if found is None else 200, found or b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def lock_holders(path: Path) -> tuple[int, ...]:
    """Pids that took a flock on the file. Source: /proc/locks."""
    if not path.exists():
        return ()
    stat = path.stat()
    wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    rows = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return tuple(int(row[4]) for row in rows if row[1] == "FLOCK" and row[5] == wanted)


@dataclass
class Rig:
    """What a test holds: the bus as the scheduler uses it, the depot, the worker process, and everything it heard."""

    bus: Bus
    nats_url: str
    folder: Path
    lane_file: Path
    depot: DepotServer
    settings: dict[str, str] = field(default_factory=dict)
    heard: list[Progress] = field(default_factory=list)
    alive: list[Alive] = field(default_factory=list)
    registered: list[Process] = field(default_factory=list)
    url_service_up: bool = True
    telemetry_up: bool = True
    free_bytes: int | None = None
    foreign: tuple[Process, ...] = ()
    worker: subprocess.Popen[bytes] | None = None
    jobs: int = 0

    @property
    def lane(self) -> lanes.Lane:
        return lanes.load_lane(self.lane_file)

    @property
    def lock_path(self) -> Path:
        return self.folder / "locks" / f"{DEVICE}.lock"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    # ---- the worker

    def start_worker(self, **settings: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "SCREENTEST_NATS_URL": self.nats_url,
            "SCREENTEST_HOST": HOST,
            "SCREENTEST_LOG_FORMAT": "json",
            "SCREENTEST_LANE_FILE": str(self.lane_file),
            "SCREENTEST_DEVICE": DEVICE,
            "SCREENTEST_LOCK_DIR": str(self.folder / "locks"),
            "SCREENTEST_STATE_DIR": str(self.state),
            "SCREENTEST_ENV_PYTHON": str(VENVS / "stub" / "bin" / "python"),
            "SCREENTEST_MODELS_DIR": str(self.folder / "models"),
            "SCREENTEST_CACHE_DIR": str(self.folder / "cache"),
            "SCREENTEST_STOP_GRACE_S": "0.5",
            "SCREENTEST_RENEW_S": "0.7",
            **self.settings,
            **settings,
        }
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "screentest_worker.main"], env=environment, stdout=log, stderr=log
            )

    def stop_worker(self) -> int:
        """SIGTERM; the exit status."""
        assert self.worker is not None
        self.worker.terminate()
        return self.worker.wait(timeout=20)

    def kill_worker(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait(timeout=30)

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text()

    # ---- the scheduler's part

    def spec(self, **changes: Any) -> JobSpec:
        """A job of 0.2 s; ``changes`` are fields of JobSpec, but ``call`` is merged into the lane's own."""
        self.jobs += 1
        lane = self.lane
        call = {
            "prompt": "an obsidian cathedral",
            "width": 96,
            "height": 64,
            "num_frames": 25,
            "steps": 4,
            "fps": 24,
            "work_s": 0.2,
            **changes.pop("call", {}),
        }
        spec = JobSpec(
            job_id=f"job-{self.jobs:04d}",
            sweep_id=SWEEP,
            lane_id=lane.id,
            lane_title=lane.title,
            task=Task(lane.task),
            ordinal=self.jobs,
            prompt_index=0,
            prompt="an obsidian cathedral",
            seed=42,
            weights=Weights.MINIATURE,
            keyframe=None,
            lane_digest=lanes.lane_digest(lane),
            host=HOST,
            device=DEVICE,
            width_px=96,
            height_px=64,
            num_frames=25,
            steps=4,
            fps=24.0,
            call=tuple(Parameter(name=name, value=value) for name, value in call.items()),
            marks=(),
            limits=Limits(load_s=20, step_stall_s=20, attempt_s=60),
            rungs=("resident",),
            weights_repo="",
            weights_revision="",
        )
        return replace(spec, **changes)

    async def admit(self, spec: JobSpec, attempt: int = 1, *, rung: int = 0, dispatch: bool = True) -> Dispatch:
        """Submitted and Admitted in the job's history, and its message on the lane's queue."""
        last = await self.bus.last(subjects.EVENTS_STREAM, self.subject(spec))
        if last is None:
            await self.append(spec, 0, JobState.QUEUED, Submitted(spec=spec))
        admitted = Admitted(rung=rung, rung_name=self.rung_name(rung))
        sequence = await self.append(spec, attempt, JobState.ADMITTED, admitted)
        message = Dispatch(spec=spec, attempt=attempt, rung=rung, admitted_sequence=sequence)
        if dispatch:
            await self.dispatch(message)
        return message

    def rung_name(self, rung: int) -> str:
        return self.lane.ladder[rung].name

    async def dispatch(self, message: Dispatch) -> None:
        spec = message.spec
        subject = subjects.dispatch(spec.host, spec.device, spec.lane_id, spec.job_id, message.attempt)
        await self.bus.dispatch(subject, wire.encode(message))

    async def append(self, spec: JobSpec, attempt: int, state: JobState, body: Any) -> int:
        last = await self.bus.last(subjects.EVENTS_STREAM, self.subject(spec))
        event = JobEvent(
            event_id=clock.new_event_id(),
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=attempt,
            state=state,
            stamp=clock.stamp(),
            body=body,
        )
        return await self.bus.append(
            Append(
                subject=self.subject(spec),
                payload=wire.encode(event),
                expected_sequence=last.sequence if last else 0,
                event_id=event.event_id,
            )
        )

    async def request_cancel(self, spec: JobSpec, attempt: int = 1) -> None:
        await self.append(spec, attempt, JobState.RUNNING, CancelRequested(by="test", started=True))

    def subject(self, spec: JobSpec) -> str:
        return subjects.job_events(spec.sweep_id, spec.lane_id, spec.job_id)

    async def history(self, spec: JobSpec) -> list[JobEvent]:
        found = [item async for item in self.bus.read(subjects.EVENTS_STREAM, [self.subject(spec)])]
        return [wire.decode(item.payload, JobEvent) for item in found]

    async def outcome(self, spec: JobSpec, attempt: int = 1, within_s: float = 30.0) -> Outcome:
        """How the attempt ended."""

        async def look() -> Outcome | None:
            stored = await self.bus.last(subjects.EVENTS_STREAM, self.subject(spec))
            event = wire.decode(stored.payload, JobEvent) if stored else None
            if event is None or event.attempt != attempt or not isinstance(event.body, AttemptEnded):
                return None
            return event.body.outcome

        return await self.until(look, within_s, f"the end of {spec.job_id}")

    async def started(self, spec: JobSpec, attempt: int = 1, within_s: float = 30.0) -> Started:
        async def look() -> Started | None:
            stored = await self.bus.last(subjects.EVENTS_STREAM, self.subject(spec))
            event = wire.decode(stored.payload, JobEvent) if stored else None
            return event.body if event and event.attempt == attempt and isinstance(event.body, Started) else None

        return await self.until(look, within_s, f"the start of {spec.job_id}")

    async def phase(self, spec: JobSpec, phase: str, within_s: float = 30.0) -> None:
        """Waits until the job has reported the phase."""

        async def look() -> bool | None:
            return any(item.job_id == spec.job_id and item.phase == phase for item in self.heard) or None

        await self.until(look, within_s, f"{phase} of {spec.job_id}")

    async def breathing(self, within_s: float = 15.0) -> None:
        """Waits until the worker lives."""

        async def look() -> bool | None:
            return True if self.alive else None

        await self.until(look, within_s, "heartbeat")

    async def acknowledged(self, within_s: float = 10.0) -> None:
        """Waits until no message is left on the queue."""

        async def look() -> bool | None:
            return None if await self.bus.dispatched() else True

        await self.until(look, within_s, "an empty queue")

    async def command(self, body: Any, timeout_s: float = 15.0) -> CommandReply:
        subject = subjects.command(HOST, DEVICE, self.lane.id)
        reply = await self.bus.request(subject, wire.encode(Command(body=body)), timeout_s=timeout_s)
        return wire.decode(reply, CommandReply)

    async def until(self, look: Callable[[], Any], within_s: float, what: str) -> Any:
        try:
            async with asyncio.timeout(within_s):
                while (found := await look()) is None:  # it sits in other processes
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"no {what} within {within_s} s; the worker's log:\n{self.log[-6000:]}") from None
        return found

    # ---- the stand-ins

    async def serve(self) -> None:
        """Answers as telemetry and the depot's URL service do, and listens."""
        await self.bus.answer(subjects.device_facts(HOST, DEVICE), self._facts)
        await self.bus.answer(subjects.register_runner(HOST, DEVICE), self._register)
        await self.bus.answer(subjects.proof(HOST, DEVICE), self._proof)
        await self.bus.answer(subjects.depot_url(self.lane.id), self._url)
        await self.bus.listen("progress.>", self._progress)
        await self.bus.listen("alive.>", self._alive)

    async def make_queue(self) -> None:
        """The lane's consumer, which is the scheduler's to make. A message that is not renewed comes again in 2 s."""
        await self.bus.ensure_lane_consumer(HOST, DEVICE, self.lane.id, ack_wait_s=2.0)

    async def _facts(self, _: str, __: bytes) -> bytes:
        await self._up(self.telemetry_up)
        facts = DeviceFacts(
            host=HOST,
            device=DEVICE,
            lock_name=self.lock_path.name,
            memory_kind="unified",
            memory_free_bytes=self.free_bytes,
            foreign=self.foreign,
        )
        return wire.encode(facts)

    async def _register(self, _: str, payload: bytes) -> bytes:
        await self._up(self.telemetry_up)
        self.registered.append(wire.decode(payload, Process))
        return wire.encode(CommandReply(done=True))

    async def _proof(self, _: str, payload: bytes) -> bytes:
        await self._up(self.telemetry_up)
        request = wire.decode(payload, ProofRequest)
        living = {item.pid for item in self.registered if clock.process_of(item.pid)}
        holders = set(lock_holders(self.lock_path))
        wanted = {request.runner.pid} if request.runner else set()
        clean = holders == wanted and living == wanted
        proof = Proof(
            kind=ProofKind(request.kind),
            clean=clean,
            reason="" if clean else f"lock held by {sorted(holders)}, runners alive {sorted(living)}",
            lock_held=bool(holders),
            lock_holders=tuple(found for pid in holders if (found := clock.process_of(pid))),
            processes=(),
            stamp=clock.stamp(),
            method="proc",
        )
        return wire.encode(proof)

    async def _url(self, _: str, payload: bytes) -> bytes:
        await self._up(self.url_service_up)
        key = self.key(wire.decode(payload, UrlRequest))
        return wire.encode(UrlReply(url=f"{self.depot.url}/{key}", key=key))

    def key(self, asked: UrlRequest) -> str:
        """Of the object that the worker asks a URL for."""
        if asked.kind is ArtifactKind.KEYFRAME:
            return objects.keyframe(asked.sha256)
        return objects.attempt_object(
            asked.kind, asked.sweep_id, asked.lane_id, asked.job_id, asked.attempt, asked.sha256
        )

    async def _up(self, is_up: bool) -> None:
        """Down: the request gets no answer."""
        if not is_up:
            raise Unavailable("down for the test")

    async def _progress(self, _: str, payload: bytes) -> None:
        self.heard.append(wire.decode(payload, Progress))

    async def _alive(self, _: str, payload: bytes) -> None:
        self.alive.append(wire.decode(payload, Alive))


@contextlib.asynccontextmanager
async def rig(
    bus: Bus,
    nats_url: str,
    folder: Path,
    *,
    lane: str = "stub",
    more_rungs: str = "",
    has_queue: bool = True,
    lane_file: Path | None = None,
    kind: type[Rig] = Rig,
    **settings: str,
) -> AsyncIterator[Any]:
    """A running worker of a stub lane, perhaps with a longer ladder, or of the lane in ``lane_file``.

    It is gone afterwards, with all below it.
    """
    depot = DepotServer()
    lane_file = lane_file or REPOSITORY / "deploy" / "lanes" / f"{lane}.toml"
    if more_rungs:
        text = lane_file.read_text()
        lane_file = folder / f"{lane}.toml"
        lane_file.write_text(text + more_rungs)
    found = kind(bus=bus, nats_url=nats_url, folder=folder, lane_file=lane_file, depot=depot, settings=settings)
    await found.serve()
    if has_queue:
        await found.make_queue()
    found.start_worker()
    try:
        yield found
    finally:
        if found.worker is not None and found.worker.poll() is None:
            found.worker.terminate()
            try:
                await asyncio.to_thread(found.worker.wait, 20)
            except subprocess.TimeoutExpired:
                found.worker.kill()
        depot.close()


@contextlib.contextmanager
def held_lock(path: Path) -> Any:
    """The device's lock in the hands of this very process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
