"""The low-memory ladder of a lane: what its rungs declare, which of them help, and what clip they make."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from screentest.errors import BadRequest
from screentest.lanes import Lane, call_at, from_json, load_lane, load_lanes, shape_at, usable_rungs

LANES = Path(__file__).parents[2] / "deploy" / "lanes"
ORDER = ("resident", "lean", "offload", "fp8", "short", "small")
GPU_LANES = [lane for lane in load_lanes(LANES).values() if lane.env == "diffusers"]


def lane_of(lane_id: str) -> Lane:
    return load_lane(LANES / f"{lane_id}.toml")


def rung_of(lane: Lane, name: str) -> int:
    return next(index for index, rung in enumerate(lane.ladder) if rung.name == name)


def names(lane: Lane, indices: tuple[int, ...]) -> list[str]:
    return [lane.ladder[index].name for index in indices]


@pytest.mark.parametrize("lane", GPU_LANES, ids=lambda lane: lane.id)
def test_ladder_leaves_the_picture_alone_as_long_as_it_can(lane: Lane) -> None:
    found = [rung.name for rung in lane.ladder]
    assert found == [name for name in ORDER if name in found]
    assert found[:3] == ["resident", "lean", "offload"]
    assert [rung.name for rung in lane.ladder if rung.changes_picture] == [n for n in ("short", "small") if n in found]


@pytest.mark.parametrize("weights", ["hub", "miniature"])
@pytest.mark.parametrize("lane", GPU_LANES, ids=lambda lane: lane.id)
def test_every_rung_makes_a_legal_clip_and_none_a_larger_one(lane: Lane, weights: Any) -> None:
    own = lane.defaults_for(weights)
    before = (own["width_px"], own["height_px"], own["num_frames"])
    for index in range(len(lane.ladder)):
        width_px, height_px, frames = shape_at(lane, index, own["width_px"], own["height_px"], own["num_frames"])
        assert lane.constraints.nearest_px(width_px) == width_px
        assert lane.constraints.nearest_px(height_px) == height_px
        assert lane.constraints.frames.is_legal(frames)
        assert all(now <= then for now, then in zip((width_px, height_px, frames), before, strict=True))
        before = (width_px, height_px, frames)


def test_half_the_frames_are_the_nearest_legal_count_below() -> None:
    lane = lane_of("wan2-1-t2v-1-3b")
    assert shape_at(lane, rung_of(lane, "short"), 832, 480, 81) == (832, 480, 37)
    assert shape_at(lane, rung_of(lane, "small"), 832, 480, 81) == (416, 240, 37)
    assert shape_at(lane, rung_of(lane, "fp8"), 832, 480, 81) == (832, 480, 81)


def test_streaming_is_no_rung_where_host_and_device_share_their_memory() -> None:
    lane = lane_of("wan2-1-t2v-1-3b")
    assert names(lane, usable_rungs(lane, unified=False)) == list(ORDER)
    assert names(lane, usable_rungs(lane, unified=True)) == ["resident", "lean", "fp8", "short", "small"]


def test_call_has_the_keywords_of_its_rung() -> None:
    lane = lane_of("stable-video-diffusion-xt")
    call = lane.pipeline_call("hub", lane.defaults)
    assert call_at(lane, 0, call) == call
    assert call_at(lane, rung_of(lane, "lean"), call) == {**call, "decode_chunk_size": 2}
    small = call_at(lane, rung_of(lane, "small"), call)
    assert (small["width"], small["height"], small["num_frames"]) == (512, 256, 12)


def test_size_that_is_no_keyword_stays_out_of_the_call() -> None:
    lane = lane_of("hunyuanvideo-1-5-i2v")
    call = call_at(lane, rung_of(lane, "short"), lane.pipeline_call("hub", lane.defaults))
    assert call["num_frames"] == 57
    assert not {"width", "height"} & call.keys()


@pytest.mark.parametrize(
    ("lane_id", "index", "change", "rule"),
    [
        ("wan2-1-t2v-1-3b", 0, {"name": "first"}, "must begin with 'resident'"),
        ("wan2-1-t2v-1-3b", 2, {"name": "lean"}, "ladder[2].name: 'lean' is there twice"),
        ("wan2-1-t2v-1-3b", 4, {"num_frames_ratio": 1.5}, "wants more than 0 and at most 1"),
        ("wan2-1-t2v-1-3b", 4, {"num_frames_ratio": 0}, "wants more than 0"),
        ("wan2-1-t2v-1-3b", 5, {"num_frames_ratio": 0.75}, "at most 0.5, got 0.75"),
        ("hunyuanvideo-1-5-i2v", 4, {"size_ratio": 0.5}, "the size follows the keyframe"),
    ],
)
def test_ladder_that_makes_no_sense_is_refused(lane_id: str, index: int, change: dict[str, Any], rule: str) -> None:
    content = copy.deepcopy(lane_of(lane_id).content)
    content["ladder"][index].update(change)
    with pytest.raises(BadRequest) as refused:
        from_json(content, "lane.toml")
    assert rule in str(refused.value)
