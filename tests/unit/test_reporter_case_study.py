"""What the published page says, and what it can never do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import pytest

from screentest.records import (
    DeviceProof,
    FailureClass,
    FindingEdited,
    JobSpec,
    Keyframe,
    Mark,
    MarkKind,
    Process,
    ProofKind,
    SkippedLane,
    SweepEvent,
    SweepRecord,
    Task,
    Weights,
)
from screentest_reporter import case_study, document, narrative, notes, page
from screentest_reporter.case_study import CaseStudy, Material
from screentest_reporter.model_table import Pictures
from screentest_reporter.publish import draft_of
from screentest_reporter.sweeps import SweepState
from screentest_ui.panel_report import files_of
from tests import made_case_study
from tests.made_sweeps import (
    BEGAN_AT,
    RUNNER,
    History,
    clip_of,
    plan,
    proof,
    record,
    retry_of,
    settled,
    specs,
    stamp,
    submitted,
)

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
        self.scripts: list[str] = []
        self.sources: list[str | None] = []
        self._in_heading = self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_heading = tag in {"h1", "h2"}
        self.sources += [value for name, value in attrs if name == "src"]
        self._in_script = tag == "script" and ("type", "application/json") not in attrs
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False

    def names(self) -> set[str]:
        return {tag for tag, _ in self.found}


def test_sections_stand_in_the_order_of_the_case_study() -> None:
    sweep = record([WAN, SVD], skipped=[SkippedLane(lane_id="x", lane_title="X", reason="no keyframe")])
    headings = Tags(page.render_html(study_of(state_of(sweep, done(sweep, 1), [FREE])))).headings
    assert headings == [
        "The Architect's Stillness: a 2-model sweep",
        "What the sweep proved",
        "1 reviewable clip",
        "Contact sheets",
        "Outcome by model",
        "Left out before queueing",
        "What each lane shows of the prompt",
        "What a better clip costs",
        "The machine while it ran",
        "What every attempt cost",
        "What to fix before the next sweep",
        "Where these numbers come from",
    ]


@pytest.mark.parametrize("where", ["title", "prompt", "cause", "lane", "finding", "note", "file"])
def test_other_peoples_text_stays_text(where: str) -> None:
    said = {**dict.fromkeys(("title", "prompt", "cause", "lane", "finding", "note", "file"), "plain"), where: HOSTILE}
    sweep = record([plan("wan", said["lane"]), SVD], title=said["title"], prompts=[said["prompt"]])
    wan, svd = specs(sweep)
    clip = replace(clip_of(svd), key=f"{sweep.sweep_id}/clips/{said['file'].replace('/', '')}.mp4")
    histories = [History(wan).fail(FailureClass.CRASHED, said["cause"]), History(svd).complete(clip=clip)]
    state = state_of(sweep, histories, [FREE])
    edit(state, svd.job_id, said["finding"])
    edit(state, "note:added", said["note"])
    study = study_of(state)
    shown = page.render_html(study)
    tags = Tags(shown)
    assert is_ours(tags) and "49" not in re.findall(r"\b49\b", shown.partition("<script>")[0])
    assert not [attribute for _, attributes in tags.found for attribute in attributes if attribute.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;" in shown
    assert "<script" not in page.render_markdown(study).replace("\\<script", "")


def is_ours(tags: Tags) -> bool:
    """Whether the page's policy knows every script that stands in it, and there is no other style or picture."""
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy") or ""
    hashes = ["sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in tags.scripts]
    return bool(hashes) and all(f"'{found}'" in policy for found in hashes) and "x" not in tags.sources


def test_a_title_in_the_plots_cannot_leave_its_script_element() -> None:
    text = page.script_json({"title": f"{HOSTILE}<!--"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"title": f"{HOSTILE}<!--"}


def edit(state: SweepState, row: str, text: str, by: str = "ada") -> None:
    body = FindingEdited(row=row, text=text, by=by)
    event = SweepEvent(event_id=f"edit-{row}", sweep_id=state.sweep_id, stamp=stamp(90), body=body)
    assert state.apply_sweep_event(event, state.last_sequence + 1)


def test_page_may_run_only_its_own_scripts_and_fetch_only_its_own_files() -> None:
    for study in (made_case_study.study(made_case_study.sweep()), study_of(state_of(record([WAN]), []))):
        tags = Tags(page.render_html(study))
        policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy") or ""
        assert policy.startswith("default-src 'none';") and "unsafe" not in policy
        assert is_ours(tags)
        links = [value for _, attributes in tags.found for name, value in attributes.items() if name in {"src", "href"}]
        assert links and all(value and "//" not in value for value in links)
        assert not [attributes for _, attributes in tags.found if "style" in attributes]  # the policy would block it


def test_panel_may_replace_links_without_touching_a_script() -> None:
    """It rewrites `href="#` and `="<file>"` in the whole page: in a script that would break the script's hash."""
    shown = page.render_html(made_case_study.study(made_case_study.sweep()))
    scripts = "".join(Tags(shown).scripts)
    assert 'href="#' not in scripts and '="clips/' not in scripts
    assert set(files_of(shown)) >= {"report.json", "report.md"}


def test_plotly_is_embedded_once_and_only_where_something_is_plotted() -> None:
    with_plots = page.render_html(made_case_study.study(made_case_study.sweep()))
    without = page.render_html(study_of(state_of(record([WAN]), [])))
    assert with_plots.count("plotly.js (basic - minified)") == 1
    assert "plotly.js (basic - minified)" not in without
    assert len(with_plots) < 2 * 2**20


def test_plotly_is_the_file_that_its_readme_names() -> None:
    folder = resources.files("screentest_reporter").joinpath("vendor")
    found = hashlib.sha256(folder.joinpath(page.PLOTLY).read_bytes()).hexdigest()
    assert found in folder.joinpath("README.md").read_text()


def test_random_weights_are_said_on_title_cards_and_rows() -> None:
    sweep = record([WAN])
    study = study_of(state_of(sweep, done(sweep), [FREE]))
    assert page.render_html(study).count('class="badge') == 3
    assert narrative.RANDOM_WEIGHTS_BADGE in page.render_markdown(study)
    real = record([WAN], weights=Weights.HUB)
    assert "random weights" not in page.render_html(study_of(state_of(real, done(real), [FREE])))


def test_defaults_are_a_footnote_and_make_no_row_harder_to_compare() -> None:
    default = Mark(kind=MarkKind.DEFAULTED, parameter="steps", requested="", effective="50", reason="")
    clamped = replace(default, kind=MarkKind.CLAMPED, requested="51")
    pages = []
    for marks in ((default,), (default, clamped)):
        sweep = record([replace(WAN, marks=marks)])
        pages.append(page.render_markdown(study_of(state_of(sweep, done(sweep), [FREE]))))
    assert all("defaults of the lane: steps 50" in text for text in pages)
    assert ["harder to compare" in text for text in pages] == [False, True]


def test_json_has_every_row_and_survives_a_round_trip_to_the_next_revision() -> None:
    sweep = record([WAN, SVD])
    state = state_of(sweep, done(sweep, 1), [FREE])
    kinds = {"sheet": "sheets/job-0.jpg", "poster": "posters/job-0.jpg", "strip": "strips/job-0.jpg"}
    pictures = {"job-0": Pictures(**kinds)}
    names = [*kinds.values(), "index.html"]
    files = [{"name": name, "sha256": "a", "size_bytes": 1, "content_type": "x"} for name in names]
    content = json.loads(document.json_text(document.to_json(study_of(state, pictures), files)))
    assert [row["status"] for row in content["rows"]] == ["completed", "failed"]
    assert content["rows"][0]["clip"]["file"].startswith("clips/wan2-1-t2v-1-3b-job-0-1-")
    assert (content["schema"], content["final"]) == ("report/1", True)
    draft = draft_of(content)
    assert draft.pictures == {"job-0": ("c" * 64, pictures["job-0"])}
    assert (draft.revision, set(draft.files)) == (3, set(kinds.values()))


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
    assert study.readings[0].sentences[0].text == "The sweep is still running: 1 of 2 jobs terminal so far."


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
        (("Wan 2.1 T2V 1.3B",), "Start at rung group_offload. It was: CUDA out of memory (5.00s)."),
        (
            ("Stable Video Diffusion XT",),
            "Add a low-memory rung, or ask for fewer frames or a smaller size. It was: CUDA out of memory (5.00s).",
        ),
    ]


def test_every_failure_class_that_needs_a_person_has_advice() -> None:
    assert set(FailureClass) - set(notes.ADVICE) == {FailureClass.CANCELLED}
    assert set(narrative.FAMILY) == set(FailureClass)


def test_keyframe_that_cannot_be_shown_says_why() -> None:
    keyframe = Keyframe(key="keyframes/a.png", sha256="a" * 64, width_px=10, height_px=10, size_bytes=1)
    sweep = record([SVD], keyframe=keyframe)
    material = Material(recordings={}, pictures={}, keyframe=Pictures(error="it is gone"))
    state = state_of(sweep, done(sweep), [FREE])
    study = case_study.build(state, material, revision=1, published_at=BEGAN_AT, epoch="epoch")
    assert "cannot be shown, it is gone" in page.render_html(study)


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
        page.render_html(study)
        page.render_markdown(study)
        document.json_text(document.to_json(study, []))
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
