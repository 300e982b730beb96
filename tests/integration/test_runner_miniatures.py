"""Every lane with miniature weights, in a real runner process: the real diffusers pipeline, end to end."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from screentest.lanes import Lane, from_json
from screentest_runner.protocol import (
    Cancel,
    Decoded,
    Encode,
    Encoded,
    Failed,
    FailureClass,
    Loaded,
    Phase,
    Prepared,
    StepDone,
)

from .runner_process import LANES, ChildProcess, RunnerProcess, lane_of

pytestmark = pytest.mark.slow

MODEL_LANES = sorted(path.stem for path in LANES.glob("*.toml") if not path.stem.startswith("stub"))
FRAMES = 25
COLD_FIRST_STEP_S = 12.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of all tests of this module."""
    return tmp_path_factory.mktemp("miniatures")


@pytest.fixture(scope="module")
def keyframe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with an alpha channel and another aspect ratio than any lane: what a person uploads."""
    path = tmp_path_factory.mktemp("keyframe") / "key.png"
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 4), np.uint8)
    Image.fromarray(noise, "RGBA").save(path)
    return path


@pytest.fixture
def wan(tmp_path: Path, cache: Path) -> Iterator[RunnerProcess]:
    """A warm runner of a text-to-video lane."""
    with RunnerProcess(lane_of("wan2-1-t2v-1-3b"), tmp_path) as runner:
        runner.open()
        runner.load(cache=cache)
        runner.until(Loaded)
        yield runner


def keyframe_of(lane: Lane, keyframe: Path) -> Path | None:
    return keyframe if lane.task == "i2v" else None


@pytest.mark.parametrize("lane_id", MODEL_LANES)
def test_lane_makes_its_clip_and_a_second_one_without_loading(
    lane_id: str, tmp_path: Path, cache: Path, keyframe: Path
) -> None:
    lane = lane_of(lane_id)
    picture = keyframe_of(lane, keyframe)
    with RunnerProcess(lane, tmp_path) as runner:
        runner.prepare()
        versions = runner.until(Prepared).versions
        assert versions["torch"].startswith("2.13.0")
        runner.open()
        runner.load(cache=cache)
        loaded = runner.until(Loaded)
        assert loaded.build_s is not None
        frames_path = runner.generate("a", picture)
        decoded = runner.until(Decoded)
        assert [(step.step, step.steps) for step in runner.of(StepDone)] == [(1, 2), (2, 2)]
        check_cancel(runner, picture)
        runner.generate("b", picture)
        assert runner.until(Decoded).loads == 1
        assert len(runner.of(Loaded)) == 1

    assert decoded.frames == FRAMES
    assert frames_path.stat().st_size == FRAMES * decoded.height_px * decoded.width_px * 3
    assert frames_path.read_bytes() == (tmp_path / "b.raw").read_bytes()  # same seed, warm and after a cancel
    assert set(decoded.timings_s) == {"encoding_prompt", "denoising", "decoding", "writing"}
    assert decoded.finite_fraction == 1.0
    assert clip_frames(frames_path, decoded, tmp_path) == FRAMES


def check_cancel(runner: RunnerProcess, picture: Path | None) -> None:
    """StableVideoDiffusionPipeline ignores the _interrupt flag: every lane must end by the raise, within one step."""
    before = len(runner.of(StepDone))
    has_list = "timesteps" in runner.lane.call
    many = {"timesteps": list(range(1000, 0, -5))} if has_list else {runner.lane.parameters["steps"]: 200}
    runner.generate("cancelled", picture, **many)
    assert runner.until(StepDone).steps == 200
    runner.send(Cancel(attempt_id="cancelled"))
    sent_at = time.monotonic()
    failed = runner.until(Failed, fails=True)
    ended_after_s = time.monotonic() - sent_at
    assert (failed.failure_class, failed.phase) == (FailureClass.CANCELLED, Phase.DENOISING)
    steps = runner.of(StepDone)[before:]
    assert len(steps) < 150
    assert ended_after_s < max(step.step_s for step in steps) + 2.0  # leave for a busy machine


def clip_frames(frames_path: Path, decoded: Decoded, folder: Path) -> int:
    """Frames that come out of the MP4 which the model env's encoder writes."""
    with ChildProcess("screentest_runner.encode", "diffusers", folder / "encoder.log") as encoder:
        encoder.send(
            Encode(
                frames_path=str(frames_path),
                clip_path=str(folder / "clip.mp4"),
                frames=decoded.frames,
                height_px=decoded.height_px,
                width_px=decoded.width_px,
                fps=8.0,
                title="test",
                comment={},
                random_weights=True,
            )
        )
        encoder.until(Encoded)
    with av.open(folder / "clip.mp4") as container:
        return sum(1 for _ in container.decode(video=0))


def test_first_step_of_a_cold_runner_stays_within_its_bound(tmp_path: Path, cache: Path) -> None:
    """Processor seconds, which other load does not change; the wall clock is measured in bench/."""
    with RunnerProcess(lane_of("mochi-1-preview"), tmp_path) as runner:
        runner.open()
        runner.load(cache=cache)
        runner.generate("a")
        runner.until(StepDone)
        assert cpu_seconds(runner.process.pid) < COLD_FIRST_STEP_S


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads. Source: proc(5), fields 14 and 15 of /proc/<pid>/stat, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_prompt_reaches_the_clip(wan: RunnerProcess) -> None:
    clips = []
    for attempt_id, prompt in (("a", "a doll"), ("b", "a soldier in a control room")):
        path = wan.generate(attempt_id, prompt=prompt)
        wan.until(Decoded)
        clips.append(path.read_bytes())
    assert clips[0] != clips[1]


def test_unknown_keyword_is_named_before_anything_runs(wan: RunnerProcess) -> None:
    wan.generate("a", motion_bucket_id=127)
    failed = wan.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.BAD_KWARGS
    assert "WanPipeline takes no motion_bucket_id" in failed.message


def test_infinite_guidance_fails_as_nan_in_its_first_step(wan: RunnerProcess) -> None:
    """Non-finite latents would become a valid, fully black clip with exit status 0."""
    wan.generate("a", num_inference_steps=50, guidance_scale=3e38)
    failed = wan.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.NAN
    assert len(wan.of(StepDone)) < 5


def test_frame_count_that_the_pipeline_rounds_away_is_truncated_and_no_clip(wan: RunnerProcess) -> None:
    wan.generate("a", num_frames=27)
    failed = wan.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.TRUNCATED
    assert "returned 25 frames, asked for 27" in failed.message


def without_index_class(lane: Lane) -> Lane:
    """The lane as if model_index.json named the right tokenizer."""
    content: dict[str, Any] = {**lane.content, "components": {**lane.content["components"]}}
    content["components"]["tokenizer"] = {"library": "transformers", "class": "LlamaTokenizerFast"}
    return from_json(content, "test")


@pytest.mark.parametrize("lane_id", ["hunyuanvideo-i2v", "skyreels-v1-hunyuan-i2v"])
def test_wrong_tokenizer_of_the_published_index_is_caught(lane_id: str, tmp_path: Path, cache: Path) -> None:
    """huggingface/transformers#45488: without the override the prompt loses its spaces and the clip means nothing."""
    lane = lane_of(lane_id)
    weights_dir = checkpoint_of(lane, tmp_path, cache)
    with RunnerProcess(without_index_class(lane), tmp_path) as runner:
        runner.open()
        runner.load("hub", weights_dir=weights_dir)
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.CONDITIONING
    assert "tokenizer" in failed.message


def checkpoint_of(lane: Lane, folder: Path, cache: Path) -> str:
    """A miniature as if it had been downloaded: its weights_dir."""
    if not list(cache.glob(f"{lane.id}-*")):
        with RunnerProcess(lane, folder) as runner:
            runner.open()
            runner.load(cache=cache)
            runner.until(Loaded)
    (made,) = cache.glob(f"{lane.id}-*")
    return str(shutil.copytree(made, folder / "download"))


def test_bare_transformer_loaded_as_a_pipeline_is_a_layout_failure(tmp_path: Path, cache: Path) -> None:
    """SkyReels V1 in the published sweep: the repository has no model_index.json (SkyworkAI/SkyReels-V1#18)."""
    lane = lane_of("skyreels-v1-hunyuan-i2v")
    weights_dir = checkpoint_of(lane, tmp_path, cache)
    with RunnerProcess(lane, tmp_path) as runner:
        runner.open()
        runner.load("hub", weights_dir=f"{weights_dir}/transformer")
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.LAYOUT
    assert "no model_index.json" in failed.message
    assert "a single model" in failed.message
    assert "run `screentest models pull skyreels-v1-hunyuan-i2v`" in failed.message


def test_weights_of_another_kind_of_pipeline_are_a_channels_failure(tmp_path: Path, cache: Path) -> None:
    """SkyReels V2 I2V in the published sweep, after ten minutes; here in the load."""
    weights_dir = checkpoint_of(lane_of("skyreels-v2-df-14b-540p"), tmp_path, cache)
    with RunnerProcess(lane_of("wan2-1-t2v-1-3b"), tmp_path) as runner:
        runner.lane = expecting_channels(runner.lane, 36)
        runner.open()
        runner.load("hub", weights_dir=weights_dir)
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.CHANNELS
    assert "takes 16 channels, components.transformer.config says 36" in failed.message


def expecting_channels(lane: Lane, in_channels: int) -> Lane:
    content: dict[str, Any] = copy.deepcopy(lane.content)
    content["components"]["transformer"]["config"]["in_channels"] = in_channels
    content["pipeline"]["class"] = "SkyReelsV2DiffusionForcingPipeline"
    return from_json(content, "test")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with RunnerProcess(lane_of("cogvideox-2b"), tmp_path) as runner:
        runner.open()
        runner.load("hub", weights_dir=str(tmp_path / "nowhere"))
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.LAYOUT
    assert "THUDM/CogVideoX-2b" in failed.message


def test_miniature_is_built_once_and_found_again(tmp_path: Path, cache: Path) -> None:
    lane = lane_of("cogvideox-5b")
    builds = []
    for _ in range(2):
        with RunnerProcess(lane, tmp_path) as runner:
            runner.open()
            runner.load(cache=tmp_path / "own-cache")
            builds.append(runner.until(Loaded).build_s)
    assert builds[0] is not None
    assert builds[1] is None
    assert not list((tmp_path / "own-cache").glob(".*"))  # nothing half-made stays


@pytest.mark.parametrize("lane_id", ["hunyuanvideo-1-5-t2v", "kandinsky-5-t2v-lite", "wan2-2-t2v-a14b"])
def test_prompt_reaches_the_clip_behind_its_template(lane_id: str, tmp_path: Path, cache: Path) -> None:
    """The pipelines cut their template off by a number of tokens, which could cut the prompt off too."""
    clips = []
    with RunnerProcess(lane_of(lane_id), tmp_path) as runner:
        runner.open()
        runner.load(cache=cache)
        for attempt_id, prompt in (("a", "a doll"), ("b", "a soldier in a control room")):
            path = runner.generate(attempt_id, prompt=prompt)
            runner.until(Decoded)
            clips.append(path.read_bytes())
    assert clips[0] != clips[1]


def test_guidance_of_a_component_reaches_the_clip(tmp_path: Path, cache: Path) -> None:
    """HunyuanVideo 1.5 takes no guidance_scale: its guider has it."""
    clips = []
    with RunnerProcess(lane_of("hunyuanvideo-1-5-t2v"), tmp_path) as runner:
        runner.open()
        runner.load(cache=cache)
        for attempt_id, settings in (("a", {}), ("b", {"guider.guidance_scale": 1.0}), ("c", {})):
            path = runner.generate(attempt_id, **settings)
            runner.until(Decoded)
            clips.append(path.read_bytes())
        runner.generate("d", **{"guider.strength": 1.0})
        failed = runner.until(Failed, fails=True)
    assert clips[0] != clips[1]
    assert clips[0] == clips[2]
    assert failed.failure_class is FailureClass.BAD_KWARGS
    assert "HunyuanVideo15Pipeline has no guider.strength" in failed.message


def test_clip_has_the_size_of_the_job_where_the_keyframe_decides_it(tmp_path: Path, cache: Path) -> None:
    """The keyframe is square: unfitted, the pipeline would make 80x80 of it."""
    square = tmp_path / "square.png"
    Image.new("RGB", (120, 120), (90, 20, 20)).save(square)
    with RunnerProcess(lane_of("hunyuanvideo-1-5-i2v"), tmp_path) as runner:
        runner.open()
        runner.load(cache=cache)
        runner.generate("a", square)
        decoded = runner.until(Decoded)
    assert (decoded.width_px, decoded.height_px) == (96, 64)


def test_weights_made_with_other_arguments_than_the_lane_names_are_a_layout_failure(
    tmp_path: Path, cache: Path
) -> None:
    """Without boundary_ratio only one of the two denoisers runs, and the clip looks like a bad model's."""
    lane = lane_of("wan2-2-t2v-a14b")
    weights_dir = checkpoint_of(lane, tmp_path, cache)
    index_path = Path(weights_dir) / "model_index.json"
    index = json.loads(index_path.read_text())
    index_path.write_text(json.dumps({**index, "boundary_ratio": 0.9}))
    with RunnerProcess(lane, tmp_path) as runner:
        runner.open()
        runner.load("hub", weights_dir=weights_dir)
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.LAYOUT
    assert "says boundary_ratio = 0.9, pipeline.init of the lane says 0.875" in failed.message


def test_component_that_the_lane_does_not_name_stays_on_the_disk(tmp_path: Path, cache: Path) -> None:
    lane = lane_of("wan2-1-t2v-1-3b")
    weights_dir = checkpoint_of(lane, tmp_path, cache)
    index_path = Path(weights_dir) / "model_index.json"
    index = json.loads(index_path.read_text())
    index_path.write_text(json.dumps({**index, "transformer_2": ["diffusers", "WanTransformer3DModel"]}))
    with RunnerProcess(lane, tmp_path) as runner:
        runner.open()
        runner.load("hub", weights_dir=weights_dir)
        runner.until(Loaded)


def test_keyframe_reaches_the_clip(tmp_path: Path, cache: Path, keyframe: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (64, 64), 30).save(other)
    clips = []
    with RunnerProcess(lane_of("skyreels-v2-i2v-14b-540p"), tmp_path) as runner:
        runner.open()
        runner.load(cache=cache)
        for attempt_id, picture in (("a", keyframe), ("b", other)):
            path = runner.generate(attempt_id, picture)
            runner.until(Decoded)
            clips.append(path.read_bytes())
    assert clips[0] != clips[1]
