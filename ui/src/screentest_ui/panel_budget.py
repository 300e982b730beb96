"""What a sweep would take in all, before it is submitted: time, energy, judges, and what nobody knows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from screentest.records import LaneVerdict, LaneView
from screentest.rubric import WHOLE_CLIP_KINDS, Rubric
from screentest_ui.outlook import begins_at
from screentest_ui.panel_text import UNKNOWN, counted, duration, listed

# What a tier asks of each clip; b and c ask in every window of it.
TIERS = {"a": "pixels", "b": "embeddings", "c": "language model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Sums over the lanes that will take part. ``*_unknown``: titles of lanes that are not in the sum."""

    seconds: float
    energy_wh: float
    time_unknown: tuple[str, ...]
    energy_unknown: tuple[str, ...]

    @property
    def time_words(self) -> str:
        return _sum_words(duration(self.seconds), self.seconds, self.time_unknown)

    @property
    def energy_words(self) -> str:
        return _sum_words(f"{self.energy_wh:.1f} Wh", self.energy_wh, self.energy_unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeBill:
    """One judge over the sweep. ``questions``: at most, 0 for pixels; ``seconds`` None = never measured here."""

    lane_id: str
    lane_title: str
    tier: str
    clips: int
    questions: int
    seconds: float | None

    @property
    def cells(self) -> dict[str, str]:
        return {
            "Judge": self.lane_title,
            "Tier": f"{self.tier} ({TIERS.get(self.tier, UNKNOWN)})",
            "Clips": str(self.clips),
            "Questions": f"at most {self.questions:,}" if self.questions else "none",
            "Time": duration(self.seconds),
        }


def bill(verdicts: Iterable[LaneVerdict], cells: int) -> Bill:
    """``cells``: prompts x seeds. Each lane loads once, then makes its clips one after the other."""
    seconds, energy_wh = 0.0, 0.0
    no_time: list[str] = []
    no_energy: list[str] = []
    for verdict in verdicts:
        estimate = begins_at(verdict.plan) if verdict.plan is not None else None
        if estimate is None or estimate.clip_s is None:
            no_time.append(verdict.lane_title)
        else:
            seconds += (estimate.load_s or 0.0) + cells * estimate.clip_s
        if estimate is None or estimate.energy_wh is None:
            no_energy.append(verdict.lane_title)
        else:
            energy_wh += cells * estimate.energy_wh
    return Bill(seconds=seconds, energy_wh=energy_wh, time_unknown=tuple(no_time), energy_unknown=tuple(no_energy))


def over_budget(found: Bill, hours: float | None, watt_hours: float | None) -> tuple[str, ...]:
    """What the sweep would take beyond the budget, in words; a budget of None has no end."""
    over = []
    if hours is not None and found.seconds > hours * 3600:
        over.append(f"{found.time_words} of GPU time, the budget is {duration(hours * 3600)}")
    if watt_hours is not None and found.energy_wh > watt_hours:
        over.append(f"{found.energy_words}, the budget is {watt_hours:g} Wh")
    return tuple(over)


def judges(lanes: Iterable[LaneView]) -> tuple[LaneView, ...]:
    """The judges of the catalogue, by tier."""
    return tuple(sorted((lane for lane in lanes if lane.tier), key=lambda lane: (lane.tier, lane.lane_id)))


def judge_bills(
    chosen: Sequence[LaneView], rubrics: Sequence[Rubric | None], cells_each: int, seconds_each: Mapping[str, float]
) -> tuple[JudgeBill, ...]:
    """``rubrics``: one per prompt; ``cells_each``: clips per prompt; ``seconds_each``: per clip and judge, measured."""
    clips = cells_each * len(rubrics)
    return tuple(
        JudgeBill(
            lane_id=judge.lane_id,
            lane_title=judge.lane_title,
            tier=judge.tier,
            clips=clips,
            questions=sum(questions(asked, judge.tier) for asked in rubrics if asked is not None) * cells_each,
            seconds=seconds_each[judge.lane_id] * clips if judge.lane_id in seconds_each else None,
        )
        for judge in chosen
    )


def questions(asked: Rubric, tier: str) -> int:
    """At most, for one clip: element x window, twice (straight and negated) for a language model; 0 for pixels."""
    if tier == "a":
        return 0
    windows = sum(1 if element.kind in WHOLE_CLIP_KINDS else asked.window_count for element in asked.elements)
    return windows * (2 if tier == "c" else 1)


def _sum_words(words: str, amount: float, unknown: tuple[str, ...]) -> str:
    """``2 h 5 min``; ``at least 2 h 5 min (unknown for Mochi)``; ``unknown`` where nothing is known."""
    if not unknown:
        return f"about {words}"
    if not amount:
        return UNKNOWN
    names = listed(unknown) if len(unknown) <= 3 else counted(len(unknown), "lane")
    return f"at least {words} (unknown for {names})"
