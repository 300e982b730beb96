"""The model table: what each row says, and which job of a cell it is about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest import table
from screentest.records import Estimate, FailureClass, Job, LanePlan, Mark, MarkKind, Task, Weights
from tests.made_sweeps import History, failure, plan, record, retry_of, specs

WAN = plan("wan2-1-t2v-1-3b", "Wan 2.1 T2V 1.3B")
SVD = plan("svd-xt", "Stable Video Diffusion XT", Task.I2V)


def only(*jobs: Job) -> table.Row:
    (row,) = table.rows(jobs)
    return row


def test_columns_are_those_of_the_case_study_and_what_a_card_needs() -> None:
    shared, added = ("Model", "Task", "Status", "Latency", "Prompt match", "Finding"), ("Rung", "Smallest card")
    assert tuple(column for column in table.COLUMNS if column not in added) == shared
    assert set(table.COLUMNS) == {*shared, *added}


def test_completed_row_reads_like_the_case_study() -> None:
    (spec,) = specs(record([WAN], weights=Weights.HUB))
    assert only(History(spec).complete(343.94).job).cells == (
        "Wan 2.1 T2V 1.3B",
        "T2V",
        "completed",
        "343.94s",
        "resident",
        "unknown",
        "not scored",
        "Valid MP4, 25 frames at 16 fps.",
    )


def test_random_weights_and_flags_are_said() -> None:
    (spec,) = specs(record([WAN]))
    row = only(History(spec).complete(flags=["black", "frozen"]).job)
    assert row.random_weights
    assert row.finding == "Valid MP4, 25 frames at 16 fps; flagged black, frozen; random weights."


def test_failed_row_has_its_class_cause_and_fix() -> None:
    (spec,) = specs(record([SVD]))
    row = only(History(spec).fail(FailureClass.BAD_KWARGS, "the pipeline takes no guidance_scale", "drop it").job)
    assert (row.task, row.status, row.prompt_match) == ("I2V", "failed", "n/a")
    assert row.finding == "bad_kwargs: the pipeline takes no guidance_scale. Fix: drop it."


def test_a_cause_that_begins_with_its_class_does_not_say_it_twice() -> None:
    (spec,) = specs(record([SVD]))
    assert only(History(spec).fail(FailureClass.TIMEOUT, "timeout: 7200 s are over").job).finding == (
        "timeout: 7200 s are over."
    )


def test_refused_and_cancelled_rows_have_no_latency() -> None:
    (spec,) = specs(record([WAN]))
    refused = only(History(spec).refuse("it needs a keyframe", "give one").job)
    assert refused.cells[2:] == (
        "refused",
        "n/a",
        "n/a",
        "unknown",
        "n/a",
        "preflight_refused: it needs a keyframe. Fix: give one.",
    )
    assert only(History(spec).cancel("ada").job).cells[2:] == (
        "cancelled",
        "n/a",
        "n/a",
        "unknown",
        "n/a",
        "cancelled by ada.",
    )


def test_latency_is_of_the_deciding_attempt_and_earlier_ones_are_named() -> None:
    (spec,) = specs(record([WAN], weights=Weights.HUB))
    history = History(spec).start().wait(100).end(failure(FailureClass.CRASHED)).wait(3).complete(7)
    row = only(history.job)
    assert row.latency_s == 7
    assert row.finding == "Valid MP4, 25 frames at 16 fps; 2nd attempt; 1st: crashed."


def test_the_latest_try_counts_and_earlier_ones_stand_under_it() -> None:
    (spec,) = specs(record([WAN], weights=Weights.HUB))
    first = History(spec).fail(FailureClass.TIMEOUT, "7200 s are over", latency_s=7200).job
    second = History(retry_of(spec), second=9000).complete(10).job
    row = only(second, first)
    assert (row.job_id, row.status, row.latency_s) == ("job-0-r1", "completed", 10)
    assert row.finding == "Valid MP4, 25 frames at 16 fps. 2nd try; 1st: failed, timeout."
    assert [(earlier.status, earlier.latency_s) for earlier in row.earlier] == [("failed", 7200)]
    assert table.latest([first, second]) == (second,)


def test_rows_keep_the_order_of_the_plan_and_name_the_cell_where_needed() -> None:
    sweep = record([WAN, SVD], prompts=("one", "two"), seeds=(1, 2))
    jobs = [History(spec).job for spec in specs(sweep)]
    names = [row.model for row in table.rows(reversed(jobs))]
    assert names[:2] == ["Wan 2.1 T2V 1.3B (prompt 1, seed 1)", "Wan 2.1 T2V 1.3B (prompt 1, seed 2)"]
    assert len(names) == 8


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        (("clamped", "num_frames", "24", "25", "must be 4k+1"), "num_frames clamped: 24 -> 25 (must be 4k+1)"),
        (("dropped", "guidance_scale", "5.0", "", "not taken"), "guidance_scale dropped: 5.0 not passed (not taken)"),
        (("dropped", "prompt", "given", "none", "takes none"), "prompt dropped: not passed (takes none)"),
        (("defaulted", "fps", "", "7", ""), "fps 7"),
        (
            ("defaulted", "negative_prompt", "", f"Bright tones, {'worst ' * 20}", ""),
            'negative_prompt "Bright tones, worst worst worst…"',
        ),
        (("reduced", "num_frames", "81", "41", "rung short"), "num_frames reduced: 81 -> 41 (rung short)"),
    ],
)
def test_marks_are_footnotes(mark: tuple[str, ...], text: str) -> None:
    kind, parameter, requested, effective, reason = mark
    made = Mark(kind=MarkKind(kind), parameter=parameter, requested=requested, effective=effective, reason=reason)
    assert table.mark_text(made) == text


def test_defaults_are_one_footnote_and_no_change() -> None:
    names = (("steps", "50"), ("guidance_scale", "6"))
    defaults = [Mark(kind=MarkKind.DEFAULTED, parameter=n, requested="", effective=e, reason="") for n, e in names]
    change = Mark(kind=MarkKind.CLAMPED, parameter="fps", requested="9", effective="8", reason="")
    lanes = [plan("a", "A", marks=defaults), plan("b", "B", marks=[*defaults, change])]
    first, second = table.rows(History(spec).job for spec in specs(record(lanes)))
    assert first.footnotes == ("defaults of the lane: steps 50, guidance_scale 6",)
    assert second.footnotes == ("fps clamped: 9 -> 8", *first.footnotes)
    assert (first.has_changes, second.has_changes) == (False, True)


def test_renderers_number_each_different_footnote_once() -> None:
    mark = Mark(kind=MarkKind.CLAMPED, parameter="steps", requested="9", effective="8", reason="fixed")
    lanes = [plan("a", "A", marks=[mark]), plan("b", "B", marks=[mark])]
    rows = table.rows(History(spec).job for spec in specs(record(lanes)))
    plain = table.plain(rows)
    assert "A [1]" in plain and "B [1]" in plain and plain.count("steps clamped: 9 -> 8") == 1


def test_markdown_survives_pipes_and_tags_in_a_cause() -> None:
    assert table.markdown_text("a | b <script>") == "a \\| b \\<script\\>"


# ---- rung and smallest card

GIB = 2**30
LADDER = replace(WAN, rungs=("resident", "lean", "short"))


def estimate(rung: int, peak_gib: float | None, *, changes_picture: bool = False) -> Estimate:
    return Estimate(
        rung=rung,
        rung_name=LADDER.rungs[rung],
        changes_picture=changes_picture,
        peak_memory_bytes=None if peak_gib is None else int(peak_gib * GIB),
    )


PLANNED = replace(LADDER, estimates=(estimate(0, 21), estimate(1, 10), estimate(2, 4, changes_picture=True)))


def on_rung(rung: int, peak_gib: float | None = None, marks: tuple[Mark, ...] = ()) -> Job:
    (spec,) = specs(record([LADDER], weights=Weights.FULL_RANDOM))
    job = History(spec).complete(rung=rung).job
    peak_bytes = None if peak_gib is None else int(peak_gib * GIB)
    outcome = replace(job.attempts[-1].outcome, peak_device_memory_bytes=peak_bytes, marks=marks)  # type: ignore[type-var]
    return replace(job, attempts=(*job.attempts[:-1], replace(job.attempts[-1], outcome=outcome)))


def card(job: Job, *plans: LanePlan) -> str:
    (row,) = table.rows([job], plans)
    return row.cells[table.COLUMNS.index("Smallest card")]


def test_the_smallest_card_is_over_the_rungs_that_keep_the_picture() -> None:
    assert card(on_rung(0), PLANNED) == "12 GiB"


def test_what_was_measured_beats_what_was_planned() -> None:
    assert card(on_rung(1, 13), PLANNED) == "16 GiB"
    assert card(on_rung(1, 7), PLANNED) == "8 GiB"


def test_without_a_plan_the_clip_itself_tells() -> None:
    assert card(on_rung(0, 30)) == "32 GiB"
    assert card(on_rung(0)) == "unknown"
    assert card(on_rung(0, 30), replace(PLANNED, lane_digest="another file")) == "32 GiB"


def test_a_reduced_picture_is_no_measure_of_the_whole_one() -> None:
    mark = Mark(kind=MarkKind.REDUCED, parameter="num_frames", requested="81", effective="41", reason="rung short")
    job = on_rung(2, 4, (mark,))
    assert card(job) == "unknown"
    (row,) = table.rows([job])
    assert (row.rung, row.footnotes) == ("short", ("num_frames reduced: 81 -> 41 (rung short)",))


def test_a_miniature_says_nothing_of_the_models_card() -> None:
    (spec,) = specs(record([LADDER]))
    assert card(History(spec).complete().job, PLANNED) == "unknown"


def test_steps_down_the_ladder_are_named_in_the_finding() -> None:
    (spec,) = specs(record([LADDER], weights=Weights.FULL_RANDOM))
    history = History(spec).start().end(failure(FailureClass.OOM_DENOISE)).complete(7, rung=1)
    row = only(history.job)
    assert row.rung == "lean"
    assert row.finding.endswith("2nd attempt; 1st: oom_denoise at resident.")


def test_a_row_says_what_the_report_says_of_its_clip() -> None:
    made = record([plan("wan", "Wan"), plan("ltx", "LTX")])
    first, second = (History(spec).complete(5).job for spec in specs(made))
    rows = table.matched(table.rows([first, second]), {first.spec.job_id: "6.3 ± 1.5, controls 5/5"})
    assert [row.prompt_match for row in rows] == ["6.3 ± 1.5, controls 5/5", "not scored"]


def test_a_judge_job_is_no_row() -> None:
    [spec] = specs(record([plan("wan", "Wan")]))
    judging = History(replace(spec, job_id="judge-clip-1", lane_id="pixels", task=Task.JUDGE)).job
    assert [row.job_id for row in table.rows([judging, History(spec).complete(5).job])] == [spec.job_id]
