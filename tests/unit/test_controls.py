"""The controls let an honest judge through and catch every bad one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest

from screentest.rubric import Element
from screentest_reporter import controls, scoring
from screentest_reporter.controls import Control, ControlRun, Result, Verdict
from tests.made_judgements import FIRST_FRAME, IN_ORDER, NOTHING, OTHER, REVERSED, RUBRIC, Clip, Judge, asked, seeing

HONEST = seeing()


def run_all(judge: Judge, clip: Clip = IN_ORDER) -> Verdict:
    reference = asked(judge, clip)
    runs = [
        ControlRun(control=Control.WRONG_PROMPT, rubric=OTHER, judgement=asked(judge, clip, OTHER)),
        ControlRun(control=Control.BLACK, rubric=RUBRIC, judgement=asked(judge, NOTHING)),
        ControlRun(control=Control.FRAME_SHUFFLED, rubric=RUBRIC, judgement=asked(judge, clip[::-1])),
        ControlRun(control=Control.STATIC_FIRST_FRAME, rubric=RUBRIC, judgement=asked(judge, clip[:1] * len(clip))),
        ControlRun(control=Control.REPEAT, rubric=RUBRIC, judgement=asked(judge, clip)),
    ]
    return controls.verdict(RUBRIC, reference, runs)


def results(verdict: Verdict) -> dict[Control, Result]:
    return {found.control: found.result for found in verdict.results}


def always_yes(_: Element, __: int, ___: Clip) -> float:
    return 1.0


def prompt_blind(e: Element, window: int, clip: Clip) -> float:
    """Sees that something is in the picture, whatever it is asked; knows beats by their numbers only."""
    return HONEST(RUBRIC.elements[0] if e.beat is None else _of_beat(e.beat), window, clip)


def _of_beat(n: int) -> Element:
    return next(e for e in RUBRIC.elements if e.beat == n)


def position_biased(e: Element, window: int, clip: Clip) -> float:
    """Tells the story in its order whatever it is shown, as long as it is shown something."""
    return HONEST(e, window, IN_ORDER if any(clip) else NOTHING)


def noisy(seed: int) -> Judge:
    random = Random(seed)
    return lambda e, window, clip: min(1.0, max(0.0, HONEST(e, window, clip) + random.uniform(-0.6, 0.6)))


def coin(seed: int) -> Judge:
    random = Random(seed)
    return lambda e, window, clip: random.random()


def test_honest_judge_holds_all_five() -> None:
    verdict = run_all(HONEST)
    assert verdict.text == "controls 5/5"
    assert not verdict.is_greyed
    found = scoring.score(
        RUBRIC, [asked(HONEST, IN_ORDER)], scoring.Pixels(flags=(), thresholds_version="vitals/1", camera={})
    )
    assert f"{found.text}, {verdict.text}" == "9.1 ± 1.5, controls 5/5"


@pytest.mark.parametrize("seed", range(3))
def test_slightly_noisy_judge_is_let_through(seed: int) -> None:
    random = Random(seed)
    verdict = run_all(lambda e, window, clip: min(1.0, max(0.0, HONEST(e, window, clip) + random.uniform(-0.1, 0.1))))
    assert not verdict.is_greyed, verdict.why_greyed


@pytest.mark.parametrize(
    ("judge", "caught"),
    [
        (always_yes, {Control.WRONG_PROMPT, Control.BLACK, Control.FRAME_SHUFFLED, Control.STATIC_FIRST_FRAME}),
        (prompt_blind, {Control.WRONG_PROMPT}),
        (position_biased, {Control.FRAME_SHUFFLED, Control.STATIC_FIRST_FRAME}),
    ],
)
def test_bad_judge_is_caught_by_the_controls_made_for_it(judge: Judge, caught: set[Control]) -> None:
    verdict = run_all(judge)
    assert {control for control, result in results(verdict).items() if result is Result.FAILED} == caught
    assert verdict.is_greyed
    assert all(control.value in verdict.why_greyed for control in caught)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [noisy, coin])
def test_noisy_judge_is_caught_by_asking_again(make: type, seed: int) -> None:
    verdict = run_all(make(seed))
    assert results(verdict)[Control.REPEAT] is Result.FAILED
    assert verdict.is_greyed


def test_control_that_was_not_run_greys_the_column() -> None:
    verdict = controls.verdict(RUBRIC, asked(HONEST, IN_ORDER), [])
    assert verdict.text == "controls 0/5"
    assert "repeat not run: it was not asked" in verdict.why_greyed


def test_judge_that_failed_in_a_control_has_not_run_it() -> None:
    down = replace(asked(HONEST, NOTHING), error="the endpoint does not answer")
    runs = [ControlRun(control=Control.BLACK, rubric=RUBRIC, judgement=down)]
    verdict = controls.verdict(RUBRIC, asked(HONEST, IN_ORDER), runs)
    assert results(verdict)[Control.BLACK] is Result.NOT_RUN
    assert "the endpoint does not answer" in verdict.why_greyed


def test_clip_without_story_leaves_order_undecided_and_the_column_readable() -> None:
    verdict = run_all(HONEST, FIRST_FRAME)
    assert verdict.text == "controls 3/5, 2 undecided"
    assert results(verdict)[Control.FRAME_SHUFFLED] is Result.UNDECIDED
    assert not verdict.is_greyed


def test_clip_without_its_prompt_cannot_show_that_the_judge_reads_it() -> None:
    verdict = run_all(HONEST, NOTHING)
    assert results(verdict)[Control.WRONG_PROMPT] is Result.UNDECIDED
    assert "no clip shows enough of the prompt" in verdict.why_greyed


def test_clip_that_runs_backwards_is_no_base_for_the_order_control() -> None:
    assert results(run_all(HONEST, REVERSED))[Control.FRAME_SHUFFLED] is Result.UNDECIDED


def test_honest_judge_is_not_blamed_for_a_clip_that_tells_its_beats_out_of_order() -> None:
    """The clip that shows most may be a reordered one: its order has little to lose when its windows are reversed."""
    unsure = seeing(low=0.2)
    for order in itertools.permutations((1, 2, 3, 4)):
        found = results(run_all(unsure, [beat for beat in order for _ in range(2)]))
        told = (found[Control.FRAME_SHUFFLED], found[Control.STATIC_FIRST_FRAME])
        assert Result.FAILED not in told, (order, told)
    assert told == (Result.UNDECIDED, Result.UNDECIDED)
