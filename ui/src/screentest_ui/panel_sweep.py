"""The Sweeps page's view: how far a sweep is, its clips, its endings without a clip. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from screentest import table
from screentest.folding import status
from screentest.records import ClipFacts, Job, JobState, LanePlan, Sweep
from screentest_ui.panel_text import duration, file_size, shortened

_RETRYABLE = (JobState.FAILED, JobState.REFUSED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCard:
    """One clip of a completed job. ``model`` as in the model table; ``flags``: black, flat, noise, frozen."""

    job_id: str
    model: str
    seed: int
    fps: float
    prompt: str
    facts: str
    flags: tuple[str, ...]
    random_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingCard:
    """One job that ended without a clip.

    ``failure_class`` "" where it says no more than ``status``; ``can_retry`` False = a later job of its cell exists.
    """

    job_id: str
    lane_title: str
    seed: int
    status: str
    failure_class: str
    cause: str
    fix: str
    has_log: bool
    can_retry: bool


def progress_of(sweep: Sweep) -> float:
    """Share of the sweep's jobs that have ended, 0..1."""
    counts = sweep.counts
    ended = counts.completed + counts.failed + counts.refused + counts.cancelled
    return ended / counts.total if counts.total else 0.0


def headline(sweep: Sweep) -> str:
    """``running``, ``over``, and what the final proof said of the machine."""
    if not sweep.over:
        return "running" if sweep.counts.running else "waiting"
    return "over" if sweep.settled else "over, the final proof is being written"


def proof_lines(sweep: Sweep) -> tuple[str, ...]:
    """What each device's process table looked like when the sweep was over."""
    if sweep.settled is None:
        return ()
    lines = []
    for device in sweep.settled.proofs:
        if device.proof is None:
            lines.append(f"{device.device} on {device.host}: telemetry did not answer")
        else:
            verdict = "clean" if device.proof.clean else f"not clean: {device.proof.reason}"
            at = device.proof.stamp.at
            lines.append(f"{device.device} on {device.host}: process table {verdict} at {at:%Y-%m-%d %H:%M:%S} UTC")
    return tuple(lines)


def clips(jobs: Iterable[Job]) -> tuple[ClipCard, ...]:
    """The clips of a sweep, each with what the probe read from it."""
    by_id = {job.spec.job_id: job for job in jobs}
    cells = [(row, by_id[row.job_id]) for row in table.rows(by_id.values())]
    return tuple(_clip_card(row, job) for row, job in cells if job.clip is not None)


def endings(jobs: Sequence[Job]) -> tuple[EndingCard, ...]:
    """The jobs that ended without a clip, those that count first, then the tries before them."""
    counting = {job.spec.job_id for job in table.latest(jobs)}
    ended = [job for job in jobs if job.state in _RETRYABLE]
    ended.sort(key=lambda job: (job.spec.job_id not in counting, job.spec.ordinal, -job.spec.retry_index))
    return tuple(_ending_card(job, job.spec.job_id in counting) for job in ended)


def retryable(jobs: Iterable[Job]) -> tuple[str, ...]:
    """The failed cells' job ids: what `screentest retry <sweep> --failed` would fill again."""
    return tuple(job.spec.job_id for job in table.latest(jobs) if job.state is JobState.FAILED)


def clip_facts(facts: ClipFacts | None) -> str:
    """``96x64, 25 frames at 24 fps, 1.0 s``; "" where the probe's words are missing."""
    if facts is None:
        return ""
    size = f"{facts.width_px}x{facts.height_px}"
    return f"{size}, {facts.frames} frames at {facts.fps:g} fps, {duration(facts.duration_s)}"


def _clip_card(row: table.Row, job: Job) -> ClipCard:
    outcome = job.attempts[-1].outcome if job.attempts else None
    facts = outcome.clip if outcome else None
    words = [
        clip_facts(facts),
        file_size(job.clip.size_bytes) if job.clip else "",
        f"made in {duration(row.latency_s)}" if row.latency_s is not None else "",
    ]
    return ClipCard(
        job_id=job.spec.job_id,
        model=row.model,
        seed=row.seed,
        fps=facts.fps if facts else job.spec.fps,
        prompt=shortened(job.spec.prompt, 90),
        facts=", ".join(filter(None, words)),
        flags=facts.flags if facts else (),
        random_weights=job.spec.weights.is_random,
    )


def _ending_card(job: Job, counts: bool) -> EndingCard:
    attempted = any(attempt.outcome and attempt.outcome.artifacts for attempt in job.attempts)
    failure = job.failure_class.value if job.failure_class else ""
    return EndingCard(
        job_id=job.spec.job_id,
        lane_title=job.spec.lane_title,
        seed=job.spec.seed,
        status=status(job.state),
        failure_class="" if failure == status(job.state) else failure,
        cause=job.cause,
        fix=job.fix,
        has_log=attempted,
        can_retry=counts,
    )


def model_rows(jobs: Sequence[Job], plans: Sequence[LanePlan] = ()) -> list[dict[str, str]]:
    """The model table, one dict per row by the case study's columns; numbers in Model point to ``notes``."""
    rows = table.rows(jobs, plans)
    numbers = table.numbered_footnotes(rows)
    return [dict(zip(table.COLUMNS, _cells(row, numbers), strict=True)) for row in rows]


def notes(jobs: Sequence[Job]) -> tuple[str, ...]:
    """What stands under the model table: what ran instead of what was asked for, by number."""
    return tuple(f"[{number}] {text}" for text, number in table.numbered_footnotes(table.rows(jobs)).items())


def _cells(row: table.Row, numbers: Mapping[str, int]) -> tuple[str, ...]:
    marks = "".join(f" [{number}]" for number in sorted({numbers[text] for text in row.footnotes}))
    return (row.model + marks, *row.cells[1:])
