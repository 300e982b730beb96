"""The one runner this worker may have: started, prepared, opened, warm, retired."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from screentest.records import DeviceFacts, Process
from screentest_runner import protocol
from screentest_runner.protocol import Message, ProtocolError
from screentest_worker import gpu_lock
from screentest_worker.supervisor import Child, Supervisor

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmKey:
    """What must be equal for a loaded runner to serve the next attempt."""

    lane_digest: str
    weights: str
    rung: int
    memory_cap_gib: float | None = None


class Runner:
    """One runner process and how far it has come."""

    def __init__(self, child: Child, process: Process, lock_fd: int) -> None:
        self.child = child
        self.process = process
        self.lock_fd = lock_fd  # its number in the runner; ours is closed
        self.is_prepared = False  # it has been told to import what the lane needs
        self.is_open = False  # registered with telemetry and told to take the lock
        self.key: WarmKey | None = None
        self.used_at = time.monotonic()
        self.survivors_killed = 0  # what it left when it died, killed before anybody ended it

    def send(self, message: Message) -> None:
        self.child.send(protocol.to_line(message))

    async def receive(self) -> Message | None:
        """The next reply; None after its death. A line that is no reply kills it: the two sides are out of step."""
        line = await self.child.receive()
        if line is None:
            return None
        try:
            return protocol.parse(line)
        except ProtocolError as error:
            log.error("runner_broke_protocol", error=str(error))
            self.child.signal(signal.SIGKILL)
            return None


class RunnerSlot:
    """At most one runner. ``changed`` is called at every change that a heartbeat should tell.

    A dead runner stays in the slot until everything below us has been killed: a child that it forked holds the
    device's lock as long as it lives.
    """

    def __init__(
        self, supervisor: Supervisor, lock_dir: Path, stop_grace_s: float, changed: Callable[[], None]
    ) -> None:
        self._supervisor = supervisor
        self._lock_dir = lock_dir
        self._stop_grace_s = stop_grace_s
        self._changed = changed
        self._one_at_a_time = asyncio.Lock()
        self._filled = asyncio.Event()
        self._runner: Runner | None = None

    @property
    def current(self) -> Runner | None:
        """The living runner, None when there is none."""
        runner = self._runner
        return runner if runner is not None and runner.child.is_alive else None

    def is_warm_for(self, key: WarmKey) -> bool:
        return self.current is not None and self.current.key == key

    async def started(self, facts: DeviceFacts) -> Runner:
        """The current runner, or a new process with the lock's descriptor. Raises OSError when it cannot start."""
        async with self._one_at_a_time:
            if (runner := self.current) is not None:
                return runner
            if self._runner is not None:
                await self._end("it died unnoticed", dump_first=False)
            with gpu_lock.opened(self._lock_dir, facts.lock_name) as lock_fd:
                lock_path = self._lock_dir / facts.lock_name
                child = self._supervisor.start_runner(lock_fd=lock_fd, lock_path=lock_path, gpu_uuid=facts.gpu_uuid)
            process = child.process
            if process is None:
                raise OSError(f"the runner died at once with status {child.returncode}; read {child.log_path.name}")
            self._runner = Runner(child, process, lock_fd)
            self._filled.set()
            log.info("runner_started", pid=child.pid)
            self._changed()
            return self._runner

    async def retire(self, reason: str, *, dump_first: bool = False) -> int:
        """Ends the runner and everything it left; returns how many processes had to be killed.

        Without a runner it still looks for what an earlier one left: nobody else would.
        """
        async with self._one_at_a_time:
            return await self._end(reason, dump_first=dump_first)

    async def watch(self) -> None:
        """Kills what a runner leaves behind as soon as it dies, be it idle or not. Runs until it is cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            if (runner := self._runner) is not None:
                await runner.child.exited.wait()
                await self._sweep_behind(runner)

    async def _sweep_behind(self, runner: Runner) -> None:
        """No-op when the runner was ended meanwhile. It stays in the slot: its attempt still has to end it."""
        async with self._one_at_a_time:
            if self._runner is not runner:
                return
            runner.survivors_killed += await self._supervisor.sweep()
            log.warning(
                "runner_died",
                pid=runner.child.pid,
                returncode=runner.child.returncode,
                survivors_killed=runner.survivors_killed,
            )
            self._changed()

    async def _end(self, reason: str, *, dump_first: bool) -> int:
        """``retire`` for a caller that has the turn already."""
        runner = self._runner
        if runner is None:
            return await self._supervisor.sweep()
        began = time.monotonic()
        ended = await self._supervisor.end(runner.child, grace_s=self._stop_grace_s, dump_first=dump_first)
        killed = runner.survivors_killed + ended
        log.info("runner_retired", reason=reason, killed=killed, seconds=round(time.monotonic() - began, 3))
        self._runner = None
        self._changed()
        return killed
