"""One configured device: its facts, its registered runners, and its proofs. Never inferred from what NVML shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import psutil
import structlog

from screentest.errors import BadRequest, Unavailable
from screentest.kit import clock
from screentest.records import CommandReply, DeviceFacts, DeviceFault, GpuInfo, Process, Proof, ProofKind, ProofRequest
from screentest_telemetry import processes, proofs
from screentest_telemetry.faults import Faults
from screentest_telemetry.nvml import DeviceProcess, DriverThread, Nvml
from screentest_telemetry.registry import Registry

log = structlog.get_logger()

# An asker waits a few seconds; a driver that needs longer than this is no proof of anything.
DRIVER_TIMEOUT_S = 2.0
_DEVICE = re.compile(r"(cpu|gpu)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceName:
    """``gpu-0`` is NVML index 0."""

    kind: str
    index: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.index}"


def parse_devices(text: str) -> tuple[DeviceName, ...]:
    """``gpu-0,cpu-0``; BadRequest for any other form."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    matches = [(name, _DEVICE.fullmatch(name)) for name in names]
    wrong = [name for name, match in matches if match is None]
    if wrong or not names or len(set(names)) < len(names):
        raise BadRequest(
            f"SCREENTEST_DEVICES={text!r} is not legal: name each device once, like 'cpu-0' or 'gpu-0,gpu-1'"
        )
    return tuple(DeviceName(kind=match[1], index=int(match[2])) for _, match in matches if match)


class Device(Protocol):
    """What the service answers for."""

    name: DeviceName

    async def facts(self) -> DeviceFacts: ...
    async def register(self, runner: Process) -> CommandReply: ...
    async def prove(self, request: ProofRequest) -> Proof: ...


class CpuDevice:
    """The slot of a machine without GPU. Its proof is the lock, the registered runners and what they left behind."""

    def __init__(self, name: DeviceName, host: str, lock_dir: Path, registry: Registry) -> None:
        self.name = name
        self._host = host
        self._registry = registry
        self._lock = lock_dir / f"{name}.lock"
        processes.create_lock_file(self._lock)
        self._locks = processes.LockReader(lock_dir)

    async def facts(self) -> DeviceFacts:
        memory = psutil.virtual_memory()
        return DeviceFacts(
            host=self._host,
            device=str(self.name),
            lock_name=self._lock.name,
            memory_total_bytes=memory.total,
            memory_free_bytes=memory.available,
            memory_kind="unified",
        )

    async def register(self, runner: Process) -> CommandReply:
        return register(self._registry, self.name, runner)

    async def prove(self, request: ProofRequest) -> Proof:
        runners = alive_runners(self._registry, self.name)
        seen = _observe_lock(self._locks, self._lock, runners)
        if request.kind is ProofKind.HANDOVER:  # without a driver's list of processes
            seen = replace(seen, processes=_merge(processes.strays(self._lock), runners))
        return prove(_located(request), seen, method="proc")


class GpuDevice:
    """One GPU. Processes that were there before us, or that are named as tenants, are foreign."""

    def __init__(
        self,
        name: DeviceName,
        host: str,
        lock_dir: Path,
        registry: Registry,
        *,
        nvml: Nvml,
        driver: DriverThread,
        faults: Faults,
        tenants: tuple[str, ...],
        list_is_complete: bool,
        own_namespace_is_enough: bool,
    ) -> None:
        self.name = name
        self._host = host
        self._lock_dir = lock_dir
        self._registry = registry
        self._nvml = nvml
        self._driver = driver
        self._faults = faults
        self._tenants = tenants
        self._list_is_complete = list_is_complete
        self._own_namespace_is_enough = own_namespace_is_enough
        self._locks = processes.LockReader(lock_dir)

    async def facts(self) -> DeviceFacts:
        """Unavailable (so: no answer) when this GPU was never seen in this boot: without UUID it has no lock."""
        index = self.name.index
        gpu = await self._gpu()
        lock = await self._lock_path()
        free = await self._driver.call(lambda: self._nvml.memory_free_bytes(index), timeout_s=DRIVER_TIMEOUT_S)
        on_device = await self._processes(lock)
        return DeviceFacts(
            host=self._host,
            device=str(self.name),
            lock_name=lock.name,
            gpu_uuid=gpu.uuid,
            gpu_name=gpu.name,
            driver_version=self._nvml.driver_version(),
            memory_total_bytes=gpu.memory_total_bytes,
            memory_free_bytes=free,
            memory_kind=gpu.memory_kind,
            foreign=tuple(process for process in on_device if process.foreign),
        )

    async def register(self, runner: Process) -> CommandReply:
        try:
            # Look before the first runner opens the device: who is there now was there before us.
            await self._processes(await self._lock_path())
        except Unavailable as error:
            return CommandReply(done=False, detail=str(error))
        return register(self._registry, self.name, runner)

    async def prove(self, request: ProofRequest) -> Proof:
        runners = alive_runners(self._registry, self.name)
        method = "nvml+proc" if self._list_is_complete else "proc"
        await self._faults.look()
        fault = self._faults.newest(str(self.name))
        try:
            lock = await self._lock_path()
            seen = _observe_lock(self._locks, lock, runners)
            on_device = await self._processes(lock)
        except Unavailable as error:
            unseen = proofs.Observation(
                lock_held=None, lock_holders=(), runners=runners, processes=runners, problem=str(error)
            )
            return prove(request, unseen, method=method, fault=fault)
        seen = replace(seen, processes=_merge(on_device, runners), problem=seen.problem or self._blindness())
        return prove(_located(request), seen, method=method, fault=fault)

    def _blindness(self) -> str:
        if self._list_is_complete or self._own_namespace_is_enough:
            return ""
        return (
            "telemetry is not in the host's PID namespace, where NVML may hide processes: start it with `pid: host`, "
            "or set SCREENTEST_WORKERS_SHARE_PID_NAMESPACE=true if every worker runs in its namespace"
        )

    async def _gpu(self) -> GpuInfo:
        """Unavailable when another card has our index: NVML counts anew without one that was lost."""
        index = self.name.index
        gpu = await self._driver.call(lambda: self._nvml.gpu(index), timeout_s=DRIVER_TIMEOUT_S)
        remembered = self._registry.device(str(self.name)).gpu_uuid
        if remembered not in {None, gpu.uuid}:
            raise Unavailable(
                f"{self.name} was {remembered} in this boot and NVML now shows {gpu.uuid} there; a GPU may be lost "
                "(`nvidia-smi -L`). If it was changed on purpose, delete SCREENTEST_STATE_DIR and restart telemetry"
            )
        self._registry.set_gpu(str(self.name), gpu.uuid)
        return gpu

    async def _lock_path(self) -> Path:
        """The remembered UUID will do: the lock can be read while the driver is away."""
        remembered = self._registry.device(str(self.name)).gpu_uuid or (await self._gpu()).uuid
        path = self._lock_dir / f"{remembered}.lock"
        processes.create_lock_file(path)
        return path

    async def _processes(self, lock: Path) -> tuple[Process, ...]:
        """On the device now, by NVML, each marked foreign or not."""
        await self._gpu()
        index = self.name.index
        listed = await self._driver.call(lambda: self._nvml.processes(index), timeout_s=DRIVER_TIMEOUT_S)
        found = tuple(_process(entry) for entry in listed)
        foreign = self._foreign(found, lock)
        return tuple(
            replace(
                process, foreign=any(processes.is_same(process, other) for other in foreign) or self._is_tenant(process)
            )
            for process in found
        )

    def _foreign(self, found: tuple[Process, ...], lock: Path) -> tuple[Process, ...]:
        """Who was there at the first look. If a runner of ours may be among them already, nobody was."""
        memory = self._registry.device(str(self.name))
        if memory.foreign is None:
            ours_may_be_there = bool(memory.runners) or self._locks.state(lock).held
            self._registry.set_foreign(str(self.name), () if ours_may_be_there else found)
            log.info("foreign_processes_noted", device=str(self.name), count=0 if ours_may_be_there else len(found))
        return self._registry.device(str(self.name)).foreign or ()

    def _is_tenant(self, process: Process) -> bool:
        return any(tenant in process.command for tenant in self._tenants)


def register(registry: Registry, device: DeviceName, runner: Process) -> CommandReply:
    """Remembers a runner before it opens the device. Refused when it cannot be seen: it could not be watched."""
    found = processes.locate(runner)
    if found is None:
        detail = (
            f"runner pid {runner.pid} (start {runner.start_ticks}) is not visible to telemetry; it has ended, or "
            "telemetry must run in the host's PID namespace (`pid: host`)"
        )
        return CommandReply(done=False, detail=detail)
    registry.add_runner(str(device), found)
    log.info("runner_registered", device=str(device), pid=found.pid)
    return CommandReply(done=True)


def alive_runners(registry: Registry, device: DeviceName) -> tuple[Process, ...]:
    runners = registry.device(str(device)).runners
    alive = tuple(runner for runner in runners if processes.is_alive(runner))
    registry.keep_runners(str(device), alive)
    return alive


def prove(request: ProofRequest, seen: proofs.Observation, *, method: str, fault: DeviceFault | None = None) -> Proof:
    clean, reason = proofs.verdict(request, seen)
    return Proof(
        kind=request.kind,
        clean=clean,
        reason=reason,
        lock_held=seen.lock_held is not False,
        lock_holders=seen.lock_holders,
        processes=seen.processes,
        stamp=clock.stamp(),
        method=method,
        fault=fault,
    )


def _observe_lock(locks: processes.LockReader, lock: Path, runners: tuple[Process, ...]) -> proofs.Observation:
    try:
        state = locks.state(lock)
    except Unavailable as error:
        return proofs.Observation(
            lock_held=None, lock_holders=(), runners=runners, processes=runners, problem=str(error)
        )
    return proofs.Observation(lock_held=state.held, lock_holders=state.holders, runners=runners, processes=runners)


def _located(request: ProofRequest) -> ProofRequest:
    """The request with the runner as our namespace numbers it."""
    if request.runner is None:
        return request
    return replace(request, runner=processes.locate(request.runner) or request.runner)


def _process(entry: DeviceProcess) -> Process:
    """``start_ticks`` 0: NVML names a process that we cannot see."""
    seen = clock.process_of(entry.pid)
    if seen is None:
        return Process(pid=entry.pid, start_ticks=0, device_memory_bytes=entry.memory_bytes)
    return replace(seen, device_memory_bytes=entry.memory_bytes)


def _merge(on_device: tuple[Process, ...], runners: tuple[Process, ...]) -> tuple[Process, ...]:
    listed = {(process.pid, process.start_ticks) for process in on_device}
    return (*on_device, *(runner for runner in runners if (runner.pid, runner.start_ticks) not in listed))
