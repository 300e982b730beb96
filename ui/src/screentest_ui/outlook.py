"""What a lane will do with a sweep, as command line and panel show it before anything is queued. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from screentest import table
from screentest.records import Estimate, LanePlan, LaneVerdict
from screentest_ui.panel_text import UNKNOWN, duration, gib

COLUMNS = ("Lane", "Verdict", "Rung", "Size", "Frames", "Steps", "Memory", "Load", "Clip", "Energy", "Why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """One lane's words; "unknown" where nobody knows, "" where a refused lane has nothing to say.

    ``why``: marks, the worker's words and the fix. ``basis``: where the numbers come from.
    """

    lane_id: str
    lane_title: str
    verdict: str
    rung: str
    size: str
    frames: str
    steps: str
    memory: str
    load: str
    clip: str
    energy: str
    why: str
    basis: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The text of each of ``COLUMNS``."""
        shape = (self.rung, self.size, self.frames, self.steps)
        return (self.lane_id, self.verdict, *shape, self.memory, self.load, self.clip, self.energy, self.why)


def outlook(verdict: LaneVerdict) -> Outlook:
    plan = verdict.plan
    estimate = begins_at(plan) if plan is not None else None
    return Outlook(
        lane_id=verdict.lane_id,
        lane_title=verdict.lane_title,
        verdict=verdict.verdict.value.replace("-", " "),
        rung=rung_words(plan, estimate) if plan is not None else "",
        size=f"{plan.width_px}x{plan.height_px}" if plan is not None else "",
        frames=str(plan.num_frames) if plan is not None else "",
        steps=str(plan.steps) if plan is not None else "",
        memory=memory_words(estimate, verdict.memory_free_bytes) if plan is not None else "",
        load=duration(estimate.load_s if estimate else None) if plan is not None else "",
        clip=clip_words(estimate) if plan is not None else "",
        energy=energy_words(estimate) if plan is not None else "",
        why=why(verdict),
        basis=basis(plan, estimate),
    )


def begins_at(plan: LanePlan) -> Estimate | None:
    """The estimate of the rung on which the lane will begin; None when there is none."""
    return next((estimate for estimate in plan.estimates if estimate.rung == plan.first_rung), None)


def rung_words(plan: LanePlan, estimate: Estimate | None) -> str:
    name = plan.rungs[plan.first_rung] if plan.first_rung < len(plan.rungs) else UNKNOWN
    return f"{name} (changes the picture)" if estimate is not None and estimate.changes_picture else name


def memory_words(estimate: Estimate | None, free_bytes: int | None) -> str:
    """``needs 14.2 GiB of 22.1 GiB free``, as far as it is known."""
    need_bytes = estimate.peak_memory_bytes if estimate is not None else None
    if need_bytes is None and free_bytes is None:
        return UNKNOWN
    need = f"needs {gib(need_bytes)}" if need_bytes is not None else "need unknown"
    return need if free_bytes is None else f"{need} of {gib(free_bytes)} free"


def clip_words(estimate: Estimate | None) -> str:
    """``5 min 44 s (4 min 10 s to 7 min 0 s)``; without a range where there is none."""
    if estimate is None or estimate.clip_s is None:
        return UNKNOWN
    if estimate.low_s is None or estimate.high_s is None:
        return duration(estimate.clip_s)
    return f"{duration(estimate.clip_s)} ({duration(estimate.low_s)} to {duration(estimate.high_s)})"


def energy_words(estimate: Estimate | None) -> str:
    known = estimate.energy_wh if estimate is not None else None
    return UNKNOWN if known is None else f"{known:.2f} Wh"


def basis(plan: LanePlan | None, estimate: Estimate | None) -> str:
    if plan is None:
        return ""
    return (estimate.basis if estimate is not None else "") or "nobody has measured this"


def why(verdict: LaneVerdict) -> str:
    """Each mark once, what else the lane says, and what to do."""
    plan = verdict.plan
    marks = [table.mark_text(mark) for mark in plan.marks if mark.is_change] if plan is not None else []
    planned = plan.preflight.removeprefix("fixed: ") if plan is not None and marks else ""
    said = verdict.detail.removeprefix(planned).strip("; ") if planned else verdict.detail
    fix = f"Fix: {verdict.fix}" if verdict.fix else ""
    return "; ".join(part for part in (said, *marks, fix) if part)
