"""The scheduler as its own process, over real gRPC, NATS and depot; the worker's side of the protocol is played here."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from screentest import lanes, objects, subjects, wire
from screentest.client import Client
from screentest.errors import AlreadyExists, BadRequest, NotPossibleNow, Unavailable
from screentest.kit import clock
from screentest.kit.bus import Append, Bus, Delivery
from screentest.records import (
    Alive,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    CancelAttempt,
    CancelRequested,
    ClipFacts,
    Command,
    CommandReply,
    Dispatch,
    FailureClass,
    Job,
    JobEvent,
    JobState,
    Outcome,
    Process,
    Progress,
    Proof,
    ProofKind,
    ProofRequest,
    Started,
    SweepEvent,
    SweepSpec,
    UrlReply,
    UrlRequest,
    Weights,
)
from screentest_ui import ports

if TYPE_CHECKING:
    from conftest import Depot, RunningServer

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-for-tests"


class Scheduler:
    """The real process; a test may kill and restart it."""

    def __init__(self, environment: dict[str, str], port: int, log: Path) -> None:
        self._environment = environment
        self._log = log
        self.address = f"127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "screentest_scheduler.main"], env=self._environment, stderr=log
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.list_sweeps(limit=1)
        except Unavailable:
            return False
        return True

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=40)

    def client(self) -> Client:
        return Client.connect(self.address, token=TOKEN)


@pytest.fixture
def scheduler(nats_server: RunningServer, depot: Depot, tmp_path: Path) -> Iterator[Scheduler]:
    secret = tmp_path / "secret"
    secret.write_text(depot.scheduler.secret_key)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    [port] = ports.choose(1)
    environment = {
        "PATH": os.environ["PATH"],
        "SCREENTEST_NATS_URL": nats_server.url,
        "SCREENTEST_GRPC_ADDRESS": f"127.0.0.1:{port}",
        "SCREENTEST_GRPC_TOKEN_FILE": str(token),
        "SCREENTEST_LANES_DIR": str(ROOT / "deploy" / "lanes"),
        "SCREENTEST_HEARTBEAT_S": "0.5",
        "SCREENTEST_DEPOT_URL": depot.url,
        "SCREENTEST_DEPOT_BUCKET": depot.bucket,
        "SCREENTEST_DEPOT_ACCESS_KEY": depot.scheduler.access_key,
        "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(secret),
    }
    running = Scheduler(environment, port, tmp_path / "scheduler.log")
    running.start()
    yield running
    running.kill()
    print((tmp_path / "scheduler.log").read_text()[-4000:])


@dataclass
class HandWorker:
    """One lane's worker and the telemetry of its host, answering by the contract and working as the test says."""

    bus: Bus
    depot: Depot
    lane_id: str
    runner: Process | None = None
    is_clean: bool = True
    job_id: str | None = None
    commands: list[object] = field(default_factory=list)

    async def start(self) -> None:
        await self.bus.answer(subjects.command("local", "cpu-0", self.lane_id), self._on_command)

    async def beat(self) -> None:
        while True:
            await self.bus.publish(subjects.alive("local", "cpu-0", self.lane_id), wire.encode(self.alive()))
            await asyncio.sleep(0.2)

    def alive(self) -> Alive:
        lane = lanes.load_lane(ROOT / "deploy" / "lanes" / f"{self.lane_id}.toml")
        return Alive(
            host="local",
            device="cpu-0",
            lane_id=self.lane_id,
            lane_digest=lanes.lane_digest(lane),
            worker_id="hand",
            runner=self.runner,
            job_id=self.job_id,
            stamp=clock.stamp(),
        )

    async def _on_command(self, _subject: str, payload: bytes) -> bytes:
        command = wire.decode(payload, Command)
        self.commands.append(command.body)
        return wire.encode(CommandReply(done=True))

    async def take(self, timeout_s: float = 10.0) -> tuple[Delivery, Dispatch] | None:
        puller = await self.bus.lane_puller("local", "cpu-0", self.lane_id)
        delivery = await puller.next(timeout_s)
        return (delivery, wire.decode(delivery.payload, Dispatch)) if delivery else None

    async def begin(self, dispatch: Dispatch) -> int:
        proof = await self._proof()
        body = Started(runner=Process(pid=1, start_ticks=1), proof=proof, warm=False)
        return await self.append(dispatch, JobState.RUNNING, body, dispatch.admitted_sequence)

    async def finish(self, dispatch: Dispatch, sequence: int, outcome: Outcome) -> int:
        return await self.append(dispatch, JobState.ENDED, AttemptEnded(outcome=outcome), sequence)

    async def append(self, dispatch: Dispatch, state: JobState, body: object, expected: int) -> int:
        spec = dispatch.spec
        event = JobEvent(
            event_id=clock.new_event_id(),
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=dispatch.attempt,
            state=state,
            stamp=clock.stamp(),
            body=body,  # type: ignore[arg-type]
        )
        subject = subjects.job_events(spec.sweep_id, spec.lane_id, spec.job_id)
        return await self.bus.append(
            Append(subject=subject, payload=wire.encode(event), expected_sequence=expected, event_id=event.event_id)
        )

    async def report(self, dispatch: Dispatch, phase: str) -> None:
        spec = dispatch.spec
        progress = Progress(
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=dispatch.attempt,
            phase=phase,
            stamp=clock.stamp(),
        )
        await self.bus.publish(subjects.progress(spec.sweep_id, spec.lane_id, spec.job_id), wire.encode(progress))

    async def upload(self, dispatch: Dispatch, data: bytes = b"not really a clip") -> Outcome:
        """Puts an object where the scheduler signs for, and says so."""
        spec, sha256 = dispatch.spec, hashlib.sha256(data).hexdigest()
        request = UrlRequest(
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=dispatch.attempt,
            kind=ArtifactKind.CLIP,
            sha256=sha256,
            size_bytes=len(data),
        )
        payload = await self.bus.request(subjects.depot_url(self.lane_id), wire.encode(request), timeout_s=5)
        reply = wire.decode(payload, UrlReply)
        assert not reply.error
        await self.depot.store().put(reply.key, data, "video/mp4")
        clip = Artifact(
            kind=ArtifactKind.CLIP, key=reply.key, sha256=sha256, size_bytes=len(data), content_type="video/mp4"
        )
        facts = ClipFacts(
            codec="h264", pixel_format="yuv420p", frames=25, width_px=96, height_px=64, fps=24, duration_s=25 / 24
        )
        return Outcome(failure_class=None, artifacts=(clip,), clip=facts)

    async def _proof(self) -> Proof:
        payload = await self.bus.request(
            subjects.proof("local", "cpu-0"), wire.encode(ProofRequest(kind=ProofKind.HANDOVER)), timeout_s=2
        )
        return wire.decode(payload, Proof)


@pytest.fixture
async def worker(bus: Bus, depot: Depot) -> AsyncIterator[HandWorker]:
    hand = HandWorker(bus=bus, depot=depot, lane_id="stub")

    async def prove(_subject: str, payload: bytes) -> bytes:
        request = wire.decode(payload, ProofRequest)
        reason = "" if hand.is_clean else "lock is held by nobody we know"
        proof = Proof(
            kind=request.kind,
            clean=hand.is_clean,
            reason=reason,
            lock_held=False,
            lock_holders=(),
            processes=(),
            stamp=clock.stamp(),
            method="proc",
        )
        return wire.encode(proof)

    await bus.answer(subjects.proof("local", "cpu-0"), prove)
    await hand.start()
    beating = asyncio.create_task(hand.beat())
    yield hand
    beating.cancel()


def spec(**changes: object) -> SweepSpec:
    plain = SweepSpec(
        title="A test", prompts=("a door opens",), lane_ids=("stub",), seeds=(42,), weights=Weights.MINIATURE
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


async def submit(scheduler: Scheduler, asked: SweepSpec, request_id: str = "r-1") -> str:
    def call() -> str:
        with scheduler.client() as client:
            return client.submit_sweep(asked, request_id=request_id).sweep.record.sweep_id

    return await asyncio.to_thread(call)


async def jobs(scheduler: Scheduler, sweep_id: str) -> list[Job]:
    def call() -> list[Job]:
        with scheduler.client() as client:
            return list(client.list_jobs(sweep_id))

    return await asyncio.to_thread(call)


async def until(scheduler: Scheduler, sweep_id: str, *states: JobState, timeout_s: float = 15) -> list[Job]:
    """The jobs of a sweep, once they are in these states."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await jobs(scheduler, sweep_id)
            if [job.state for job in found] == list(states):
                return found
            await asyncio.sleep(0.05)


async def events_of(bus: Bus, sweep_id: str) -> list[JobEvent]:
    return [
        wire.decode(stored.payload, JobEvent)
        async for stored in bus.read(subjects.EVENTS_STREAM, [subjects.sweep_job_events(sweep_id)])
    ]


def terminal_events(events: list[JobEvent]) -> list[JobState]:
    return [event.state for event in events if event.state.is_terminal]


async def complete(worker: HandWorker) -> Dispatch:
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, await worker.upload(dispatch))
    await delivery.ack()
    return dispatch


async def test_a_job_goes_from_submit_to_completed(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec())
    dispatch = await complete(worker)
    [job] = await until(scheduler, sweep_id, JobState.COMPLETED)

    assert sweep_id.startswith("a-test-2")
    assert dispatch.spec.call  # the worker gets every argument
    assert job.clip is not None
    assert job.clip.key == objects.attempt_object(
        ArtifactKind.CLIP, sweep_id, "stub", job.spec.job_id, 1, job.clip.sha256
    )
    assert terminal_events(await events_of(bus, sweep_id)) == [JobState.COMPLETED]
    with scheduler.client() as client:
        async with asyncio.timeout(20):
            while (settled := client.get_sweep(sweep_id).settled) is None:
                await asyncio.sleep(0.1)
    assert (settled.jobs, settled.clips) == (1, 1)
    assert settled.proofs[0].proof is not None
    assert settled.proofs[0].proof.clean


async def test_the_same_request_id_is_one_sweep(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    ids = await asyncio.gather(*(submit(scheduler, spec()) for _ in range(20)))
    assert len(set(ids)) == 1
    submitted = [event for event in await events_of(bus, ids[0]) if event.attempt == 0]
    assert len(submitted) == 1
    with pytest.raises(AlreadyExists, match="other content"):
        await submit(scheduler, spec(prompts=("another door",)))


async def test_bad_input_names_every_field(scheduler: Scheduler) -> None:
    with pytest.raises(BadRequest) as refused:
        await submit(scheduler, spec(prompts=(" ",), lane_ids=("wan2.1-t2v-1.3b", "nonsense"), seeds=()))
    fields = {violation.field for violation in refused.value.violations}
    assert fields == {"spec.prompts[0]", "spec.lane_ids[0]", "spec.lane_ids[1]", "spec.seeds"}
    assert "wan2-1-t2v-1-3b" in str(refused.value)


async def test_a_queued_job_says_why_it_waits(scheduler: Scheduler) -> None:
    sweep_id = await submit(scheduler, spec())
    [job] = await until(scheduler, sweep_id, JobState.QUEUED)
    assert job.waits_for == "no worker for stub"


async def test_an_unproven_device_gets_no_job_and_says_so(scheduler: Scheduler, worker: HandWorker) -> None:
    worker.is_clean = False
    sweep_id = await submit(scheduler, spec())
    assert await worker.take(timeout_s=1.5) is None
    [job] = await until(scheduler, sweep_id, JobState.QUEUED)
    assert "not proven clean: lock is held by nobody we know" in job.waits_for
    worker.is_clean = True
    assert await worker.take() is not None


async def test_one_attempt_holds_the_device_until_it_has_decoded(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1, 2)))
    taken = await worker.take()
    assert taken is not None
    _, first = taken
    sequence = await worker.begin(first)
    await worker.report(first, "denoising")
    assert await worker.take(timeout_s=1.5) is None
    await worker.report(first, "decoded")
    second = await worker.take(timeout_s=5)
    assert second is not None
    await worker.finish(first, sequence, await worker.upload(first))
    sequence = await worker.begin(second[1])
    await worker.finish(second[1], sequence, await worker.upload(second[1]))
    await until(scheduler, sweep_id, JobState.COMPLETED, JobState.COMPLETED)


async def test_cancel_before_the_start_ends_at_once(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1, 2)))
    taken = await worker.take()
    assert taken is not None
    queued = (await jobs(scheduler, sweep_id))[1]
    with scheduler.client() as client:
        await asyncio.to_thread(client.cancel_job, queued.spec.job_id)
    await until(scheduler, sweep_id, JobState.ADMITTED, JobState.CANCELLED)
    with scheduler.client() as client:
        client.cancel_sweep(sweep_id)
    await until(scheduler, sweep_id, JobState.CANCELLED, JobState.CANCELLED)
    assert await bus.dispatched() == ()
    assert terminal_events(await events_of(bus, sweep_id)) == [JobState.CANCELLED] * 2


async def test_cancel_while_running_waits_for_the_worker(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    await worker.begin(dispatch)
    await until(scheduler, sweep_id, JobState.RUNNING)
    with scheduler.client() as client:
        job = client.cancel_job(dispatch.spec.job_id)
        assert job.cancel_requested
        client.cancel_job(dispatch.spec.job_id)  # pressing twice is no error
    async with asyncio.timeout(10):
        while not any(isinstance(command, CancelAttempt) for command in worker.commands):
            await asyncio.sleep(0.05)
    await until(scheduler, sweep_id, JobState.RUNNING)
    last = await bus.last(subjects.EVENTS_STREAM, subjects.job_events(sweep_id, "stub", dispatch.spec.job_id))
    assert last is not None
    assert isinstance(wire.decode(last.payload, JobEvent).body, CancelRequested)
    await worker.finish(dispatch, last.sequence, Outcome(failure_class=FailureClass.CANCELLED, cause="cancelled"))
    await until(scheduler, sweep_id, JobState.CANCELLED)
    with pytest.raises(NotPossibleNow, match="cannot be cancelled any more"), scheduler.client() as client:
        client.cancel_job(dispatch.spec.job_id)


async def test_attempts_lost_to_the_machine_are_tried_again_three_times(
    scheduler: Scheduler, worker: HandWorker, bus: Bus
) -> None:
    sweep_id = await submit(scheduler, spec())
    for attempt in (1, 2, 3):
        taken = await worker.take()
        assert taken is not None
        delivery, dispatch = taken
        assert dispatch.attempt == attempt
        sequence = await worker.begin(dispatch)
        lost = Outcome(failure_class=FailureClass.INFRASTRUCTURE, cause="worker died", infrastructure=True)
        await worker.finish(dispatch, sequence, lost)
        await delivery.ack()
    [job] = await until(scheduler, sweep_id, JobState.FAILED)
    assert job.failure_class is FailureClass.INFRASTRUCTURE
    assert "lost 3 attempts" in job.cause


async def test_a_clip_that_is_not_in_the_depot_is_no_completed_job(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    outcome = await worker.upload(dispatch)
    gone = replace(outcome.artifacts[0], key=f"{sweep_id}/clips/never-written.mp4")
    await worker.finish(dispatch, sequence, replace(outcome, artifacts=(gone,)))
    [job] = await until(scheduler, sweep_id, JobState.FAILED)
    assert job.failure_class is FailureClass.UPLOAD


async def test_a_retry_is_a_new_job_of_the_same_cell(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, Outcome(failure_class=FailureClass.NAN, cause="non-finite latents"))
    await delivery.ack()
    [first] = await until(scheduler, sweep_id, JobState.FAILED)
    with scheduler.client() as client:
        again = client.retry_job(first.spec.job_id)
    assert (again.spec.retry_of, again.spec.retry_index) == (first.spec.job_id, 1)
    assert (await complete(worker)).spec.job_id == again.spec.job_id
    await until(scheduler, sweep_id, JobState.FAILED, JobState.COMPLETED)


async def test_a_killed_scheduler_goes_on_where_it_was(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1, 2, 3)))
    await complete(worker)
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    scheduler.kill()
    ended = asyncio.create_task(worker.finish(dispatch, sequence, Outcome(failure_class=FailureClass.NAN, cause="nan")))
    scheduler.start()
    await ended
    await complete(worker)
    await until(scheduler, sweep_id, JobState.COMPLETED, JobState.FAILED, JobState.COMPLETED, timeout_s=30)
    states = terminal_events(await events_of(bus, sweep_id))
    assert sorted(states) == [JobState.COMPLETED, JobState.COMPLETED, JobState.FAILED]


async def test_a_broker_restart_loses_nothing(
    scheduler: Scheduler, worker: HandWorker, nats_server: RunningServer
) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    outcome = await worker.upload(dispatch)
    worker.bus.reconnected().clear()
    nats_server.kill()
    nats_server.start()
    await asyncio.wait_for(worker.bus.reconnected().wait(), 20)
    await worker.finish(dispatch, sequence, outcome)
    await until(scheduler, sweep_id, JobState.COMPLETED, timeout_s=30)


async def test_watch_resumes_behind_its_cursor(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())

    def first_two() -> tuple[list[str], str]:
        seen = []
        with scheduler.client() as client:
            for message in client.watch(sweep_id):
                if isinstance(message.body, JobEvent | SweepEvent):
                    seen.append(message.cursor)
                if len(seen) == 2:
                    return seen, message.cursor
        raise AssertionError("the watch ended")

    seen, cursor = await asyncio.to_thread(first_two)
    working = asyncio.create_task(complete(worker))

    def the_rest() -> list[JobEvent]:
        events = []
        with scheduler.client() as client:
            for message in client.watch(sweep_id, cursor=cursor):
                if isinstance(message.body, JobEvent):
                    assert message.cursor not in seen
                    events.append(message.body)
                    if message.body.state.is_terminal:
                        return events
        raise AssertionError("the watch ended")

    events = await asyncio.wait_for(asyncio.to_thread(the_rest), 20)
    await working
    assert [event.state for event in events] == [
        JobState.ADMITTED,
        JobState.RUNNING,
        JobState.ENDED,
        JobState.COMPLETED,
    ]
    with pytest.raises(BadRequest, match="another event stream"), scheduler.client() as client:
        next(iter(client.watch(sweep_id, cursor="elsewhere:7")))


async def test_a_thousand_jobs_are_durable_and_listed_by_page(scheduler: Scheduler, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec(seeds=tuple(range(1000))))
    events = await events_of(bus, sweep_id)
    assert len(events) == 1000
    listed = await jobs(scheduler, sweep_id)
    assert [job.spec.seed for job in listed] == list(range(1000))
