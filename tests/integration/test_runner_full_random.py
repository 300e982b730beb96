"""Full-random weights, made of lanes whose full size is their miniature's: the same way, small enough for a cpu."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from screentest.lanes import Lane, from_json
from screentest_runner.full_random import token_ids
from screentest_runner.miniature import merged
from screentest_runner.protocol import Decoded, Failed, FailureClass, Loaded, StepDone

from .runner_process import LANES, RUNNER_SOURCE, RunnerProcess, env_python, lane_of

pytestmark = pytest.mark.slow

MODEL_LANES = sorted(path.stem for path in LANES.glob("*.toml") if not path.stem.startswith("stub"))
# one of each kind: float32 parts, Llama with an image, an UNet without callback, two denoisers, a guider, sound
ODD_LANES = (
    "wan2-1-t2v-1-3b",
    "hunyuanvideo-i2v",
    "stable-video-diffusion-xt",
    "wan2-2-t2v-a14b",
    "hunyuanvideo-1-5-t2v",
    "ltx-2",
)

LEAN, OFFLOAD = 1, 2  # in the ladder of every lane


def shrunk(lane: Lane, params: dict[str, int] | None = None) -> Lane:
    """The lane as if its miniature were its full size. params: the counts that it then claims, by component."""
    content: dict[str, Any] = copy.deepcopy(lane.content)
    for name, part in content["components"].items():
        part["config"] = merged(part.get("config", {}), part.get("miniature", {}))
        part.pop("params", None)
        if params is not None and name in params:
            part["params"] = params[name]
    return from_json(content, "test")


@pytest.fixture
def keyframe(tmp_path: Path) -> Path:
    path = tmp_path / "key.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8), "RGB").save(path)
    return path


@pytest.mark.parametrize("lane_id", ODD_LANES)
def test_lane_makes_its_clip_of_full_random_weights(lane_id: str, tmp_path: Path, keyframe: Path) -> None:
    lane = shrunk(lane_of(lane_id))
    with RunnerProcess(lane, tmp_path) as runner:
        runner.open()
        runner.load("full-random")
        loaded = runner.until(Loaded)
        path = runner.generate("a", keyframe if lane.task == "i2v" else None)
        decoded = runner.until(Decoded)
        assert [step.step for step in runner.of(StepDone)] == [1, 2]

    assert loaded.build_s is not None
    assert decoded.finite_fraction == 1.0
    assert path.stat().st_size == decoded.frames * decoded.height_px * decoded.width_px * 3
    assert (decoded.peak_memory_by_phase, decoded.peak_tensors_by_phase) == (None, None)  # unknown on a cpu, not zero


def test_streamed_rung_makes_the_same_clip(tmp_path: Path) -> None:
    clips = []
    lane = shrunk(lane_of("wan2-1-t2v-1-3b"))
    for rung in (0, OFFLOAD):
        folder = tmp_path / str(rung)
        folder.mkdir()
        with RunnerProcess(lane, folder) as runner:
            runner.open()
            runner.load("full-random", rung=rung)
            path = runner.generate("a")
            runner.until(Decoded)
            clips.append(path.read_bytes())
    assert clips[0] == clips[1]


def test_encoders_that_were_let_go_come_back_with_the_same_values(tmp_path: Path) -> None:
    lane = shrunk(lane_of("wan2-1-t2v-1-3b"))
    clips = []
    with RunnerProcess(lane, tmp_path) as runner:
        runner.open()
        runner.load("full-random", rung=LEAN, unified_memory=True)
        for attempt_id, prompt in (("a", "a doll"), ("b", "a soldier"), ("c", "a doll")):
            path = runner.generate(attempt_id, prompt=prompt)
            runner.until(Decoded)
            clips.append(path.read_bytes())
    assert clips[0] == clips[2]
    assert clips[0] != clips[1]


def test_another_parameter_count_than_the_lane_says_is_a_layout_failure(tmp_path: Path) -> None:
    lane = shrunk(lane_of("wan2-1-t2v-1-3b"), {"transformer": 1418996800})
    with RunnerProcess(lane, tmp_path) as runner:
        runner.open()
        runner.load("full-random")
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.LAYOUT
    assert "components.transformer.config makes" in failed.message
    assert "params says 1418996800" in failed.message


@pytest.mark.timeout(300)
def test_every_component_has_the_parameters_its_lane_file_says() -> None:
    """On the meta device, which takes no memory; in one process, because imports cost four seconds."""
    script = Path(__file__).with_name("counts_in_one_process.py")
    result = subprocess.run(
        [env_python("diffusers"), script],
        input=json.dumps([lane_of(lane_id).content for lane_id in MODEL_LANES]),
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == {
        lane_id: {name: part.params for name, part in lane_of(lane_id).components.items() if part.params is not None}
        for lane_id in MODEL_LANES
    }


@pytest.mark.parametrize("lane_id", MODEL_LANES)
def test_only_token_ids_are_taken_of_a_miniature(lane_id: str) -> None:
    """Anything else would change a size, and with it what the dress rehearsal measures."""
    for part in lane_of(lane_id).content["components"].values():
        found = token_ids(part.get("miniature", {}))
        flat = [*found, *(key for inner in found.values() if isinstance(inner, dict) for key in inner)]
        assert {key for key in flat if not isinstance(found.get(key), dict)} <= {
            "image_token_index",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
        }
