"""Vitals: samples of the GPUs and of the host, collected into one batch a second."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import psutil
import structlog

from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.records import GpuSample, HostSample, Stamp, VitalsBatch
from screentest_telemetry.nvml import DriverThread, Nvml, Reading

log = structlog.get_logger()

BATCH_S = 1.0
# A tick must not wait longer than this for a driver: the host's samples go on without it.
DRIVER_TIMEOUT_S = 0.9
# Kept while the broker is away; older ones go first. Ten minutes of one batch a second.
MAX_UNSENT = 600


def read_host() -> HostSample:
    """CPU percent is over the time since the last call, all cores together, 0 to 100."""
    memory = psutil.virtual_memory()
    return HostSample(
        boottime_ns=clock.boottime_ns(),
        cpu_percent=psutil.cpu_percent(interval=None),
        memory_used_bytes=memory.used,
        memory_total_bytes=memory.total,
        load_1m=psutil.getloadavg()[0],
    )


class GpuReader:
    """One reading per tick, or the reason why there is none."""

    def __init__(self, nvml: Nvml, driver: DriverThread) -> None:
        self._nvml = nvml
        self._driver = driver

    async def read(self) -> Reading:
        try:
            return await self._driver.call(lambda: self._nvml.read(clock.boottime_ns), timeout_s=DRIVER_TIMEOUT_S)
        except Unavailable as error:
            return Reading(driver_version=self._nvml.driver_version(), gpus=(), samples=(), error=str(error))


def batch(
    host: str, rate_hz: float, readings: list[Reading], host_samples: list[HostSample], stamp: Stamp
) -> VitalsBatch:
    """The samples of one second. Its description of the machine is that of the newest reading."""
    newest = readings[-1]
    gpu_samples: tuple[GpuSample, ...] = tuple(sample for reading in readings for sample in reading.samples)
    return VitalsBatch(
        host=host,
        stamp=stamp,
        source="nvml" if newest.gpus else "host",
        nvml_error=newest.error,
        driver_version=newest.driver_version,
        driver_is_stub=newest.driver_is_stub,
        gpus=newest.gpus,
        gpu_samples=gpu_samples,
        host_samples=tuple(host_samples),
        rate_hz=rate_hz,
    )


async def sample_forever(
    host: str,
    rate_hz: float,
    read_gpus: Callable[[], Awaitable[Reading]],
    send: Callable[[VitalsBatch], Awaitable[None]],
) -> None:
    """Samples at ``rate_hz`` and sends one batch a second, until cancelled."""
    psutil.cpu_percent(interval=None)  # the first answer of psutil is a meaningless 0.0
    loop = asyncio.get_running_loop()
    readings: list[Reading] = []
    host_samples: list[HostSample] = []
    tick = started = loop.time()
    while True:
        tick = max(tick + 1 / rate_hz, loop.time())  # a late tick is not made up for
        await asyncio.sleep(tick - loop.time())
        host_samples.append(read_host())
        readings.append(await read_gpus())
        if loop.time() - started >= BATCH_S - 0.5 / rate_hz:
            await send(batch(host, rate_hz, readings, host_samples, clock.stamp()))
            readings, host_samples, started = [], [], loop.time()


class Outbox:
    """Sends batches in order and keeps them while the broker is away, so that a restart leaves no hole."""

    def __init__(self, publish: Callable[[bytes], Awaitable[None]], is_connected: Callable[[], bool]) -> None:
        self._publish = publish
        self._is_connected = is_connected
        self._unsent: deque[bytes] = deque(maxlen=MAX_UNSENT)

    async def send(self, payload: bytes) -> None:
        if len(self._unsent) == MAX_UNSENT:
            log.warning("vitals_dropped", kept=MAX_UNSENT)
        self._unsent.append(payload)
        while self._unsent and self._is_connected():
            try:
                await self._publish(self._unsent[0])
            except Unavailable as error:
                log.warning("vitals_kept", batches=len(self._unsent), error=str(error))
                return
            self._unsent.popleft()
