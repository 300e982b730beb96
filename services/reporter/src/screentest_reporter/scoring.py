"""The score of a clip, 0 to 10, from a rubric, what judges answered and what the pixels say. Pure.

A judge says how likely each element is in each window; order, sums, caps and the interval are made here. What did not
run is None and never 0: only pixels alone can prove a 0. Formulas: scoring note 1.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from screentest.rubric import WHOLE_CLIP_KINDS, CameraMove, Element, Kind, Rubric
from screentest_reporter import answer_noise
from screentest_reporter.answer_noise import Answers

Tier = Literal["b", "c"]
Method = Literal["embedding", "logprobs", "sampled"]
Agreement = Literal["agree", "differ", "conflict"]
Confidence = Literal["high", "medium", "low"]

# Nothing to judge: proven from pixels, in the order in which they are looked for. very-dark is none of them.
DEAD_FLAGS: Final = ("no-frames", "black", "flat", "noise")
# Source: the anchors of the scale; 4 = place right, 6 = subjects without story, or static. Grain over a still picture
# moves no more than a frozen one (the two differ in changed pixels alone), so it earns no more; two pictures that
# dissolve into each other show more than one, and nothing in them moves.
CAPS: Final[Mapping[str, float]] = {
    "frozen": 4.0,
    "static-with-grain": 4.0,
    "near-static": 6.0,
    "dissolve": 6.0,
    "freezes-midway": 7.0,
}
# Design choices until ratings of people replace them.
PRESENCE_SHARE, STORY_SHARE, CAMERA_SHARE = 0.6, 0.3, 0.1
PRESENCE_KINDS: Final[frozenset[Kind]] = frozenset({"subject", "attribute", "relation", "style"})
SEEN = 0.5
FLOOR_HALF_WIDTH = 1.5
MIN_JUDGED_SHARE = 0.5
DIFFER, CONFLICT = 1.5, 3.0
FLIP_HIGH, FLIP_LOW = 0.7, 0.3
PRELIMINARY_BELOW = 30
RANDOM_WEIGHTS = "random weights: the picture says nothing about the model"


# ---- what comes in


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one judge answered about one clip.

    answers: by element id, P(yes) in 0..1 per window, `rubric.window_count` of them; one for the whole clip where the
    element is of kind camera or negative. None = an invalid answer. An element that is not there was not asked.
    badges: what a reader must know, for example `test judge`. error: why the judge failed, empty where it did not.
    """

    tier: Tier
    judge_id: str
    judge_version: str
    method: Method
    rubric_sha256: str
    answers: Answers
    badges: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Tier a. flags: as `ClipFacts.flags` and near-static, freezes-midway, very-dark and the like.

    camera: share of frame pairs in 0..1 that show the move; a move that flow could not tell is not there.
    """

    flags: tuple[str, ...]
    thresholds_version: str
    camera: Mapping[CameraMove, float]


# ---- what goes out


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementScore:
    """presence: 0..1 after its parents; None = not judged. alone: before them. windows: the answers it is made of.

    failed_parent: the parent that is not in view, so that the element is shown as `n/a (no child in view)`.
    """

    element_id: str
    presence: float | None
    alone: float | None
    windows: tuple[float | None, ...]
    failed_parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatScore:
    """windows: M[b, k], None where no element of the beat was judged. best_window: of its maximum, from 0.

    path_window: where the story in order puts the beat; None = skipped.
    """

    n: int
    windows: tuple[float | None, ...]
    best: float | None
    best_window: int | None
    path_window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """E, B, order and C of the note, each 0..1, None = there is nothing of the kind. order 1 = the right one.

    raw10: 0..10 before caps; None = no part exists.
    """

    elements: tuple[ElementScore, ...]
    beats: tuple[BeatScore, ...]
    presence: float | None
    story: float | None
    order: float | None
    camera: float | None
    raw10: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """from10: None where a dead clip never reached a judge."""

    flag: str
    from10: float | None
    to10: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TierScore:
    """One tier on its own, after caps. tier d: people."""

    tier: Literal["b", "c", "d"]
    judge_id: str
    judge_version: str
    score10: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """score10, low, high: 0..10, None = not scored, and `not_scored` says why. half_width: before 0 and 10 cut it.

    parts: None for a dead clip and where no judge answered. left_out: judgements that could not be used, and why.
    """

    rubric_sha256: str
    flags: tuple[str, ...]
    badges: tuple[str, ...]
    score10: float | None = None
    half_width: float | None = None
    confidence: Confidence | None = None
    parts: Parts | None = None
    caps: tuple[Cap, ...] = ()
    tiers: tuple[TierScore, ...] = ()
    agreement: Agreement | None = None
    flips: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    not_scored: str = ""

    @property
    def low(self) -> float | None:
        return None if self.score10 is None or self.half_width is None else max(0.0, self.score10 - self.half_width)

    @property
    def high(self) -> float | None:
        return None if self.score10 is None or self.half_width is None else min(10.0, self.score10 + self.half_width)

    @property
    def text(self) -> str:
        """`6.3 ± 1.5`, or `not scored`."""
        if self.score10 is None or self.half_width is None:
            return "not scored"
        return f"{self.score10:.1f} ± {self.half_width:.1f}"


# ---- the score


def score(
    rubric: Rubric,
    judgements: Sequence[Judgement],
    pixels: Pixels | None,
    ratings: Sequence[float] = (),
    *,
    has_random_weights: bool = False,
) -> Score:
    """The score of one clip.

    judgements: of two of one tier the later counts. pixels: None = tier a did not run. ratings: of people, 0..10.
    """
    flags = pixels.flags if pixels else ()
    badges = ("draft rubric",) if rubric.is_draft else ()
    if has_random_weights:
        return _unscored(rubric, flags, ("random weights",), RANDOM_WEIGHTS)
    if pixels is None:
        return _unscored(rubric, flags, badges, "the pixels of the clip were not checked")
    if dead := next((flag for flag in DEAD_FLAGS if flag in flags), None):
        return _dead(rubric, flags, badges, dead)
    usable, left_out = _usable(rubric, judgements)
    if usable:
        return _judged(rubric, usable, pixels, ratings, badges, left_out)
    if ratings:
        return _rated(rubric, ratings, flags, badges, left_out)
    return _unscored(rubric, flags, badges, "; ".join(left_out) or "no judge ran", left_out)


def _unscored(
    rubric: Rubric, flags: tuple[str, ...], badges: tuple[str, ...], reason: str, left_out: tuple[str, ...] = ()
) -> Score:
    return Score(rubric_sha256=rubric.sha256, flags=flags, badges=badges, not_scored=reason, left_out=left_out)


def _dead(rubric: Rubric, flags: tuple[str, ...], badges: tuple[str, ...], flag: str) -> Score:
    return Score(
        rubric_sha256=rubric.sha256,
        flags=flags,
        badges=badges,
        score10=0.0,
        half_width=0.0,
        confidence="high",
        caps=(Cap(flag=flag, from10=None, to10=0.0),),
    )


def _judged(
    rubric: Rubric,
    usable: Mapping[Tier, Judgement],
    pixels: Pixels,
    ratings: Sequence[float],
    badges: tuple[str, ...],
    left_out: tuple[str, ...],
) -> Score:
    answers = merged(rubric, usable)
    parts = combine(rubric, answers, pixels.camera)
    missing = _unjudged(parts)
    if parts.raw10 is None or _judged_share(rubric, parts) < MIN_JUDGED_SHARE:
        reason = f"{len(missing)} of {len(rubric.elements)} elements have no valid answer"
        return _unscored(rubric, pixels.flags, badges, "; ".join((reason, *left_out)), left_out)
    tiers = (*_tier_scores(rubric, usable, pixels), *_people(ratings))
    spread = max(tier.score10 for tier in tiers) - min(tier.score10 for tier in tiers) if tiers else 0.0
    half = max(FLOOR_HALF_WIDTH, _noise(rubric, answers, pixels), spread / 2)
    agreement = _agreement(spread) if len(tiers) > 1 else None
    partial = (f"partial: {len(missing)} of {len(rubric.elements)} elements not judged",) if missing else ()
    said = dict.fromkeys(badge for judgement in usable.values() for badge in _judge_badges(judgement))
    return Score(
        rubric_sha256=rubric.sha256,
        flags=pixels.flags,
        badges=(*badges, *said, *partial, *_preliminary(ratings), "uncalibrated"),
        score10=_capped(parts.raw10, pixels.flags),
        half_width=half,
        confidence=_confidence(half, agreement),
        parts=parts,
        caps=tuple(_caps(parts.raw10, pixels.flags)),
        tiers=tiers,
        agreement=agreement,
        flips=_flips(rubric, usable, pixels),
        left_out=left_out,
    )


def _rated(
    rubric: Rubric,
    ratings: Sequence[float],
    flags: tuple[str, ...],
    badges: tuple[str, ...],
    left_out: tuple[str, ...],
) -> Score:
    """By people alone. Half width: 80 % of the mean's normal interval, not below the floor while there are few."""
    mean = sum(ratings) / len(ratings)
    error = 0.0
    if len(ratings) > 1:
        error = math.sqrt(sum((rating - mean) ** 2 for rating in ratings) / (len(ratings) - 1) / len(ratings))
    half = max(FLOOR_HALF_WIDTH if len(ratings) < PRELIMINARY_BELOW else 0.0, 1.28 * error)
    return Score(
        rubric_sha256=rubric.sha256,
        flags=flags,
        badges=(*badges, "people", *_preliminary(ratings)),
        score10=mean,
        half_width=half,
        confidence=_confidence(half, None),
        tiers=tuple(_people(ratings)),
        left_out=left_out,
    )


def _judge_badges(judgement: Judgement) -> tuple[str, ...]:
    return (*judgement.badges, *(("sampled",) if judgement.method == "sampled" else ()))


def _preliminary(ratings: Sequence[float]) -> tuple[str, ...]:
    return ("preliminary",) if 0 < len(ratings) < PRELIMINARY_BELOW else ()


def _people(ratings: Sequence[float]) -> Iterator[TierScore]:
    if ratings:
        yield TierScore(tier="d", judge_id="people", judge_version="", score10=sum(ratings) / len(ratings))


# ---- judgements that can be used


def _usable(rubric: Rubric, judgements: Sequence[Judgement]) -> tuple[dict[Tier, Judgement], tuple[str, ...]]:
    usable: dict[Tier, Judgement] = {}
    left_out: dict[Tier, str] = {}
    for judgement in judgements:
        if reason := why_not(rubric, judgement):
            left_out[judgement.tier] = f"judge {judgement.judge_id}: {reason}"
        else:
            usable[judgement.tier] = judgement
            left_out.pop(judgement.tier, None)
    return usable, tuple(left_out.values())


def why_not(rubric: Rubric, judgement: Judgement) -> str:
    """Why a judgement says nothing about this rubric; empty where it does."""
    if judgement.error:
        return f"failed: {judgement.error}"
    if judgement.rubric_sha256 != rubric.sha256:
        return f"answered rubric {judgement.rubric_sha256[:8]}, this one is {rubric.sha256[:8]}; judge the clip again"
    return next(_wrong_answers(rubric, judgement.answers), "")


def _wrong_answers(rubric: Rubric, answers: Answers) -> Iterator[str]:
    kinds = {element.id: element.kind for element in rubric.elements}
    for element_id, row in answers.items():
        if element_id not in kinds:
            yield f"answered {element_id!r}, which is no element of the rubric"
            continue
        wanted = 1 if kinds[element_id] in WHOLE_CLIP_KINDS else rubric.window_count
        if len(row) != wanted:
            yield f"gave {len(row)} windows for {element_id!r}, the rubric has {wanted}"
        if not all(p is None or 0 <= p <= 1 for p in row):
            yield f"gave an answer outside 0..1 for {element_id!r}"


def merged(rubric: Rubric, usable: Mapping[Tier, Judgement]) -> dict[str, tuple[float | None, ...]]:
    """Of every element and window the answer of tier c, where it is valid, else that of tier b."""
    rows: dict[str, tuple[float | None, ...]] = {}
    for element in rubric.elements:
        for tier in ("c", "b"):
            row = usable[tier].answers.get(element.id) if tier in usable else None
            if row is not None:
                earlier = rows.get(element.id, (None,) * len(row))
                rows[element.id] = tuple(p if q is None else q for q, p in zip(earlier, row, strict=True))
    return rows


# ---- formulas


def combine(rubric: Rubric, answers: Answers, camera: Mapping[CameraMove, float]) -> Parts:
    """E, B, order, C and their sum. Source: scoring note 1.4.

    P_e = mean of the two largest p_ek (a robust maximum), times P of every element it depends on (DSG, arXiv
    2310.18235); E = weighted mean of P_e over subject, attribute, relation and style;
    S = 10 (0.6 E + 0.3 B + 0.1 C) / (weights of the parts that exist). A negative element is shown and not summed.
    """
    elements = _presences(rubric, answers, camera)
    beats = _beats(rubric, answers)
    presence = _weighted(rubric, elements, PRESENCE_KINDS)
    moves = _weighted(rubric, elements, frozenset({"camera"}))
    story = _story(beats)
    return Parts(
        elements=tuple(elements[element.id] for element in rubric.elements),
        beats=beats,
        presence=presence,
        story=story,
        order=_order(beats),
        camera=moves,
        raw10=_sum10(((PRESENCE_SHARE, presence), (STORY_SHARE, story), (CAMERA_SHARE, moves))),
    )


def _presences(rubric: Rubric, answers: Answers, camera: Mapping[CameraMove, float]) -> dict[str, ElementScore]:
    found: dict[str, ElementScore] = {}
    for element in rubric.parents_first():
        row = answers.get(element.id, ())
        alone = _camera_presence(element, row, camera) if element.kind == "camera" else _two_largest(row)
        found[element.id] = _gated(element, alone, row, found)
    return found


def _two_largest(row: Sequence[float | None]) -> float | None:
    largest = sorted((p for p in row if p is not None), reverse=True)[:2]
    return sum(largest) / len(largest) if largest else None


def _camera_presence(element: Element, row: Sequence[float | None], camera: Mapping[CameraMove, float]) -> float | None:
    """Mean of the checks that there are: optical flow, and a judge on the whole clip."""
    flow = camera.get(element.flow) if element.flow else None
    checks = [p for p in (flow, *row) if p is not None]
    return sum(checks) / len(checks) if checks else None


def _gated(
    element: Element, alone: float | None, row: tuple[float | None, ...], found: Mapping[str, ElementScore]
) -> ElementScore:
    """A parent that was not judged says nothing, so it takes nothing away."""
    presence, failed = alone, None
    for parent in element.depends_on:
        of_parent = found[parent].presence
        if of_parent is None:
            continue
        presence = None if presence is None else presence * of_parent
        failed = parent if failed is None and of_parent < SEEN else failed
    return ElementScore(element_id=element.id, presence=presence, alone=alone, windows=row, failed_parent=failed)


def _weighted(rubric: Rubric, elements: Mapping[str, ElementScore], kinds: frozenset[Kind]) -> float | None:
    found = [
        (float(element.weight), presence)
        for element in rubric.elements
        if element.kind in kinds and (presence := elements[element.id].presence) is not None
    ]
    return _mean(found)


def _mean(weighted: Sequence[tuple[float, float]]) -> float | None:
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if weighted else None


def _sum10(shares: Sequence[tuple[float, float | None]]) -> float | None:
    mean = _mean([(share, value) for share, value in shares if value is not None])
    return None if mean is None else 10 * mean


# ---- beats and their order


def _beats(rubric: Rubric, answers: Answers) -> tuple[BeatScore, ...]:
    rows = [_beat_row(rubric, beat.n, answers) for beat in rubric.beats]
    _, path = best_path(rows)
    return tuple(_beat_score(beat.n, row, window) for beat, row, window in zip(rubric.beats, rows, path, strict=True))


def _beat_row(rubric: Rubric, n: int, answers: Answers) -> tuple[float | None, ...]:
    """M[b, k] = weighted mean of p_ek over the elements of the beat, before any parent takes from it."""
    members = [(float(e.weight), answers[e.id]) for e in rubric.elements if e.beat == n and e.id in answers]
    return tuple(
        _mean([(weight, p) for weight, row in members if (p := row[window]) is not None])
        for window in range(rubric.window_count)
    )


def _beat_score(n: int, row: tuple[float | None, ...], path_window: int | None) -> BeatScore:
    best, first = max(((p, -window) for window, p in enumerate(row) if p is not None), default=(None, 0))
    best_window = None if best is None else -first
    return BeatScore(n=n, windows=row, best=best, best_window=best_window, path_window=path_window)


def best_path(rows: Sequence[Sequence[float | None]]) -> tuple[float, tuple[int | None, ...]]:
    """The largest sum over strictly increasing windows, one a row, and the window of each row.

    A row may be skipped for 0. Dynamic programming over rows x windows.
    """
    windows = len(rows[0]) if rows else 0
    best = [[0.0] * (windows + 1) for _ in range(len(rows) + 1)]
    for i, row in enumerate(rows, start=1):
        for k, p in enumerate(row, start=1):
            taken = best[i - 1][k - 1] + (p or 0.0)
            best[i][k] = max(best[i - 1][k], best[i][k - 1], taken)
    return best[-1][-1], _walk_back(rows, best)


def _walk_back(rows: Sequence[Sequence[float | None]], best: Sequence[Sequence[float]]) -> tuple[int | None, ...]:
    path: list[int | None] = [None] * len(rows)
    i, k = len(rows), len(best[0]) - 1
    while i and k:
        if best[i][k] == best[i][k - 1]:
            k -= 1
        elif best[i][k] == best[i - 1][k]:
            i -= 1
        else:
            i, k = i - 1, k - 1
            path[i] = k
    return tuple(path)


def _story(beats: Sequence[BeatScore]) -> float | None:
    """B = the best path's sum / n, over the beats of which something was judged."""
    rows = [beat.windows for beat in beats if beat.best is not None]
    return best_path(rows)[0] / len(rows) if rows else None


def _order(beats: Sequence[BeatScore]) -> float | None:
    """The best path's sum / the sum of maxima, over the beats that are seen; None for fewer than two of them."""
    seen = [(beat.best, beat.windows) for beat in beats if beat.best is not None and beat.best >= SEEN]
    if len(seen) < 2:
        return None
    return best_path([row for _, row in seen])[0] / sum(best for best, _ in seen)


# ---- caps, width, agreement


def _caps(raw10: float, flags: Sequence[str]) -> Iterator[Cap]:
    """The lowest cap first; one that the score is below anyway is not applied."""
    left = raw10
    for flag, to10 in sorted(CAPS.items(), key=lambda item: item[1]):
        if flag in flags and left > to10:
            yield Cap(flag=flag, from10=left, to10=to10)
            left = to10


def _capped(raw10: float, flags: Sequence[str]) -> float:
    return min((cap.to10 for cap in _caps(raw10, flags)), default=raw10)


def _noise(rubric: Rubric, answers: Answers, pixels: Pixels) -> float:
    def drawn_score(drawn: Answers) -> float | None:
        raw10 = combine(rubric, drawn, pixels.camera).raw10
        return None if raw10 is None else _capped(raw10, pixels.flags)

    return answer_noise.half_width(answers, drawn_score)


def _tier_scores(rubric: Rubric, usable: Mapping[Tier, Judgement], pixels: Pixels) -> Iterator[TierScore]:
    for tier, judgement in sorted(usable.items()):
        parts = combine(rubric, judgement.answers, pixels.camera)
        if parts.raw10 is not None and _judged_share(rubric, parts) >= MIN_JUDGED_SHARE:
            yield TierScore(
                tier=tier,
                judge_id=judgement.judge_id,
                judge_version=judgement.judge_version,
                score10=_capped(parts.raw10, pixels.flags),
            )


def _agreement(spread: float) -> Agreement:
    if spread < DIFFER:
        return "agree"
    return "differ" if spread < CONFLICT else "conflict"


def _confidence(half_width: float, agreement: Agreement | None) -> Confidence:
    width = 2 * half_width
    if width <= 1.5 and agreement in (None, "agree"):
        return "high"
    return "medium" if width <= 3 else "low"


def _flips(rubric: Rubric, usable: Mapping[Tier, Judgement], pixels: Pixels) -> tuple[str, ...]:
    """Ids of elements that one tier sees and the other does not."""
    if len(usable) < 2:
        return ()
    by_tier = [combine(rubric, judgement.answers, pixels.camera).elements for judgement in usable.values()]
    return tuple(
        left.element_id
        for left, right in zip(*by_tier, strict=True)
        if left.alone is not None and right.alone is not None and _is_flip(left.alone, right.alone)
    )


def _is_flip(left: float, right: float) -> bool:
    return min(left, right) < FLIP_LOW and max(left, right) > FLIP_HIGH


def _unjudged(parts: Parts) -> tuple[str, ...]:
    return tuple(element.element_id for element in parts.elements if element.presence is None)


def _judged_share(rubric: Rubric, parts: Parts) -> float:
    """By weight, of what must be seen; camera and negatives do not count, flow alone judges no picture."""
    weights = {e.id: float(e.weight) for e in rubric.elements if e.kind not in WHOLE_CLIP_KINDS}
    judged = sum(weights.get(e.element_id, 0.0) for e in parts.elements if e.presence is not None)
    return judged / sum(weights.values())
