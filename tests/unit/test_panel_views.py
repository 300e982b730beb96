"""The panel's view models: what a person sees of records, without a browser."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest.errors import BadRequest
from screentest.records import JobState, LaneVerdict, ProofKind, Requested, Task, Verdict, Weights
from screentest_ui import panel_form, panel_queue, panel_sweep, panel_text, panel_vitals
from screentest_ui.panel_form import Draft
from tests.integration.panel_scheduler import HOSTILE, device, job, lane, progress, proof, sweep, vitals

DRAFT = Draft(
    title="Night tram",
    prompts_text="A tram\ncrosses a bridge.\n\nA dog waits.",
    lane_ids=("stub", "stub-i2v"),
    seeds_text="42, 43",
    weights=Weights.MINIATURE,
)
REFUSED = {
    "stub-i2v": LaneVerdict(lane_id="stub-i2v", lane_title="Stub I2V", verdict=Verdict.REFUSED, detail="no keyframe")
}


# ---- text


def test_markdown_of_user_text_is_escaped_mark_by_mark() -> None:
    escaped = panel_text.plain(HOSTILE)
    for mark in "<>*[]():$`/.":
        assert mark not in escaped.replace("\\" + mark, "")
    for found_later in ("http:/", "www.", ":smile:"):
        assert found_later not in escaped.replace("\\", "")


def test_an_address_of_ours_can_be_copied() -> None:
    assert panel_text.plain("127.0.0.1:50051").replace("\\", "") == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "unknown"), (0.42, "0.4 s"), (59.6, "1 min 0 s"), (344, "5 min 44 s"), (7200, "2 h 0 min")],
)
def test_duration_is_short_and_never_invented(seconds: float | None, words: str) -> None:
    assert panel_text.duration(seconds) == words


def test_a_column_is_as_wide_as_its_longest_text() -> None:
    widths = [panel_text.column_px(texts) for texts in ([], ["stub"], ["stub", "skyreels-v2-df-14b-540p"])]
    assert widths == sorted(set(widths))
    assert widths[-1] > 6.2 * len("skyreels-v2-df-14b-540p")


# ---- the form


def test_a_block_of_lines_is_one_prompt() -> None:
    assert panel_form.prompts(" A tram\n crosses.\r\n\r\n\n A dog waits. \n") == ("A tram crosses.", "A dog waits.")


def test_seeds_are_whole_numbers_each_once() -> None:
    assert panel_form.seeds("42, 43 42") == (42, 43)
    for wrong in ("4.2", "-1", "x", "9223372036854775808", "²"):
        with pytest.raises(BadRequest, match="is no seed"):
            panel_form.seeds(wrong)


def test_an_empty_form_says_everything_that_is_missing() -> None:
    empty = Draft(title=" ", prompts_text="\n", lane_ids=(), seeds_text="", weights=Weights.HUB)
    fields = [item.field for item in panel_form.problems(empty)]
    assert fields == ["spec.title", "spec.prompts", "spec.lane_ids", "spec.seeds"]


def test_request_id_is_the_same_for_the_same_form_and_another_for_a_changed_one() -> None:
    spec = panel_form.spec(DRAFT)
    again = panel_form.request_id("n", panel_form.spec(DRAFT))
    changed = panel_form.spec(Draft(**{**_fields(DRAFT), "requested": Requested(steps=9)}))
    assert panel_form.request_id("n", spec) == again
    assert panel_form.request_id("n", changed) != again
    assert panel_form.request_id("other", spec) != again


def test_a_refused_lane_is_skipped_or_refuses_the_sweep_as_the_submitter_chose() -> None:
    refuse = Draft(**{**_fields(DRAFT), "skip_impossible": False})
    assert panel_form.job_count(DRAFT, {}) == 8
    assert panel_form.job_count(DRAFT, REFUSED) == 4
    assert panel_form.blocked_by(DRAFT, REFUSED) == ()
    assert panel_form.blocked_by(refuse, REFUSED) == ("Stub I2V",)


def test_a_sweep_of_refused_lanes_only_cannot_be_submitted() -> None:
    alone = Draft(**{**_fields(DRAFT), "lane_ids": ("stub-i2v",)})
    assert panel_form.blocked_by(alone, REFUSED) == ("Stub I2V",)


def test_miniatures_are_the_usual_choice_only_without_a_gpu() -> None:
    assert panel_form.usual_weights([lane("a"), lane("b", task=Task.I2V)]) is Weights.MINIATURE
    assert panel_form.usual_weights([lane("a"), lane("b", device="gpu-0")]) is Weights.HUB


def _fields(draft: Draft) -> dict[str, object]:
    return {name: getattr(draft, name) for name in draft.__dataclass_fields__}


# ---- the queue


def test_card_of_a_running_job_shows_phase_steps_and_time_left() -> None:
    running = job("j", JobState.RUNNING)
    card = panel_queue.job_card(_with_progress(running, "denoising", 12, 50))
    assert (card.phase, card.fraction) == ("denoising", 0.24)
    assert card.detail == "step 12 of 50, 0.5 s a step, about 19 s left"


def test_a_phase_without_steps_has_no_fraction() -> None:
    card = panel_queue.job_card(_with_progress(job("j", JobState.RUNNING), "loading"))
    assert (card.phase, card.fraction, card.detail) == ("loading the model", None, "")


def test_progress_of_an_earlier_attempt_is_not_shown() -> None:
    running = _with_progress(job("j", JobState.RUNNING), "uploading")
    second = replace(running.attempts[0], attempt=2)
    card = panel_queue.job_card(replace(running, attempts=(*running.attempts, second)))
    assert card.phase == "started, no progress reported yet"


def test_waiting_jobs_keep_the_order_and_the_reasons_are_counted() -> None:
    jobs = [job("b", JobState.QUEUED, ordinal=1, waits_for="no worker"), job("a", JobState.QUEUED, waits_for="")]
    waiting = panel_queue.waiting(jobs)
    assert [item.job_id for item in waiting] == ["a", "b"]
    assert panel_queue.reasons(waiting) == (("their turn", 1), ("no worker", 1))


def test_a_drained_device_says_why() -> None:
    unclean = proof(clean=False, reason="runner 7 is alive")
    view = device(drained=True, drained_reason="not proven in 60 s", proof=unclean)
    card = panel_queue.device_card(view, {}, {})
    assert (card.state, card.detail) == ("drained", "not proven in 60 s")
    assert card.proof.startswith("not clean at")
    assert card.proof.endswith("(proc): runner 7 is alive")


def test_a_runner_that_leaves_for_the_next_job_is_no_fault() -> None:
    leaving = proof(clean=False, reason="runner 7 is alive")
    coming = job("next", JobState.ADMITTED, lane_title="Wan 2.1")
    card = panel_queue.device_card(device(job_id="next", proof=leaving), {"next": coming}, {})
    assert (card.state, card.detail) == ("busy", "Wan 2.1, about to start")
    assert card.proof.startswith("not proven free at")
    assert card.proof.endswith("(proc): runner 7 is alive")
    gone = replace(leaving, kind=ProofKind.CONTINUE, reason="nobody holds the lock")
    assert panel_queue.device_card(device(proof=gone), {}, {}).proof.startswith("not proven free at")


def test_trail_marks_the_present_phase() -> None:
    places = dict(panel_queue.trail("denoising"))
    assert (places["loading"], places["denoising"], places["uploading"]) == ("done", "now", "ahead")
    assert set(dict(panel_queue.trail("unheard-of")).values()) == {"ahead"}


def _with_progress(running, phase, step=None, steps=None):  # type: ignore[no-untyped-def]
    return replace(running, progress=progress(running.spec, phase, step, steps))


# ---- a sweep


def test_only_the_last_try_of_a_cell_counts() -> None:
    first = job("first", JobState.FAILED, lane_id="l")
    second = job("second", JobState.COMPLETED, lane_id="l", ordinal=0, retry_of="first", retry_index=1)
    jobs = (first, second)
    assert [card.job_id for card in panel_sweep.clips(jobs)] == ["second"]
    assert panel_sweep.retryable(jobs) == ()
    (ending,) = panel_sweep.endings(jobs)
    assert (ending.job_id, ending.can_retry) == ("first", False)


def test_failed_cells_can_be_retried_and_keep_cause_and_fix() -> None:
    jobs = (job("a", JobState.COMPLETED), job("b", JobState.FAILED, ordinal=1))
    assert panel_sweep.retryable(jobs) == ("b",)
    (ending,) = panel_sweep.endings(jobs)
    assert (ending.failure_class, ending.cause, ending.fix) == ("stalled", "no step for 120 s", "raise step_stall_s")


def test_the_final_proof_is_shown_with_its_device() -> None:
    settled = sweep((job("a", JobState.COMPLETED),), settled=True)
    assert panel_sweep.headline(settled) == "over"
    assert "cpu-0 on local: process table clean at " in panel_sweep.proof_lines(settled)[0]


def test_model_rows_have_the_case_studys_columns() -> None:
    rows = panel_sweep.model_rows((job("a", JobState.COMPLETED),))
    assert list(rows[0]) == [
        "Model",
        "Task",
        "Status",
        "Latency",
        "Rung",
        "Smallest card",
        "Prompt match",
        "Finding",
    ]
    assert (rows[0]["Latency"], rows[0]["Prompt match"]) == ("8.00s", "not scored")


# ---- vitals


def test_batches_are_merged_once_in_order_and_old_ones_leave() -> None:
    known = [vitals(second, gpu=False) for second in range(0, 10)]
    fresh = [vitals(second, gpu=False) for second in range(8, 12)]
    merged = panel_vitals.merge(known, fresh, last_s=5)
    assert [batch.stamp.boottime_ns // 10**9 - 1000 for batch in merged] == [6, 7, 8, 9, 10, 11]


def test_a_silence_breaks_the_curve() -> None:
    batches = [vitals(second, gpu=True) for second in (*range(5), *range(60, 65))]
    values = [point.value for point in panel_vitals.points(panel_vitals.readings(batches, panel_vitals.UTILISATION))]
    assert values.count(None) == 1
    assert values.index(None) == 5


def test_what_the_driver_does_not_give_is_unknown() -> None:
    batches = [vitals(second, gpu=True) for second in range(5)]
    memory = panel_vitals.figure(panel_vitals.readings(batches, panel_vitals.MEMORY))
    assert panel_vitals.shown(memory.peak, "GiB") == "unknown"
    assert panel_vitals.refused_fields(batches) == ("memory=not_supported",)


def test_thinning_keeps_the_peak_and_no_figure_is_made_of_what_is_left() -> None:
    """One reading of 25 is high: 4 % of all, and 40 % of the highest of each ten."""
    batches = [vitals(second, gpu=False) for second in range(1000)]
    found = [
        replace(point, value=90.0 if number % 25 == 0 else 10.0)
        for number, point in enumerate(panel_vitals.readings(batches, panel_vitals.CPU)[:1000])
    ]
    drawn = panel_vitals.points(found, most=100)
    assert len(drawn) == 100
    assert (panel_vitals.figure(found).p95, panel_vitals.figure(found).peak) == (10.0, 90.0)
    assert panel_vitals.figure(drawn).peak == 90.0


def test_a_machine_without_gpu_says_so_and_shows_its_host() -> None:
    batches = [vitals(0, gpu=False)]
    assert panel_vitals.curves(batches) == panel_vitals.HOST_CURVES
    assert "No GPU is visible on host local (NVML library not found)" in panel_vitals.source_line(batches[0])
