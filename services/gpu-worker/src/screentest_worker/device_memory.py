"""Device memory that an attempt may use: what telemetry says of the card, or the host's own where both share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from screentest.devices import is_cpu, is_unified
from screentest.memory import GIB
from screentest.records import DeviceFacts, Process

MEMINFO = Path("/proc/meminfo")
# A runner's CUDA context and the smallest lane hold more; what is missing below that is the driver's own (0.6 GiB of an
# H200), and comes back from nobody.
LEAST_RUNNER_BYTES = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """free_bytes: what a new process gets now. ceiling_bytes: what it gets when no process of ours holds any. None =
    unknown. foreign: who else holds some, one text each.
    """

    unified: bool
    free_bytes: int | None
    ceiling_bytes: int | None
    foreign: tuple[str, ...] = ()


def read(facts: DeviceFacts) -> DeviceMemory:
    """The memory of the moment; `facts` as telemetry has just read them."""
    return of_device(facts, meminfo_bytes(MEMINFO.read_text()))


def of_device(facts: DeviceFacts, host: Mapping[str, int]) -> DeviceMemory:
    """``host``: /proc/meminfo in bytes.

    A GPU's unified memory is the host's: MemAvailable, because the page cache, which NVML and cudaMemGetInfo count as
    used, goes when somebody needs the space (unslothai/unsloth#10705). Without a GPU telemetry has read just that.
    """
    unified = is_unified(facts.device, facts)
    is_of_host = unified and not is_cpu(facts.device)
    free = host.get("MemAvailable") if is_of_host else facts.memory_free_bytes
    total = host.get("MemTotal") if is_of_host else facts.memory_total_bytes
    return DeviceMemory(
        unified=unified,
        free_bytes=free,
        ceiling_bytes=_ceiling(free, total, facts.foreign, unified=unified),
        foreign=tuple(_named(process) for process in facts.foreign),
    )


def _ceiling(free: int | None, total: int | None, foreign: tuple[Process, ...], *, unified: bool) -> int | None:
    """All but what foreign processes hold; only what is free where one of them does not say, or none of ours is there.

    On unified memory the rest of the machine counts as ours: an attempt looks again when its turn comes.
    """
    held = [process.device_memory_bytes for process in foreign]
    known = [amount for amount in held if amount is not None]
    if total is None or len(known) < len(held):
        return free
    rest = total - sum(known)
    if free is not None and not unified and rest - free < LEAST_RUNNER_BYTES:
        return free
    return max(free or 0, rest)


def meminfo_bytes(text: str) -> dict[str, int]:
    """Rows of /proc/meminfo. Source: proc(5): `MemAvailable:  123456 kB`."""
    rows = (line.partition(":") for line in text.splitlines())
    fields = ((name, value.split()) for name, _, value in rows)
    return {name: int(words[0]) * 1024 for name, words in fields if len(words) == 2 and words[1] == "kB"}


def _named(process: Process) -> str:
    held = "an unknown amount" if process.device_memory_bytes is None else gib(process.device_memory_bytes)
    words = process.command.split()
    return f"{words[0].rpartition('/')[2] if words else 'a process'} (pid {process.pid}) holds {held}"


def gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"
