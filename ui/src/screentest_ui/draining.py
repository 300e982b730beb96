"""Waits until a drained device is at rest: nothing of it runs, encodes or uploads any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from screentest.client import Client
from screentest.records import DeviceView, Job, JobState, Sweep

LOOK_EVERY_S = 1.0

# A job whose attempt has ended may wait for its next one, which a drained device will not give it.
OUT = frozenset({JobState.ADMITTED, JobState.RUNNING})


def wait_until_idle(client: Client, host: str, device: str, *, note: Callable[[str], None]) -> None:
    """``note`` hears once of every job that is waited for."""
    told: set[str] = set()
    while jobs := jobs_out(client, host, device):
        for job in jobs:
            if job.spec.job_id not in told:
                note(f"waits for {job.spec.job_id} of {job.spec.lane_id} ({job.state.value})")
                told.add(job.spec.job_id)
        time.sleep(LOOK_EVERY_S)


def jobs_out(client: Client, host: str, device: str) -> tuple[Job, ...]:
    """Jobs whose attempt is on its way on this device. Admitted ones count: a drain does not call them back."""
    return tuple(
        job
        for sweep in client.list_sweeps()
        for job in unfinished_jobs(client, sweep)
        if job.state in OUT and (job.spec.host, job.spec.device) == (host, device)
    )


def unfinished_jobs(client: Client, sweep: Sweep) -> Iterator[Job]:
    """Of generation and of judging, which goes on when a sweep is over."""
    sweep_id, judging = sweep.record.sweep_id, sweep.scoring.counts if sweep.scoring else None
    listed = [] if sweep.over else [*client.list_jobs(sweep_id)]
    if judging is not None and (judging.queued or judging.running):
        listed += client.list_judge_jobs(sweep_id)
    yield from (job for job in listed if not job.state.is_terminal)


def find(client: Client, host: str, device: str) -> DeviceView | None:
    return next((view for view in client.list_gpus() if (view.host, view.device) == (host, device)), None)
