"""The seven published failures and the black clip, each provoked as it happened, and what becomes of them here.

One machine (scheduler, telemetry, workers, real runners on miniatures) replays them all once; each test then looks at
one. `pytest -k published_failures` ends with the table: published outcome, what happens here, in how many seconds.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from screentest import table
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.lanes import from_json
from screentest.records import (
    ArtifactKind,
    AttemptEnded,
    FailureClass,
    Job,
    JobState,
    LaneVerdict,
    Mark,
    MarkKind,
    Process,
    Requested,
    Started,
    SweepSpec,
    Verdict,
    Weights,
)
from screentest_ui import ports, servers
from screentest_worker.facts import inspect_lane
from screentest_worker.findings import Check, Problem
from tests import broken_weights
from tests.conftest import Depot, RunningServer
from tests.faults import checker, published
from tests.faults.machine import Machine
from tests.integration.runner_process import env_python
from tests.integration.worker_rig import lock_holders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MOCHI, MOCHI_FP32 = "mochi-1-preview", "mochi-float32"
STUBBORN, SLOW = "skyreels-v2-df-stubborn", "skyreels-v2-df-slow"
LTX = "ltx-video-13b-distilled"
HUNYUAN, HUNYUAN_PLAIN = "hunyuanvideo-i2v", "hunyuanvideo-i2v-plain"
V1 = "skyreels-v1-hunyuan-i2v"
I2V = "skyreels-v2-i2v-14b-540p"
SVD, SVD_UNMAPPED = "stable-video-diffusion-xt", "stable-video-diffusion-unmapped"
WAN, WAN_NAN, WAN_ZERO, WAN_BLACK = "wan2-1-t2v-1-3b", "wan-nan", "wan-zero-embeddings", "wan-black"

FAILING = (MOCHI_FP32, STUBBORN, SLOW, HUNYUAN_PLAIN, WAN_NAN, WAN_ZERO)
MENDED = (MOCHI, LTX, SVD, WAN_BLACK)

STUBBORN_LIMIT_S, SLOW_LIMIT_S = 8, 120
SLOW_STEPS = 1000
PREFLIGHTS = 10  # of two seconds each
GENEROUS_S = 60.0  # of one ending on a busy machine; what it really took is in the table
SETTLED_WITHIN_S = 300.0  # a sweep of six on a machine that others use too; idle it takes a tenth
EXPECTED = {
    MOCHI_FP32: (FailureClass.OOM_LOAD,),
    STUBBORN: (FailureClass.TIMEOUT,),
    SLOW: (FailureClass.TIMEOUT,),
    HUNYUAN_PLAIN: (FailureClass.CONDITIONING,),
    WAN_NAN: (FailureClass.NAN,),
    WAN_ZERO: (FailureClass.CONDITIONING,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A preflight over the API, and how long its answer took."""

    verdict: LaneVerdict
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What preflight finds in a lane file and a folder of weights."""

    problems: tuple[Problem, ...]
    seconds: float


@dataclass
class Replay:
    """Everything that happened. ``survivors``: of every runner and its daemon, who was alive when it had to be gone."""

    jobs: dict[str, Job] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    inspected: dict[str, Inspected] = field(default_factory=dict)
    runners: list[Process] = field(default_factory=list)
    daemon: int | None = None
    holders_after_daemon: tuple[int, ...] | None = None
    daemon_lived_on: bool | None = None
    manifest: dict[str, object] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    survivors: tuple[int, ...] = ()

    def seconds(self, lane_id: str) -> float:
        """On the device, of all attempts together; a lower rung may have waited for other lanes in between."""
        took = [table.attempt_s(attempt) for attempt in self.jobs[lane_id].attempts]
        return sum(seconds for seconds in took if seconds is not None)

    def classes(self, lane_id: str) -> list[FailureClass | None]:
        """How each attempt ended."""
        outcomes = [attempt.outcome for attempt in self.jobs[lane_id].attempts]
        return [outcome.failure_class if outcome else None for outcome in outcomes]

    def marks(self, lane_id: str) -> tuple[Mark, ...]:
        return self.jobs[lane_id].spec.marks


@pytest.fixture(scope="module")
def replay(
    tmp_path_factory: pytest.TempPathFactory,
    depot_server: tuple[RunningServer, tuple[servers.DepotKey, ...]],
    request: pytest.FixtureRequest,
) -> Iterator[Replay]:
    folder = tmp_path_factory.mktemp("published")
    nats = RunningServer(servers.configure_nats(folder / "nats", ports.choose(1)[0]))
    nats.start()
    server, (scheduler, reporter) = depot_server
    depot = Depot(url=server.url, bucket="published", scheduler=scheduler, reporter=reporter, server=server)
    try:
        found = asyncio.run(_replayed(folder, nats, depot))
    finally:
        nats.stop()
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *rows(found), sep="\n")


# ---- the replay


async def _replayed(folder: Path, nats: RunningServer, depot: Depot) -> Replay:
    await depot.store().ensure_bucket()
    bus = await Bus.connect(nats.url, name="test")
    await bus.ensure_streams()
    host = Machine(folder=folder / "machine", nats=nats, depot=depot, bus=bus)
    good = folder / "good"
    _write_lanes(host, good)
    pid_file = folder / "daemon.pid"
    changes = _changes(pid_file)
    for path in host.lanes.glob("*.toml"):
        change = changes.get(path.stem)
        python = published.python_with(folder / "envs" / path.stem, change) if change else env_python("diffusers")
        # One thread each: so small a model gains nothing by more, and they would spin while others have work.
        host.environments[path.stem] = {"SCREENTEST_ENV_PYTHON": str(python), "OMP_NUM_THREADS": "1"}
    found = Replay()
    try:
        await host.up(V1, I2V, SVD, SVD_UNMAPPED)
        for lane_id in (*FAILING, *MENDED):  # they begin while the first ones are asked
            if lane_id not in host.running:
                host.start(lane_id)
        await _refused_before_anything(host, found, good)
        await _failing(host, found, pid_file)
        await _mended(host, found, good)
        store, sweeps = depot.store(), host.acknowledged
        found.violations = checker.violations(await checker.gather(bus, store, acknowledged=sweeps, expected=EXPECTED))
        await _note_runners(host, found)
    finally:
        await host.down()
        await bus.close()
    found.survivors = tuple(process.pid for process in found.runners if clock.process_of(process.pid) == process)
    return found


def _write_lanes(host: Machine, good: Path) -> None:
    """Lanes of the catalogue, and the same with a fix switched off."""
    forcing = published.shipped("skyreels-v2-df-14b-540p")
    hunyuan, svd, wan = (published.shipped(lane_id) for lane_id in (HUNYUAN, SVD, WAN))
    mochi = published.shipped(MOCHI)
    float32 = published.changed(mochi, MOCHI_FP32, {"pipeline": {"dtype": {"default": "float32"}}})
    slow = {"limits": {"attempt_s": SLOW_LIMIT_S}, "miniature": {"defaults": {"steps": SLOW_STEPS}}}
    of_hub = [published.small(published.shipped(lane_id)) for lane_id in (V1, I2V, HUNYUAN)]
    published.build(good, *of_hub)
    of_hub = [published.counted(content, good / content["id"]) for content in of_hub]
    for content in (
        mochi,
        published.without_ladder(float32),
        published.changed(forcing, STUBBORN, {"limits": {"attempt_s": STUBBORN_LIMIT_S}}),
        published.changed(forcing, SLOW, slow),
        published.shipped(LTX),
        published.changed(published.without_index_class(hunyuan), HUNYUAN_PLAIN, {}),
        *of_hub[:2],
        svd,
        published.changed(svd, SVD_UNMAPPED, {"parameters": {"guidance_scale": "guidance_scale"}}),
        *(published.changed(wan, lane_id, {}) for lane_id in (WAN_NAN, WAN_ZERO, WAN_BLACK)),
    ):
        published.write_lane(host.lanes, content)


def _changes(pid_file: Path) -> dict[str, str]:
    """Lane to what happens to its runner; the others have the model env as it is."""
    return {
        MOCHI: published.CARD_TOO_SMALL_TO_LOAD,
        MOCHI_FP32: published.CARD_TOO_SMALL_TO_LOAD,
        STUBBORN: published.STUBBORN.format(pid_file=str(pid_file)),
        SLOW: published.SLOW_CARD,
        LTX: published.CARD_TOO_SMALL_TO_DENOISE,
        WAN_NAN: published.OVERFLOWS,
        WAN_ZERO: published.EMBEDS_NOTHING,
        WAN_BLACK: published.DECODES_TO_BLACK,
    }


async def _refused_before_anything(host: Machine, found: Replay, good: Path) -> None:
    """Preflight of what a worker finds on its disk; nothing is queued."""
    keyframe = await host.ask(lambda client: client.upload_keyframe(_rgba_keyframe()))
    spec = SweepSpec(
        title="Published",
        prompts=("an obsidian cathedral",),
        lane_ids=(),
        seeds=(42,),
        weights=Weights.HUB,
        keyframe=keyframe,
    )
    models = host.folder / "models"
    for name, lane_id, break_it in (
        ("bare transformer", V1, broken_weights.bare_transformer),
        ("16 channels", I2V, broken_weights.text_to_video_denoiser),
        ("T2V weights", I2V, broken_weights.text_to_video_tensors),
    ):
        weights = _fresh(models / lane_id, good / lane_id)
        break_it(weights)
        found.asked[name] = await _ask(host, spec, lane_id)
    found.asked["unmapped"] = await _ask(host, spec, SVD_UNMAPPED, Weights.MINIATURE)
    found.asked["mapped"] = await _ask(host, spec, SVD, Weights.MINIATURE)
    for name, lane_id, kind in (
        ("DF class", I2V, "SkyReelsV2DiffusionForcingImageToVideoPipeline"),
        ("T2V class", I2V, "SkyReelsV2Pipeline"),
    ):
        content = published.changed(_small(lane_id), lane_id, {"pipeline": {"class": kind}})
        found.inspected[name] = _inspect(content, good / lane_id)
    found.inspected["tokenizer"] = _inspect(published.without_index_class(_small(HUNYUAN)), good / HUNYUAN)


async def _ask(host: Machine, spec: SweepSpec, lane_id: str, weights: Weights = Weights.HUB) -> Asked:
    """Again while the worker is too slow to be heard, on a machine where fourteen of them start at once."""
    asked = replace(spec, lane_ids=(lane_id,), weights=weights, requested=Requested(guidance_scale=3.5))
    for _ in range(PREFLIGHTS):
        began = time.perf_counter()
        [verdict] = await host.ask(lambda client: client.preflight(asked))
        seconds = time.perf_counter() - began
        if verdict.plan is None or not verdict.plan.preflight.startswith("not preflighted"):
            break
    return Asked(verdict=verdict, seconds=seconds)


def _inspect(content: dict[str, object], folder: Path) -> Inspected:
    lane = from_json(published.counted(content, folder), "test")
    began = time.perf_counter()
    problems = inspect_lane(lane, folder, env_python("diffusers"))
    return Inspected(problems=problems, seconds=time.perf_counter() - began)


def _small(lane_id: str) -> dict[str, object]:
    return published.small(published.shipped(lane_id))


def _fresh(target: Path, good: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(good, target))


def _rgba_keyframe() -> bytes:
    """With an alpha channel and another aspect ratio than any lane."""
    data = io.BytesIO()
    picture = Image.radial_gradient("L").resize((300, 200))
    Image.merge("RGBA", (picture, picture, picture.transpose(Image.Transpose.ROTATE_180), picture)).save(data, "PNG")
    return data.getvalue()


async def _failing(host: Machine, found: Replay, pid_file: Path) -> None:
    """What fails as it did, but soon and with a reason."""
    sweep_id = await host.submit(
        *FAILING,
        prompts=("an obsidian cathedral",),
        keyframe=await host.ask(lambda client: client.upload_keyframe(_rgba_keyframe())),
    )

    async def stubborn_ended() -> bool | None:
        events = [event for event in await host.events(sweep_id) if event.lane_id == STUBBORN]
        return any(isinstance(event.body, AttemptEnded) for event in events) or None

    await host.until(stubborn_ended, SETTLED_WITHIN_S, "end of the stubborn runner")
    found.daemon = int(await asyncio.to_thread(pid_file.read_text))
    found.daemon_lived_on = clock.process_of(found.daemon) is not None
    holders = lock_holders(host.locks / "cpu-0.lock")
    stubborn = {runner.pid for runner in await _runners(host, STUBBORN)} | {found.daemon}
    found.holders_after_daemon = tuple(pid for pid in holders if pid in stubborn)
    for job in await host.settled(sweep_id, within_s=SETTLED_WITHIN_S):
        found.jobs[job.spec.lane_id] = job


async def _mended(host: Machine, found: Replay, good: Path) -> None:
    """The lanes as they are shipped, on the same cards, and whole folders of weights."""
    keyframe = await host.ask(lambda client: client.upload_keyframe(_rgba_keyframe()))
    for lane_id in (V1, I2V):
        _fresh(host.folder / "models" / lane_id, good / lane_id)
    sweeps = [
        await host.submit(
            *lane_ids,
            prompts=("an obsidian cathedral",),
            keyframe=keyframe,
            weights=weights,
            requested=Requested(guidance_scale=3.5),
        )
        for lane_ids, weights in ((MENDED, Weights.MINIATURE), ((V1, I2V), Weights.HUB))
    ]
    for sweep_id in sweeps:
        for job in await host.settled(sweep_id, within_s=SETTLED_WITHIN_S):
            found.jobs[job.spec.lane_id] = job
    found.manifest = await host.ask(lambda client: _manifest(client, found.jobs[SVD].spec.job_id))


def _manifest(client: object, job_id: str) -> dict[str, object]:
    url = client.get_artifact(kind=ArtifactKind.MANIFEST, job_id=job_id).url  # type: ignore[attr-defined]
    with urllib.request.urlopen(url) as answer:
        content: dict[str, object] = json.loads(answer.read())
    return content


async def _note_runners(host: Machine, found: Replay) -> None:
    for lane_id in found.jobs:
        found.runners += await _runners(host, lane_id)


async def _runners(host: Machine, lane_id: str) -> list[Process]:
    sweeps = host.acknowledged
    events = [event for sweep_id in sweeps for event in await host.events(sweep_id)]
    return [event.body.runner for event in events if event.lane_id == lane_id and isinstance(event.body, Started)]


# ---- what it shows


def check_failed(replay: Replay, lane_id: str, failure_class: FailureClass, cause: str, fix: str) -> None:
    job = replay.jobs[lane_id]
    assert (job.state, job.failure_class) == (JobState.FAILED, failure_class), job.cause
    assert cause in job.cause
    assert fix in job.fix
    assert "\n" not in job.cause + job.fix
    assert replay.seconds(lane_id) < GENEROUS_S


def check_completed(replay: Replay, lane_id: str, *before: FailureClass) -> None:
    job = replay.jobs[lane_id]
    assert job.state is JobState.COMPLETED, job.cause
    assert replay.classes(lane_id) == [*before, None]


def check_refused(asked: Asked, reason: str, fix: str) -> None:
    assert asked.verdict.verdict is Verdict.REFUSED, asked.verdict
    assert reason in asked.verdict.detail
    assert fix in asked.verdict.fix
    assert asked.seconds < GENEROUS_S


def test_mochi_in_float32_runs_out_of_memory_in_its_load(replay: Replay) -> None:
    check_failed(replay, MOCHI_FP32, FailureClass.OOM_LOAD, "CUDA out of memory", "lower rung or a card with more")
    assert replay.jobs[MOCHI_FP32].attempts[0].outcome.phase == "loading"  # type: ignore[union-attr]


def test_mochi_as_shipped_completes_at_the_next_rung_of_its_ladder(replay: Replay) -> None:
    check_completed(replay, MOCHI, FailureClass.OOM_LOAD)
    assert [attempt.rung_name for attempt in replay.jobs[MOCHI].attempts] == ["resident", "lean"]


def test_ltx_out_of_memory_while_denoising_completes_at_the_next_rung(replay: Replay) -> None:
    check_completed(replay, LTX, FailureClass.OOM_DENOISE)
    first = replay.jobs[LTX].attempts[0].outcome
    assert first is not None
    assert "lower rung" in first.fix
    assert [attempt.rung_name for attempt in replay.jobs[LTX].attempts] == ["resident", "lean"]


def test_stubborn_process_tree_is_gone_when_its_attempt_times_out(replay: Replay) -> None:
    check_failed(replay, STUBBORN, FailureClass.TIMEOUT, f"more than {STUBBORN_LIMIT_S} s", "fewer frames or steps")
    outcome = replay.jobs[STUBBORN].attempts[0].outcome
    assert outcome is not None
    assert outcome.survivors_killed >= 2  # the runner and the daemon it left
    assert replay.daemon_lived_on is False
    assert replay.holders_after_daemon == ()


def test_job_behind_the_stubborn_one_starts(replay: Replay) -> None:
    ended = replay.jobs[STUBBORN].attempts[-1].ended
    assert ended is not None
    begun = [job.attempts[0].started for job in replay.jobs.values()]
    assert any(table.seconds_between(ended, started) > 0 for started in begun if started is not None)


def test_run_that_would_take_hours_ends_after_two_steps(replay: Replay) -> None:
    check_failed(replay, SLOW, FailureClass.TIMEOUT, "stopped after step 2", "fewer frames or steps")
    outcome = replay.jobs[SLOW].attempts[0].outcome
    assert outcome is not None
    assert outcome.steps_done == 2


def test_tokenizer_of_transformers_5_is_found_in_the_load(replay: Replay) -> None:
    check_failed(replay, HUNYUAN_PLAIN, FailureClass.CONDITIONING, "does not split text", "lane file")
    outcome = replay.jobs[HUNYUAN_PLAIN].attempts[0].outcome
    assert outcome is not None
    assert (outcome.phase, outcome.steps_done) == ("loading", 0)


def test_tokenizer_of_transformers_5_is_refused_where_weights_lie(replay: Replay) -> None:
    [problem] = replay.inspected["tokenizer"].problems
    assert problem.check is Check.LAYOUT
    assert "huggingface/transformers#45488" in problem.reason
    assert 'index_class = "LlamaTokenizerFast"' in problem.fix


def test_bare_transformer_is_refused_before_the_load(replay: Replay) -> None:
    reason = "has no model_index.json: it is a bare HunyuanVideoTransformer3DModel"
    check_refused(replay.asked["bare transformer"], reason, f"screentest models pull {V1}")


def test_assembled_folder_runs(replay: Replay) -> None:
    check_completed(replay, V1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("16 channels", "has in_channels 16, the lane wants 36 (16 of the latents and 20 of keyframe and mask)"),
        ("T2V weights", "takes 16 channels, the lane wants 36"),
    ],
)
def test_text_to_video_weights_in_the_i2v_lane_are_refused_with_the_numbers(
    replay: Replay, name: str, reason: str
) -> None:
    check_refused(replay.asked[name], reason, "use the weights of the lane's own task")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("DF class", "SkyReelsV2DiffusionForcingImageToVideoPipeline"), ("T2V class", "SkyReelsV2Pipeline")],
)
def test_image_to_video_weights_in_another_class_are_refused(replay: Replay, name: str, kind: str) -> None:
    reasons = " / ".join(problem.reason for problem in replay.inspected[name].problems)
    assert f"names the pipeline SkyReelsV2ImageToVideoPipeline, the lane wants {kind}" in reasons


def test_keyframe_with_an_alpha_channel_is_made_rgb(replay: Replay) -> None:
    check_completed(replay, I2V)


def test_guidance_scale_of_svd_is_renamed_and_marked_in_plan_manifest_and_table(replay: Replay) -> None:
    check_completed(replay, SVD)
    asked = replay.asked["mapped"].verdict
    assert asked.verdict is Verdict.FIXED
    assert asked.plan is not None
    for marks in (asked.plan.marks, replay.marks(SVD)):
        [mark] = [mark for mark in marks if mark.parameter == "guidance_scale"]
        assert (mark.kind, mark.requested, mark.effective) == (MarkKind.RENAMED, "3.5", "max_guidance_scale=3.5")
    told = [mark for mark in replay.manifest["marks"] if mark["parameter"] == "guidance_scale"]  # type: ignore[attr-defined]
    assert [mark["effective"] for mark in told] == ["max_guidance_scale=3.5"]
    [row] = table.rows([replay.jobs[SVD]])
    assert any(note.startswith("guidance_scale renamed: 3.5 -> max_guidance_scale=3.5") for note in row.footnotes)


def test_guidance_scale_that_nobody_mapped_is_refused_by_the_signature(replay: Replay) -> None:
    reason = "StableVideoDiffusionPipeline takes no 'guidance_scale'"
    check_refused(replay.asked["unmapped"], reason, "did you mean")
    assert "max_guidance_scale" in replay.asked["unmapped"].verdict.fix


def test_not_a_number_ends_in_its_first_step(replay: Replay) -> None:
    check_failed(replay, WAN_NAN, FailureClass.NAN, "the latents of step 1 are not finite", "float32")


def test_zero_embeddings_end_in_the_load(replay: Replay) -> None:
    check_failed(replay, WAN_ZERO, FailureClass.CONDITIONING, "embedding of text_encoder", "lane file")
    outcome = replay.jobs[WAN_ZERO].attempts[0].outcome
    assert outcome is not None
    assert outcome.steps_done == 0


def test_black_clip_that_is_valid_completes_with_a_flag(replay: Replay) -> None:
    check_completed(replay, WAN_BLACK)
    outcome = replay.jobs[WAN_BLACK].attempts[-1].outcome
    assert outcome is not None
    assert outcome.clip is not None
    assert "black" in outcome.clip.flags


def test_nothing_survives_and_every_history_is_whole(replay: Replay) -> None:
    assert len(replay.runners) >= len(replay.jobs)
    assert replay.survivors == ()
    assert replay.violations == []


# ---- the table


def rows(replay: Replay) -> Sequence[str]:
    """In Markdown, with what was measured in this very run."""
    lines = (
        *_of_jobs(replay, "Mochi 1: out of memory, 20.73 s", (MOCHI_FP32, "float32"), (MOCHI, "as shipped, same card")),
        *_of_jobs(
            replay,
            "SkyReels V2 DF: two-hour timeout, 7200.01 s",
            (STUBBORN, f"limit {STUBBORN_LIMIT_S} s, deaf runner with a daemon"),
            (SLOW, "card too slow"),
        ),
        *_of_jobs(replay, "LTX 13B: out of memory, 48.88 s", (LTX, "as shipped, card full after the load")),
        _inspected(replay, "HunyuanVideo I2V: IndexError, 300.56 s", "tokenizer", "weights on disk, no override"),
        *_of_jobs(replay, "", (HUNYUAN_PLAIN, "no override")),
        _asked(replay, "SkyReels V1: missing model_index.json, 5.75 s", "bare transformer", "bare transformer"),
        *_of_jobs(replay, "", (V1, "assembled folder")),
        _asked(replay, "SkyReels V2 I2V: channel mismatch, 607.73 s", "16 channels", "16-channel config"),
        _asked(replay, "", "T2V weights", "T2V weights"),
        _inspected(replay, "", "DF class", "I2V weights in the DF class"),
        _inspected(replay, "", "T2V class", "I2V weights in the T2V class"),
        *_of_jobs(replay, "", (I2V, "RGBA keyframe")),
        _asked(replay, "SVD XT: unexpected guidance_scale, 7.71 s", "unmapped", "keyword not mapped"),
        *_of_jobs(replay, "", (SVD, "as shipped")),
        *_of_jobs(
            replay,
            "Wan 2.1: black clip as a success, 343.94 s",
            (WAN_NAN, "not-a-number"),
            (WAN_ZERO, "zero embeddings"),
            (WAN_BLACK, "black but valid"),
        ),
    )
    told = (f"| {published} | {how} | {what} | {_seconds(took)} |" for published, how, what, took in lines)
    return ("| published | provoked by | what Screentest does | s |", "|---|---|---|---|", *told)


def _of_jobs(replay: Replay, first: str, *cases: tuple[str, str]) -> Iterator[tuple[str, str, str, float | None]]:
    for lane_id, how in cases:
        job = replay.jobs.get(lane_id)
        if job is None or not job.state.is_terminal:
            yield first, how, "did not end", None
        else:
            yield first, how, _told(job), replay.seconds(lane_id)
        first = ""


def _told(job: Job) -> str:
    """`resident`: oom_load; `lean`: completed."""
    endings = []
    for attempt in job.attempts:
        outcome = attempt.outcome
        if outcome is None:
            continue
        failure, flags = outcome.failure_class, outcome.clip.flags if outcome.clip is not None else ()
        what = f"failed as {failure} in {outcome.phase}" if failure else "completed"
        what += f", after step {outcome.steps_done}" if failure and outcome.steps_done else ""
        what += f", {outcome.survivors_killed} processes killed" if outcome.survivors_killed else ""
        what += f", flagged {', '.join(flags)}" if flags else ""
        endings.append(f"`{attempt.rung_name}`: {what}" if len(job.attempts) > 1 else what)
    marks = "".join(f", {mark.parameter} {mark.kind} to {mark.effective}" for mark in _renamed(job))
    return "; ".join(endings) + marks


def _renamed(job: Job) -> list[Mark]:
    return [mark for mark in job.spec.marks if mark.kind is MarkKind.RENAMED]


def _asked(replay: Replay, first: str, name: str, how: str) -> tuple[str, str, str, float]:
    return first, how, "refused before it is queued", replay.asked[name].seconds


def _inspected(replay: Replay, first: str, name: str, how: str) -> tuple[str, str, str, float]:
    checks = ", ".join(dict.fromkeys(problem.check.value for problem in replay.inspected[name].problems))
    return first, how, f"refused by preflight: {checks}", replay.inspected[name].seconds


def _seconds(took: float | None) -> str:
    return table.ABSENT if took is None else f"{took:.3f}" if took < 1 else f"{took:.1f}"
