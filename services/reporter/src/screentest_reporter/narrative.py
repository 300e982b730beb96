"""The report's sentences: what the sweep proved, what to fix, how it closed. Only from data; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from screentest.records import DeviceProof, FailureClass, Job, JobState, SweepRecord
from screentest.table import latency_text, sentence, task_text
from screentest_reporter.model_table import ReportRow
from screentest_reporter.sweeps import SweepState, failures

RANDOM_WEIGHTS_BADGE = "random weights: shows what runs, not how a picture looks"

# What to do about a class when the event itself brought no fix.
ADVICE: dict[FailureClass, str] = {
    FailureClass.PREFLIGHT_REFUSED: "change what preflight named, then retry these rows",
    FailureClass.OOM_LOAD: "add a rung that keeps part of the model off the GPU while it loads",
    FailureClass.OOM_ENCODE: "add a rung that drops or offloads the text encoder",
    FailureClass.OOM_DENOISE: "add a low-memory rung, or ask for fewer frames or a smaller size",
    FailureClass.OOM_DECODE: "turn on tiled decoding for the lane",
    FailureClass.HOST_OOM: "give the worker more host memory, or a rung that reads weights in parts",
    FailureClass.TIMEOUT: "raise the lane's attempt_s, or ask for fewer frames or steps",
    FailureClass.STALLED: "read the log for the step that stood still; raise step_stall_s if the card is merely slow",
    FailureClass.CRASHED: "read the log; a crash in native code often needs another version of the model env",
    FailureClass.BAD_KWARGS: "map or drop the argument in the lane's [parameters]",
    FailureClass.LAYOUT: "point the lane at a repository in the layout its pipeline loads",
    FailureClass.CHANNELS: "check the lane's image conditioning: the tensor's channels do not fit the model",
    FailureClass.CONDITIONING: "fix the lane's image-conditioning adapter before scoring it",
    FailureClass.NAN: "use a wider dtype for the component that produced non-finite values",
    FailureClass.TRUNCATED: "retry; if it happens again, look at the disk of the worker",
    FailureClass.UNDECODABLE: "retry; if it happens again, look at the encoder's log",
    FailureClass.ENCODE: "read the encoder's log",
    FailureClass.UPLOAD: "check the depot and its free space, then retry these rows",
    FailureClass.GPU_FAULT: "look at the driver's log (Xid) before anything else runs on this GPU",
    FailureClass.INFRASTRUCTURE: "retry these rows; their pipelines were not at fault",
    FailureClass.UNCLASSIFIED: "read the log; this failure has no class yet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing to fix before the next sweep, and the rows it is about."""

    failure_class: str
    models: tuple[str, ...]
    text: str


def proved(state: SweepState, rows: Sequence[ReportRow]) -> tuple[str, ...]:
    """The executive read, sentence by sentence."""
    record = state.record
    assert record is not None, "a report is made of a sweep with its record"
    sentences = [
        _plumbing(state, rows),
        _unreadable(rows),
        _lanes(rows),
        _by_task(rows),
        _failures(state, rows),
        _flags(rows),
        _latencies(rows),
        _second_tries(rows),
        _marks(rows),
        _weights(record),
        _skipped(record),
        _unscored(rows),
    ]
    return tuple(text for text in sentences if text)


def _plumbing(state: SweepState, rows: Sequence[ReportRow]) -> str:
    terminal = sum(job.state.is_terminal for job in state.jobs.values())
    clips = sum(row.clip is not None for row in rows)
    total = len(state.jobs)
    if not state.is_final:
        return f"The sweep is still running: {terminal} of {count(total, 'job')} terminal so far."
    return (
        f"The queue and the depot worked: {terminal} of {count(total, 'job')} reached a terminal state, "
        f"{count(clips, 'clip')} {are(clips)} in the depot."
    )


def _unreadable(rows: Sequence[ReportRow]) -> str:
    broken = [f"{row.row.model} ({row.pictures.error})" for row in rows if row.pictures.error]
    return f"{count(len(broken), 'clip')} could not be read back from the depot: {listing(broken)}." if broken else ""


def _lanes(rows: Sequence[ReportRow]) -> str:
    completed = [row.row.model for row in rows if row.clip is not None]
    if not completed:
        return ""
    if len(completed) == len(rows):
        return f"Every row of the table returned a clip: {listing(completed)}."
    return f"{count(len(completed), 'row')} of {len(rows)} returned a clip: {listing(completed)}."


def _by_task(rows: Sequence[ReportRow]) -> str:
    tasks = list(dict.fromkeys(row.row.task for row in rows))
    if len(tasks) < 2:
        return ""
    parts = []
    for task in tasks:
        of_task = [row for row in rows if row.row.task == task]
        parts.append(f"{task} {sum(row.clip is not None for row in of_task)} of {len(of_task)}")
    return f"Completed by task: {', '.join(parts)}."


def _failures(state: SweepState, rows: Sequence[ReportRow]) -> str:
    counting = [state.jobs[row.row.job_id] for row in rows]
    by_class = failures(counting)
    if not by_class:
        return ""
    total = sum(len(jobs) for jobs in by_class.values())
    parts = [f"{name.value} ({listing([job.spec.lane_title for job in jobs])})" for name, jobs in by_class.items()]
    return f"{count(total, 'row')} ended without a clip: {'; '.join(parts)}."


def _flags(rows: Sequence[ReportRow]) -> str:
    flagged = [
        f"{row.row.model} ({', '.join(row.clip_facts.flags)})"
        for row in rows
        if row.clip_facts and row.clip_facts.flags
    ]
    return f"Completed with a flag: {listing(flagged)}." if flagged else ""


def _latencies(rows: Sequence[ReportRow]) -> str:
    known = [(row.row.latency_s, row.row.model) for row in rows if row.clip and row.row.latency_s is not None]
    if len(known) < 2:
        return ""
    (fast_s, fast), (slow_s, slow) = min(known), max(known)
    return f"The fastest clip took {latency_text(fast_s)} ({fast}), the slowest {latency_text(slow_s)} ({slow})."


def _second_tries(rows: Sequence[ReportRow]) -> str:
    retried = [row.row.model for row in rows if row.row.earlier]
    return (
        f"{count(len(retried), 'row')} {are(len(retried))} a second or later try: {listing(retried)}."
        if retried
        else ""
    )


def _marks(rows: Sequence[ReportRow]) -> str:
    marked = sum(bool(row.row.footnotes) for row in rows)
    if not marked:
        return ""
    return f"{count(marked, 'row')} ran with other parameters than the sweep asked for; the footnotes say which."


def _weights(record: SweepRecord) -> str:
    weights = record.spec.weights
    if not weights.is_random:
        return ""
    return (
        f"The weights were random ({weights.value}): this sweep shows what runs, how long it takes and where it fails, "
        "and nothing about how a model's pictures look."
    )


def _skipped(record: SweepRecord) -> str:
    lanes = [lane.lane_title for lane in record.skipped]
    verb = "was" if len(lanes) == 1 else "were"
    return f"{count(len(lanes), 'lane')} {verb} left out before queueing: {listing(lanes)}." if lanes else ""


def _unscored(rows: Sequence[ReportRow]) -> str:
    return "Prompt match is not scored." if any(row.clip for row in rows) else ""


def operator_notes(state: SweepState, rows: Sequence[ReportRow]) -> tuple[Note, ...]:
    """What to fix, by failure class; the fix that the event brought comes before general advice."""
    model_of = {row.row.job_id: row.row.model for row in rows}
    counting = [state.jobs[row.row.job_id] for row in rows]
    notes = []
    for failure_class, jobs in failures(counting).items():
        if failure_class is FailureClass.CANCELLED:
            continue  # a person's wish is nothing to fix
        for fix, affected in _by_fix(jobs).items():
            models = tuple(model_of[job.spec.job_id] for job in affected)
            text = sentence(fix or ADVICE.get(failure_class, "read the log"))
            notes.append(Note(failure_class=failure_class.value, models=models, text=text[:1].upper() + text[1:]))
    return tuple(notes)


def _by_fix(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.fix.strip(), []).append(job)
    return found


def closing_line(state: SweepState) -> str | None:
    """``10 of 10 jobs terminal, 10 clips under <prefix>, process table clean at <time>``; None until it has settled."""
    if not state.is_final or state.settlement is None:
        return None
    settled = state.settlement.body
    terminal = sum(job.state.is_terminal for job in state.jobs.values())
    clips = sum(job.state is JobState.COMPLETED for job in state.jobs.values())
    tables = "; ".join(_process_table(proof, state, len(settled.proofs) > 1) for proof in settled.proofs)
    jobs = f"{terminal} of {count(len(state.jobs), 'job')} terminal"
    where = f"{count(clips, 'clip')} under {state.sweep_id}/clips/"
    return f"{jobs}, {where}, {tables or 'process table not asked: no device was used'}"


def _process_table(device: DeviceProof, state: SweepState, name_device: bool) -> str:
    where = f" of {device.host}/{device.device}" if name_device else ""
    proof = device.proof
    if proof is None:
        return f"process table{where} unknown: telemetry did not answer"
    at = f"{proof.stamp.at:%Y-%m-%dT%H:%M:%SZ}"
    if not proof.clean:
        return f"process table{where} NOT clean at {at}: {proof.reason}"
    warm = [
        state.runner_lanes.get((holder.pid, holder.start_ticks), "another sweep")
        for holder in (proof.lock_holders if proof.lock_held else ())
    ]
    return f"process table{where} clean at {at}" + (f" but for the warm runner of {listing(warm)}" if warm else "")


def task_list(jobs: Sequence[Job]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task_text(job.spec.task) for job in jobs))


def count(number: int, noun: str) -> str:
    """``1 clip``, ``3 clips``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def are(number: int) -> str:
    return "is" if number == 1 else "are"


def listing(items: Sequence[str], limit: int = 12) -> str:
    """``A, B and C``; a long one ends in ``and 40 more``."""
    shown = list(items[:limit])
    if len(items) > limit:
        return f"{', '.join(shown)} and {len(items) - limit} more"
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else "".join(shown)
