"""Every rung of the low-memory ladder on miniatures: it makes its clip, and leaves the warm runner as it was.

On a cpu the rungs save nothing, but their hooks must fit, and a cancel in the middle of them must leave nothing behind.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from screentest.lanes import Lane, call_at, shape_at, usable_rungs
from screentest_runner.protocol import Generate, to_line

from .runner_process import LANES, RUNNER_SOURCE, env_python, lane_of

pytestmark = pytest.mark.slow

GPU_LANES = sorted(path.stem for path in LANES.glob("*.toml") if not path.stem.startswith("stub"))
WHOLE_LADDERS = ("wan2-1-t2v-1-3b", "stable-video-diffusion-xt")  # the ordinary one, and one without tiles
OTHER_LANES = [lane_id for lane_id in GPU_LANES if lane_id not in WHOLE_LADDERS]
FRAMES = 9  # a third of the seconds that the lanes' own miniature settings take


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("miniatures")


@pytest.fixture(scope="module")
def keyframes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keyframes")
    for seed in (0, 1):
        noise = np.random.default_rng(seed).integers(0, 256, (80, 120, 3), np.uint8)
        Image.fromarray(noise, "RGB").save(folder / f"{seed}.png")
    return folder / "0.png", folder / "1.png"


def asked(lane: Lane, rung: int, keyframes: tuple[Path, Path], *, unified: bool) -> dict[str, Any]:
    """What rungs_in_one_process.py wants."""
    prompts = ("a doll in a red dress", "a soldier in a control room")
    requests = [request(lane, rung, prompt, key) for prompt, key in zip(prompts, keyframes, strict=True)]
    return {
        "lane": lane.content,
        "rung": lane.content["ladder"][rung],
        "generate": requests[0],
        "other": requests[1],
        "unified_memory": unified,
    }


def request(lane: Lane, rung: int, prompt: str, keyframe: Path) -> dict[str, Any]:
    settings = {**own_settings(lane), "prompt": prompt}
    generate = Generate(
        attempt_id="a",
        call=call_at(lane, rung, lane.pipeline_call("miniature", settings)),
        seed=1,
        frames_path="unused",
        fps=8.0,
        keyframe_path=str(keyframe) if lane.task == "i2v" else None,
    )
    content: dict[str, Any] = json.loads(to_line(generate))
    return content


def own_settings(lane: Lane) -> dict[str, Any]:
    return {**lane.defaults_for("miniature"), "num_frames": lane.constraints.frames.nearest(FRAMES)}


def run(requests: list[dict[str, Any]], cache: Path) -> list[dict[str, Any]]:
    """One process, because imports cost four seconds."""
    result = subprocess.run(
        [env_python("diffusers"), Path(__file__).with_name("rungs_in_one_process.py"), cache, "cpu"],
        input=json.dumps(requests),
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return found


def check(lane: Lane, rung: int, found: dict[str, Any]) -> None:
    own = own_settings(lane)
    width_px, height_px, frames = shape_at(lane, rung, own["width_px"], own["height_px"], own["num_frames"])
    where = f"{lane.id} at {lane.ladder[rung].name}"
    assert found["shape"] == [frames, height_px, width_px, 3], where
    first, after_cancel = found["digests"]
    assert first == after_cancel, f"{where}: another clip of the same seed after a cancelled attempt"


def rung_of(lane: Lane, name: str) -> int:
    return next(index for index, rung in enumerate(lane.ladder) if rung.name == name)


def check_all(cases: list[tuple[Lane, int]], cache: Path, keyframes: tuple[Path, Path], *, unified: bool) -> None:
    results = run([asked(lane, rung, keyframes, unified=unified) for lane, rung in cases], cache)
    for (lane, rung), found in zip(cases, results, strict=True):
        check(lane, rung, found)
        is_released = unified and lane.ladder[rung].drop_text_encoders
        assert (found["encoder_bytes_between"] == 0) == is_released, (lane.id, lane.ladder[rung].name)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("unified", [False, True], ids=["discrete", "unified"])
def test_every_rung_makes_the_same_clip_before_and_after_a_cancel(
    unified: bool, cache: Path, keyframes: tuple[Path, Path]
) -> None:
    lanes = [lane_of(lane_id) for lane_id in WHOLE_LADDERS]
    cases = [(lane, rung) for lane in lanes for rung in usable_rungs(lane, unified)]
    check_all(cases, cache, keyframes, unified=unified)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("unified", [False, True], ids=["discrete", "unified"])
def test_every_lane_lets_its_encoders_go_and_takes_them_back(
    unified: bool, cache: Path, keyframes: tuple[Path, Path]
) -> None:
    lanes = [lane_of(lane_id) for lane_id in OTHER_LANES]
    check_all([(lane, rung_of(lane, "lean")) for lane in lanes], cache, keyframes, unified=unified)


@pytest.mark.timeout(400)
def test_lowest_rung_of_every_lane_makes_its_clip(cache: Path, keyframes: tuple[Path, Path]) -> None:
    """Streamed, stored in fp8, of fewer frames and a smaller size: all that the rungs above it have."""
    lanes = [lane_of(lane_id) for lane_id in OTHER_LANES]
    check_all([(lane, len(lane.ladder) - 1) for lane in lanes], cache, keyframes, unified=False)
