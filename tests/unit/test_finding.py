"""A finding says what is there, what is wrong and what is missing; a rank says where it cannot tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest_reporter import finding, ranking, scoring
from screentest_reporter.ranking import LaneScores
from screentest_reporter.scoring import Score
from tests.made_judgements import FIRST_FRAME, IN_ORDER, NOTHING, REVERSED, RUBRIC, Clip, asked, pixels, seeing

MOOD = frozenset(e.id for e in RUBRIC.elements) - {"gothic-texture"}


def line(clip: Clip, *flags: str, absent: frozenset[str] = frozenset()) -> str:
    return finding.line(RUBRIC, scoring.score(RUBRIC, [asked(seeing(absent=absent), clip)], pixels(*flags)))


def test_dead_clips_say_what_they_are() -> None:
    assert line(NOTHING, "black") == "Valid MP4, but effectively black and missing all prompt elements"
    assert line(NOTHING, "noise") == "Valid MP4, but noise: decoder or dtype failure likely"
    assert "flat" in line(NOTHING, "flat")


def test_clip_that_cannot_be_decoded_says_what_the_decoder_said() -> None:
    dead = scoring.score(RUBRIC, [], pixels("no-frames"))
    assert finding.line(RUBRIC, dead, "moov atom not found") == "No frames: moov atom not found"


def test_mood_without_story() -> None:
    assert line(FIRST_FRAME, "frozen", absent=MOOD) == "Gothic texture match, but static and missing narrative beats"


def test_right_cast_without_story() -> None:
    told = scoring.score(RUBRIC, [asked(seeing(), (1,) * 8)], pixels())
    assert told.parts is not None
    # A prompt whose cast is nearly all in its first beat.
    parts = replace(told.parts, presence=0.8)
    assert parts.order is None
    assert finding.line(RUBRIC, replace(told, parts=parts)) == "Right cast and place; no story: beats 2-4 never appear"


def test_order_that_is_wrong_names_the_beats() -> None:
    assert line(REVERSED) == "All beats present, but out of order (2 before 1, 3 before 2)"
    assert line((1, 1, 3, 3, 2, 2, 4, 4)).endswith("present; out of order (3 before 2)")
    assert "order" not in line(IN_ORDER)


def test_what_was_not_judged_is_neither_there_nor_missing() -> None:
    judged = asked(seeing(), IN_ORDER)
    answers = {key: row for key, row in judged.answers.items() if key not in {"soldier", "soldier-at-panel"}}
    told = finding.line(RUBRIC, scoring.score(RUBRIC, [replace(judged, answers=answers)], pixels()))
    assert told.endswith("; 2 elements not judged")
    assert "soldier" not in told


def test_list_names_present_and_missing_and_leaves_children_to_their_parents() -> None:
    absent = frozenset({"child", "doll", "child-holds-doll", "soldier", "soldier-at-panel", "eye-reflection"})
    told = line(IN_ORDER, "near-static", absent=absent)
    assert told.startswith("Valid MP4, ")
    assert "nearly static; child, eye reflection and doll missing" in told
    assert "holds" not in told


def test_pictures_that_only_dissolve_are_said_to() -> None:
    assert line((1, 1, 1, 1, 2, 2, 2, 2), "dissolve").split("; ")[0].endswith("present, dissolves without motion")
    assert finding.line(RUBRIC, scoring.score(RUBRIC, [], pixels("dissolve"))).startswith("Valid MP4, dissolves")


def test_nothing_missing_is_said() -> None:
    assert line(IN_ORDER).endswith("nothing missing")


def test_unwanted_things_are_named() -> None:
    judge = seeing()
    judged = asked(lambda e, window, clip: 0.9 if e.kind == "negative" else judge(e, window, clip), IN_ORDER)
    assert finding.line(RUBRIC, scoring.score(RUBRIC, [judged], pixels())).endswith("unwanted: text overlay")


def test_random_weights_say_what_pixels_can_say() -> None:
    found = scoring.score(RUBRIC, [], pixels("frozen"), has_random_weights=True)
    assert finding.line(RUBRIC, found).startswith("Valid MP4, static; not scored: random weights")
    assert finding.line(RUBRIC, scoring.score(RUBRIC, [], pixels())) == "Valid MP4; not scored: no judge ran"


# ---- ranks


def made(score10: float | None, half: float = 0.5) -> Score:
    reason = "" if score10 is not None else "no judge ran"
    return Score(rubric_sha256="", flags=(), badges=(), score10=score10, half_width=half, not_scored=reason)


def lane(name: str, *scores: float | None, changes: tuple[str, ...] = ()) -> LaneScores:
    return LaneScores(lane_id=name, scores=tuple(made(score) for score in scores), changes=changes)


def test_overlapping_intervals_are_a_tie_and_others_are_ranked() -> None:
    rows = ranking.ranked([lane("low", 2, 2, 2), lane("a", 7, 7, 7), lane("b", 6.5, 6.5, 6.5), lane("none", None)])
    assert [(row.lane_id, row.rank_text) for row in rows] == [
        ("a", "1 (tie)"),
        ("b", "1 (tie)"),
        ("low", "3"),
        ("none", "not scored"),
    ]
    assert rows[0].tied_with == ("b",)


def test_few_seeds_and_changed_parameters_stand_beside_the_rank() -> None:
    row = ranking.ranked([lane("a", 7, None, changes=("25 frames instead of 49",))])[0]
    assert row.notes == ("1 seed: a rank needs 3", "25 frames instead of 49")
    assert ranking.ranked([lane("a", 7, 7, 7)])[0].notes == ()


def test_seeds_that_scatter_widen_the_interval() -> None:
    row = ranking.ranked([lane("a", 3, 6, 9)])[0]
    assert (row.score10, row.low, row.high) == (6.0, 3.0, 9.0)


def test_lane_without_a_score_is_not_a_zero() -> None:
    row = ranking.ranked([lane("a", None, None)])[0]
    assert (row.score10, row.low, row.high, row.rank, row.seeds) == (None, None, None, None, 0)


@pytest.mark.parametrize("count", [0, 1])
def test_few_lanes_are_ranked(count: int) -> None:
    assert len(ranking.ranked([lane("a", 5.0)] * count)) == count
