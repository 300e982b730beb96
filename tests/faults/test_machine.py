"""Scheduler, telemetry and workers on a real broker and a real depot, while parts of it die, lie or double.

Every test ends with the checker: it reads the raw history, the probe's log and the depot, not the product's report.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from screentest.errors import Exhausted, NotPossibleNow, ScreentestError, Unavailable
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import (
    Admitted,
    AttemptEnded,
    CancelRequested,
    FailureClass,
    Job,
    JobState,
    Started,
)
from screentest_ui import ports, servers
from tests.conftest import Depot, RunningServer
from tests.faults import checker, odd_runner
from tests.faults.depot_in_front import flaky_depot
from tests.faults.full_broker import full_events
from tests.faults.machine import Machine, machine
from tests.integration.worker_rig import lock_holders

T = TypeVar("T")

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture
async def host(tmp_path: Path, nats_server: RunningServer, depot: Depot, bus: Bus) -> AsyncIterator[Machine]:
    async with machine(tmp_path, nats_server, depot, bus, stub={}) as found:
        yield found


def states(jobs: list[Job]) -> list[JobState]:
    return [job.state for job in jobs]


async def kept(host: Machine, **expected: object) -> None:
    checker.assert_kept(await host.evidence(expected), host.logs())  # type: ignore[arg-type]
    assert host.scratch_left() == []


# ---- workers and runners


async def test_job_that_kills_its_worker_each_time_fails_and_its_neighbours_go_on(
    tmp_path: Path, nats_server: RunningServer, depot: Depot, bus: Bus
) -> None:
    """Its worker is started again each time, as a container with a restart policy is."""
    python = odd_runner.odd_python(tmp_path / "env", runner=odd_runner.KILLS_ITS_WORKER)
    async with machine(tmp_path, nats_server, depot, bus, stub={}, poison={}) as host:
        host.kill("poison")
        host.start("poison", SCREENTEST_ENV_PYTHON=str(python))
        await host.has_worker("poison")

        async def restart() -> None:
            while True:
                if not host.is_up("poison"):
                    host.running.pop("poison")
                    host.start("poison")
                await asyncio.sleep(0.1)

        restarting = asyncio.create_task(restart())
        try:
            sweep_id = await host.submit("poison", "stub", seeds=1)
            jobs = await host.settled(sweep_id, within_s=90)
        finally:
            restarting.cancel()
        by_lane = {job.spec.lane_id: job for job in jobs}
        assert by_lane["stub"].state is JobState.COMPLETED
        assert by_lane["poison"].state is JobState.FAILED
        assert "3 attempts were lost through no fault of the job" in by_lane["poison"].cause
        assert len(by_lane["poison"].attempts) == 3
        await kept(host, poison=(FailureClass.INFRASTRUCTURE,))


async def test_escaped_daemon_without_a_lock_keeps_the_device_from_others(
    tmp_path: Path, nats_server: RunningServer, depot: Depot, bus: Bus
) -> None:
    """The runner left a daemon that closed every descriptor, then its worker died: no lock, no parent, no pipe."""
    python = odd_runner.odd_python(tmp_path / "env", runner=odd_runner.GOES_ON_AFTER_IT)
    async with machine(tmp_path, nats_server, depot, bus, wild={}, stub={}) as host:
        host.kill("wild")
        host.start("wild", SCREENTEST_ENV_PYTHON=str(python))
        await host.has_worker("wild")
        first = await host.submit("wild")
        assert states(await host.settled(first)) == [JobState.COMPLETED]
        runner = (await host.event(first, Started)).body.runner  # type: ignore[union-attr]
        daemon = daemon_of(runner.pid)
        assert daemon is not None
        host.kill("wild")
        await host.until(lambda: True if clock.process_of(runner.pid) is None else None, 10, "end of the runner")
        assert lock_holders(host.locks / "cpu-0.lock") == ()
        assert clock.process_of(daemon) is not None
        second = await host.submit("stub")
        await host.until(lambda: waits_for(host, second, f"pid {daemon}"), 20, "word of the daemon")
        assert not any(isinstance(event.body, Started) for event in await host.events(second))
        host.start("wild")  # its first act is to end what the dead one left
        assert states(await host.settled(second)) == [JobState.COMPLETED]
        assert clock.process_of(daemon) is None
        await kept(host)


async def waits_for(host: Machine, sweep_id: str, words: str) -> bool | None:
    return True if any(words in job.waits_for for job in await host.jobs(sweep_id)) else None


def daemon_of(runner: int) -> int | None:
    """The process that has the runner's command line, another pid, and no open descriptor."""
    command = Path(f"/proc/{runner}/cmdline").read_bytes()
    for process in psutil.process_iter():
        try:
            is_same = process.pid != runner and Path(f"/proc/{process.pid}/cmdline").read_bytes() == command
            if is_same and not list(Path(f"/proc/{process.pid}/fd").iterdir()):
                return process.pid
        except OSError:
            continue
    return None


# ---- the scheduler


async def test_two_schedulers_by_mistake_do_no_harm(host: Machine) -> None:
    """Both decide, the broker's guard lets one of them write: nothing happens twice."""
    [port] = ports.choose(1)
    host.start("scheduler", as_name="scheduler-2", SCREENTEST_GRPC_ADDRESS=f"127.0.0.1:{port}")
    await host.until(lambda: is_listed(host, port), 30, "second scheduler")
    first = await host.submit("stub", seeds=4)
    cancelled = await host.submit("stub", seeds=2, title="Other")
    await host.event(first, Started)
    await asyncio.gather(
        host.ask(lambda client: client.cancel_sweep(cancelled)),
        host.ask(lambda client: client.cancel_sweep(cancelled), port),
    )
    assert set(states(await host.settled(first))) == {JobState.COMPLETED}
    assert set(states(await host.settled(cancelled))) == {JobState.CANCELLED}
    attempts = [event for event in await host.events(first) if isinstance(event.body, Admitted)]
    assert len(attempts) == 4
    await kept(host)


def compiled(folder: Path) -> Path:
    library, source = folder / "clock_back.so", Path(__file__).with_name("clock_back.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


async def is_listed(host: Machine, port: int) -> bool | None:
    try:
        return await host.ask(lambda client: bool(client.list_lanes()), port)
    except Unavailable:
        return None


async def test_wall_clock_of_the_scheduler_jumps_back_by_an_hour(host: Machine, tmp_path: Path) -> None:
    """In the middle of a job: no attempt is lost, ended or begun twice.

    The depot takes no URL that was signed an hour ago: clips wait in the spool until the clock is right again.
    """
    library, flag = compiled(tmp_path), tmp_path / "back"
    host.kill("scheduler")
    host.start("scheduler", LD_PRELOAD=str(library), CLOCK_BACK_FILE=str(flag))
    await host.until(host.answers, 30, "scheduler")
    before = await host.submit("stub", seeds=2)
    await host.event(before, Started)
    flag.touch()
    after = await host.submit("stub", seeds=2, title="Later")
    await host.event(after, Started, count=2)
    await asyncio.sleep(3)
    flag.unlink()  # and forward again by an hour, with attempts out
    assert set(states(await host.settled(before))) == {JobState.COMPLETED}
    assert set(states(await host.settled(after))) == {JobState.COMPLETED}
    first, later = (await host.events(before))[0].stamp, (await host.events(after))[0].stamp
    assert (first.at - later.at).total_seconds() > 3000, "the clock was not set back: nothing was tested"
    assert first.boottime_ns < later.boottime_ns
    assert all(len(job.attempts) == 1 for job in [*await host.jobs(before), *await host.jobs(after)])
    await kept(host)


async def test_message_that_a_crash_of_the_scheduler_left_unsent_is_sent_after_it(host: Machine) -> None:
    """Killed between Admitted and its message."""
    host.kill("stub")  # it counts as alive for a few seconds more, and nobody takes the message
    sweep_id = await host.submit("stub")
    await host.event(sweep_id, Admitted)
    host.kill("scheduler")
    for subject in await host.bus.dispatched():
        await host.bus.withdraw(subject)
    host.start("scheduler")
    host.start("stub")
    await host.until(host.answers, 30, "scheduler")
    assert states(await host.settled(sweep_id)) == [JobState.COMPLETED]
    assert len((await host.jobs(sweep_id))[0].attempts) == 1
    await kept(host)


@pytest.mark.parametrize("room", [1, 2, 4], ids=["claim", "claim and record", "claim, record and two jobs of five"])
async def test_submit_that_stopped_half_way_is_taken_up_again(host: Machine, room: int) -> None:
    """The broker takes so many events and no more, the scheduler dies, space comes back: no job twice, none missing."""
    async with full_events(host.nats.url, room=room):
        with pytest.raises((Exhausted, Unavailable)):
            await host.submit("stub", seeds=5, request_id="half")
        host.kill("scheduler")
    host.start("scheduler")
    await host.until(host.answers, 30, "scheduler")
    sweep_id = await host.submit("stub", seeds=5, request_id="half")  # as its client does after such an answer
    assert set(states(await host.settled(sweep_id))) == {JobState.COMPLETED}
    assert len(await host.ask(lambda client: client.list_sweeps())) == 1
    await kept(host)


@pytest.mark.timeout(400)
async def test_ten_thousand_jobs_are_cancelled_half_way(host: Machine) -> None:
    """Each of them ends once, those that ran as well as those that never did. Its person waits no longer than a call
    may last: what was ordered happens all the same."""
    sweep_id = await patiently(lambda: host.submit("stub", seeds=10_000, request_id="ten thousand"))
    await host.event(sweep_id, AttemptEnded, count=3, within_s=60)
    await patiently(lambda: host.ask(lambda client: client.cancel_sweep(sweep_id)))
    await host.over(sweep_id, within_s=240)
    found = await host.evidence()
    checker.assert_kept(found)
    ends = Counter(event.state for event in found.events if event.state.is_terminal)
    assert ends.keys() <= {JobState.COMPLETED, JobState.CANCELLED}
    assert ends[JobState.CANCELLED] > 5_000


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """On a busy machine a call of that size is longer than its deadline, and after an outage it may come too early."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await call()
            except (Unavailable, NotPossibleNow):
                await asyncio.sleep(1)


# ---- broker and depot


async def test_depot_that_fails_every_second_request_costs_no_clip(
    tmp_path: Path, nats_server: RunningServer, depot: Depot, bus: Bus
) -> None:
    with flaky_depot(int(depot.url.rpartition(":")[2])) as flaky:
        in_front = replace(depot, url=flaky.url)
        async with machine(tmp_path, nats_server, depot, bus, stub={}) as host:
            host.kill("scheduler")
            host.start("scheduler", SCREENTEST_DEPOT_URL=in_front.url)
            await host.until(host.answers, 30, "scheduler")
            sweep_id = await host.submit("stub", seeds=3)
            assert set(states(await host.settled(sweep_id))) == {JobState.COMPLETED}
            assert flaky.failed >= 6, "nothing failed: nothing was tested"
            await kept(host)


async def test_depot_that_dies_before_the_upload_and_comes_back_gets_the_clip(host: Machine) -> None:
    sweep_id = await host.submit("stub")
    await host.event(sweep_id, Started)
    host.depot.server.kill()
    await asyncio.sleep(5)
    assert not any(isinstance(event.body, AttemptEnded) for event in await host.events(sweep_id))
    host.depot.server.start()
    assert states(await host.settled(sweep_id)) == [JobState.COMPLETED]
    await kept(host)


async def test_broker_without_space_is_told_and_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path, depot: Depot
) -> None:
    """A file may not grow beyond 256 KiB: the broker's writes fail, as on a full disk."""
    server = servers.configure_nats(tmp_path / "nats", ports.choose(1)[0])
    limited = replace(server.program, argv=("sh", "-c", 'ulimit -f 512; exec "$0" "$@"', *server.program.argv))
    nats = RunningServer(replace(server, program=limited))
    nats.start()
    bus = await Bus.connect(nats.url, name="test")
    await bus.ensure_streams()
    try:
        async with machine(tmp_path, nats, depot, bus, stub={}) as host:
            sweep_id = await host.submit("stub")
            assert states(await host.settled(sweep_id)) == [JobState.COMPLETED]
            refused: list[ScreentestError] = []
            for number in range(12):
                try:
                    await host.submit("stub", seeds=40, request_id=f"r-{number}", title=f"Sweep {number}")
                except ScreentestError as error:
                    refused.append(error)
                    break
            assert refused, "the disk never became full: nothing was tested"
            assert isinstance(refused[0], Unavailable | Exhausted), refused[0]
            # The same disk with space again: everything acknowledged is there, and new work goes on.
            nats.kill()
            roomy = RunningServer(server)
            roomy.start()
            nats.process = roomy.process
            for sweep in await patiently(lambda: host.ask(lambda client: client.list_sweeps())):
                sweep_id = sweep.record.sweep_id
                await patiently(lambda sweep_id=sweep_id: host.ask(lambda client: client.cancel_sweep(sweep_id)))
                await host.settled(sweep_id)
            again = await host.submit("stub", request_id="after")
            assert states(await host.settled(again)) == [JobState.COMPLETED]
            await kept(host)
    finally:
        await bus.close()
        nats.stop()


# ---- clients


async def test_job_goes_on_when_its_client_dies(host: Machine) -> None:
    sweep = host.folder / "sweep.toml"
    sweep.write_text(
        'title = "Client"\nprompt = "a disc moves"\nlanes = ["stub"]\nseeds = [1, 2]\nweights = "miniature"\n'
    )
    person = submitting(host, sweep)
    sweeps = await host.until(lambda: listed(host), 30, "sweep")
    person.kill()
    person.wait()
    assert set(states(await host.settled(sweeps[0]))) == {JobState.COMPLETED}
    assert not any(isinstance(event.body, CancelRequested) for event in await host.events(sweeps[0]))
    await kept(host)


def submitting(host: Machine, sweep: Path) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name("screentest")
    environment = {**os.environ, "SCREENTEST_GRPC_ADDRESS": f"127.0.0.1:{host.grpc_port}"}
    command = [str(program), "submit", str(sweep), "--wait"]
    return subprocess.Popen(command, cwd=host.folder, env=environment, stdout=subprocess.DEVNULL)


async def listed(host: Machine) -> list[str] | None:
    found = await host.ask(lambda client: client.list_sweeps())
    return [sweep.record.sweep_id for sweep in found if sweep.counts.total] or None


async def test_client_that_reads_nothing_costs_the_scheduler_no_memory(host: Machine) -> None:
    """It watches a sweep of thousands of events and never takes one; another one gets all of them meanwhile."""
    host.kill("stub")
    sweep_id = await host.submit("stub", seeds=2_000)
    scheduler = psutil.Process(host.running["scheduler"].pid)
    before = scheduler.memory_info().rss
    with host.client() as idle, host.client() as busy:
        watchers = [iter(idle.watch(sweep_id)) for _ in range(4)]
        for watcher in watchers:
            await asyncio.to_thread(next, watcher)

        def read_all() -> int:
            read = 0
            for message in busy.watch(sweep_id):
                read += message.cursor != ""
                if read > 2_000:
                    return read
            return read

        assert await asyncio.wait_for(asyncio.to_thread(read_all), 60) > 2_000
        assert scheduler.memory_info().rss - before < 40 * 2**20
    await host.ask(lambda client: client.cancel_sweep(sweep_id))
    await host.settled(sweep_id)
    await kept(host)
