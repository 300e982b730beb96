"""When a device is clean, and what /proc says about locks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from screentest.errors import BadRequest, Unavailable
from screentest.kit import clock
from screentest.records import DeviceFault, GpuInfo, Process, Proof, ProofKind, ProofRequest
from screentest_telemetry import processes
from screentest_telemetry.devices import CpuDevice, DeviceName, GpuDevice, parse_devices
from screentest_telemetry.faults import Faults
from screentest_telemetry.nvml import DeviceProcess, DriverError, DriverThread, Trouble
from screentest_telemetry.proofs import Observation, verdict
from screentest_telemetry.registry import Registry

RUNNER = Process(pid=10, start_ticks=100, command="runner")
OTHER = Process(pid=11, start_ticks=110, command="other")
HANDOVER = ProofRequest(kind=ProofKind.HANDOVER)
CONTINUE = ProofRequest(kind=ProofKind.CONTINUE, runner=RUNNER)

HOLD = """
import fcntl, os, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
if len(sys.argv) > 2 and os.fork() > 0:
    os._exit(0)  # the child inherits the open file and so the lock
print(os.getpid(), flush=True)
time.sleep(60)
"""


def seen(**changes: object) -> Observation:
    base = {"lock_held": False, "lock_holders": (), "runners": (), "processes": ()}
    return Observation(**(base | changes))  # type: ignore[arg-type]


def test_handover_is_clean_only_when_nothing_of_ours_is_left() -> None:
    foreign = Process(pid=5, start_ticks=1, command="ollama", foreign=True)
    assert verdict(HANDOVER, seen(processes=(foreign,)))[0]
    assert not verdict(HANDOVER, seen(lock_held=True, lock_holders=(RUNNER,)))[0]
    assert not verdict(HANDOVER, seen(lock_held=True))[0]
    assert not verdict(HANDOVER, seen(runners=(RUNNER,)))[0]
    clean, reason = verdict(HANDOVER, seen(processes=(foreign, OTHER)))
    assert not clean and "pid 11" in reason and "SCREENTEST_TENANTS" in reason


def test_unknown_is_not_clean() -> None:
    assert verdict(HANDOVER, seen(lock_held=None)) == (False, "the lock of this device could not be read")
    assert verdict(HANDOVER, seen(problem="NVML does not start")) == (False, "NVML does not start")


def test_continue_is_clean_only_for_the_very_runner_alone() -> None:
    held = {"lock_held": True, "lock_holders": (RUNNER,)}
    assert verdict(CONTINUE, seen(**held, runners=(RUNNER,), processes=(RUNNER,)))[0]
    recycled = Process(pid=10, start_ticks=999)
    assert not verdict(CONTINUE, seen(lock_held=True, lock_holders=(recycled,)))[0]
    assert not verdict(CONTINUE, seen(lock_held=True, lock_holders=(RUNNER, OTHER)))[0]
    assert not verdict(CONTINUE, seen())[0]
    assert not verdict(CONTINUE, seen(**held, runners=(RUNNER, OTHER)))[0]
    assert not verdict(CONTINUE, seen(**held, processes=(RUNNER, OTHER)))[0]
    assert not verdict(ProofRequest(kind=ProofKind.CONTINUE), seen(**held))[0]


def test_only_held_flocks_are_read_from_proc_locks() -> None:
    text = (
        "1: FLOCK  ADVISORY  WRITE 7780 fe:00:2148521 0 EOF\n"
        "1: -> FLOCK  ADVISORY  WRITE 7781 fe:00:2148521 0 EOF\n"
        "2: POSIX  ADVISORY  WRITE 7782 00:1a:5 0 EOF\n"
        "3: FLOCK  ADVISORY  READ 7783 00:1a:6 0 EOF\n"
    )
    assert [(held.pid, held.file.minor, held.file.inode) for held in processes.parse_locks(text)] == [
        (7780, 0, 2148521),
        (7783, 0x1A, 6),
    ]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a process that holds a lock file; with ``inherited`` the process that took it is gone."""
    started: list[subprocess.Popen[str]] = []
    pids: list[int] = []

    def start(path: Path, *flags: str) -> int:
        child = subprocess.Popen([sys.executable, "-c", HOLD, str(path), *flags], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        pids.append(int(child.stdout.readline()))
        started.append(child)
        if flags:
            child.wait()
        return pids[-1]

    yield start
    for pid in pids:
        os.kill(pid, 9)
    for child in started:
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def cpu(tmp_path: Path) -> CpuDevice:
    registry = Registry(tmp_path / "devices.json", clock.boot_id())
    return CpuDevice(DeviceName(kind="cpu", index=0), "local", tmp_path / "locks", registry)


def process_of(pid: int) -> Process:
    found = clock.process_of(pid)
    assert found is not None
    return found


async def test_free_lock_is_clean_and_its_file_is_writable_for_all(cpu: CpuDevice, tmp_path: Path) -> None:
    proof = await cpu.prove(HANDOVER)
    assert proof.clean and not proof.lock_held and proof.method == "proc"
    assert (tmp_path / "locks" / "cpu-0.lock").stat().st_mode & 0o777 == 0o666


async def test_held_lock_names_its_holder(cpu: CpuDevice, tmp_path: Path, hold: Callable[..., int]) -> None:
    pid = hold(tmp_path / "locks" / "cpu-0.lock")
    proof = await cpu.prove(HANDOVER)
    assert not proof.clean and proof.lock_held and [p.pid for p in proof.lock_holders] == [pid]
    assert (await cpu.prove(ProofRequest(kind=ProofKind.CONTINUE, runner=process_of(pid)))).clean


async def test_lock_inherited_from_a_dead_process_is_held(
    cpu: CpuDevice, tmp_path: Path, hold: Callable[..., int]
) -> None:
    pid = hold(tmp_path / "locks" / "cpu-0.lock", "inherited")
    proof = await cpu.prove(HANDOVER)
    assert not proof.clean and proof.lock_held
    assert [holder.pid for holder in proof.lock_holders] == [pid]


async def test_dead_taker_is_found_by_open_files_where_the_kernel_hides_it(
    cpu: CpuDevice, tmp_path: Path, hold: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the host's PID namespace /proc/locks leaves out locks whose taker is dead (fs/locks.c locks_show)."""
    hold(tmp_path / "locks" / "cpu-0.lock", "inherited")
    monkeypatch.setattr(processes, "_read_locks", lambda: "")
    assert (await cpu.prove(HANDOVER)).lock_held


async def test_another_file_of_the_same_number_elsewhere_is_not_our_lock(cpu: CpuDevice, tmp_path: Path) -> None:
    with (tmp_path / "other").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert (await cpu.prove(HANDOVER)).clean


async def test_registered_runner_that_lives_is_not_clean_even_without_lock(cpu: CpuDevice) -> None:
    child = sleeper()
    assert (await cpu.register(process_of(child.pid))).done
    assert "registered runner" in (await cpu.prove(HANDOVER)).reason
    child.kill()
    child.wait()
    assert (await cpu.prove(HANDOVER)).clean


async def test_runner_that_cannot_be_seen_is_not_registered(cpu: CpuDevice) -> None:
    reply = await cpu.register(Process(pid=os.getpid(), start_ticks=1))
    assert not reply.done and "pid: host" in reply.detail


async def test_registrations_survive_a_restart_but_not_a_boot(cpu: CpuDevice, tmp_path: Path) -> None:
    me = process_of(os.getpid())
    await cpu.register(me)
    again = Registry(tmp_path / "devices.json", clock.boot_id())
    assert [runner.pid for runner in again.device("cpu-0").runners] == [me.pid]
    assert Registry(tmp_path / "devices.json", "another boot").device("cpu-0").runners == ()


async def test_unreadable_registry_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "devices.json").write_text("{")
    assert Registry(tmp_path / "devices.json", "boot").device("cpu-0").runners == ()
    assert (tmp_path / "devices.json.unreadable").exists()


class FakeNvml:
    """A GPU whose process list a test writes."""

    def __init__(self) -> None:
        self.listed: tuple[DeviceProcess, ...] = ()
        self.error = ""
        self.uuid = "GPU-aaaa"
        self.happened: list[Trouble] = []

    def troubles(self) -> tuple[Trouble, ...]:
        found, self.happened = tuple(self.happened), []
        return found

    def gpu(self, index: int) -> GpuInfo:
        if self.error:
            raise DriverError(self.error)
        return GpuInfo(uuid=self.uuid, index=index, name="card", memory_total_bytes=8, memory_kind="device")

    def processes(self, index: int) -> tuple[DeviceProcess, ...]:
        if self.error:
            raise DriverError(self.error)
        return self.listed

    def memory_free_bytes(self, index: int) -> int | None:
        return 7

    def driver_version(self) -> str | None:
        return "580"


async def tell_nobody(_fault: DeviceFault) -> None:
    """The scheduler of these tests."""


@pytest.fixture
def gpu_of(tmp_path: Path) -> Callable[..., GpuDevice]:
    (tmp_path / "locks").mkdir()

    def make(nvml: FakeNvml, **changes: object) -> GpuDevice:
        options: dict[str, object] = {
            "tenants": (),
            "list_is_complete": True,
            "own_namespace_is_enough": False,
        } | changes
        registry = Registry(tmp_path / "devices.json", clock.boot_id())
        name = DeviceName(kind="gpu", index=0)
        driver = DriverThread()
        faults = Faults(nvml, driver, "local", {0: "gpu-0"}, tell_nobody)  # type: ignore[arg-type]
        return GpuDevice(  # type: ignore[arg-type]
            name, "local", tmp_path / "locks", registry, nvml=nvml, driver=driver, faults=faults, **options
        )

    return make


def sleeper(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])


async def prove_and_end(gpu: GpuDevice, child: subprocess.Popen[bytes]) -> Proof:
    try:
        return await gpu.prove(HANDOVER)
    finally:
        child.kill()
        child.wait()


async def test_who_was_there_first_is_foreign_and_who_came_later_is_not(gpu_of: Callable[..., GpuDevice]) -> None:
    nvml = FakeNvml()
    desktop, stranger = sleeper(), sleeper()
    nvml.listed = (DeviceProcess(pid=desktop.pid, memory_bytes=3),)
    gpu = gpu_of(nvml)
    facts = await gpu.facts()
    assert [(p.pid, p.foreign, p.device_memory_bytes) for p in facts.foreign] == [(desktop.pid, True, 3)]
    assert facts.lock_name == "GPU-aaaa.lock"
    assert (await gpu.prove(HANDOVER)).clean
    nvml.listed += (DeviceProcess(pid=stranger.pid, memory_bytes=None),)
    proof = await prove_and_end(gpu_of(nvml), stranger)  # also after a restart
    assert not proof.clean and f"pid {stranger.pid}" in proof.reason
    desktop.kill()
    desktop.wait()


async def test_another_card_at_our_index_proves_nothing(gpu_of: Callable[..., GpuDevice]) -> None:
    """Without a lost GPU 0, NVML counts GPU 1 as 0."""
    nvml = FakeNvml()
    gpu = gpu_of(nvml)
    assert (await gpu.prove(HANDOVER)).clean
    nvml.uuid = "GPU-bbbb"
    proof = await gpu_of(nvml).prove(HANDOVER)  # also after a restart
    assert not proof.clean and "GPU-aaaa" in proof.reason and "GPU-bbbb" in proof.reason
    with pytest.raises(Unavailable, match="GPU-bbbb"):
        await gpu.facts()


async def test_proof_repeats_the_newest_fault_but_not_what_an_application_did(gpu_of: Callable[..., GpuDevice]) -> None:
    nvml = FakeNvml()
    gpu = gpu_of(nvml)
    page_fault = Trouble(
        index=0, uuid="GPU-aaaa", xid=31, cause="XID 31: page fault", needs_person=False, ends_attempts=False
    )
    nvml.happened = [page_fault, replace(page_fault, index=1, xid=79, needs_person=True)]  # the other card's
    assert (await gpu.prove(HANDOVER)).fault is None
    nvml.happened = [replace(page_fault, xid=79, cause="XID 79: gone", needs_person=True, ends_attempts=True)]
    for _ in range(2):
        proof = await gpu.prove(HANDOVER)
        assert proof.clean and proof.fault is not None
        assert (proof.fault.device, proof.fault.xid, proof.fault.cause) == ("gpu-0", 79, "XID 79: gone")


async def test_named_tenant_is_foreign_whenever_it_comes(gpu_of: Callable[..., GpuDevice]) -> None:
    nvml = FakeNvml()
    gpu = gpu_of(nvml, tenants=("ollama",))
    assert (await gpu.prove(HANDOVER)).clean
    tenant = sleeper("ollama")
    nvml.listed = (DeviceProcess(pid=tenant.pid, memory_bytes=1),)
    proof = await prove_and_end(gpu, tenant)
    assert proof.clean and proof.processes[0].foreign


async def test_configured_gpu_with_failing_nvml_is_not_clean(gpu_of: Callable[..., GpuDevice]) -> None:
    nvml = FakeNvml()
    nvml.error = "NVML does not start: Driver Not Loaded"
    proof = await gpu_of(nvml).prove(HANDOVER)
    assert not proof.clean and proof.reason == nvml.error
    nvml.error = ""
    gpu = gpu_of(nvml)
    assert (await gpu.prove(HANDOVER)).clean
    nvml.error = "GPU is lost"
    assert not (await gpu.prove(HANDOVER)).clean


async def test_gpu_seen_from_a_container_is_not_clean_unless_its_workers_are_there_too(
    gpu_of: Callable[..., GpuDevice],
) -> None:
    proof = await gpu_of(FakeNvml(), list_is_complete=False).prove(HANDOVER)
    assert not proof.clean and "pid: host" in proof.reason
    proof = await gpu_of(FakeNvml(), list_is_complete=False, own_namespace_is_enough=True).prove(HANDOVER)
    assert proof.clean and proof.method == "proc"


async def test_a_lock_that_is_held_at_the_first_look_makes_nobody_foreign(
    gpu_of: Callable[..., GpuDevice], tmp_path: Path, hold: Callable[..., int]
) -> None:
    """Telemetry that lost its state must not take our own warm runner for a stranger."""
    (tmp_path / "locks" / "GPU-aaaa.lock").touch()
    pid = hold(tmp_path / "locks" / "GPU-aaaa.lock")
    nvml = FakeNvml()
    nvml.listed = (DeviceProcess(pid=pid, memory_bytes=1),)
    assert (await gpu_of(nvml).facts()).foreign == ()


def test_devices_are_configured_by_name() -> None:
    assert [str(name) for name in parse_devices("gpu-0, cpu-0")] == ["gpu-0", "cpu-0"]
    for wrong in ("", "gpu", "gpu-0,gpu-0", "tpu-1"):
        with pytest.raises(BadRequest, match="SCREENTEST_DEVICES"):
            parse_devices(wrong)
