"""The scheduler alone: how long 1,000 jobs take until durable, and what 10,000 finished ones weigh in memory.

Side by side in the same run: the bare guarded appends of as many messages, the floor under any durable submit.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import recording
from pydantic import SecretStr

from screentest import objects, subjects, wire
from screentest.client import Client
from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.kit.bus import Append, Bus
from screentest.kit.store import Store
from screentest.records import (
    Admitted,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    ClipFacts,
    Completed,
    Job,
    JobEvent,
    JobState,
    Outcome,
    PhaseTime,
    Process,
    Proof,
    ProofKind,
    Started,
    SweepSpec,
    Version,
    Weights,
)
from screentest_ui import ports, programs, servers

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
JOBS = 1_000
FINISHED = 10_000
AT_A_TIME = 50
TOKEN = "bench"


class Bench:
    """A real broker and depot, and the scheduler as its own process."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._key = servers.DepotKey(name="s", access_key="s", secret_key="bench-secret", actions=("Admin",))
        names = servers.DEPOT_PORT_NAMES
        self._nats = servers.configure_nats(home / "nats", ports.choose(1)[0])
        self._depot = servers.configure_depot(
            home / "depot", dict(zip(names, ports.choose(len(names)), strict=True)), (self._key,)
        )
        self._started: list[Process] = []
        [self._port] = ports.choose(1)
        self._scheduler: subprocess.Popen[bytes] | None = None

    @property
    def nats_url(self) -> str:
        return self._nats.url

    @property
    def log_path(self) -> Path:
        return self._home / "scheduler.log"

    @property
    def pid(self) -> int:
        assert self._scheduler is not None
        return self._scheduler.pid

    def client(self) -> Client:
        return Client.connect(f"127.0.0.1:{self._port}", token=TOKEN)

    def start_servers(self) -> None:
        for server in (self._nats, self._depot):
            process = programs.start(server.program)
            self._started.append(process)
            programs.wait_ready(server.program, process, server.is_ready, servers.READY_WITHIN_S)

    def start_scheduler(self) -> float:
        """Seconds until it answers."""
        secret, token = self._home / "secret", self._home / "token"
        secret.write_text(self._key.secret_key)
        token.write_text(TOKEN)
        environment = {
            "PATH": os.environ["PATH"],
            "SCREENTEST_NATS_URL": self._nats.url,
            "SCREENTEST_GRPC_ADDRESS": f"127.0.0.1:{self._port}",
            "SCREENTEST_GRPC_TOKEN_FILE": str(token),
            "SCREENTEST_LANES_DIR": str(ROOT / "deploy" / "lanes"),
            "SCREENTEST_DEPOT_URL": self._depot.url,
            "SCREENTEST_DEPOT_ACCESS_KEY": self._key.access_key,
            "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(secret),
        }
        begun = time.monotonic()
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "screentest_scheduler.main"]
            self._scheduler = subprocess.Popen(command, env=environment, stderr=log)
        while True:
            try:
                with self.client() as client:
                    client.list_sweeps(limit=1)
                return time.monotonic() - begun
            except Unavailable:
                if time.monotonic() - begun > 120:
                    raise
                time.sleep(0.05)

    def stop_scheduler(self) -> None:
        if self._scheduler is not None:
            self._scheduler.terminate()
            self._scheduler.wait(timeout=40)
            self._scheduler = None

    def stop(self) -> None:
        self.stop_scheduler()
        for process in reversed(self._started):
            programs.stop(process, grace_s=10)

    async def put_clip(self, key: str, data: bytes) -> None:
        secret = SecretStr(self._key.secret_key)
        store = Store(url=self._depot.url, bucket="screentest", access_key=self._key.access_key, secret_key=secret)
        await store.put(key, data, "video/mp4")


def spec(seeds: range) -> SweepSpec:
    prompt = "An obsidian cathedral, a child with a doll, a cracked dome of glass. " * 20  # as long as a dense scene
    return SweepSpec(
        title="bench", prompts=(prompt,), lane_ids=("stub",), seeds=tuple(seeds), weights=Weights.MINIATURE
    )


def submit_seconds(bench: Bench, round_number: int, jobs: int) -> float:
    """From the call to the answer; the answer comes after the last job's fsynced append."""
    with bench.client() as client:
        client.list_sweeps(limit=1)
        begun = time.monotonic()
        accepted = client.submit_sweep(spec(range(jobs)), request_id=f"bench-{round_number}-{jobs}-{os.getpid()}")
        seconds = time.monotonic() - begun
        assert accepted.sweep.counts.total == jobs
        return seconds


async def bare_append_seconds(url: str, round_number: int, payload_bytes: int) -> float:
    """The same number of guarded appends of the same size, without a scheduler."""
    bus = await Bus.connect(url, name="bench")
    try:
        appends = [
            Append(
                subject=subjects.request_claim(f"bare-{round_number}-{index}"),  # a subject that nobody folds
                payload=b"x" * payload_bytes,
                expected_sequence=0,
                event_id=f"bare-{round_number}-{index}",
            )
            for index in range(JOBS)
        ]
        begun = time.monotonic()
        results = await bus.append_all(appends)
        seconds = time.monotonic() - begun
        assert all(isinstance(result, int) for result in results)
        return seconds
    finally:
        await bus.close()


async def finish_all(bench: Bench, jobs: tuple[Job, ...]) -> None:
    """Writes for every job the events that a worker and the scheduler would have written.

    A few jobs at a time, as one device would: between AttemptEnded and Completed the scheduler keeps the outcome.
    """
    bus = await Bus.connect(bench.nats_url, name="bench")
    try:
        for start in range(0, len(jobs), AT_A_TIME):
            await _finish(bus, jobs[start : start + AT_A_TIME])
    finally:
        await bus.close()


async def _finish(bus: Bus, jobs: tuple[Job, ...]) -> None:
    for make in (_admitted, _started, _ended, _completed):
        appends = []
        for job in jobs:
            event = make(job)
            subject = subjects.job_events(event.sweep_id, event.lane_id, event.job_id)
            last = await bus.last(subjects.EVENTS_STREAM, subject) if make is _admitted else None
            expected = last.sequence if last else sequences[job.spec.job_id]
            payload = wire.encode(event)
            appends.append(
                Append(subject=subject, payload=payload, expected_sequence=expected, event_id=event.event_id)
            )
        results = await bus.append_all(appends)
        for job, result in zip(jobs, results, strict=True):
            if not isinstance(result, int):
                raise result
            sequences[job.spec.job_id] = result


sequences: dict[str, int] = {}


def _event(job: Job, state: JobState, body: object) -> JobEvent:
    spec = job.spec
    return JobEvent(
        event_id=clock.new_event_id(),
        sweep_id=spec.sweep_id,
        lane_id=spec.lane_id,
        job_id=spec.job_id,
        attempt=1,
        state=state,
        stamp=clock.stamp(),
        body=body,  # type: ignore[arg-type]
    )


def _admitted(job: Job) -> JobEvent:
    return _event(job, JobState.ADMITTED, Admitted(rung=0, rung_name="resident"))


def _started(job: Job) -> JobEvent:
    runner = Process(pid=4242, start_ticks=123456, command="python -m screentest_runner")
    proof = Proof(
        kind=ProofKind.HANDOVER,
        clean=True,
        reason="",
        lock_held=False,
        lock_holders=(),
        processes=(),
        stamp=clock.stamp(),
        method="proc",
    )
    return _event(job, JobState.RUNNING, Started(runner=runner, proof=proof, warm=True))


def _ended(job: Job) -> JobEvent:
    phases = tuple(
        PhaseTime(phase=phase, seconds=1.5, started_boottime_ns=clock.boottime_ns())
        for phase in ("loading", "encoding_prompt", "denoising", "decoding", "encoding", "uploading")
    )
    versions = tuple(Version(name=name, version="1.2.3") for name in ("torch", "diffusers", "transformers", "av"))
    facts = ClipFacts(
        codec="h264", pixel_format="yuv420p", frames=25, width_px=96, height_px=64, fps=24, duration_s=25 / 24
    )
    artifacts = tuple(_artifact(job, kind) for kind in (ArtifactKind.CLIP, ArtifactKind.LOG, ArtifactKind.MANIFEST))
    outcome = Outcome(failure_class=None, artifacts=artifacts, clip=facts, phases=phases, versions=versions)
    return _event(job, JobState.ENDED, AttemptEnded(outcome=outcome))


def _completed(job: Job) -> JobEvent:
    return _event(job, JobState.COMPLETED, Completed(clip=_artifact(job, ArtifactKind.CLIP)))


def _artifact(job: Job, kind: ArtifactKind) -> Artifact:
    spec, sha256 = job.spec, "0" * 64
    key = objects.attempt_object(kind, spec.sweep_id, spec.lane_id, spec.job_id, 1, sha256)
    return Artifact(kind=kind, key=key, sha256=sha256, size_bytes=1000, content_type=objects.content_type(kind))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="screentest-bench-") as folder:
        bench = Bench(Path(folder))
        try:
            bench.start_servers()
            bench.start_scheduler()
            empty_mib = recording.rss_mib(bench.pid)
            submits, floors = [], []
            for round_number in range(ROUNDS):  # interleaved: A B A B
                submits.append(submit_seconds(bench, round_number, JOBS))
                floors.append(asyncio.run(bare_append_seconds(bench.nats_url, round_number, 2_500)))
            bench.stop()
            bench = Bench(Path(folder) / "second")  # memory is measured with nothing else in the stream
            bench.start_servers()
            bench.start_scheduler()
            submit_seconds(bench, ROUNDS, FINISHED)
            with bench.client() as client:
                sweeps = client.list_sweeps(limit=100)
                big = next(sweep for sweep in sweeps if sweep.counts.total == FINISHED)
                jobs = client.list_jobs(big.record.sweep_id)
            bench.stop_scheduler()
            asyncio.run(finish_all(bench, jobs))
            replay_s = bench.start_scheduler()
            with bench.client() as client:
                assert client.get_sweep(big.record.sweep_id).counts.completed == FINISHED
            time.sleep(2)
            recording.record(
                "scheduler",
                {
                    "submit_1000_jobs_s": recording.spread(submits),
                    "bare_1000_guarded_appends_s": recording.spread(floors),
                    "ratio_p50": round(recording.spread(submits)["p50"] / recording.spread(floors)["p50"], 2),
                    "rss_empty_mib": round(empty_mib, 1),
                    "rss_10000_finished_jobs_mib": round(recording.rss_mib(bench.pid), 1),
                    "restart_until_answering_s": round(replay_s, 2),
                },
            )
        except BaseException:
            sys.stderr.write((bench.log_path.read_text())[-4000:])
            raise
        finally:
            bench.stop()


if __name__ == "__main__":
    main()
