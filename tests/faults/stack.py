"""A stack as `screentest up` starts it, and a person who kills parts of it at random."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import SecretStr

from screentest.client import Client
from screentest.errors import Unavailable
from screentest.kit.bus import Bus
from screentest.kit.config import read_secret
from screentest.kit.store import Store
from screentest.records import FailureClass
from screentest_ui import programs
from screentest_ui.home import Home, Running, client_environment
from screentest_ui.services import BUCKET
from tests.faults import checker, probe

SCREENTEST = str(Path(sys.executable).parent / "screentest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    folder: Path
    home: Home

    lanes: tuple[str, ...]

    def run(self, *arguments: str, check: bool = True) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SCREENTEST_")}
        done = subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.folder,
            env={
                **clean,
                "SCREENTEST_HOME": str(self.home.path),
                "SCREENTEST_JUDGES_DIR": str(self.home.path / "no-judges"),  # what is broken here is generation
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        self.run("up", "--lanes", ",".join(self.lanes), "--no-panel")

    @property
    def running(self) -> Running:
        found = self.home.read()
        assert found is not None, "this stack was never started"
        return found

    @property
    def locks(self) -> Path:
        return self.home.path / "locks"

    @property
    def probe_log(self) -> Path:
        return self.folder / "probe.jsonl"

    def client(self) -> Client:
        settings = client_environment(self.home, {})
        token = Path(settings["SCREENTEST_GRPC_TOKEN_FILE"]).read_text()
        return Client.connect(settings["SCREENTEST_GRPC_ADDRESS"], token=token)

    async def bus(self) -> Bus:
        password = read_secret(self.home.secrets.nats_password_file("scheduler"))
        url = f"nats://127.0.0.1:{self.running.ports['nats']}"
        return await Bus.connect(url, name="checker", user="scheduler", password=password)


def submit(stack: Stack, name: str, seeds: Sequence[int]) -> tuple[str, int]:
    """(sweep id, number of its jobs): every lane of the stack, with each seed; the request id is the name."""
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(stack.folder / "key.png")
    sweep = stack.folder / "sweep.toml"
    sweep.write_text(
        f'title = "{name}"\nprompt = "a disc moves"\nlanes = {json.dumps(stack.lanes)}\nseeds = {list(seeds)}\n'
        'weights = "miniature"\nkeyframe = "key.png"\n'
    )
    stack.run("submit", str(sweep), "--request-id", name)
    with stack.client() as client:
        (found,) = (sweep for sweep in client.list_sweeps() if sweep.record.request_id == name)
    return found.record.sweep_id, len(stack.lanes) * len(seeds)


def kill_one(stack: Stack, choice: random.Random, victims: Sequence[str]) -> str:
    """SIGKILL to one of the victims: names of the stack's processes, or ``runner`` for any runner. Empty = none."""
    victim = choice.choice(victims)
    if victim == "runner":
        families = probe.Probe(stack.locks, stack.running.marker).look().alive.values()
        pids = sorted(pid for family in families for pid in family)
    else:
        process = stack.running.processes[victim]
        pids = [process.pid] if programs.is_running(process) else []
    if not pids:
        return ""
    try:
        os.kill(choice.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return victim


def wait_until_over(stack: Stack, sweep_id: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not is_over(stack, sweep_id):
        assert time.monotonic() < deadline, open_jobs(stack, sweep_id)
        time.sleep(0.5)


def is_over(stack: Stack, sweep_id: str) -> bool:
    """False also while the scheduler is away."""
    try:
        with stack.client() as client:
            return client.get_sweep(sweep_id).settled is not None
    except Unavailable:
        return False


def open_jobs(stack: Stack, sweep_id: str) -> str:
    with stack.client() as client:
        jobs = [job for job in client.list_jobs(sweep_id) if not job.state.is_terminal]
    return "\n".join(f"{job.spec.job_id} {job.state} {job.waits_for}" for job in jobs)


async def evidence(stack: Stack, acknowledged: dict[str, int]) -> checker.Evidence:
    (key,) = (key for key in stack.home.secrets.depot_keys(BUCKET) if key.name == "reporter")
    store = Store(
        url=f"http://127.0.0.1:{stack.running.ports['depot_s3']}",
        bucket=BUCKET,
        access_key=key.access_key,
        secret_key=SecretStr(key.secret_key),
    )
    bus = await stack.bus()
    try:
        return await checker.gather(
            bus,
            store,
            samples=probe.read(stack.probe_log),
            acknowledged=acknowledged,
            # A runner that is killed alone is the job's own crash: nobody can tell who killed it.
            expected=dict.fromkeys(stack.lanes, (FailureClass.CRASHED, FailureClass.INFRASTRUCTURE)),
        )
    finally:
        await bus.close()


def published(stack: Stack, sweep_id: str) -> dict[str, object]:
    stack.run("report", sweep_id)
    found: dict[str, object] = json.loads((stack.folder / "out" / sweep_id / "report.json").read_text())
    return found
