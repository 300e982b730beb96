"""The report's rows: the model table joined with each job's clip, pictures and energy. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from screentest import table, windows
from screentest.records import ClipFacts, Job, LanePlan, Outcome
from screentest_reporter import energy, vitals
from screentest_reporter.vitals import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLink:
    """``file`` is relative to the fetched report's folder, ``key`` is the object in the depot."""

    job_id: str
    file: str
    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Names of report files made from a clip; ``error`` says why there are none."""

    sheet: str | None = None
    poster: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """``energy_wh`` is of the deciding attempt; None where no counter says. ``clip_facts`` None without a clip."""

    row: table.Row
    failure_class: str | None
    attempts: int
    clip: ClipLink | None
    clip_facts: ClipFacts | None
    pictures: Pictures
    energy_wh: float | None
    peak_device_memory_bytes: int | None
    peak_host_memory_bytes: int | None
    peak_memory_by_phase: Mapping[str, int]
    steps_done: int
    step_s: float | None
    lane_digest: str
    size_text: str


NO_PICTURES = Pictures()


def report_rows(
    jobs: Sequence[Job],
    pictures: Mapping[str, Pictures],
    recordings: Mapping[str, Recording],
    plans: Sequence[LanePlan] = (),
) -> tuple[ReportRow, ...]:
    """In the order of the table. ``pictures`` by job id, ``recordings`` by host, ``plans`` of the sweep's record."""
    by_id = {job.spec.job_id: job for job in jobs}
    return tuple(
        _report_row(row, by_id[row.job_id], pictures.get(row.job_id, NO_PICTURES), recordings)
        for row in table.rows(jobs, plans)
    )


def _report_row(row: table.Row, job: Job, pictures: Pictures, recordings: Mapping[str, Recording]) -> ReportRow:
    attempt = job.attempts[-1] if job.attempts else None
    outcome = attempt.outcome if attempt else None
    return ReportRow(
        row=row,
        failure_class=job.failure_class.value if job.failure_class else None,
        attempts=len(job.attempts),
        clip=clip_link(job),
        clip_facts=outcome.clip if outcome and job.clip else None,
        pictures=pictures,
        energy_wh=job_energy_wh(job, recordings),
        peak_device_memory_bytes=outcome.peak_device_memory_bytes if outcome else None,
        peak_host_memory_bytes=outcome.peak_host_memory_bytes if outcome else None,
        peak_memory_by_phase={peak.phase: peak.peak_bytes for peak in outcome.peak_memory_by_phase} if outcome else {},
        steps_done=outcome.steps_done if outcome else 0,
        step_s=outcome.step_s if outcome else None,
        lane_digest=job.spec.lane_digest,
        size_text=_size_text(job, outcome),
    )


def _size_text(job: Job, outcome: Outcome | None) -> str:
    """Of the clip where there is one: a rung may have made it smaller than it was asked for."""
    size = outcome.clip if outcome and outcome.clip else job.spec
    return f"{size.width_px}x{size.height_px}"


def clip_link(job: Job) -> ClipLink | None:
    if job.clip is None:
        return None
    return ClipLink(
        job_id=job.spec.job_id,
        file=f"clips/{job.clip.key.rsplit('/', 1)[-1]}",
        key=job.clip.key,
        sha256=job.clip.sha256,
        size_bytes=job.clip.size_bytes,
    )


def job_energy_wh(job: Job, recordings: Mapping[str, Recording]) -> float | None:
    """Of the deciding attempt, by the counter of the GPU it ran on. A stub driver's counter measures nothing."""
    index, recording = vitals.gpu_index(job.spec.device), recordings.get(job.spec.host)
    window = windows.attempt_window(job.attempts[-1]) if job.attempts else None
    if index is None or recording is None or window is None or recording.has_stub:
        return None
    return energy.used_wh(recording.gpus.get((window.boot_id, index), []), window)
