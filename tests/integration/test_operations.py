"""What a person does who keeps a stack running: look at all of it, drain, upgrade, undrain, scrape."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from screentest import artifacts
from screentest.errors import NotFound
from screentest.records import ArtifactKind, JobState, Requested, SweepSpec, Weights
from screentest_ui import cli, draining
from screentest_ui.cli_sweeps import past_events
from screentest_ui.home import Home, client_environment
from tests.integration.test_stack import ROOT, SCREENTEST, Stack, environment, processes_of, wait_for

pytestmark = [pytest.mark.timeout(240)]

WORK_S = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Stack):
    """A stack of one quick stub lane; ``settings`` are those of the person who keeps it."""

    settings: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.folder,
            env={**environment(self.home), **self.settings},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, version: str) -> None:
        self.settings["SCREENTEST_VERSION"] = version
        self.ok("up", "--lanes", "stub", "--no-panel", "--metrics")

    def scrape(self, service: str) -> str:
        targets = json.loads(self.home.metrics_file.read_text())
        [address] = next(item["targets"] for item in targets if item["labels"]["service"] == service)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            return str(response.read().decode())

    def begin(self, *seeds: int) -> str:
        """A sweep, submitted by a program: every command costs a second of an interpreter's start."""
        spec = SweepSpec(
            title="A disc",
            prompts=("a disc moves",),
            lane_ids=("stub",),
            seeds=seeds,
            weights=Weights.MINIATURE,
            requested=Requested(num_frames=9),
        )
        with self.client() as client:
            return str(client.submit_sweep(spec, request_id=f"seeds {seeds}").sweep.record.sweep_id)

    def settle(self, sweep_id: str) -> None:
        with self.client() as client:
            wait_for(lambda: client.get_sweep(sweep_id).settled is not None, 60)

    def drain(self, reason: str) -> None:
        with self.client() as client:
            client.drain("local", "cpu-0", reason=reason)

    def undrain(self) -> None:
        with self.client() as client:
            client.undrain("local", "cpu-0")

    def completed(self, sweep_id: str) -> int:
        with self.client() as client:
            return sum(job.state is JobState.COMPLETED for job in client.list_jobs(sweep_id))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("kept")
    lanes = folder / "lanes"
    lanes.mkdir()
    text = (ROOT / "deploy" / "lanes" / "stub.toml").read_text()
    (lanes / "stub.toml").write_text(text.replace("work_s = 2.0", f"work_s = {WORK_S}"))
    settings = {
        "SCREENTEST_LANES_DIR": str(lanes),
        "SCREENTEST_ARCHIVE_AFTER_S": "1",
        "SCREENTEST_ARCHIVE_EVERY_S": "0.5",
    }
    stack = Kept(folder=folder, home=Home(folder / "home"), settings=settings)
    try:
        stack.start("1.0")
        yield stack
    finally:
        stack.run("down")
        assert processes_of(stack.home) == []


def test_running_sweep_survives_an_upgrade(stack: Kept) -> None:
    """Drain, stop all, start all with other code, undrain: every job ends once, and none is lost to the restart."""
    sweep_id = stack.begin(*range(10))
    wait_for(lambda: stack.completed(sweep_id) > 0)
    stack.drain("upgrade to 2.0")  # on a loaded machine all jobs end before a command has started
    told = stack.ok("drain", "cpu-0", "--wait")
    assert told == "local/cpu-0 takes no further job: upgrade to 2.0\n"
    before = stack.completed(sweep_id)
    assert before < 10
    assert 'version="1.0"' in stack.scrape("scheduler")

    stack.ok("down")
    stack.start("2.0")
    assert 'version="2.0"' in stack.scrape("scheduler")
    assert 'screentest_device_drained{device="cpu-0",host="local"} 1.0' in stack.scrape("scheduler")
    waiting = stack.ok("status", "--all")
    assert "GPU drained: upgrade to 2.0" in waiting
    assert stack.completed(sweep_id) == before

    assert stack.ok("undrain", "cpu-0") == "local/cpu-0 takes jobs again\n"
    stack.settle(sweep_id)
    with stack.client() as client:
        jobs = client.list_jobs(sweep_id)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 10
    assert [len(job.attempts) for job in jobs] == [1] * 10


def test_numbers_are_served_by_scheduler_telemetry_and_worker(stack: Kept) -> None:
    stack.settle(stack.begin(101))
    scheduler = stack.scrape("scheduler")
    assert 'screentest_attempts_total{class="completed",lane="stub"}' in scheduler
    assert 'screentest_phase_seconds_bucket{lane="stub",le="+Inf",phase="denoising"}' in scheduler
    assert 'screentest_device_clean{device="cpu-0",host="local",proof=' in stack.scrape("telemetry")
    assert 'screentest_spool_attempts{device="cpu-0",host="local",lane="stub"} 0.0' in stack.scrape("worker-stub")


def test_status_of_everything_names_every_part(stack: Kept) -> None:
    stack.drain("a look around")
    sweep_id = stack.begin(201, 202)
    try:
        out = stack.ok("status", "--all")
        found = json.loads(stack.ok("status", "--all", "--json"))
    finally:
        stack.undrain()
    assert "/screentest: answers" in out
    for stream in ("EVENTS", "JOBS", "VITALS"):
        assert f"\n{stream}\t" in out
    assert "\nstub\tlocal/cpu-0\theard\t" in out
    job_ids = {job["spec"]["job_id"] for job in found["open_jobs"]}
    assert len(job_ids) == 2
    assert all(f"\n{job_id}\tstub\t" in out for job_id in job_ids)
    assert found["servers"]["version"] == stack.settings["SCREENTEST_VERSION"]
    stack.settle(sweep_id)
    table = stack.ok("status", sweep_id, "--all")
    assert all(f"\n{job_id}\tstub\t" in table for job_id in job_ids)


def test_unknown_device_is_told_with_those_that_there_are(stack: Kept) -> None:
    for verb in ("drain", "undrain"):
        told = stack.run(verb, "gpu-7")
        assert told.returncode == 1
        assert told.stderr == "error: there is no device local/gpu-7; there are local/cpu-0\n"
    told = stack.run("undrain", "cpu-0")
    assert told.stderr == "error: local/cpu-0 is not drained\n"


def test_second_drain_keeps_the_first_reason(stack: Kept) -> None:
    stack.drain("the fan is loud")
    try:
        with stack.client() as client:
            assert client.drain("local", "cpu-0", reason="another").drained_reason == "the fan is loud"
    finally:
        stack.undrain()


def test_retry_says_which_seed_it_tries_again(stack: Kept) -> None:
    stack.drain("to cancel what waits")
    sweep_id = stack.begin(301)
    with stack.client() as client:
        client.cancel_sweep(sweep_id)
    stack.undrain()
    stack.settle(sweep_id)
    line = stack.ok("retry", sweep_id, "--failed").strip()
    assert line.startswith("Stub, seed 301: ")
    assert "tries" in line


def logged(stack: Kept, *services: str) -> list[dict[str, object]]:
    """Every structured line of these services; what the interpreter itself says is none."""
    lines = [line for name in services for line in stack.home.log_file(name).read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_every_line_about_an_attempt_names_it_whole(stack: Kept) -> None:
    sweep_id = stack.begin(501)
    stack.settle(sweep_id)
    with stack.client() as client:
        [job] = client.list_jobs(sweep_id)
        wait_for(lambda: any(line["event"] == "report_published" for line in logged(stack, "reporter")))
        with pytest.raises(NotFound):
            client.get_artifact(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name="no.txt")
    whole = {"sweep": sweep_id, "lane": "stub", "job": job.spec.job_id}
    told = {
        str(line["event"])
        for line in logged(stack, "worker-stub", "scheduler")
        if {**whole, "attempt": 1}.items() <= line.items()
    }
    worker = {"delivery_decided", "attempt_started", "attempt_ended"}
    assert worker | {"job_admitted", "job_completed"} <= told
    for line in logged(stack, "worker-stub", "scheduler"):
        if "job" in line and "rpc" not in line:  # a call is about a job, not about an attempt at it
            assert {"sweep", "lane", "job", "attempt"} <= line.keys(), line
    about_reports = [line for line in logged(stack, "reporter") if line["event"] == "report_published"]
    assert all(line["sweep"] for line in about_reports)


def example(stack: Kept, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "proto" / "examples" / f"{name}.py"), *arguments],
        cwd=stack.folder,
        env={**environment(stack.home), **client_environment(stack.home, {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_examples_of_the_client_do_what_they_say(stack: Kept) -> None:
    submitted = example(stack, "submit_and_watch", "my-first", "a disc moves", "stub")
    sweep_id = submitted.split()[0]
    assert submitted.startswith(f"{sweep_id} is new\n")
    assert submitted.endswith("settled: 2 of 2 jobs have a clip\n")

    first = example(stack, "resume_watch", sweep_id, "cursor.txt", "5").split()
    rest = example(stack, "resume_watch", sweep_id, "cursor.txt").split()
    with stack.client() as client:
        told = past_events(client, sweep_id)
        assert [*first, *rest] == [type(event.body).__name__ for event in told]
        clips = {job.spec.seed: job.clip for job in client.list_jobs(sweep_id)}

    fetched = example(stack, "fetch_clips", sweep_id, "clips")
    assert fetched.count(" bytes") == 2
    for seed, clip in clips.items():
        assert clip is not None
        content = (stack.folder / "clips" / f"stub-{seed}.mp4").read_bytes()
        assert hashlib.sha256(content).hexdigest() == clip.sha256


def test_backup_of_a_running_stack_comes_back_and_its_sweep_goes_on(stack: Kept, tmp_path: Path) -> None:
    sweep_id = stack.begin(*range(401, 405))
    wait_for(lambda: stack.completed(sweep_id) > 0)
    stack.drain("a backup")
    with stack.client() as client:
        draining.wait_until_idle(client, "local", "cpu-0", note=lambda _line: None)
    before = stack.completed(sweep_id)
    told = stack.ok("backup", "kept-safe")
    assert told.startswith("kept-safe: ")
    running = stack.run("restore-backup", "kept-safe")
    assert "the stack is running" in running.stderr

    other = Kept(folder=stack.folder, home=Home(tmp_path / "other"), settings={**stack.settings})
    try:
        assert "objects are back" in other.ok("restore-backup", "kept-safe")
        other.start("3.0")
        assert other.completed(sweep_id) == before < 4
        other.undrain()
        other.settle(sweep_id)
        assert "4 clips" in other.ok("report", sweep_id)
    finally:
        other.run("down")
        stack.undrain()
    assert processes_of(other.home) == []


def test_depot_that_is_away_is_said(stack: Kept) -> None:
    running = stack.home.read()
    assert running is not None
    depot = running.processes["depot"]
    subprocess.run(["kill", "-STOP", str(depot.pid)], check=True)
    try:
        out = stack.ok("status", "--all")
    finally:
        subprocess.run(["kill", "-CONT", str(depot.pid)], check=True)
    assert "did not answer within" in out or "does not answer" in out


def test_report_says_which_clip_has_expired(stack: Kept) -> None:
    sweep_id = stack.begin(601)
    stack.settle(sweep_id)

    def row() -> dict[str, Any]:
        """Of the published report; empty before there is one, and while none of its jobs is in it."""
        try:
            with stack.client() as client:
                found = client.get_artifact(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name="report.json")
            rows = json.loads(artifacts.read(found.url, found.artifact.key))["rows"]
            return dict(rows[0]) if rows else {}
        except NotFound:
            return {}

    wait_for(lambda: bool(row().get("sheet")), 60)
    assert row()["picture_error"] is None
    os.kill(stack.pid("scheduler"), signal.SIGKILL)
    stack.settings["SCREENTEST_CLIPS_KEPT_S"] = "0"
    stack.start("2.1")
    wait_for(lambda: "clip expired on" in (row().get("picture_error") or ""), 60)
    assert row()["sheet"]
    told = stack.run("report", sweep_id)
    assert "any more: clip expired on" in told.stdout + told.stderr
    page = (stack.folder / "out" / sweep_id / "index.html").read_text()
    assert "The clip cannot be shown: clip expired on" in page
    assert "1 clip of this sweep has expired" in page


@pytest.mark.parametrize("group", ["", "rubric", "lanes", "models", "depot"])
def test_no_line_of_the_help_is_cut_off(
    group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run([*filter(None, [group]), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Commands:" in shown
    assert "..." not in shown.replace("[ARGS]...", "")
