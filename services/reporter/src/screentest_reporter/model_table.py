"""The report's rows: the model table joined with each job's clip, pictures, energy, score and finding. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from screentest import table
from screentest.records import ClipFacts, Job, LanePlan, Outcome
from screentest_reporter.energy_ledger import Meters, gpu_window
from screentest_reporter.scores import ClipScore
from screentest_reporter.sweeps import Edit

# The case study's own columns come first and in its order; what it did not know comes behind them.
COLUMNS: Final = (
    *("Model", "Task", "Status", "Latency", "Prompt match", "Finding"),
    *("Rung", "Smallest card", "Peak memory", "Wh", "Score interval"),
)
PICTURE_KINDS: Final = ("sheet", "poster", "strip")
GIB: Final = 2**30


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
    strip: str | None = None
    error: str = ""

    @property
    def names(self) -> dict[str, str]:
        """File name by kind of picture, of those that there are."""
        found = {"sheet": self.sheet, "poster": self.poster, "strip": self.strip}
        return {kind: name for kind, name in found.items() if name is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFinding:
    """What the row says, and what it said before a person edited it. ``edit`` None = nobody did, or took it back."""

    original: str
    edit: Edit | None = None

    @property
    def text(self) -> str:
        return self.edit.text if self.edit else self.original


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """``energy_wh`` is of the deciding attempt; None where no counter says. ``clip_facts`` None without a clip.

    ``cause`` and ``fix``: of a row without a clip, as its terminal event says them. ``score`` None = not scored.
    """

    row: table.Row
    finding: RowFinding
    failure_class: str | None
    cause: str
    fix: str
    attempts: int
    clip: ClipLink | None
    clip_facts: ClipFacts | None
    pictures: Pictures
    score: ClipScore | None
    energy_wh: float | None
    peak_device_memory_bytes: int | None
    peak_host_memory_bytes: int | None
    peak_memory_by_phase: Mapping[str, int]
    steps_done: int
    step_s: float | None
    lane_digest: str
    size_text: str
    lane_title: str

    @property
    def prompt_match(self) -> str:
        """``3.5/10``, ``not scored``, or ``n/a`` without a clip."""
        return self.row.prompt_match if self.score is None or self.clip is None else self.score.text

    @property
    def interval(self) -> str:
        return (self.score.interval_text if self.score else "") or (table.NOT_SCORED if self.clip else table.ABSENT)

    @property
    def is_greyed(self) -> bool:
        """Whether the controls of the score's judge do not let us believe it."""
        return self.score is not None and self.score.score.score10 is not None and bool(self.score.why_greyed)

    @property
    def badges(self) -> tuple[str, ...]:
        """What a reader of the score must know."""
        return self.score.score.badges if self.score else ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The text of each of ``COLUMNS``."""
        line = self.row
        case_study = (line.model, line.task, line.status, table.latency_text(line.latency_s), self.prompt_match)
        fit = (line.rung or table.ABSENT, table.card_text(line.smallest_card_gib))
        costs = (gib_text(self.peak_device_memory_bytes), wh_cell(self.energy_wh), self.interval)
        return (*case_study, self.finding.text, *fit, *costs)

    @property
    def sort_keys(self) -> tuple[str, ...]:
        """What each column is sorted by: a number where the text is one; empty = unknown, always last."""
        line, score = self.row, self.score.score if self.score else None
        numbers = (
            line.smallest_card_gib,
            self.peak_device_memory_bytes,
            self.energy_wh,
            score.low if score else None,
        )
        match10 = score.score10 if score else None
        shown = (line.model, line.task, line.status, _key(line.latency_s), _key(match10), self.finding.text, line.rung)
        return (*shown, *(_key(number) for number in numbers))


def _key(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def gib_text(size_bytes: int | None) -> str:
    return table.UNKNOWN if size_bytes is None else f"{size_bytes / GIB:.2f} GiB"


def wh_cell(energy_wh: float | None) -> str:
    """Under a column that names the unit: ``12.34``, small ones with three digits that count."""
    if energy_wh is None:
        return table.UNKNOWN
    return f"{energy_wh:.2f}" if energy_wh >= 1 else f"{energy_wh:.3g}"


NO_PICTURES = Pictures()


def report_rows(
    jobs: Sequence[Job],
    *,
    pictures: Mapping[str, Pictures],
    meters: Meters,
    plans: Sequence[LanePlan] = (),
    scores: Mapping[str, ClipScore] | None = None,
    edits: Mapping[str, Sequence[Edit]] | None = None,
) -> tuple[ReportRow, ...]:
    """In the order of the table. ``pictures``, ``scores`` and ``edits`` by job id, ``plans`` of the sweep's record."""
    by_id = {job.spec.job_id: job for job in jobs}
    return tuple(
        _report_row(
            row,
            by_id[row.job_id],
            pictures.get(row.job_id, NO_PICTURES),
            meters,
            (scores or {}).get(row.job_id),
            latest_edit((edits or {}).get(row.job_id, ())),
        )
        for row in table.rows(jobs, plans)
    )


def latest_edit(edits: Sequence[Edit]) -> Edit | None:
    """The one that counts; an empty text takes the edits before it back."""
    return edits[-1] if edits and edits[-1].text else None


def _report_row(
    row: table.Row, job: Job, pictures: Pictures, meters: Meters, score: ClipScore | None, edit: Edit | None
) -> ReportRow:
    attempt = job.attempts[-1] if job.attempts else None
    outcome = attempt.outcome if attempt else None
    used = meters.used(job.spec.host, job.spec.device, gpu_window(attempt)) if attempt else None
    return ReportRow(
        row=row,
        finding=RowFinding(original=_finding(row, score), edit=edit),
        failure_class=job.failure_class.value if job.failure_class else None,
        cause=table.sentence(job.cause),
        fix=table.sentence(job.fix),
        attempts=len(job.attempts),
        clip=clip_link(job),
        clip_facts=outcome.clip if outcome and job.clip else None,
        pictures=pictures,
        score=score if job.clip else None,
        energy_wh=used.wh if used else None,
        peak_device_memory_bytes=outcome.peak_device_memory_bytes if outcome else None,
        peak_host_memory_bytes=outcome.peak_host_memory_bytes if outcome else None,
        peak_memory_by_phase={peak.phase: peak.peak_bytes for peak in outcome.peak_memory_by_phase} if outcome else {},
        steps_done=outcome.steps_done if outcome else 0,
        step_s=outcome.step_s if outcome else None,
        lane_digest=job.spec.lane_digest,
        size_text=_size_text(job, outcome),
        lane_title=job.spec.lane_title,
    )


def _finding(row: table.Row, score: ClipScore | None) -> str:
    """What its judges say of a clip, or why they could not, is more than its probe says."""
    return table.sentence(score.finding) if score is not None and score.finding else row.finding


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


def markdown(rows: Sequence[ReportRow]) -> str:
    """GitHub's table syntax, with earlier tries, edited findings and footnotes below."""
    numbers = table.numbered_footnotes([row.row for row in rows])
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    lines += [_line(_marked(row, numbers)) for row in rows]
    below = [f"- {table.markdown_text(text)}" for row in rows for text in _below(row)]
    notes = [f"[{number}] {table.markdown_text(text)}  " for text, number in numbers.items()]
    return "\n".join([*lines, *_block(below), *_block(notes)]) + "\n"


def _marked(row: ReportRow, numbers: Mapping[str, int]) -> tuple[str, ...]:
    marks = "".join(f" [{number}]" for number in sorted({numbers[text] for text in row.row.footnotes}))
    model, *rest = row.cells
    return (model + marks, *rest)


def _below(row: ReportRow) -> list[str]:
    """Earlier tries, and what an edited finding said before."""
    edit = row.finding.edit
    before = [f"{row.row.model}: edited by {edit.by}; before: {row.finding.original}"] if edit else []
    tries = [
        f"{row.row.model}, {table.ordinal(number)} try: {earlier.status}, {table.latency_text(earlier.latency_s)}. "
        f"{earlier.finding}".rstrip()
        for number, earlier in enumerate(row.row.earlier, start=1)
    ]
    return [*before, *tries]


def _block(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(table.markdown_text(cell) for cell in cells) + " |"
