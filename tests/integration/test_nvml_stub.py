"""The whole path from the driver to the report without a GPU: the real pynvml on a library that says STUB."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from screentest import subjects, wire
from screentest.kit.bus import Bus
from screentest.records import (
    CommandReply,
    DeviceFacts,
    DeviceFault,
    DeviceView,
    FailureClass,
    GpuSample,
    Job,
    JobEvent,
    JobState,
    Process,
    Proof,
    ProofKind,
    ProofRequest,
    Requested,
    Started,
    SweepSpec,
    VitalsBatch,
    Weights,
)
from tests import stub_driver
from tests.conftest import Depot, RunningServer
from tests.integration.test_reporter_service import Reporter, is_final, wait_report
from tests.integration.test_telemetry_service import Service, ask
from tests.integration.worker_rig import VENVS
from tests.played import ROOT, Scheduler
from tests.stub_driver import Card

HOST, GPU = "local", "gpu-0"
GIB = 2**30
# A drain by time has to be waited for; the product's limit is 60 s.
DRAIN_AFTER_S = 2.0

pytestmark = pytest.mark.timeout(120)

T = TypeVar("T")


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_driver.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def card(stub_library: Path, tmp_path: Path) -> Card:
    """An H200 that nobody uses."""
    return Card(library=stub_library, control=tmp_path / "card")


@pytest.fixture
def start_telemetry(nats_server: RunningServer, tmp_path: Path, card: Card) -> Iterator[Callable[[], Service]]:
    """A test may change the card first."""
    with contextlib.ExitStack() as stack:

        def start() -> Service:
            running = Service(
                nats_server.url,
                tmp_path,
                SCREENTEST_DEVICES=GPU,
                SCREENTEST_VITALS_HZ="4",
                SCREENTEST_WORKERS_SHARE_PID_NAMESPACE="true",
                **card.environment,
            )
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else that computes on the card."""
    child = subprocess.Popen(["a-stranger", "-c", "import time; time.sleep(100)"], executable=sys.executable)
    yield child
    child.kill()
    child.wait()


async def facts(bus: Bus) -> DeviceFacts:
    return wire.decode(await ask(bus, subjects.device_facts(HOST, GPU)), DeviceFacts)


async def prove(bus: Bus) -> Proof:
    request = wire.encode(ProofRequest(kind=ProofKind.HANDOVER))
    return wire.decode(await ask(bus, subjects.proof(HOST, GPU), request), Proof)


async def eventually(look: Callable[[], Awaitable[T | None]], what: str, within_s: float = 20) -> T:
    deadline = time.monotonic() + within_s
    while (found := await look()) is None:
        assert time.monotonic() < deadline, f"{what} did not come within {within_s} s"
        await asyncio.sleep(0.05)
    return found


async def next_batches(bus: Bus, count: int) -> list[VitalsBatch]:
    after = (await bus.stream_state(subjects.VITALS_STREAM)).last_sequence
    found: list[VitalsBatch] = []
    async with asyncio.timeout(20):
        async for stored in bus.read(subjects.VITALS_STREAM, ["vitals.>"], start_sequence=after + 1, follow=True):
            found.append(wire.decode(stored.payload, VitalsBatch))
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


# ---- telemetry alone


async def test_h200_gives_every_reading_and_says_that_it_is_a_stub(
    bus: Bus, card: Card, start_telemetry: Callable[[], Service]
) -> None:
    start_telemetry()
    batches = await next_batches(bus, 3)
    assert {(batch.source, batch.nvml_error, batch.driver_is_stub) for batch in batches} == {("nvml", None, True)}
    assert batches[-1].driver_version == "580.00.STUB"
    [info] = batches[-1].gpus
    assert (info.uuid, info.name, info.memory_kind, info.power_limit_w) == (
        stub_driver.UUID,
        "NVIDIA H200",
        "device",
        700.0,
    )
    samples = [sample for batch in batches for sample in batch.gpu_samples]
    assert {(s.power_w, s.temperature_c, s.utilisation_percent) for s in samples} == {(412.5, 61.0, 96.0)}
    assert all("fan=not_supported" in sample.unavailable for sample in samples)
    for earlier, later in itertools.pairwise(s for s in samples if s.energy_mj is not None):
        assert joules(earlier, later) == pytest.approx(412.5 * seconds(earlier, later), rel=0.1)


def joules(earlier: GpuSample, later: GpuSample) -> float:
    assert earlier.energy_mj is not None and later.energy_mj is not None
    return (later.energy_mj - earlier.energy_mj) / 1000


def seconds(earlier: GpuSample, later: GpuSample) -> float:
    return (later.boottime_ns - earlier.boottime_ns) / 1e9


async def test_spark_has_unified_memory_that_is_unknown_and_never_zero(
    bus: Bus, card: Card, start_telemetry: Callable[[], Service]
) -> None:
    card.model = "spark"
    card.run(os.getpid(), 30 * GIB)
    start_telemetry()
    found = await facts(bus)
    assert (found.gpu_name, found.memory_kind) == ("NVIDIA GB10", "unified")
    assert (found.memory_total_bytes, found.memory_free_bytes) == (None, None)  # so the host's is what there is
    assert [(process.pid, process.device_memory_bytes) for process in found.foreign] == [(os.getpid(), 30 * GIB)]
    [batch] = await next_batches(bus, 1)
    assert {sample.memory_used_bytes for sample in batch.gpu_samples} == {None}
    assert all("memory=not_supported" in sample.unavailable for sample in batch.gpu_samples)
    assert all(sample.memory_total_bytes and sample.memory_used_bytes for sample in batch.host_samples)
    assert {sample.power_w for sample in batch.gpu_samples} == {412.5}


async def test_who_was_there_first_is_marked_and_who_came_later_is_in_the_way(
    bus: Bus, card: Card, start_telemetry: Callable[[], Service], stranger: subprocess.Popen[bytes]
) -> None:
    card.run(os.getpid(), 5 * GIB)
    service = start_telemetry()
    assert [process.pid for process in (await facts(bus)).foreign] == [os.getpid()]
    proof = await prove(bus)
    assert proof.clean and [(process.pid, process.foreign) for process in proof.processes] == [(os.getpid(), True)]
    card.run(stranger.pid, None)
    for _ in range(2):
        proof = await prove(bus)
        assert not proof.clean
        assert f"pid {stranger.pid} (" in proof.reason and "a-stranger" in proof.reason
        service.stop()
        service.start()  # it does not take the stranger for one who was first
    card.end(stranger.pid)
    assert (await prove(bus)).clean


class Told:
    """The scheduler's side: hears faults and answers them, or does not."""

    def __init__(self) -> None:
        self.faults: list[DeviceFault] = []
        self.answers = True

    async def hear(self, _subject: str, payload: bytes) -> bytes:
        self.faults.append(wire.decode(payload, DeviceFault))
        return wire.encode(CommandReply(done=self.answers))

    async def first(self, count: int) -> list[DeviceFault]:
        async def look() -> list[DeviceFault] | None:
            return self.faults[:count] if len(self.faults) >= count else None

        return await eventually(look, f"fault {count}")


@pytest.fixture
async def told(bus: Bus) -> Told:
    told = Told()
    await bus.answer(subjects.device_fault(HOST, "*"), told.hear)
    return told


async def test_xid_is_told_once_and_repeated_in_every_proof(
    bus: Bus, card: Card, start_telemetry: Callable[[], Service], told: Told
) -> None:
    card.raise_xid(79)  # before anybody listened: of an earlier boot of ours
    start_telemetry()
    assert (await prove(bus)).fault is None
    card.raise_xid(31)
    card.raise_xid(43)
    card.raise_xid(119)
    [fault] = await told.first(1)
    assert (fault.device, fault.gpu_uuid, fault.xid) == (GPU, stub_driver.UUID, 119)
    assert (fault.cause, fault.ends_attempts) == ("XID 119: GSP RPC timeout", True)
    proof = await prove(bus)
    assert proof.clean and proof.fault == fault
    await asyncio.sleep(1)
    assert told.faults == [fault]  # what the application did (31, 43) is told to nobody


async def test_fault_that_nobody_took_is_told_again(
    bus: Bus, card: Card, start_telemetry: Callable[[], Service], told: Told
) -> None:
    told.answers = False
    start_telemetry()
    await prove(bus)
    card.raise_xid(48)
    first, second = await told.first(2)
    assert first == second
    told.answers = True
    await told.first(3)
    await asyncio.sleep(2.5)
    assert len(told.faults) == 3


async def test_lost_gpu_is_told_once_per_loss_and_proves_nothing(
    bus: Bus, card: Card, start_telemetry: Callable[[], Service], told: Told
) -> None:
    start_telemetry()
    assert (await prove(bus)).clean
    card.lose()
    [fault] = await told.first(1)
    assert fault.xid is None and fault.ends_attempts and "cannot reach the GPU" in fault.cause
    proof = await prove(bus)
    assert not proof.clean and "GPU is lost" in proof.reason and proof.fault == fault
    [batch] = [batch for batch in await next_batches(bus, 2) if not batch.gpu_samples]
    assert batch.nvml_error and "lost" in batch.nvml_error
    await asyncio.sleep(6)  # NVML is started again meanwhile, in vain
    assert told.faults == [fault]
    card.come_back()

    async def is_clean() -> bool | None:
        return (await prove(bus)).clean or None

    await eventually(is_clean, "a clean proof")
    assert told.faults == [fault]


# ---- the whole path: driver, telemetry, scheduler, worker, reporter


@dataclass
class Stack:
    """What a test of the whole path holds; the stub lane on a GPU that is a stub too."""

    depot: Depot
    scheduler: Scheduler
    card: Card

    async def submit(self) -> str:
        sweep = SweepSpec(
            title="A disc",
            prompts=("a disc moves",),
            lane_ids=("stub",),
            seeds=(1,),
            weights=Weights.MINIATURE,
            requested=Requested(num_frames=9),
        )
        request_id = uuid.uuid4().hex

        def call() -> str:
            with self.scheduler.client() as client:
                return client.submit_sweep(sweep, request_id=request_id).sweep.record.sweep_id

        return await asyncio.to_thread(call)

    async def job(self, sweep_id: str) -> Job:
        def call() -> Job:
            with self.scheduler.client() as client:
                [job] = client.list_jobs(sweep_id)
                return job

        return await asyncio.to_thread(call)

    async def until(self, sweep_id: str, fits: Callable[[Job], bool], what: str, within_s: float = 30) -> Job:
        async def look() -> Job | None:
            job = await self.job(sweep_id)
            if fits(job):
                return job
            assert not job.state.is_terminal, job
            return None

        return await eventually(look, f"{what} of {sweep_id}", within_s)

    async def ended(self, sweep_id: str) -> Job | None:
        job = await self.job(sweep_id)
        return job if job.state.is_terminal else None

    async def completed(self, sweep_id: str) -> Job:
        return await self.until(sweep_id, lambda job: job.state is JobState.COMPLETED, "the completion")

    async def waiting(self, sweep_id: str, words: str) -> Job:
        return await self.until(sweep_id, lambda job: words in job.waits_for, f"waiting for {words!r}")

    async def device(self) -> DeviceView:
        def call() -> DeviceView:
            with self.scheduler.client() as client:
                [device] = client.list_gpus()
                return device

        return await asyncio.to_thread(call)

    async def drained(self) -> DeviceView:
        async def look() -> DeviceView | None:
            device = await self.device()
            return device if device.drained else None

        return await eventually(look, "the drain")

    async def proven(self) -> None:
        async def look() -> bool | None:
            proof = (await self.device()).proof
            return True if proof is not None and proof.clean else None

        await eventually(look, "a clean proof")

    async def undrain(self) -> None:
        def call() -> None:
            with self.scheduler.client() as client:
                client.undrain(HOST, GPU)

        await asyncio.to_thread(call)


@pytest.fixture
def start_worker(nats_server: RunningServer, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Starts the stub lane's worker, once its queue is there."""
    with contextlib.ExitStack() as stack, (tmp_path / "worker.log").open("ab") as log:

        def start() -> None:
            command = str(Path(sys.executable).with_name("screentest-worker"))
            running = subprocess.Popen([command], env=worker_environment(nats_server, tmp_path), stdout=log, stderr=log)
            stack.callback(running.wait, timeout=20)
            stack.callback(running.terminate)

        yield start
    sys.stdout.write((tmp_path / "worker.log").read_text()[-6000:])  # shown when the test failed


@pytest.fixture
def stack(
    depot: Depot,
    scheduler: Scheduler,
    card: Card,
    start_telemetry: Callable[[], Service],
    start_worker: Callable[[], None],
) -> Stack:
    scheduler.kill()
    scheduler.environment |= {"SCREENTEST_DEVICES": GPU, "SCREENTEST_DRAIN_AFTER_S": str(DRAIN_AFTER_S)}
    scheduler.start()
    start_telemetry()
    start_worker()
    return Stack(depot=depot, scheduler=scheduler, card=card)


def worker_environment(nats_server: RunningServer, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SCREENTEST_NATS_URL": nats_server.url,
        "SCREENTEST_LOG_FORMAT": "json",
        "SCREENTEST_LANE_FILE": str(ROOT / "deploy" / "lanes" / "stub.toml"),
        "SCREENTEST_DEVICE": GPU,
        "SCREENTEST_LOCK_DIR": str(folder / "locks"),
        "SCREENTEST_STATE_DIR": str(folder / "worker"),
        "SCREENTEST_ENV_PYTHON": str(VENVS / "stub" / "bin" / "python"),
        "SCREENTEST_MODELS_DIR": str(folder / "models"),
        "SCREENTEST_CACHE_DIR": str(folder / "cache"),
        "SCREENTEST_STOP_GRACE_S": "0.5",
    }


async def test_xid_drains_the_gpu_and_the_next_job_waits_for_a_person(stack: Stack) -> None:
    await stack.completed(await stack.submit())
    stack.card.raise_xid(31)  # an application's own fault is nobody else's
    await stack.completed(await stack.submit())
    stack.card.raise_xid(79)
    device = await stack.drained()
    assert device.drained_reason == "XID 79: GPU has fallen off the bus"
    sweep_id = await stack.submit()
    job = await stack.waiting(sweep_id, "GPU drained: XID 79: GPU has fallen off the bus")
    assert job.state is JobState.QUEUED and job.attempts == ()

    async def is_retired() -> bool | None:
        return None if (await stack.device()).warm_lane_id else True

    await eventually(is_retired, "the end of the warm runner")
    await stack.undrain()
    await stack.completed(sweep_id)
    assert not (await stack.device()).drained  # telemetry still knows of it, and somebody has looked


async def test_attempt_on_a_lost_gpu_ends_as_gpu_fault_and_runs_again_when_a_person_has_looked(stack: Stack) -> None:
    sweep_id = await stack.submit()
    await stack.until(sweep_id, lambda job: job.state is JobState.RUNNING, "the start")
    stack.card.lose()
    job = await stack.waiting(sweep_id, "GPU drained: the driver cannot reach the GPU")
    [attempt] = job.attempts
    assert attempt.outcome is not None
    assert (attempt.outcome.failure_class, attempt.outcome.infrastructure) == (FailureClass.GPU_FAULT, True)
    assert "cannot reach the GPU" in attempt.outcome.cause and "undrain" in attempt.outcome.fix
    await stack.undrain()  # too early: it is still away
    assert "GPU is lost" in (await stack.drained()).drained_reason
    stack.card.come_back()
    await stack.proven()
    await stack.undrain()
    job = await stack.completed(sweep_id)
    assert [attempt.attempt for attempt in job.attempts] == [1, 2]


async def test_runner_that_dies_of_the_fault_before_anybody_told_is_not_to_blame(stack: Stack, bus: Bus) -> None:
    sweep_id = await stack.submit()
    await stack.until(sweep_id, lambda job: job.state is JobState.RUNNING, "the start")
    runner = await started_runner(bus, sweep_id)
    stack.card.raise_xid(79)
    os.kill(runner.pid, signal.SIGKILL)
    job = await stack.waiting(sweep_id, "GPU drained: XID 79")
    [attempt] = job.attempts
    assert attempt.outcome is not None
    assert (attempt.outcome.failure_class, attempt.outcome.infrastructure) == (FailureClass.GPU_FAULT, True)
    assert attempt.outcome.cause.startswith("XID 79: GPU has fallen off the bus")


async def test_runner_that_dies_of_its_own_error_is_to_blame(stack: Stack, bus: Bus) -> None:
    sweep_id = await stack.submit()
    await stack.until(sweep_id, lambda job: job.state is JobState.RUNNING, "the start")
    runner = await started_runner(bus, sweep_id)
    stack.card.raise_xid(31)
    os.kill(runner.pid, signal.SIGKILL)
    job = await eventually(lambda: stack.ended(sweep_id), "the end")
    assert (job.state, job.failure_class) == (JobState.FAILED, FailureClass.CRASHED)
    assert not (await stack.device()).drained


async def started_runner(bus: Bus, sweep_id: str) -> Process:
    async for stored in bus.read(subjects.EVENTS_STREAM, [subjects.sweep_job_events(sweep_id)]):
        body = wire.decode(stored.payload, JobEvent).body
        if isinstance(body, Started):
            return body.runner
    raise AssertionError("it has not started")


async def test_stranger_on_the_gpu_drains_it_by_name_after_a_while(
    stack: Stack, stranger: subprocess.Popen[bytes]
) -> None:
    await stack.completed(await stack.submit())
    stack.card.run(stranger.pid, GIB)
    sweep_id = await stack.submit()
    job = await stack.waiting(sweep_id, "GPU drained: ")
    assert f"pid {stranger.pid}" in job.waits_for and "a-stranger" in job.waits_for
    assert re.search(r"not clean for ([2-9]|\d\d) s", job.waits_for)  # a busy machine asks later
    await asyncio.sleep(1)
    assert (await stack.job(sweep_id)).attempts == ()
    stack.card.end(stranger.pid)
    await stack.undrain()
    await stack.completed(sweep_id)


async def test_report_shows_no_number_of_a_stub(stack: Stack, nats_server: RunningServer, tmp_path: Path) -> None:
    reporter = Reporter(nats_server.url, stack.depot, tmp_path)
    try:
        sweep_id = await stack.submit()
        await stack.completed(sweep_id)
        document = await wait_report(stack.depot.store(), is_final, sweep_id)
    finally:
        reporter.stop()
    [row] = document["rows"]
    assert row["status"] == "completed"
    assert row["gpu_energy_wh"] is None
    assert "stub" in document["vitals"]["text"]
    text = str(document)
    assert "412.5" not in text and "96%" not in text and "61C" not in text
