"""Now: wall clock, boot clock and boot id in one stamp."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from screentest.records import Process, Stamp


def stamp() -> Stamp:
    return Stamp(at=datetime.now(UTC), boot_id=boot_id(), boottime_ns=boottime_ns())


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: goes on in suspend and never jumps; the same in every container of a host."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """Changes with every boot of the host. Source: /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def new_event_id() -> str:
    return uuid.uuid4().hex


def process_of(pid: int) -> Process | None:
    """The process with its start time (which tells a recycled pid), or None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces: count fields after the last ')'.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None
    return Process(pid=pid, start_ticks=int(fields[19]), command=command[:200])
