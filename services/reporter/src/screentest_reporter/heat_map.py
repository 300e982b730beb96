"""Which element of the prompt each lane shows, grouped by the beats of the story; and the beats of one clip. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from screentest.rubric import Element, Rubric
from screentest_reporter.model_table import ReportRow
from screentest_reporter.scores import ClipScore
from screentest_reporter.scoring import SEEN, BeatScore, ElementScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``presence``: mean over the lane's scored clips, 0..1; None = not scored. ``clips``: how many that are.

    ``is_flip``: two judges disagree on it in one of the clips. ``without``: the label of a parent that is not in view.
    ``dead``: the flag of clips that were never put to a judge, because their pixels show nothing.
    """

    presence: float | None
    clips: int
    is_flip: bool = False
    without: str = ""
    dead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    element: Element
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One lane. ``score_text``: mean over its scored clips, ``not scored`` without one."""

    lane_id: str
    title: str
    score_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Of one prompt: elements by beat down, lanes across, the best mean score first."""

    prompt_index: int
    rubric: Rubric
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]


def heat_maps(rows: Sequence[ReportRow]) -> tuple[HeatMap, ...]:
    """One per prompt that has a rubric; scores of two rubrics are never mixed, so the newest row's rubric counts."""
    by_prompt: dict[int, list[ReportRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.row.prompt_index, []).append(row)
    made = (_heat_map(prompt_index, found) for prompt_index, found in sorted(by_prompt.items()))
    return tuple(heat_map for heat_map in made if heat_map is not None)


def _heat_map(prompt_index: int, rows: Sequence[ReportRow]) -> HeatMap | None:
    rubric = next((row.score.rubric for row in reversed(rows) if row.score is not None), None)
    if rubric is None:
        return None
    lanes: dict[str, list[ReportRow]] = {}
    for row in rows:
        lanes.setdefault(row.row.lane_id, []).append(row)
    scored = {lane_id: _scores(found, rubric) for lane_id, found in lanes.items()}
    means = {lane_id: _mean(found) for lane_id, found in scored.items()}
    order = sorted(lanes, key=lambda lane_id: (means[lane_id] is None, -(means[lane_id] or 0.0)))
    columns = tuple(_column(lanes[lane_id][0], means[lane_id]) for lane_id in order)
    presences = [_presences(scored[lane_id]) for lane_id in order]
    dead = [_dead_flag(scored[lane_id]) for lane_id in order]
    flips = [{flip for score in scored[lane_id] for flip in score.score.flips} for lane_id in order]
    labels = {element.id: element.label for element in rubric.elements}
    groups = [
        Group(
            title=title,
            lines=tuple(
                Line(
                    element=e,
                    cells=tuple(_cell(e, *column, labels) for column in zip(presences, flips, dead, strict=True)),
                )
                for e in elements
            ),
        )
        for title, elements in _groups(rubric)
    ]
    return HeatMap(prompt_index=prompt_index, rubric=rubric, columns=columns, groups=tuple(groups))


def _groups(rubric: Rubric) -> Iterator[tuple[str, list[Element]]]:
    """Beats in story order, then what belongs to none."""
    for beat in rubric.beats:
        if elements := [element for element in rubric.elements if element.beat == beat.n]:
            yield f"Beat {beat.n}: {beat.label}", elements
    if rest := [element for element in rubric.elements if element.beat is None]:
        yield "Anywhere in the clip", rest


def _scores(rows: Sequence[ReportRow], rubric: Rubric) -> list[ClipScore]:
    sha256 = rubric.sha256
    return [row.score for row in rows if row.score is not None and row.score.score.rubric_sha256 == sha256]


def _mean(scores: Sequence[ClipScore]) -> float | None:
    known = [score.score.score10 for score in scores if score.score.score10 is not None]
    return sum(known) / len(known) if known else None


def _column(row: ReportRow, mean: float | None) -> Column:
    return Column(
        lane_id=row.row.lane_id,
        title=row.lane_title,
        score_text="not scored" if mean is None else f"{mean:.1f}/10",
    )


def _presences(scores: Sequence[ClipScore]) -> Mapping[str, list[ElementScore]]:
    found: dict[str, list[ElementScore]] = {}
    for score in scores:
        for element in score.score.parts.elements if score.score.parts else ():
            found.setdefault(element.element_id, []).append(element)
    return found


def _cell(
    element: Element, presences: Mapping[str, list[ElementScore]], flips: set[str], dead: str, labels: Mapping[str, str]
) -> Cell:
    found = presences.get(element.id, [])
    known = [score.presence for score in found if score.presence is not None]
    orphaned = [score.failed_parent for score in found if score.failed_parent is not None]
    return Cell(
        presence=sum(known) / len(known) if known else None,
        clips=len(known),
        is_flip=element.id in flips,
        without=labels.get(orphaned[0], orphaned[0]) if orphaned and len(orphaned) == len(found) else "",
        dead="" if known else dead,
    )


def _dead_flag(scores: Sequence[ClipScore]) -> str:
    """Where every scored clip of the lane is dead."""
    flags = [score.score.caps[0].flag for score in scores if score.score.parts is None and score.score.caps]
    return flags[0] if flags and len(flags) == len(scores) else ""


def shade(presence: float | None) -> str:
    """The class of a cell: ``p0`` to ``p10``, or ``unscored``, which is hatched."""
    return "unscored" if presence is None else f"p{int(presence * 10)}"


# ---- ticks of a card


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """``state``: yes, no or unknown; of a negative element yes = the unwanted thing is there."""

    label: str
    state: str
    text: str
    is_negative: bool


def ticks(score: ClipScore | None) -> tuple[Tick, ...]:
    """One per element of the rubric; none where nothing was judged."""
    if score is None or score.score.parts is None:
        return ()
    return tuple(_tick(element, found) for element, found in score.elements)


def _tick(element: Element, found: ElementScore | None) -> Tick:
    presence = found.presence if found else None
    state = "unknown" if presence is None else "yes" if presence >= SEEN else "no"
    text = "not judged" if presence is None else f"{presence:.2f}"
    return Tick(label=element.label, state=state, text=text, is_negative=element.kind == "negative")


# ---- the beat strip

STRIP_CELL = 20


def beat_strip(beats: Sequence[BeatScore]) -> str:
    """SVG of M[b, k]: one line a beat, one column a window of the clip, the story's path through it. Numbers only.

    A window without an answer is hatched. The path leaves out a beat that was skipped; a dot = the beat is seen there.
    """
    windows = len(beats[0].windows) if beats else 0
    if not windows:
        return ""
    height = len(beats) * STRIP_CELL
    cells = "".join(
        f'<rect class="{shade(p)}" x="{column * STRIP_CELL}" y="{line * STRIP_CELL}" '
        f'width="{STRIP_CELL}" height="{STRIP_CELL}"/>'
        for line, beat in enumerate(beats)
        for column, p in enumerate(beat.windows)
    )
    steps = [
        (line, beat.path_window, _is_seen(beat)) for line, beat in enumerate(beats) if beat.path_window is not None
    ]
    points = [(f"{(k + 0.5) * STRIP_CELL:g},{(line + 0.5) * STRIP_CELL:g}", is_seen) for line, k, is_seen in steps]
    path = " ".join(point for point, _ in points)
    dots = " ".join(
        f"M{point}h0" for point, is_seen in points if is_seen
    )  # a line's round end, which nothing stretches
    return (
        f'<svg viewBox="0 0 {windows * STRIP_CELL} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'{cells}<polyline points="{path}"/><path d="{dots}"/></svg>'
    )


def path_text(beats: Sequence[BeatScore]) -> str:
    """The path in words, for who cannot see it: ``beat 1 in part 2 of 8, beat 3 in part 6 of 8``."""
    windows = len(beats[0].windows) if beats else 0
    shown = [(beat.n, (beat.path_window or 0) + 1) for beat in beats if _is_seen(beat)]
    return ", ".join(f"beat {n} in part {part} of {windows}" for n, part in shown) or "no beat is seen"


def _is_seen(beat: BeatScore) -> bool:
    """Where the path puts it."""
    p = None if beat.path_window is None else beat.windows[beat.path_window]
    return p is not None and p >= SEEN
