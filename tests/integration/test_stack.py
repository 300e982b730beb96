"""The local stack as a person meets it: the real command, real processes, a stub lane."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from screentest.client import Client
from screentest.errors import NotPossibleNow
from screentest.records import JobEvent, JobState
from screentest_ui import ports, programs, waiting
from screentest_ui.cli_sweeps import past_events
from screentest_ui.home import Home, client_environment
from screentest_ui.printing import LiveSweep
from tests.conftest import COMMAND_PORTS, PORTS_OF_ALL_WORKERS

SCREENTEST = str(Path(sys.executable).parent / "screentest")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.timeout(240),
]

SWEEP = """
title = "A disc"
prompt = "a disc moves"
lanes = {lanes}
seeds = {seeds}
weights = "miniature"
[requested]
num_frames = 9
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One home with a stub stack; ``run`` is the command of a person who sits in ``folder``."""

    folder: Path
    home: Home

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        return environment(self.home)

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> str:
        return self.ok("up", "--lanes", "stub", "--no-panel")

    def sweep_file(self, *, lanes: Sequence[str] = ("stub",), seeds: Sequence[int] = (1,)) -> str:
        path = self.folder / "sweep.toml"
        path.write_text(SWEEP.format(lanes=json.dumps(list(lanes)), seeds=list(seeds)))
        return str(path)

    def submit(self, *options: str, **cells: Sequence[int]) -> str:
        out = json.loads(self.ok("submit", self.sweep_file(**cells), "--json", *options))
        return str(out["record"]["sweep_id"])

    def client(self) -> Client:
        settings = client_environment(self.home, {})
        return Client.connect(
            settings["SCREENTEST_GRPC_ADDRESS"], token=Path(settings["SCREENTEST_GRPC_TOKEN_FILE"]).read_text()
        )

    def pid(self, name: str) -> int:
        running = self.home.read()
        assert running is not None
        return running.processes[name].pid


def environment(home: Home) -> dict[str, str]:
    """Without judges: their jobs come and go beside what is tested here."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SCREENTEST_")}
    return {**clean, "SCREENTEST_HOME": str(home.path), "SCREENTEST_JUDGES_DIR": str(home.path / "no-judges")}


def processes_of(home: Home) -> list[str]:
    running = home.read()
    return [process.command for process in programs.marked(running.marker)] if running else []


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack(folder=folder, home=Home(folder / "home"))
    try:
        stack.up()
        yield stack
    finally:
        stack.run("down")
        assert processes_of(stack.home) == []


def test_sweep_goes_from_submit_to_report(stack: Stack) -> None:
    out = stack.ok("submit", stack.sweep_file(), "--wait")
    assert "completed" in out
    sweep_id = next(line.split()[1] for line in out.splitlines() if line.startswith("sweep: "))
    fetched = stack.ok("report", sweep_id)
    assert fetched.splitlines()[-1] == f"report: out/{sweep_id}/index.html"
    document = json.loads((stack.folder / "out" / sweep_id / "report.json").read_text())
    out_folder = stack.folder / "out"
    names = {str(path.relative_to(out_folder)) for path in (out_folder / sweep_id).rglob("*") if path.is_file()}
    with zipfile.ZipFile(out_folder / f"{sweep_id}.zip") as archive:
        assert archive.testzip() is None and set(archive.namelist()) == names
    assert [row["status"] for row in document["rows"]] == ["completed"]
    assert document["final"] is True
    clip = stack.folder / "out" / sweep_id / document["rows"][0]["clip"]["file"]
    assert clip.stat().st_size == document["rows"][0]["clip"]["size_bytes"]


def test_events_tell_the_whole_story_in_order(stack: Stack) -> None:
    sweep_id = stack.submit()
    stack.ok("watch", sweep_id)
    kinds = [json.loads(line)["kind"] for line in stack.ok("events", sweep_id, "--json").splitlines()]
    assert kinds == ["SweepSubmitted", "Submitted", "Admitted", "Started", "AttemptEnded", "Completed", "SweepSettled"]


def test_a_job_is_run_again_and_two_sweeps_are_held_against_each_other(stack: Stack) -> None:
    first = stack.submit(seeds=(1, 2))
    stack.ok("watch", first)
    (job, _) = json.loads(stack.ok("status", first, "--json"))["jobs"]
    replayed = stack.ok("replay", job["spec"]["job_id"])
    assert "bit-exact; nothing differs in the manifests" in replayed
    second = next(line.split()[1] for line in replayed.splitlines() if line.startswith("sweep: "))
    told = json.loads(stack.ok("diff", first, second, "--min-survival", "1", "--json"))
    (pair,) = told["pairs"]  # the other seed is in one of them only
    assert (told["survival"], pair["likeness"]["exact"], pair["causes"], len(told["only_a"])) == ([1, 1], True, [], 1)
    broken = stack.run("diff", first, second, "--min-survival", "2")
    assert broken.returncode == 1
    assert "over the limit: survival: 1 of 1 cells completed in B" in broken.stdout
    page = stack.folder / f"out/diff-{first}-{second}/index.html"
    assert page.is_file()
    assert (page.parent / f"../{first}/clips").is_dir()


def test_second_up_on_the_same_state_starts_nothing(stack: Stack) -> None:
    before = stack.pid("scheduler")
    out = stack.up()
    assert "already running" in out
    assert "everything was running already" in out
    assert stack.pid("scheduler") == before


def test_killed_scheduler_comes_back_with_up_and_the_sweep_finishes(stack: Stack) -> None:
    sweep_id = stack.submit(seeds=(1, 2, 3))
    wait_for(lambda: stack.ok("events", sweep_id).count("Started") >= 1)
    os.kill(stack.pid("scheduler"), signal.SIGKILL)
    assert "scheduler is up" in stack.up()
    stack.ok("watch", sweep_id)
    terminal = [event.job_id for event in job_events(stack, sweep_id) if event.state.is_terminal]
    assert len(terminal) == 3
    assert len(set(terminal)) == 3


def test_watching_survives_a_restart_of_the_scheduler(stack: Stack) -> None:
    sweep_id = stack.submit(seeds=(1, 2, 3))
    watcher = subprocess.Popen(
        [SCREENTEST, "watch", sweep_id],
        cwd=stack.folder,
        env=environment(stack.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert watcher.stdout is not None
    first = watcher.stdout.readline()  # it watches
    os.kill(stack.pid("scheduler"), signal.SIGKILL)
    stack.up()
    rest, _ = watcher.communicate(timeout=60)
    out = first + rest
    assert watcher.returncode == 0, out
    assert out.count(": completed") == 3
    assert "still trying" in out


def test_cancelled_sweep_is_tried_again(stack: Stack) -> None:
    sweep_id = stack.submit(seeds=(5, 6))
    with stack.client() as client:  # on a loaded machine both jobs end before a command of ours has started
        wait_for(lambda: any(job.state is JobState.RUNNING for job in client.list_jobs(sweep_id)))
        assert client.cancel_sweep(sweep_id) == 2
    stack.ok("watch", sweep_id)
    table = stack.ok("status", sweep_id)
    assert "cancelled" in table
    out = stack.ok("retry", sweep_id, "--failed", "--wait")
    assert "2nd try" in out
    with stack.client() as client:
        last = {job.spec.seed: job for job in client.list_jobs(sweep_id)}
    assert {job.state for job in last.values()} == {JobState.COMPLETED}
    document = stack.ok("report", sweep_id)
    assert "2 clips" in document


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('title = "x"\nprompts = ["p"]\nlane = ["stub"]\n', "did you mean 'lanes'?"),
        ('title = "x"\nprompts = ["p"]\nlanes = ["stubb"]\n', "stubb"),
        ('title = "x"\nprompts = ["p"]\nlanes = ["wan2.1-t2v-1.3b"]\n', "wan2-1-t2v-1-3b"),
        ('title = "x"\nprompts = [" "]\nlanes = ["stub"]\n', "prompt"),
        ('title = "x"\nprompts = ["p"]\nlanes = ["stub-i2v"]\n', "keyframe"),
        ('title = "x"\nprompts = ["p"]\nlanes = ["stub"]\nkeyframe = "sweep.toml"\n', "none of PNG"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(stack: Stack, text: str, told: str) -> None:
    path = stack.folder / "sweep.toml"
    path.write_text(text)
    done = stack.run("submit", str(path))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_sweep_is_no_usage_error(stack: Stack) -> None:
    done = stack.run("watch", "nothing-here")
    assert done.returncode == 1
    assert "nothing-here" in done.stderr


def test_same_request_id_is_the_same_sweep(stack: Stack) -> None:
    first = stack.submit("--request-id", "twice")
    assert stack.submit("--request-id", "twice") == first
    done = stack.run("submit", stack.sweep_file(seeds=(9,)), "--request-id", "twice")
    assert done.returncode == 1
    assert "twice" in done.stderr


def test_wait_fails_when_no_chosen_lane_has_a_worker(stack: Stack) -> None:
    image = stack.folder / "frame.png"
    image.write_bytes((ROOT / "deploy/sweeps/architects-stillness.png").read_bytes())
    out = json.loads(stack.ok("submit", stack.sweep_file(lanes=("stub-i2v",)), "--keyframe", str(image), "--json"))
    sweep_id = out["record"]["sweep_id"]
    with stack.client() as client, LiveSweep(quiet=True) as live:
        workers = waiting.WorkerWatch(client, limit_s=2.0)
        with pytest.raises(NotPossibleNow, match="screentest up --lanes stub-i2v"):
            waiting.follow(client, sweep_id, "", live, workers)
        assert any("no worker" in job.waits_for for job in live.watched.jobs.values())
    assert "cancel requested for 1 jobs" in stack.ok("cancel", sweep_id)


def test_two_homes_run_side_by_side_and_down_leaves_nothing(stack: Stack, tmp_path: Path) -> None:
    other = Stack(folder=tmp_path, home=Home(tmp_path / "home"))
    try:
        other.up()
        assert other.ok("submit", other.sweep_file(), "--wait").count("completed") >= 1
    finally:
        out = other.ok("down")
    assert "stopped 6 processes" in out
    assert processes_of(other.home) == []
    assert "nothing was running" in other.ok("down")
    assert "stub" in stack.ok("lanes")


def test_state_survives_a_restart(tmp_path: Path) -> None:
    stack = Stack(folder=tmp_path, home=Home(tmp_path / "home"))
    try:
        stack.up()
        sweep_id = stack.submit()
        stack.ok("watch", sweep_id)
        stack.ok("down")
        stack.up()
        assert sweep_id in stack.ok("status")
        assert stack.ok("report", sweep_id).startswith("1 clips")
    finally:
        stack.run("down")


def test_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [SCREENTEST, "up", "--lanes", "stub", "--no-panel"],
            cwd=tmp_path,
            env={**environment(Home(tmp_path / "home")), "SCREENTEST_GRPC_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert "SCREENTEST_GRPC_PORT" in done.stderr


def job_events(stack: Stack, sweep_id: str) -> list[JobEvent]:
    with stack.client() as client:
        return [event for event in past_events(client, sweep_id) if isinstance(event, JobEvent)]


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_chosen_ports_are_below_the_ephemeral_range() -> None:
    assert COMMAND_PORTS.stop <= 32768  # where Linux begins to lend ports
    assert PORTS_OF_ALL_WORKERS.stop <= COMMAND_PORTS.start
    assert len(set(ports.choose(5))) == 5
