"""What a judge is asked about a clip: the elements of a rubric, as the supervisor sends them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass

CAMERA: Final = "camera"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One element, to be answered yes or no.

    text: what should be seen. question: yes = it is there; counter_question asks for the opposite. swaps: texts that
    must be found less than `text`. whole_clip: asked once on the whole clip and not per window. beat: in which moment
    of the story it belongs, None = anywhere.
    """

    id: str
    kind: str
    text: str
    question: str
    counter_question: str
    swaps: tuple[str, ...] = ()
    whole_clip: bool = False
    beat: int | None = None


def read(items: Iterable[Mapping[str, Any]]) -> tuple[Question, ...]:
    """Questions of plain objects. Raises AttemptFailure(bad_kwargs) that names the element and the key."""
    return tuple(_one(dict(item)) for item in items)


def _one(item: dict[str, Any]) -> Question:
    known = {field.name for field in fields(Question)}
    where = f"question {item.get('id')!r}"
    if unknown := sorted(item.keys() - known):
        raise _refused(f"{where}: unknown key {unknown[0]!r}; it has {', '.join(sorted(known))}")
    try:
        return Question(**{**item, "swaps": tuple(item.get("swaps", ()))})
    except TypeError as error:  # a required key is missing
        raise _refused(f"{where}: {error}") from error


def _refused(message: str) -> AttemptFailure:
    return AttemptFailure(FailureClass.BAD_KWARGS, message)
