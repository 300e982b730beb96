"""What a person reads about a lane before anything is queued; nothing unknown becomes a number."""

from __future__ import annotations

from dataclasses import replace

from screentest.records import Estimate, LaneVerdict, Mark, MarkKind, Verdict
from screentest_ui.outlook import COLUMNS, outlook
from tests.made_sweeps import plan

MARK = Mark(kind=MarkKind.CLAMPED, parameter="num_frames", requested="24", effective="25", reason="4k+1 frames only")
LEAN = Estimate(
    rung=1,
    rung_name="lean",
    load_s=31,
    clip_s=344,
    low_s=250,
    high_s=420,
    energy_wh=7.654,
    peak_memory_bytes=int(14.2 * 2**30),
    clips=3,
    basis="3 clips on this GPU",
)
PLAN = replace(plan("wan", "Wan"), rungs=("resident", "lean", "short"), first_rung=1, estimates=(LEAN,))


def verdict(**changes: object) -> LaneVerdict:
    made = LaneVerdict(lane_id="wan", lane_title="Wan", verdict=Verdict.OK, detail="", plan=PLAN)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_everything_known_is_said() -> None:
    found = outlook(verdict(memory_free_bytes=int(22.1 * 2**30)))
    assert dict(zip(COLUMNS, found.cells, strict=True)) == {
        "Lane": "wan",
        "Verdict": "ok",
        "Rung": "lean",
        "Size": "96x64",
        "Frames": "25",
        "Steps": "2",
        "Memory": "needs 14.2 GiB of 22.1 GiB free",
        "Load": "31 s",
        "Clip": "5 min 44 s (4 min 10 s to 7 min 0 s)",
        "Energy": "7.65 Wh",
        "Why": "",
    }
    assert found.basis == "3 clips on this GPU"


def test_nothing_known_is_no_number() -> None:
    found = outlook(verdict(plan=replace(PLAN, estimates=())))
    assert (found.memory, found.load, found.clip, found.energy) == ("unknown",) * 4
    assert found.basis == "nobody has measured this"
    known_memory = outlook(verdict(plan=replace(PLAN, estimates=()), memory_free_bytes=2**30))
    assert known_memory.memory == "need unknown of 1.0 GiB free"


def test_a_refusal_says_why_and_what_fits_instead() -> None:
    refused = verdict(verdict=Verdict.REFUSED, plan=None, detail="needs 30 GiB, 7 GiB are free", fix="17 frames fit")
    assert outlook(refused).why == "needs 30 GiB, 7 GiB are free; Fix: 17 frames fit"
    assert set(outlook(refused).cells[2:-1]) == {""}


def test_marks_of_the_plan_are_said_once_beside_the_workers_words() -> None:
    default = replace(MARK, kind=MarkKind.DEFAULTED, parameter="steps", requested="", effective="50", reason="")
    marked = replace(PLAN, marks=(MARK, default), preflight="fixed: num_frames 24 -> 25")
    fixed = verdict(verdict=Verdict.FIXED, plan=marked, detail="num_frames 24 -> 25; guidance renamed")
    assert outlook(fixed).why == "guidance renamed; num_frames clamped: 24 -> 25 (4k+1 frames only)"


def test_a_rung_that_changes_the_picture_says_so() -> None:
    short = replace(LEAN, rung=2, rung_name="short", changes_picture=True)
    assert outlook(verdict(plan=replace(PLAN, first_rung=2, estimates=(LEAN, short)))).rung == (
        "short (changes the picture)"
    )
