"""Who holds the lock of a device and who is alive, as the kernel tells it: /proc/locks, /proc/<pid>, fdinfo.

Nothing here takes the lock, not even for a moment: a runner that opens at that moment would be refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from screentest.errors import Unavailable
from screentest.kit import clock
from screentest.records import Process

PROC = Path("/proc")
# `<supervisor's pid>@<lock file>`, in the environment of a runner and of what it forks: set by screentest_worker.
RUNNER_VARIABLE = b"SCREENTEST_RUNNER_OF="
# Source: include/uapi/linux/nsfs.h PID_NS_INIT_INO; the namespace that sees every process of the host.
HOST_PID_NAMESPACE = "pid:[4026531836]"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file as /proc/locks names it. btrfs and overlayfs show another device number there than stat does."""

    major: int
    minor: int
    inode: int


@dataclass(frozen=True, slots=True)
class HeldLock:
    """``pid`` took the lock; it may be dead by now while a process that inherited the file holds on."""

    file: FileIdentity
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    held: bool
    holders: tuple[Process, ...]


def parse_locks(text: str) -> tuple[HeldLock, ...]:
    """The flocks in the text of /proc/locks; waiters (``->``) and record locks are left out."""
    return tuple(held for line in text.splitlines() if (held := _parse_lock(line.split())) is not None)


def _parse_lock(fields: list[str]) -> HeldLock | None:
    # "1: FLOCK  ADVISORY  WRITE 7780 fe:00:2148521 0 EOF"; device numbers are hexadecimal, the inode is decimal.
    if len(fields) < 6 or fields[1] != "FLOCK":
        return None
    major, minor, inode = fields[5].split(":")
    return HeldLock(FileIdentity(int(major, 16), int(minor, 16), int(inode)), int(fields[4]))


def create_lock_file(path: Path) -> None:
    """Makes the file that runners lock, if it is missing. Nobody removes it: a lock on a removed file locks nobody."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise Unavailable(
            f"lock file {path} cannot be made ({error.strerror}); set SCREENTEST_LOCK_DIR to a writable local directory"
        ) from error
    try:
        with contextlib.suppress(PermissionError):  # somebody else's file: it has its mode already
            os.fchmod(descriptor, 0o666)  # the umask must not shut out a worker of another user
    finally:
        os.close(descriptor)


class LockReader:
    """Reads the lock state of files in one directory.

    Learns once how the kernel names this file system in /proc/locks, from a lock on a nameless file of its own.
    """

    def __init__(self, directory: Path) -> None:
        """Unavailable when locks in this directory cannot be recognised (a network file system, no /proc)."""
        self._device = _kernel_device(directory)

    def state(self, path: Path) -> LockState:
        """Held is held, also by a process that only inherited the file. Unavailable when it cannot be known."""
        status = _stat(path)
        file = FileIdentity(*self._device, status.st_ino)
        takers = [held.pid for held in parse_locks(_read_locks()) if held.file == file]
        alive = [process for pid in takers if (process := clock.process_of(pid)) is not None]
        if takers and len(alive) == len(takers):
            return LockState(held=True, holders=tuple(alive))
        # No taker is listed, or a listed one is dead. Outside the host's PID namespace the kernel lists no lock whose
        # taker has died, so look at the open files too: that also names who inherited it.
        inherited = tuple(_processes_locking(status, exclude={process.pid for process in alive}))
        gone = tuple(_gone(pid) for pid in takers if pid not in {process.pid for process in alive})
        return LockState(held=bool(takers or inherited), holders=(*alive, *(inherited or gone)))


def _gone(pid: int) -> Process:
    return Process(pid=pid, start_ticks=0, command="ended; a process that inherited its lock file still holds it")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise Unavailable(
            f"lock file {path} cannot be read ({error.strerror}); restart telemetry to make it"
        ) from error


def _read_locks() -> str:
    try:
        return (PROC / "locks").read_text()
    except OSError as error:
        raise Unavailable(
            f"/proc/locks cannot be read ({error.strerror}); without it no device can be proven"
        ) from error


def _kernel_device(directory: Path) -> tuple[int, int]:
    with tempfile.TemporaryFile(dir=directory) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        inode = os.fstat(file.fileno()).st_ino
        for held in _fdinfo_locks(PROC / "self" / "fdinfo" / str(file.fileno())):
            if held.file.inode == inode:
                return held.file.major, held.file.minor
    raise Unavailable(
        f"the kernel does not show locks in {directory} under the number of their file, so no device can be proven; "
        "set SCREENTEST_LOCK_DIR to a local directory (ext4, xfs or tmpfs)"
    )


def _fdinfo_locks(path: Path) -> tuple[HeldLock, ...]:
    lines = path.read_text().splitlines()
    return parse_locks("\n".join(line.removeprefix("lock:") for line in lines if line.startswith("lock:")))


def _processes_locking(status: os.stat_result, exclude: set[int]) -> Iterator[Process]:
    """Processes with an open description of this file that carries a flock. Those we may not look into are left out:
    in the host's namespace /proc/locks is complete without them."""
    for folder in PROC.iterdir():
        if not folder.name.isdigit() or int(folder.name) in exclude:
            continue
        with contextlib.suppress(OSError):
            if any(_is_lock(entry, status) for entry in (folder / "fd").iterdir()):
                process = clock.process_of(int(folder.name))
                if process is not None:
                    yield process


def _is_lock(entry: Path, status: os.stat_result) -> bool:
    try:
        opened = entry.stat()
    except OSError:  # closed meanwhile, or a file behind another mount namespace
        return False
    if (opened.st_dev, opened.st_ino) != (status.st_dev, status.st_ino):
        return False
    return bool(_fdinfo_locks(entry.parent.parent / "fdinfo" / entry.name))


def is_same(left: Process, right: Process) -> bool:
    """The same process, not a later one with its pid."""
    return left.pid == right.pid and left.start_ticks == right.start_ticks


def is_alive(process: Process) -> bool:
    now = clock.process_of(process.pid)
    return now is not None and now.start_ticks == process.start_ticks


def locate(process: Process) -> Process | None:
    """The process as this namespace numbers it: a worker in a container knows only its own numbers.

    Start times are ticks since boot and agree in all PID namespaces; NSpid lists a process's pid in each of them.
    """
    here = clock.process_of(process.pid)
    if here is not None and here.start_ticks == process.start_ticks:
        return here
    candidates = (int(folder.name) for folder in PROC.iterdir() if folder.name.isdigit())
    return next((found for pid in candidates if (found := _matches(pid, process)) is not None), None)


def _matches(pid: int, process: Process) -> Process | None:
    found = clock.process_of(pid)
    if found is None or found.start_ticks != process.start_ticks:
        return None
    return found if namespace_pids(pid)[-1:] == (process.pid,) else None


def namespace_pids(pid: int) -> tuple[int, ...]:
    """The numbers of a process, from our namespace to its own. Empty when it is gone."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return ()
    return next((tuple(map(int, line.split()[1:])) for line in lines if line.startswith("NSpid:")), ())


def strays(lock: Path) -> tuple[Process, ...]:
    """What runners of this lock left behind when their supervisor died: it may compute on with the lock closed.

    A supervisor that lives inherits what its runners fork, and ends it; so the parent tells the two apart.
    Processes whose environment we may not read are left out.
    """
    supervisors = {pid: found for pid in _pids() if (found := _supervisor(pid, lock)) is not None}
    parents = {pid: _parent(pid) for pid in supervisors}
    lost = []
    for pid, supervisor in supervisors.items():
        top = pid
        while parents[top] in supervisors:
            top = parents[top]
        if namespace_pids(parents[top])[-1:] != (supervisor,) and (process := clock.process_of(pid)) is not None:
            lost.append(process)
    return tuple(lost)


def _pids() -> Iterator[int]:
    return (int(folder.name) for folder in PROC.iterdir() if folder.name.isdigit())


def _supervisor(pid: int, lock: Path) -> int | None:
    """The supervisor's pid, as its own namespace numbers it; None for a process that is no runner of this lock."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    values = (
        item.removeprefix(RUNNER_VARIABLE) for item in environment.split(b"\0") if item.startswith(RUNNER_VARIABLE)
    )
    number, _, path = next(values, b"").partition(b"@")
    return int(number) if path == os.fsencode(lock.absolute()) and number.isdigit() else None


def _parent(pid: int) -> int:
    """0 when the process is gone."""
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def sees_every_process() -> bool:
    """Whether we are in the host's PID namespace; in another one NVML may show an empty list (measured on an H200)."""
    try:
        return str((PROC / "self" / "ns" / "pid").readlink()) == HOST_PID_NAMESPACE
    except OSError:
        return False


def describe(processes: Iterable[Process]) -> str:
    """``pid 412 (python -m ...), pid 999``: for reasons that a person reads."""
    return ", ".join(f"pid {p.pid}" + (f" ({_on_one_line(p.command)})" if p.command else "") for p in processes)


def _on_one_line(command: str, limit: int = 60) -> str:
    return " ".join(command.split())[:limit]
