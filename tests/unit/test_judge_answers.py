"""P(yes) of a first word, which windows are asked what, and the clips that controls are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from screentest_reporter.controls import Control as ControlName
from screentest_runner.failures import AttemptFailure
from screentest_runner.judging import answers, controls, endpoint, media, questions
from screentest_runner.judging.answers import Answer, Mass, mass_of
from screentest_runner.judging.found import Found
from screentest_runner.judging.media import Media, Window
from screentest_runner.judging.questions import Question

WINDOWS = 4


def made_clip(frames: int = 16, *, is_image: bool = False) -> Media:
    """Frame i is filled with i + 1."""
    pictures = np.repeat(np.arange(1, frames + 1, dtype=np.uint8), 4 * 4 * 3).reshape(frames, 4, 4, 3)
    return Media(
        frames=pictures,
        times_s=np.arange(frames) / 8,
        details=np.zeros((frames, 4, 4), np.uint8),
        first=pictures[0],
        last=pictures[-1],
        frames_decoded=frames,
        frames_announced=frames,
        stride=1,
        width_px=4,
        height_px=4,
        fps=8.0,
        duration_s=frames / 8,
        is_image=is_image,
    )


def asked(name: str, kind: str = "subject", *, beat: int | None = None, whole_clip: bool = False) -> Question:
    return Question(
        id=name,
        kind=kind,
        text=name,
        question=f"{name}?",
        counter_question=f"no {name}?",
        beat=beat,
        whole_clip=whole_clip,
    )


class Scripted:
    """A judge that says p of an element in whatever window, and remembers how many frames it saw."""

    def __init__(self, p: dict[str, float]) -> None:
        self._p = p
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def __call__(self, window: Window, texts: Sequence[str]) -> list[Mass]:
        self.seen.append((len(window.frames), tuple(texts)))
        return [self._mass(text) for text in texts]

    def _mass(self, text: str) -> Mass:
        p = self._p[text.removeprefix("no ").rstrip("?")]
        yes = 1 - p if text.startswith("no ") else p
        return Mass(yes=yes, no=1 - yes)


def answered(
    judge: Scripted, wanted: Sequence[Question], mode: answers.Mode = "full", clip: Media | None = None
) -> Found:
    return answers.answer_all(
        judge,
        clip or made_clip(),
        wanted,
        WINDOWS,
        mode=mode,
        method="logprobs",
        progress=lambda done, of: None,
        cancelled=Event(),
    )


# ---- one word


def test_every_spelling_counts() -> None:
    mass = mass_of([("Yes", 0.3), (" yes", 0.2), ("YES", 0.1), ("ĠNo", 0.2), ("▁no", 0.1), ("Yesterday", 0.1)])
    assert (mass.yes, mass.no) == pytest.approx((0.6, 0.3))
    assert mass.p == pytest.approx(2 / 3)


def test_less_than_half_on_yes_and_no_is_no_answer() -> None:
    assert mass_of([("<think>", 0.6), ("Yes", 0.4)]).p is None
    assert mass_of([("Yes", 0.5), ("The", 0.5)]).p == 1.0


def test_probability_that_overflowed_at_the_server_is_no_answer() -> None:
    def top(logprob: float) -> dict[str, object]:
        return {"logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": logprob}]}]}}

    assert endpoint._top_of(top(0.0)) == [("Yes", 1.0)]
    assert endpoint._top_of(top(float("nan"))) is None


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-one two", "sk-\u201cone\u201d", "sk-\x00"])
def test_key_that_no_header_can_carry_is_refused_without_being_told(tmp_path: Path, key: str) -> None:
    """h11 puts the value of an illegal header into its message, and the cause of a failure goes into the report."""
    file = tmp_path / "key"
    file.write_text(key + "\n", encoding="utf-8")
    with pytest.raises(AttemptFailure, match="SCREENTEST_JUDGE_KEY_FILE") as refused:
        endpoint._key_header(str(file))
    assert "sk-" not in str(refused.value)
    file.write_text("sk-one\n", encoding="utf-8")
    assert endpoint._key_header(str(file)) == {"Authorization": "Bearer sk-one"}


def test_judge_that_says_yes_to_both_says_nothing() -> None:
    answer = Answer(straight=1.0, counter=1.0)
    assert (answer.p, answer.inconsistency) == (0.5, 1.0)


def test_answer_wants_both_phrasings() -> None:
    assert Answer(straight=0.9, counter=None).p is None
    assert Answer(straight=None, counter=0.1).inconsistency is None


# ---- what is asked


def test_full_mode_asks_every_window_and_the_whole_clip_once() -> None:
    judge = Scripted({"child": 0.8, "watermark": 0.05})
    found = answered(judge, [asked("child", beat=1), asked("watermark", "negative", whole_clip=True)])
    assert found.answers == {"child": [0.8] * WINDOWS, "watermark": [0.05]}
    assert [frames for frames, _ in judge.seen] == [8, 4, 4, 4, 4]
    assert found.calls == 2 * (1 + WINDOWS)


def test_cheap_mode_leaves_to_windows_what_the_clip_left_open() -> None:
    judge = Scripted({"sure": 0.95, "absent": 0.02, "open": 0.5, "beat": 0.99})
    wanted = [asked("sure"), asked("absent"), asked("open"), asked("beat", beat=2)]
    found = answered(judge, wanted, "cheap")
    assert found.calls == 2 * 3 + 2 * 2 * WINDOWS
    assert {key: len(row) for key, row in found.answers.items()} == dict.fromkeys(found.answers, WINDOWS)
    assert [found.details[question.id]["asked"] for question in wanted] == ["clip", "clip", "windows", "windows"]


def test_picture_is_one_frame_without_camera() -> None:
    judge = Scripted({"child": 0.8, "dolly": 0.9})
    wanted = [asked("child"), asked("dolly", "camera", whole_clip=True)]
    found = answered(judge, wanted, clip=made_clip(1, is_image=True))
    assert set(found.answers) == {"child"}
    assert {frames for frames, _ in judge.seen} == {1}


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(AttemptFailure, match=r"settings\.mode is 'fast'; legal are 'cheap' and 'full'"):
        answers.mode_of({"settings": {"mode": "fast"}})


def test_question_with_an_unknown_key_is_named() -> None:
    with pytest.raises(AttemptFailure, match="question 'child': unknown key 'weight'"):
        questions.read([{"id": "child", "weight": 2}])
    with pytest.raises(AttemptFailure, match=r"question 'child': .*counter_question"):
        questions.read([{"id": "child", "kind": "subject", "text": "child", "question": "child?"}])


# ---- controls


def made(windows: int = WINDOWS, frames: int = 16) -> dict[str, list[int]]:
    """What each frame of each control shows."""
    found = controls.made_of(made_clip(frames), windows)
    return {control.name: [int(frame[0, 0, 0]) for frame in control.clip.frames] for control in found}


def test_controls_are_those_of_the_reporter() -> None:
    assert set(controls.NAMES) == {control.value for control in ControlName}
    assert set(made()) == set(controls.NAMES)


def test_windows_are_reversed_and_frames_within_them_are_not() -> None:
    shuffled = made()["frame-shuffled"]
    assert shuffled == [13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4]


def test_reversed_windows_show_what_the_windows_showed_also_where_frames_do_not_divide() -> None:
    clip = made_clip(17)
    (shuffled,) = (control.clip for control in controls.made_of(clip, 5) if control.name == "frame-shuffled")
    before = [set(window.frames[:, 0, 0, 0].tolist()) for window in media.windows(clip, 5, 2)]
    after = [set(window.frames[:, 0, 0, 0].tolist()) for window in media.windows(shuffled, 5, 2)]
    distances = [min(abs(p - q) for p in one for q in other) for one, other in zip(before, after[::-1], strict=True)]
    assert max(distances) <= 1


def test_other_controls_show_what_they_say() -> None:
    found = made()
    assert found["black"] == [0] * 16
    assert found["static-first-frame"] == [1] * 16
    assert found["repeat"] == found["wrong-prompt"] == list(range(1, 17))


def test_only_one_control_asks_other_questions() -> None:
    asking = [control.name for control in controls.made_of(made_clip(), WINDOWS) if control.asks_other]
    assert asking == ["wrong-prompt"]
