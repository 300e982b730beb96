"""One worker and what happens to it: it is frozen, cut off, restarted as something else, or its runner runs away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import (
    AttemptEnded,
    CancelAttempt,
    Failed,
    FailureClass,
    JobEvent,
    JobSpec,
    JobState,
    Limits,
    Outcome,
    Started,
)
from tests.conftest import RunningServer
from tests.faults import odd_runner
from tests.faults.full_broker import full_events
from tests.integration.test_bus import Cable
from tests.integration.worker_rig import VENVS, Rig, lock_holders, rig

# The rig's queue gives a message that is not renewed to the next who asks after 2 s.
LONGER_THAN_ACK_WAIT_S = 5.0


@pytest.fixture(autouse=True)
def stub_env() -> None:
    assert (VENVS / "stub" / "bin" / "python").exists(), "the stub env is missing: run `make envs`"


@pytest.fixture
async def worker(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(bus, nats_server.url, tmp_path) as found:
        yield found


def ends(events: list[JobEvent]) -> list[Outcome]:
    return [event.body.outcome for event in events if isinstance(event.body, AttemptEnded)]


def pids_below(worker: Rig) -> list[int]:
    from screentest_worker import processes

    assert worker.worker is not None
    return list(processes.below(worker.worker.pid, processes.table()))


# ---- frozen


async def test_result_of_a_frozen_worker_is_accepted_exactly_once(worker: Rig) -> None:
    """SIGSTOP for longer than ack_wait: the message comes again while the attempt is in hand."""
    spec = worker.spec(call={"work_s": 1.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    assert worker.worker is not None
    worker.worker.send_signal(signal.SIGSTOP)
    await asyncio.sleep(LONGER_THAN_ACK_WAIT_S)
    worker.worker.send_signal(signal.SIGCONT)
    assert (await worker.outcome(spec)).failure_class is None
    await worker.acknowledged()
    names = [type(event.body).__name__ for event in await worker.history(spec)]
    assert names == ["Submitted", "Admitted", "Started", "AttemptEnded"]


async def test_late_result_of_a_frozen_worker_is_refused(worker: Rig) -> None:
    """Another worker of the lane has ended the attempt meanwhile. It starts nothing while the old runner lives."""
    spec = worker.spec(call={"work_s": 1.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    frozen = worker.worker
    assert frozen is not None
    frozen.send_signal(signal.SIGSTOP)
    worker.start_worker(SCREENTEST_STATE_DIR=str(worker.folder / "elsewhere"))
    try:
        assert (await worker.outcome(spec)).cause == "worker died in an unknown phase"
        await worker.admit(spec, attempt=2)
        await asyncio.sleep(2)
        assert lock_holders(worker.lock_path) == (runner.pid,)
        assert not any(isinstance(e.body, Started) and e.attempt == 2 for e in await worker.history(spec))
        frozen.send_signal(signal.SIGCONT)
        await worker.until(lambda: told(worker, '"result_discarded"'), 20, "word of the late result")
    finally:
        frozen.send_signal(signal.SIGCONT)
        frozen.terminate()
        await asyncio.to_thread(frozen.wait, 20)
    assert (await worker.outcome(spec, attempt=2)).failure_class is None
    assert [outcome.infrastructure for outcome in ends(await worker.history(spec))] == [True, False]


async def told(worker: Rig, words: str) -> bool | None:
    return True if words in worker.log else None


# ---- restarted as something else


async def test_worker_restarted_on_another_lane_digest_refuses_what_was_planned(worker: Rig) -> None:
    """What ran is in the record: a job is never run by a lane file that it was not planned from."""
    spec = worker.spec(call={"work_s": 60.0, "steps": 600})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    worker.kill_worker()
    other = worker.folder / "stub.toml"
    other.write_text(worker.lane_file.read_text().replace("steps = 4", "steps = 5"))
    worker.start_worker(SCREENTEST_LANE_FILE=str(other))
    assert (await worker.outcome(spec)).infrastructure
    await worker.admit(spec, attempt=2)
    outcome = await worker.outcome(spec, attempt=2)
    assert (outcome.failure_class, outcome.infrastructure) == (FailureClass.PREFLIGHT_REFUSED, False)
    assert sum(isinstance(event.body, Started) for event in await worker.history(spec)) == 1
    await worker.acknowledged()


# ---- cut off


async def test_broker_away_for_longer_than_ack_wait_costs_nothing(worker: Rig, nats_server: RunningServer) -> None:
    spec = worker.spec(call={"work_s": 2.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    nats_server.kill()
    await asyncio.sleep(LONGER_THAN_ACK_WAIT_S)  # it decodes, encodes, and keeps its result
    nats_server.start()
    assert (await worker.outcome(spec)).failure_class is None
    await worker.acknowledged()
    names = [type(event.body).__name__ for event in await worker.history(spec)]
    assert names == ["Submitted", "Admitted", "Started", "AttemptEnded"]


async def test_cut_between_worker_and_broker_costs_nothing(
    bus: Bus, nats_server: RunningServer, tmp_path: Path
) -> None:
    """What the broker says is lost on its way for longer than ack_wait, then the connection breaks."""
    cable = Cable(nats_server.port)
    await cable.start()
    try:
        async with rig(bus, f"nats://127.0.0.1:{cable.port}", tmp_path) as worker:
            spec = worker.spec(call={"work_s": 1.0})
            await worker.admit(spec)
            await worker.phase(spec, "denoising")
            cable.is_swallowing = True
            await asyncio.sleep(LONGER_THAN_ACK_WAIT_S)
            cable.cut()
            assert (await worker.outcome(spec)).failure_class is None
            await worker.acknowledged(within_s=20)
            starts = [event for event in await worker.history(spec) if isinstance(event.body, Started)]
            assert len(starts) == 1
            assert len(ends(await worker.history(spec))) == 1
    finally:
        await cable.stop()


async def test_message_is_acknowledged_only_after_the_end_is_written(worker: Rig, nats_server: RunningServer) -> None:
    """Acknowledged first, a worker that dies now would take the attempt along: nobody would look for its end."""
    spec = worker.spec(call={"work_s": 1.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    async with full_events(nats_server.url):
        await worker.until(lambda: told(worker, '"event_not_written"'), 20, "refused append")
        await asyncio.sleep(0.5)
        assert len(await worker.bus.dispatched()) == 1
    assert (await worker.outcome(spec)).failure_class is None
    await worker.acknowledged()
    assert len(ends(await worker.history(spec))) == 1


async def test_late_append_is_refused_by_the_broker(worker: Rig) -> None:
    """The scheduler has given the attempt up and gone on; what the worker writes then must not be there."""
    spec = worker.spec()
    worker.url_service_up = False
    await worker.admit(spec)
    await worker.phase(spec, "uploading")
    given_up = Outcome(failure_class=FailureClass.INFRASTRUCTURE, cause="silent for 60 s", infrastructure=True)
    await worker.append(spec, 1, JobState.ENDED, AttemptEnded(outcome=given_up))
    await worker.append(
        spec, 1, JobState.FAILED, Failed(failure_class=FailureClass.INFRASTRUCTURE, cause="lost", fix="")
    )
    worker.url_service_up = True
    await worker.acknowledged(within_s=30)
    names = [type(event.body).__name__ for event in await worker.history(spec)]
    assert names == ["Submitted", "Admitted", "Started", "AttemptEnded", "Failed"]


async def test_every_upload_is_conditional(worker: Rig) -> None:
    """What stands under a key is never replaced, not even by a worker that uploads it a second time."""
    spec = worker.spec()
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert len(outcome.artifacts) == 3
    assert {headers.get("If-None-Match") for headers in worker.depot.headers.values()} == {"*"}


# ---- the runner runs away


async def test_daemon_of_a_runner_that_ended_is_found_without_its_lock(
    bus: Bus, nats_server: RunningServer, tmp_path: Path
) -> None:
    """It forked twice, left the session and closed every descriptor: neither pipe nor lock nor group tells of it."""
    python = odd_runner.odd_python(tmp_path / "env", runner=odd_runner.ENDS_AFTER_IT)
    async with rig(bus, nats_server.url, tmp_path, SCREENTEST_ENV_PYTHON=str(python)) as worker:
        spec = worker.spec()
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is FailureClass.CRASHED
        assert outcome.survivors_killed >= 1
        assert pids_below(worker) == []


async def test_daemon_of_a_silent_runner_dies_with_it(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> None:
    python = odd_runner.odd_python(tmp_path / "env", runner=odd_runner.STAYS_AFTER_IT)
    async with rig(bus, nats_server.url, tmp_path, SCREENTEST_ENV_PYTHON=str(python)) as worker:
        spec = worker.spec(limits=Limits(load_s=20, step_stall_s=1.0, attempt_s=60))
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is FailureClass.STALLED
        assert outcome.survivors_killed >= 1
        assert pids_below(worker) == []


async def test_next_attempt_starts_when_the_one_past_its_limit_is_gone(worker: Rig) -> None:
    """The case study's worst bug: a timeout that killed the local child while the real process kept the GPU."""
    limits = Limits(load_s=20, step_stall_s=20, attempt_s=1.5)
    late, following = worker.spec(call={"fault": "hang"}, limits=limits), worker.spec()
    await worker.admit(late)
    runner = (await worker.started(late)).runner
    await worker.admit(following)
    outcome = await worker.outcome(late)
    assert (outcome.failure_class, outcome.phase) == (FailureClass.TIMEOUT, "denoising")
    second = (await worker.started(following)).runner
    assert clock.process_of(runner.pid) is None
    assert second.pid != runner.pid
    assert (await worker.outcome(following)).failure_class is None


# ---- cancel, phase by phase


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("loading", {"runner": odd_runner.SLOW_LOAD}),
        ("decoding", {"runner": odd_runner.SLOW_DECODE}),
        ("encoding", {"encoder": odd_runner.SLOW_ENCODER}),
    ],
)
async def test_cancel_is_told_when_nothing_of_the_attempt_is_left(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, phase: str, change: dict[str, str]
) -> None:
    """A load hears no Cancel: its runner is killed. So is one that decodes for longer than the grace."""
    python = odd_runner.odd_python(tmp_path / "env", **change)
    settings = {"SCREENTEST_ENV_PYTHON": str(python), "SCREENTEST_CANCEL_GRACE_S": "0.5"}
    async with rig(bus, nats_server.url, tmp_path, **settings) as worker:
        spec = worker.spec()
        await worker.admit(spec)
        await worker.phase(spec, phase)
        runner = (await worker.started(spec)).runner
        await cancel(worker, spec)
        outcome = await worker.outcome(spec, within_s=15)
        assert (outcome.failure_class, outcome.phase) == (FailureClass.CANCELLED, phase)
        left = [pid for pid in pids_below(worker) if pid != runner.pid]
        assert left == []
        assert (clock.process_of(runner.pid) is None) is (phase != "encoding")
        assert list((worker.state / "scratch").rglob("*.result")) == []
        assert not any(path.endswith(".mp4") for path in worker.depot.objects)
        await worker.acknowledged()


async def cancel(worker: Rig, spec: JobSpec) -> None:
    """As the scheduler does it: in the job's history first, then by command."""
    await worker.request_cancel(spec)
    assert (await worker.command(CancelAttempt(job_id=spec.job_id, attempt=1))).done


# ---- the lock


async def test_lock_file_outlives_its_runner_as_long_as_what_it_forked(worker: Rig) -> None:
    """A runner that is stopped politely leaves a child behind: the device is not free before that child is."""
    spec = worker.spec(call={"fault": "fork_escape", "steps": 1})
    await worker.admit(spec)
    assert (await worker.outcome(spec)).failure_class is None
    runner = worker.registered[0]
    escaped = [pid for pid in pids_below(worker) if pid != runner.pid]
    assert len(escaped) == 1
    # The supervisor sees nothing while its runner ends by itself: what it would sweep up is what we look at.
    assert worker.worker is not None
    worker.worker.send_signal(signal.SIGSTOP)
    try:
        end_politely(runner.pid, worker)
        await worker.until(lambda: gone(runner.pid), 10, "end of the runner")
        assert lock_holders(worker.lock_path) != ()
    finally:
        worker.worker.send_signal(signal.SIGCONT)
    await worker.until(lambda: gone(escaped[0]), 10, "end of what it forked")
    await worker.until(lambda: free(worker.lock_path), 5, "free lock")


def end_politely(pid: int, worker: Rig) -> None:
    """A Stop through the pipe that the supervisor holds, as its own would come."""
    from screentest_runner import protocol

    assert worker.worker is not None
    pipe = Path(f"/proc/{pid}/fd/0").readlink()
    for entry in Path(f"/proc/{worker.worker.pid}/fd").iterdir():
        if entry.readlink() == pipe:
            with entry.open("wb", buffering=0) as stdin:
                stdin.write(protocol.to_line(protocol.Stop()))
            return
    raise AssertionError("the supervisor holds no pipe to its runner")


async def gone(pid: int) -> bool | None:
    return True if clock.process_of(pid) is None else None


async def free(lock: Path) -> bool | None:
    return None if lock_holders(lock) else True
