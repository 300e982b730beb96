"""What the NVIDIA driver says: the only importer of pynvml.

Every field is read on its own: one that the driver refuses is None and named in ``unavailable``, and never costs the
sample. All calls block; ``DriverThread`` keeps them on one thread, because a hung driver must not hang the service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml
import structlog

from screentest.errors import Unavailable
from screentest.records import GpuInfo, GpuSample
from screentest_telemetry import xids

log = structlog.get_logger()

T = TypeVar("T")

# A driver that cannot start is asked again, but not every tick: loading a missing library costs a path search.
RETRY_AFTER_S = 5.0
# Per boot: a field that this driver and card do not have will not appear later.
NEVER = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound)
# These leave the handle useless: shut down and start again (NVIDIA/nvidia-container-toolkit#48, #251).
POISONED = (
    pynvml.NVMLError_GpuIsLost,
    pynvml.NVMLError_Uninitialized,
    pynvml.NVMLError_Unknown,
    pynvml.NVMLError_ResetRequired,
    pynvml.NVMLError_DriverNotLoaded,
)
# The first two say that this GPU needs a person; the others may be a driver update or a detached container.
LOST = {
    pynvml.NVMLError_GpuIsLost: "the driver cannot reach the GPU any more",
    pynvml.NVMLError_ResetRequired: "the driver wants the GPU reset",
}
EVENTS = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
# A storm of errors is read on at the next look.
EVENTS_AT_ONCE = 100
# The energy counter took 4 ms of CPU a call on an H200 (driver 580), all other fields together 0.02 ms. It is read as
# often as this share of a core allows, and at least once a second; a sample between says "energy=not_read".
COSTLY = frozenset({"energy"})
COSTLY_CORE_SHARE = 0.004
COSTLY_AT_LEAST_EVERY_S = 1.0
# Source: NVML nvmlClocksEventReasons. Bits without a name here are shown as hexadecimal.
THROTTLE_REASONS = {
    0x001: "idle",
    0x002: "applications_clocks",
    0x004: "power_cap",
    0x008: "hardware_slowdown",
    0x010: "sync_boost",
    0x020: "software_thermal",
    0x040: "hardware_thermal",
    0x080: "power_brake",
    0x100: "display_clock",
}


class DriverError(Unavailable):
    """NVML gives no answer; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProcess:
    """``memory_bytes`` None = the driver does not say (another namespace, or a card without that counter)."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What the driver reports of one GPU. ``xid`` None = it was lost, or a memory error came without a number."""

    index: int
    uuid: str | None
    xid: int | None
    cause: str
    needs_person: bool
    ends_attempts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All GPUs at one moment; ``error`` is why there is none, or why the list is not complete."""

    driver_version: str | None
    gpus: tuple[GpuInfo, ...]
    samples: tuple[GpuSample, ...]
    error: str | None

    @property
    def driver_is_stub(self) -> bool:
        """A stand-in library names itself: its numbers are no measurements."""
        return "STUB" in (self.driver_version or "")


Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Device:
    handle: Any
    info: GpuInfo


class Nvml:
    """Blocking, and for one thread only. ``library`` is pynvml or what a test puts in its place."""

    def __init__(self, library: Any = pynvml, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._nvml = library
        self._monotonic = monotonic
        self._devices: tuple[_Device, ...] | None = None
        self._driver_version: str | None = None
        self._error: str | None = None
        self._retry_at = 0.0
        self._missing: set[tuple[str, str]] = set()
        self._due_at: dict[tuple[str, str], float] = {}
        self._events: Any = None
        self._lost: set[int] = set()
        self._troubles: list[Trouble] = []

    def read(self, now_ns: Callable[[], int]) -> Reading:
        """One sample of every GPU; never raises for what NVML refuses."""
        try:
            devices = self._open()
        except DriverError as error:
            return Reading(driver_version=self._driver_version, gpus=(), samples=(), error=str(error))
        samples = tuple(self._sample(device, now_ns()) for device in devices)
        if self._devices is devices:  # nothing made us forget them meanwhile: who was lost is back
            self._lost -= {device.info.index for device in devices}
        gpus = tuple(device.info for device in devices)
        return Reading(driver_version=self._driver_version, gpus=gpus, samples=samples, error=self._error)

    def gpu(self, index: int) -> GpuInfo:
        """DriverError when there is no such GPU or no driver."""
        return self._device(index).info

    def driver_version(self) -> str | None:
        return self._driver_version

    def memory_free_bytes(self, index: int) -> int | None:
        """None where the driver reports no memory (unified memory)."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._device(index).handle)
        except pynvml.NVMLError:
            return None
        return int(memory.free) if memory.total else None

    def processes(self, index: int) -> tuple[DeviceProcess, ...]:
        """Compute and graphics processes. DriverError when the compute list cannot be read: unknown is not empty."""
        device = self._device(index)
        try:
            found = list(self._nvml.nvmlDeviceGetComputeRunningProcesses(device.handle))
        except pynvml.NVMLError as error:
            self._forget_if_poisoned(error, device)
            raise DriverError(f"NVML refuses the process list of GPU {index}: {error}") from error
        try:
            found += self._nvml.nvmlDeviceGetGraphicsRunningProcesses(device.handle)
        except NEVER:
            pass  # a compute-only card or driver has no such list
        except pynvml.NVMLError as error:
            raise DriverError(f"NVML refuses the graphics process list of GPU {index}: {error}") from error
        memory = {process.pid: process.usedGpuMemory for process in found}
        return tuple(DeviceProcess(pid=pid, memory_bytes=used) for pid, used in sorted(memory.items()))

    def troubles(self) -> tuple[Trouble, ...]:
        """What has happened to the GPUs since the last call, oldest first; never raises for what NVML refuses.

        The events are polled, not waited for on a thread of their own: nvmlShutdown below a waiting call is undefined.
        """
        try:
            devices = self._open()
        except DriverError:
            pass
        else:
            self._take_events(devices)
        found = tuple(self._troubles)
        self._troubles.clear()
        return found

    def close(self) -> None:
        if self._devices is not None:
            self._devices = None
            try:
                if self._events is not None:
                    self._nvml.nvmlEventSetFree(self._events)
                self._nvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                log.warning("nvml_shutdown_failed", error=str(error))
            self._events = None

    def _device(self, index: int) -> _Device:
        found = next((device for device in self._open() if device.info.index == index), None)
        if found is None:
            raise DriverError(f"NVML shows no usable GPU {index}" + (f": {self._error}" if self._error else ""))
        return found

    def _open(self) -> tuple[_Device, ...]:
        incomplete = self._devices is not None and self._error is not None
        if incomplete and self._monotonic() >= self._retry_at:
            self.close()
        if self._devices is not None:
            return self._devices
        if self._error is not None and self._monotonic() < self._retry_at:
            raise DriverError(self._error)
        self._error = None
        try:
            self._nvml.nvmlInit()
            self._driver_version = _text(self._nvml.nvmlSystemGetDriverVersion())
            count = int(self._nvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            self._error = f"NVML does not start: {error}"
            self._retry_at = self._monotonic() + RETRY_AFTER_S
            raise DriverError(self._error) from error
        opened = [self._open_device(index) for index in range(count)]
        self._devices = tuple(device for device in opened if device is not None)
        self._events = self._listening(self._devices)
        log.info("nvml_opened", driver=self._driver_version, gpus=len(self._devices))
        return self._devices

    def _open_device(self, index: int) -> _Device | None:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError as error:
            self._error = f"GPU {index}: {error}"
            self._retry_at = self._monotonic() + RETRY_AFTER_S
            self._note_if_lost(error, index, None)
            log.error("gpu_not_opened", index=index, error=str(error))
            return None
        total, memory_kind = self._memory_kind(handle)
        return _Device(
            handle=handle,
            info=GpuInfo(
                uuid=uuid,
                index=index,
                name=self._optional(lambda: _text(self._nvml.nvmlDeviceGetName(handle))),
                memory_total_bytes=total,
                memory_kind=memory_kind,
                power_limit_w=self._optional(lambda: self._nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            ),
        )

    def _memory_kind(self, handle: Any) -> tuple[int | None, str]:
        """(total bytes, kind). GB10 refuses the call or answers total 0 (leptonai/gpud#1170, nvtop#411): unified."""
        try:
            total = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
        except NEVER:
            return None, "unified"
        except pynvml.NVMLError:
            return None, "unknown"
        return (total, "device") if total else (None, "unified")

    def _optional(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except pynvml.NVMLError:
            return None

    def _sample(self, device: _Device, boottime_ns: int) -> GpuSample:
        uuid = device.info.uuid
        values: Fields = {}
        unavailable: list[str] = []
        for name, read in _READERS.items():
            if (uuid, name) in self._missing:
                unavailable.append(f"{name}=not_supported")
                continue
            if self._monotonic() < self._due_at.get((uuid, name), 0.0):
                unavailable.append(f"{name}=not_read")
                continue
            began_at = self._monotonic()
            try:
                values |= read(self._nvml, device.handle)
            except NEVER:
                self._missing.add((uuid, name))
                unavailable.append(f"{name}=not_supported")
            except pynvml.NVMLError as error:
                unavailable.append(f"{name}=error:{type(error).__name__.removeprefix('NVMLError_')}")
                self._forget_if_poisoned(error, device)
            if name in COSTLY:
                cost_s = self._monotonic() - began_at
                self._due_at[uuid, name] = began_at + min(cost_s / COSTLY_CORE_SHARE, COSTLY_AT_LEAST_EVERY_S)
        return GpuSample(boottime_ns=boottime_ns, gpu_uuid=uuid, unavailable=tuple(unavailable), **values)

    def _listening(self, devices: tuple[_Device, ...]) -> Any:
        """An event set with every GPU that has events; None where the driver has none (then only a loss is seen)."""
        try:
            events = self._nvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            log.warning("xids_not_heard", error=str(error))
            return None
        for device in devices:
            try:
                known = int(self._nvml.nvmlDeviceGetSupportedEventTypes(device.handle))
                self._nvml.nvmlDeviceRegisterEvents(device.handle, EVENTS & known, events)
            except pynvml.NVMLError as error:  # a desktop card beside the one that computes: that one is heard
                log.warning("xids_not_heard", gpu=device.info.uuid, error=str(error))
        return events

    def _take_events(self, devices: tuple[_Device, ...]) -> None:
        for _ in range(EVENTS_AT_ONCE if self._events is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait(self._events, 0)
            except pynvml.NVMLError_Timeout:
                return
            except pynvml.NVMLError as error:  # a lost GPU among others: its samples tell which one it is
                log.warning("events_not_read", error=str(error))
                return
            self._troubles.extend(_trouble(device, event) for device in self._concerned(devices, event.device))

    def _concerned(self, devices: tuple[_Device, ...], handle: Any) -> tuple[_Device, ...]:
        """The GPU of an event; all of them when the driver does not say which: unknown is not harmless."""
        try:
            uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError:
            return devices
        return tuple(device for device in devices if device.info.uuid == uuid)

    def _note_if_lost(self, error: pynvml.NVMLError, index: int, uuid: str | None) -> None:
        """Once per loss: until the GPU has answered again it is the same one."""
        text = LOST.get(type(error))
        if text is not None and index not in self._lost:
            self._lost.add(index)
            cause = f"{text} (NVML: {error})"
            self._troubles.append(
                Trouble(index=index, uuid=uuid, xid=None, cause=cause, needs_person=True, ends_attempts=True)
            )

    def _forget_if_poisoned(self, error: pynvml.NVMLError, device: _Device) -> None:
        self._note_if_lost(error, device.info.index, device.info.uuid)
        if isinstance(error, POISONED) and self._devices is not None:
            log.warning("nvml_restarts", error=str(error))
            self.close()
            self._error = f"NVML was lost: {error}"
            self._retry_at = self._monotonic() + RETRY_AFTER_S


def _trouble(device: _Device, event: Any) -> Trouble:
    """Source: NVML nvmlEventData_t; ``eventData`` is the XID of an XID event and has no meaning in any other."""
    info = device.info
    if not event.eventType & pynvml.nvmlEventTypeXidCriticalError:
        cause = "double-bit ECC error"
        return Trouble(index=info.index, uuid=info.uuid, xid=None, cause=cause, needs_person=True, ends_attempts=True)
    xid = xids.meaning(int(event.eventData))
    return Trouble(
        index=info.index,
        uuid=info.uuid,
        xid=xid.number,
        cause=str(xid),
        needs_person=xid.needs_person,
        ends_attempts=xid.ends_attempts,
    )


def _utilisation(nvml: Any, handle: Any) -> Fields:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilisation_percent": float(rates.gpu), "memory_utilisation_percent": float(rates.memory)}


def _memory(nvml: Any, handle: Any) -> Fields:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    if not memory.total:
        raise pynvml.NVMLError_NotSupported()
    return {"memory_used_bytes": int(memory.used), "memory_total_bytes": int(memory.total)}


def _temperature(nvml: Any, handle: Any) -> Fields:
    return {"temperature_c": float(nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))}


def _power(nvml: Any, handle: Any) -> Fields:
    """Source: NVML nvmlDeviceGetPowerUsage, milliwatts; a one-second average on most cards since Ampere."""
    return {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000}


def _energy(nvml: Any, handle: Any) -> Fields:
    """Source: NVML nvmlDeviceGetTotalEnergyConsumption, millijoules since the driver was loaded."""
    return {"energy_mj": int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))}


def _sm_clock(nvml: Any, handle: Any) -> Fields:
    return {"sm_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))}


def _memory_clock(nvml: Any, handle: Any) -> Fields:
    return {"memory_clock_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM))}


def _fan(nvml: Any, handle: Any) -> Fields:
    return {"fan_percent": float(nvml.nvmlDeviceGetFanSpeed(handle))}


def _throttle(nvml: Any, handle: Any) -> Fields:
    return {"throttle_reasons": throttle_names(int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))}


_READERS: dict[str, Callable[[Any, Any], Fields]] = {
    "utilisation": _utilisation,
    "memory": _memory,
    "temperature": _temperature,
    "power": _power,
    "energy": _energy,
    "sm_clock": _sm_clock,
    "memory_clock": _memory_clock,
    "fan": _fan,
    "throttle_reasons": _throttle,
}


def throttle_names(mask: int) -> str:
    """``power_cap,hardware_thermal``; "none" when the clocks are free."""
    names = [name for bit, name in THROTTLE_REASONS.items() if mask & bit]
    rest = mask & ~sum(THROTTLE_REASONS)
    return ",".join([*names, *([hex(rest)] if rest else [])]) or "none"


def _text(value: str | bytes) -> str:
    """Older bindings answer bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _noted(late: asyncio.Future[Any]) -> None:
    """Takes the late answer of a hung call, so that asyncio does not complain that nobody did."""
    log.warning("nvml_answered_late", error=None if late.cancelled() else str(late.exception() or ""))


class DriverThread:
    """Runs driver calls on one thread, with a deadline. While a call hangs, all others fail at once."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nvml")
        self._hung: asyncio.Future[Any] | None = None

    async def call(self, function: Callable[[], T], *, timeout_s: float) -> T:
        """Raises DriverError when the driver does not answer within ``timeout_s``."""
        if self._hung is not None and not self._hung.done():
            raise DriverError("an earlier NVML call still hangs; the driver may need a reboot")
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        try:
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the answer.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError as error:
            self._hung = future
            future.add_done_callback(_noted)
            raise DriverError(f"NVML has not answered within {timeout_s:g} s") from error

    def close(self) -> None:
        """Does not wait: a thread inside a hung driver never ends."""
        self._executor.shutdown(wait=False, cancel_futures=True)
