"""Whether a judge can be believed in this sweep: five clips or questions whose order is known before it answers. Pure.

The controls do not order = the column is greyed, and says why. They compare answers before caps: in a sweep dead and
frozen clips are decided by pixels, here the judge has to see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Final

from screentest.rubric import Rubric
from screentest_reporter import scoring
from screentest_reporter.answer_noise import Answers
from screentest_reporter.scoring import Judgement, Parts

# Scores closer than this are the same one while nothing is calibrated (the floor of the interval).
MARGIN = scoring.FLOOR_HALF_WIDTH
# Nothing is there: the anchor of 0, and less than palette or texture (2).
MOST_ON_BLACK = 1.0
# Order falls from 1 to about 1/n when n beats are turned round; a quarter of it shows that the judge looked.
ORDER_FALL = 0.25
# Mean change of an answer when the same question is asked of the same frames again. A fair coin changes by 0.33.
REPEAT_CHANGE = 0.1
# From here on the clip shows enough of its prompt for a worse question to score less.
LEAST_TO_FALL = 2.0


class Control(StrEnum):
    """wrong-prompt: the same clip, asked the rubric of another prompt. frame-shuffled: its windows in reverse order,
    the frames of a window as they were (single frames shuffled would put every beat into every window).
    static-first-frame: its first frame as a clip of its length. repeat: the same clip, asked again without a cache.
    """

    WRONG_PROMPT = "wrong-prompt"
    BLACK = "black"
    FRAME_SHUFFLED = "frame-shuffled"
    STATIC_FIRST_FRAME = "static-first-frame"
    REPEAT = "repeat"


class Result(StrEnum):
    """undecided: the clip itself shows too little for the control to say anything about the judge."""

    HELD = "held"
    FAILED = "failed"
    UNDECIDED = "undecided"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRun:
    """What the judge answered in one control; rubric: the one that it was asked, another one for wrong-prompt."""

    control: Control
    rubric: Rubric
    judgement: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """One control's result and why, in one phrase with its numbers."""

    control: Control
    result: Result
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """results: one per control, in the order of Control. why_greyed: empty where the column may be believed."""

    results: tuple[ControlResult, ...]
    why_greyed: str

    @property
    def is_greyed(self) -> bool:
        return bool(self.why_greyed)

    @property
    def held(self) -> int:
        return sum(found.result is Result.HELD for found in self.results)

    @property
    def text(self) -> str:
        """`controls 5/5`, or `controls 3/5, 2 undecided`: what says nothing about the judge did not fail it."""
        undecided = sum(found.result is Result.UNDECIDED for found in self.results)
        return f"controls {self.held}/{len(self.results)}" + (f", {undecided} undecided" if undecided else "")


# Without these two held nothing shows that the judge reads the prompt and looks at the picture.
_MUST_HOLD: Final = (Control.WRONG_PROMPT, Control.BLACK, Control.REPEAT)


def verdict(rubric: Rubric, reference: Judgement, runs: Sequence[ControlRun]) -> Verdict:
    """reference: the judge's answers about the clip from which the controls were made (the best one of the sweep).

    Greyed when a control failed, when any was not run, or when wrong-prompt, black or repeat could not be decided.
    """
    by_control = {run.control: run for run in runs}
    reason = scoring.why_not(rubric, reference)
    clip = None if reason else scoring.combine(rubric, reference.answers, {})
    results = tuple(_control_result(control, reference, clip, by_control.get(control)) for control in Control)
    return Verdict(results=results, why_greyed=_why_greyed(results))


def _why_greyed(results: Sequence[ControlResult]) -> str:
    return "; ".join(f"{found.control.value} {found.result.value}: {found.why}" for found in results if _greys(found))


def _greys(found: ControlResult) -> bool:
    if found.result is Result.UNDECIDED:
        return found.control in _MUST_HOLD
    return found.result is not Result.HELD


def _control_result(
    control: Control, reference: Judgement, clip: Parts | None, run: ControlRun | None
) -> ControlResult:
    result, why = _result(control, reference, clip, run)
    return ControlResult(control=control, result=result, why=why)


def _result(control: Control, reference: Judgement, clip: Parts | None, run: ControlRun | None) -> tuple[Result, str]:
    if run is None:
        return Result.NOT_RUN, "it was not asked"
    if reason := scoring.why_not(run.rubric, run.judgement):
        return Result.NOT_RUN, f"judge {run.judgement.judge_id}: {reason}"
    if clip is None or clip.raw10 is None:
        return Result.UNDECIDED, "the clip it is compared with has no valid answers"
    other = scoring.combine(run.rubric, run.judgement.answers, {})
    if other.raw10 is None:
        return Result.NOT_RUN, "it has no valid answers"
    match control:
        case Control.WRONG_PROMPT:
            return _falls(clip.raw10, other.raw10, "another prompt")
        case Control.BLACK:
            return _held(other.raw10 <= MOST_ON_BLACK, f"a black clip gets {other.raw10:.1f}")
        case Control.FRAME_SHUFFLED:
            return _order_falls(clip, other.order)
        case Control.STATIC_FIRST_FRAME:
            return _story_falls(clip, other)
        case Control.REPEAT:
            return _repeats(reference.answers, run.judgement.answers)


def _held(holds: bool, why: str) -> tuple[Result, str]:
    return (Result.HELD if holds else Result.FAILED), why


def _falls(clip10: float, other10: float, what: str) -> tuple[Result, str]:
    why = f"{what} gets {other10:.1f}, the clip {clip10:.1f}"
    # A wrong prompt that scores clearly higher is a failure however little the clip shows.
    if clip10 < LEAST_TO_FALL and other10 < clip10 + MARGIN:
        return Result.UNDECIDED, f"{why}: no clip shows enough of the prompt to tell it from another"
    return _held(other10 <= clip10 - MARGIN, why)


def _order_falls(clip: Parts, shuffled: float | None) -> tuple[Result, str]:
    if clip.order is None or clip.order < 0.5 + ORDER_FALL:
        return Result.UNDECIDED, "the clip shows no two beats in their order"
    if shuffled is None:
        return Result.FAILED, "beats that the clip shows are gone when its windows are reversed"
    why = f"order is {shuffled:.2f} reversed, {clip.order:.2f} as it was"
    return _fell(clip, shuffled <= clip.order - ORDER_FALL, why)


def _story_falls(clip: Parts, still: Parts) -> tuple[Result, str]:
    if clip.order is None or clip.story is None or still.story is None:
        return Result.UNDECIDED, "the clip shows no two beats"
    why = f"the story is {still.story:.2f} in one frame, {clip.story:.2f} in the clip"
    return _fell(clip, still.story <= clip.story - ORDER_FALL / 2, why)


def _fell(clip: Parts, falls: bool, why: str) -> tuple[Result, str]:
    """A clip that tells its beats out of order has little to lose, whoever judges it: that blames no judge."""
    if falls or _is_in_order(clip):
        return _held(falls, why)
    return Result.UNDECIDED, f"{why}: the clip shows its beats out of order"


def _is_in_order(clip: Parts) -> bool:
    """One of n beats that are seen in a wrong place takes about 1/n from the order; half of that is noise."""
    seen = sum(beat.best is not None and beat.best >= scoring.SEEN for beat in clip.beats)
    return clip.order is not None and clip.order >= 1 - 1 / (2 * seen)


def _repeats(first: Answers, second: Answers) -> tuple[Result, str]:
    changes = list(chain.from_iterable(_changes(first[key], second[key]) for key in first if key in second))
    if not changes:
        return Result.UNDECIDED, "no question was answered twice"
    change = sum(changes) / len(changes)
    return _held(change <= REPEAT_CHANGE, f"answers change by {change:.2f} on average when they are asked again")


def _changes(first: Sequence[float | None], second: Sequence[float | None]) -> list[float]:
    return [abs(p - q) for p, q in zip(first, second, strict=True) if p is not None and q is not None]
