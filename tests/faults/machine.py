"""One host as its operator has it: scheduler, telemetry and workers as processes, on a real broker and a real depot.

Smaller than what `screentest up` starts (no users, no reporter, no panel) and open to a test: lanes of its own, a
proxy before broker or depot, a wrapper around a runner's Python.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from screentest import subjects, wire
from screentest.client import Client
from screentest.errors import Unavailable
from screentest.kit.bus import Bus
from screentest.records import Alive, Job, JobEvent, JobState, SweepSpec, Weights
from screentest_ui import ports, programs
from tests.conftest import Depot, RunningServer
from tests.faults import checker, probe
from tests.integration.worker_rig import VENVS

ROOT = Path(__file__).resolve().parents[2]
LANES = ROOT / "deploy" / "lanes"
HOST, DEVICE = "local", "cpu-0"
PROGRAMS = {"scheduler": "screentest-scheduler", "telemetry": "screentest-telemetry"}


@dataclass
class Machine:
    """``start`` and ``kill`` go by name: scheduler, telemetry, or a lane's id for its worker."""

    folder: Path
    nats: RunningServer
    depot: Depot
    bus: Bus
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)
    depot_url: str = ""
    heard: list[Alive] = field(default_factory=list)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lanes.mkdir(parents=True)
        [self.grpc_port] = ports.choose(1)

    # ---- lanes

    @property
    def lanes(self) -> Path:
        return self.folder / "lanes"

    def write_lane(self, lane_id: str, *, work_s: float = 0.2, limits: str = "", call: str = "") -> None:
        """A stub lane; ``limits`` and ``call`` are lines of these tables."""
        text = (LANES / "stub.toml").read_text().replace('id = "stub"', f'id = "{lane_id}"', 1)
        text = text.replace("work_s = 2.0", f"work_s = {work_s}\n{call}")
        if limits:
            before, _, rest = text.partition("[limits]\n")
            text = before + "[limits]\n" + limits + "\n" + rest[rest.index("[[ladder]]") :]
        (self.lanes / f"{lane_id}.toml").write_text(text)

    # ---- processes

    def start(self, name: str, *, as_name: str = "", **settings: str) -> None:
        """``settings`` are kept for later starts of it; ``as_name``: a second one beside the first."""
        known = as_name or name
        kept = self.environments.setdefault(known, {})
        kept |= settings
        program = Path(sys.executable).with_name(PROGRAMS.get(name, "screentest-worker"))
        with self.log(known).open("ab") as log:
            self.running[known] = subprocess.Popen(
                [str(program)], env={**self.environment(name), **kept}, stdout=log, stderr=log
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """SIGKILL, and waits for it."""
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait(timeout=30)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.running[name].send_signal(number)

    def is_up(self, name: str) -> bool:
        process = self.running.get(name)
        return process is not None and process.poll() is None

    def environment(self, name: str) -> dict[str, str]:
        shared = {
            "PATH": os.environ["PATH"],
            programs.MARKER: self.marker,
            "SCREENTEST_NATS_URL": self.nats.url,
            "SCREENTEST_HOST": HOST,
            "SCREENTEST_LOG_FORMAT": "json",
            "SCREENTEST_LOCK_DIR": str(self.locks),
        }
        match name:
            case "scheduler":
                return {**shared, **self._scheduler()}
            case "telemetry":
                state = self.folder / "telemetry"
                return {**shared, "SCREENTEST_STATE_DIR": str(state), "SCREENTEST_DEVICES": DEVICE}
            case _:
                return {**shared, **self._worker(name)}

    def _scheduler(self) -> dict[str, str]:
        secret = self.folder / "secret"
        secret.write_text(self.depot.scheduler.secret_key)
        return {
            "SCREENTEST_GRPC_ADDRESS": f"127.0.0.1:{self.grpc_port}",
            "SCREENTEST_LANES_DIR": str(self.lanes),
            "SCREENTEST_HEARTBEAT_S": "0.5",
            "SCREENTEST_DEPOT_URL": self.depot_url or self.depot.url,
            "SCREENTEST_DEPOT_BUCKET": self.depot.bucket,
            "SCREENTEST_DEPOT_ACCESS_KEY": self.depot.scheduler.access_key,
            "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(secret),
            "SCREENTEST_ACK_WAIT_S": "4",
        }

    def _worker(self, lane_id: str) -> dict[str, str]:
        return {
            "SCREENTEST_LANE_FILE": str(self.lanes / f"{lane_id}.toml"),
            "SCREENTEST_DEVICE": DEVICE,
            "SCREENTEST_STATE_DIR": str(self.folder / "workers"),
            "SCREENTEST_ENV_PYTHON": str(VENVS / "stub" / "bin" / "python"),
            "SCREENTEST_MODELS_DIR": str(self.folder / "models"),
            "SCREENTEST_CACHE_DIR": str(self.folder / "cache"),
            "SCREENTEST_STOP_GRACE_S": "0.5",
            "SCREENTEST_RENEW_S": "1",
        }

    @property
    def locks(self) -> Path:
        return self.folder / "locks"

    async def up(self, *lane_ids: str) -> None:
        """Everything, with the workers of these lanes (none named: of all); returns when all of it answers."""
        lane_ids = lane_ids or tuple(path.stem for path in self.lanes.glob("*.toml"))
        await self.bus.listen("alive.>", self._on_alive)
        self.locks.mkdir(exist_ok=True)
        for name in ("scheduler", "telemetry", *lane_ids):
            self.start(name)
        await self.until(self.answers, 30, "answer of scheduler and telemetry")
        await asyncio.gather(*map(self.has_worker, lane_ids))

    async def has_worker(self, lane_id: str) -> None:
        """Waits for the next heartbeat of this lane, and until the scheduler has heard one."""
        count = len(self.heard)

        async def look() -> bool | None:
            if not any(alive.lane_id == lane_id for alive in self.heard[count:]):
                return None
            lanes = await self.ask(lambda client: client.list_lanes())
            return True if any(lane.lane_id == lane_id and lane.worker_alive for lane in lanes) else None

        await self.until(look, 30, f"worker of {lane_id}")

    async def _on_alive(self, _: str, payload: bytes) -> None:
        self.heard.append(wire.decode(payload, Alive))

    async def answers(self) -> bool | None:
        """Whether the scheduler answers, and telemetry to it."""
        try:
            devices = await self.ask(lambda client: client.list_gpus())
        except Unavailable:
            return None
        return True if devices and all(device.proof is not None for device in devices) else None

    async def down(self) -> None:
        """SIGTERM to all: workers first. Nothing of this machine is left, or the test fails."""
        order = sorted(self.running, key=lambda name: name.startswith("scheduler") or name == "telemetry")
        for name in order:
            if self.is_up(name):
                self.signal(name, signal.SIGCONT)
                self.signal(name, signal.SIGTERM)
        for name in order:
            try:
                await asyncio.to_thread(self.running[name].wait, 30)
            except subprocess.TimeoutExpired:
                self.running[name].kill()
        left = programs.marked(self.marker)
        programs.kill(left)
        assert left == (), f"left behind: {left}"

    # ---- what a person does

    def client(self, port: int | None = None) -> Client:
        return Client.connect(f"127.0.0.1:{port or self.grpc_port}")

    async def ask(self, call: Callable[[Client], Any], port: int | None = None) -> Any:
        def run() -> Any:
            with self.client(port) as client:
                return call(client)

        return await asyncio.to_thread(run)

    async def submit(self, *lane_ids: str, seeds: int = 1, request_id: str = "", **changes: Any) -> str:
        spec = replace(
            SweepSpec(
                title="Fault",
                prompts=("a disc moves",),
                lane_ids=lane_ids,
                seeds=tuple(range(1, seeds + 1)),
                weights=Weights.MINIATURE,
            ),
            **changes,
        )
        accepted = await self.ask(lambda client: client.submit_sweep(spec, request_id=request_id or uuid.uuid4().hex))
        sweep_id: str = accepted.sweep.record.sweep_id
        self.acknowledged[sweep_id] = len(spec.prompts) * len(lane_ids) * seeds
        return sweep_id

    async def jobs(self, sweep_id: str) -> list[Job]:
        return list(await self.ask(lambda client: client.list_jobs(sweep_id)))

    async def settled(self, sweep_id: str, within_s: float = 60.0) -> list[Job]:
        """Its jobs, when every one is terminal and the sweep says so."""
        await self.over(sweep_id, within_s)
        return await self.jobs(sweep_id)

    async def over(self, sweep_id: str, within_s: float = 60.0) -> None:
        async def look() -> bool | None:
            return (await self.ask(lambda client: client.get_sweep(sweep_id))).settled is not None or None

        await self.until(look, within_s, f"end of {sweep_id}")

    async def until(self, look: Callable[[], Any], within_s: float, what: str) -> Any:
        try:
            async with asyncio.timeout(within_s):
                while True:
                    found = look()
                    found = await found if asyncio.iscoroutine(found) else found
                    if found is not None:
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"no {what} within {within_s} s\n{self.logs()}") from None

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    async def states(self, sweep_id: str, *states: JobState, within_s: float = 30.0) -> list[Job]:
        async def look() -> list[Job] | None:
            found = await self.jobs(sweep_id)
            return found if [job.state for job in found] == list(states) else None

        found: list[Job] = await self.until(look, within_s, f"{states} of {sweep_id}")
        return found

    # ---- what is left of it

    async def events(self, sweep_id: str) -> list[JobEvent]:
        filters = [subjects.sweep_job_events(sweep_id)]
        return [wire.decode(item.payload, JobEvent) async for item in self.bus.read(subjects.EVENTS_STREAM, filters)]

    async def event(self, sweep_id: str, kind: type, *, within_s: float = 30.0, count: int = 1) -> JobEvent:
        """Waits for the ``count``-th event of a kind."""

        async def look() -> JobEvent | None:
            found = [event for event in await self.events(sweep_id) if isinstance(event.body, kind)]
            return found[count - 1] if len(found) >= count else None

        found: JobEvent = await self.until(look, within_s, f"{kind.__name__} of {sweep_id}")
        return found

    async def evidence(self, expected: Mapping[str, Any] | None = None) -> checker.Evidence:
        return await checker.gather(
            self.bus,
            self.depot.store(),
            samples=probe.read(self.probe_log),
            acknowledged=self.acknowledged,
            expected=expected,
        )

    @property
    def probe_log(self) -> Path:
        return self.folder / "probe.jsonl"

    def scratch_left(self) -> list[str]:
        """Frames and undelivered attempts below the workers' state."""
        workers = self.folder / "workers"
        frames = [path.name for path in workers.glob("scratch/**/*.result")]
        attempts = [path.name for path in workers.glob("spool/*/*") if path.is_dir() and path.name != "undelivered"]
        return frames + attempts


@asynccontextmanager
async def machine(
    folder: Path, nats: RunningServer, depot: Depot, bus: Bus, **lanes: dict[str, Any]
) -> AsyncIterator[Machine]:
    """A machine that is up, under the probe; ``lanes``: id (``_`` for ``-``) and what write_lane is told of each."""
    found = Machine(folder=folder / "machine", nats=nats, depot=depot, bus=bus)
    for name, told in lanes.items():
        found.write_lane(name.replace("_", "-"), **told)
    found.locks.mkdir()
    with probe.probing(found.locks, found.marker, found.probe_log):
        try:
            await found.up()
            yield found
        finally:
            await found.down()
