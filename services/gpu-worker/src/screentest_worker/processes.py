"""The process tree below this supervisor, read from /proc, and how it is emptied.

killpg, pidfd and PDEATHSIG each miss a double-forked child in a session of its own. A subreaper inherits it, so a walk
over /proc by parent finds it. As PID 1 of a container the same walk works: everything is below us.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

PR_SET_CHILD_SUBREAPER = 36  # Source: prctl(2)
KILL_WITHIN_S = 5.0  # a process in uninterruptible sleep outlives SIGKILL; longer waiting does not help it

# Every process we start carries it, and so do its descendants: the only trace an orphan of a dead worker has.
TAG_VARIABLE = "SCREENTEST_CHILD_OF"

# A runner and what it forks carry `<our pid>@<lock file>`: telemetry knows by it what outlived its supervisor on a
# device, also when it has closed the lock (screentest_telemetry.processes reads it).
RUNNER_VARIABLE = "SCREENTEST_RUNNER_OF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the process table; ``is_zombie``: dead, and waits for its parent to notice."""

    pid: int
    parent: int
    is_zombie: bool


def become_subreaper() -> None:
    """Orphans below us come to us instead of init. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def table() -> dict[int, Entry]:
    """Every process of this namespace, by pid."""
    found: dict[int, Entry] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (entry := _entry(int(path.name))) is not None:
            found[entry.pid] = entry
    return found


def _entry(pid: int) -> Entry | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses: count fields after the last ')'.
    state, parent = stat.rpartition(")")[2].split()[:2]
    return Entry(pid=pid, parent=int(parent), is_zombie=state in {"Z", "X"})


def below(root: int, processes: dict[int, Entry], spared: Collection[int] = ()) -> tuple[int, ...]:
    """Pids of the living descendants of ``root``, without the trees that begin at a spared pid."""
    children: dict[int, list[int]] = {}
    for entry in processes.values():
        children.setdefault(entry.parent, []).append(entry.pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid in spared:
                continue
            waiting.append(pid)
            if not processes[pid].is_zombie:
                found.append(pid)
    return tuple(found)


async def kill_below(root: int, spared: Collection[int] = (), known: Collection[int] = ()) -> int:
    """SIGKILL to every descendant of ``root`` but the spared trees, until none is left. Returns how many it took.

    ``known``: children whose exit status somebody else collects.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_WITHIN_S
    while living := below(root, processes := table(), spared):
        killed.update(living)
        _signal_all(living, signal.SIGSTOP)  # none may fork while we work through the list
        _signal_all(living, signal.SIGKILL)
        if time.monotonic() > deadline:
            log.error("processes_outlived_kill", pids=living)
            break
        await asyncio.sleep(0.01)
        reap_orphans(root, processes, known)
    reap_orphans(root, table(), known)
    return len(killed)


def _signal_all(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reap_orphans(root: int, processes: dict[int, Entry], known: Collection[int]) -> None:
    """Collects the dead that were re-parented to us; those in ``known`` have their own watcher."""
    for entry in processes.values():
        if entry.parent == root and entry.is_zombie and entry.pid not in known:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(entry.pid, os.WNOHANG)


def kill_leftovers(tag: str) -> int:
    """SIGKILL to what a dead worker of the same tag left behind; never to a process without our tag.

    Returns how many there were.
    """
    leftovers = [pid for pid, entry in table().items() if pid != os.getpid() and not entry.is_zombie and _has(pid, tag)]
    _signal_all(leftovers, signal.SIGKILL)
    return len(leftovers)


def _has(pid: int, tag: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # another user's process, or gone meanwhile
        return False
    return f"{TAG_VARIABLE}={tag}".encode() in environment.split(b"\0")


def peak_rss_bytes(pid: int) -> int | None:
    """Largest resident memory so far, None when the process is gone. Source: /proc/<pid>/status VmHWM, in KiB."""
    return _status_bytes(pid, "VmHWM:")


def resident_bytes(pid: int) -> int | None:
    """Resident memory now, None when the process is gone. Source: /proc/<pid>/status VmRSS, in KiB."""
    return _status_bytes(pid, "VmRSS:")


def _status_bytes(pid: int, field: str) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    lines = (line.split() for line in status.splitlines() if line.startswith(field))
    return next((int(fields[1]) * 1024 for fields in lines), None)


def host_oom_kills() -> int | None:
    """How often the kernel killed in our memory cgroup; None where there is no such counter.

    Source: cgroup v2 memory.events, v1 memory.oom_control, field oom_kill.
    """
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    return None
