"""What the published page says, and what it can never do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from screentest.records import (
    DeviceProof,
    FailureClass,
    JobSpec,
    Keyframe,
    Process,
    ProofKind,
    SkippedLane,
    SweepRecord,
    Task,
    Weights,
)
from screentest_reporter import case_study, narrative
from screentest_reporter.case_study import CaseStudy, Material
from screentest_reporter.model_table import Pictures
from screentest_reporter.publish import draft_of
from screentest_reporter.sweeps import SweepState
from tests.made_sweeps import BEGAN_AT, RUNNER, History, plan, proof, record, retry_of, settled, specs, submitted

WAN = plan("wan2-1-t2v-1-3b", "Wan 2.1 T2V 1.3B")
SVD = plan("svd-xt", "Stable Video Diffusion XT", Task.I2V)
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} | *bold*"


def state_of(
    sweep: SweepRecord, histories: Sequence[History], proofs: Sequence[DeviceProof] | None = None
) -> SweepState:
    """Folded; settled when there are proofs."""
    state = SweepState(sweep_id=sweep.sweep_id)
    state.apply_sweep_event(submitted(sweep), 1)
    events = [event for history in histories for event in history.events]
    for sequence, event in enumerate(events, start=2):
        state.apply_job_event(event, sequence)
    if proofs is not None:
        state.apply_sweep_event(settled(sweep, list(state.jobs.values()), proofs, 60), len(events) + 2)
    return state


def study_of(state: SweepState, pictures: dict[str, Pictures] | None = None) -> CaseStudy:
    material = Material(recordings={}, pictures=pictures or {}, keyframe=Pictures())
    return case_study.build(state, material, revision=3, published_at=BEGAN_AT, epoch="epoch")


def device(clean_proof: object) -> DeviceProof:
    return DeviceProof(host="local", device="cpu-0", proof=clean_proof)  # type: ignore[arg-type]


FREE = device(proof(second=60))


def done(sweep: SweepRecord, *failed: int) -> list[History]:
    """Every cell completed, but those at these places."""
    return [
        History(spec).fail(FailureClass.OOM_DENOISE, "CUDA out of memory")
        if place in failed
        else History(spec).complete()
        for place, spec in enumerate(specs(sweep))
    ]


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self._in_heading = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_heading = tag in {"h1", "h2"}

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False

    def names(self) -> set[str]:
        return {tag for tag, _ in self.found}


def test_sections_stand_in_the_order_of_the_case_study() -> None:
    sweep = record([WAN, SVD], skipped=[SkippedLane(lane_id="x", lane_title="X", reason="no keyframe")])
    headings = Tags(case_study.render_html(study_of(state_of(sweep, done(sweep, 1), [FREE])))).headings
    assert headings == [
        "The Architect's Stillness: a 2-model sweep",
        "What the sweep proved",
        "1 reviewable clip",
        "Contact sheets",
        "Outcome by model",
        "Left out before queueing",
        "What to fix before the next sweep",
        "The machine while it ran",
        "Where these numbers come from",
    ]


@pytest.mark.parametrize("where", ["title", "prompt", "cause"])
def test_other_peoples_text_stays_text(where: str) -> None:
    texts = {"title": "t", "prompt": "p", "cause": "c"} | {where: HOSTILE}
    sweep = record([WAN], title=texts["title"], prompts=[texts["prompt"]])
    (spec,) = specs(sweep)
    study = study_of(state_of(sweep, [History(spec).fail(FailureClass.CRASHED, texts["cause"])], [FREE]))
    page = case_study.render_html(study)
    tags = Tags(page)
    assert "script" not in tags.names() and "49" not in re.findall(r"\b49\b", page)
    assert not [attribute for _, attributes in tags.found for attribute in attributes if attribute.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in case_study.render_markdown(study).replace("\\<script", "")


def test_page_may_run_nothing_and_fetch_only_its_own_files() -> None:
    sweep = record([WAN])
    page = case_study.render_html(study_of(state_of(sweep, done(sweep), [FREE])))
    tags = Tags(page)
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none';") and "script-src" not in policy and "unsafe" not in policy
    links = [value for _, attributes in tags.found for name, value in attributes.items() if name in {"src", "href"}]
    assert links and all(value and "//" not in value for value in links)
    assert not [attributes for _, attributes in tags.found if "style" in attributes]  # the policy would block it


def test_random_weights_are_said_on_title_cards_and_rows() -> None:
    sweep = record([WAN])
    study = study_of(state_of(sweep, done(sweep), [FREE]))
    page = case_study.render_html(study)
    assert page.count('class="badge') == 3
    assert narrative.RANDOM_WEIGHTS_BADGE in case_study.render_markdown(study)
    real = record([WAN], weights=Weights.HUB)
    assert "random weights" not in case_study.render_html(study_of(state_of(real, done(real), [FREE])))


def test_json_has_every_row_and_survives_a_round_trip_to_the_next_revision() -> None:
    sweep = record([WAN, SVD])
    state = state_of(sweep, done(sweep, 1), [FREE])
    pictures = {"job-0": Pictures(sheet="sheets/job-0.jpg", poster="posters/job-0.jpg")}
    names = ["sheets/job-0.jpg", "posters/job-0.jpg", "index.html"]
    files = [{"name": name, "sha256": "a", "size_bytes": 1, "content_type": "x"} for name in names]
    document = json.loads(case_study.json_text(case_study.to_json(study_of(state, pictures), files)))
    assert [row["status"] for row in document["rows"]] == ["completed", "failed"]
    assert document["rows"][0]["clip"]["file"].startswith("clips/wan2-1-t2v-1-3b-job-0-1-")
    assert (document["schema"], document["final"]) == ("report/1", True)
    draft = draft_of(document)
    assert draft.pictures == {"job-0": ("c" * 64, pictures["job-0"])}
    assert (draft.revision, set(draft.files)) == (3, {"sheets/job-0.jpg", "posters/job-0.jpg"})


def closing(*proofs: DeviceProof) -> str:
    sweep = record([WAN])
    return narrative.closing_line(state_of(sweep, done(sweep), proofs)) or ""


def test_closing_line_says_how_the_process_table_was_found() -> None:
    prefix = "1 of 1 job terminal, 1 clip under architects-stillness-20260508t232959z/clips/, process table"
    assert closing(FREE) == f"{prefix} clean at 2026-05-08T23:30:59Z"
    warm = proof(ProofKind.CONTINUE, second=60, lock_held=True, lock_holders=(RUNNER,))
    assert (
        closing(device(warm)) == f"{prefix} clean at 2026-05-08T23:30:59Z but for the warm runner of Wan 2.1 T2V 1.3B"
    )
    stranger = replace(warm, lock_holders=(Process(pid=1, start_ticks=1),))
    assert closing(device(stranger)).endswith("but for the warm runner of another sweep")
    unclean = proof(clean=False, second=60)
    assert closing(device(unclean)) == f"{prefix} NOT clean at 2026-05-08T23:30:59Z: the lock is held by pid 77"
    assert closing(device(None)) == f"{prefix} unknown: telemetry did not answer"


def test_running_sweep_has_no_closing_line() -> None:
    sweep = record([WAN, SVD])
    first, second = specs(sweep)
    study = study_of(state_of(sweep, [History(first).complete(), History(second)]))
    assert (study.closing, study.final) == (None, False)
    assert study.proved[0] == "The sweep is still running: 1 of 2 jobs terminal so far."


def test_a_retry_after_the_settlement_makes_the_report_unfinished() -> None:
    sweep = record([WAN])
    (spec,) = specs(sweep)
    state = state_of(sweep, [History(spec).fail(FailureClass.CRASHED)], [FREE])
    for sequence, event in enumerate(History(retry_of(spec), second=70).events, start=100):
        state.apply_job_event(event, sequence)
    assert not state.is_final and narrative.closing_line(state) is None


def test_operator_notes_prefer_the_fix_of_the_event() -> None:
    sweep = record([WAN, SVD])
    wan, svd = specs(sweep)
    histories = [
        History(wan).fail(FailureClass.OOM_DENOISE, "CUDA out of memory", "start at rung group_offload"),
        History(svd).fail(FailureClass.OOM_DENOISE, "CUDA out of memory"),
    ]
    texts = [(note.models, note.text) for note in study_of(state_of(sweep, histories, [FREE])).notes]
    assert texts == [
        (("Wan 2.1 T2V 1.3B",), "Start at rung group_offload."),
        (("Stable Video Diffusion XT",), "Add a low-memory rung, or ask for fewer frames or a smaller size."),
    ]


def test_every_failure_class_that_needs_a_person_has_advice() -> None:
    assert set(FailureClass) - set(narrative.ADVICE) == {FailureClass.CANCELLED}


def test_keyframe_that_cannot_be_shown_says_why() -> None:
    keyframe = Keyframe(key="keyframes/a.png", sha256="a" * 64, width_px=10, height_px=10, size_bytes=1)
    sweep = record([SVD], keyframe=keyframe)
    material = Material(recordings={}, pictures={}, keyframe=Pictures(error="it is gone"))
    state = state_of(sweep, done(sweep), [FREE])
    page = case_study.render_html(case_study.build(state, material, revision=1, published_at=BEGAN_AT, epoch="epoch"))
    assert "cannot be shown, it is gone" in page


def calls_to_render(jobs: int) -> int:
    """Calls of Python and C functions: unlike seconds they are the same on a busy machine."""
    sweep = record([WAN], seeds=range(jobs))
    state = state_of(sweep, [History(spec).complete() for spec in specs(sweep)], [FREE])
    calls = 0

    def count_one(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count_one)
    try:
        study = study_of(state)
        case_study.render_html(study)
        case_study.render_markdown(study)
        case_study.json_text(case_study.to_json(study, []))
    finally:
        sys.setprofile(None)
    return calls


def test_work_of_a_report_grows_with_its_jobs_and_not_faster() -> None:
    calls_to_render(10)  # templates are compiled once
    small, large = calls_to_render(250), calls_to_render(1000)
    assert large < 4.6 * small  # exponent 1.1


def test_specs_of_a_retry_stay_in_their_cell() -> None:
    def cell(spec: JobSpec) -> tuple[str, int, int]:
        return spec.lane_id, spec.prompt_index, spec.seed

    (spec,) = specs(record([WAN]))
    assert cell(spec) == cell(retry_of(spec))
