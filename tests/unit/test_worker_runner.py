"""The slot of the one runner: what it does about a runner that died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from screentest.records import DeviceFacts, Process
from screentest_worker.runner import RunnerSlot

FACTS = DeviceFacts(host="local", device="cpu-0", lock_name="cpu-0.lock", memory_kind="unified")


class ChildStandIn:
    """A child that dies when it is told to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.process = Process(pid=pid, start_ticks=1)
        self.returncode: int | None = None
        self.exited = asyncio.Event()
        self.log_path = Path("runner.log")

    @property
    def is_alive(self) -> bool:
        return not self.exited.is_set()

    def die(self) -> None:
        self.returncode = -9
        self.exited.set()


class SupervisorStandIn:
    """Counts what is left below it, as the real one finds it in /proc."""

    def __init__(self) -> None:
        self.children: list[ChildStandIn] = []
        self.survivors = 0

    def start_runner(self, *, lock_fd: int, lock_path: Path, gpu_uuid: str | None) -> ChildStandIn:
        self.children.append(ChildStandIn(len(self.children) + 1))
        return self.children[-1]

    async def end(self, child: ChildStandIn, *, grace_s: float, dump_first: bool) -> int:
        child.die()
        return await self.sweep()

    async def sweep(self) -> int:
        await asyncio.sleep(0)
        killed, self.survivors = self.survivors, 0
        return killed


@pytest.fixture
def supervisor() -> SupervisorStandIn:
    return SupervisorStandIn()


@pytest.fixture
def slot(supervisor: SupervisorStandIn, tmp_path: Path) -> RunnerSlot:
    return RunnerSlot(supervisor, tmp_path, 1.0, lambda: None)  # type: ignore[arg-type]


@asynccontextmanager
async def watched(slot: RunnerSlot) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(slot.watch())
        yield
        watching.cancel()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_retirement_of_a_dead_runner_kills_what_it_left(slot: RunnerSlot, supervisor: SupervisorStandIn) -> None:
    """A heartbeat that looks between the death and the retirement must not make the slot forget."""
    await slot.started(FACTS)
    supervisor.survivors = 2
    supervisor.children[0].die()
    assert slot.current is None
    assert await slot.retire("test") == 2


async def test_retirement_without_a_runner_still_sweeps(slot: RunnerSlot, supervisor: SupervisorStandIn) -> None:
    supervisor.survivors = 1
    assert await slot.retire("test") == 1


async def test_next_runner_starts_after_the_dead_ones_survivors_are_killed(
    slot: RunnerSlot, supervisor: SupervisorStandIn
) -> None:
    first = await slot.started(FACTS)
    supervisor.survivors = 1
    supervisor.children[0].die()
    second = await slot.started(FACTS)
    assert second is not first
    assert supervisor.survivors == 0


async def test_watch_sweeps_at_once_and_the_retirement_still_tells_the_count(
    slot: RunnerSlot, supervisor: SupervisorStandIn
) -> None:
    async with watched(slot):
        for _ in range(2):  # the second runner of a slot is watched as the first
            await slot.started(FACTS)
            await settle()
            supervisor.survivors = 1
            supervisor.children[-1].die()
            await settle()
            assert supervisor.survivors == 0
            assert await slot.retire("test") == 1
            assert await slot.retire("test") == 0
