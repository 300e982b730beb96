"""The worker as a process: a real NATS, the real stub runner, stand-ins for scheduler, telemetry and depot."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import av
import pytest

from screentest import objects
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import (
    ArtifactKind,
    AttemptEnded,
    CancelAttempt,
    Cancelled,
    CancelRequested,
    Failed,
    FailureClass,
    JobSpec,
    JobState,
    Keyframe,
    Limits,
    MarkKind,
    Preflight,
    Prepare,
    Retire,
    Started,
    Verdict,
    Weights,
)
from tests.conftest import RunningServer
from tests.integration.worker_rig import DEVICE, VENVS, Rig, held_lock, rig


@pytest.fixture(autouse=True)
def stub_env() -> None:
    assert (VENVS / "stub" / "bin" / "python").exists(), "the stub env is missing: run `make envs`"


@pytest.fixture
async def worker(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(bus, nats_server.url, tmp_path) as found:
        yield found


async def test_clip_is_in_the_depot_when_the_attempt_has_ended(worker: Rig) -> None:
    spec = worker.spec()
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is None, outcome.cause
    assert outcome.clip is not None
    assert (outcome.clip.codec, outcome.clip.pixel_format, outcome.clip.frames) == ("h264", "yuv420p", 25)
    clip = outcome.artifact(ArtifactKind.CLIP)
    assert clip is not None
    with av.open(io.BytesIO(worker.depot.objects[f"/{clip.key}"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25
        assert container.metadata["comment"].startswith("random weights")
    assert worker.depot.headers[f"/{clip.key}"]["Content-Type"] == "video/mp4"
    await worker.acknowledged()


async def test_manifest_says_what_ran(worker: Rig) -> None:
    spec = worker.spec()
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    stored = outcome.artifact(ArtifactKind.MANIFEST)
    assert stored is not None
    manifest = json.loads(worker.depot.objects[f"/{stored.key}"])
    clip = outcome.artifact(ArtifactKind.CLIP)
    assert clip is not None
    assert manifest["schema"] == "manifest/1"
    assert manifest["clip"]["frames"] == manifest["parameters"]["num_frames"] == 25
    assert manifest["clip"]["sha256"] == clip.sha256
    assert manifest["parameters"]["call"]["work_s"] == 0.2
    assert manifest["random_weights"] is True
    assert manifest["lane_digest"] == spec.lane_digest
    assert "numpy" in manifest["versions"]
    names = [phase["phase"] for phase in manifest["phases"]]
    assert names == ["preparing", "loading", "encoding_prompt", "denoising", "decoding", "encoding"]


async def test_phases_and_steps_are_told_in_order(worker: Rig) -> None:
    spec = worker.spec()
    await worker.admit(spec)
    await worker.outcome(spec)
    phases = list(dict.fromkeys(item.phase for item in worker.heard))
    assert phases == [
        "preparing",
        "loading",
        "encoding_prompt",
        "denoising",
        "decoding",
        "decoded",
        "encoding",
        "uploading",
    ]
    steps = [item for item in worker.heard if item.step is not None]
    assert [item.step for item in steps] == [1, 2, 3, 4]
    assert steps[-1].eta_s == 0


async def test_warm_second_job_loads_nothing(worker: Rig) -> None:
    first, second = worker.spec(), worker.spec()
    await worker.admit(first)
    await worker.admit(second)
    cold, warm = await worker.outcome(first), await worker.outcome(second)
    assert (cold.model_loads, warm.model_loads) == (1, 0)
    starts = [event.body for event in await worker.history(second) if isinstance(event.body, Started)]
    assert [start.warm for start in starts] == [True]
    assert len({process.pid for process in worker.registered}) == 1


async def test_cancel_in_mid_denoise_leaves_the_runner_warm(worker: Rig) -> None:
    spec, again = worker.spec(call={"work_s": 60.0, "steps": 1000}), worker.spec()
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    await cancel(worker, spec)
    outcome = await worker.outcome(spec, within_s=10)
    assert outcome.failure_class is FailureClass.CANCELLED
    assert not outcome.infrastructure
    assert outcome.survivors_killed == 0
    await worker.acknowledged()
    assert below(worker) == [runner.pid]  # its helpers are gone
    await worker.admit(again)
    outcome = await worker.outcome(again)
    assert (outcome.failure_class, outcome.model_loads) == (None, 0)


async def test_cancel_kills_a_runner_that_does_not_hear_it(worker: Rig) -> None:
    worker.stop_worker()
    worker.start_worker(SCREENTEST_CANCEL_GRACE_S="0.5")
    spec = worker.spec(call={"fault": "hang"})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    await cancel(worker, spec)
    outcome = await worker.outcome(spec, within_s=10)
    assert outcome.failure_class is FailureClass.CANCELLED
    assert outcome.survivors_killed >= 1
    assert clock.process_of(runner.pid) is None
    await worker.acknowledged()


async def test_cancel_that_a_step_outlasts_costs_no_more_than_the_step_limit(worker: Rig) -> None:
    limits = Limits(load_s=20, step_stall_s=1.0, attempt_s=60)
    spec = worker.spec(call={"work_s": 60.0, "steps": 1}, limits=limits)
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    await cancel(worker, spec)
    began = time.monotonic()
    outcome = await worker.outcome(spec, within_s=20)
    assert outcome.failure_class is FailureClass.CANCELLED
    assert time.monotonic() - began < 8  # and not the 10 s of the default grace


async def test_cancel_while_uploading_discards_the_clip(worker: Rig) -> None:
    spec = worker.spec()
    worker.depot.down = True
    await worker.admit(spec)
    await worker.phase(spec, "uploading")
    await cancel(worker, spec)
    outcome = await worker.outcome(spec, within_s=10)
    assert outcome.failure_class is FailureClass.CANCELLED
    assert outcome.artifact(ArtifactKind.CLIP) is None


async def test_crash_of_the_runner_is_a_crash_with_its_log(worker: Rig) -> None:
    spec = worker.spec(call={"fault": "crash"})
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.CRASHED
    assert "signal 11" in outcome.cause
    log = outcome.artifact(ArtifactKind.LOG)
    assert log is not None
    assert b"Segmentation fault" in worker.depot.objects[f"/{log.key}"]


@pytest.mark.parametrize(
    ("fault", "failure_class", "phase"),
    [
        ("oom", FailureClass.OOM_DENOISE, "denoising"),
        ("nan", FailureClass.NAN, "denoising"),
        ("truncated", FailureClass.TRUNCATED, "decoding"),
        ("decode", FailureClass.UNCLASSIFIED, "decoding"),
    ],
)
async def test_failure_of_the_runner_keeps_its_class(
    worker: Rig, fault: str, failure_class: FailureClass, phase: str
) -> None:
    spec = worker.spec(call={"fault": fault})
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert (outcome.failure_class, outcome.phase) == (failure_class, phase)
    assert "\n" not in outcome.cause


async def test_silent_runner_is_stalled_and_killed_with_its_stack_in_the_log(worker: Rig) -> None:
    spec = worker.spec(call={"fault": "hang"}, limits=Limits(load_s=20, step_stall_s=1.0, attempt_s=60))
    await worker.admit(spec)
    runner = (await worker.started(spec)).runner
    outcome = await worker.outcome(spec, within_s=20)
    assert outcome.failure_class is FailureClass.STALLED
    assert outcome.survivors_killed >= 1
    assert clock.process_of(runner.pid) is None
    log = outcome.artifact(ArtifactKind.LOG)
    assert log is not None
    assert b"in strike" in worker.depot.objects[f"/{log.key}"]


async def test_attempt_past_its_limit_is_a_timeout(worker: Rig) -> None:
    spec = worker.spec(call={"work_s": 60.0, "steps": 600}, limits=Limits(load_s=20, step_stall_s=20, attempt_s=1.5))
    await worker.admit(spec)
    outcome = await worker.outcome(spec, within_s=15)
    assert outcome.failure_class is FailureClass.TIMEOUT


async def test_attempt_that_cannot_end_in_time_ends_at_once_and_leaves_its_runner(worker: Rig) -> None:
    limits = Limits(load_s=20, step_stall_s=20, attempt_s=30)
    late, following = worker.spec(call={"work_s": 60.0, "steps": 600}, limits=limits), worker.spec()
    await worker.admit(late)
    outcome = await worker.outcome(late, within_s=15)
    assert outcome.failure_class is FailureClass.TIMEOUT
    assert "stopped after step 2" in outcome.cause
    await worker.admit(following)
    assert (await worker.started(following)).warm
    assert (await worker.outcome(following)).failure_class is None


async def test_escaped_grandchild_dies_when_the_runner_retires(worker: Rig) -> None:
    spec = worker.spec(call={"fault": "fork_escape", "steps": 1})
    await worker.admit(spec)
    assert (await worker.outcome(spec)).failure_class is None
    assert len(below(worker)) >= 2
    reply = await worker.command(Retire(reason="test"))
    assert reply.done
    assert "1 processes" in reply.detail
    assert below(worker) == []
    with held_lock(worker.lock_path):  # the escaped process had inherited the lock
        pass


async def test_escaped_grandchild_dies_with_its_idle_runner(worker: Rig) -> None:
    """Nobody asks for a retirement: the worker itself must see that its warm runner has died."""
    spec = worker.spec(call={"fault": "fork_escape", "steps": 1})
    await worker.admit(spec)
    assert (await worker.outcome(spec)).failure_class is None
    runner = worker.registered[0]
    escaped = [pid for pid in below(worker) if pid != runner.pid]
    assert escaped
    os.kill(runner.pid, signal.SIGKILL)

    async def look() -> bool | None:
        return None if is_locked(worker.lock_path) else True

    await worker.until(look, 5, "free lock")
    assert not any(clock.process_of(pid) for pid in escaped)
    again = worker.spec()
    await worker.admit(again)
    assert (await worker.outcome(again)).model_loads == 1


async def test_escaped_grandchild_of_a_runner_that_crashes_is_counted(worker: Rig) -> None:
    spec = worker.spec(call={"fault": "fork_escape", "steps": 2, "work_s": 60.0})
    await worker.admit(spec)
    runner = (await worker.started(spec)).runner

    async def look() -> bool | None:
        return True if any(pid != runner.pid and holds(pid, worker.lock_path) for pid in below(worker)) else None

    await worker.until(look, 10, "escaped child")
    os.kill(runner.pid, signal.SIGKILL)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.CRASHED
    assert outcome.survivors_killed >= 1
    assert not is_locked(worker.lock_path)


async def test_lock_of_another_process_is_infrastructure_and_says_who(worker: Rig) -> None:
    worker.stop_worker()
    worker.start_worker(SCREENTEST_NOT_PROVEN_S="1.5")
    with held_lock(worker.lock_path):
        spec = worker.spec()
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.INFRASTRUCTURE
    assert outcome.infrastructure
    assert str(os.getpid()) in outcome.cause
    assert not any(isinstance(event.body, Started) for event in await worker.history(spec))


async def test_lock_taken_behind_the_proof_is_never_shared(worker: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry says clean, the kernel says no: the kernel wins."""
    monkeypatch.setattr("tests.integration.worker_rig.lock_holders", lambda _: ())
    worker.stop_worker()
    worker.start_worker(SCREENTEST_NOT_PROVEN_S="1.5")
    with held_lock(worker.lock_path):
        spec = worker.spec()
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.INFRASTRUCTURE


async def test_silent_telemetry_is_no_proof(worker: Rig) -> None:
    worker.stop_worker()
    worker.telemetry_up = False
    worker.start_worker(SCREENTEST_NOT_PROVEN_S="1")
    spec = worker.spec()
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.INFRASTRUCTURE
    assert "telemetry does not answer" in outcome.cause


async def test_redelivered_started_attempt_ends_as_lost(worker: Rig) -> None:
    spec = worker.spec(call={"work_s": 60.0, "steps": 600})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    worker.kill_worker()
    worker.start_worker()
    outcome = await worker.outcome(spec)
    assert outcome.infrastructure
    assert outcome.cause == "worker died during denoising"
    assert clock.process_of(runner.pid) is None
    await worker.acknowledged()


async def test_finished_result_outlives_its_worker(worker: Rig) -> None:
    spec = worker.spec()
    worker.url_service_up = False
    await worker.admit(spec)
    await worker.phase(spec, "uploading")
    await asyncio.sleep(0.2)  # the outcome is on disk before the first upload is tried
    worker.kill_worker()
    worker.url_service_up = True
    worker.start_worker()
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is None
    assert outcome.artifact(ArtifactKind.CLIP) is not None
    await worker.acknowledged()


async def test_result_of_an_attempt_that_was_ended_elsewhere_is_discarded(worker: Rig) -> None:
    spec = worker.spec()
    worker.depot.down = True
    await worker.admit(spec)
    await worker.phase(spec, "uploading")
    lost = Failed(failure_class=FailureClass.INFRASTRUCTURE, cause="the scheduler gave up")
    await worker.append(spec, 1, JobState.FAILED, lost)
    worker.depot.down = False
    await worker.acknowledged()
    assert [type(event.body).__name__ for event in await worker.history(spec)][-1] == "Failed"
    assert not any(isinstance(event.body, AttemptEnded) for event in await worker.history(spec))


async def test_depot_away_fails_the_upload_and_keeps_the_clip(worker: Rig) -> None:
    worker.depot.down = True
    spec = worker.spec(limits=Limits(load_s=20, step_stall_s=20, attempt_s=2.0))
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.UPLOAD
    await worker.acknowledged()
    assert list(worker.state.glob("spool/*/undelivered/*.mp4"))


async def test_disk_that_is_full_at_every_phase_costs_only_the_note(worker: Rig) -> None:
    await worker.breathing()
    spec = worker.spec()
    note = worker.state / "spool" / f"{DEVICE}-{worker.lane.id}" / f"{spec.job_id}-1" / "attempt.json.part"
    note.parent.mkdir(parents=True)
    note.symlink_to("/dev/full")
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is None, outcome.cause
    assert '"phase_not_noted"' in worker.log


async def test_next_attempt_runs_while_the_last_one_uploads(worker: Rig) -> None:
    first, second = worker.spec(), worker.spec()
    worker.depot.down = True
    await worker.admit(first)
    await worker.admit(second)
    await worker.phase(first, "uploading")
    await worker.phase(second, "decoded")
    worker.depot.down = False
    assert (await worker.outcome(first)).failure_class is None
    assert (await worker.outcome(second)).failure_class is None


async def test_bad_request_leaves_the_runner_warm(worker: Rig) -> None:
    good, bad, again = worker.spec(), worker.spec(call={"fault": "no such fault"}), worker.spec()
    for spec in (good, bad, again):
        await worker.admit(spec)
    assert (await worker.outcome(bad)).failure_class is FailureClass.BAD_KWARGS
    assert (await worker.outcome(again)).model_loads == 0


async def test_failure_retires_the_runner(worker: Rig) -> None:
    bad, again = worker.spec(call={"fault": "denoise"}), worker.spec()
    await worker.admit(bad)
    await worker.admit(again)
    assert (await worker.outcome(bad)).failure_class is FailureClass.UNCLASSIFIED
    assert (await worker.outcome(again)).model_loads == 1


async def test_job_planned_from_another_lane_file_is_refused_before_it_starts(worker: Rig) -> None:
    spec = worker.spec(lane_digest="0" * 64)
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.PREFLIGHT_REFUSED
    assert not any(isinstance(event.body, Started) for event in await worker.history(spec))


async def test_preflight_answers_without_touching_the_device(worker: Rig) -> None:
    await worker.breathing()
    assert (await worker.command(Preflight(spec=worker.spec()))).verdict is Verdict.OK
    assert (await worker.command(Preflight(spec=worker.spec(weights=Weights.FULL_RANDOM)))).verdict is Verdict.OK
    refused = await worker.command(Preflight(spec=worker.spec(num_frames=0)))
    assert refused.verdict is Verdict.REFUSED
    assert "0 frames" in refused.detail
    assert "at least one frame" in refused.fix
    assert worker.registered == []


async def test_prepared_runner_takes_no_lock_until_its_attempt_comes(worker: Rig) -> None:
    await worker.breathing()
    assert (await worker.command(Prepare())).done
    with held_lock(worker.lock_path):
        pass
    assert worker.registered == []
    spec = worker.spec()
    await worker.admit(spec)
    assert (await worker.outcome(spec)).failure_class is None


async def test_retire_is_refused_while_a_job_computes(worker: Rig) -> None:
    spec = worker.spec(call={"work_s": 2.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    assert not (await worker.command(Retire(reason="test"))).done
    await worker.phase(spec, "decoded")
    assert (await worker.command(Retire(reason="test"))).done
    assert (await worker.outcome(spec)).failure_class is None


async def test_job_that_comes_during_a_retirement_gets_a_runner_of_its_own(worker: Rig) -> None:
    """A dying runner must not be taken for a warm one."""
    await worker.breathing()
    for _ in range(3):
        spec = worker.spec(call={"work_s": 0.0})
        await asyncio.gather(worker.command(Retire(reason="test")), worker.admit(spec))
        assert (await worker.outcome(spec, within_s=10)).failure_class is None
    assert "defect" not in worker.log


async def test_idle_supervisor_is_small(worker: Rig) -> None:
    await worker.breathing()
    assert worker.worker is not None
    assert rss_kib(worker.worker.pid) < 80 * 1024


async def test_heartbeat_names_runner_and_job(worker: Rig) -> None:
    spec = worker.spec(call={"work_s": 1.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    assert any(item.job_id == spec.job_id and item.attempt == 1 for item in worker.alive)
    await worker.outcome(spec)
    last = [item for item in worker.alive if item.runner is not None][-1]
    assert last.runner is not None
    assert (last.runner.pid, last.runner_rung, last.runner_weights) == (runner.pid, 0, "miniature")


async def test_idle_runner_retires(worker: Rig) -> None:
    worker.stop_worker()
    worker.start_worker(SCREENTEST_IDLE_S="0.5")
    spec = worker.spec()
    await worker.admit(spec)
    await worker.outcome(spec)

    async def look() -> bool | None:
        return True if below(worker) == [] else None

    await worker.until(look, 10, "retirement")


async def test_sigterm_leaves_no_process_and_the_attempt_to_the_next_worker(worker: Rig) -> None:
    spec = worker.spec(call={"work_s": 40.0, "steps": 60})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    began = time.monotonic()
    assert await asyncio.to_thread(worker.stop_worker) == 0
    assert time.monotonic() - began < 12
    assert clock.process_of(runner.pid) is None
    worker.start_worker()
    assert (await worker.outcome(spec)).infrastructure


async def test_broker_restart_in_mid_job_loses_nothing(worker: Rig, nats_server: RunningServer) -> None:
    spec = worker.spec(call={"work_s": 4.0, "steps": 8})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    nats_server.kill()
    await asyncio.sleep(1)
    nats_server.start()
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is None, outcome.cause
    await worker.acknowledged()
    assert sum(isinstance(event.body, AttemptEnded) for event in await worker.history(spec)) == 1


async def test_worker_before_its_scheduler_waits_for_the_queue(
    bus: Bus, nats_server: RunningServer, tmp_path: Path
) -> None:
    async with rig(bus, nats_server.url, tmp_path, has_queue=False) as worker:
        await worker.breathing()
        await asyncio.sleep(1.5)
        await worker.make_queue()
        spec = worker.spec()
        await worker.admit(spec)
        assert (await worker.outcome(spec)).failure_class is None


async def test_restarted_worker_kills_what_the_dead_one_left(worker: Rig) -> None:
    spec = worker.spec(call={"fault": "fork_escape", "steps": 1})
    await worker.admit(spec)
    await worker.outcome(spec)
    escaped = [pid for pid in below(worker) if pid != worker.registered[0].pid]
    assert escaped
    worker.kill_worker()
    assert any(clock.process_of(pid) for pid in escaped), "nothing was left, so nothing is tested"
    worker.start_worker()
    again = worker.spec()
    await worker.admit(again)
    assert (await worker.outcome(again)).failure_class is None
    assert not any(clock.process_of(pid) for pid in escaped)


async def test_redelivery_of_an_attempt_in_hand_starts_nothing(
    bus: Bus, nats_server: RunningServer, tmp_path: Path
) -> None:
    async with rig(bus, nats_server.url, tmp_path, SCREENTEST_RENEW_S="60") as worker:
        worker.depot.down = True
        spec = worker.spec()
        await worker.admit(spec)
        await worker.phase(spec, "uploading")

        async def look() -> bool | None:
            return True if '"action": "adopt"' in worker.log else None

        await worker.until(look, 15, "redelivery")
        worker.depot.down = False
        assert (await worker.outcome(spec)).failure_class is None
        await worker.acknowledged()
        names = [type(event.body).__name__ for event in await worker.history(spec)]
        assert names == ["Submitted", "Admitted", "Started", "AttemptEnded"]


async def test_attempt_cancelled_before_its_start_is_dropped(worker: Rig) -> None:
    with held_lock(worker.lock_path):
        spec = worker.spec()
        await worker.admit(spec)
        await worker.phase(spec, "preparing")
        await worker.append(spec, 1, JobState.ADMITTED, CancelRequested(by="test", started=False))
        await worker.append(spec, 1, JobState.CANCELLED, Cancelled(by="test"))
        await worker.acknowledged()
    names = [type(event.body).__name__ for event in await worker.history(spec)]
    assert names == ["Submitted", "Admitted", "CancelRequested", "Cancelled"]


async def test_unreadable_dispatch_does_not_stop_the_lane(worker: Rig) -> None:
    await worker.bus.dispatch(f"jobs.local.cpu-0.{worker.lane.id}.job-x.1", b"\xff\xff\xff")
    spec = worker.spec()
    await worker.admit(spec)
    assert (await worker.outcome(spec)).failure_class is None
    await worker.acknowledged()


async def test_second_worker_of_a_lane_is_refused(worker: Rig) -> None:
    await worker.breathing()
    first = worker.worker
    worker.start_worker()
    assert worker.worker is not None
    assert await asyncio.to_thread(worker.worker.wait, 10) == 1
    assert "has a worker already" in worker.log
    worker.worker = first


async def test_children_see_no_secret(worker: Rig) -> None:
    spec = worker.spec(call={"work_s": 1.0})
    await worker.admit(spec)
    await worker.phase(spec, "denoising")
    runner = (await worker.started(spec)).runner
    names = {item.split(b"=")[0].decode() for item in environment(runner.pid)}
    assert {name for name in names if name.startswith("SCREENTEST_")} == {
        "SCREENTEST_REPLY_FD",
        "SCREENTEST_CHILD_OF",
        "SCREENTEST_RUNNER_OF",
    }


async def test_keyframe_travels_to_the_runner(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> None:
    import hashlib

    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 10, 10)).save(picture, "PNG")
    data = picture.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    keyframe = Keyframe(key=f"keyframes/{sha256}.png", sha256=sha256, width_px=96, height_px=64, size_bytes=len(data))
    async with rig(bus, nats_server.url, tmp_path, lane="stub-i2v") as worker:
        worker.depot.objects[f"/{keyframe.key}"] = data
        spec = worker.spec(keyframe=keyframe)
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is None, outcome.cause
        clip = outcome.artifact(ArtifactKind.CLIP)
        assert clip is not None
        with av.open(io.BytesIO(worker.depot.objects[f"/{clip.key}"])) as container:
            first = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert first[0, -1, 0] > 150  # the corner is the keyframe's red


@pytest.mark.parametrize(
    ("name", "word"), [("../../outside", "no sha256"), ("A" * 64, "no sha256"), ("0" * 64, "in the depot is")]
)
async def test_wrong_keyframe_fails_the_job_and_writes_no_file(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, name: str, word: str
) -> None:
    keyframe = Keyframe(key="keyframes/x.png", sha256=name, width_px=96, height_px=64, size_bytes=7)
    async with rig(bus, nats_server.url, tmp_path, lane="stub-i2v") as worker:
        worker.depot.objects[f"/{objects.keyframe('0' * 64)}"] = b"picture"
        spec = worker.spec(keyframe=keyframe)
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert (outcome.failure_class, outcome.infrastructure) == (FailureClass.CONDITIONING, False)
        assert word in outcome.cause
        assert pictures_in(tmp_path) == []


BREAK_ENCODER = """
import dataclasses, os, sys
from screentest_runner import encode
whole = encode.encode
def broken(request, report):
    if {frames_short}:
        size = request.height_px * request.width_px * 3 * (request.frames - {frames_short})
        os.truncate(request.frames_path, size)
        request = dataclasses.replace(request, frames=request.frames - {frames_short})
    encoded = whole(request, report)
    os.truncate(request.clip_path, int(encoded.bytes * {bytes_kept}))
    return encoded
encode.encode = broken
sys.exit(encode.main())
"""


def env_with_broken_encoder(folder: Path, *, frames_short: int = 0, bytes_kept: float = 1.0) -> Path:
    """A model env whose encoder writes a clip that is wrong, and says that all is well."""
    script = folder / "broken_encode.py"
    script.write_text(BREAK_ENCODER.format(frames_short=frames_short, bytes_kept=bytes_kept))
    python = VENVS / "stub" / "bin" / "python"
    wrapper = folder / "python"
    wrapper.write_text(
        f'#!/bin/sh\nif [ "$2" = screentest_runner.encode ]; then exec {python} {script}; fi\nexec {python} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.parametrize(
    ("frames_short", "bytes_kept", "failure_class"),
    [(1, 1.0, FailureClass.TRUNCATED), (0, 0.6, FailureClass.UNDECODABLE)],
)
async def test_wrong_clip_is_a_failure_whatever_its_encoder_says(
    bus: Bus,
    nats_server: RunningServer,
    tmp_path: Path,
    frames_short: int,
    bytes_kept: float,
    failure_class: FailureClass,
) -> None:
    python = env_with_broken_encoder(tmp_path, frames_short=frames_short, bytes_kept=bytes_kept)
    async with rig(bus, nats_server.url, tmp_path, SCREENTEST_ENV_PYTHON=str(python)) as worker:
        spec = worker.spec()
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is failure_class, outcome.cause
        assert outcome.artifact(ArtifactKind.CLIP) is None
        assert not any(path.endswith(".mp4") for path in worker.depot.objects)


def below(worker: Rig) -> list[int]:
    """Living processes below the worker."""
    from screentest_worker import processes

    assert worker.worker is not None
    return list(processes.below(worker.worker.pid, processes.table()))


async def cancel(worker: Rig, spec: JobSpec) -> None:
    """As the scheduler does it: in the job's history first, then by command."""
    await worker.request_cancel(spec)
    assert (await worker.command(CancelAttempt(job_id=spec.job_id, attempt=1))).done


def pictures_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.png"))


def holds(pid: int, path: Path) -> bool:
    """Whether the process has the file open."""
    try:
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
        return False


def is_locked(path: Path) -> bool:
    try:
        with held_lock(path):
            return False
    except BlockingIOError:
        return True


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def environment(pid: int) -> list[bytes]:
    return [item for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if item]


# ---- memory and pace


async def test_an_outcome_says_peaks_by_phase_and_pace(worker: Rig) -> None:
    spec = worker.spec(call={"memory_gib": (6.0, 7.0, 9.0, 8.0)})
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    peaks = [(peak.phase, peak.peak_bytes / 2**30) for peak in outcome.peak_memory_by_phase]
    assert peaks == [("loading", 6), ("encoding_prompt", 7), ("denoising", 9), ("decoding", 8)]
    assert outcome.peak_device_memory_bytes == 9 * 2**30
    assert outcome.steps_done == 4
    assert outcome.step_s == pytest.approx(0.05, abs=0.04)
    assert outcome.gpu_name is None
    stored = outcome.artifact(ArtifactKind.MANIFEST)
    assert stored is not None
    manifest = json.loads(worker.depot.objects[f"/{stored.key}"])
    assert manifest["peak_memory_by_phase"]["denoising"] == 9 * 2**30
    assert (manifest["steps_done"], manifest["step_s"]) == (4, outcome.step_s)


@pytest.mark.parametrize(
    ("peaks_gib", "failure_class", "steps"),
    [
        ((6.0, 9.0, 7.0, 7.0), FailureClass.OOM_ENCODE, 0),
        ((6.0, 7.0, 9.0, 7.0), FailureClass.OOM_DENOISE, 0),
        ((6.0, 7.0, 7.0, 9.0), FailureClass.OOM_DECODE, 4),
    ],
)
async def test_a_memory_cap_ends_the_attempt_in_the_phase_that_needs_more(
    worker: Rig, peaks_gib: tuple[float, ...], failure_class: FailureClass, steps: int
) -> None:
    spec = worker.spec(call={"memory_gib": peaks_gib}, memory_cap_gib=8.0)
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert (outcome.failure_class, outcome.steps_done, outcome.infrastructure) == (failure_class, steps, False)
    assert "9 GiB of 8 GiB" in outcome.cause
    fitted = peaks_gib[: peaks_gib.index(9.0)]  # the stub gets nothing for the phase that fails
    assert [peak.peak_bytes / 2**30 for peak in outcome.peak_memory_by_phase] == list(fitted)
    assert outcome.peak_device_memory_bytes == max(fitted) * 2**30


async def test_another_memory_cap_wants_a_fresh_runner(worker: Rig) -> None:
    for cap_gib in (None, 8.0, 8.0):
        spec = worker.spec(memory_cap_gib=cap_gib)
        await worker.admit(spec)
        assert (await worker.outcome(spec)).failure_class is None
    assert len({process.pid for process in worker.registered}) == 2


SMALLER = """
[[ladder]]
name = "lean"
call = { memory_gib = [3, 3, 5, 4] }

[[ladder]]
name = "short"
call = { memory_gib = [3, 3, 4, 4] }
num_frames_ratio = 0.5
size_ratio = 0.5
"""


@pytest.fixture
async def laddered(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(bus, nats_server.url, tmp_path, more_rungs=SMALLER) as found:
        yield found


async def test_a_lower_rung_is_a_fresh_process_with_its_own_keywords(laddered: Rig) -> None:
    spec = laddered.spec(call={"memory_gib": (6.0, 6.0, 9.0, 6.0)}, memory_cap_gib=8.0, rungs=("resident", "lean"))
    await laddered.admit(spec)
    assert (await laddered.outcome(spec)).failure_class is FailureClass.OOM_DENOISE
    await laddered.admit(spec, 2, rung=1)
    outcome = await laddered.outcome(spec, 2)
    assert (outcome.failure_class, outcome.marks) == (None, ())
    assert outcome.peak_device_memory_bytes == 5 * 2**30
    assert len({process.pid for process in laddered.registered}) == 2


async def test_a_rung_that_changes_the_picture_is_marked_and_checked_against_what_it_makes(laddered: Rig) -> None:
    spec = laddered.spec()
    await laddered.admit(spec, rung=2)
    outcome = await laddered.outcome(spec)
    assert outcome.clip is not None, outcome.cause
    assert (outcome.clip.frames, outcome.clip.width_px, outcome.clip.height_px) == (12, 48, 32)
    assert [(mark.kind, mark.parameter, mark.requested, mark.effective) for mark in outcome.marks] == [
        (MarkKind.REDUCED, "num_frames", "25", "12"),
        (MarkKind.REDUCED, "width_px", "96", "48"),
        (MarkKind.REDUCED, "height_px", "64", "32"),
    ]
    assert outcome.marks[0].reason == "rung short, to fit the device memory"
    stored = outcome.artifact(ArtifactKind.MANIFEST)
    assert stored is not None
    manifest = json.loads(laddered.depot.objects[f"/{stored.key}"])
    assert manifest["rung"] == {"index": 2, "name": "short"}
    assert manifest["parameters"]["num_frames"] == manifest["parameters"]["call"]["num_frames"] == 12
    assert manifest["spec"]["num_frames"] == 25
    assert [mark["effective"] for mark in manifest["marks"]] == ["12", "48", "32"]
