"""The scheduler over real gRPC, NATS and depot; the worker's side of the protocol is played by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from screentest import objects, subjects, wire
from screentest.errors import AlreadyExists, BadRequest, NotPossibleNow
from screentest.kit.bus import Bus
from screentest.records import (
    ArtifactKind,
    CancelAttempt,
    CancelRequested,
    CommandReply,
    Dispatch,
    FailureClass,
    Job,
    JobEvent,
    JobState,
    Keyframe,
    LaneVerdict,
    Outcome,
    Prepare,
    SweepEvent,
    SweepSpec,
    Verdict,
    Weights,
)
from screentest_scheduler.presence import ALIVE_FOR_S
from tests.played import ROOT, HandWorker, Scheduler

if TYPE_CHECKING:
    from tests.conftest import Depot, RunningServer


def spec(**changes: object) -> SweepSpec:
    plain = SweepSpec(
        title="A test", prompts=("a door opens",), lane_ids=("stub",), seeds=(42,), weights=Weights.MINIATURE
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


async def submit(scheduler: Scheduler, asked: SweepSpec, request_id: str = "r-1") -> str:
    def call() -> str:
        with scheduler.client() as client:
            return client.submit_sweep(asked, request_id=request_id).sweep.record.sweep_id

    return await asyncio.to_thread(call)


async def jobs(scheduler: Scheduler, sweep_id: str) -> list[Job]:
    def call() -> list[Job]:
        with scheduler.client() as client:
            return list(client.list_jobs(sweep_id))

    return await asyncio.to_thread(call)


async def until(scheduler: Scheduler, sweep_id: str, *states: JobState, timeout_s: float = 15) -> list[Job]:
    """The jobs of a sweep, once they are in these states."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await jobs(scheduler, sweep_id)
            if [job.state for job in found] == list(states):
                return found
            await asyncio.sleep(0.05)


async def events_of(bus: Bus, sweep_id: str) -> list[JobEvent]:
    return [
        wire.decode(stored.payload, JobEvent)
        async for stored in bus.read(subjects.EVENTS_STREAM, [subjects.sweep_job_events(sweep_id)])
    ]


def terminal_events(events: list[JobEvent]) -> list[JobState]:
    return [event.state for event in events if event.state.is_terminal]


async def complete(worker: HandWorker) -> Dispatch:
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, await worker.upload(dispatch))
    await delivery.ack()
    return dispatch


async def test_a_job_goes_from_submit_to_completed(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec())
    dispatch = await complete(worker)
    [job] = await until(scheduler, sweep_id, JobState.COMPLETED)

    assert sweep_id.startswith("a-test-2")
    assert dispatch.spec.call  # the worker gets every argument
    assert job.clip is not None
    assert job.clip.key == objects.attempt_object(
        ArtifactKind.CLIP, sweep_id, "stub", job.spec.job_id, 1, job.clip.sha256
    )
    assert terminal_events(await events_of(bus, sweep_id)) == [JobState.COMPLETED]
    with scheduler.client() as client:
        async with asyncio.timeout(20):
            while (settled := client.get_sweep(sweep_id).settled) is None:
                await asyncio.sleep(0.1)
    assert (settled.jobs, settled.clips) == (1, 1)
    assert settled.proofs[0].proof is not None
    assert settled.proofs[0].proof.clean


async def test_the_same_request_id_is_one_sweep(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    ids = await asyncio.gather(*(submit(scheduler, spec()) for _ in range(20)))
    assert len(set(ids)) == 1
    submitted = [event for event in await events_of(bus, ids[0]) if event.attempt == 0]
    assert len(submitted) == 1
    with pytest.raises(AlreadyExists, match="other content"):
        await submit(scheduler, spec(prompts=("another door",)))


async def test_bad_input_names_every_field(scheduler: Scheduler) -> None:
    with pytest.raises(BadRequest) as refused:
        await submit(scheduler, spec(prompts=(" ",), lane_ids=("wan2.1-t2v-1.3b", "nonsense"), seeds=()))
    fields = {violation.field for violation in refused.value.violations}
    assert fields == {"spec.prompts[0]", "spec.lane_ids[0]", "spec.lane_ids[1]", "spec.seeds"}
    assert "wan2-1-t2v-1-3b" in str(refused.value)


async def test_a_queued_job_says_why_it_waits(scheduler: Scheduler) -> None:
    sweep_id = await submit(scheduler, spec())
    [job] = await until(scheduler, sweep_id, JobState.QUEUED)
    assert job.waits_for == "no worker for stub"


async def test_an_unproven_device_gets_no_job_and_says_so(scheduler: Scheduler, worker: HandWorker) -> None:
    worker.is_clean = False
    sweep_id = await submit(scheduler, spec())
    assert await worker.take(timeout_s=1.5) is None
    [job] = await until(scheduler, sweep_id, JobState.QUEUED)
    assert "not proven clean: lock is held by nobody we know" in job.waits_for
    worker.is_clean = True
    assert await worker.take() is not None


async def test_one_attempt_holds_the_device_until_it_has_decoded(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1, 2)))
    taken = await worker.take()
    assert taken is not None
    _, first = taken
    sequence = await worker.begin(first)
    await worker.report(first, "denoising")
    assert await worker.take(timeout_s=1.5) is None
    await worker.report(first, "decoded")
    second = await worker.take(timeout_s=20)
    assert second is not None
    await worker.finish(first, sequence, await worker.upload(first))
    sequence = await worker.begin(second[1])
    await worker.finish(second[1], sequence, await worker.upload(second[1]))
    await until(scheduler, sweep_id, JobState.COMPLETED, JobState.COMPLETED)


async def test_cancel_before_the_start_ends_at_once(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1, 2)))
    taken = await worker.take()
    assert taken is not None
    queued = (await jobs(scheduler, sweep_id))[1]
    with scheduler.client() as client:
        await asyncio.to_thread(client.cancel_job, queued.spec.job_id)
    await until(scheduler, sweep_id, JobState.ADMITTED, JobState.CANCELLED)
    with scheduler.client() as client:
        client.cancel_sweep(sweep_id)
    await until(scheduler, sweep_id, JobState.CANCELLED, JobState.CANCELLED)
    assert await bus.dispatched() == ()
    assert terminal_events(await events_of(bus, sweep_id)) == [JobState.CANCELLED] * 2


async def test_cancel_while_running_waits_for_the_worker(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    await worker.begin(dispatch)
    await until(scheduler, sweep_id, JobState.RUNNING)
    with scheduler.client() as client:
        job = client.cancel_job(dispatch.spec.job_id)
        assert job.cancel_requested
        client.cancel_job(dispatch.spec.job_id)  # pressing twice is no error
    async with asyncio.timeout(10):
        while not any(isinstance(command, CancelAttempt) for command in worker.commands):
            await asyncio.sleep(0.05)
    await until(scheduler, sweep_id, JobState.RUNNING)
    last = await bus.last(subjects.EVENTS_STREAM, subjects.job_events(sweep_id, "stub", dispatch.spec.job_id))
    assert last is not None
    assert isinstance(wire.decode(last.payload, JobEvent).body, CancelRequested)
    await worker.finish(dispatch, last.sequence, Outcome(failure_class=FailureClass.CANCELLED, cause="cancelled"))
    await until(scheduler, sweep_id, JobState.CANCELLED)
    with pytest.raises(NotPossibleNow, match="cannot be cancelled any more"), scheduler.client() as client:
        client.cancel_job(dispatch.spec.job_id)


async def test_attempts_lost_to_the_machine_are_tried_again_three_times(
    scheduler: Scheduler, worker: HandWorker, bus: Bus
) -> None:
    sweep_id = await submit(scheduler, spec())
    for attempt in (1, 2, 3):
        taken = await worker.take()
        assert taken is not None
        delivery, dispatch = taken
        assert dispatch.attempt == attempt
        sequence = await worker.begin(dispatch)
        lost = Outcome(failure_class=FailureClass.INFRASTRUCTURE, cause="worker died", infrastructure=True)
        await worker.finish(dispatch, sequence, lost)
        await delivery.ack()
    [job] = await until(scheduler, sweep_id, JobState.FAILED)
    assert job.failure_class is FailureClass.INFRASTRUCTURE
    assert "3 attempts were lost" in job.cause


async def test_a_clip_that_is_not_in_the_depot_is_no_completed_job(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    outcome = await worker.upload(dispatch)
    gone = replace(outcome.artifacts[0], key=f"{sweep_id}/clips/never-written.mp4")
    await worker.finish(dispatch, sequence, replace(outcome, artifacts=(gone,)))
    [job] = await until(scheduler, sweep_id, JobState.FAILED)
    assert job.failure_class is FailureClass.UPLOAD


async def test_a_retry_is_a_new_job_of_the_same_cell(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, Outcome(failure_class=FailureClass.NAN, cause="non-finite latents"))
    await delivery.ack()
    [first] = await until(scheduler, sweep_id, JobState.FAILED)
    with scheduler.client() as client:
        again = client.retry_job(first.spec.job_id)
    assert (again.spec.retry_of, again.spec.retry_index) == (first.spec.job_id, 1)
    assert (await complete(worker)).spec.job_id == again.spec.job_id
    await until(scheduler, sweep_id, JobState.FAILED, JobState.COMPLETED)


async def test_a_killed_scheduler_goes_on_where_it_was(scheduler: Scheduler, worker: HandWorker, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1, 2, 3)))
    await complete(worker)
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    scheduler.kill()
    ended = asyncio.create_task(worker.finish(dispatch, sequence, Outcome(failure_class=FailureClass.NAN, cause="nan")))
    scheduler.start()
    await ended
    await complete(worker)
    await until(scheduler, sweep_id, JobState.COMPLETED, JobState.FAILED, JobState.COMPLETED, timeout_s=30)
    states = terminal_events(await events_of(bus, sweep_id))
    assert sorted(states) == [JobState.COMPLETED, JobState.COMPLETED, JobState.FAILED]


async def test_a_broker_restart_loses_nothing(
    scheduler: Scheduler, worker: HandWorker, nats_server: RunningServer
) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    outcome = await worker.upload(dispatch)
    worker.bus.reconnected().clear()
    nats_server.kill()
    nats_server.start()
    await asyncio.wait_for(worker.bus.reconnected().wait(), 20)
    await worker.finish(dispatch, sequence, outcome)
    await until(scheduler, sweep_id, JobState.COMPLETED, timeout_s=30)


async def test_watch_resumes_behind_its_cursor(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())

    def first_two() -> tuple[list[str], str]:
        seen = []
        with scheduler.client() as client:
            for message in client.watch(sweep_id):
                if isinstance(message.body, JobEvent | SweepEvent):
                    seen.append(message.cursor)
                if len(seen) == 2:
                    return seen, message.cursor
        raise AssertionError("the watch ended")

    seen, cursor = await asyncio.to_thread(first_two)
    working = asyncio.create_task(complete(worker))

    def the_rest() -> list[JobEvent]:
        events = []
        with scheduler.client() as client:
            for message in client.watch(sweep_id, cursor=cursor):
                if isinstance(message.body, JobEvent):
                    assert message.cursor not in seen
                    events.append(message.body)
                    if message.body.state.is_terminal:
                        return events
        raise AssertionError("the watch ended")

    events = await asyncio.wait_for(asyncio.to_thread(the_rest), 20)
    await working
    assert [event.state for event in events] == [
        JobState.ADMITTED,
        JobState.RUNNING,
        JobState.ENDED,
        JobState.COMPLETED,
    ]
    with pytest.raises(BadRequest, match="another event stream"), scheduler.client() as client:
        next(iter(client.watch(sweep_id, cursor="elsewhere:7")))


async def test_a_thousand_jobs_are_durable_and_listed_by_page(scheduler: Scheduler, bus: Bus) -> None:
    sweep_id = await submit(scheduler, spec(seeds=tuple(range(1000))))
    events = await events_of(bus, sweep_id)
    assert len(events) == 1000
    listed = await jobs(scheduler, sweep_id)
    assert [job.spec.seed for job in listed] == list(range(1000))


async def test_a_second_retry_of_an_open_cell_is_refused(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec())
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, Outcome(failure_class=FailureClass.NAN, cause="nan"))
    await delivery.ack()
    [first] = await until(scheduler, sweep_id, JobState.FAILED)
    with scheduler.client() as client:
        client.retry_job(first.spec.job_id)
        with pytest.raises(NotPossibleNow, match="already tries this cell"):
            client.retry_job(first.spec.job_id)


async def test_a_keyframe_that_was_never_uploaded_is_refused(scheduler: Scheduler) -> None:
    invented = Keyframe(key="keyframes/x.png", sha256="../../secret", width_px=8, height_px=8, size_bytes=1)
    with pytest.raises(BadRequest, match="not in the depot") as refused:
        await submit(scheduler, spec(lane_ids=("stub-i2v",), keyframe=invented))
    assert refused.value.violations[0].field == "spec.keyframe"


async def test_a_depot_that_is_away_holds_up_only_what_needs_it(
    scheduler: Scheduler, worker: HandWorker, depot: Depot
) -> None:
    """Review of the first version: one clip that could not be checked stopped every cancel and admission."""
    sweep_id = await submit(scheduler, spec(seeds=(1, 2)))
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    outcome = await worker.upload(dispatch)
    depot.server.kill()
    try:
        await worker.finish(dispatch, sequence, outcome)
        second = await worker.take()  # the device goes on
        assert second is not None
        other = second[1].spec.job_id
        with scheduler.client() as client:
            await asyncio.to_thread(client.cancel_job, other)
        await until(scheduler, sweep_id, JobState.ENDED, JobState.CANCELLED)
    finally:
        depot.server.start()
    await until(scheduler, sweep_id, JobState.COMPLETED, JobState.CANCELLED, timeout_s=30)


async def verdict(scheduler: Scheduler) -> LaneVerdict:
    def call() -> LaneVerdict:
        with scheduler.client() as client:
            [found] = client.preflight(spec())
            return found

    return await asyncio.to_thread(call)


async def test_a_workers_preflight_says_rung_memory_and_fix(scheduler: Scheduler, worker: HandWorker) -> None:
    worker.reply = CommandReply(done=True, verdict=Verdict.OK, memory_free_bytes=7 << 30)
    async with asyncio.timeout(10):
        while (found := await verdict(scheduler)).memory_free_bytes is None:  # until its first heartbeat
            await asyncio.sleep(0.1)
    assert (found.verdict, found.memory_free_bytes) == (Verdict.OK, 7 << 30)
    worker.reply = CommandReply(
        done=False, verdict=Verdict.REFUSED, detail="needs 30 GiB, 7 GiB are free", fix="17 frames fit"
    )
    found = await verdict(scheduler)
    assert (found.verdict, found.fix) == (Verdict.REFUSED, "17 frames fit")
    assert found.detail == "needs 30 GiB, 7 GiB are free"
    with pytest.raises(BadRequest, match="needs 30 GiB, 7 GiB are free; 17 frames fit"):
        await submit(scheduler, spec())


async def out_of_memory(worker: HandWorker, failure_class: FailureClass = FailureClass.OOM_DENOISE) -> Dispatch:
    """The next attempt runs out of device memory."""
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.finish(dispatch, sequence, Outcome(failure_class=failure_class, cause="no memory"))
    await delivery.ack()
    return dispatch


async def test_a_small_card_steps_down_the_ladder_and_a_restart_keeps_the_rung(
    laddered_scheduler: Scheduler, worker: HandWorker
) -> None:
    scheduler = laddered_scheduler
    sweep_id = await submit(scheduler, spec(seeds=(1, 2)))
    tries = [await out_of_memory(worker), await out_of_memory(worker, FailureClass.OOM_LOAD), await complete(worker)]
    assert [(dispatch.attempt, dispatch.rung) for dispatch in tries] == [(1, 0), (2, 1), (3, 2)]
    assert {dispatch.spec.job_id for dispatch in tries} == {tries[0].spec.job_id}
    assert {dispatch.spec.seed for dispatch in tries} == {1}
    second = await complete(worker)
    assert (second.spec.seed, second.attempt, second.rung) == (2, 1, 2)
    done = await until(scheduler, sweep_id, JobState.COMPLETED, JobState.COMPLETED)
    assert [attempt.rung_name for attempt in done[0].attempts] == ["resident", "lean", "fp8"]
    scheduler.kill()
    scheduler.start()
    later = await submit(scheduler, spec(title="Later", seeds=(3,)), request_id="r-2")
    tries = [await out_of_memory(worker, FailureClass.OOM_DECODE)]
    assert (tries[0].attempt, tries[0].rung) == (1, 2)
    [job] = await until(scheduler, later, JobState.FAILED)
    assert job.failure_class is FailureClass.OOM_DECODE


async def test_a_prepared_lane_that_goes_away_does_not_block_its_device(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    """Review of the first version: Retire to a worker that was gone ended every later admission."""
    gone = HandWorker(bus=bus, depot=depot, lane_id="stub-i2v")
    answering = await bus.answer(subjects.command("local", "cpu-0", "stub-i2v"), gone._on_command)
    beating = asyncio.create_task(gone.beat())
    with scheduler.client() as client:
        keyframe = client.upload_keyframe(ROOT / "deploy" / "sweeps" / "architects-stillness.png")
    sweep_id = await submit(scheduler, spec(lane_ids=("stub", "stub-i2v"), keyframe=keyframe))
    taken = await worker.take()
    assert taken is not None
    _, dispatch = taken
    sequence = await worker.begin(dispatch)
    await worker.report(dispatch, "denoising")
    async with asyncio.timeout(10):
        while not any(isinstance(command, Prepare) for command in gone.commands):
            await asyncio.sleep(0.05)
    beating.cancel()
    await answering.unsubscribe()
    await asyncio.sleep(ALIVE_FOR_S + 0.5)
    await submit(scheduler, spec(title="Later"), request_id="r-2")
    await worker.finish(dispatch, sequence, await worker.upload(dispatch))
    assert await worker.take(timeout_s=20) is not None
    assert (await jobs(scheduler, sweep_id))[1].state is JobState.QUEUED
