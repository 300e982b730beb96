"""A rubric as two tables that a person edits in place, and what is wrong with it, by element. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from screentest import rubric
from screentest.drafting import draft
from screentest.errors import BadRequest
from screentest.rubric import SCHEMA, WEIGHTS, Beat, CameraMove, Element, Kind, Rubric

Row = dict[str, Any]

KINDS: tuple[str, ...] = get_args(Kind)
MOVES: tuple[str, ...] = get_args(CameraMove)
WEIGHT_CHOICES = tuple(f"{weight:g}" for weight in WEIGHTS)
SOURCE = "rubric"  # names it in the messages of the checks; taken off again for the page

_ELEMENT = re.compile(r"^elements\[(\d+)\](?: \([^)]*\))?\.?(\w+)?")
_PREFIX = f"{SOURCE}: "


def drafted(prompt: str) -> Rubric | None:
    """The draft of a prompt; None where nothing can be drafted from it."""
    try:
        return draft(prompt)
    except BadRequest:
        return None


def element_rows(asked: Rubric) -> list[Row]:
    """One line per element; what is absent is an empty cell."""
    return [_element_row(element) for element in asked.elements]


def beat_rows(asked: Rubric) -> list[Row]:
    return [{"n": beat.n, "label": beat.label, "cut_expected": beat.cut_expected} for beat in asked.beats]


def from_rows(before: Rubric, elements: Iterable[Mapping[str, Any]], beats: Iterable[Mapping[str, Any]]) -> Rubric:
    """The rubric as the tables stand, unchecked; an untouched one keeps its source and its approval.

    A row that a person has just added is empty: it becomes an element with empty texts, which ``problems`` names.
    """
    edited = replace(
        before,
        schema=SCHEMA,
        elements=tuple(_element(row) for row in elements if _has_content(row)),
        beats=tuple(_beat(row, number) for number, row in enumerate(_filled(beats), start=1)),
    )
    return before if edited == before else replace(edited, source="author")


def problems(asked: Rubric) -> tuple[tuple[str, str], ...]:
    """Every element that breaks a rule with the rule, as (place, words); empty = the rubric can be used.

    ``check`` stops at the first broken rule: each element found wrong is set aside and the others are asked again.
    """
    found: list[tuple[str, str]] = []
    while asked.elements or not found:
        wrong = _first_problem(asked)
        if wrong is None:
            return tuple(found)
        index, field, words = wrong
        if index is None:
            return tuple(found) or ((field, words),)
        found.append((_place(asked.elements[index], field), words))
        asked = _without(asked, index)
    return tuple(found)


def approval_problem(asked: Rubric) -> str:
    """What keeps a right rubric from being approved: too few or too many elements; "" = nothing."""
    try:
        rubric.approve(asked, "somebody", SOURCE)
    except BadRequest as error:
        return str(error).removeprefix(_PREFIX)
    return ""


def summary(asked: Rubric) -> str:
    """``12 elements, 4 beats, draft``."""
    state = f"approved by {asked.approved_by}" if asked.approved_by else "draft"
    if asked.is_draft and asked.approved is not None:
        state = f"draft: edited since {asked.approved.by} approved it"
    return f"{_counted(len(asked.elements), 'element')}, {_counted(len(asked.beats), 'beat')}, {state}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- rows


def _element_row(element: Element) -> Row:
    return {
        "id": element.id,
        "kind": element.kind,
        "text": element.text,
        "weight": f"{element.weight:g}",
        "beat": element.beat,
        "question": element.question,
        "counter_question": element.counter_question,
        "depends_on": ", ".join(element.depends_on),
        "swaps": "; ".join(element.swaps),
        "flow": element.flow,
    }


def _element(row: Mapping[str, Any]) -> Element:
    weight = float(_text(row, "weight") or 1)
    flow = _text(row, "flow")
    return Element(
        id=_text(row, "id"),
        kind=cast("Kind", _text(row, "kind") or "subject"),
        text=_text(row, "text"),
        question=_text(row, "question"),
        counter_question=_text(row, "counter_question"),
        weight=int(weight) if weight == int(weight) else weight,
        beat=_number(row, "beat"),
        depends_on=_listed(_text(row, "depends_on"), ","),
        swaps=_listed(_text(row, "swaps"), ";"),
        flow=cast("CameraMove | None", flow or None),
    )


def _beat(row: Mapping[str, Any], number: int) -> Beat:
    """Beats count from 1 in the order of their rows: a person moves and deletes rows, never numbers."""
    return Beat(n=number, label=_text(row, "label"), cut_expected=row.get("cut_expected") is True)


def _filled(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if _has_content(row)]


def _has_content(row: Mapping[str, Any]) -> bool:
    return any(_text(row, name) for name in ("id", "text", "question", "label"))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _number(row: Mapping[str, Any], name: str) -> int | None:
    """None for an empty cell, which the table gives as NaN."""
    value = row.get(name)
    return int(value) if isinstance(value, int | float) and value == value else None


def _listed(text: str, mark: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())


# ---- rules


def _first_problem(asked: Rubric) -> tuple[int | None, str, str] | None:
    """(index of the element or None, field, words)."""
    try:
        rubric.check(asked, SOURCE)
    except BadRequest as error:
        where, _, words = str(error).removeprefix(_PREFIX).partition(": ")
        found = _ELEMENT.match(where)
        return (int(found[1]), found[2] or "", words) if found else (None, where, words)
    return None


def _place(element: Element, field: str) -> str:
    name = element.id or element.text or "the new element"
    return f"{name}, {field.replace('_', ' ')}" if field else name


def _without(asked: Rubric, index: int) -> Rubric:
    gone = asked.elements[index].id
    kept = [element for place, element in enumerate(asked.elements) if place != index]
    return replace(asked, elements=tuple(_forgetting(kept, gone)))


def _forgetting(elements: Sequence[Element], gone: str) -> Iterable[Element]:
    for element in elements:
        yield replace(element, depends_on=tuple(parent for parent in element.depends_on if parent != gone))
