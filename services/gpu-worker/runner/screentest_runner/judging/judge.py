"""One judge and one request: decode, leave the dead alone, ask, and hand back the JSON part of a judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import Any, Final, Literal, Protocol

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging import controls, media, picture, pixels, questions, thresholds
from screentest_runner.judging.embeddings import EmbeddingJudge
from screentest_runner.judging.endpoint import EndpointJudge
from screentest_runner.judging.found import Found, Method, Progress, check_cancelled
from screentest_runner.judging.media import Media
from screentest_runner.judging.questions import Question
from screentest_runner.judging.vlm import VlmJudge
from screentest_runner.protocol import FailureClass

Tier = Literal["a", "b", "c"]


class Judge(Protocol):
    """What a judge lane's runner holds. longest_side_px: how large it wants its frames.

    prepare: imports what Load needs, no CUDA; package name to version. load: `load` is the runner's Load as a plain
    object, device a torch device. answers: about one clip; raises AttemptFailure.
    """

    tier: Tier
    longest_side_px: int

    @property
    def method(self) -> Method: ...

    @property
    def badges(self) -> tuple[str, ...]: ...

    def prepare(self) -> dict[str, str]: ...

    def load(self, load: dict[str, Any], device: str) -> None: ...

    def answers(
        self, clip: Media, asked: Sequence[Question], windows: int, progress: Progress, cancelled: Event
    ) -> Found: ...


class PixelJudge:
    """Tier a: measures, and answers no question."""

    tier: Tier = "a"
    method: Method = "pixels"
    badges: tuple[str, ...] = ()
    longest_side_px = media.LONGEST_SIDE_PX

    def __init__(self, lane: Mapping[str, Any]) -> None:
        pass

    def prepare(self) -> dict[str, str]:
        packages = ("av", "numpy", "opencv-python-headless", "scikit-image", "scenedetect-headless", "imagehash")
        return {name: metadata.version(name) for name in packages}

    def load(self, load: dict[str, Any], device: str) -> None:
        pass

    def answers(
        self, clip: Media, asked: Sequence[Question], windows: int, progress: Progress, cancelled: Event
    ) -> Found:
        return Found(method=self.method, answers={})

    def examined(self, clip: Media, asked: Mapping[str, Any], progress: Progress) -> Found:
        """asked: as in the runner's Judge message."""
        found = pixels.examine(clip, asked)
        progress(1, 1)
        return Found(method=self.method, answers={}, pixels=found)


# By the `adapter` of a judge's file.
JUDGES: Final[Mapping[str, Callable[[Mapping[str, Any]], Judge]]] = {
    "pixels": PixelJudge,
    "embedding": EmbeddingJudge,
    "vlm": VlmJudge,
    "endpoint": EndpointJudge,
}


def run(judge: Judge, request: Mapping[str, Any], progress: Progress, cancelled: Event) -> dict[str, Any]:
    """The judge's part of one judgement: tier, method, badges, answers, details, calls, windows, pixels, controls.

    request: the runner's Judge message as a plain object. pixels: None but in tier a. controls: one object per control
    with its name and answers; empty but for that purpose, and then `answers` are those of the clip asked again. Raises
    AttemptFailure, and OSError for a file that is not there.
    """
    clip = media.read(Path(request["media_path"]), longest_side_px=judge.longest_side_px)
    check_cancelled(cancelled)
    if isinstance(judge, PixelJudge):
        return _part(judge, judge.examined(clip, request["asked"], progress), request)
    asked = questions.read(request["questions"])
    if dead := dead_flag(clip):
        # black as a control is another matter: there the judge has to see it
        found = Found(method=judge.method, answers={}, details={"not_asked": dead}, badges=judge.badges)
        return _part(judge, found, request)
    if request["purpose"] == "controls":
        return _with_controls(judge, clip, asked, request, progress, cancelled)
    return _part(judge, judge.answers(clip, asked, request["windows"], progress, cancelled), request)


def dead_flag(clip: Media) -> str | None:
    """`no-frames`, `black`, `flat` or `noise`: nothing that anybody could be asked about. None = there is something."""
    if not len(clip.frames):
        return "no-frames"
    limits = thresholds.shipped()
    return picture.dead_flag(picture.look(clip, picture.luma_of(clip.frames), limits), limits)


def _with_controls(
    judge: Judge,
    clip: Media,
    asked: Sequence[Question],
    request: Mapping[str, Any],
    progress: Progress,
    cancelled: Event,
) -> dict[str, Any]:
    other, other_windows = _other(request)
    made: list[dict[str, Any]] = []
    calls = 0
    for done, control in enumerate(controls.made_of(clip, request["windows"])):
        check_cancelled(cancelled)
        told = partial(_told, progress, done, len(controls.NAMES))
        wanted, windows = (other, other_windows) if control.asks_other else (asked, request["windows"])
        found = judge.answers(control.clip, wanted, windows, told, cancelled)
        made.append({"control": control.name, "answers": dict(found.answers)})
        calls += found.calls
    # the last one is the clip itself, asked again
    return _part(judge, replace(found, calls=calls), request, made)


def _told(progress: Progress, control: int, count: int, done: int, of: int) -> None:
    """The progress of one control as a part of all of them."""
    progress(control * of + done, count * of)


def _other(request: Mapping[str, Any]) -> tuple[tuple[Question, ...], int]:
    items, windows = request.get("other_questions"), request.get("other_windows")
    if not items or not windows:
        raise AttemptFailure(
            FailureClass.BAD_KWARGS, "controls want other_questions and other_windows: the rubric of another prompt"
        )
    return questions.read(items), int(windows)


def _part(
    judge: Judge, found: Found, request: Mapping[str, Any], made: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    return {
        "tier": judge.tier,
        "method": found.method,
        "badges": list(found.badges),
        "answers": {question_id: list(row) for question_id, row in found.answers.items()},
        "details": dict(found.details),
        "pixels": None if found.pixels is None else dict(found.pixels),
        "controls": list(made),
        "calls": found.calls,
        "windows": request["windows"],
    }
