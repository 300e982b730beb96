"""What a rehearsal says: what was measured, what follows from it, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest.records import (
    FailureClass,
    Job,
    Mark,
    MarkKind,
    Outcome,
    PhaseMemory,
    PhaseTime,
    SkippedLane,
    Weights,
)
from screentest_ui import rehearsal
from screentest_ui.rehearsal import COLUMNS, Rehearsed
from tests.made_sweeps import History, failure, plan, record, specs, success

GIB = 2**30
PLAN = replace(plan("wan", "Wan"), rungs=("resident", "lean", "short"), steps=6)
(SPEC,) = specs(record([PLAN], weights=Weights.FULL_RANDOM))
SECONDS = {"loading": 21.0, "encoding_prompt": 2.0, "denoising": 13.0, "decoding": 4.0, "encoding": 1.0}
MEASURED = replace(
    success(SPEC),
    phases=tuple(PhaseTime(phase=phase, seconds=value, started_boottime_ns=0) for phase, value in SECONDS.items()),
    step_s=2.0,
    steps_done=6,
    peak_device_memory_bytes=13 * GIB,
    peak_memory_by_phase=(
        PhaseMemory(phase="loading", peak_bytes=9 * GIB),
        PhaseMemory(phase="denoising", peak_bytes=13 * GIB),
    ),
)


def with_outcome(job: Job, outcome: Outcome) -> Job:
    return replace(job, attempts=(*job.attempts[:-1], replace(job.attempts[-1], outcome=outcome)))


JOB = with_outcome(History(SPEC).complete(40).job, MEASURED)


def found(job: Job, *, full_steps: int = 6, energy_wh: float | None = None, extrapolate: bool = False) -> Rehearsed:
    energy = {} if energy_wh is None else {job.spec.job_id: energy_wh}
    [line] = rehearsal.rehearsed([job], [PLAN], {"wan": full_steps}, energy, extrapolate=extrapolate)
    return line


def cell(line: Rehearsed, column: str) -> str:
    return line.cells[COLUMNS.index(column)]


def test_making_random_weights_is_not_called_a_load() -> None:
    """Reading real ones takes as long as the disk wants; nobody has measured it here."""
    assert "Load" not in COLUMNS
    assert cell(found(JOB), "Build") == "21 s"


def test_a_whole_clip_is_said_as_it_was_measured() -> None:
    assert found(JOB, energy_wh=1.234).cells == (
        "wan",
        "resident",
        "load 9.0, denoise 13.0 GiB",
        "21 s",
        "2 s",
        "4.0 s",
        "19 s",
        "1.23 Wh",
        "16 GiB",
        "",
    )


def test_a_clip_of_fewer_steps_is_extrapolated_only_when_asked_and_says_so() -> None:
    asked = found(JOB, full_steps=50, energy_wh=1.0, extrapolate=True)
    assert asked.clip_s == 2 + 13 + 44 * 2.0 + 4  # six steps took 13 s: the first one is dearer, and is paid once
    assert cell(asked, "Clip") == "1 min 47 s (from 6 of 50 steps)"
    assert cell(asked, "Energy") == "1.00 Wh (6 steps)"
    plain = found(JOB, full_steps=50)
    assert (plain.clip_s, plain.is_extrapolated, cell(plain, "Clip")) == (None, False, "not measured")


def test_a_pace_of_one_step_extrapolates_nothing() -> None:
    line = found(with_outcome(JOB, replace(MEASURED, step_s=None)), full_steps=50, extrapolate=True)
    assert (line.clip_s, cell(line, "Clip"), cell(line, "Step")) == (None, "not measured", "not measured")


def test_what_nobody_measured_is_not_measured() -> None:
    bare = with_outcome(JOB, replace(MEASURED, peak_memory_by_phase=(), peak_device_memory_bytes=None))
    line = found(bare)
    assert {cell(line, name) for name in ("Peak memory", "Energy", "Smallest card")} == {"not measured"}


def test_the_way_down_the_ladder_and_its_price_are_noted() -> None:
    history = History(SPEC).start().end(failure(FailureClass.OOM_DENOISE)).complete(40, rung=2)
    mark = Mark(kind=MarkKind.REDUCED, parameter="num_frames", requested="81", effective="41", reason="rung short")
    line = found(with_outcome(history.job, replace(MEASURED, marks=(mark,))))
    assert (line.rung, line.note) == (
        "short",
        "num_frames reduced: 81 -> 41 (rung short); resident: oom_denoise",
    )
    assert rehearsal.headline([line, found(JOB)], 16) == (
        "2 of 2 lanes made a clip under 16 GiB, 1 of them without a change to the picture"
    )


def test_a_lane_that_fits_nowhere_says_why() -> None:
    line = found(History(SPEC).fail(FailureClass.OOM_DECODE, "no memory", "a larger card").job)
    assert (line.rung, cell(line, "Fits at")) == (None, "failed")
    assert line.note == "oom_decode: no memory. Fix: a larger card."
    assert rehearsal.headline([line], None) == "0 of 1 lanes made a clip"


def test_a_refused_lane_is_in_the_table() -> None:
    [line] = rehearsal.refused([SkippedLane(lane_id="svd", lane_title="SVD", reason="needs a GPU")])
    assert (cell(line, "Fits at"), line.note) == ("refused", "needs a GPU")


@pytest.mark.parametrize("cap_gib", [None, 16.0])
def test_headline_counts_what_fits(cap_gib: float | None) -> None:
    assert rehearsal.headline([found(JOB)], cap_gib) == f"1 of 1 lanes made a clip{' under 16 GiB' if cap_gib else ''}"
