"""Starts the children of this worker (runner, encoder, probe), speaks JSON lines with them, and ends them.

A child is started by Popen and watched through a pidfd: asyncio's own subprocess support waits for the child's pipes to
close before it reports the exit, and an escaped grandchild keeps them open.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from screentest.kit import clock
from screentest.records import Process
from screentest_runner import protocol
from screentest_runner.protocol import REPLY_FD_VARIABLE, Stop
from screentest_worker import processes

log = structlog.get_logger()

TERM_WITHIN_S = 2.0  # between SIGTERM and the next rung of the ladder
STACK_DUMP_S = 0.3  # faulthandler writes every thread in milliseconds; a swapped process needs a moment
HELPER_LOG_BYTES = 1 << 20  # then their log begins anew
REQUEST_PIPE_BYTES = 1 << 20  # a lane with its components is 20 KB; a busy runner may not read for a while

# What a child may see of our environment. Everything else stays here: no address, no password, no key.
# The last one marks what belongs to a local stack: `screentest down` finds by it what outlived its worker.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "SCREENTEST_STACK")


class Kind(StrEnum):
    RUNNER = "runner"
    ENCODER = "encoder"
    PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all children of this worker share.

    env_python: interpreter of the model env. runner_path: the folder that holds the package screentest_runner.
    home: their HOME, TMPDIR and working directory, on scratch. tag: the value of processes.TAG_VARIABLE.
    """

    env_python: Path
    runner_path: Path
    home: Path
    log_dir: Path
    tag: str


class Child:
    """One child process: lines to its stdin, lines from its private reply descriptor, its exit."""

    def __init__(self, kind: Kind, popen: subprocess.Popen[bytes], reply_fd: int, log_path: Path) -> None:
        self.kind = kind
        self.pid = popen.pid
        self.log_path = log_path
        self.process: Process | None = clock.process_of(popen.pid)
        self.exited = asyncio.Event()
        self._popen = popen
        self._reply_fd = reply_fd
        self._rest = b""
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(reply_fd, False)
        self._loop.add_reader(reply_fd, self._read)
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def returncode(self) -> int | None:
        """Negative = died of that signal; None = alive."""
        return self._popen.returncode

    @property
    def is_alive(self) -> bool:
        return not self.exited.is_set()

    def send(self, line: bytes) -> None:
        """One request. A child that is gone or reads no more is told nothing: its exit or a limit ends it."""
        assert self._popen.stdin is not None
        try:
            written = os.write(self._popen.stdin.fileno(), line)
        except (BrokenPipeError, ValueError):  # it died, or its stdin is closed already
            return
        except BlockingIOError:
            written = 0
        if written != len(line):
            log.error("child_reads_no_requests", child=self.kind.value, pid=self.pid)
            self._popen.kill()

    async def receive(self) -> bytes | None:
        """The next reply line, None after its exit and all its replies."""
        line = await self._lines.get()
        if line is None:
            self._lines.put_nowait(None)  # every later call learns it too
        return line

    async def wait(self, timeout_s: float) -> bool:
        """Whether it is dead within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)

    def _read(self) -> bool:
        """Takes what is there; False when there is nothing (more)."""
        try:
            data = os.read(self._reply_fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._reply_fd)
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.put_nowait(line)
        return True

    def _on_exit(self) -> None:
        if self._popen.poll() is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        while self._read():
            pass
        self._loop.remove_reader(self._reply_fd)
        os.close(self._reply_fd)
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        self._lines.put_nowait(None)
        self.exited.set()


class Supervisor:
    """The children of this process. It is their subreaper, so nothing below it can escape."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._children: dict[int, Child] = {}

    def start_runner(self, *, lock_fd: int, lock_path: Path, gpu_uuid: str | None) -> Child:
        """Raises OSError when the model env's python cannot be started."""
        return self._start(
            Kind.RUNNER,
            (str(self._surroundings.env_python), "-m", "screentest_runner"),
            {"CUDA_VISIBLE_DEVICES": gpu_uuid or "", processes.RUNNER_VARIABLE: f"{os.getpid()}@{lock_path}"},
            lock_fd=lock_fd,
        )

    def start_encoder(self) -> Child:
        """It inherits no lock and sees no GPU. Raises OSError."""
        python = str(self._surroundings.env_python)
        return self._start(Kind.ENCODER, (python, "-m", "screentest_runner.encode"), {"CUDA_VISIBLE_DEVICES": ""})

    def start_probe(self) -> Child:
        """Of our own environment: the probe reads what somebody else wrote. Raises OSError."""
        return self._start(Kind.PROBE, (sys.executable, "-m", "screentest_worker.clipfile"), {})

    def _start(self, kind: Kind, command: Sequence[str], extra: Mapping[str, str], lock_fd: int | None = None) -> Child:
        self._forget_dead()
        log_path = self._surroundings.log_dir / f"{kind.value}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._surroundings.home.mkdir(parents=True, exist_ok=True)
        read_fd, write_fd = os.pipe()
        try:
            with log_path.open("wb" if kind is Kind.RUNNER or _is_long(log_path) else "ab") as log_file:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log_file,
                    stderr=log_file,
                    env={**self._environment(kind), **extra, REPLY_FD_VARIABLE: str(write_fd)},
                    pass_fds=(write_fd,) if lock_fd is None else (write_fd, lock_fd),
                    start_new_session=True,
                    cwd=self._surroundings.home,
                )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        assert popen.stdin is not None
        os.set_blocking(popen.stdin.fileno(), False)
        with contextlib.suppress(OSError):  # above the user's pipe quota the default of 64 KiB must do
            fcntl.fcntl(popen.stdin.fileno(), fcntl.F_SETPIPE_SZ, REQUEST_PIPE_BYTES)
        child = Child(kind, popen, read_fd, log_path)
        self._children[child.pid] = child
        return child

    def _environment(self, kind: Kind) -> dict[str, str]:
        home = str(self._surroundings.home)
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {
            "HOME": home,
            "TMPDIR": home,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            processes.TAG_VARIABLE: self._surroundings.tag,
        }
        # The probe runs in our environment and finds its package there; a path would let the two mix.
        return environment if kind is Kind.PROBE else {**environment, "PYTHONPATH": str(self._surroundings.runner_path)}

    async def end(self, child: Child, *, grace_s: float, dump_first: bool = False) -> int:
        """The stop ladder: Stop, SIGTERM, stack dump, SIGKILL to everything below us but the helpers of attempts.

        ``dump_first``: the log gets every thread's stack before anything else, because the ladder's first rungs
        destroy what a silent process could tell. Returns how many processes had to be killed.
        """
        if dump_first:
            child.signal(signal.SIGUSR1)
            await child.wait(STACK_DUMP_S)
        child.send(protocol.to_line(Stop()))
        if not await child.wait(grace_s):
            child.signal(signal.SIGTERM)
            if not await child.wait(TERM_WITHIN_S):
                child.signal(signal.SIGUSR1)
                await child.wait(STACK_DUMP_S)
        killed = await self.sweep()
        await child.wait(processes.KILL_WITHIN_S)
        self._forget_dead()
        return killed

    async def sweep(self) -> int:
        """SIGKILL to everything below us but the helpers of attempts; returns how many there were."""
        killed = await processes.kill_below(os.getpid(), self._helpers(), tuple(self._children))
        if killed:
            log.warning("survivors_killed", count=killed)
        self._forget_dead()
        return killed

    def end_helper(self, child: Child) -> None:
        """An encoder or probe holds nothing that anybody would wait for: SIGKILL, and its watcher collects it."""
        child.signal(signal.SIGKILL)

    async def end_all(self) -> int:
        """SIGKILL to everything below us, helpers too."""
        killed = await processes.kill_below(os.getpid(), (), tuple(self._children))
        for child in list(self._children.values()):
            await child.wait(processes.KILL_WITHIN_S)
        self._forget_dead()
        return killed

    def _helpers(self) -> frozenset[int]:
        return frozenset(
            child.pid for child in self._children.values() if child.is_alive and child.kind is not Kind.RUNNER
        )

    def _forget_dead(self) -> None:
        self._children = {pid: child for pid, child in self._children.items() if child.is_alive}


def _is_long(log_path: Path) -> bool:
    """Helpers of several attempts share a log; a runner begins its own anew."""
    return log_path.exists() and log_path.stat().st_size > HELPER_LOG_BYTES
