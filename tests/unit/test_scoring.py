"""A score follows its formula, its interval its rules, and what did not run is never a 0."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screentest import rubric as rubrics
from screentest_reporter import answer_noise, scoring
from screentest_reporter.answer_noise import Answers
from screentest_reporter.scoring import Cap, Score
from tests.made_judgements import (
    FIRST_FRAME,
    IN_ORDER,
    NOTHING,
    OTHER,
    REVERSED,
    RUBRIC,
    WINDOWS,
    Clip,
    asked,
    element,
    judgement,
    pixels,
    seeing,
)

NO_RELATION = frozenset({"brain-chamber", "child-holds-doll"})
TEXTURE_ONLY = frozenset(e.id for e in RUBRIC.elements) - {"gothic-texture", "gothic-cathedral"}
NO_SOLDIER = (1, 1, 2, 2, 0, 0, 4, 4)


def scored(
    clip: Clip, *flags: str, zoom_in: float | None = None, absent: frozenset[str] = frozenset()
) -> tuple[Score, scoring.Parts]:
    answers = {key: row for key, row in asked(seeing(absent=absent), clip).answers.items() if key != "dolly-in"}
    found = scoring.score(RUBRIC, [judgement(answers)], pixels(*flags, zoom_in=zoom_in))
    assert found.parts is not None
    return found, found.parts


# ---- the hand cases of the scoring note: it keeps their results, the answers and the camera's shares are ours


@pytest.mark.parametrize(
    ("clip", "flags", "zoom_in", "absent", "wanted"),
    [
        (IN_ORDER, (), 0.95, frozenset(), 9.1),
        (NO_SOLDIER, (), 0.8, frozenset(), 7.5),
        (REVERSED, (), 0.7, frozenset(), 6.9),
        (FIRST_FRAME, (), 0.3, NO_RELATION, 3.5),
        (FIRST_FRAME, ("frozen",), 0.0, TEXTURE_ONLY, 1.7),
        (NOTHING, (), 0.0, frozenset(), 0.3),
    ],
)
def test_hand_case(clip: Clip, flags: tuple[str, ...], zoom_in: float, absent: frozenset[str], wanted: float) -> None:
    found, _ = scored(clip, *flags, zoom_in=zoom_in, absent=absent)
    assert found.score10 is not None
    assert round(found.score10, 1) == wanted
    assert found.caps == ()


def test_reversed_story_has_the_order_of_the_note() -> None:
    _, parts = scored(REVERSED)
    assert parts.order == pytest.approx(0.28, abs=0.005)
    assert scored(IN_ORDER)[1].order == pytest.approx(1.0)
    assert scored(FIRST_FRAME)[1].order is None


@pytest.mark.parametrize("flag", ["black", "flat", "noise", "no-frames"])
def test_dead_clip_is_zero_without_a_judge_and_says_why(flag: str) -> None:
    for judgements in ([], [asked(seeing(), IN_ORDER)]):
        found = scoring.score(RUBRIC, judgements, pixels(flag))
        assert (found.score10, found.low, found.high) == (0.0, 0.0, 0.0)
        assert found.caps == (Cap(flag=flag, from10=None, to10=0.0),)


@pytest.mark.parametrize(
    ("flag", "to10"),
    [("frozen", 4.0), ("static-with-grain", 4.0), ("near-static", 6.0), ("dissolve", 6.0), ("freezes-midway", 7.0)],
)
def test_still_clip_is_capped_and_the_cap_is_told(flag: str, to10: float) -> None:
    free, _ = scored(IN_ORDER)
    found, _ = scored(IN_ORDER, flag)
    assert found.score10 == to10
    assert found.caps == (Cap(flag=flag, from10=free.score10, to10=to10),)


def test_lowest_cap_wins_and_very_dark_is_none() -> None:
    assert scored(IN_ORDER, "freezes-midway", "frozen")[0].score10 == 4.0
    assert scored(IN_ORDER, "very-dark")[0] == replace(scored(IN_ORDER)[0], flags=("very-dark",))


# ---- elements


def rows(**answers: float | None) -> dict[str, tuple[float | None, ...]]:
    named = {key.replace("_", "-"): p for key, p in answers.items()}
    whole = {e.id for e in RUBRIC.elements if e.kind in rubrics.WHOLE_CLIP_KINDS}
    return {key: (p,) * (1 if key in whole else WINDOWS) for key, p in named.items()}


def test_presence_is_the_mean_of_the_two_largest_answers() -> None:
    answers = {"child": (0.1, 0.9, None, 0.7, 0.2, 0.0, 0.0, 0.0), "doll": (0.4, *(None,) * 7)}
    parts = scoring.combine(RUBRIC, answers, {})
    by_id = {e.element_id: e.presence for e in parts.elements}
    assert by_id["child"] == pytest.approx(0.8)
    assert by_id["doll"] == pytest.approx(0.4)
    assert by_id["soldier"] is None


def test_child_of_an_absent_parent_is_gated_and_named() -> None:
    parts = scoring.combine(RUBRIC, rows(child=0.2, doll=0.9, child_holds_doll=1.0), {})
    relation = next(e for e in parts.elements if e.element_id == "child-holds-doll")
    assert relation.alone == 1.0
    assert relation.presence == pytest.approx(0.18)
    assert relation.failed_parent == "child"


def test_gating_goes_down_the_whole_chain() -> None:
    chain = (
        element("c", "relation", None, 1, ("b",)),
        element("b", "attribute", None, 1, ("a",)),
        element("a", "subject"),
    )
    rubric = replace(RUBRIC, beats=(), elements=chain)
    parts = scoring.combine(rubric, dict.fromkeys("abc", (0.5,) * WINDOWS), {})
    assert [e.presence for e in parts.elements] == [0.125, 0.25, 0.5]


def test_negative_is_shown_and_not_summed() -> None:
    with_text = scoring.combine(RUBRIC, rows(child=0.8, text_overlay=1.0), {})
    without = scoring.combine(RUBRIC, rows(child=0.8, text_overlay=0.0), {})
    assert with_text.raw10 == without.raw10
    assert with_text.elements[-1].presence == 1.0


def test_camera_is_the_mean_of_flow_and_judge() -> None:
    assert scoring.combine(RUBRIC, rows(dolly_in=0.5), {"zoom_in": 0.9}).camera == pytest.approx(0.7)
    assert scoring.combine(RUBRIC, {}, {"zoom_in": 0.9}).camera == pytest.approx(0.9)
    assert scoring.combine(RUBRIC, {}, {"pan": 0.9}).camera is None


def test_parts_that_do_not_exist_take_no_share() -> None:
    parts = scoring.combine(RUBRIC, rows(gothic_texture=0.6), {})
    assert (parts.story, parts.order, parts.camera) == (None, None, None)
    assert parts.raw10 == pytest.approx(6.0)
    assert scoring.combine(RUBRIC, {}, {}).raw10 is None


# ---- beats


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_best_path_is_the_best_of_all_increasing_ones(matrix: list[list[float]]) -> None:
    total, path = scoring.best_path(matrix)
    choices = [
        sum(matrix[b][k] for b, k in zip(beats, windows, strict=True))
        for size in range(len(matrix) + 1)
        for beats in combinations(range(len(matrix)), size)
        for windows in combinations(range(5), size)
    ]
    taken = [k for k in path if k is not None]
    assert total == pytest.approx(max(choices))
    assert taken == sorted(set(taken))
    assert sum(matrix[b][k] for b, k in enumerate(path) if k is not None) == pytest.approx(total)


def test_path_shows_where_each_beat_is() -> None:
    _, parts = scored(NO_SOLDIER)
    windows = [beat.path_window for beat in parts.beats]
    assert windows[0] in (0, 1)
    assert windows[1] in (2, 3)
    assert windows[3] in (6, 7)
    assert parts.beats[2].best == pytest.approx(0.035)


# ---- interval and confidence


def test_interval_is_around_the_score_has_a_floor_and_repeats_itself() -> None:
    found, _ = scored(IN_ORDER)
    assert found.half_width == 1.5
    assert found.low == pytest.approx((found.score10 or 0) - 1.5)
    assert found.high == 10.0
    assert "uncalibrated" in found.badges
    assert found.confidence == "medium"
    assert scored(IN_ORDER)[0] == found


def test_unsure_answers_widen_the_interval_beyond_the_floor() -> None:
    one = replace(RUBRIC, beats=(), elements=(element("a", "subject"),))
    unsure = scoring.score(one, [judgement({"a": (0.5, *(None,) * 7)}, one)], pixels())
    assert unsure.half_width is not None
    # Beta(5, 5): the 10 % quantile is 0.30, so half of the range is 2.0.
    assert unsure.half_width == pytest.approx(2.0, abs=0.35)
    assert unsure.confidence == "low"


def test_noise_is_the_same_for_the_same_answers_in_any_order() -> None:
    def total(answers: Answers) -> float:
        return sum(p for key, row in sorted(answers.items()) for p in row if p is not None)

    first = answer_noise.half_width({"a": (0.5, 0.3), "b": (0.7, None)}, total)
    assert first > 0
    assert answer_noise.half_width({"b": (0.7, None), "a": (0.5, 0.3)}, total) == first
    assert answer_noise.half_width({"a": (0.0, 1.0, None)}, total) == 0


@pytest.mark.parametrize(
    ("half", "agreement", "word"),
    [(0.75, "agree", "high"), (0.75, "differ", "medium"), (1.5, "agree", "medium"), (1.6, None, "low")],
)
def test_confidence_word(half: float, agreement: scoring.Agreement, word: str) -> None:
    assert scoring._confidence(half, agreement) == word


# ---- tiers


def uniform(p: float) -> dict[str, tuple[float | None, ...]]:
    return {e.id: (p,) * (1 if e.kind in rubrics.WHOLE_CLIP_KINDS else WINDOWS) for e in RUBRIC.elements}


@pytest.mark.parametrize(("p", "word"), [(0.85, "agree"), (0.75, "differ"), (0.2, "conflict")])
def test_tiers_that_disagree_are_told_and_widen_the_interval(p: float, word: str) -> None:
    found = scoring.score(RUBRIC, [judgement(uniform(p), tier="b"), judgement(uniform(0.9), tier="c")], pixels())
    assert found.agreement == word
    b, c = found.tiers
    assert found.half_width is not None
    assert found.half_width >= abs(b.score10 - c.score10) / 2
    assert ("child" in found.flips) is (p < 0.3)


def test_tier_c_counts_where_it_is_valid_and_b_elsewhere() -> None:
    c = {"child": (0.9, None, *(0.1,) * 6)}
    b = {"child": (0.2, 0.8, *(0.2,) * 6), "doll": (0.3,) * 8}
    merged = scoring.merged(RUBRIC, {"b": judgement(b, tier="b"), "c": judgement(c)})
    assert merged == {"child": (0.9, 0.8, *(0.1,) * 6), "doll": (0.3,) * 8}


def test_badges_of_judges_are_kept() -> None:
    test_judge = judgement(uniform(0.9), badges=("test judge",), method="sampled")
    badges = scoring.score(RUBRIC, [test_judge], pixels()).badges
    assert {"test judge", "sampled", "uncalibrated", "draft rubric"} <= set(badges)
    assert "draft rubric" not in scoring.score(rubrics.approve(RUBRIC, "Ada", "r"), [], pixels()).badges


def test_people_alone_score_and_few_of_them_are_preliminary() -> None:
    found = scoring.score(RUBRIC, [], pixels(), [6.0, 7.0, 8.0])
    assert (found.score10, found.half_width) == (7.0, 1.5)
    assert "preliminary" in found.badges
    many = scoring.score(RUBRIC, [], pixels(), [6.0, 8.0] * 20)
    assert "preliminary" not in many.badges
    assert many.half_width == pytest.approx(1.28 / 40**0.5, abs=0.01)


def test_people_who_disagree_with_the_judge_are_a_conflict() -> None:
    found = scoring.score(RUBRIC, [judgement(uniform(0.9))], pixels(), [2.0, 2.0])
    assert found.agreement == "conflict"
    assert found.score10 == pytest.approx(scoring.score(RUBRIC, [judgement(uniform(0.9))], pixels()).score10)


# ---- not scored


def test_random_weights_keep_their_flags_and_are_never_scored() -> None:
    for flags in ((), ("black",), ("frozen",)):
        found = scoring.score(RUBRIC, [asked(seeing(), IN_ORDER)], pixels(*flags), [9.0], has_random_weights=True)
        assert (found.score10, found.low, found.high, found.text) == (None, None, None, "not scored")
        assert found.flags == flags
        assert "random weights" in found.not_scored


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"error": "the endpoint does not answer"}, "judge judge-c: failed: the endpoint does not answer"),
        ({"rubric_sha256": "0" * 64}, "answered rubric 00000000"),
        ({"answers": {"child": (0.5,)}}, "gave 1 windows for 'child', the rubric has 8"),
        ({"answers": {"cat": (0.5,)}}, "'cat', which is no element"),
        ({"answers": {"child": (1.5,) * 8}}, "outside 0..1"),
        ({"answers": {"child": (float("nan"),) * 8}}, "outside 0..1"),
        ({"answers": {"child": (0.9,) * 8}}, "11 of 13 elements have no valid answer"),
        ({"answers": {}}, "12 of 13 elements have no valid answer"),
    ],
)
def test_judgement_that_cannot_be_used_is_not_a_zero(change: dict[str, object], told: str) -> None:
    found = scoring.score(RUBRIC, [judgement(**{"answers": uniform(0.9), **change})], pixels(zoom_in=1.0))  # type: ignore[arg-type]
    assert found.score10 is None
    assert told in found.not_scored


def test_no_judge_and_no_pixels_are_said() -> None:
    assert scoring.score(RUBRIC, [], pixels("frozen")).not_scored == "no judge ran"
    assert "pixels" in scoring.score(RUBRIC, [asked(seeing(), IN_ORDER)], None).not_scored


def test_failed_tier_leaves_the_other_ones_score() -> None:
    alone = scoring.score(RUBRIC, [judgement(uniform(0.9), tier="b")], pixels())
    both = scoring.score(RUBRIC, [judgement(uniform(0.9), tier="b"), judgement({}, error="down")], pixels())
    assert both.score10 == alone.score10
    assert both.left_out == ("judge judge-c: failed: down",)


def test_unasked_elements_are_a_badge_and_no_zero() -> None:
    answers = {key: row for key, row in uniform(0.9).items() if key not in {"soldier-at-panel", "dolly-in"}}
    found = scoring.score(RUBRIC, [judgement(answers)], pixels())
    assert "partial: 2 of 13 elements not judged" in found.badges
    full = scoring.score(RUBRIC, [judgement(uniform(0.9))], pixels())
    assert found.score10 is not None
    assert full.score10 is not None
    assert found.score10 >= full.score10 - 0.1


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=8, max_size=8))
def test_any_answers_give_a_score_on_the_scale_or_a_reason(row: list[float | None]) -> None:
    answers = {key: (tuple(row) if len(old) == WINDOWS else tuple(row[:1])) for key, old in uniform(0.5).items()}
    parts = scoring.combine(RUBRIC, answers, {})
    assert parts.raw10 is None or 0 <= parts.raw10 <= 10 + 1e-9
    assert parts.order is None or parts.order <= 1 + 1e-9


def test_other_rubric_has_its_own_hash() -> None:
    assert scoring.why_not(OTHER, asked(seeing(), IN_ORDER)) != ""
