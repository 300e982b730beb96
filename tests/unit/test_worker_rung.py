"""What a rung makes of a job is legal in its lane, and marked exactly where the picture is another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from screentest.lanes import Lane, load_lanes
from screentest.records import JobSpec, Keyframe, MarkKind, SweepSpec, Weights
from screentest_scheduler import planning
from screentest_scheduler.planning import Placement
from screentest_worker import rung
from tests.made_sweeps import record

LANES = load_lanes(Path(__file__).parents[2] / "deploy" / "lanes")
STEPS = [(lane.id, index) for lane in LANES.values() for index in range(len(lane.ladder))]
KEYFRAME = Keyframe(key="keyframes/a.png", sha256="a" * 64, width_px=768, height_px=512, size_bytes=1000)


def job_of(lane: Lane, weights: Weights) -> JobSpec:
    spec = SweepSpec(
        title="A", prompts=("a door",), lane_ids=(lane.id,), seeds=(1,), weights=weights, keyframe=KEYFRAME
    )
    place = Placement(host="local", device="gpu-0", has_worker=True)
    [plan] = planning.plan(spec, LANES, {lane.id: place}).lanes
    return planning.jobs(record([plan], weights=weights))[0]


@pytest.mark.parametrize(("lane_id", "index"), STEPS)
@pytest.mark.parametrize("weights", [Weights.FULL_RANDOM, Weights.MINIATURE])
def test_every_rung_of_every_lane_runs_something_legal(lane_id: str, index: int, weights: Weights) -> None:
    lane = LANES[lane_id]
    spec = job_of(lane, weights)
    ran = rung.as_run(lane, spec, index)
    assert lane.constraints.frames.is_legal(ran.num_frames)
    assert lane.constraints.nearest_px(ran.width_px) == ran.width_px
    call = rung.call_of(ran)
    for name in ("num_frames", "width_px", "height_px"):
        keyword = lane.parameters.get(name)
        if keyword in call:
            assert call[keyword] == getattr(ran, name)
    changes = {name for name in ("num_frames", "width_px", "height_px") if getattr(ran, name) != getattr(spec, name)}
    marks = rung.marks(lane, spec, index)
    assert {mark.parameter for mark in marks} == changes
    assert all(mark.kind is MarkKind.REDUCED for mark in marks)
    assert not changes or lane.ladder[index].changes_picture


def test_a_rung_that_the_lane_does_not_have_changes_nothing() -> None:
    lane = LANES["stub"]
    spec = job_of(lane, Weights.MINIATURE)
    assert rung.as_run(lane, spec, 7) is spec
    assert rung.marks(lane, spec, 7) == ()


def test_the_first_rung_runs_what_was_asked_for() -> None:
    lane = LANES["ltx-video-13b-distilled"]
    spec = job_of(lane, Weights.FULL_RANDOM)
    assert rung.as_run(lane, spec, 0).call == spec.call
