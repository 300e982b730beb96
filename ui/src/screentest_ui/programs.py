"""Plain processes: start one detached, know it again later, stop it with everything below it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from screentest.errors import ScreentestError, Unavailable
from screentest.kit.clock import process_of
from screentest.records import Process

POLL_S = 0.02
STOP_POLL_S = 0.05  # each look walks /proc
LOG_TAIL_LINES = 15

# Inherited by everything a stack starts, so that even a process that left its parent and its session is found again.
MARKER = "SCREENTEST_STACK"


class StartFailed(ScreentestError):
    """The process ended or did not become ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to start one process. ``env`` is added to the caller's environment; output goes to ``log_path``."""

    name: str
    argv: tuple[str, ...]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


def start(program: Program) -> Process:
    """Starts it in a session of its own, so that no terminal signal reaches it; returns at once."""
    program.log_path.parent.mkdir(parents=True, exist_ok=True)
    with program.log_path.open("ab") as log:
        try:
            child = subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **program.env},
                cwd=program.cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(
                f"{program.name}: {program.argv[0]} cannot be started ({error.strerror}); run `make` again"
            ) from error
    started = process_of(child.pid)
    # It outlives us on purpose: tell Popen not to complain about a running child.
    child.returncode = 0
    if started is None:
        raise StartFailed(f"{program.name} ended at once:\n{tail(program.log_path)}")
    return started


def is_running(process: Process) -> bool:
    """False also when the pid belongs to another process by now."""
    _reap(process.pid)
    now = process_of(process.pid)
    return now is not None and now.start_ticks == process.start_ticks


def wait_ready(
    program: Program,
    process: Process,
    is_ready: Callable[[], bool],
    timeout_s: float,
    *,
    poll_s: float = POLL_S,
) -> None:
    """Polls until ``is_ready()``. StartFailed when it dies first, Unavailable when it is slow; both show the log."""
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if not is_running(process):
            raise StartFailed(
                f"{program.name} ended before it was ready; {program.log_path} says:\n{tail(program.log_path)}"
            )
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{program.name} is not ready after {timeout_s:.0f} s; "
                f"{program.log_path} says:\n{tail(program.log_path)}"
            )
        time.sleep(poll_s)


def stop(process: Process, *, grace_s: float) -> None:
    """SIGTERM, then SIGKILL after ``grace_s``; whatever it had below it at any moment is killed too."""
    stop_all((process,), grace_s=grace_s)


def stop_all(processes: Sequence[Process], *, grace_s: float) -> None:
    """``stop`` for several at once: they share the grace."""
    family: dict[int, Process] = {}
    deadline = time.monotonic() + grace_s
    waiting = [process for process in processes if is_running(process)]
    _collect(waiting, family)
    for process in waiting:
        _signal(process, signal.SIGTERM)
    while (waiting := [process for process in waiting if is_running(process)]) and time.monotonic() < deadline:
        _collect(waiting, family)
        time.sleep(STOP_POLL_S)
    kill((*processes, *family.values()))


def kill(processes: tuple[Process, ...], timeout_s: float = 5.0) -> None:
    """SIGKILL, and waits until they are gone. Unavailable when the kernel does not let one go (a driver hang)."""
    deadline = time.monotonic() + timeout_s
    while remaining := [process for process in processes if is_running(process)]:
        if time.monotonic() > deadline:
            pids = ", ".join(f"{process.pid} ({process.command})" for process in remaining)
            raise Unavailable(f"cannot be killed: {pids}; a process in a driver call ends only with a reboot")
        for process in remaining:
            _signal(process, signal.SIGKILL)
        time.sleep(POLL_S)


def marked(value: str) -> tuple[Process, ...]:
    """Every process of this user whose environment carries ``MARKER=value``."""
    wanted = f"{MARKER}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or somebody else's
            continue
        if wanted in environment and (process := process_of(int(entry.name))) is not None:
            found.append(process)
    return tuple(found)


def tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, indented; says so when there is none."""
    try:
        text = path.read_text(errors="replace").rstrip()
    except OSError:
        text = ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (the log is empty)"


def _collect(roots: Sequence[Process], family: dict[int, Process]) -> None:
    """Adds every process below ``roots`` to ``family``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    below = [child for root in roots for child in children.get(root.pid, ())]
    while below:
        child = below.pop()
        below.extend(children.get(child, ()))
        if child not in family and (process := process_of(child)) is not None:
            family[child] = process


def _signal(process: Process, number: signal.Signals) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    """Takes the exit status when it is a child of ours, so that no zombie stays."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
