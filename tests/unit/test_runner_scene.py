"""The scene lanes: what a prompt tells, and how each lane tells it."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from screentest.lanes import load_lanes
from screentest_runner import scenes
from screentest_runner.adapters.scene import SceneAdapter, story_of
from screentest_runner.failures import AttemptFailure
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import Generate, RunnerReply, StepDone

LANES = Path(__file__).parents[1] / "lanes"
PROMPT = "a red circle, then a green square, then a blue cross, then a white ring, on a dark background"


def made(kind: str, prompt: str = PROMPT, seed: int = 7) -> Any:
    """(T, H, W, 3) uint8."""
    call = {"prompt": prompt, "scene": kind, "width": 96, "height": 64, "num_frames": 16, "steps": 1, "fps": 8}
    told: list[RunnerReply] = []
    generate = Generate(attempt_id="a", call=call, seed=seed, frames_path="unused", fps=8)
    pixels = SceneAdapter({}).generate(generate, AttemptProgress("a", told.append, Event())).pixels
    assert [reply.step for reply in told if isinstance(reply, StepDone)] == [1]
    return pixels


def test_there_is_a_lane_for_each_way_to_tell_a_story() -> None:
    lanes = load_lanes(LANES)
    assert {lane.call["scene"] for lane in lanes.values()} == set(scenes.KINDS) - {"reversed"}
    assert all(lane.id == f"scene-{lane.call['scene']}" for lane in lanes.values())


def test_prompt_names_things_in_order_and_their_place() -> None:
    story = story_of(PROMPT, 7)
    assert [str(thing) for thing in story.things] == ["a red circle", "a green square", "a blue cross", "a white ring"]
    assert (story.background, story.seed) == ("dark", 7)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red circle on a dark background", "names 1 things"),
        (PROMPT.replace("dark", "pink"), "names no background"),
        (PROMPT.replace("a red circle", "a child"), "names 3 things"),
    ],
)
def test_prompt_of_another_world_is_refused(prompt: str, words: str) -> None:
    with pytest.raises(AttemptFailure, match=words):
        made("all-beats", prompt)


def test_beats_are_seen_in_the_order_that_the_lane_tells() -> None:
    def colours(kind: str) -> list[str]:
        return [strongest(made(kind)[quarter * 4 + 1]) for quarter in range(4)]

    assert colours("all-beats") == ["red", "green", "blue", "white"]
    assert colours("reordered") == ["red", "blue", "green", "white"]
    assert colours("three-of-four") == ["red", "green", "green", "white"]
    assert colours("two-of-four") == ["red", "red", "red", "white"]


def strongest(picture: Any) -> str:
    """The colour of the world that most pixels have."""
    counts = {
        name: int((np.abs(picture.astype(int) - colour).max(axis=-1) < 12).sum())
        for name, colour in scenes.COLOURS.items()
    }
    return max(counts, key=lambda name: counts[name])


def test_dead_and_other_clips_are_what_they_say() -> None:
    assert not made("black").any()
    assert (made("frozen") == made("frozen")[:1]).all()
    assert made("noise").std() > 60
    assert np.array_equal(made("other-prompt"), made("other-prompt"))
    assert not np.array_equal(made("other-prompt"), made("all-beats"))
    assert not np.array_equal(made("all-beats", seed=8), made("all-beats"))
