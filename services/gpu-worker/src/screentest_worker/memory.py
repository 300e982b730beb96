"""Device memory that an attempt may use: what telemetry says of the card, or the host's own where both share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from screentest.records import DeviceFacts, Process

GIB = 2**30
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """free_bytes: what a new process gets now. ceiling_bytes: what it gets once our own runners are gone, if known to
    be more. None = unknown. foreign: who else holds some, one text each.
    """

    unified: bool
    free_bytes: int | None
    ceiling_bytes: int | None
    foreign: tuple[str, ...] = ()
    gpu_name: str | None = None

    def capped(self, cap_gib: float | None) -> DeviceMemory:
        """Never more than a job's memory_cap_gib."""
        if cap_gib is None:
            return self
        cap = int(cap_gib * GIB)
        return replace(self, free_bytes=_least(self.free_bytes, cap), ceiling_bytes=_least(self.ceiling_bytes, cap))


def read(facts: DeviceFacts) -> DeviceMemory:
    """The memory of the moment: free as telemetry has just read it."""
    return of_device(facts, meminfo_bytes(MEMINFO.read_text()))


def of_device(facts: DeviceFacts, host: dict[str, int]) -> DeviceMemory:
    """``host``: /proc/meminfo in bytes.

    Unified memory is the host's: MemAvailable, because the page cache, which NVML and cudaMemGetInfo count as used,
    goes when somebody needs the space (unslothai/unsloth#10705).
    """
    unified = facts.memory_kind == "unified"
    free = facts.memory_free_bytes
    total = facts.memory_total_bytes
    if unified:
        free = host.get("MemAvailable") if free is None else min(free, host.get("MemAvailable", free))
        total = host.get("MemTotal") if total is None else total
    return DeviceMemory(
        unified=unified,
        free_bytes=free,
        ceiling_bytes=_ceiling(free, total, facts.foreign),
        foreign=tuple(_named(process) for process in facts.foreign),
        gpu_name=facts.gpu_name,
    )


def _ceiling(free: int | None, total: int | None, foreign: tuple[Process, ...]) -> int | None:
    """All of the device but what foreign processes hold; what is free where one of them does not say."""
    held = [process.device_memory_bytes for process in foreign]
    known = [amount for amount in held if amount is not None]
    if total is None or len(known) < len(held):
        return free
    return max(free or 0, total - sum(known))


def meminfo_bytes(text: str) -> dict[str, int]:
    """Rows of /proc/meminfo. Source: proc(5): `MemAvailable:  123456 kB`."""
    rows = (line.partition(":") for line in text.splitlines())
    fields = ((name, value.split()) for name, _, value in rows)
    return {name: int(words[0]) * 1024 for name, words in fields if len(words) == 2 and words[1] == "kB"}


def _named(process: Process) -> str:
    held = "unknown" if process.device_memory_bytes is None else gib(process.device_memory_bytes)
    name = process.command.split()[0].rpartition("/")[2] if process.command.split() else "a process"
    return f"{name} (pid {process.pid}) {held}"


def gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"


def _least(amount: int | None, cap: int) -> int:
    """Of a device that does not say what it has, the cap is what we know."""
    return cap if amount is None else min(amount, cap)
