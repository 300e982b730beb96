"""A second host and a second device are configuration: two hosts of two devices each, and one is cut off for a while.

Hosts are sets of processes here, with names, telemetry and a cable to the broker of their own; their devices have
different names, so that one probe sees the locks of all four.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from screentest.kit.bus import Bus
from screentest.records import FailureClass, JobState
from tests.conftest import Depot, RunningServer
from tests.faults import checker, probe
from tests.faults.cable import Cable
from tests.faults.machine import Machine

# Where each lane's worker stands: (host, device).
PLACES = {
    "near-one": ("near", "cpu-0"),
    "near-two": ("near", "cpu-1"),
    "far-one": ("far", "cpu-2"),
    "far-two": ("far", "cpu-3"),
}
SEEDS = 25
# Longer than the 4 s after which the broker gives a message again.
CUT_S = 10.0


@pytest.fixture
async def cable(nats_server: RunningServer) -> AsyncIterator[Cable]:
    found = Cable(nats_server.port)
    await found.open()
    yield found
    found.mend()
    await found.close()


@pytest.fixture
async def hosts(
    tmp_path: Path, nats_server: RunningServer, depot: Depot, bus: Bus, cable: Cable
) -> AsyncIterator[Machine]:
    found = Machine(folder=tmp_path / "machine", nats=nats_server, depot=depot, bus=bus)
    for lane_id in PLACES:
        found.write_lane(lane_id, work_s=0.05)
    found.locks.mkdir()
    with probe.probing(found.locks, found.marker, found.probe_log):
        try:
            await _start(found, f"nats://127.0.0.1:{cable.port}")
            yield found
        finally:
            cable.mend()
            await found.down()


async def _start(hosts: Machine, far_url: str) -> None:
    """The scheduler is told of one device of the near host; it learns of all others from their workers."""
    reached = {"near": hosts.nats.url, "far": far_url}
    await hosts.bus.listen("alive.>", hosts._on_alive)
    hosts.start("scheduler", SCREENTEST_HOST="near", SCREENTEST_DEVICES="cpu-0")
    for host, url in reached.items():
        hosts.start(
            "telemetry",
            as_name=f"telemetry-{host}",
            SCREENTEST_HOST=host,
            SCREENTEST_NATS_URL=url,
            SCREENTEST_DEVICES=",".join(device for at, device in PLACES.values() if at == host),
            SCREENTEST_STATE_DIR=str(hosts.folder / f"telemetry-{host}"),
        )
    for lane_id, (host, device) in PLACES.items():
        hosts.start(lane_id, SCREENTEST_HOST=host, SCREENTEST_DEVICE=device, SCREENTEST_NATS_URL=reached[host])
    await hosts.until(hosts.answers, 30, "answer of scheduler and telemetry")
    await asyncio.gather(*map(hosts.has_worker, PLACES))


@pytest.mark.timeout(240)
async def test_a_hundred_jobs_spread_over_two_hosts_end_though_one_is_cut_off(hosts: Machine, cable: Cable) -> None:
    sweep_id = await hosts.submit(*PLACES, seeds=SEEDS)

    async def both_hosts_have_begun() -> bool | None:
        done = Counter(job.spec.host for job in await hosts.jobs(sweep_id) if job.state is JobState.COMPLETED)
        return True if done["near"] >= 4 and done["far"] >= 4 else None

    await hosts.until(both_hosts_have_begun, 60, "clip of either host")
    cable.cut()
    before = await _completed(hosts, sweep_id, "near")
    await asyncio.sleep(CUT_S)
    assert await _completed(hosts, sweep_id, "near") > before, "the near host stood still"
    cable.mend()
    jobs = await hosts.settled(sweep_id, within_s=150)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * (len(PLACES) * SEEDS)
    assert {job.spec.lane_id: (job.spec.host, job.spec.device) for job in jobs} == PLACES
    # What the cut host was at may be repeated; nothing else is.
    again = [job for job in jobs if len(job.attempts) > 1]
    assert {job.spec.host for job in again} <= {"far"}
    assert len(again) <= 4
    allowed = {lane_id: (FailureClass.INFRASTRUCTURE,) for lane_id, (host, _) in PLACES.items() if host == "far"}
    checker.assert_kept(await hosts.evidence(allowed))


async def _completed(hosts: Machine, sweep_id: str, host: str) -> int:
    return sum(job.spec.host == host and job.state is JobState.COMPLETED for job in await hosts.jobs(sweep_id))
