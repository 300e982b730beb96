"""Faults of the GPUs: looked for all the time, kept, and told to the scheduler until it has written them down."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.records import DeviceFault
from screentest_telemetry.nvml import DriverThread, Nvml, Trouble

log = structlog.get_logger()

LOOK_EVERY_S = 0.5
# While the scheduler or the broker is away.
TELL_AGAIN_S = 2.0
# A tick must not wait longer than this for a driver; what it takes longer for is found at the next look.
DRIVER_TIMEOUT_S = 0.9
# A failure brings others along (an uncontained memory error the DRAM error behind it): the gravest one names it.
ONE_FAILURE_S = 60.0


class Faults:
    """``devices``: the configured GPUs by index. What happens to other cards is logged and told to nobody.

    ``tell`` returns when the scheduler has written the fault down; it raises Unavailable otherwise.
    """

    def __init__(
        self,
        nvml: Nvml,
        driver: DriverThread,
        host: str,
        devices: dict[int, str],
        tell: Callable[[DeviceFault], Awaitable[None]],
    ) -> None:
        self._nvml = nvml
        self._driver = driver
        self._host = host
        self._devices = devices
        self._tell = tell
        # Filled by the driver's thread: what a slow driver says after its time was asked of it only once.
        self._found: deque[Trouble] = deque()
        self._newest: dict[str, DeviceFault] = {}
        self._untold: dict[str, DeviceFault] = {}
        self._has_untold = asyncio.Event()

    def newest(self, device: str) -> DeviceFault | None:
        """Of this process's time: what was before has drained the device, or the next look finds it again.

        For a minute a lighter one does not hide what has ended the attempts.
        """
        return self._newest.get(device)

    async def look(self) -> None:
        """Takes what the driver has said by now. A driver that does not answer says nothing here: proofs do."""
        with contextlib.suppress(Unavailable):
            await self._driver.call(self._collect, timeout_s=DRIVER_TIMEOUT_S)
        while self._found:
            self._note(self._found.popleft())

    async def watch(self) -> None:
        """Looks and tells until cancelled."""
        if not self._devices:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_forever())
            group.create_task(self._tell_forever())

    def _collect(self) -> None:
        self._found.extend(self._nvml.troubles())

    def _note(self, trouble: Trouble) -> None:
        device = self._devices.get(trouble.index)
        if not trouble.needs_person:
            log.warning("gpu_error_of_an_application", device=device, gpu=trouble.uuid, cause=trouble.cause)
            return
        log.error("gpu_fault", device=device, gpu=trouble.uuid, cause=trouble.cause)
        if device is not None:
            self._keep(self._fault(device, trouble))

    def _fault(self, device: str, trouble: Trouble) -> DeviceFault:
        return DeviceFault(
            host=self._host,
            device=device,
            gpu_uuid=trouble.uuid,
            xid=trouble.xid,
            cause=trouble.cause,
            ends_attempts=trouble.ends_attempts,
            stamp=clock.stamp(),
        )

    def _keep(self, fault: DeviceFault) -> None:
        """A storm of errors is one message: the first, or the first that ends attempts."""
        newest = self._newest.get(fault.device)
        if newest is None or not _is_hidden(fault, behind=newest):
            self._newest[fault.device] = fault
        untold = self._untold.get(fault.device)
        if untold is None or (fault.ends_attempts and not untold.ends_attempts):
            self._untold[fault.device] = fault
            self._has_untold.set()

    async def _look_forever(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _tell_forever(self) -> None:
        while True:
            await self._has_untold.wait()
            self._has_untold.clear()
            for fault in tuple(self._untold.values()):
                try:
                    await self._tell(fault)
                except Unavailable as error:
                    log.warning("fault_not_told", device=fault.device, error=str(error))
                    self._has_untold.set()
                    await asyncio.sleep(TELL_AGAIN_S)
                else:
                    log.info("fault_told", device=fault.device, cause=fault.cause)
                    if self._untold[fault.device] is fault:  # a graver one may have come meanwhile
                        del self._untold[fault.device]


def _is_hidden(fault: DeviceFault, *, behind: DeviceFault) -> bool:
    if fault.ends_attempts or not behind.ends_attempts:
        return False
    return (fault.stamp.boottime_ns - behind.stamp.boottime_ns) / 1e9 < ONE_FAILURE_S
