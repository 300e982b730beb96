"""Everything a stack has to say of itself at once: sweeps, open jobs, devices, workers, streams and depot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from screentest.client import Client, Servers
from screentest.records import DeviceView, Job, LaneView, Sweep
from screentest_ui import draining, panel_text, printing

T = TypeVar("T")
Line = Callable[[T], tuple[str, ...]]

SWEEP_COLUMNS = ("Sweep", "Title", "Jobs", "Done", "Failed", "State")
DEVICE_COLUMNS = ("Host", "Device", "State", "Job", "Warm lane", "Proof")
JOB_COLUMNS = ("Job", "Lane", "Seed", "State", "Attempts", "What")

# A person reads a page; --json has all of them.
OPEN_JOBS_SHOWN = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """``open_jobs``: of generation and judging, in the order of their sweeps."""

    servers: Servers
    sweeps: tuple[Sweep, ...]
    open_jobs: tuple[Job, ...]
    devices: tuple[DeviceView, ...]
    lanes: tuple[LaneView, ...]


def ask(client: Client) -> Overview:
    sweeps = client.list_sweeps()
    return Overview(
        servers=client.get_servers(),
        sweeps=sweeps,
        open_jobs=tuple(job for sweep in reversed(sweeps) for job in draining.unfinished_jobs(client, sweep)),
        devices=client.list_gpus(),
        lanes=client.list_lanes(),
    )


def show(found: Overview, sweep_line: Line[Sweep], device_line: Line[DeviceView]) -> None:
    """``sweep_line`` and ``device_line``: the lines that `status` and `gpus` show."""
    servers = found.servers
    printing.say(f"scheduler {servers.version}")
    printing.say(f"depot {servers.depot_url}/{servers.depot_bucket}: {servers.depot_problem or 'answers'}")
    streams = [(item.name, str(item.messages), panel_text.file_size(item.size_bytes)) for item in servers.streams]
    _section("Streams", ("Stream", "Messages", "Size"), streams)
    _section("Devices", DEVICE_COLUMNS, [device_line(view) for view in found.devices])
    workers = [_worker(lane) for lane in found.lanes if lane.worker_alive or lane.queued]
    _section("Workers", ("Lane", "Place", "Worker", "Runner", "Queued"), workers)
    _section("Sweeps", SWEEP_COLUMNS, [sweep_line(sweep) for sweep in found.sweeps])
    jobs = found.open_jobs[:OPEN_JOBS_SHOWN]
    _section("Open jobs", JOB_COLUMNS, [job_line(job) for job in jobs])
    if len(found.open_jobs) > len(jobs):
        printing.say(f"{len(found.open_jobs) - len(jobs)} more; --json has them all")


def job_line(job: Job) -> tuple[str, ...]:
    """One job by its id, which `retry --job` and `cancel --job` want."""
    progress = job.progress.phase.replace("_", " ") if job.progress else ""
    what = job.cause if job.state.is_terminal else job.waits_for or progress
    spec = job.spec
    return (spec.job_id, spec.lane_id, str(spec.seed), job.state.value, str(len(job.attempts)), what)


def _worker(lane: LaneView) -> tuple[str, ...]:
    alive, warm = "heard" if lane.worker_alive else "none", "warm" if lane.runner_warm else ""
    return (lane.lane_id, f"{lane.host}/{lane.device}", alive, warm, str(lane.queued))


def _section(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    printing.say("")
    if rows:
        printing.print_table(columns, rows)
    else:
        printing.say(f"{title}: none")
