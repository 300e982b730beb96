"""Rubrics, schema `rubric/1`: what a prompt asks for, as atomic yes/no elements, some of them grouped in ordered beats.

A rubric is JSON, read strictly. It knows its prompt by hash only, and every score carries the rubric's own hash:
scores of two rubrics are never mixed. An approval is of one content; an edit makes a draft of it again. Standard
library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Literal, cast

from screentest import subjects
from screentest.errors import BadRequest
from screentest.strict import read_table, require

SCHEMA: Final = "rubric/1"

Kind = Literal["subject", "attribute", "relation", "beat", "camera", "style", "negative"]
Source = Literal["author", "llm", "clauses"]
CameraMove = Literal["zoom_in", "zoom_out", "pan", "tilt", "roll", "still"]
Number = int | float

# Fewer elements make a coarse score; more of them cost calls (elements x windows x 2) and repeat each other.
MIN_ELEMENTS, MAX_ELEMENTS = 8, 25
# A judge looks at 16 windows at most, and a beat needs two of them (`window_count`).
MAX_BEATS = 8
WEIGHTS: Final = (0.5, 1, 2)
MAX_TEXT = 240

# Judged on the whole clip: what a camera does has no window, and what must not appear must not appear anywhere.
WHOLE_CLIP_KINDS: Final[frozenset[Kind]] = frozenset({"camera", "negative"})

# Words too common to say what an element is about.
_STOP_WORDS = """
a an the and or of in on at to from into with without over under by for as is are was were be been it its he she his her
him they them their that this these those then than but not no nor so one two while when before after until through
toward towards past up down out off very more most like there here where which who whose what
"""
STOP_WORDS: Final = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One thing to look for, answered yes or no.

    question: yes = it is there; of a negative: yes = the unwanted thing is there. counter_question asks for the
    opposite. beat: `n` of the beat in which it must be seen; None = anywhere. depends_on: ids of elements without
    which this one cannot be there. swaps: texts that a judge must find less than `text`. flow: the move that optical
    flow can check.
    """

    id: str
    kind: Kind
    text: str
    question: str
    counter_question: str
    weight: Number = 1
    beat: int | None = None
    depends_on: tuple[str, ...] = ()
    swaps: tuple[str, ...] = ()
    flow: CameraMove | None = None

    @property
    def label(self) -> str:
        """Its id as words, for a line of text: `cyborg-brain` is `cyborg brain`."""
        return self.id.replace("-", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One moment of the story; n counts from 1 in story order. cut_expected: the prompt asks for a cut before it."""

    n: int
    label: str
    cut_expected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Who read the rubric and stands for it; sha256 is the hash of what they read."""

    by: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """prompt_sha256: see the function of that name. source: who wrote the elements. approved: None = never approved."""

    schema: str
    prompt_sha256: str
    source: Source
    elements: tuple[Element, ...]
    beats: tuple[Beat, ...] = ()
    approved: Approval | None = None

    @property
    def sha256(self) -> str:
        """64 hex of the canonical JSON of what is asked. Who wrote or approved it changes no answer and is left out."""
        asked = _content(replace(self, source="author", approved=None))
        canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def approved_by(self) -> str | None:
        """None for a draft, also for one that was edited after its approval."""
        return self.approved.by if self.approved is not None and self.approved.sha256 == self.sha256 else None

    @property
    def is_draft(self) -> bool:
        return self.approved_by is None

    @property
    def window_count(self) -> int:
        """Windows into which a judge cuts a clip. Source: two per beat, at least 8, at most 16."""
        return min(max(2 * len(self.beats), 8), 16)

    def is_for(self, prompt: str) -> bool:
        return self.prompt_sha256 == prompt_sha256(prompt)

    def parents_first(self) -> tuple[Element, ...]:
        """The elements in an order in which no element comes before one that it depends on."""
        by_id = {element.id: element for element in self.elements}
        return tuple(by_id[element_id] for element_id in _sorted_ids(self.elements))


def prompt_sha256(prompt: str) -> str:
    """64 hex of the UTF-8 prompt with runs of white space as one blank: a sweep file may wrap or indent its lines."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()


def words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def content_words(text: str) -> frozenset[str]:
    """The words that say what a text is about."""
    return frozenset(word for word in words(text) if word not in STOP_WORDS)


def strangers(rubric: Rubric, prompt: str) -> tuple[str, ...]:
    """Ids of elements whose text shares no content word with the prompt: what nobody asked for."""
    asked = content_words(prompt)
    return tuple(element.id for element in rubric.elements if not content_words(element.text) & asked)


# ---- JSON


def from_json(text: str, source: str) -> Rubric:
    """A checked rubric. `source` names the file in errors; raises BadRequest that names the field and what is legal."""
    try:
        table = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except ValueError as error:
        raise BadRequest(f"{source} is no JSON: {error}") from error
    rubric = cast("Rubric", read_table(Rubric, table, source, ""))
    check(rubric, source)
    return rubric


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json keeps the last of two equal keys; a hand-written file that has two is a mistake."""
    doubles = _doubles(key for key, _ in pairs)
    if doubles:
        raise ValueError(f"the key {doubles[0]!r} is there twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def to_json(rubric: Rubric) -> str:
    """As it is written to a file; what is absent is left out. `from_json` reads the same rubric back."""
    return json.dumps(_content(rubric), indent=2, ensure_ascii=False) + "\n"


def _content(rubric: Rubric) -> dict[str, Any]:
    return {
        "schema": rubric.schema,
        "prompt_sha256": rubric.prompt_sha256,
        "source": rubric.source,
        **({"approved": {"by": rubric.approved.by, "sha256": rubric.approved.sha256}} if rubric.approved else {}),
        "beats": [_beat_content(beat) for beat in rubric.beats],
        "elements": [_element_content(element) for element in rubric.elements],
    }


def _beat_content(beat: Beat) -> dict[str, Any]:
    return {"n": beat.n, "label": beat.label, **({"cut_expected": True} if beat.cut_expected else {})}


def _element_content(element: Element) -> dict[str, Any]:
    given: Mapping[str, Any] = {
        "id": element.id,
        "kind": element.kind,
        "text": element.text,
        # 2 and 2.0 are the same weight and must give the same hash.
        "weight": int(element.weight) if element.weight == int(element.weight) else element.weight,
        "beat": element.beat,
        "depends_on": list(element.depends_on) or None,
        "question": element.question,
        "counter_question": element.counter_question,
        "swaps": list(element.swaps) or None,
        "flow": element.flow,
    }
    return {key: value for key, value in given.items() if value is not None}


# ---- approval


def approve(rubric: Rubric, by: str, source: str) -> Rubric:
    """The rubric with `by` standing for it as it is now. Raises BadRequest where it is not fit to score with."""
    name = " ".join(by.split())
    require(bool(name), source, "approved.by", "is empty; say who read the rubric and stands for it")
    approved = replace(rubric, approved=Approval(by=name, sha256=rubric.sha256))
    check(approved, source)
    return approved


# ---- rules


def check(rubric: Rubric, source: str) -> None:
    """Raises BadRequest, naming the field, at the first rule that is broken. A draft may have few or many elements."""
    require(rubric.schema == SCHEMA, source, "schema", f"{rubric.schema!r} is not known here; legal is {SCHEMA!r}")
    _check_prompt(rubric.prompt_sha256, source)
    _check_count(rubric, source)
    _check_beats(rubric.beats, source)
    _check_unique(rubric.elements, source)
    for index, element in enumerate(rubric.elements):
        _check_element(element, rubric, source, f"elements[{index}]")
    _check_acyclic(rubric.elements, source)
    _check_seen(rubric, source)


def _check_prompt(sha256: str, source: str) -> None:
    is_hash = re.fullmatch(r"[0-9a-f]{64}", sha256) is not None
    require(is_hash, source, "prompt_sha256", f"wants 64 hex digits, got {sha256!r}")
    rule = "is that of an empty prompt; draft the rubric from the prompt of the sweep"
    require(sha256 != prompt_sha256(""), source, "prompt_sha256", rule)


def _check_count(rubric: Rubric, source: str) -> None:
    count = len(rubric.elements)
    require(count > 0, source, "elements", "is empty; a rubric asks for something")
    rule = f"has {count}, an approved rubric has {MIN_ELEMENTS} to {MAX_ELEMENTS}"
    require(rubric.is_draft or MIN_ELEMENTS <= count <= MAX_ELEMENTS, source, "elements", rule)


def _check_beats(beats: tuple[Beat, ...], source: str) -> None:
    rule = f"has {len(beats)}, at most {MAX_BEATS} fit into the windows of a clip; join the ones that belong together"
    require(len(beats) <= MAX_BEATS, source, "beats", rule)
    for index, beat in enumerate(beats):
        require(beat.n == index + 1, source, f"beats[{index}].n", f"is {beat.n}; beats count 1, 2, 3 in story order")
        _check_text(beat.label, source, f"beats[{index}].label")


def _check_unique(elements: tuple[Element, ...], source: str) -> None:
    doubles = _doubles(element.id for element in elements)
    require(not doubles, source, "elements", f"two have the id {doubles[0]!r}" if doubles else "")


def _check_element(element: Element, rubric: Rubric, source: str, where: str) -> None:
    rule = (
        f"{element.id!r} is not legal: use 1 to 63 of a-z, 0-9 and -, for example {subjects.legal_form(element.id)!r}"
    )
    require(subjects.is_legal(element.id), source, f"{where}.id", rule)
    where = f"{where} ({element.id})"
    _check_text(element.text, source, f"{where}.text")
    _check_text(element.question, source, f"{where}.question")
    _check_text(element.counter_question, source, f"{where}.counter_question")
    is_same = element.question.strip() == element.counter_question.strip()
    require(not is_same, source, f"{where}.counter_question", "is the question itself; ask for the opposite")
    require(element.weight in WEIGHTS, source, f"{where}.weight", f"{element.weight!r} is none of 0.5, 1, 2")
    _check_place(element, len(rubric.beats), source, where)
    _check_parents(element, rubric.elements, source, where)
    _check_swaps(element, source, where)
    is_legal_flow = element.flow is None or element.kind == "camera"
    require(is_legal_flow, source, f"{where}.flow", f"is for camera elements, not for a {element.kind}")


def _check_place(element: Element, beats: int, source: str, where: str) -> None:
    if element.beat is None:
        require(element.kind != "beat", source, f"{where}.beat", "is missing; an element of kind beat says which one")
        return
    known = f"is {element.beat}; " + (f"the rubric has beats 1 to {beats}" if beats else "the rubric has no beats")
    require(1 <= element.beat <= beats, source, f"{where}.beat", known)
    rule = f"is for what happens at a moment; a {element.kind} element is judged on the whole clip"
    require(element.kind not in WHOLE_CLIP_KINDS, source, f"{where}.beat", rule)


def _check_parents(element: Element, elements: tuple[Element, ...], source: str, where: str) -> None:
    kinds = {other.id: other.kind for other in elements}
    require(not _doubles(element.depends_on), source, f"{where}.depends_on", "names an element twice")
    for parent in element.depends_on:
        require(parent in kinds, source, f"{where}.depends_on", f"{parent!r} is no element of this rubric")
        rule = f"{parent!r} is a {kinds.get(parent)}; nothing depends on what the camera does or what must not be there"
        require(kinds[parent] not in WHOLE_CLIP_KINDS, source, f"{where}.depends_on", rule)


def _check_swaps(element: Element, source: str, where: str) -> None:
    for index, swap in enumerate(element.swaps):
        _check_text(swap, source, f"{where}.swaps[{index}]")
        is_other = swap.strip().lower() != element.text.strip().lower()
        require(is_other, source, f"{where}.swaps[{index}]", "is the element itself; name what is not asked for")
    require(not _doubles(element.swaps), source, f"{where}.swaps", "has a text twice")


def _check_acyclic(elements: tuple[Element, ...], source: str) -> None:
    try:
        _sorted_ids(elements)
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise BadRequest(f"{source}: depends_on: goes in a circle: {circle}; take one of these out") from error


def _check_seen(rubric: Rubric, source: str) -> None:
    """A beat without elements could never be seen, and a rubric of camera moves alone says nothing of a picture."""
    used = {element.beat for element in rubric.elements}
    for index, beat in enumerate(rubric.beats):
        require(beat.n in used, source, f"beats[{index}]", f"no element has the beat {beat.n}; add one or take it out")
    is_seen = any(element.kind not in WHOLE_CLIP_KINDS for element in rubric.elements)
    require(is_seen, source, "elements", "are camera and negative only; add what must be seen")


def _check_text(text: str, source: str, where: str) -> None:
    require(bool(text.strip()), source, where, "is empty")
    require(len(text) <= MAX_TEXT, source, where, f"has {len(text)} characters, at most {MAX_TEXT} make one question")


def _sorted_ids(elements: Iterable[Element]) -> tuple[str, ...]:
    """Raises CycleError."""
    return tuple(TopologicalSorter({element.id: element.depends_on for element in elements}).static_order())


def _doubles(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(_repeated(items))


def _repeated(items: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for item in items:
        if item in seen:
            yield item
        seen.add(item)
