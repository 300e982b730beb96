"""The telemetry service as a process, asked over a real broker."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from screentest import subjects, wire
from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import CommandReply, DeviceFacts, Process, Proof, ProofKind, ProofRequest, VitalsBatch
from tests.conftest import RunningServer

CPU = "cpu-0"


class Service:
    """screentest-telemetry as an operator starts it."""

    def __init__(self, nats_url: str, folder: Path, **environment: str) -> None:
        self._environment = {
            **os.environ,
            "SCREENTEST_NATS_URL": nats_url,
            "SCREENTEST_LOCK_DIR": str(folder / "locks"),
            "SCREENTEST_STATE_DIR": str(folder / "state"),
            **environment,
        }
        self.start()

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("screentest-telemetry"))]
        self.process = subprocess.Popen(command, env=self._environment)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=10)


@pytest.fixture
def service(nats_server: RunningServer, tmp_path: Path) -> Iterator[Service]:
    running = Service(nats_server.url, tmp_path, SCREENTEST_VITALS_HZ="4")
    yield running
    if running.process.poll() is None:
        running.stop()


async def ask(bus: Bus, subject: str, payload: bytes = b"") -> bytes:
    """Asks until the service is up."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return await bus.request(subject, payload, timeout_s=2)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def prove(bus: Bus, kind: ProofKind) -> Proof:
    return wire.decode(await ask(bus, subjects.proof("local", CPU), wire.encode(ProofRequest(kind=kind))), Proof)


async def newest_vitals(bus: Bus, after: int, count: int) -> list[VitalsBatch]:
    found: list[VitalsBatch] = []
    async with asyncio.timeout(20):
        async for stored in bus.read(subjects.VITALS_STREAM, ["vitals.>"], start_sequence=after + 1, follow=True):
            found.append(wire.decode(stored.payload, VitalsBatch))
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


async def test_facts_registration_and_proof_are_answered(bus: Bus, service: Service) -> None:
    facts = wire.decode(await ask(bus, subjects.device_facts("local", CPU)), DeviceFacts)
    assert (facts.lock_name, facts.gpu_uuid) == ("cpu-0.lock", None)
    assert (await prove(bus, ProofKind.HANDOVER)).clean
    me = clock.process_of(os.getpid())
    assert me is not None
    reply = wire.decode(await ask(bus, subjects.register_runner("local", CPU), wire.encode(me)), CommandReply)
    assert reply.done
    assert service.stop() == 0
    service.start()
    proof = await prove(bus, ProofKind.HANDOVER)
    assert not proof.clean and [p.pid for p in proof.processes] == [me.pid]  # remembered over the restart
    gone = Process(pid=me.pid, start_ticks=me.start_ticks + 1)
    reply = wire.decode(await ask(bus, subjects.register_runner("local", CPU), wire.encode(gone)), CommandReply)
    assert not reply.done


async def test_proof_takes_milliseconds(bus: Bus, service: Service) -> None:
    await prove(bus, ProofKind.HANDOVER)
    started = time.monotonic()
    for _ in range(10):
        await prove(bus, ProofKind.HANDOVER)
    assert (time.monotonic() - started) / 10 < 0.1


async def test_host_without_gpu_publishes_what_it_has_and_says_so(bus: Bus, service: Service) -> None:
    batches = await newest_vitals(bus, 0, 3)
    for batch in batches:
        assert (batch.source, batch.gpu_samples, batch.rate_hz) == ("host", (), 4.0)
        assert batch.nvml_error and batch.stamp.boot_id == clock.boot_id()
    assert all(len(batch.host_samples) in {3, 4, 5} for batch in batches)
    times = [sample.boottime_ns for batch in batches for sample in batch.host_samples]
    assert times == sorted(times)
    assert all(0 <= (sample.cpu_percent or 0) <= 100 for sample in batches[1].host_samples)


async def test_broker_restart_leaves_no_hole_in_the_vitals(
    bus: Bus, service: Service, nats_server: RunningServer
) -> None:
    await newest_vitals(bus, 0, 1)
    nats_server.kill()
    await asyncio.sleep(2.5)
    nats_server.start()
    async with asyncio.timeout(20):
        await bus.reconnected().wait()
    state = await bus.stream_state(subjects.VITALS_STREAM)
    await newest_vitals(bus, state.last_sequence, 2)
    batches = await newest_vitals(bus, 0, (await bus.stream_state(subjects.VITALS_STREAM)).last_sequence)
    times = [sample.boottime_ns for batch in batches for sample in batch.host_samples]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 1.5e9


async def test_idle_service_is_small(bus: Bus, service: Service) -> None:
    await newest_vitals(bus, 0, 2)
    assert psutil.Process(service.process.pid).memory_info().rss < 80 * 2**20
