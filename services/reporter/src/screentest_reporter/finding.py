"""The one line about a row of the model table, composed from facts. Pure.

It is the original: an edit by a person is kept beside it, never instead of it. Templates: scoring note 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from screentest.rubric import WHOLE_CLIP_KINDS, Element, Rubric
from screentest_reporter import wording
from screentest_reporter.scoring import SEEN, BeatScore, Parts, Score

NAMED = 3
FEW, MANY, ENOUGH = 0.3, 0.7, 0.5
LITTLE_STORY, IN_ORDER = 0.4, 0.75
# Two of four beats turned round give 0.75 and a little: worth naming, though not the whole verdict.
NEARLY_IN_ORDER = 0.9

_DEAD: Final = {
    "black": "Valid MP4, but effectively black and missing all prompt elements",
    "flat": "Valid MP4, but one flat tone and missing all prompt elements",
    "noise": "Valid MP4, but noise: decoder or dtype failure likely",
    "no-frames": "No frames: the file holds none",
}
# The first that a clip has is said.
_MOTION: Final = {
    "frozen": "static",
    "static-with-grain": "static but for grain",
    "near-static": "nearly static",
    "dissolve": "dissolves without motion",
    "freezes-midway": "freezes midway",
}
_STATIC: Final = frozenset({"frozen", "static-with-grain", "near-static"})


def line(rubric: Rubric, score: Score, decode_error: str = "") -> str:
    """One line without a full stop. decode_error: what the decoder said of a clip that it cannot read."""
    if decode_error:
        return f"No frames: {decode_error}"
    if dead := next((text for flag, text in _DEAD.items() if flag in score.flags), None):
        return dead
    parts = score.parts
    if parts is None:
        return _unjudged(score)
    return _mood_only(rubric, score, parts) or _no_story(parts) or _out_of_order(parts) or _listed(rubric, score, parts)


def _unjudged(score: Score) -> str:
    motion = _motion(score.flags)
    validity = f"Valid MP4, {motion}" if motion else "Valid MP4"
    if score.not_scored:
        return f"{validity}; not scored: {score.not_scored}"
    return f"{validity}; rated by people only"


def _motion(flags: Sequence[str]) -> str:
    return next((text for flag, text in _MOTION.items() if flag in flags), "")


def _mood_only(rubric: Rubric, score: Score, parts: Parts) -> str:
    """Style there, subjects not, nothing moves and nothing happens."""
    styles = [(p, e) for e, p in _presences(rubric, parts) if e.kind == "style"]
    subjects = [(float(e.weight), p) for e, p in _presences(rubric, parts) if e.kind == "subject"]
    best = max(styles, key=lambda item: item[0], default=None)
    if best is None or best[0] < ENOUGH or not subjects or not _STATIC & set(score.flags):
        return ""
    mean = sum(weight * p for weight, p in subjects) / sum(weight for weight, _ in subjects)
    if mean >= FEW or (parts.story or 0.0) >= FEW:
        return ""
    return f"{_capital(best[1].label)} match, but static and missing narrative beats"


def _no_story(parts: Parts) -> str:
    if parts.presence is None or parts.presence < MANY or parts.story is None or parts.story >= LITTLE_STORY:
        return ""
    absent = [beat.n for beat in parts.beats if beat.best is not None and beat.best < SEEN]
    if parts.order is not None or not absent:
        return ""
    verb = "appears" if len(absent) == 1 else "appear"
    return f"Right cast and place; no story: {_numbers(absent)} never {verb}"


def _out_of_order(parts: Parts) -> str:
    """Also for a story that scores low because it runs backwards."""
    if parts.presence is None or parts.presence < MANY:
        return ""
    turned = _turned_text(parts, IN_ORDER)
    seen = "All beats present" if all((beat.best or 0.0) >= SEEN for beat in parts.beats) else "Beats present"
    return f"{seen}, but {turned}" if turned else ""


def _turned_text(parts: Parts, below: float) -> str:
    """`out of order (2 before 1)`; empty where the order is not below the limit, or unknown."""
    if parts.order is None or parts.order >= below:
        return ""
    turned = [f"{later.n} before {earlier.n}" for earlier, later in _turned(parts.beats)[:2]]
    return f"out of order ({', '.join(turned)})" if turned else ""


def _turned(beats: Sequence[BeatScore]) -> list[tuple[BeatScore, BeatScore]]:
    """Seen beats whose best windows stand the wrong way round, neighbours of the story first."""
    seen = [beat for beat in beats if beat.best is not None and beat.best >= SEEN]
    pairs = [(earlier, later) for earlier in seen for later in seen if later.n > earlier.n]
    wrong = [(earlier, later) for earlier, later in pairs if (later.best_window or 0) < (earlier.best_window or 0)]
    return sorted(wrong, key=lambda pair: pair[1].n - pair[0].n)


def _listed(rubric: Rubric, score: Score, parts: Parts) -> str:
    """`Valid MP4, A and B present, static; C missing`."""
    present = sorted(((e, p) for e, p in _wanted(rubric, parts) if p >= ENOUGH), key=_by_presence)
    named = [e.label for e, _ in present[:NAMED]]
    first = f"{wording.listing(named)} present" if named else ""
    validity = ", ".join(filter(None, ("Valid MP4", first, _motion(score.flags))))
    faults = [text for text in _faults(rubric, parts) if text]
    return "; ".join((validity, *(faults or ["nothing missing"])))


def _faults(rubric: Rubric, parts: Parts) -> tuple[str, ...]:
    """What is wrong, each a phrase, empty where nothing is."""
    missing = _missing(rubric, parts)
    unwanted = [e.label for e, p in _presences(rubric, parts) if e.kind == "negative" and p >= ENOUGH]
    unjudged = sum(element.presence is None for element in parts.elements)
    return (
        f"{wording.listing(missing)} missing" if missing else "",
        _turned_text(parts, NEARLY_IN_ORDER),
        f"unwanted: {wording.listing(unwanted)}" if unwanted else "",
        f"{wording.count(unjudged, 'element')} not judged" if unjudged else "",
    )


def _by_presence(item: tuple[Element, float]) -> float:
    return -float(item[0].weight) * item[1]


def _missing(rubric: Rubric, parts: Parts) -> list[str]:
    """The heaviest first, by weight x (1 - P). What lacks with its parent is told by its parent."""
    orphans = {element.element_id for element in parts.elements if element.failed_parent}
    absent = [(e, p) for e, p in _wanted(rubric, parts) if p < ENOUGH and e.id not in orphans]
    return [e.label for e, _ in sorted(absent, key=_by_absence)[:NAMED]]


def _by_absence(item: tuple[Element, float]) -> float:
    return -float(item[0].weight) * (1 - item[1])


def _wanted(rubric: Rubric, parts: Parts) -> list[tuple[Element, float]]:
    """The judged elements that must be seen."""
    return [(e, p) for e, p in _presences(rubric, parts) if e.kind not in WHOLE_CLIP_KINDS]


def _presences(rubric: Rubric, parts: Parts) -> list[tuple[Element, float]]:
    """The judged ones: what was not judged is neither present nor missing."""
    judged = {element.element_id: element.presence for element in parts.elements}
    return [(e, presence) for e in rubric.elements if (presence := judged[e.id]) is not None]


def _numbers(beats: Sequence[int]) -> str:
    """`beat 2`, `beats 3-4`, `beats 1 and 3`."""
    if len(beats) == 1:
        return f"beat {beats[0]}"
    if beats[-1] - beats[0] == len(beats) - 1:
        return f"beats {beats[0]}-{beats[-1]}"
    return f"beats {wording.listing([str(n) for n in beats])}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
