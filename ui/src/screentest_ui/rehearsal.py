"""What a rehearsal found: which lanes fit, at which rung, how fast and at what cost. Pure.

Only what was measured is said; a clip that was computed from fewer steps is marked as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from screentest import table
from screentest.folding import status
from screentest.records import Job, JobState, LanePlan, Outcome, SkippedLane
from screentest_ui.panel_text import duration

COLUMNS = ("Lane", "Fits at", "Peak memory", "Build", "Step", "Decode", "Clip", "Energy", "Smallest card", "Note")
NOT_MEASURED = "not measured"
PHASE_WORDS = {"loading": "load", "encoding_prompt": "encode", "denoising": "denoise", "decoding": "decode"}
CLIP_PHASES = ("encoding_prompt", "denoising", "decoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """One lane. None = not measured.

    ``rung``: at which it fits, None = at none. ``build_s``: making and placing random weights, which says nothing of
    reading real ones from a disk. ``steps``: that ran, in ``denoise_s``; ``full_steps``: of a whole clip. ``clip_s``: a
    whole clip after the build, ``is_extrapolated`` when fewer steps ran than it has. ``energy_wh``: of the attempt as
    it ran. ``note``: why there is no clip, what a rung took from the picture, the rungs that did not fit.
    """

    lane_id: str
    lane_title: str
    status: str
    rung: str | None
    steps: int
    full_steps: int
    build_s: float | None = None
    encode_s: float | None = None
    denoise_s: float | None = None
    step_s: float | None = None
    decode_s: float | None = None
    clip_s: float | None = None
    is_extrapolated: bool = False
    peak_bytes_by_phase: Mapping[str, int]
    energy_wh: float | None = None
    smallest_card_gib: int | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The text of each of ``COLUMNS``."""
        return (
            self.lane_id,
            self.rung or self.status,
            self._peaks,
            _seconds(self.build_s),
            NOT_MEASURED if self.step_s is None else f"{self.step_s:.3g} s",
            _seconds(self.decode_s),
            self._clip,
            self._energy,
            NOT_MEASURED if self.smallest_card_gib is None else table.card_text(self.smallest_card_gib),
            self.note,
        )

    @property
    def _peaks(self) -> str:
        peaks = [
            f"{PHASE_WORDS.get(phase, phase)} {size / 2**30:.1f}" for phase, size in self.peak_bytes_by_phase.items()
        ]
        return f"{', '.join(peaks)} GiB" if peaks else NOT_MEASURED

    @property
    def _clip(self) -> str:
        return (
            f"{_seconds(self.clip_s)} (from {self.steps} of {self.full_steps} steps)"
            if self._is_part
            else _seconds(self.clip_s)
        )

    @property
    def _energy(self) -> str:
        if self.energy_wh is None:
            return NOT_MEASURED
        return f"{self.energy_wh:.2f} Wh" + (f" ({self.steps} steps)" if self.steps < self.full_steps else "")

    @property
    def _is_part(self) -> bool:
        return self.is_extrapolated and self.clip_s is not None


def rehearsed(
    jobs: Sequence[Job],
    plans: Iterable[LanePlan],
    full_steps: Mapping[str, int],
    energy_wh: Mapping[str, float],
    *,
    extrapolate: bool,
) -> tuple[Rehearsed, ...]:
    """One per lane in the order of the sweep. ``full_steps`` by lane id, ``energy_wh`` by job id."""
    cards = {row.job_id: row.smallest_card_gib for row in table.rows(jobs, plans)}
    return tuple(
        _rehearsed(
            job,
            full_steps.get(job.spec.lane_id, job.spec.steps),
            energy_wh.get(job.spec.job_id),
            cards[job.spec.job_id],
            extrapolate=extrapolate,
        )
        for job in table.latest(jobs)
    )


def refused(lanes: Iterable[SkippedLane]) -> tuple[Rehearsed, ...]:
    """The lanes that could not take part."""
    return tuple(
        Rehearsed(
            lane_id=lane.lane_id,
            lane_title=lane.lane_title,
            status="refused",
            rung=None,
            steps=0,
            full_steps=0,
            peak_bytes_by_phase={},
            note=lane.reason,
        )
        for lane in lanes
    )


def _rehearsed(
    job: Job, full_steps: int, energy_wh: float | None, card_gib: int | None, *, extrapolate: bool
) -> Rehearsed:
    attempt = job.attempts[-1] if job.attempts else None
    outcome = attempt.outcome if attempt is not None else None
    seconds = {phase.phase: phase.seconds for phase in outcome.phases} if outcome is not None else {}
    has_clip = job.state is JobState.COMPLETED
    is_part = job.spec.steps < full_steps
    return Rehearsed(
        lane_id=job.spec.lane_id,
        lane_title=job.spec.lane_title,
        status=status(job.state),
        rung=attempt.rung_name if has_clip and attempt is not None else None,
        steps=job.spec.steps,
        full_steps=full_steps,
        build_s=seconds.get("loading"),
        encode_s=seconds.get("encoding_prompt"),
        denoise_s=seconds.get("denoising") if has_clip else None,
        step_s=outcome.step_s if outcome is not None else None,
        decode_s=seconds.get("decoding") if has_clip else None,
        clip_s=_clip_s(outcome, seconds, full_steps, is_part=is_part, extrapolate=extrapolate) if has_clip else None,
        is_extrapolated=has_clip and is_part and extrapolate,
        peak_bytes_by_phase={peak.phase: peak.peak_bytes for peak in outcome.peak_memory_by_phase} if outcome else {},
        energy_wh=energy_wh,
        smallest_card_gib=card_gib,
        note=_note(job, outcome),
    )


def _clip_s(
    outcome: Outcome | None, seconds: Mapping[str, float], full_steps: int, *, is_part: bool, extrapolate: bool
) -> float | None:
    """Of a whole clip; None for a part of one unless it may be extrapolated from the pace of its steps."""
    if outcome is None or any(phase not in seconds for phase in CLIP_PHASES):
        return None
    if not is_part:
        return sum(seconds[phase] for phase in CLIP_PHASES)
    if not extrapolate or outcome.step_s is None:
        return None
    # all that ran, the dearer first step too, and the steps that did not
    return sum(seconds[phase] for phase in CLIP_PHASES) + (full_steps - outcome.steps_done) * outcome.step_s


def _note(job: Job, outcome: Outcome | None) -> str:
    """The finding of a lane without clip; else what the ladder cost."""
    if job.state is not JobState.COMPLETED:
        return table.finding(job)
    marks = [table.mark_text(mark) for mark in outcome.marks] if outcome is not None else []
    failed = [
        f"{attempt.rung_name}: {attempt.outcome.failure_class.value}"
        for attempt in job.attempts[:-1]
        if attempt.outcome and attempt.outcome.failure_class
    ]
    return "; ".join([*marks, *failed])


def headline(found: Sequence[Rehearsed], memory_cap_gib: float | None) -> str:
    """``8 of 10 lanes made a clip under 16 GiB, 7 of them without a change to the picture``."""
    made = [item for item in found if item.rung is not None]
    whole = [item for item in made if " reduced: " not in item.note]
    under = f" under {memory_cap_gib:g} GiB" if memory_cap_gib is not None else ""
    changed = "" if len(whole) == len(made) else f", {len(whole)} of them without a change to the picture"
    return f"{len(made)} of {len(found)} lanes made a clip{under}{changed}"


def _seconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else duration(value)
