"""Clips whose true order is known, judged by the test judge through the ordinary door and scored by the reporter.

The pictures are fresh ones, which the test judge was not trained on. It says nothing of a real judge: what is held
here is everything around one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from PIL import Image

from screentest.rubric import Rubric
from screentest_reporter import controls, scoring
from screentest_reporter.controls import Control, ControlRun
from screentest_reporter.scoring import Pixels, Score

from .asking import (
    TINY_SIGLIP,
    ask_judges,
    judgement_of,
    made_clip,
    order_of,
    other_colour,
    other_shape,
    request_of,
    rubric_of,
)
from .scenes import HELD_OUT, KINDS, Story, drawn_story, other_story

# The fixture asks for 200 clips in one process: half a minute on an idle machine, minutes on a busy one.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STORIES = tuple(drawn_story(seed) for seed in range(16))
UNSEEN = tuple(drawn_story(1000 + seed, HELD_OUT) for seed in range(4))
LIVING = tuple(kind for kind in KINDS if kind not in ("black", "noise"))
CHAIN = ("all-beats", "three-of-four", "two-of-four", "other-prompt", "black")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and what came back. story: what the clip was made of."""

    story: Story
    kind: str
    rubric: Rubric
    request: dict[str, Any]
    part: Mapping[str, Any]


class Bench:
    """All of them, asked of one judge in one process."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = {(item.story.seed, item.kind): item for item in asked}

    def of(self, kind: str, stories: Sequence[Story] = STORIES) -> list[Asked]:
        return [self._asked[story.seed, kind] for story in stories]

    def score(self, story: Story, kind: str) -> float:
        score = scored(self._asked[story.seed, kind])
        assert score.score10 is not None, score.not_scored
        return score.score10


def scored(asked: Asked) -> Score:
    dead = asked.part["details"].get("not_asked")
    pixels = Pixels(flags=(dead,) if dead else (), thresholds_version="vitals/1", camera={})
    return scoring.score(asked.rubric, [judgement_of(asked.part, asked.rubric)], pixels)


def asked_of(story: Story, kind: str, path: Path, rubric: Rubric, **more: Any) -> Asked:
    return Asked(story, kind, rubric, request_of(path, rubric, **more), {})


def swapped(story: Story, swap: Any) -> Rubric:
    return rubric_of(replace(story, things=tuple(map(swap, story.things))), is_short=True)


def requests_of(folder: Path) -> list[Asked]:
    found: list[Asked] = []
    for story in STORIES:
        paths = {kind: made_clip(folder, story, kind) for kind in KINDS}
        found += [asked_of(story, kind, path, rubric_of(story)) for kind, path in paths.items()]
        full = paths["all-beats"]
        found.append(asked_of(story, "colour-swapped", full, swapped(story, other_colour)))
        found.append(asked_of(story, "shape-swapped", full, swapped(story, other_shape)))
    for story in UNSEEN:
        path = made_clip(folder, story, "all-beats")
        found.append(asked_of(story, "all-beats", path, rubric_of(story)))
        found.append(asked_of(story, "colour-swapped", path, swapped(story, other_colour)))
    return found + special_requests(folder)


def special_requests(folder: Path) -> list[Asked]:
    story = STORIES[0]
    path, rubric = folder / f"{story.seed}-all-beats.mp4", rubric_of(story)
    other = rubric_of(other_story(story))
    odd = tuple(
        replace(rubric.elements[0], id=kind, kind=kind, beat=None)  # type: ignore[arg-type]
        for kind in ("relation", "camera", "style")
    )
    long = replace(rubric.elements[0], text="a red circle " * 12)
    truncated = folder / "truncated.mp4"
    truncated.write_bytes(path.read_bytes()[:200])
    picture = folder / "keyframe.png"
    Image.open(picture_of(folder, story)).save(picture)
    return [
        asked_of(story, "controls", path, rubric, other=other),
        asked_of(story, "other kinds", path, replace(rubric, elements=(*rubric.elements, *odd))),
        asked_of(story, "too long", path, replace(rubric, elements=(long, *rubric.elements[1:]))),
        asked_of(story, "cancelled", path, rubric, cancel_after=1),
        asked_of(story, "no frames", truncated, rubric),
        asked_of(story, "keyframe", picture, rubric, purpose="keyframe", windows=1),
        asked_of(story, "controls without another prompt", path, rubric, purpose="controls"),
        asked_of(story, "again", path, rubric),
    ]


def picture_of(folder: Path, story: Story) -> Path:
    """The first frame of its clip, as a keyframe would be."""
    from .scenes import clip

    path = folder / "first.png"
    Image.fromarray(clip(story, "all-beats", width_px=240, height_px=160)[0]).save(path)
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    asked = requests_of(tmp_path_factory.mktemp("clips"))
    order = order_of("embedding", [item.request for item in asked], weights_dir=str(TINY_SIGLIP))
    (found,) = ask_judges([order])
    assert found["failed"] is None
    return Bench([replace(item, part=part) for item, part in zip(asked, found["parts"], strict=True)])


# ---- what is true


def test_truer_clip_scores_higher(bench: Bench) -> None:
    chains = [[bench.score(story, kind) for kind in CHAIN] for story in STORIES]
    assert mean(chain == sorted(chain, reverse=True) for chain in chains) >= 0.9, chains


def test_full_story_lies_at_its_anchor_and_another_one_near_nothing(bench: Bench) -> None:
    by_kind = {kind: mean(bench.score(story, kind) for story in STORIES) for kind in LIVING}
    assert by_kind["all-beats"] > 9
    assert 6 < by_kind["three-of-four"] < 8.5
    assert by_kind["frozen"] < 4
    assert by_kind["other-prompt"] < 3


def test_other_prompt_is_told_from_the_right_one(bench: Bench) -> None:
    assert mean(bench.score(s, "all-beats") > bench.score(s, "other-prompt") for s in STORIES) >= 0.98


def in_its_beat(asked: Asked, n: int) -> float:
    """Where the thing is shown: two of the eight windows."""
    return max(asked.part["answers"][f"thing-{n}"][2 * n - 2 : 2 * n])


def share_above(true: Sequence[Asked], false: Sequence[Asked]) -> float:
    pairs = [(in_its_beat(a, n), in_its_beat(b, n)) for a, b in zip(true, false, strict=True) for n in (1, 2, 3, 4)]
    return mean(p > q for p, q in pairs)


def test_colour_is_told_from_another_one(bench: Bench) -> None:
    assert share_above(bench.of("all-beats"), bench.of("colour-swapped")) >= 0.98


def test_shape_that_was_seen_in_its_colour_is_told_from_another_one(bench: Bench) -> None:
    assert share_above(bench.of("all-beats"), bench.of("shape-swapped")) >= 0.95


def test_colour_is_told_also_of_things_that_were_never_named(bench: Bench) -> None:
    assert share_above(bench.of("all-beats", UNSEEN), bench.of("colour-swapped", UNSEEN)) >= 0.95


def test_order_of_beats_is_found_by_the_scoring(bench: Bench) -> None:
    orders = {kind: [order_found(item) for item in bench.of(kind)] for kind in ("all-beats", "reordered", "reversed")}
    assert min(orders["all-beats"]) > 0.95
    assert max(orders["reordered"]) < 0.9
    assert max(orders["reversed"]) < 0.5


def order_found(asked: Asked) -> float:
    parts = scored(asked).parts
    assert parts is not None and parts.order is not None
    return parts.order


def test_story_is_seen_where_it_is_told(bench: Bench) -> None:
    """Two windows a beat: the thing of beat n is likeliest in window 2n-2 or 2n-1."""
    for asked in bench.of("all-beats"):
        for n in (1, 2, 3, 4):
            row = asked.part["answers"][f"thing-{n}"]
            assert row.index(max(row)) // 2 == n - 1


# ---- the dead, and what this tier must not answer


def test_dead_clip_never_reaches_the_judge(bench: Bench) -> None:
    for kind in ("black", "noise"):
        for asked in bench.of(kind):
            assert (asked.part["calls"], asked.part["answers"], asked.part["told"]) == (0, {}, [])
            assert asked.part["details"] == {"not_asked": kind}
    (unreadable,) = bench.of("no frames", STORIES[:1])
    assert unreadable.part["details"] == {"not_asked": "no-frames"}


def test_kinds_that_an_embedding_cannot_tell_are_left_out(bench: Bench) -> None:
    (asked,) = bench.of("other kinds", STORIES[:1])
    assert {element.id for element in asked.rubric.elements} - asked.part["answers"].keys() == {
        "noise",
        "relation",
        "camera",
    }


def test_text_that_the_model_cannot_read_to_its_end_is_named(bench: Bench) -> None:
    (asked,) = bench.of("too long", STORIES[:1])
    kind, message = asked.part["failed"]
    assert kind == "bad_kwargs"
    assert "element 'thing-1'" in message and "this model reads 16" in message


# ---- the part


def test_part_is_that_of_a_test_judge(bench: Bench) -> None:
    for kind in KINDS:
        for asked in bench.of(kind):
            assert asked.part["badges"] == ["test judge"]
            assert (asked.part["tier"], asked.part["method"], asked.part["windows"]) == ("b", "embedding", 8)
    assert "test judge" in scored(bench.of("all-beats")[0]).badges


def test_same_clip_gets_the_same_answers(bench: Bench) -> None:
    (again,), (first,) = bench.of("again", STORIES[:1]), bench.of("all-beats", STORIES[:1])
    assert again.part["answers"] == first.part["answers"]
    assert again.part["details"] == first.part["details"]
    assert again.part["calls"] < first.part["calls"], "texts are read once"


def test_progress_ends_where_it_said(bench: Bench) -> None:
    (asked,) = bench.of("all-beats", STORIES[:1])
    calls = asked.part["calls"]
    assert asked.part["told"] == [[done, calls] for done in range(1, calls + 1)]


def test_cancelled_judge_stops(bench: Bench) -> None:
    (asked,) = bench.of("cancelled", STORIES[:1])
    assert asked.part["failed"] == ["cancelled", "cancelled while judging"]


def test_keyframe_is_judged_by_its_own_beat(bench: Bench) -> None:
    (asked,) = bench.of("keyframe", STORIES[:1])
    things = [asked.part["answers"][f"thing-{n}"] for n in (1, 2, 3, 4)]
    assert all(len(row) == 1 for row in things)
    assert things[0][0] > 0.7 and max(row[0] for row in things[1:]) < 0.3


# ---- controls


def test_honest_judge_holds_its_controls(bench: Bench) -> None:
    (reference,), (asked,) = bench.of("all-beats", STORIES[:1]), bench.of("controls", STORIES[:1])
    verdict = verdict_of(reference, asked)
    assert verdict.text == "controls 5/5", verdict.why_greyed
    assert not verdict.is_greyed


def verdict_of(reference: Asked, asked: Asked) -> controls.Verdict:
    other = rubric_of(other_story(asked.story))
    runs = [
        ControlRun(control=Control(item["control"]), rubric=rubric, judgement=judgement_of(asked.part, rubric, answers))
        for item in asked.part["controls"]
        for rubric in [other if item["control"] == "wrong-prompt" else asked.rubric]
        for answers in [item["answers"]]
    ]
    return controls.verdict(asked.rubric, judgement_of(reference.part, reference.rubric), runs)


def test_answers_of_controls_are_those_of_the_clip_asked_again(bench: Bench) -> None:
    (reference,), (asked,) = bench.of("all-beats", STORIES[:1]), bench.of("controls", STORIES[:1])
    assert asked.part["answers"] == reference.part["answers"]
    assert asked.part["calls"] == len(asked.part["told"])


def test_controls_without_another_prompt_are_refused(bench: Bench) -> None:
    (asked,) = bench.of("controls without another prompt", STORIES[:1])
    assert asked.part["failed"][0] == "bad_kwargs"
    assert "other_questions" in asked.part["failed"][1]
