"""Judging over real gRPC, NATS and depot; makers of clips and judges are played by hand."""

from __future__ import annotations

import asyncio
import hashlib
import io
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from screentest import drafting, rubric, subjects, wire
from screentest.client import Judging
from screentest.errors import BadRequest, NotFound, NotPossibleNow
from screentest.kit.bus import Bus
from screentest.records import (
    ArtifactKind,
    Counts,
    Dispatch,
    FailureClass,
    Job,
    JobState,
    JudgePurpose,
    JudgingRequested,
    Outcome,
    PairOutcome,
    Sweep,
    SweepEvent,
    SweepSpec,
    Tick,
    Verdict,
    Weights,
)
from screentest_ui import cli_judge
from tests.played import HandWorker, Scheduler

if TYPE_CHECKING:
    from tests.conftest import Depot

PROMPT = "A red door opens. Then a dog runs out, and finally the door falls shut."
SIGLIP = "siglip2-base"


def spec(**changes: object) -> SweepSpec:
    plain = SweepSpec(
        title="Judged",
        prompts=(PROMPT,),
        lane_ids=("stub",),
        seeds=(1, 2),
        weights=Weights.HUB,
        judge_lane_ids=(SIGLIP,),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


async def submit(scheduler: Scheduler, asked: SweepSpec) -> str:
    def call() -> str:
        with scheduler.client() as client:
            return client.submit_sweep(asked, request_id=asked.title).sweep.record.sweep_id

    return await asyncio.to_thread(call)


async def sweep_of(scheduler: Scheduler, sweep_id: str) -> Sweep:
    def call() -> Sweep:
        with scheduler.client() as client:
            return client.get_sweep(sweep_id)

    return await asyncio.to_thread(call)


async def judge_jobs(scheduler: Scheduler, sweep_id: str) -> list[Job]:
    def call() -> list[Job]:
        with scheduler.client() as client:
            return list(client.list_judge_jobs(sweep_id))

    return await asyncio.to_thread(call)


async def ask(scheduler: Scheduler, sweep_id: str, **more: object) -> Judging:
    def call() -> Judging:
        with scheduler.client() as client:
            return client.judge_sweep(sweep_id, **more)  # type: ignore[arg-type]

    return await asyncio.to_thread(call)


async def until_scored(scheduler: Scheduler, sweep_id: str, **counts: int) -> Sweep:
    """Once its judge jobs are so."""
    async with asyncio.timeout(20):
        while True:
            sweep = await sweep_of(scheduler, sweep_id)
            if sweep.scoring is not None and sweep.scoring.counts == Counts(**counts):
                return sweep
            await asyncio.sleep(0.05)


@asynccontextmanager
async def at_work(bus: Bus, depot: Depot, *lane_ids: str) -> AsyncIterator[list[HandWorker]]:
    """Judges that beat; their jobs are for the test to take."""
    hands = [HandWorker(bus=bus, depot=depot, lane_id=lane_id) for lane_id in lane_ids]
    for hand in hands:
        await hand.start()
    beating = [asyncio.create_task(hand.beat()) for hand in hands]
    yield hands
    for task in beating:
        task.cancel()


async def make_clip(worker: HandWorker, flags: tuple[str, ...] = ()) -> Dispatch:
    taken = await worker.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await worker.begin(dispatch)
    data = f"clip of {dispatch.spec.job_id}".encode()
    await worker.finish(dispatch, sequence, await worker.upload(dispatch, data, flags))
    await delivery.ack()
    return dispatch


async def give_judgement(judge: HandWorker, presence: float | None = None, outcome: Outcome | None = None) -> Dispatch:
    taken = await judge.take()
    assert taken is not None
    delivery, dispatch = taken
    sequence = await judge.begin(dispatch)
    await judge.finish(dispatch, sequence, outcome or await judge.judge(dispatch, presence))
    await delivery.ack()
    return dispatch


async def requests_of(bus: Bus, sweep_id: str) -> list[JudgingRequested]:
    read = bus.read(subjects.EVENTS_STREAM, [subjects.sweep_events(sweep_id)])
    said = [wire.decode(stored.payload, SweepEvent).body async for stored in read]
    return [body for body in said if isinstance(body, JudgingRequested)]


def purpose(dispatch: Dispatch) -> JudgePurpose:
    assert dispatch.spec.judged is not None
    return dispatch.spec.judged.purpose


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, "PNG")
    return buffer.getvalue()


async def test_keyframe_then_clips_then_controls_also_over_a_restart(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    def upload() -> object:
        with scheduler.client() as client:
            return client.upload_keyframe(png(), file_name="key.png")

    keyframe = await asyncio.to_thread(upload)
    async with at_work(bus, depot, SIGLIP, "stub-i2v") as (siglip, i2v):
        sweep_id = await submit(scheduler, spec(keyframe=keyframe, lane_ids=("stub", "stub-i2v"), seeds=(1,)))
        first = await make_clip(worker)
        second = await make_clip(i2v)
        picture = await siglip.take()
        assert picture is not None
        assert purpose(picture[1]) is JudgePurpose.KEYFRAME
        assert await siglip.take(timeout_s=1) is None
        waiting = [job.waits_for for job in await judge_jobs(scheduler, sweep_id) if job.spec.lane_id == SIGLIP]
        assert waiting.count("the keyframe is judged first") == 2

        await asyncio.to_thread(scheduler.kill)
        await asyncio.to_thread(scheduler.start)
        sequence = await siglip.begin(picture[1])
        await siglip.finish(picture[1], sequence, await siglip.judge(picture[1]))
        await picture[0].ack()
        clips = [await give_judgement(siglip, 0.3), await give_judgement(siglip, 0.8)]
        assert [purpose(clip) for clip in clips] == [JudgePurpose.CLIP] * 2
        judged_ids = {clip.spec.judged.job_id for clip in clips if clip.spec.judged}
        assert judged_ids == {first.spec.job_id, second.spec.job_id}

        await asyncio.to_thread(scheduler.kill)
        await asyncio.to_thread(scheduler.start)
        controls = await give_judgement(siglip)
        assert purpose(controls) is JudgePurpose.CONTROLS
        assert controls.spec.judged is not None
        assert clips[1].spec.judged is not None
        assert controls.spec.judged.job_id == clips[1].spec.judged.job_id  # where more was seen
        assert controls.spec.judged.other_rubric is not None
        sweep = await until_scored(scheduler, sweep_id, completed=4, queued=2)  # nobody plays pixels here
    assert sweep.over
    assert sweep.counts == Counts(completed=2)
    assert sweep.settled is not None
    assert (sweep.settled.jobs, sweep.settled.clips) == (2, 2)


async def test_a_judge_reads_what_it_judges_and_nothing_else(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, "pixels") as (pixels,):
        await submit(scheduler, spec(seeds=(1,), judge_lane_ids=()))
        making = await worker.take()
        assert making is not None
        delivery, made = making
        assert "may put clip, log, manifest" in (await worker.url(made, ArtifactKind.JUDGEMENT, "0" * 64, 5)).error
        sequence = await worker.begin(made)
        await worker.finish(made, sequence, await worker.upload(made, f"clip of {made.spec.job_id}".encode()))
        await delivery.ack()
        taken = await pixels.take()
        assert taken is not None
        _, dispatch = taken
        judged = dispatch.spec.judged
        assert judged is not None

        def fetched(url: str) -> bytes:
            with urllib.request.urlopen(url) as answer:
                data: bytes = answer.read()
            return data

        clip = await pixels.url(dispatch, ArtifactKind.CLIP)
        assert await asyncio.to_thread(fetched, clip.url) == f"clip of {made.spec.job_id}".encode()
        asked = await pixels.url(dispatch, ArtifactKind.RUBRIC, judged.rubric.sha256)
        text = await asyncio.to_thread(fetched, asked.url)
        assert rubric.from_json(text.decode(), "depot") == drafting.draft(PROMPT)
        assert hashlib.sha256(text).hexdigest() == judged.rubric.sha256
        for kind, sha256 in ((ArtifactKind.RUBRIC, "0" * 64), (ArtifactKind.KEYFRAME, "")):
            assert (await pixels.url(dispatch, kind, sha256)).error


async def test_dead_clips_and_random_weights_are_left_to_pixels(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, SIGLIP, "pixels") as (_, pixels):
        dead = await submit(scheduler, spec(seeds=(1,)))
        await make_clip(worker, ("black",))
        await give_judgement(pixels)
        random = await submit(scheduler, spec(title="Random", seeds=(1,), weights=Weights.MINIATURE))
        await make_clip(worker)
        for sweep_id in (dead, random):
            async with asyncio.timeout(10):
                while not (found := await judge_jobs(scheduler, sweep_id)):
                    await asyncio.sleep(0.05)
            assert [job.spec.lane_id for job in found] == ["pixels"]


async def test_a_failed_judgement_leaves_the_sweep_over_and_is_tried_again_when_somebody_asks(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, SIGLIP) as (siglip,):
        sweep_id = await submit(scheduler, spec(seeds=(1,)))
        await make_clip(worker)
        broken = Outcome(failure_class=FailureClass.LAYOUT, cause="no checkpoint", fix="pull it")
        await give_judgement(siglip, outcome=broken)
        sweep = await until_scored(scheduler, sweep_id, failed=1, queued=1)
        assert (sweep.over, sweep.counts) == (True, Counts(completed=1))
        [failed] = [job for job in await judge_jobs(scheduler, sweep_id) if job.state is JobState.FAILED]
        assert failed.cause == "no checkpoint"
        with pytest.raises(NotPossibleNow, match="screentest judge"), scheduler.client() as client:
            client.retry_job(failed.spec.job_id)

        cost = {item.lane_id: item for item in (await ask(scheduler, sweep_id, estimate_only=True)).costs}
        assert (cost[SIGLIP].jobs, cost["pixels"].jobs) == (2, 0)  # the clip, and the controls that follow
        assert cost[SIGLIP].calls > 0
        assert cost[SIGLIP].seconds is None
        await until_scored(scheduler, sweep_id, failed=1, queued=1)  # an estimate asks nobody
        await ask(scheduler, sweep_id)
        again = await give_judgement(siglip, 0.4)
        assert again.spec.retry_of == failed.spec.job_id
        assert purpose(await give_judgement(siglip)) is JudgePurpose.CONTROLS
        await until_scored(scheduler, sweep_id, failed=1, completed=2, queued=1)
        measured = {item.lane_id: item for item in (await ask(scheduler, sweep_id, estimate_only=True)).costs}
        assert measured[SIGLIP].basis.startswith("1 clips judged here")


async def test_an_old_sweep_is_judged_by_a_new_rubric_and_its_old_questions_are_called_off(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, "pixels") as (pixels,):
        sweep_id = await submit(scheduler, spec(judge_lane_ids=()))
        for _ in range(2):
            await make_clip(worker)
        old = await give_judgement(pixels)
        draft = drafting.draft(PROMPT)
        edited = replace(draft, elements=draft.elements[:-1])

        def upload() -> object:
            with scheduler.client() as client:
                return client.upload_rubric(rubric.to_json(edited).encode(), file_name="mine.json", prompt=PROMPT)

        ref = await asyncio.to_thread(upload)
        await ask(scheduler, sweep_id, rubrics=(ref,))
        hashes = [(await give_judgement(pixels)).spec.judged for _ in range(2)]
        assert {judged.rubric.rubric_sha256 for judged in hashes if judged} == {edited.sha256}
        assert old.spec.judged is not None
        assert old.spec.judged.rubric.rubric_sha256 == draft.sha256
        await until_scored(scheduler, sweep_id, completed=3, cancelled=1)
        [request] = await requests_of(bus, sweep_id)
        assert request.by == "a person"


async def test_several_who_ask_at_the_same_moment_queue_a_judgement_once(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, SIGLIP) as (siglip,):
        sweep_id = await submit(scheduler, spec(seeds=(1,)))
        await make_clip(worker)
        await give_judgement(siglip, outcome=Outcome(failure_class=FailureClass.LAYOUT, cause="no checkpoint"))
        await until_scored(scheduler, sweep_id, failed=1, queued=1)
        together = threading.Barrier(4)
        with scheduler.client() as client:

            def call() -> Judging:
                together.wait()
                return client.judge_sweep(sweep_id)

            said = await asyncio.gather(*(asyncio.to_thread(call) for _ in range(4)))
        assert sorted(sum(cost.jobs for cost in judging.costs) for judging in said) == [0] * 3 + [2]
        assert len(await requests_of(bus, sweep_id)) == 1
        await until_scored(scheduler, sweep_id, failed=1, queued=2)


async def test_the_rubric_of_a_prompt_can_be_read_again(scheduler: Scheduler) -> None:
    edited = replace(drafting.draft(PROMPT), source="author")

    def read() -> str:
        with scheduler.client() as client:
            ref = client.upload_rubric(rubric.to_json(edited).encode(), prompt=PROMPT)
            sweep_id = client.submit_sweep(spec(rubrics=(ref,)), request_id="read").sweep.record.sweep_id
            with pytest.raises(NotFound, match="there are: 0"):
                client.get_artifact(kind=ArtifactKind.RUBRIC, sweep_id=sweep_id, name="7")
            found = client.get_artifact(kind=ArtifactKind.RUBRIC, sweep_id=sweep_id, name="0")
            assert found.artifact.sha256 == ref.sha256
            with urllib.request.urlopen(found.url) as reply:
                return str(reply.read().decode())

    assert rubric.from_json(await asyncio.to_thread(read), "depot") == edited


async def test_cancelling_a_sweep_cancels_its_judge_jobs_and_no_controls_follow(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, SIGLIP) as (siglip,):
        sweep_id = await submit(scheduler, spec())
        for _ in range(2):
            await make_clip(worker)
        await give_judgement(siglip, 0.5)
        await until_scored(scheduler, sweep_id, completed=1, queued=3)

        def cancel() -> int:
            with scheduler.client() as client:
                return client.cancel_sweep(sweep_id)

        assert await asyncio.to_thread(cancel) == 3
        await until_scored(scheduler, sweep_id, completed=1, cancelled=3)
        assert await bus.dispatched() == ()
        assert await siglip.take(timeout_s=1) is None


async def test_a_retried_job_has_its_new_clip_judged(
    scheduler: Scheduler, worker: HandWorker, bus: Bus, depot: Depot
) -> None:
    async with at_work(bus, depot, "pixels") as (pixels,):
        sweep_id = await submit(scheduler, spec(seeds=(1,), judge_lane_ids=()))
        made = await make_clip(worker)
        await give_judgement(pixels)

        def retry() -> Job:
            with scheduler.client() as client:
                return client.retry_job(made.spec.job_id)

        again = await asyncio.to_thread(retry)
        await make_clip(worker)
        second = await give_judgement(pixels)
        assert second.spec.judged is not None
        assert second.spec.judged.job_id == again.spec.job_id
        await until_scored(scheduler, sweep_id, completed=2)


async def test_wrong_judges_and_rubrics_are_named(scheduler: Scheduler) -> None:
    def refused(asked: SweepSpec) -> dict[str, str]:
        with pytest.raises(BadRequest) as error, scheduler.client() as client:
            client.submit_sweep(asked, request_id="r")
        return {violation.field: violation.description for violation in error.value.violations}

    found = await asyncio.to_thread(refused, spec(judge_lane_ids=("siglip2", "qwen3-vl-8b", "pixels", "pixels")))
    assert found.keys() == {f"spec.judge_lane_ids[{index}]" for index in (0, 1, 3)}
    assert "did you mean 'siglip2-base'" in found["spec.judge_lane_ids[0]"]
    assert "needs a GPU" in found["spec.judge_lane_ids[1]"]

    def upload(prompt: str, data: bytes | None = None) -> object:
        with scheduler.client() as client:
            json = data or rubric.to_json(drafting.draft(prompt)).encode()
            return client.upload_rubric(json, file_name="other.json")

    other = await asyncio.to_thread(upload, "A boat on a lake")
    found = await asyncio.to_thread(refused, spec(rubrics=(other,)))
    assert "was written for another prompt" in found["spec.rubrics[0]"]
    mine = await asyncio.to_thread(upload, PROMPT)
    forged = replace(mine, approved_by="ada")  # type: ignore[type-var]
    found = await asyncio.to_thread(refused, spec(rubrics=(forged,)))
    assert "is not what the depot has" in found["spec.rubrics[0]"]
    with pytest.raises(BadRequest, match="another prompt"), scheduler.client() as client:
        client.upload_rubric(rubric.to_json(drafting.draft("A boat")).encode(), prompt=PROMPT)
    with pytest.raises(BadRequest, match="'prompt_sha256' is missing"), scheduler.client() as client:
        client.upload_rubric(b'{"schema": "rubric/1"}', file_name="broken.json")


async def test_of_a_tier_those_are_asked_that_can_work_here_and_the_others_are_named(
    scheduler: Scheduler, worker: HandWorker
) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1,), judge_lane_ids=()))
    await make_clip(worker)

    def judge(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("screentest")), "judge", sweep_id, *arguments]
        environment = {**scheduler.environment, "SCREENTEST_GRPC_ADDRESS": scheduler.address, "COLUMNS": "200"}
        return subprocess.run(command, input="n\n", env=environment, capture_output=True, text=True, check=False)

    some = await asyncio.to_thread(judge, "--tier", "c")
    assert some.returncode == 0, some.stderr
    assert "left out: judge 'qwen3-vl-8b' needs a GPU" in some.stderr
    assert "endpoint" in some.stdout
    assert "qwen3-vl-8b" not in some.stdout
    named = await asyncio.to_thread(judge, "--tier", "c", "--judge", "qwen3-vl-8b")
    assert (named.returncode, named.stdout) == (2, "")
    assert "judge 'qwen3-vl-8b' needs a GPU" in named.stderr


async def test_who_follows_judging_is_let_go_when_no_worker_of_a_judge_is_there(
    scheduler: Scheduler, worker: HandWorker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_id = await submit(scheduler, spec(seeds=(1,)))
    await make_clip(worker)
    sweep = await until_scored(scheduler, sweep_id, queued=2)
    monkeypatch.setattr(cli_judge, "WITHOUT_WORKER_S", 0.1)

    def follow() -> bool:
        with scheduler.client() as client:
            return cli_judge.follow(client, sweep, quiet=True)

    async with asyncio.timeout(20):
        assert not await asyncio.to_thread(follow)
    assert "judging waits for a worker of " in capsys.readouterr().err


async def test_a_prompt_without_words_is_said_and_refuses_no_sweep(scheduler: Scheduler, worker: HandWorker) -> None:
    def preflight() -> str:
        with scheduler.client() as client:
            [verdict] = client.preflight(spec(prompts=("!!!",), seeds=(1,)))
        assert verdict.verdict is not Verdict.REFUSED
        return verdict.detail

    assert "prompt 1 gets no rubric and no score: the prompt has no words" in await asyncio.to_thread(preflight)
    sweep_id = await submit(scheduler, spec(prompts=("!!!",), seeds=(1,)))
    await make_clip(worker)
    sweep = await sweep_of(scheduler, sweep_id)
    assert (sweep.record.rubrics, sweep.scoring) == ((), None)


async def test_what_people_say_is_kept_and_what_is_wrong_is_refused(scheduler: Scheduler, worker: HandWorker) -> None:
    sweep_id = await submit(scheduler, spec(prompts=(PROMPT, "A boat on a lake"), seeds=(1, 2), judge_lane_ids=()))
    made = [(await make_clip(worker)).spec for _ in range(3)]
    async with asyncio.timeout(10):
        while (await sweep_of(scheduler, sweep_id)).counts.completed < 3:
            await asyncio.sleep(0.05)
    [first, second, boat] = [job.job_id for job in made]
    [*_, unmade] = [job.spec.job_id for job in await asyncio.to_thread(_jobs, scheduler, sweep_id)]

    def say() -> None:
        draft = drafting.draft(PROMPT)
        tick = Tick(element_id=draft.elements[0].id, present=True)
        with scheduler.client() as client:
            client.rate_clip(first, score10=3)
            client.rate_clip(first, score10=7.5, ticks=(tick,), rubric_sha256=draft.sha256)
            client.vote_pair(second, first, PairOutcome.LEFT, rater="grace hopper")
            client.vote_pair(first, second, PairOutcome.LEFT, rater=" grace  hopper ")
            client.edit_finding(sweep_id, first, "The door is blue")
            client.edit_finding(sweep_id, second, "Wrong")
            client.edit_finding(sweep_id, second, "")
            client.edit_finding(sweep_id, "note:keyframe", "Mine")
            said = client.list_votes(sweep_id)
            assert [(rated.score10, rated.ticks) for rated in said.ratings] == [(7.5, (tick,))]
            assert [(vote.outcome, vote.rater) for vote in said.pairs] == [(PairOutcome.LEFT, "grace hopper")]
            assert [rated.rater for rated in said.ratings] == ["a person"]
            assert {edited.row: edited.text for edited in said.findings} == {
                first: "The door is blue",
                "note:keyframe": "Mine",
            }
            for wrong in (
                lambda: client.rate_clip(first, score10=10.1),
                lambda: client.rate_clip(first, score10=float("nan")),
                lambda: client.rate_clip(first),
                lambda: client.rate_clip(first, ticks=(tick,), rubric_sha256="0" * 64),
                lambda: client.rate_clip(first, ticks=(replace(tick, element_id="x"),), rubric_sha256=draft.sha256),
                lambda: client.vote_pair(first, first, PairOutcome.TIE),
                lambda: client.vote_pair(first, boat, PairOutcome.TIE),
                lambda: client.edit_finding(sweep_id, "nonsense", "x"),
                lambda: client.set_priority(sweep_id, 101),
            ):
                with pytest.raises(BadRequest):
                    wrong()
            with pytest.raises(NotPossibleNow, match="has no clip"):
                client.rate_clip(unmade, score10=1)
            for unknown in (
                lambda: client.rate_clip("nobody", score10=1),
                lambda: client.judge_sweep("nobody"),
                lambda: client.pause_sweep("nobody"),
                lambda: client.list_votes("nobody"),
            ):
                with pytest.raises(NotFound):
                    unknown()

    await asyncio.to_thread(say)


def _jobs(scheduler: Scheduler, sweep_id: str) -> tuple[Job, ...]:
    with scheduler.client() as client:
        return client.list_jobs(sweep_id)


async def test_a_paused_sweep_waits_and_a_higher_priority_goes_first(scheduler: Scheduler, worker: HandWorker) -> None:
    def order(call: str, sweep_id: str, **more: object) -> Sweep:
        with scheduler.client() as client:
            found: Sweep = getattr(client, call)(sweep_id, **more)
            return found

    early = await submit(scheduler, spec(title="early", seeds=(1,), paused=True))
    later = await submit(scheduler, spec(title="later", seeds=(1,), paused=True))
    assert await worker.take(timeout_s=1) is None
    raised = await asyncio.to_thread(order, "set_priority", later, priority=5)
    assert (raised.priority, raised.paused) == (5, True)
    worker.is_clean = False  # nothing starts until both are on their way
    for sweep_id in (early, later):
        assert not (await asyncio.to_thread(order, "pause_sweep", sweep_id, paused=False)).paused
    worker.is_clean = True
    first = await worker.take()
    assert first is not None
    assert first[1].spec.sweep_id == later
