"""Drafts a rubric from a prompt by rules alone: clauses become beats, a lexicon finds camera, style and negatives.

No language model and no download; the same prompt gives the same draft. It knows no grammar, so it is a start for a
person: every draft says that it is one. Every element is a piece of the prompt. Standard library only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from screentest import subjects
from screentest.errors import BadRequest
from screentest.rubric import (
    MAX_BEATS,
    MAX_ELEMENTS,
    SCHEMA,
    STOP_WORDS,
    Beat,
    CameraMove,
    Element,
    Kind,
    Rubric,
    check,
    content_words,
    prompt_sha256,
    words,
)

# Room for one kind, so that a prompt full of style words still asks for what happens.
MOST_OF_A_KIND: Final = 3
SUBJECTS_PER_CLAUSE: Final = 2
MAX_PHRASE: Final = 160

_SENTENCE_END = re.compile(r"(?<=[.;!?])\s+|(?<=[。！？；])|[;!?]+$|\.+$")
# Words at which the next moment of a story begins. `as` only before a new actor: "as slow as", "such as" stay whole.
_NEXT_MOMENT = re.compile(
    r"[,:]?\s+(?:and\s+)?\b(?:then|finally|suddenly|afterwards)\b[,:]?\s*"
    r"|(?<!hard)(?<!smash)(?<!sudden)[,:]?\s+(?:and\s+)?(?=(?:hard\s+|smash\s+|sudden\s+)?\b(?:cutaway|cut|cuts|cutting)\s*(?::|to\b))"
    r"|,?\s+(?<!such )(?<!same )\bas\s+(?=(?:the|a|an|he|she|it|they|we)\b)",
    re.IGNORECASE,
)
_CUT = re.compile(r"^(?:hard\s+|smash\s+|sudden\s+)?\b(?:cutaway|cut|cuts|cutting)\b\s*(?::|to\b)?\s*", re.IGNORECASE)
_LEADING = re.compile(r"^(?:and|then|finally|suddenly|afterwards|but|while)\b[,:]?\s+", re.IGNORECASE)
_PHRASE = re.compile(r",\s+|\s+while\s+|:\s+")
_NEGATIVE = re.compile(r"\b(?:no|without(?:\s+any)?|free\s+of)\s+([^,.;:!?]+)", re.IGNORECASE)

# First match wins; a move that flow cannot check has none.
_CAMERA_TERMS: Final[tuple[tuple[str, CameraMove | None], ...]] = (
    (r"\b(?:static|still|fixed|locked(?:-off)?)\s+(?:camera|shot|frame)\b", "still"),
    (r"\b(?:dolly|dollies|push|pushes|zoom|zooms|track|tracks)(?:ing)?[ -](?:in|forward)\b", "zoom_in"),
    (r"\b(?:camera|lens|shot)\s+(?:\w+\s+){1,3}?(?:forward|closer|into)\b", "zoom_in"),
    (r"\b(?:dolly|dollies|pull|pulls|zoom|zooms)(?:ing)?[ -](?:out|back)\b", "zoom_out"),
    (r"\b(?:camera|lens|shot)\s+(?:\w+\s+){1,3}?(?:back|backward|backwards|away)\b", "zoom_out"),
    (r"\b(?:camera|slow|smooth)\s+pans?\b|\bpans?\s+(?:left|right|across|over)\b|\bpanning\b", "pan"),
    (r"\bcamera\s+tilts?\b|\btilts?\s+(?:up|down)\b|\btilting\s+(?:up|down)\b", "tilt"),
    (r"\bcamera\s+rolls?\b|\bbarrel\s+roll\b", "roll"),
    (
        r"\b(?:extreme\s+)?close-?up\b|\b(?:wide|aerial|drone|tracking|establishing|overhead|crane|pov)\s+shot\b",
        None,
    ),
    (r"\b(?:low|high|dutch)[ -]angle\b|\bbird'?s[ -]eye\b|\bhand-?held\b|\bslow[ -]motion\b|\btime-?lapse\b", None),
    (r"\bcamera\s+(?:glides|moves|follows|orbits|circles|rises|tracks|cranes|drifts|sweeps|flies|spins)\b", None),
)
_CAMERA: Final = tuple((re.compile(pattern, re.IGNORECASE), move) for pattern, move in _CAMERA_TERMS)

_STYLE_WORDS = """
photoreal photorealistic photorealism cinematic realistic hyperrealistic surreal anime cartoon watercolor watercolour
painterly sketch noir anamorphic grain grainy chiaroscuro low-key high-key desaturated saturated monochrome sepia
black-and-white vhs 4k 8k 16mm 35mm 70mm bokeh claymation stop-motion pixar ghibli vintage retro gothic cyberpunk
steampunk minimalist moody oppressive dreamlike nostalgic hdr render unreal style mood atmosphere aesthetic lighting
"""
STYLE_WORDS: Final = frozenset(_STYLE_WORDS.split())

# Where a noun phrase ends: no grammar is known here, so common verbs of scenes are listed.
_VERBS = """
stands stand sits sit walks walk runs run hangs hang turns turn falls fall moves move glides looks look holds hold
grips grip pulls pull pushes rises rise opens open closes close drifts drift shines shine glows glow pulses pulse folds
fold parts reveals reveal lit seen visible tighten tightens hanging repeated takes fractures sinks fills rings touch
floats float flies fly jumps jump dances dance plays play drives drive rolls roll pours pour lands land swims swim
watches watch raises raise reaches reach carries carry wears wear kisses eats eat drinks drink reads read writes bursts
explodes burns burn melts melt grows grow blooms bloom breaks break spins spin crosses cross enters enter leaves climbs
climb chases chase rides ride waves wave smiles smile shaped filling standing sitting walking running holding wearing
looking playing driving flying floating dancing riding carrying is are has have moving made covered surrounded slowly
does do can will must barefoot
"""
_PHRASE_ENDS: Final = STOP_WORDS | frozenset(_VERBS.split())
_DETERMINERS: Final = frozenset(
    ["a", "an", "the", "his", "her", "their", "its", "one", "two", "three", "four", "five", "several", "many", "some"]
)
# Nouns that point at no thing one could see.
_NO_THINGS: Final = frozenset(
    ["camera", "lens", "frame", "shot", "moment", "size", "time", "scene", "way", "only", "rhythm", "end", "air"]
)
_RELATIONS: Final = re.compile(
    r"\b(?:holds?|holding|hangs?|hanging|grips?|gripping|carr(?:y|ies|ying)|wears?|wearing|touch(?:es|ing)?|rid(?:es?|ing)|"
    r"chas(?:es?|ing)|push(?:es|ing)?|pulls?|pulling|on|under|beneath|behind|beside|above|over|inside|in|from|with|at)\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clause:
    """A piece of the prompt in which one thing happens. has_cut: the prompt asks for a cut before it."""

    text: str
    has_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """An element to be, without its id and its questions."""

    kind: Kind
    text: str
    beat: int | None = None
    weight: float = 1
    flow: CameraMove | None = None
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Thing:
    """A noun phrase of a clause: start and end are offsets in it."""

    text: str
    start: int
    end: int

    @property
    def head(self) -> str:
        return words(self.text)[-1]


def draft(prompt: str) -> Rubric:
    """A draft of at most 25 elements and 8 beats, from the words of the prompt.

    Raises BadRequest for a prompt without words.
    """
    plain = " ".join(prompt.split())
    if not words(plain):
        raise BadRequest("the prompt has no words; write what the scene shows")
    clauses = [clause for sentence in _sentences(plain) for clause in _clauses(sentence)]
    told = [clause for clause in clauses if _is_told(clause.text)]
    moments = _joined(told or [_Clause(text=_short(plain), has_cut=False)])
    beats = tuple(
        Beat(n=index + 1, label=_short(moment[0].text), cut_expected=any(clause.has_cut for clause in moment))
        for index, moment in enumerate(moments)
    )
    rubric = Rubric(
        schema=SCHEMA,
        prompt_sha256=prompt_sha256(prompt),
        source="clauses",
        beats=beats,
        elements=_elements(plain, clauses, moments),
    )
    check(rubric, "the draft")
    return rubric


# ---- pieces


def _sentences(text: str) -> Iterator[str]:
    for part in _SENTENCE_END.split(text):
        if part and (sentence := part.strip(" .;!?。！？；")):
            yield sentence


def _clauses(sentence: str) -> Iterator[_Clause]:
    for part in _NEXT_MOMENT.split(sentence):
        text = _LEADING.sub("", (part or "").strip(" ,:"))
        bare = _CUT.sub("", text).strip(" ,:")
        if content_words(bare):
            yield _Clause(text=_short(bare), has_cut=bare != text)


def _phrases(clause: str) -> Iterator[str]:
    for part in _PHRASE.split(clause):
        if phrase := _LEADING.sub("", part.strip(" ,:.")):
            yield phrase


def _is_told(clause: str) -> bool:
    """It shows something, beyond style, negatives and a bare camera term."""
    return any(_is_content(phrase) for phrase in _phrases(clause)) and not _is_style_list(clause)


def _is_content(phrase: str) -> bool:
    if _is_style(phrase) or _NEGATIVE.match(phrase):
        return False
    left = phrase
    for pattern, _ in _CAMERA:
        left = pattern.sub(" ", left)
    return bool(content_words(left) - _NO_THINGS)


def _is_style_list(clause: str) -> bool:
    phrases = list(_phrases(clause))
    return 2 * sum(_is_style(phrase) for phrase in phrases) > len(phrases)


def _is_style(phrase: str) -> bool:
    """Two words of style, or one in a phrase of three words at most: "a gothic cathedral at night" is a place."""
    said = words(phrase)
    count = sum(word in STYLE_WORDS for word in said)
    return count >= 2 or (count == 1 and len(said) <= 3 and said[0] not in _DETERMINERS)


def _joined(clauses: Sequence[_Clause]) -> tuple[tuple[_Clause, ...], ...]:
    """Neighbours together, as evenly as can be, where there are more clauses than beats."""
    count = min(len(clauses), MAX_BEATS)
    edges = [round(index * len(clauses) / count) for index in range(count + 1)]
    return tuple(tuple(clauses[start:end]) for start, end in pairwise(edges))


def _short(text: str) -> str:
    """Cut at a word."""
    if len(text) <= MAX_PHRASE:
        return text
    return text[:MAX_PHRASE].rpartition(" ")[0].rstrip(" ,:") or text[:MAX_PHRASE]


# ---- elements


def _elements(plain: str, clauses: Sequence[_Clause], moments: Sequence[Sequence[_Clause]]) -> tuple[Element, ...]:
    """Beats first, then camera, style and negatives, then as many subjects and relations as there is room for."""
    told = [(clause, index + 1) for index, moment in enumerate(moments) for clause in moment]
    chosen = _Chosen()
    for index, moment in enumerate(moments):
        chosen.add(_Found(kind="beat", text=moment[0].text, beat=index + 1))
    for found in (_camera(clauses), _style(clauses), _negatives(plain)):
        for item in _distinct(found, MOST_OF_A_KIND):
            chosen.add(item)
    spoken = Counter(word for clause in clauses for word in content_words(clause.text))
    for clause, beat in told:
        _add_things(chosen, clause.text, beat, spoken)
    return tuple(chosen.elements)


class _Chosen:
    """The elements so far: an id each, no text twice, and room for 25."""

    def __init__(self) -> None:
        self.elements: list[Element] = []
        self._texts: set[str] = set()

    def add(self, found: _Found) -> str | None:
        """The new id; None where there is no room or it is there already."""
        key = found.text.lower()
        if len(self.elements) >= MAX_ELEMENTS or (key in self._texts and found.kind != "beat"):
            return None
        self._texts.add(key)
        element = _worded(found, self._free_id(found))
        self.elements.append(element)
        return element.id

    def _free_id(self, found: _Found) -> str:
        said = [word for word in words(found.text) if word not in STOP_WORDS] or list(words(found.text))
        name = "-".join((*(("no",) if found.kind == "negative" else ()), *said[:4]))
        wanted = subjects.legal_form(name)[:56].strip("-")
        taken = {element.id for element in self.elements}
        numbered = (f"{wanted}-{number}" for number in range(2, MAX_ELEMENTS + 2))
        return next(name for name in (wanted, *numbered) if name not in taken)


def _worded(found: _Found, element_id: str) -> Element:
    question, counter = _questions(found)
    return Element(
        id=element_id,
        kind=found.kind,
        text=found.text,
        question=question,
        counter_question=counter,
        weight=found.weight,
        beat=found.beat,
        depends_on=found.depends_on,
        flow=found.flow,
    )


def _questions(found: _Found) -> tuple[str, str]:
    text = found.text
    match found.kind:
        case "subject":
            return f"Is this visible: {text}?", f"Is this absent: {text}?"
        case "style":
            return f"Does the picture look like this: {text}?", f"Does the picture look unlike this: {text}?"
        case "camera":
            return f"Does the camera do this: {text}?", f"Does the camera do anything but this: {text}?"
        case "negative":
            return f"Is any of this visible: {text}?", f"Are the frames free of this: {text}?"
        case _:
            return f"Do the frames show this: {text}?", f"Do the frames fail to show this: {text}?"


def _distinct(found: Iterable[_Found], most: int) -> Iterator[_Found]:
    seen: dict[str, _Found] = {}
    for item in found:
        seen.setdefault(item.text.lower(), item)
    yield from list(seen.values())[:most]


def _camera(clauses: Sequence[_Clause]) -> Iterator[_Found]:
    for clause in clauses:
        for phrase in _phrases(clause.text):
            for pattern, move in _CAMERA:
                if match := pattern.search(phrase):
                    yield _Found(kind="camera", text=_short(phrase[match.start() :]), flow=move)
                    break


def _style(clauses: Sequence[_Clause]) -> Iterator[_Found]:
    for clause in clauses:
        is_list = _is_style_list(clause.text)
        for phrase in _phrases(clause.text):
            if (is_list or _is_style(phrase)) and not _NEGATIVE.match(phrase) and content_words(phrase):
                yield _Found(kind="style", text=phrase, weight=0.5)


def _negatives(plain: str) -> Iterator[_Found]:
    for match in _NEGATIVE.finditer(plain):
        for part in re.split(r"\s+(?:or|and|nor)\s+(?:no\s+)?", match.group(1)):
            text = _short(part.strip())
            if content_words(text):
                yield _Found(kind="negative", text=text)


def _add_things(chosen: _Chosen, clause: str, beat: int, spoken: Counter[str]) -> None:
    """What can be seen in a clause, and how two of these stand to each other."""
    ids: list[tuple[_Thing, str | None]] = []
    for thing in list(_things(clause))[:SUBJECTS_PER_CLAUSE]:
        known = _known(chosen.elements, thing)
        # A thing that several clauses speak of is the cast.
        weight = 2 if spoken[thing.head] > 1 else 1
        ids.append((thing, known or chosen.add(_Found(kind="subject", text=thing.text, beat=beat, weight=weight))))
    for (left, left_id), (right, right_id) in pairwise(ids):
        between = clause[left.end : right.start]
        if left_id and right_id and left_id != right_id and _RELATIONS.search(between) and len(words(between)) <= 6:
            text = _short(clause[left.start : right.end])
            chosen.add(_Found(kind="relation", text=text, beat=beat, depends_on=(left_id, right_id)))


def _known(elements: Sequence[Element], thing: _Thing) -> str | None:
    """The subject of the same head word; it may then be seen in any beat of its own."""
    return next((e.id for e in elements if e.kind == "subject" and words(e.text)[-1] == thing.head), None)


def _things(clause: str) -> Iterator[_Thing]:
    """`a lone child` of "a lone child in a dress": from a determiner to the word at which a noun phrase ends."""
    tokens = list(_TOKEN.finditer(clause))
    index = 0
    while index < len(tokens):
        if tokens[index].group().lower() not in _DETERMINERS:
            index += 1
            continue
        end = index + 1
        while end < len(tokens) and end - index <= 4 and _goes_on(tokens[end].group()):
            end += 1
        if end > index + 1:
            start, stop = tokens[index].start(), tokens[end - 1].end()
            thing = _Thing(text=clause[start:stop], start=start, end=stop)
            if thing.head not in _NO_THINGS:
                yield thing
        index = end


def _goes_on(token: str) -> bool:
    return token[0].isalnum() and token.lower() not in _PHRASE_ENDS
