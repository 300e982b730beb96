"""Tier c, what is common to models here and elsewhere: which windows are asked what, and P(yes) of what comes back.

One question, one word. The model says what is in a window; which beat came first is decided from that by the scoring,
never by the model. Formulas: scoring note 1.2 c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, Literal

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging import media
from screentest_runner.judging.found import Found, Method, Progress, check_cancelled, rounded
from screentest_runner.judging.media import Media, Window
from screentest_runner.judging.questions import CAMERA, Question
from screentest_runner.protocol import FailureClass

FRAMES_PER_WINDOW: Final = 4
FRAMES_OF_CLIP: Final = 8
# Less mass than this on yes and no together is no answer: a thinking model, a refusal, a wrong template.
LEAST_MASS: Final = 0.5
# Between these a whole clip has not said whether an element is there, so its windows are asked.
UNDECIDED: Final = (0.1, 0.9)
LONGEST_SIDE_PX: Final = 512

Mode = Literal["cheap", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mass:
    """How much of the first word's probability is on yes and on no, 0..1 each."""

    yes: float
    no: float

    @property
    def p(self) -> float | None:
        """P(yes) among the two; None where they are not what the model wants to say."""
        said = self.yes + self.no
        return self.yes / said if said >= LEAST_MASS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """straight, counter: P(yes) of the question and of its opposite; None = invalid."""

    straight: float | None
    counter: float | None

    @property
    def p(self) -> float | None:
        """(straight + 1 - counter) / 2: a model that likes the word yes is right in one of them only."""
        if self.straight is None or self.counter is None:
            return None
        return (self.straight + 1 - self.counter) / 2

    @property
    def inconsistency(self) -> float | None:
        """0 = the two agree, 1 = yes to both or no to both."""
        if self.straight is None or self.counter is None:
            return None
        return abs(self.straight - (1 - self.counter))


# The window's pictures and texts in, one Mass per text out, in their order.
Ask = Callable[[Window, Sequence[str]], Sequence[Mass]]


def is_yes(token: str) -> bool:
    return _bare(token) == "yes"


def is_no(token: str) -> bool:
    return _bare(token) == "no"


def _bare(token: str) -> str:
    """Without the signs with which vocabularies spell a leading blank."""
    return token.lstrip("Ġ▁ \n").rstrip().casefold()


def mass_of(probabilities: Iterable[tuple[str, float]]) -> Mass:
    """Over all spellings. probabilities: (token, 0..1) of the first word, the likeliest ones."""
    pairs = list(probabilities)
    return Mass(
        yes=min(1.0, sum(p for token, p in pairs if is_yes(token))),
        no=min(1.0, sum(p for token, p in pairs if is_no(token))),
    )


def shown_text(window: Window) -> str:
    if len(window.frames) == 1:
        return "This is a picture."
    return f"These frames are consecutive, in time order, {window.begin_s:.1f} to {window.end_s:.1f} s."


def asked_text(question: str) -> str:
    return f"Question: {question} Answer with one word, Yes or No."


def mode_of(lane: Mapping[str, Any]) -> Mode:
    """`settings.mode` of a judge's file; full unless it says cheap. Raises AttemptFailure(bad_kwargs)."""
    mode = lane.get("settings", {}).get("mode", "full")
    if mode not in ("cheap", "full"):
        raise AttemptFailure(FailureClass.BAD_KWARGS, f"settings.mode is {mode!r}; legal are 'cheap' and 'full'")
    return mode


def answer_all(
    ask: Ask,
    clip: Media,
    questions: Sequence[Question],
    windows: int,
    *,
    mode: Mode,
    method: Method,
    progress: Progress,
    cancelled: Event,
    badges: tuple[str, ...] = (),
) -> Found:
    """Every question straight and negated: camera and negatives once on the whole clip, the others per window.

    cheap: what belongs to no beat is asked on the whole clip first, and per window only where that left it open. A
    picture has no camera moves, so they are left out.
    """
    asked = [question for question in questions if not (clip.is_image and question.kind == CAMERA)]
    session = _Session(ask, progress, cancelled, _most_calls(asked, windows, mode))
    whole = media.windows(clip, 1, 1 if clip.is_image else FRAMES_OF_CLIP)[0]
    on_clip = [question for question in asked if question.whole_clip or (mode == "cheap" and question.beat is None)]
    first = session.asked(whole, on_clip)
    decided = {question.id for question in on_clip if question.whole_clip or _is_decided(first[question.id])}
    left = [question for question in asked if question.id not in decided]
    rows: dict[str, list[Answer]] = {question.id: [] for question in left}
    for window in media.windows(clip, windows, 1 if clip.is_image else FRAMES_PER_WINDOW) if left else ():
        for question_id, answer in session.asked(window, left).items():
            rows[question_id].append(answer)
    for question in on_clip:
        if question.id in decided:
            rows[question.id] = [first[question.id]] * (1 if question.whole_clip else windows)
    return Found(
        method=method,
        answers={question.id: [rounded(answer.p) for answer in rows[question.id]] for question in asked},
        details={question.id: _details(rows[question.id], question.id in decided) for question in asked},
        calls=session.calls,
        badges=badges,
    )


def _is_decided(answer: Answer) -> bool:
    return answer.p is not None and not UNDECIDED[0] < answer.p < UNDECIDED[1]


def _most_calls(asked: Sequence[Question], windows: int, mode: Mode) -> int:
    """Calls if no element is decided on the whole clip."""
    whole = sum(question.whole_clip for question in asked)
    again = sum(not question.whole_clip and question.beat is None for question in asked) if mode == "cheap" else 0
    return 2 * (whole + again + (len(asked) - whole) * windows)


def _details(row: Sequence[Answer], is_of_clip: bool) -> dict[str, Any]:
    return {
        "asked": "clip" if is_of_clip else "windows",
        "straight": [rounded(answer.straight) for answer in row],
        "counter": [rounded(answer.counter) for answer in row],
        "inconsistency": [rounded(answer.inconsistency) for answer in row],
    }


@dataclass(slots=True)
class _Session:
    """One clip: counts what is asked, tells of it, and stops when it is cancelled."""

    ask: Ask
    progress: Progress
    cancelled: Event
    most_calls: int
    calls: int = field(default=0)

    def asked(self, window: Window, questions: Sequence[Question]) -> dict[str, Answer]:
        if not questions:
            return {}
        check_cancelled(self.cancelled)
        texts = [text for question in questions for text in (question.question, question.counter_question)]
        said = self.ask(window, texts)
        self.calls += len(texts)
        self.progress(self.calls, self.most_calls)
        pairs = zip(said[0::2], said[1::2], strict=True)
        return {
            question.id: Answer(straight=straight.p, counter=counter.p)
            for question, (straight, counter) in zip(questions, pairs, strict=True)
        }
