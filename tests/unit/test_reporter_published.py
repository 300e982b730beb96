"""The case study writes itself: its table row by row, and its lessons, from a made sweep with the same endings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from screentest.records import (
    FailureClass,
    FindingEdited,
    Mark,
    MarkKind,
    SkippedLane,
    SweepEvent,
    SweepRecord,
    Task,
    Weights,
)
from screentest_reporter import case_study, charts, heat_map, notes, page, pareto
from screentest_reporter.case_study import CaseStudy, Material
from screentest_reporter.controls import Result
from screentest_reporter.model_table import COLUMNS, Pictures, ReportRow
from screentest_reporter.notes import Note
from screentest_reporter.scores import JudgeVerdict, Scores
from screentest_reporter.sweeps import SweepState
from tests import made_case_study
from tests.made_case_study import clip_score
from tests.made_judgements import IN_ORDER, RUBRIC
from tests.made_sweeps import BEGAN_AT, History, failure, plan, record, specs, stamp, submitted, success

# Of the published table, but for the sentences of its findings: those are made of other data here.
PUBLISHED = (
    ("Wan 2.1 T2V 1.3B", "T2V", "completed", "343.94s", "black"),
    ("CogVideoX 2B", "T2V", "completed", "209.27s", "static and missing narrative beats"),
    ("CogVideoX 5B", "T2V", "completed", "714.54s", "missing"),
    ("Mochi 1 Preview", "T2V", "failed", "20.73s", "CUDA out of memory"),
    ("SkyReels V2 DF 14B 540P", "T2V", "failed", "7200.01s", "960x544, 49 frames"),
    ("LTX Video 13B Distilled", "I2V", "failed", "48.88s", "CUDA out of memory"),
    ("HunyuanVideo I2V", "I2V", "failed", "300.56s", "after the image was handed over"),
    ("SkyReels V1 Hunyuan I2V", "I2V", "failed", "5.75s", "model_index.json"),
    ("SkyReels V2 I2V 14B 540P", "I2V", "failed", "607.73s", "channels"),
    ("Stable Video Diffusion XT", "I2V", "failed", "7.71s", "guidance_scale"),
)


@pytest.fixture(scope="module")
def study() -> CaseStudy:
    return made_case_study.study(made_case_study.sweep())


def test_first_columns_are_those_of_the_case_study(study: CaseStudy) -> None:
    assert COLUMNS[:6] == ("Model", "Task", "Status", "Latency", "Prompt match", "Finding")
    assert all(len(row.cells) == len(row.sort_keys) == len(COLUMNS) for row in study.rows)


def test_the_published_table_comes_out_row_by_row(study: CaseStudy) -> None:
    assert [row.cells[:4] for row in study.rows] == [line[:4] for line in PUBLISHED]
    for row, (*_, status_, _, finding) in zip(study.rows, PUBLISHED, strict=True):
        assert finding in row.cells[5]
        assert (row.cells[4] == "n/a") == (status_ == "failed")
    matches = [float(row.cells[4].removesuffix("/10")) for row in study.rows[:3]]
    assert matches == sorted(matches) and matches[0] == 0 and max(matches) < 4  # black, texture, place


def texts(found: CaseStudy) -> dict[str, str]:
    return {note.topic: note.text for note in found.notes}


def test_lessons_of_the_case_study_come_from_data(study: CaseStudy) -> None:
    said = texts(study)
    assert "low-memory rung" in said["oom_denoise"] and "CUDA out of memory (48.88s)" in said["oom_denoise"]
    assert "guidance_scale" in said["bad_kwargs"]
    assert "image-conditioning" in said["conditioning"] and "channels" in said["channels"]
    assert "layout" in said["layout"] and "model_index.json" in said["layout"]
    assert said["survivors killed"].startswith("3 processes outlived the stop of 1 attempt (timeout)")
    assert "13 elements in 4 beats" in said["prompt"] and "a shot (or a keyframe) per beat" in said["prompt"]
    assert "keyframe drifts" in said["keyframe"] and "cyborg brain" in said["keyframe"]


def test_notes_know_no_model_and_no_published_sentence() -> None:
    """The room that writes them must not hold what it is to find."""
    source = Path(notes.__file__).read_text().lower()
    known = (
        "wan2",
        "wan 2",
        "cogvideo",
        "mochi",
        "skyreels",
        "ltx",
        "hunyuan",
        "stable video",
        "guidance_scale",
        "model_index",
    )
    assert not [name for name in known if name in source]


def test_executive_read_says_what_was_proven_and_what_cannot_be_said(study: CaseStudy) -> None:
    said = {reading.title: " ".join(s.text for s in reading.sentences) for reading in study.readings}
    assert "10 of 10 jobs reached a terminal state, 3 clips are in the depot" in said["What the sweep proved"]
    assert "follow the mood better than the story" in said["What the sweep proved"]
    assert "No scored clip shows child, doll" in said["What the sweep proved"]
    assert "I2V is not ready as configured: none of 5 rows" in said["By task"]
    assert "4 lost to adapter or API mismatch, 1 lost to memory pressure" in said["By task"]
    assert "a rank needs 3 seeds" in said["What this sweep can and cannot say"]
    assert "uncalibrated" in said["What this sweep can and cannot say"]


def test_every_proof_is_on_the_page(study: CaseStudy) -> None:
    shown = page.render_html(study)
    anchors = {proof.anchor for reading in study.readings for s in reading.sentences for proof in s.proofs}
    assert anchors and all(f'id="{anchor}"' in shown for anchor in anchors)


def test_headline_has_every_figure_and_says_how_it_is_computed(study: CaseStudy) -> None:
    figures = {figure.label: figure.value for figure in study.figures}
    assert figures["lanes completed"] == "3 of 10"
    assert (figures["p95 GPU utilisation"], figures["peak power"]) == ("96%", "93.66 W")
    assert figures["time lost to failures"] == "2 h 17 min"
    assert set(figures) >= {"vitals samples", "peak temperature", "GPU energy", "GPU-hours"}
    assert all(figure.how for figure in study.figures)


def test_without_judgements_nothing_is_scored_and_that_is_said() -> None:
    found = made_case_study.study(made_case_study.sweep(), with_scores=False)
    assert {row.prompt_match for row in found.rows} == {"not scored", "n/a"}
    assert "Prompt match is not scored: no judge was asked." in page.render_markdown(found)
    shown = page.render_html(found)
    assert "Not drawn: no clip has a score." in shown and "Not scored: no judge was asked." in shown


# ---- one cause, one note


def notes_of(made: SweepRecord, *histories: History, scores: Scores | None = None) -> tuple[Note, ...]:
    return notes.operator_notes(*view(made, *histories), scores or Scores())


def view(made: SweepRecord, *histories: History) -> tuple[SweepState, tuple[ReportRow, ...]]:
    state = SweepState(sweep_id=made.sweep_id)
    state.apply_sweep_event(submitted(made), 1)
    for sequence, event in enumerate((event for history in histories for event in history.events), start=2):
        state.apply_job_event(event, sequence)
    return state, made_case_study.study(made, found=state, with_scores=False).rows


LANE = replace(plan("a", "Lane A"), rungs=("resident", "offload"))


def test_a_row_that_fell_to_a_lower_rung_says_where_to_start() -> None:
    made = record([LANE], weights=Weights.HUB)
    (spec,) = specs(made)
    fell = History(spec).start().wait(70).end(failure(FailureClass.OOM_DENOISE)).wait(1).complete(rung=1)
    (note,) = notes_of(made, fell)
    assert (note.topic, note.models) == ("rung", ("Lane A",))
    assert note.text.startswith("Start at rung offload on this card: 1 row fell from resident (oom_denoise)")
    assert "lost 70.00s" in note.text


def test_an_argument_that_was_not_passed_is_named() -> None:
    mark = Mark(kind=MarkKind.DROPPED, parameter="shift", requested="5", effective="", reason="it takes none")
    made = record([plan("a", "Lane A", marks=[mark])], weights=Weights.HUB)
    (spec,) = specs(made)
    (note,) = notes_of(made, History(spec).complete())
    assert note.text.startswith("shift was not passed to 1 row (it takes none)")


def test_skipped_lanes_and_shared_gpus_are_noted() -> None:
    made = record([LANE], weights=Weights.HUB, skipped=[SkippedLane(lane_id="x", lane_title="X", reason="no keyframe")])
    (spec,) = specs(made)
    history = History(spec).start(shared_gpu=True).wait(5).end(success(spec)).succeed()
    assert [note.topic for note in notes_of(made, history)] == ["left out before queueing", "shared GPU"]


def test_a_judge_that_fails_its_controls_is_not_to_be_ranked_by() -> None:
    made = record([LANE], weights=Weights.HUB)
    judge = JudgeVerdict(judge_id="j", judge_title="Judge J", verdict=made_case_study.verdict(Result.FAILED))
    (note,) = notes_of(made, scores=Scores(judges=(judge,)))
    assert note.text.startswith("Do not rank by Judge J: black failed: as it should not.")


def test_a_score_of_a_greyed_judge_is_shown_as_such() -> None:
    made = made_case_study.sweep()
    failed = JudgeVerdict(judge_id="judge-c", judge_title="Judge C", verdict=made_case_study.verdict(Result.FAILED))
    rows = made_case_study.study(made, judges=(failed,)).rows
    assert [row.is_greyed for row in rows[:4]] == [False, True, True, False]  # the black clip needs no judge
    assert "greyed" in page.render_html(made_case_study.study(made, judges=(failed,)))


def test_a_prompt_whose_beats_are_shown_is_not_called_too_dense() -> None:
    made = made_case_study.sweep()
    told = replace(made_case_study.scores(made), clips={"job-2": clip_score(IN_ORDER)})
    rows = tuple(
        replace(row, score=told.clips.get(row.row.job_id))
        for row in made_case_study.study(made, with_scores=False).rows
    )
    found = notes.operator_notes(made_case_study.state(made), rows, told)
    assert "prompt" not in {note.topic for note in found}


# ---- judge jobs


def test_judge_jobs_are_no_rows_and_hold_up_no_final_report() -> None:
    made = made_case_study.sweep()
    state = made_case_study.state(made)
    judge = History(replace(specs(made)[0], job_id="judge-1", task=Task.JUDGE))
    state.apply_job_event(judge.events[0], 1000)
    assert state.is_final and not state.is_at_rest  # it is published, and more is expected
    assert "judge-1" not in {row.row.job_id for row in made_case_study.study(made, found=state).rows}
    for event in judge.cancel().events[1:]:
        state.apply_job_event(event, 1001)
    assert state.is_at_rest


# ---- what a person wrote


def edited(state: SweepState, row: str, text: str) -> None:
    body = FindingEdited(row=row, text=text, by="ada")
    state.apply_sweep_event(SweepEvent(event_id=row, sweep_id=state.sweep_id, stamp=stamp(90), body=body), 999)


def test_both_versions_of_an_edited_finding_and_note_are_kept() -> None:
    made = made_case_study.sweep()
    state = made_case_study.state(made)
    edited(state, "job-2", "Best mood match; suggests a cracked dome.")
    edited(state, "note:layout", "Use the converted repository.")
    edited(state, "note:mine", "Buy a bigger card.")
    study = made_case_study.study(made, found=state)
    row = study.rows[2]
    assert row.finding.text == "Best mood match; suggests a cracked dome."
    assert row.finding.original.startswith("Valid MP4, gothic cathedral")
    by_id = {note.note_id: note for note in study.notes}
    assert by_id["note:layout"].text == "Use the converted repository."
    assert by_id["note:layout"].original.startswith("Point the lane at a repository")
    assert (by_id["note:mine"].text, by_id["note:mine"].original) == ("Buy a bigger card.", "")
    shown = page.render_html(study)
    assert row.finding.original in shown and "edited by ada" in shown
    edited(state, "job-2", "")
    assert made_case_study.study(made, found=state).rows[2].finding.edit is None


# ---- plots and maps


def test_heat_map_groups_by_beat_and_leaves_what_was_not_scored_open(study: CaseStudy) -> None:
    (found,) = study.heat_maps
    assert [column.title for column in found.columns][:3] == ["CogVideoX 5B", "CogVideoX 2B", "Wan 2.1 T2V 1.3B"]
    assert [group.title for group in found.groups][-1] == "Anywhere in the clip"
    (cathedral, *_) = found.groups[0].lines
    best, texture, black, *failed = cathedral.cells
    assert best.presence == pytest.approx(0.92) and texture.presence == pytest.approx(0.92)
    assert (black.presence, black.dead) == (None, "black")
    assert {cell.presence for cell in failed} == {None}
    holds = next(line for line in found.groups[0].lines if line.element.id == "child-holds-doll")
    assert holds.cells[0].without == "child"
    assert heat_map.shade(None) == "unscored" and heat_map.shade(0.5) == "p5" and heat_map.shade(1.0) == "p10"


def test_path_in_words_names_only_beats_that_are_seen() -> None:
    parts = clip_score(IN_ORDER).score.parts
    assert parts is not None
    assert heat_map.path_text(parts.beats).startswith("beat 1 in part 1 of 8, beat 2 in part 3 of 8")
    assert heat_map.beat_strip(parts.beats).count("<rect") == len(RUBRIC.beats) * RUBRIC.window_count
    dark = made_case_study.clip_score(made_case_study.NOTHING).score.parts
    assert dark is not None and heat_map.path_text(dark.beats) == "no beat is seen"


def test_plots_of_thousands_of_jobs_stay_small_enough_to_draw() -> None:
    made = record([replace(plan("a", "Lane A"), device="gpu-0")], seeds=range(1000), weights=Weights.HUB)
    histories = [History(spec, second=3 * number).complete(3) for number, spec in enumerate(specs(made))]
    state, _ = view(made, *histories)
    found = Scores(clips=dict.fromkeys(list(state.jobs)[:300], clip_score(IN_ORDER)))
    material = Material(
        recordings={"local": made_case_study.recording(3000)}, pictures={}, keyframe=Pictures(), scores=found
    )
    study = case_study.build(state, material, revision=1, published_at=BEGAN_AT, epoch="epoch")
    figures = charts.figures(study.chart, study.ledger, study.rows)
    assert figures["timeline"]["bars"] == [["Lane A", "attempts", 0.0, 3000.0, "completed"]]
    assert (figures["pareto_s"]["clips"], len(figures["pareto_s"]["points"])) == (300, 1)
    assert figures["pareto_s"]["points"][0]["x"] == 3.0


def test_front_holds_what_nothing_beats_in_score_and_cost() -> None:
    assert pareto.front([(3, 5), (1, 2), (2, 1), (2, 4), (5, 5), (4, 6)]) == ((1, 2), (2, 4), (3, 5), (4, 6))
    assert pareto.front([(1, 2), (2, 2), (1, 1)]) == ((1, 2),)  # the same score for more is no better
    assert pareto.front([]) == ()
