"""The model table: what each row says, and which job of a cell it is about."""

from __future__ import annotations

import pytest

from screentest import table
from screentest.records import FailureClass, Job, Mark, MarkKind, Task, Weights
from tests.made_sweeps import History, failure, plan, record, retry_of, specs

WAN = plan("wan2-1-t2v-1-3b", "Wan 2.1 T2V 1.3B")
SVD = plan("svd-xt", "Stable Video Diffusion XT", Task.I2V)


def only(*jobs: Job) -> table.Row:
    (row,) = table.rows(jobs)
    return row


def test_columns_are_those_of_the_case_study() -> None:
    assert table.COLUMNS == ("Model", "Task", "Status", "Latency", "Prompt match", "Finding")


def test_completed_row_reads_like_the_case_study() -> None:
    (spec,) = specs(record([WAN], weights=Weights.HUB))
    assert only(History(spec).complete(343.94).job).cells == (
        "Wan 2.1 T2V 1.3B",
        "T2V",
        "completed",
        "343.94s",
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
        "preflight_refused: it needs a keyframe. Fix: give one.",
    )
    assert only(History(spec).cancel("ada").job).cells[2:] == ("cancelled", "n/a", "n/a", "cancelled by ada.")


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
        (("defaulted", "fps", "", "7", ""), "fps defaulted: 7"),
    ],
)
def test_marks_are_footnotes(mark: tuple[str, ...], text: str) -> None:
    kind, parameter, requested, effective, reason = mark
    made = Mark(kind=MarkKind(kind), parameter=parameter, requested=requested, effective=effective, reason=reason)
    assert table.mark_text(made) == text


def test_renderers_number_each_different_footnote_once() -> None:
    mark = Mark(kind=MarkKind.CLAMPED, parameter="steps", requested="9", effective="8", reason="fixed")
    lanes = [plan("a", "A", marks=[mark]), plan("b", "B", marks=[mark])]
    rows = table.rows(History(spec).job for spec in specs(record(lanes)))
    plain = table.plain(rows)
    assert "A [1]" in plain and "B [1]" in plain and plain.count("steps clamped: 9 -> 8") == 1


def test_markdown_survives_pipes_and_tags_in_a_cause() -> None:
    (spec,) = specs(record([WAN]))
    text = table.markdown(table.rows([History(spec).fail(FailureClass.CRASHED, "a | b <script>").job]))
    assert "a \\| b \\<script\\>" in text
    assert all(line.replace("\\|", "").count("|") == 7 for line in text.splitlines()[:3])
