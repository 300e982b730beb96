"""NVML, field by field, with a stand-in for the library that raises pynvml's own errors."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from screentest_telemetry import xids
from screentest_telemetry.nvml import DriverError, DriverThread, Nvml, throttle_names

GIB = 2**30


class Card:
    """One GPU of a library stand-in; ``answers`` replaces single calls by a value or an error to raise."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "580.142",
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetUUID": "GPU-aaaa",
            "nvmlDeviceGetName": "Test card",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, used=4 * GIB, free=20 * GIB),
            "nvmlDeviceGetEnforcedPowerLimit": 300_000,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40),
            "nvmlDeviceGetTemperature": 71,
            "nvmlDeviceGetPowerUsage": 93_660,
            "nvmlDeviceGetTotalEnergyConsumption": 1_234_567,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetFanSpeed": 44,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetGraphicsRunningProcesses": [],
            "nvmlEventSetCreate": "events",
            "nvmlEventSetFree": None,
            "nvmlDeviceGetSupportedEventTypes": 0xA,
            "nvmlDeviceRegisterEvents": None,
            "nvmlEventSetWait": pynvml.NVMLError_Timeout(),
        } | answers
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> Any:
            self.calls.append(name)
            answer = self.answers[name]
            if isinstance(answer, Iterator):
                answer = next(answer)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def read(nvml: Nvml) -> Any:
    return nvml.read(lambda: 7)


def test_every_field_has_its_unit() -> None:
    reading = read(Nvml(Card()))
    sample = reading.samples[0]
    assert (sample.utilisation_percent, sample.temperature_c, sample.power_w) == (97.0, 71.0, 93.66)
    assert (sample.energy_mj, sample.memory_used_bytes, sample.fan_percent) == (1_234_567, 4 * GIB, 44.0)
    assert sample.throttle_reasons == "power_cap,software_thermal"
    assert (reading.gpus[0].power_limit_w, reading.gpus[0].memory_kind, reading.error) == (300.0, "device", None)
    assert sample.unavailable == ()


def test_unsupported_fields_are_none_and_named_and_asked_only_once() -> None:
    card = Card(nvmlDeviceGetFanSpeed=pynvml.NVMLError_NotSupported())
    nvml = Nvml(card, monotonic=lambda: 0.0)
    first, second = read(nvml).samples[0], read(nvml).samples[0]
    assert first.fan_percent is None and first.unavailable == second.unavailable == ("fan=not_supported",)
    assert card.calls.count("nvmlDeviceGetFanSpeed") == 1
    assert second.power_w == 93.66


def test_a_passing_error_costs_one_field_once() -> None:
    card = Card(nvmlDeviceGetPowerUsage=pynvml.NVMLError_Timeout())
    nvml = Nvml(card)
    assert read(nvml).samples[0].unavailable == ("power=error:Timeout",)
    card.answers["nvmlDeviceGetPowerUsage"] = 50_000
    assert read(nvml).samples[0].power_w == 50.0


@pytest.mark.parametrize(
    "memory", [pynvml.NVMLError_NotSupported(), SimpleNamespace(total=0, used=0, free=0)], ids=["refused", "zero"]
)
def test_memory_of_a_unified_card_is_unknown_and_never_zero(memory: Any) -> None:
    nvml = Nvml(Card(nvmlDeviceGetMemoryInfo=memory))
    reading = read(nvml)
    assert reading.samples[0].memory_used_bytes is None
    assert reading.samples[0].unavailable == ("memory=not_supported",)
    assert (reading.gpus[0].memory_total_bytes, reading.gpus[0].memory_kind) == (None, "unified")
    assert nvml.memory_free_bytes(0) is None


def test_missing_library_is_said_and_tried_again_later() -> None:
    now = [0.0]
    card = Card(nvmlInit=pynvml.NVMLError_LibraryNotFound())
    nvml = Nvml(card, monotonic=lambda: now[0])
    assert "Library Not Found" in (read(nvml).error or "")
    assert read(nvml).samples == () and card.calls.count("nvmlInit") == 1
    card.answers["nvmlInit"], now[0] = None, 6.0
    assert read(nvml).error is None and len(read(nvml).samples) == 1


def test_a_lost_gpu_restarts_nvml() -> None:
    now = [0.0]
    card = Card(nvmlDeviceGetUtilizationRates=pynvml.NVMLError_GpuIsLost())
    nvml = Nvml(card, monotonic=lambda: now[0])
    assert "utilisation=error:GpuIsLost" in read(nvml).samples[0].unavailable
    assert "was lost" in (read(nvml).error or "")
    card.answers["nvmlDeviceGetUtilizationRates"], now[0] = SimpleNamespace(gpu=1, memory=1), 6.0
    assert read(nvml).samples[0].utilisation_percent == 1.0
    assert card.calls.count("nvmlInit") == 2


def test_a_lost_gpu_is_told_once_per_loss() -> None:
    now = [0.0]
    lost = pynvml.NVMLError_GpuIsLost()
    card = Card(nvmlDeviceGetUtilizationRates=lost)
    nvml = Nvml(card, monotonic=lambda: now[0])

    def told_after(seconds: float) -> list[str]:
        now[0] += seconds
        read(nvml)
        return [trouble.cause for trouble in nvml.troubles()]

    assert told_after(0) == ["the driver cannot reach the GPU any more (NVML: GPU is lost)"]
    card.answers["nvmlDeviceGetUUID"] = lost
    assert told_after(6) == told_after(6) == []  # still away
    card.answers |= {"nvmlDeviceGetUUID": "GPU-aaaa", "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=1, memory=1)}
    assert told_after(6) == []
    card.answers["nvmlDeviceGetUtilizationRates"] = lost
    assert len(told_after(1)) == 1  # lost again


def test_a_gpu_that_is_lost_before_we_start_is_told_too() -> None:
    nvml = Nvml(Card(nvmlDeviceGetHandleByIndex=pynvml.NVMLError_GpuIsLost()))
    [trouble] = nvml.troubles()
    assert (trouble.index, trouble.uuid, trouble.needs_person, trouble.ends_attempts) == (0, None, True, True)


def xid_event(number: int, kind: int = pynvml.nvmlEventTypeXidCriticalError) -> Any:
    return SimpleNamespace(device="handle", eventType=kind, eventData=number)


def test_events_are_taken_in_order_and_only_once() -> None:
    waiting = iter(
        [
            xid_event(31),
            xid_event(79),
            xid_event(0, pynvml.nvmlEventTypeDoubleBitEccError),
            *[pynvml.NVMLError_Timeout()] * 2,
        ]
    )
    nvml = Nvml(Card(nvmlEventSetWait=waiting))
    assert [(trouble.cause, trouble.needs_person) for trouble in nvml.troubles()] == [
        ("XID 31: GPU memory page fault", False),
        ("XID 79: GPU has fallen off the bus", True),
        ("double-bit ECC error", True),
    ]
    assert nvml.troubles() == ()


def test_a_driver_without_events_still_samples() -> None:
    nvml = Nvml(Card(nvmlEventSetCreate=pynvml.NVMLError_FunctionNotFound()))
    assert nvml.troubles() == ()
    assert len(read(nvml).samples) == 1


def test_a_card_without_events_does_not_silence_the_others() -> None:
    card = Card(
        nvmlDeviceGetCount=2,
        nvmlDeviceGetSupportedEventTypes=iter([pynvml.NVMLError_NotSupported(), 0xA]),
    )
    Nvml(card).troubles()
    assert card.calls.count("nvmlDeviceRegisterEvents") == 1


@pytest.mark.parametrize("number", [13, 31, 43, 45, 63, 94, 154])
def test_what_an_application_did_needs_no_person(number: int) -> None:
    assert not xids.meaning(number).needs_person


@pytest.mark.parametrize("number", [48, 79, 95, 119])
def test_what_needs_a_reset_ends_the_attempt(number: int) -> None:
    assert xids.meaning(number).needs_person and xids.meaning(number).ends_attempts


def test_an_unknown_xid_needs_a_person_but_ends_nothing() -> None:
    unknown = xids.meaning(999)
    assert unknown.needs_person and not unknown.ends_attempts and str(unknown).startswith("XID 999: ")


def test_a_gpu_that_cannot_be_opened_is_tried_again() -> None:
    now = [0.0]
    card = Card(nvmlDeviceGetUUID=pynvml.NVMLError_Unknown())
    nvml = Nvml(card, monotonic=lambda: now[0])
    assert read(nvml).samples == () and read(nvml).error.startswith("GPU 0")
    card.answers["nvmlDeviceGetUUID"], now[0] = "GPU-aaaa", 6.0
    assert len(read(nvml).samples) == 1


def test_costly_energy_counter_is_read_less_often_and_says_so() -> None:
    """4 ms of CPU a call on an H200: at 10 Hz it alone took 4 % of a core."""
    now = [0.0]

    class SlowCounter(Card):
        def __getattr__(self, name: str) -> Any:
            now[0] += 0.0019 if name == "nvmlDeviceGetTotalEnergyConsumption" else 0.0
            return super().__getattr__(name)

    nvml = Nvml(SlowCounter(), monotonic=lambda: now[0])
    read_at = []
    for tick in range(20):
        now[0] = tick / 10
        sample = read(nvml).samples[0]
        assert (sample.energy_mj is None) == ("energy=not_read" in sample.unavailable)
        read_at += [tick] if sample.energy_mj is not None else []
    assert read_at == [0, 5, 10, 15]


def test_stub_driver_is_recognised_by_its_name() -> None:
    assert read(Nvml(Card(nvmlSystemGetDriverVersion="999.STUB"))).driver_is_stub
    assert not read(Nvml(Card())).driver_is_stub


def test_an_unreadable_process_list_is_an_error_and_not_an_empty_list() -> None:
    card = Card(nvmlDeviceGetComputeRunningProcesses=pynvml.NVMLError_NoPermission())
    with pytest.raises(DriverError, match="process list"):
        Nvml(card).processes(0)


def test_processes_of_both_kinds_are_listed_once() -> None:
    compute = [SimpleNamespace(pid=10, usedGpuMemory=5), SimpleNamespace(pid=11, usedGpuMemory=None)]
    card = Card(
        nvmlDeviceGetComputeRunningProcesses=compute,
        nvmlDeviceGetGraphicsRunningProcesses=[SimpleNamespace(pid=10, usedGpuMemory=5)],
    )
    assert [(p.pid, p.memory_bytes) for p in Nvml(card).processes(0)] == [(10, 5), (11, None)]


def test_throttle_bits_without_a_name_are_still_shown() -> None:
    assert throttle_names(0) == "none"
    assert throttle_names(0x1001) == "idle,0x1000"


async def test_a_hung_driver_fails_this_call_in_time_and_the_next_at_once() -> None:
    thread, answers = DriverThread(), threading.Event()
    with pytest.raises(DriverError, match="not answered"):
        await thread.call(lambda: answers.wait(60), timeout_s=0.05)
    with pytest.raises(DriverError, match="hangs"):
        await thread.call(lambda: 1, timeout_s=3600)  # at once, or the test's own limit ends it
    answers.set()

    async def again() -> int:
        while True:
            with contextlib.suppress(DriverError):
                return await thread.call(lambda: 1, timeout_s=10)
            await asyncio.sleep(0.01)

    async with asyncio.timeout(10):
        assert await again() == 1
    thread.close()


async def test_cancellation_that_comes_with_the_answer_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loop that reads the driver goes on after SIGTERM, until the hard exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[int] = loop.create_future()
    monkeypatch.setattr(loop, "run_in_executor", lambda _executor, _function: answer)
    thread = DriverThread()
    reading = asyncio.create_task(thread.call(lambda: 1, timeout_s=5))
    await asyncio.sleep(0)
    answer.set_result(1)
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    thread.close()
