"""The telemetry service: vitals onto the bus, and answers about this host's devices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import Field

from screentest import subjects, wire
from screentest.errors import BadRequest, Unavailable
from screentest.kit import clock, health, lifecycle, logging
from screentest.kit.bus import Bus
from screentest.kit.config import ServiceSettings
from screentest.kit.metrics import Metrics
from screentest.records import CommandReply, DeviceFault, Process, ProofRequest, VitalsBatch
from screentest_telemetry import processes, sampling
from screentest_telemetry.devices import CpuDevice, Device, DeviceName, GpuDevice, parse_devices
from screentest_telemetry.faults import Faults
from screentest_telemetry.metrics import Newest
from screentest_telemetry.nvml import DriverThread, Nvml
from screentest_telemetry.registry import Registry

log = structlog.get_logger()

# The scheduler answers when the event is written: one fsynced append.
WRITTEN_WITHIN_S = 5.0


class Settings(ServiceSettings):
    """``devices``: comma list of ``cpu-N`` and ``gpu-N``. ``tenants``: comma list of words; a process with one of them
    in its command line is foreign on every GPU."""

    devices: str = "cpu-0"
    lock_dir: Path = Path("/var/lock/screentest")
    state_dir: Path = Path(".state/telemetry")
    vitals_hz: float = Field(default=2.0, ge=1, le=10)
    tenants: str = ""
    workers_share_pid_namespace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    nvml: Nvml
    thread: DriverThread


def build_device(name: DeviceName, settings: Settings, registry: Registry, driver: Driver, faults: Faults) -> Device:
    if name.kind == "cpu":
        return CpuDevice(name, settings.host, settings.lock_dir, registry)
    return GpuDevice(
        name,
        settings.host,
        settings.lock_dir,
        registry,
        nvml=driver.nvml,
        driver=driver.thread,
        faults=faults,
        tenants=tuple(word.strip() for word in settings.tenants.split(",") if word.strip()),
        list_is_complete=processes.sees_every_process(),
        own_namespace_is_enough=settings.workers_share_pid_namespace,
    )


async def answer_for(bus: Bus, host: str, device: Device, newest: Newest) -> None:
    """Subscribes the three subjects of one device. Facts that cannot be had are not answered: the asker asks again."""

    async def facts(_subject: str, _payload: bytes) -> bytes:
        return wire.encode(await device.facts())

    async def register(_subject: str, payload: bytes) -> bytes:
        return wire.encode(await device.register(wire.decode(payload, Process)))

    async def prove(_subject: str, payload: bytes) -> bytes:
        proof = await device.prove(wire.decode(payload, ProofRequest))
        newest.take_proof(str(device.name), proof)
        log.info("proof_given", device=str(device.name), kind=proof.kind, clean=proof.clean, reason=proof.reason)
        return wire.encode(proof)

    name = str(device.name)
    await bus.answer(subjects.device_facts(host, name), facts)
    await bus.answer(subjects.register_runner(host, name), register)
    await bus.answer(subjects.proof(host, name), prove)


def fault_teller(bus: Bus) -> Callable[[DeviceFault], Awaitable[None]]:
    async def tell(fault: DeviceFault) -> None:
        subject = subjects.device_fault(fault.host, fault.device)
        reply = wire.decode(await bus.request(subject, wire.encode(fault), timeout_s=WRITTEN_WITHIN_S), CommandReply)
        if not reply.done:
            raise Unavailable(f"the scheduler did not take the fault: {reply.detail}")

    return tell


def vitals_sender(bus: Bus, host: str, newest: Newest) -> Callable[[VitalsBatch], Awaitable[None]]:
    outbox = sampling.Outbox(lambda payload: bus.publish(subjects.vitals(host), payload), lambda: bus.is_connected)

    async def send(batch: VitalsBatch) -> None:
        newest.take_batch(batch)
        await outbox.send(wire.encode(batch))

    return send


async def serve(settings: Settings, stopping: asyncio.Event) -> None:
    names = parse_devices(settings.devices)
    _make_directory(settings.lock_dir, "SCREENTEST_LOCK_DIR")
    _make_directory(settings.state_dir, "SCREENTEST_STATE_DIR")
    registry = Registry(settings.state_dir / "devices.json", clock.boot_id())
    driver = Driver(nvml=Nvml(), thread=DriverThread())
    bus = await Bus.connect(
        settings.nats_url, name="telemetry", user=settings.nats_user, password=settings.nats_password()
    )
    gpu_names = {name.index: str(name) for name in names if name.kind == "gpu"}
    faults = Faults(driver.nvml, driver.thread, settings.host, gpu_names, fault_teller(bus))
    metrics, newest = Metrics(), Newest(settings.host)
    metrics.at_scrape(newest.read)
    try:
        for name in names:
            await answer_for(bus, settings.host, build_device(name, settings, registry, driver, faults), newest)
        await bus.flush()
        log.info("telemetry_ready", host=settings.host, devices=settings.devices, rate_hz=settings.vitals_hz)
        gpus = sampling.GpuReader(driver.nvml, driver.thread)
        send = vitals_sender(bus, settings.host, newest)
        with metrics.served(settings.metrics_address):
            await lifecycle.run_until(
                stopping,
                sampling.sample_forever(settings.host, settings.vitals_hz, gpus.read, send),
                faults.watch(),
                health.show(settings.health_file, lambda: bus.is_connected),
            )
    finally:
        driver.thread.close()
        await bus.close()


def _make_directory(path: Path, variable: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"directory {path} cannot be made ({error.strerror}); set {variable}") from error


def main() -> None:
    async def service(stopping: asyncio.Event) -> None:
        settings = Settings()
        logging.configure("telemetry", log_format=settings.log_format, level=settings.log_level)
        await serve(settings, stopping)

    lifecycle.run(service)
