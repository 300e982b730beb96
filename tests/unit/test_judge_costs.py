"""What judging costs: questions by the rubric, seconds by what this judge took here, and nothing where nobody knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest.records import FailureClass, JobSpec, Judged, JudgePurpose, Outcome
from screentest_scheduler import judge_costs, transitions
from screentest_scheduler.judge_costs import JudgeTimes, Work
from tests.made_judgements import OTHER, RUBRIC
from tests.made_judgings import SIGLIP, ref
from tests.made_sweeps import plan, record, specs, stamp

[MADE] = specs(record([plan("wan", "Wan")]))
KIND_OF = [element.kind for element in RUBRIC.elements]


def judging(purpose: JudgePurpose = JudgePurpose.CLIP) -> JobSpec:
    judged = Judged(purpose=purpose, job_id="j", lane_id="wan", key="k", sha256="c", size_bytes=1, rubric=ref("a"))
    return replace(MADE, lane_id="siglip", judged=judged)


def learned(*took: tuple[JudgePurpose, float], failed: bool = False) -> JudgeTimes:
    times = JudgeTimes()
    for purpose, seconds in took:
        entry = replace(transitions.submitted_entry(judging(purpose), stamp(0), 1), began=stamp(10))
        outcome = Outcome(failure_class=FailureClass.NAN if failed else None)
        times.learn(entry, outcome, stamp(10 + seconds))
    return times


def test_a_language_model_is_asked_each_element_and_window_straight_and_negated() -> None:
    """13 elements, of which camera and negative are asked once on the whole clip: 2 x (11 x 8 + 2)."""
    assert KIND_OF.count("camera") + KIND_OF.count("negative") == 2
    assert judge_costs.calls("c", JudgePurpose.CLIP, RUBRIC) == 2 * (11 * 8 + 2)
    assert judge_costs.calls("c", JudgePurpose.KEYFRAME, RUBRIC) == 2 * (11 + 2)


def test_embeddings_leave_out_what_a_picture_cannot_tell_and_pixels_ask_nothing() -> None:
    told = sum(kind not in ("relation", "camera", "negative") for kind in KIND_OF)
    assert judge_costs.calls("b", JudgePurpose.CLIP, RUBRIC) == 8 * told
    assert judge_costs.calls("a", JudgePurpose.CLIP, RUBRIC) == 0


def test_controls_are_four_times_the_clip_and_once_another_prompt() -> None:
    clip, other = (judge_costs.calls("b", JudgePurpose.CLIP, rubric) for rubric in (RUBRIC, OTHER))
    assert judge_costs.calls("b", JudgePurpose.CONTROLS, RUBRIC, OTHER) == 4 * clip + other


def test_a_judge_that_has_not_been_measured_has_no_seconds() -> None:
    wanted = Work(jobs={JudgePurpose.CLIP: 3}, calls=9)
    for times in (JudgeTimes(), learned((JudgePurpose.CLIP, 5), failed=True), learned((JudgePurpose.KEYFRAME, 5))):
        cost = judge_costs.cost(SIGLIP, wanted, times)
        assert (cost.jobs, cost.calls, cost.seconds) == (3, 9, None)
        assert cost.basis == "this judge has not judged a clip here yet"


def test_seconds_are_those_of_the_clips_that_it_judged_here() -> None:
    wanted = Work(jobs={JudgePurpose.CLIP: 3, JudgePurpose.CONTROLS: 1, JudgePurpose.KEYFRAME: 1}, calls=9)
    cost = judge_costs.cost(SIGLIP, wanted, learned((JudgePurpose.CLIP, 2), (JudgePurpose.CLIP, 4)))
    assert cost.seconds == pytest.approx(3 * 3 + 5 * 3 + 3)  # controls are five clips, a picture at most one
    assert cost.basis == "2 clips judged here took 3.0 s each"
    met = learned((JudgePurpose.CLIP, 2), (JudgePurpose.CONTROLS, 7), (JudgePurpose.KEYFRAME, 1))
    assert judge_costs.cost(SIGLIP, wanted, met).seconds == pytest.approx(3 * 2 + 7 + 1)


def test_what_a_judge_took_is_recalled_as_it_was_told_and_adds_up() -> None:
    times = learned((JudgePurpose.CLIP, 2), (JudgePurpose.CONTROLS, 7))
    for _ in range(2):
        times.recall(learned((JudgePurpose.CLIP, 5)).told())
    assert (times.clips(SIGLIP.lane_id), times.job_s(SIGLIP.lane_id, JudgePurpose.CLIP)) == (3, 4)
    assert times.job_s(SIGLIP.lane_id, JudgePurpose.CONTROLS) == 7
