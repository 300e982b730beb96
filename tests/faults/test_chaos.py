"""Random SIGKILLs of workers, runners, scheduler and broker while two lanes share one device.

The checker trusts nothing the product reports about itself: it reads the event history from the broker, the life of
the runners from /proc, and the clips from the depot.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from screentest import subjects, wire
from screentest.client import Client
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.kit.config import read_secret
from screentest.records import ArtifactKind, AttemptEnded, JobEvent, JobState, Started
from screentest_ui import programs
from screentest_ui.home import Home, client_environment

SCREENTEST = str(Path(sys.executable).parent / "screentest")
VICTIMS = ("worker-stub", "worker-stub-i2v", "runner", "scheduler", "nats")
CHAOS_S = 25.0
SAMPLE_S = 0.03
# One seed here; SCREENTEST_CHAOS_SEEDS="1 2 3" runs others, and a failing one is in the test's name.
SEEDS = [int(seed) for seed in os.environ.get("SCREENTEST_CHAOS_SEEDS", "20260508").split()]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    folder: Path
    home: Home

    def run(self, *arguments: str, check: bool = True) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SCREENTEST_")}
        done = subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.folder,
            env={**clean, "SCREENTEST_HOME": str(self.home.path)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        self.run("up", "--lanes", "stub,stub-i2v", "--no-panel")

    def client(self) -> Client:
        settings = client_environment(self.home, {})
        token = Path(settings["SCREENTEST_GRPC_TOKEN_FILE"]).read_text()
        return Client.connect(settings["SCREENTEST_GRPC_ADDRESS"], token=token)

    async def bus(self) -> Bus:
        running = self.home.read()
        assert running is not None
        password = read_secret(self.home.secrets.nats_password_file("scheduler"))
        url = f"nats://127.0.0.1:{running.ports['nats']}"
        return await Bus.connect(url, name="checker", user="scheduler", password=password)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(folder=tmp_path, home=Home(tmp_path / "home"))
    try:
        stack.up()
        yield stack
    finally:
        stack.run("down")
    running = stack.home.read()
    assert running is not None
    assert programs.marked(running.marker) == ()


class RunnerWatch(threading.Thread):
    """When each runner was last seen alive, by (pid, start ticks); boot clock in ns."""

    def __init__(self, marker: str) -> None:
        super().__init__(daemon=True)
        self._marker = marker
        self._stopping = threading.Event()
        self.last_seen: dict[tuple[int, int], int] = {}

    def run(self) -> None:
        while not self._stopping.is_set():
            now_ns = clock.boottime_ns()
            for process in self.alive():
                self.last_seen[process] = now_ns
            time.sleep(SAMPLE_S)

    def alive(self) -> list[tuple[int, int]]:
        pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
        processes = [process for pid in pids if (process := clock.process_of(pid)) is not None]
        return [
            (process.pid, process.start_ticks)
            for process in processes
            if process.command.endswith("-m screentest_runner") and self._is_ours(process.pid)
        ]

    def _is_ours(self, pid: int) -> bool:
        try:
            return self._marker.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def submit(stack: Stack) -> str:
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(stack.folder / "key.png")
    sweep = stack.folder / "sweep.toml"
    sweep.write_text(
        'title = "Chaos"\nprompt = "a disc moves"\nlanes = ["stub", "stub-i2v"]\nseeds = [1, 2, 3]\n'
        'weights = "miniature"\nkeyframe = "key.png"\n'
    )
    stack.run("submit", str(sweep), "--request-id", "chaos")
    with stack.client() as client:
        return client.list_sweeps()[0].record.sweep_id


def kill_something(stack: Stack, choice: random.Random, watch: RunnerWatch) -> str:
    victim = choice.choice(VICTIMS)
    running = stack.home.read()
    assert running is not None
    if victim == "runner":
        runners = watch.alive()
        if not runners:
            return "no runner to kill"
        os.kill(choice.choice(runners)[0], signal.SIGKILL)
    elif programs.is_running(running.processes[victim]):
        os.kill(running.processes[victim].pid, signal.SIGKILL)
    return victim


def wait_until_over(stack: Stack, sweep_id: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    with stack.client() as client:
        while client.get_sweep(sweep_id).settled is None:
            assert time.monotonic() < deadline, [
                (job.spec.job_id, job.state, job.waits_for) for job in client.list_jobs(sweep_id)
            ]
            time.sleep(0.5)


async def history(stack: Stack, sweep_id: str) -> tuple[list[JobEvent], tuple[str, ...]]:
    """(every job event in stream order, dispatch messages that are left)."""
    bus = await stack.bus()
    try:
        filters = [subjects.sweep_job_events(sweep_id)]
        events = [wire.decode(item.payload, JobEvent) async for item in bus.read(subjects.EVENTS_STREAM, filters)]
        return events, await bus.dispatched()
    finally:
        await bus.close()


def device_intervals(events: list[JobEvent], watch: RunnerWatch) -> list[tuple[int, int, str]]:
    """(start, end, attempt) of each attempt's time on the device, boot clock in ns.

    It ends with the last frame decoded, or when its runner was last seen alive, whichever came first.
    """
    intervals = []
    ended = {
        (event.job_id, event.attempt): event.body.outcome for event in events if isinstance(event.body, AttemptEnded)
    }
    for event in events:
        if not isinstance(event.body, Started):
            continue
        runner = (event.body.runner.pid, event.body.runner.start_ticks)
        end = watch.last_seen.get(runner, event.stamp.boottime_ns)
        outcome = ended.get((event.job_id, event.attempt))
        for phase in outcome.phases if outcome else ():
            if phase.phase == "decoding":
                end = min(end, phase.started_boottime_ns + int(phase.seconds * 1e9))
        intervals.append((event.stamp.boottime_ns, end, f"{event.job_id}/{event.attempt}"))
    return sorted(intervals)


def assert_clips_are_whole(stack: Stack, sweep_id: str) -> None:
    with stack.client() as client:
        for job in client.list_jobs(sweep_id):
            if job.state is JobState.COMPLETED:
                found = client.get_artifact(kind=ArtifactKind.CLIP, job_id=job.spec.job_id)
                with urllib.request.urlopen(found.url) as response:
                    data = response.read()
                assert hashlib.sha256(data).hexdigest() == found.artifact.sha256


@pytest.mark.parametrize("seed", SEEDS)
def test_every_job_ends_once_and_the_device_is_never_shared(stack: Stack, seed: int) -> None:
    choice = random.Random(seed)
    running = stack.home.read()
    assert running is not None
    watch = RunnerWatch(running.marker)
    watch.start()
    sweep_id = submit(stack)
    killed = []
    until = time.monotonic() + CHAOS_S
    while time.monotonic() < until:
        time.sleep(choice.uniform(0.5, 3.0))
        killed.append(kill_something(stack, choice, watch))
        time.sleep(choice.uniform(0.0, 0.5))
        stack.up()
    wait_until_over(stack, sweep_id, within_s=240)
    watch.stop()
    events, left = asyncio.run(history(stack, sweep_id))

    told = f"seed {seed}, killed {killed}"
    terminal = Counter(event.job_id for event in events if event.state.is_terminal)
    assert len(terminal) == 6, told
    assert set(terminal.values()) == {1}, f"{told}: {terminal}"
    assert left == (), told
    intervals = device_intervals(events, watch)
    overlaps = [pair for pair in itertools.pairwise(intervals) if pair[1][0] < pair[0][1]]
    assert overlaps == [], told
    assert any(event.state is JobState.COMPLETED for event in events), told
    assert_clips_are_whole(stack, sweep_id)
