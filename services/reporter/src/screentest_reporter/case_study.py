"""The case study: everything a report says, and its three forms: HTML, Markdown and JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import jinja2

from screentest import table, windows
from screentest.records import Job, LanePlan, SkippedLane, SweepRecord, Version, Weights
from screentest_reporter import energy, narrative, vitals
from screentest_reporter.model_table import Pictures, ReportRow, report_rows
from screentest_reporter.narrative import RANDOM_WEIGHTS_BADGE, Note, count
from screentest_reporter.scores import NO_SCORES, Scores
from screentest_reporter.sweeps import SweepState
from screentest_reporter.vitals import Chart, Curve, Recording, Summary

SCHEMA = "report/1"
# Changes when the same events would give another page: a report of an older renderer is written anew.
RENDERER = "2"
# Above this a browser would open too many videos at once; the posters are shown at any number.
PRELOAD_UP_TO = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One headline number; ``value`` "unknown" where nobody measured it."""

    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A host of the sweep, as its newest vitals describe it; None where they do not."""

    host: str
    devices: tuple[str, ...]
    gpus: tuple[str, ...]
    driver_version: str | None
    driver_is_stub: bool
    nvml_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The newest event in the report: stream epoch and sequence."""

    epoch: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStudy:
    """One revision of one sweep's report. ``closing`` None until the sweep has settled."""

    record: SweepRecord
    revision: int
    final: bool
    published_at: datetime
    cursor: Cursor
    lead: str
    figures: tuple[Figure, ...]
    vitals_line: str
    vitals_summary: Summary
    chart: Chart | None
    proved: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    keyframe: Pictures
    notes: tuple[Note, ...]
    closing: str | None
    machines: tuple[Machine, ...]
    versions: tuple[Version, ...]
    energy_wh: float | None

    @property
    def badge(self) -> str:
        return RANDOM_WEIGHTS_BADGE if self.record.spec.weights.is_random else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a case study is made of, beside the events. ``recordings`` by host, ``pictures`` by job id."""

    recordings: Mapping[str, Recording]
    pictures: Mapping[str, Pictures]
    keyframe: Pictures
    scores: Scores = NO_SCORES


def build(state: SweepState, material: Material, *, revision: int, published_at: datetime, epoch: str) -> CaseStudy:
    """One revision from the events so far."""
    record = state.record
    assert record is not None, "a report is made of a sweep with its record"
    jobs = sorted(state.jobs.values(), key=lambda job: (job.spec.ordinal, job.spec.retry_index))
    rows = report_rows(jobs, material.pictures, material.recordings, record.lanes)
    counting = [state.jobs[row.row.job_id] for row in rows]
    recording = _recording(record, material.recordings)
    devices = [lane.device for lane in record.lanes]
    summary = vitals.summarise(recording, windows.sweep_windows(jobs), devices)
    total_wh = _total_wh(rows)
    return CaseStudy(
        record=record,
        revision=revision,
        final=state.is_final,
        published_at=published_at,
        cursor=Cursor(epoch=epoch, sequence=state.last_sequence),
        lead=_lead(record, rows),
        figures=_figures(rows, summary, total_wh),
        vitals_line=vitals.headline(summary),
        vitals_summary=summary,
        chart=vitals.chart(recording, counting, devices, [row.row.status for row in rows]),
        proved=narrative.proved(state, rows),
        rows=rows,
        keyframe=material.keyframe,
        notes=narrative.operator_notes(state, rows),
        closing=narrative.closing_line(state),
        machines=_machines(record, material.recordings),
        versions=_versions(jobs),
        energy_wh=total_wh,
    )


def _recording(record: SweepRecord, recordings: Mapping[str, Recording]) -> Recording:
    """Of the first host that recorded anything: a sweep's lanes share one host today."""
    found = [recordings[lane.host] for lane in record.lanes if lane.host in recordings]
    return next((recording for recording in found if recording.newest), Recording(host=""))


def _total_wh(rows: Sequence[ReportRow]) -> float | None:
    """Of the deciding attempts. None when one that ran has no number: a sum with a hole is no sum."""
    ran = [row.energy_wh for row in rows if row.row.latency_s is not None]
    known = [value for value in ran if value is not None]
    return sum(known) if ran and len(known) == len(ran) else None


def _lead(record: SweepRecord, rows: Sequence[ReportRow]) -> str:
    spec = record.spec
    tasks = [lane.task for lane in record.lanes]
    by_task = ", ".join(f"{tasks.count(task)} {task.value.upper()}" for task in dict.fromkeys(tasks))
    lanes = f"{count(len(record.lanes), 'lane')} ({by_task})" if by_task else "no lane"
    prompts = "One prompt" if len(spec.prompts) == 1 else f"{len(spec.prompts)} prompts"
    seeds = f"seed {spec.seeds[0]}" if len(spec.seeds) == 1 else f"seeds {', '.join(map(str, spec.seeds))}"
    return f"{prompts} through {lanes}, {seeds}, {spec.weights.value} weights: {count(len(rows), 'row')}."


def _figures(rows: Sequence[ReportRow], summary: Summary, total_wh: float | None) -> tuple[Figure, ...]:
    completed = sum(row.clip is not None for row in rows)
    processor = "CPU" if summary.source == "host" else "GPU"
    return (
        Figure(label="rows completed", value=f"{completed} of {len(rows)}"),
        Figure(label="vitals samples", value=str(summary.samples)),
        Figure(label=f"p95 {processor} utilisation", value=_unit(summary.p95_utilisation_percent, "%", 0)),
        Figure(label="peak temperature", value=_unit(summary.peak_temperature_c, " °C", 0)),
        Figure(label="peak power", value=_unit(summary.peak_power_w, " W", 2)),
        Figure(label="GPU energy", value=energy.wh_text(total_wh)),
    )


def _unit(value: float | None, unit: str, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"


def _machines(record: SweepRecord, recordings: Mapping[str, Recording]) -> tuple[Machine, ...]:
    devices: dict[str, set[str]] = {}
    for lane in record.lanes:
        devices.setdefault(lane.host, set()).add(lane.device)
    return tuple(_machine(host, tuple(sorted(names)), recordings.get(host)) for host, names in devices.items())


def _machine(host: str, devices: tuple[str, ...], recording: Recording | None) -> Machine:
    newest = recording.newest if recording else None
    return Machine(
        host=host,
        devices=devices,
        gpus=tuple(gpu.name or gpu.uuid for gpu in newest.gpus) if newest else (),
        driver_version=newest.driver_version if newest else None,
        driver_is_stub=newest.driver_is_stub if newest else False,
        nvml_error=newest.nvml_error if newest else None,
    )


def _versions(jobs: Sequence[Job]) -> tuple[Version, ...]:
    """Every version that an attempt named, each once."""
    found = [v for job in jobs for attempt in job.attempts if attempt.outcome for v in attempt.outcome.versions]
    return tuple(sorted(set(found), key=lambda version: (version.name, version.version)))


# ---- JSON


def to_json(study: CaseStudy, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``files``: every other file of the report with sha256 and size, for whoever fetches it."""
    spec = study.record.spec
    return {
        "schema": SCHEMA,
        "renderer": RENDERER,
        "revision": study.revision,
        "final": study.final,
        "published_at": study.published_at.isoformat(),
        "cursor": dataclasses.asdict(study.cursor),
        "sweep": {
            "id": study.record.sweep_id,
            "title": spec.title,
            "prompts": list(spec.prompts),
            "seeds": list(spec.seeds),
            "weights": spec.weights.value,
            "random_weights": spec.weights.is_random,
            "submitted_at": study.record.submitted_at.isoformat(),
            "keyframe_sha256": spec.keyframe.sha256 if spec.keyframe else None,
        },
        "lead": study.lead,
        "headline": {figure.label: figure.value for figure in study.figures},
        "proved": list(study.proved),
        "rows": [_row_json(row) for row in study.rows],
        "skipped": [_skipped_json(lane) for lane in study.record.skipped],
        "operator_notes": [dataclasses.asdict(note) for note in study.notes],
        "vitals": {**dataclasses.asdict(study.vitals_summary), "text": study.vitals_line},
        "energy": {
            "gpu_wh": study.energy_wh,
            "method": "NVML total energy counter, deciding attempts" if study.energy_wh is not None else None,
        },
        "machines": [dataclasses.asdict(machine) for machine in study.machines],
        "lanes": [_lane_json(lane) for lane in study.record.lanes],
        "versions": {version.name: version.version for version in study.versions},
        "closing": study.closing,
        "files": list(files),
    }


def _row_json(row: ReportRow) -> dict[str, Any]:
    line = row.row
    return {
        "job_id": line.job_id,
        "lane_id": line.lane_id,
        "prompt_index": line.prompt_index,
        "seed": line.seed,
        "model": line.model,
        "task": line.task,
        "status": line.status,
        "latency": table.latency_text(line.latency_s),
        "latency_s": line.latency_s,
        "prompt_match": line.prompt_match,
        "finding": line.finding,
        "random_weights": line.random_weights,
        "failure_class": row.failure_class,
        "marks": list(line.footnotes),
        "earlier": [dataclasses.asdict(earlier) for earlier in line.earlier],
        "attempts": row.attempts,
        "rung": line.rung or None,
        "smallest_card_gib": line.smallest_card_gib,
        "peak_memory_by_phase": row.peak_memory_by_phase,
        "steps_done": row.steps_done,
        "step_s": row.step_s,
        "clip": dataclasses.asdict(row.clip) if row.clip else None,
        "clip_facts": dataclasses.asdict(row.clip_facts) if row.clip_facts else None,
        "sheet": row.pictures.sheet,
        "poster": row.pictures.poster,
        "picture_error": row.pictures.error or None,
        "gpu_energy_wh": row.energy_wh,
        "peak_device_memory_bytes": row.peak_device_memory_bytes,
        "peak_host_memory_bytes": row.peak_host_memory_bytes,
        "lane_digest": row.lane_digest,
    }


def _skipped_json(lane: SkippedLane) -> dict[str, Any]:
    return dataclasses.asdict(lane)


def weights_text(lane: LanePlan, weights: Weights) -> str:
    """What the lane's pipeline was loaded with: random weights never came from the repository they are modelled on."""
    if not lane.weights_repo:
        return "none"
    match weights:
        case Weights.HUB:
            return f"{lane.weights_repo}@{lane.weights_revision}"
        case Weights.MINIATURE:
            return f"random, a tiny copy of {lane.weights_repo}"
        case Weights.FULL_RANDOM:
            return f"random, the full architecture of {lane.weights_repo}"


def _lane_json(lane: LanePlan) -> dict[str, Any]:
    return {
        "lane_id": lane.lane_id,
        "title": lane.lane_title,
        "digest": lane.lane_digest,
        "repo": lane.weights_repo,
        "revision": lane.weights_revision,
        "device": lane.device,
        "preflight": lane.preflight,
    }


def json_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


# ---- HTML and Markdown


def render_html(study: CaseStudy) -> str:
    """One page without script: style inline (allowed by its hash), pictures and clips beside it."""
    css = _environment().get_template("report.css").render()
    numbers = table.numbered_footnotes([row.row for row in study.rows])
    return (
        _environment()
        .get_template("report.html")
        .render(
            study=study,
            css=css,
            policy=content_policy(css),
            columns=table.COLUMNS,
            numbers=numbers,
            preload="metadata" if sum(row.clip is not None for row in study.rows) <= PRELOAD_UP_TO else "none",
            curves=[(curve, polylines(curve, study.chart.duration_s)) for curve in study.chart.curves]
            if study.chart
            else [],
        )
    )


def content_policy(css: str) -> str:
    """Nothing runs and nothing is fetched but the report's own files, from a server or from disk (``file:``)."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src 'self' file: data:; media-src 'self' file:; "
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


# The chart is drawn as plain SVG lines: plotly.js would add 4.5 MB and need script on a page that has none.
CHART_WIDTH, CHART_HEIGHT = 1000, 100


def polylines(curve: Curve, duration_s: float) -> list[str]:
    """SVG points of each piece, in a box of CHART_WIDTH x CHART_HEIGHT, y downwards."""
    wide = CHART_WIDTH / max(duration_s, 1e-9)
    return [
        " ".join(f"{at_s * wide:.1f},{CHART_HEIGHT * (1 - value / curve.top):.1f}" for at_s, value in piece)
        for piece in curve.pieces
    ]


def render_markdown(study: CaseStudy) -> str:
    rows = [row.row for row in study.rows]
    return _environment().get_template("report.md").render(study=study, table=table.markdown(rows))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("screentest_reporter", "templates"),
        # Prompts, titles and causes are other people's text: in HTML they stay text.
        autoescape=lambda name: name is not None and name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "latency": table.latency_text,
        "wh": energy.wh_text,
        "md": table.markdown_text,
        "gib": lambda size: f"{size / vitals.GIB:.2f} GiB",
        "number": table.number_text,
        "weights": weights_text,
    }
    return environment
