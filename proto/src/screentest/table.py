"""The model table, as the CLI, the panel and the report all show it. Pure.

One row per cell (lane x prompt x seed). A retry by a person is a new job of the same cell: the latest job counts, the
earlier ones are listed under it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from screentest import folding, memory
from screentest.records import Attempt, Job, JobState, LanePlan, Mark, MarkKind, Stamp, Task, Weights

COLUMNS = ("Model", "Task", "Status", "Latency", "Rung", "Smallest card", "Prompt match", "Finding")
ABSENT = "n/a"
UNKNOWN = "unknown"
NOT_SCORED = "not scored"
RANDOM_WEIGHTS = "random weights"
# Of one value in the footnote of defaults: ten lanes have ten of these lines.
DEFAULT_CHARACTERS = 32

Cell = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """An earlier job of the same cell, which no longer counts."""

    job_id: str
    status: str
    latency_s: float | None
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of a sweep. ``latency_s`` is from Started to AttemptEnded of the deciding attempt, None before that.

    ``model`` names prompt and seed too where a lane has several cells. ``footnotes`` say what ran instead of what was
    asked for, and which defaults filled what nobody asked for; ``has_changes``: whether there is any of the former.
    ``rung``: of the deciding attempt, "" before the first. ``smallest_card_gib``: the smallest usual card that makes
    this very picture at some rung, None = not known. ``earlier``: oldest first.
    """

    job_id: str
    lane_id: str
    prompt_index: int
    seed: int
    model: str
    task: str
    status: str
    latency_s: float | None
    prompt_match: str
    finding: str
    random_weights: bool
    rung: str = ""
    smallest_card_gib: int | None = None
    footnotes: tuple[str, ...] = ()
    has_changes: bool = False
    earlier: tuple[Try, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The text of each of ``COLUMNS``."""
        latency = latency_text(self.latency_s)
        fit = (self.rung or ABSENT, card_text(self.smallest_card_gib))
        return (self.model, self.task, self.status, latency, *fit, self.prompt_match, self.finding)


def rows(jobs: Iterable[Job], plans: Iterable[LanePlan] = ()) -> tuple[Row, ...]:
    """The table of one sweep, in the order its cells were planned. ``plans``: of its record, for the smallest card.

    Judge jobs are no rows. A completed row says ``not scored``: a score needs the rubric and every judgement, which
    only the reporter has together. Whoever has its report adds them by ``matched``.
    """
    plan_of = {(plan.lane_id, plan.lane_digest): plan for plan in plans}
    by_cell: dict[Cell, list[Job]] = {}
    for job in jobs:
        if job.spec.task is not Task.JUDGE:
            by_cell.setdefault(cell_of(job), []).append(job)
    tries = [sorted(cell, key=_try_order) for cell in by_cell.values()]
    tries.sort(key=lambda cell: cell[0].spec.ordinal)
    name = _Namer(by_cell)
    return tuple(_row(cell, name(cell[-1]), plan_of.get(_planned(cell[-1]))) for cell in tries)


def matched(table: Iterable[Row], matches: Mapping[str, str]) -> tuple[Row, ...]:
    """``matches``: by job id, what the report says of the clip."""
    return tuple(replace(row, prompt_match=matches.get(row.job_id, row.prompt_match)) for row in table)


def _planned(job: Job) -> tuple[str, str]:
    return job.spec.lane_id, job.spec.lane_digest


def cell_of(job: Job) -> Cell:
    return job.spec.lane_id, job.spec.prompt_index, job.spec.seed


def latest(jobs: Iterable[Job]) -> tuple[Job, ...]:
    """The job that counts for each cell, in the order of ``rows``."""
    by_id = {job.spec.job_id: job for job in jobs}
    return tuple(by_id[row.job_id] for row in rows(by_id.values()))


def _try_order(job: Job) -> tuple[int, int]:
    return job.spec.retry_index, job.spec.ordinal


class _Namer:
    """Names a cell by its lane, and by prompt or seed only where the sweep has several."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        listed = tuple(cells)
        self._several_prompts = len({prompt for _, prompt, _ in listed}) > 1
        self._several_seeds = len({seed for _, _, seed in listed}) > 1

    def __call__(self, job: Job) -> str:
        parts = [f"prompt {job.spec.prompt_index + 1}"] if self._several_prompts else []
        parts += [f"seed {job.spec.seed}"] if self._several_seeds else []
        return f"{job.spec.lane_title} ({', '.join(parts)})" if parts else job.spec.lane_title


def _row(tries: Sequence[Job], model: str, plan: LanePlan | None) -> Row:
    job, spec = tries[-1], tries[-1].spec
    attempt = job.attempts[-1] if job.attempts else None
    outcome = attempt.outcome if attempt is not None else None
    marks = (*spec.marks, *(outcome.marks if outcome is not None else ()))
    return Row(
        job_id=spec.job_id,
        lane_id=spec.lane_id,
        prompt_index=spec.prompt_index,
        seed=spec.seed,
        model=model,
        task=task_text(spec.task),
        status=folding.status(job.state),
        latency_s=job_latency_s(job),
        prompt_match=NOT_SCORED if job.state is JobState.COMPLETED else ABSENT,
        finding=finding(job) + tries_text(tries),
        random_weights=spec.weights.is_random,
        rung=attempt.rung_name if attempt is not None else "",
        smallest_card_gib=smallest_card_gib(job, plan),
        footnotes=footnotes(marks),
        has_changes=any(mark.is_change for mark in marks),
        earlier=tuple(_try(job) for job in tries[:-1]),
    )


def _try(job: Job) -> Try:
    return Try(
        job_id=job.spec.job_id,
        status=folding.status(job.state),
        latency_s=job_latency_s(job),
        finding=finding(job),
    )


def task_text(task: Task) -> str:
    """``T2V``, as the column shows it."""
    return task.value.upper()


def job_latency_s(job: Job) -> float | None:
    """Of the attempt that decided; None when none has both begun and ended."""
    return attempt_s(job.attempts[-1]) if job.attempts else None


def attempt_s(attempt: Attempt) -> float | None:
    """Seconds from Started to AttemptEnded."""
    if attempt.started is None or attempt.ended is None:
        return None
    return seconds_between(attempt.started, attempt.ended)


def seconds_between(begin: Stamp, end: Stamp) -> float:
    """By the boot clock, which never jumps; by the wall clock over a reboot."""
    if begin.boot_id == end.boot_id:
        return (end.boottime_ns - begin.boottime_ns) / 1e9
    return (end.at - begin.at).total_seconds()


def latency_text(latency_s: float | None) -> str:
    """``343.94s``."""
    return ABSENT if latency_s is None else f"{latency_s:.2f}s"


# ---- memory


def smallest_card_gib(job: Job, plan: LanePlan | None) -> int | None:
    """The smallest card over the rungs that leave the picture as it is: as measured by this job, else as planned.

    None where neither knows, and for miniatures, whose memory says nothing of the model.
    """
    if job.spec.weights is Weights.MINIATURE:
        return None
    estimates = plan.estimates if plan is not None else ()
    peaks = {item.rung_name: item.peak_memory_bytes for item in estimates if not item.changes_picture}
    peaks.update(_measured_peaks(job))
    cards = [memory.card_gib(peak_bytes) for peak_bytes in peaks.values() if peak_bytes is not None]
    return min((card for card in cards if card is not None), default=None)


def _measured_peaks(job: Job) -> dict[str, int]:
    """By rung, of attempts that made the picture that was asked for."""
    found = {}
    for attempt in job.attempts:
        outcome = attempt.outcome
        is_whole = outcome is not None and outcome.failure_class is None and not outcome.marks
        if outcome is not None and is_whole and outcome.peak_device_memory_bytes is not None:
            found[attempt.rung_name] = outcome.peak_device_memory_bytes
    return found


def card_text(card_gib: int | None) -> str:
    """``16 GiB``."""
    return UNKNOWN if card_gib is None else f"{card_gib} GiB"


# ---- findings


def finding(job: Job) -> str:
    """One sentence, or two when there is a fix."""
    match job.state:
        case JobState.COMPLETED:
            return _completed_finding(job)
        case JobState.FAILED | JobState.REFUSED | JobState.CANCELLED:
            return _ended_finding(job)
        case JobState.QUEUED | JobState.ADMITTED:
            return sentence(f"waits: {job.waits_for}") if job.waits_for else ""
        case JobState.RUNNING | JobState.ENDED:
            return _running_finding(job)


def _completed_finding(job: Job) -> str:
    outcome = job.attempts[-1].outcome if job.attempts else None
    clip = outcome.clip if outcome else None
    parts = ["The clip is in the depot, its probe left no facts"]
    if clip is not None:
        parts = [f"Valid MP4, {clip.frames} frames at {number_text(clip.fps)} fps"]
        parts += [f"flagged {', '.join(clip.flags)}"] if clip.flags else []
    parts += [RANDOM_WEIGHTS] if job.spec.weights.is_random else []
    parts += ["shared GPU"] if job.attempts and job.attempts[-1].shared_gpu else []
    parts += _earlier_attempts(job)
    return sentence("; ".join(parts))


def _ended_finding(job: Job) -> str:
    failure = job.failure_class.value if job.failure_class else job.state.value
    cause = _after_class(failure, job.cause)
    lead = failure if failure == job.state.value else f"{failure}:"  # "cancelled by ada", but "timeout: ..."
    text = sentence("; ".join([f"{lead} {cause}" if cause else failure, *_earlier_attempts(job)]))
    return f"{text} Fix: {sentence(job.fix)}" if job.fix.strip() else text


def _after_class(failure: str, cause: str) -> str:
    """The cause without a full stop, and without the class when it begins with it."""
    first_line = " ".join(cause.split()).rstrip(".")
    return first_line.removeprefix(f"{failure}: ").removeprefix(f"{failure} ")


def _running_finding(job: Job) -> str:
    progress = job.progress
    if progress is None:
        return ""
    if progress.step is None or progress.steps is None:
        return sentence(progress.phase)
    return sentence(f"{progress.phase}, step {progress.step} of {progress.steps}")


def _earlier_attempts(job: Job) -> list[str]:
    """What the attempts before the deciding one ended with: ``attempt 2; 1st: crashed``."""
    if len(job.attempts) < 2:
        return []
    endings = [
        f"{ordinal(attempt.attempt)}: {attempt.outcome.failure_class.value}{_on_rung(attempt, job.attempts[-1])}"
        for attempt in job.attempts[:-1]
        if attempt.outcome and attempt.outcome.failure_class
    ]
    return [f"{ordinal(job.attempts[-1].attempt)} attempt", *endings]


def _on_rung(attempt: Attempt, deciding: Attempt) -> str:
    """Named where the ladder was stepped down."""
    return "" if attempt.rung == deciding.rung else f" at {attempt.rung_name}"


def tries_text(tries: Sequence[Job]) -> str:
    """`` 2nd try; 1st: failed, timeout.``; empty for a first try. A sentence to follow the finding."""
    if len(tries) < 2:
        return ""
    earlier = [f"{ordinal(index)}: {_ending(job)}" for index, job in enumerate(tries[:-1], start=1)]
    return " " + sentence("; ".join([f"{ordinal(len(tries))} try", *earlier]))


def _ending(job: Job) -> str:
    status = folding.status(job.state)
    if job.failure_class is None or job.failure_class.value == status:
        return status
    return f"{status}, {job.failure_class.value}"


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``11th``."""
    suffix = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def footnotes(marks: Sequence[Mark]) -> tuple[str, ...]:
    """One of each change; all defaults together are one more."""
    defaults = [mark_text(mark) for mark in marks if not mark.is_change]
    folded = (f"defaults of the lane: {', '.join(defaults)}",) if defaults else ()
    return (*(mark_text(mark) for mark in marks if mark.is_change), *folded)


def _clipped(text: str) -> str:
    """The beginning of a negative prompt says which one it is."""
    return text if len(text) <= DEFAULT_CHARACTERS else f'"{text[:DEFAULT_CHARACTERS].rstrip(" ,…")}…"'


def mark_text(mark: Mark) -> str:
    """``num_frames clamped: 24 -> 25 (frames must be 4k+1)``; of a default ``steps 50``, a part of one footnote."""
    if mark.kind is MarkKind.DEFAULTED:
        return f"{mark.parameter} {_clipped(mark.effective)}"
    change = {
        MarkKind.RENAMED: f"{mark.requested} -> {mark.effective}",
        # A prompt is too long to repeat: its mark says that there was one.
        MarkKind.DROPPED: "not passed" if mark.requested in {"", "given"} else f"{mark.requested} not passed",
        MarkKind.CLAMPED: f"{mark.requested} -> {mark.effective}",
        MarkKind.REDUCED: f"{mark.requested} -> {mark.effective}",
    }[mark.kind]
    reason = f" ({mark.reason.rstrip('.')})" if mark.reason else ""
    return f"{mark.parameter} {mark.kind.value}: {change}{reason}"


def number_text(number: float) -> str:
    """``16`` or ``23.98``."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def sentence(text: str) -> str:
    """Ends with one full stop; empty stays empty."""
    stripped = " ".join(text.split())
    return stripped if not stripped or stripped[-1] in ".!?" else f"{stripped}."


# ---- renderers


def numbered_footnotes(table: Sequence[Row]) -> dict[str, int]:
    """Each different footnote once, numbered from 1 in reading order."""
    numbers: dict[str, int] = {}
    for row in table:
        for footnote in row.footnotes:
            numbers.setdefault(footnote, len(numbers) + 1)
    return numbers


def plain(table: Sequence[Row]) -> str:
    """Aligned columns for a terminal or a log file."""
    numbers = numbered_footnotes(table)
    grid = [COLUMNS, *(_with_footnotes(row, numbers) for row in table)]
    widths = [max(len(line[column]) for line in grid) for column in range(len(COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in grid]
    lines.insert(1, "  ".join("-" * width for width in widths[:-1]) + "  " + "-" * len(COLUMNS[-1]))
    notes = [f"[{number}] {text}" for text, number in numbers.items()]
    return "\n".join([*lines, *_block(list(_earlier_lines(table))), *_block(notes)]) + "\n"


def _with_footnotes(row: Row, numbers: dict[str, int]) -> tuple[str, ...]:
    marks = "".join(f" [{number}]" for number in sorted({numbers[text] for text in row.footnotes}))
    model, *rest = row.cells
    return (model + marks, *rest)


def _earlier_lines(table: Sequence[Row]) -> Iterable[str]:
    for row in table:
        for number, earlier in enumerate(row.earlier, start=1):
            yield (
                f"{row.model}, {ordinal(number)} try: {earlier.status}, {latency_text(earlier.latency_s)}. "
                f"{earlier.finding}".rstrip()
            )


def _block(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no table break, no HTML, no emphasis."""
    escaped = " ".join(text.split())
    for character in "\\|`*_<>[]":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped
