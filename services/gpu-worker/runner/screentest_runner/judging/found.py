"""What every judge gives back, and how it tells that it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, Literal

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass

Method = Literal["pixels", "embedding", "logprobs", "sampled"]
# By element id, P(yes) in 0..1 per window, one for the whole clip where the question says so; None = no valid answer.
Answers = Mapping[str, list[float | None]]
# done, of how many: what is counted is the judge's own affair.
Progress = Callable[[int, int], None]

# On everything that a judge says whose checkpoint or server calls itself one. Such a judge knows a toy world.
TEST_JUDGE: Final = "test judge"
DIGITS: Final = 4  # of an answer: the next ones differ between machines


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """answers: see Answers; an element that the judge must not answer is not there. details: by element id, what its
    answers were made of. calls: how often the model was asked. badges: what a reader must know. pixels: what tier a
    measured, None from any other judge.
    """

    method: Method
    answers: Answers
    details: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0
    badges: tuple[str, ...] = ()
    pixels: Mapping[str, Any] | None = None


def check_cancelled(cancelled: Event) -> None:
    """Raises AttemptFailure(cancelled)."""
    if cancelled.is_set():
        raise AttemptFailure(FailureClass.CANCELLED, "cancelled while judging")


def rounded(p: float | None) -> float | None:
    return None if p is None else round(min(1.0, max(0.0, p)), DIGITS)
