"""The case study: everything a report says. `page` shows it as HTML and Markdown, `document` as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from screentest import windows
from screentest.records import Job, LanePlan, SweepRecord, Version, Weights
from screentest.table import UNKNOWN
from screentest_reporter import energy, energy_ledger, heat_map, narrative, notes, vitals
from screentest_reporter.energy_ledger import Ledger, Meters
from screentest_reporter.heat_map import HeatMap
from screentest_reporter.model_table import Pictures, ReportRow, report_rows
from screentest_reporter.narrative import RANDOM_WEIGHTS_BADGE, Reading
from screentest_reporter.notes import Note
from screentest_reporter.scores import NO_SCORES, Scores
from screentest_reporter.sweeps import SweepState
from screentest_reporter.vitals import Chart, Recording, Summary
from screentest_reporter.wording import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One headline number; ``value`` "unknown" where nobody measured it. ``how`` it is computed, in a few words."""

    label: str
    value: str
    how: str


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
    readings: tuple[Reading, ...]
    rows: tuple[ReportRow, ...]
    scores: Scores
    heat_maps: tuple[HeatMap, ...]
    ledger: Ledger
    keyframe: Pictures
    notes: tuple[Note, ...]
    closing: str | None
    machines: tuple[Machine, ...]
    versions: tuple[Version, ...]

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
    meters = Meters(material.recordings)
    rows = report_rows(
        jobs,
        pictures=material.pictures,
        meters=meters,
        plans=record.lanes,
        scores=material.scores.clips,
        edits=state.edits,
    )
    counting = [state.jobs[row.row.job_id] for row in rows]
    recording = _recording(record, material.recordings)
    devices = [lane.device for lane in record.lanes]
    summary = vitals.summarise(recording, windows.sweep_windows(jobs), devices)
    ledger = energy_ledger.of(jobs, {row.row.job_id: row.row.model for row in rows}, meters)
    return CaseStudy(
        record=record,
        revision=revision,
        final=state.is_final,
        published_at=published_at,
        cursor=Cursor(epoch=epoch, sequence=state.last_sequence),
        lead=_lead(record, rows),
        figures=_figures(record, rows, summary, ledger),
        vitals_line=vitals.headline(summary),
        vitals_summary=summary,
        chart=vitals.chart(recording, counting, devices, [row.row.status for row in rows]),
        readings=narrative.read(state, rows, material.scores, ledger),
        rows=rows,
        scores=material.scores,
        heat_maps=heat_map.heat_maps(rows),
        ledger=ledger,
        keyframe=material.keyframe,
        notes=notes.operator_notes(state, rows, material.scores),
        closing=narrative.closing_line(state),
        machines=_machines(record, material.recordings),
        versions=_versions(jobs),
    )


def _recording(record: SweepRecord, recordings: Mapping[str, Recording]) -> Recording:
    """Of the first host that recorded anything: a sweep's lanes share one host today."""
    found = [recordings[lane.host] for lane in record.lanes if lane.host in recordings]
    return next((recording for recording in found if recording.newest), Recording(host=""))


def _lead(record: SweepRecord, rows: Sequence[ReportRow]) -> str:
    spec = record.spec
    tasks = [lane.task for lane in record.lanes]
    by_task = ", ".join(f"{tasks.count(task)} {task.value.upper()}" for task in dict.fromkeys(tasks))
    lanes = f"{count(len(record.lanes), 'lane')} ({by_task})" if by_task else "no lane"
    prompts = "One prompt" if len(spec.prompts) == 1 else f"{len(spec.prompts)} prompts"
    seeds = f"seed {spec.seeds[0]}" if len(spec.seeds) == 1 else f"seeds {', '.join(map(str, spec.seeds))}"
    return f"{prompts} through {lanes}, {seeds}, {spec.weights.value} weights: {count(len(rows), 'row')}."


def _figures(record: SweepRecord, rows: Sequence[ReportRow], summary: Summary, ledger: Ledger) -> tuple[Figure, ...]:
    processor = "CPU" if summary.source == "host" else "GPU"
    on_gpu = any(vitals.gpu_index(lane.device) is not None for lane in record.lanes)
    samples = "of the vitals stream, from the first start to the last end of an attempt"
    return (
        _lanes_completed(record, rows),
        Figure(label="vitals samples", value=str(summary.samples), how=samples),
        Figure(
            label=f"p95 {processor} utilisation",
            value=_unit(summary.p95_utilisation_percent, "%", 0),
            how="95 % of these samples are not above it (nearest rank)",
        ),
        _peak("peak temperature", _unit(summary.peak_temperature_c, " °C", 0)),
        _peak("peak power", _unit(summary.peak_power_w, " W", 2)),
        _energy(ledger),
        Figure(
            label="GPU-hours" if on_gpu else "CPU-hours",
            value=f"{ledger.seconds / 3600:.2f}",
            how="time of all attempts together, failed ones too",
        ),
        Figure(
            label="time lost to failures",
            value=_duration(ledger.lost_s),
            how="time of the attempts that made no clip",
        ),
    )


def _peak(label: str, value: str) -> Figure:
    return Figure(label=label, value=value, how="no sample has it" if value == UNKNOWN else "the highest sample")


def _lanes_completed(record: SweepRecord, rows: Sequence[ReportRow]) -> Figure:
    planned = {lane.lane_id for lane in record.lanes}
    made = {row.row.lane_id for row in rows if row.clip is not None} & planned
    return Figure(
        label="lanes completed",
        value=f"{len(made)} of {len(planned)}",
        how="lanes that made at least one clip; lanes left out before queueing are not counted",
    )


def _energy(ledger: Ledger) -> Figure:
    if ledger.measured_wh is None:
        return Figure(label="GPU energy", value=UNKNOWN, how="no energy counter and no power samples")
    hole = ledger.unmeasured > 0
    method = "; ".join(method.text for method in ledger.methods)
    missing = f"; {count(ledger.unmeasured, 'attempt')} without a number" if hole else ""
    return Figure(
        label="GPU energy",
        value=f"{'at least ' if hole else ''}{energy.wh_text(ledger.measured_wh)}",
        how=f"all attempts, failed ones too: {method}{missing}",
    )


def _unit(value: float | None, unit: str, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}{unit}"


def _duration(seconds: float) -> str:
    """``48.9 s``, ``2 h 16 min``: the biggest two units."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


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
