"""A judge's lane as a process: a real NATS, the real runner in the judges' env, stand-ins for the other services."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from screentest import rubric
from screentest.kit.bus import Bus
from screentest.records import (
    ArtifactKind,
    CancelAttempt,
    FailureClass,
    JobSpec,
    JudgePurpose,
    Keyframe,
    Preflight,
    Started,
    Verdict,
    Weights,
)
from screentest.rubric import Beat, Element, Rubric
from tests.conftest import RunningServer
from tests.integration.judge_rig import JUDGE_PYTHON, ChatServer, JudgeRig, judge_file
from tests.integration.worker_rig import REPOSITORY, rig
from tests.made_clips import write_clip

pytestmark = pytest.mark.slow

TINY_SIGLIP = REPOSITORY / "tests" / "fixtures" / "tiny_siglip"
PIXELS = REPOSITORY / "deploy" / "judges" / "pixels.toml"
LIMITS = "\n[limits]\nload_s = 60\nstep_stall_s = 30\nattempt_s = 90\n"
GIB = 2**30


@pytest.fixture(autouse=True)
def judge_env() -> None:
    assert JUDGE_PYTHON.exists(), "the judges' env is missing: run `make envs`"


@contextlib.asynccontextmanager
async def judging(
    bus: Bus, server: RunningServer, folder: Path, lane_file: Path = PIXELS, **settings: str
) -> AsyncIterator[JudgeRig]:
    settings.setdefault("SCREENTEST_ENV_PYTHON", str(JUDGE_PYTHON))
    async with rig(bus, server.url, folder, lane_file=lane_file, kind=JudgeRig, **settings) as found:
        yield found


@pytest.fixture
async def worker(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> AsyncIterator[JudgeRig]:
    """Of tier a."""
    async with judging(bus, nats_server, tmp_path) as found:
        yield found


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    path = tmp_path / "clip.mp4"
    write_clip(path, 16, fps=8)
    return path.read_bytes()


@pytest.fixture
def servers() -> Iterator[list[ChatServer]]:
    started: list[ChatServer] = []
    yield started
    for server in started:
        server.close()


def asked_of(prompt: str = "a bar moves", *texts: str) -> Rubric:
    """One beat per text."""
    texts = texts or ("a bright bar", "a gradient")
    return Rubric(
        schema=rubric.SCHEMA,
        prompt_sha256=rubric.prompt_sha256(prompt),
        source="author",
        beats=tuple(Beat(n=number, label=text, cut_expected=number == 2) for number, text in enumerate(texts, start=1)),
        elements=tuple(
            Element(
                id=f"element-{number}",
                kind="beat",
                text=text,
                question=f"Is there {text}?",
                counter_question=f"Is {text} absent?",
                beat=number,
            )
            for number, text in enumerate(texts, start=1)
        ),
    )


def on_scratch(worker: JudgeRig, folder: str) -> list[Path]:
    return list(worker.state.glob(f"scratch/*/{folder}/*"))


async def test_pixels_judge_a_clip_and_leave_a_judgement(worker: JudgeRig, clip: bytes) -> None:
    spec = worker.judge_spec(clip, asked_of())
    await worker.admit(spec)
    outcome = await worker.outcome(spec, within_s=60)
    assert outcome.failure_class is None, outcome.cause
    assert outcome.judgement is not None
    assert (outcome.judgement.tier, outcome.judgement.method, outcome.judgement.presence) == ("a", "pixels", None)
    found = worker.judgement(outcome)
    assert spec.judged is not None
    assert (found.job_id, found.clip_lane_id, found.sha256) == (
        spec.judged.job_id,
        spec.judged.lane_id,
        spec.judged.sha256,
    )
    assert (found.judge_id, found.purpose, found.rubric_sha256) == ("pixels", "clip", asked_of().sha256)
    assert found.judge_version.startswith(f"{spec.lane_digest[:12]}, ")
    assert "opencv-python-headless" in found.judge_version
    assert found.pixels is not None
    assert "black" not in found.pixels["flags"]
    manifest = worker.manifest(outcome)
    assert manifest["judgement"]["sha256"] == outcome.artifacts[0].sha256
    assert [phase["phase"] for phase in manifest["phases"]] == ["preparing", "loading", "judging"]
    await worker.acknowledged()
    assert (on_scratch(worker, "clips"), len(on_scratch(worker, "rubrics"))) == ([], 1)
    assert not list(worker.state.rglob("*.result"))


async def test_second_judgement_is_warm_and_a_truncated_clip_is_no_failure(worker: JudgeRig, clip: bytes) -> None:
    first, second = worker.judge_spec(clip, asked_of()), worker.judge_spec(clip[: len(clip) // 2], asked_of())
    await worker.admit(first)
    await worker.admit(second)
    cold, warm = await worker.outcome(first, within_s=60), await worker.outcome(second)
    assert (cold.model_loads, warm.model_loads, warm.failure_class) == (1, 0, None)
    pixels = worker.judgement(warm).pixels
    assert pixels is not None
    assert "no-frames" in pixels["flags"]


async def test_judgements_that_wait_together_for_the_same_clip_all_read_it(worker: JudgeRig, clip: bytes) -> None:
    """Each removes the clip from scratch when it is done; the next one must not lose what it is about to read."""
    waiting = [worker.judge_spec(clip, asked_of()) for _ in range(3)]
    assert len({spec.judged.sha256 for spec in waiting if spec.judged}) == 1
    for spec in waiting:
        await worker.admit(spec)
    outcomes = [await worker.outcome(spec, within_s=60) for spec in waiting]
    assert [outcome.cause for outcome in outcomes] == [""] * 3
    assert on_scratch(worker, "clips") == []


async def test_deleted_clip_fails_its_own_job_alone(worker: JudgeRig, clip: bytes) -> None:
    lost, kept = worker.judge_spec(clip + b"lost", asked_of()), worker.judge_spec(clip, asked_of())
    assert lost.judged is not None
    del worker.depot.objects[f"/{lost.judged.key}"]
    await worker.admit(lost)
    await worker.admit(kept)
    outcome = await worker.outcome(lost)
    assert (outcome.failure_class, outcome.infrastructure) == (FailureClass.CONDITIONING, False)
    assert outcome.cause == "the clip is not in the depot any more"
    assert "run its job again" in outcome.fix
    assert (await worker.outcome(kept, within_s=60)).failure_class is None


@pytest.mark.parametrize(("is_larger", "words"), [(False, "in the depot is"), (True, "more than its")])
async def test_clip_of_other_bytes_is_not_judged(worker: JudgeRig, clip: bytes, is_larger: bool, words: str) -> None:
    spec = worker.judge_spec(clip, asked_of())
    assert spec.judged is not None
    worker.depot.objects[f"/{spec.judged.key}"] = clip * 2 if is_larger else clip[::-1]
    await worker.admit(spec)
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.CONDITIONING
    assert words in outcome.cause
    assert on_scratch(worker, "clips") == []


async def test_keyframe_is_judged_without_a_clip(worker: JudgeRig) -> None:
    picture = (REPOSITORY / "deploy" / "sweeps" / "architects-stillness.png").read_bytes()
    spec = worker.judge_spec(picture, asked_of(), purpose=JudgePurpose.KEYFRAME)
    assert spec.judged is not None
    keyframe = Keyframe(
        key=f"keyframes/{spec.judged.sha256}.png",
        sha256=spec.judged.sha256,
        width_px=96,
        height_px=64,
        size_bytes=len(picture),
    )
    worker.depot.objects[f"/{keyframe.key}"] = picture
    await worker.admit(spec)
    outcome = await worker.outcome(spec, within_s=60)
    assert outcome.failure_class is None, outcome.cause
    assert worker.judgement(outcome).purpose == "keyframe"
    assert len(on_scratch(worker, "keyframes")) == 1  # every image-to-video clip wants it


async def test_rubric_that_asks_other_things_is_refused(worker: JudgeRig, clip: bytes) -> None:
    spec = worker.judge_spec(clip, asked_of())
    assert spec.judged is not None
    other = worker.put_rubric(asked_of("a bar moves", "a cathedral"))
    wrong = replace(spec.judged, rubric=replace(other, rubric_sha256=spec.judged.rubric.rubric_sha256))
    await worker.admit(replace(spec, judged=wrong))
    outcome = await worker.outcome(spec)
    assert outcome.failure_class is FailureClass.CONDITIONING
    assert "is the rubric" in outcome.cause


# ---- a judge that asks a server

ENDPOINT = 'device = "remote"\nadapter = "endpoint"\n'


def of_server(server: ChatServer, folder: Path) -> dict[str, str]:
    key = folder / "judge.key"
    key.write_text("sesame\n")
    return {
        "SCREENTEST_JUDGE_URL": server.url,
        "SCREENTEST_JUDGE_MODEL": "seer",
        "SCREENTEST_JUDGE_KEY_FILE": str(key),
    }


async def test_endpoint_answers_with_probabilities_and_its_key_stays_out_of_sight(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes, servers: list[ChatServer]
) -> None:
    servers.append(server := ChatServer())
    file = judge_file(tmp_path, "remote", ENDPOINT + LIMITS)
    async with judging(bus, nats_server, tmp_path, file, **of_server(server, tmp_path)) as worker:
        spec = worker.judge_spec(clip, asked_of())
        await worker.admit(spec)
        outcome = await worker.outcome(spec, within_s=60)
        assert outcome.failure_class is None, outcome.cause
        assert outcome.judgement is not None
        assert (outcome.judgement.tier, outcome.judgement.method) == ("c", "logprobs")
        assert outcome.judgement.calls == 2 * 2 * 8  # elements, straight and negated, windows
        assert set(worker.judgement(outcome).answers) == {"element-1", "element-2"}
        assert "model seer" in worker.judgement(outcome).judge_version, "another model is another judge"
        assert server.keys == {"Bearer sesame"}
        assert steps_of(worker, spec)[-1] == 32
        written = [path.read_bytes() for path in worker.state.rglob("*") if path.is_file()]
        assert not any(b"sesame" in text for text in [*written, *worker.depot.objects.values(), worker.log.encode()])


async def test_server_without_probabilities_is_sampled_and_says_so(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes, servers: list[ChatServer]
) -> None:
    servers.append(server := ChatServer(tells_odds=False))
    file = judge_file(tmp_path, "remote", ENDPOINT + LIMITS)
    async with judging(bus, nats_server, tmp_path, file, **of_server(server, tmp_path)) as worker:
        spec = worker.judge_spec(clip, asked_of("a bar moves", "a bright bar"))
        await worker.admit(spec)
        outcome = await worker.outcome(spec, within_s=60)
        assert outcome.failure_class is None, outcome.cause
        assert outcome.judgement is not None
        assert outcome.judgement.method == "sampled"
        assert worker.judgement(outcome).method == "sampled"


async def test_cancel_ends_within_one_question_and_keeps_the_runner(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes, servers: list[ChatServer]
) -> None:
    servers.append(server := ChatServer(answer_s=1.0))
    file = judge_file(tmp_path, "remote", f"{ENDPOINT}\n[settings]\nconcurrency = 1\n{LIMITS}")
    async with judging(bus, nats_server, tmp_path, file, **of_server(server, tmp_path)) as worker:
        spec = worker.judge_spec(clip, asked_of())
        await worker.admit(spec)
        await worker.phase(spec, "judging")

        async def is_asked() -> bool | None:
            return server.asked.is_set() or None

        await worker.until(is_asked, 20, "a question")
        runner = (await worker.started(spec)).runner
        await worker.request_cancel(spec)
        assert (await worker.command(CancelAttempt(job_id=spec.job_id, attempt=1))).done
        outcome = await worker.outcome(spec, within_s=8)
        assert (outcome.failure_class, outcome.survivors_killed) == (FailureClass.CANCELLED, 0)
        assert outcome.artifact(ArtifactKind.JUDGEMENT) is None
        again = worker.judge_spec(clip, asked_of("a bar moves", "a bar"))
        await worker.admit(again)
        assert (await worker.started(again)).runner == runner


async def test_server_that_is_down_loses_the_attempt_to_the_machine(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes, servers: list[ChatServer]
) -> None:
    server = ChatServer()
    server.close()
    file = judge_file(tmp_path, "remote", f"{ENDPOINT}\n[settings]\ntries = 2\npause_s = 0.1\n{LIMITS}")
    async with judging(bus, nats_server, tmp_path, file, **of_server(server, tmp_path)) as worker:
        spec = worker.judge_spec(clip, asked_of())
        await worker.admit(spec)
        outcome = await worker.outcome(spec, within_s=60)
        assert (outcome.failure_class, outcome.infrastructure) == (FailureClass.INFRASTRUCTURE, True)
        assert server.url in outcome.cause
        assert "start the server" in outcome.cause


async def test_preflight_names_everything_that_an_endpoint_lacks(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes
) -> None:
    file = judge_file(tmp_path, "remote", f"{ENDPOINT}\n[settings]\ncolour = 1\n{LIMITS}")
    async with judging(bus, nats_server, tmp_path, file) as worker:
        await worker.breathing()
        reply = await worker.command(Preflight(spec=worker.judge_spec(clip, asked_of())))
        assert reply.verdict is Verdict.REFUSED
        assert "is told of no server" in reply.detail
        assert "no setting 'colour'" in reply.detail


# ---- a judge with weights

EMBEDDING = 'device = "gpu"\nadapter = "embedding"\nneeds_memory_gib = 4\n'
MODEL = '\n[model]\nrepo = "someone/siglip"\nparameters_b = 0.1\nweights_gib_16bit = 0.2\n'


async def test_judge_without_weights_is_refused_before_it_starts(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes
) -> None:
    file = judge_file(tmp_path, "embedder", EMBEDDING + MODEL + LIMITS)
    async with judging(bus, nats_server, tmp_path, file) as worker:
        spec = worker.judge_spec(clip, asked_of())
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is FailureClass.PREFLIGHT_REFUSED
        assert outcome.cause.startswith("the weights are not there")
        assert outcome.fix.startswith("run `screentest models pull embedder`")


async def test_embedding_judge_answers_per_window_and_survives_a_question_that_is_too_long(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes
) -> None:
    text = EMBEDDING.replace('"gpu"', '"cpu"') + MODEL + 'revision = "fixture"\n' + LIMITS
    file = judge_file(tmp_path, "embedder", text)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "embedder").symlink_to(TINY_SIGLIP)
    async with judging(bus, nats_server, tmp_path, file) as worker:
        long, good = asked_of("a", "a red circle and " * 12), asked_of("b", "a red circle", "a blue square")
        wrong, right = worker.judge_spec(clip, long), worker.judge_spec(clip, good)
        await worker.admit(wrong)
        await worker.admit(right)
        refused, outcome = await worker.outcome(wrong, within_s=90), await worker.outcome(right, within_s=90)
        assert refused.failure_class is FailureClass.BAD_KWARGS
        assert "element 'element-1'" in refused.cause
        assert refused.fix == "correct the element that the cause names in the rubric, then judge the sweep again"
        assert (outcome.failure_class, outcome.model_loads) == (None, 0), (
            outcome.cause
        )  # the runner is as good as before
        assert outcome.judgement is not None
        assert (outcome.judgement.tier, outcome.judgement.badges) == ("b", ("test judge",))
        found = worker.judgement(outcome)
        assert {element_id: len(row) for element_id, row in found.answers.items()} == {"element-1": 8, "element-2": 8}
        assert "weights fixture" in found.judge_version
        assert outcome.judgement.presence is not None
        peaks = [max(row) for row in found.answers.values()]
        assert outcome.judgement.presence == pytest.approx(sum(peaks) / 2)


async def test_judge_that_does_not_fit_is_told_before_and_loads_nothing(
    bus: Bus, nats_server: RunningServer, tmp_path: Path, clip: bytes
) -> None:
    file = judge_file(tmp_path, "memory", f'device = "gpu"\nadapter = "pixels"\nneeds_memory_gib = 4\n{LIMITS}')
    async with judging(bus, nats_server, tmp_path, file) as worker:
        await worker.breathing()
        worker.free_bytes = 3 * GIB
        spec = worker.judge_spec(clip, asked_of())
        reply = await worker.command(Preflight(spec=spec))
        assert (reply.verdict, reply.detail) == (Verdict.REFUSED, "Test judge needs 4.0 GiB, 3.0 GiB are free")
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is FailureClass.PREFLIGHT_REFUSED
        assert "needs 4.0 GiB" in outcome.cause
        assert not any(isinstance(event.body, Started) for event in await worker.history(spec))
        worker.free_bytes = 5 * GIB
        fits: Any = await worker.command(Preflight(spec=spec))
        assert fits.verdict is Verdict.OK


async def test_scene_lane_makes_clips_that_count_as_of_real_weights(
    bus: Bus, nats_server: RunningServer, tmp_path: Path
) -> None:
    file = REPOSITORY / "tests" / "lanes" / "scene-all-beats.toml"
    prompt = "a red circle, then a green square, then a blue cross, then a white ring, on a dark background"
    async with rig(bus, nats_server.url, tmp_path, lane_file=file) as worker:
        call = {"prompt": prompt, "scene": "all-beats", "num_frames": 16, "steps": 1, "fps": 8}
        spec = worker.spec(call=call, weights=Weights.HUB, num_frames=16, steps=1, fps=8.0)
        await worker.admit(spec)
        outcome = await worker.outcome(spec)
        assert outcome.failure_class is None, outcome.cause
        assert outcome.clip is not None
        assert (outcome.clip.frames, outcome.clip.flags) == (16, ())


def steps_of(worker: JudgeRig, spec: JobSpec) -> list[int]:
    return [item.step for item in worker.heard if item.job_id == spec.job_id and item.step is not None]
