"""Sweep files are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from screentest.errors import BadRequest
from screentest.records import Weights
from screentest_ui import sweepfile

FILE = Path("sweeps/mine.toml")
LEAST = {"prompt": "p", "lanes": ["a"]}


def test_least_file_has_sound_defaults() -> None:
    read = sweepfile.parse(LEAST, FILE)
    assert (read.title, read.prompts, read.seeds, read.weights) == ("mine", ("p",), (42,), Weights.HUB)
    assert read.requested.num_frames is None


def test_keyframe_is_beside_the_file() -> None:
    assert sweepfile.parse({**LEAST, "keyframe": "k.png"}, FILE).keyframe == Path("sweeps/k.png")


def test_rubrics_and_judges_are_read() -> None:
    read = sweepfile.parse({**LEAST, "rubric": "r.json", "judges": ["pixels"]}, FILE)
    assert read.rubrics == (Path("sweeps/r.json"),)
    assert read.spec(None).judge_lane_ids == ("pixels",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"requested": {"frames": 3}}, "did you mean 'num_frames'"),
        ({"requested": {"num_frames": "25"}}, "num_frames must be a whole number"),
        ({"requested": {"num_frames": True}}, "num_frames must be a whole number"),
        ({"requested": 3}, r"\[requested\]"),
        ({"seeds": ["1"]}, "seeds must be a list of whole numbers"),
        ({"prompts": ["q"]}, "not both"),
        ({"weights": "huge"}, "hub, miniature, full-random"),
        ({"skip_impossible": 1}, "true or false"),
        ({"priority": "high"}, "whole number"),
        ({"memory_cap_gib": "16"}, "memory_cap_gib must be a number"),
        ({"title": 3}, "title must be text"),
        ({"judges": "pixels"}, "judges must be a list of texts"),
        ({"rubric": "a.json", "rubrics": ["a.json"]}, "not both"),
        ({"rubrics": ["a.json", "b.json"]}, "2 rubrics for 1 prompts"),
    ],
)
def test_wrong_key_or_type_is_refused(content: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        sweepfile.parse({**LEAST, **content}, FILE)


def test_command_line_wins_over_the_file() -> None:
    read = sweepfile.parse({**LEAST, "weights": "hub", "skip_impossible": True}, FILE)
    changed = read.with_options(
        lane_ids=("b",), seeds=(7,), weights=Weights.MINIATURE, skip_impossible=False, memory_cap_gib=12
    )
    assert changed.spec(None).memory_cap_gib == 12
    assert sweepfile.parse({**LEAST, "memory_cap_gib": 16}, FILE).with_options().spec(None).memory_cap_gib == 16
    assert (changed.lane_ids, changed.seeds, changed.weights) == (("b",), (7,), Weights.MINIATURE)
    assert changed.skip_impossible is False
    assert read.with_options() == read


def test_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"none\.toml"):
        sweepfile.load(tmp_path / "none.toml")


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('title = "x"\nlanes = [\n')
    with pytest.raises(BadRequest, match="is no TOML"):
        sweepfile.load(tmp_path / "x.toml")


def test_committed_sweeps_are_legal() -> None:
    folder = Path(__file__).parents[2] / "deploy" / "sweeps"
    files = [sweepfile.load(path) for path in folder.glob("*.toml")]
    assert files
    assert all(file.keyframe is None or file.keyframe.exists() for file in files)
