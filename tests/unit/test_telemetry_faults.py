"""What telemetry makes of the troubles that the driver reports, however it reports them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from screentest.records import DeviceFault
from screentest_telemetry import faults
from screentest_telemetry.faults import Faults
from screentest_telemetry.nvml import DriverThread, Trouble

FATAL = Trouble(index=0, uuid="GPU-aaaa", xid=95, cause="XID 95: memory", needs_person=True, ends_attempts=True)
GRAVE = replace(FATAL, xid=171, cause="XID 171: DRAM", ends_attempts=False)


class SlowDriver:
    """Tells what has happened once, as NVML does, and takes ``answers_in_s`` for it."""

    def __init__(self, *happened: Trouble, answers_in_s: float = 0.0) -> None:
        self.happened = list(happened)
        self.answers_in_s = answers_in_s

    def troubles(self) -> tuple[Trouble, ...]:
        found = tuple(self.happened)
        self.happened.clear()
        time.sleep(self.answers_in_s)
        return found


async def tell_nobody(_fault: DeviceFault) -> None:
    """The scheduler of these tests."""


def watching(driver: SlowDriver) -> Faults:
    return Faults(driver, DriverThread(), "local", {0: "gpu-0"}, tell_nobody)  # type: ignore[arg-type]


async def test_fault_that_a_slow_driver_tells_too_late_is_found_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU that falls off the bus makes the driver slow, and its events are told only once."""
    monkeypatch.setattr(faults, "DRIVER_TIMEOUT_S", 0.05)
    watch = watching(driver := SlowDriver(FATAL, answers_in_s=0.3))
    await watch.look()
    assert watch.newest("gpu-0") is None
    await asyncio.sleep(0.5)
    driver.answers_in_s = 0.0
    await watch.look()
    found = watch.newest("gpu-0")
    assert found is not None and found.xid == 95


async def test_lighter_fault_behind_a_fatal_one_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker blames the device for an attempt only when its proof says that the fault ends attempts."""
    watch = watching(driver := SlowDriver(FATAL, GRAVE))
    await watch.look()
    found = watch.newest("gpu-0")
    assert found is not None and found.xid == 95
    monkeypatch.setattr(faults, "ONE_FAILURE_S", 0.0)
    driver.happened = [GRAVE]
    await watch.look()
    found = watch.newest("gpu-0")
    assert found is not None and found.xid == 171
