"""What bench/rehearsal.py asks of a rung is what a job at that rung asks."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from screentest.lanes import load_lane, shape_at

ROOT = Path(__file__).parents[2]
NAME = "bench_rehearsal"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = util.spec_from_file_location(NAME, ROOT / "bench" / "rehearsal.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_of(bench: ModuleType) -> object:
    return bench.Plan(
        lanes=(),
        memory_cap_gib=None,
        then_cap_gib=None,
        rungs=None,
        steps=6,
        full_steps=False,
        bare=False,
        device="cpu",
        weights="full-random",
        deadline=0.0,
    )


def test_a_rung_changes_keywords_frames_and_size_of_the_call(bench: ModuleType) -> None:
    lane = load_lane(ROOT / "deploy" / "lanes" / "stable-video-diffusion-xt.toml")
    own = lane.defaults
    for index, rung in enumerate(lane.ladder):
        call, _ = bench._call_of(lane, index, plan_of(bench))
        asked = (int(own["width_px"]), int(own["height_px"]), int(own["num_frames"]))
        assert (call["width"], call["height"], call["num_frames"]) == shape_at(lane, index, *asked)
        assert {**call, **rung.call} == call, rung.name
    lean = next(index for index, rung in enumerate(lane.ladder) if rung.name == "lean")
    assert bench._call_of(lane, 0, plan_of(bench))[0] != bench._call_of(lane, lean, plan_of(bench))[0]
