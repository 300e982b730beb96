"""How the command line shows things: tables for people, JSON for programs, a live table on a terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from screentest import table as model_table
from screentest.client import Message
from screentest.records import Job, JobState
from screentest_ui.watching import WatchedJob, WatchedSweep, expects, seconds, waits

# A sweep of 1,000 jobs must not scroll the terminal away: show what moves, count the rest.
LIVE_ROWS = 24
# Beyond this many lines a row of a table is harder to read than a paragraph.
ROW_LINES = 3
# Wider than any terminal: how wide a table would like to be.
UNBOUNDED = 10_000

STATE_STYLE = {
    "completed": "green",
    "failed": "red",
    "refused": "yellow",
    "cancelled": "yellow",
    "running": "cyan",
    "admitted": "cyan",
    "ended": "cyan",
    "queued": "dim",
}


def out() -> Console:
    """Results, on stdout."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """What a person should know besides the result, on stderr."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One plain line on stdout; text of users is never read as markup."""
    out().print(Text(text))


def note(text: str) -> None:
    """One plain line on stderr, beside the result."""
    err().print(Text(text))


def as_json(value: Any) -> None:
    """Records as JSON: enums by value, times in ISO 8601, absent as null."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return found if "body" not in found else {**found, "kind": type(value.body).__name__}  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, a paragraph per row where it is too narrow for one, tab-separated lines elsewhere."""
    listed = list(rows)
    if not sys.stdout.isatty():
        for line in (columns, *listed):
            sys.stdout.write("\t".join(_one_line(cell) for cell in line) + "\n")
        return
    console, table = out(), _table(columns, listed)
    console.print(table if _is_readable(console, table) else _paragraphs(columns, listed))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        # the first is what one copies into the next command
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    return table


def _cell(text: str) -> Text:
    return Text(text, style=STATE_STYLE.get(text, ""))


def _is_readable(console: Console, table: Table) -> bool:
    """The longest words of all columns fit side by side, and a row is a few lines high at most."""
    unbounded = Measurement.get(console, console.options.update(width=UNBOUNDED), table)
    if unbounded.minimum > console.width:
        return False
    return len(console.render_lines(table)) <= ROW_LINES * (table.row_count + 1)


def _paragraphs(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Group:
    """The first cell of a row as its heading, the others behind their columns' names."""
    return Group(*(part for row in rows for part in _paragraph(columns, row)))


def _paragraph(columns: Sequence[str], row: Sequence[str]) -> tuple[Text, Padding]:
    named = [Text.assemble((f"{name}: ", "dim"), _cell(cell)) for name, cell in zip(columns, row, strict=True) if cell]
    return Text(row[0], style="bold"), Padding(Text(" | ", style="dim").join(named[1:]), (0, 0, 0, 2))


def print_model_table(rows: Sequence[model_table.Row]) -> None:
    """The model table, as the report shows it; on a terminal folded to its width."""
    text = model_table.plain(rows).rstrip("\n")
    if not sys.stdout.isatty():
        say(text)
        return
    numbers = model_table.numbered_footnotes(rows)
    print_table(model_table.COLUMNS, (_numbered_cells(row, numbers) for row in rows))
    _, _, notes = text.partition("\n\n")  # earlier tries and footnotes
    if notes:
        say(f"\n{notes}")


def _numbered_cells(row: model_table.Row, numbers: dict[str, int]) -> tuple[str, ...]:
    marks = "".join(f" [{number}]" for number in sorted({numbers[text] for text in row.footnotes}))
    model, *rest = row.cells
    return (model + marks, *rest)


def _one_line(text: str) -> str:
    return " ".join(text.split())


class LiveSweep:
    """Shows a watched sweep while it goes on: a live table on a terminal, a line per change elsewhere.

    ``on_message``: gets every message instead, and nothing is shown.
    """

    def __init__(self, *, quiet: bool = False, on_message: Callable[[Message], None] | None = None) -> None:
        self.watched = WatchedSweep()
        self._quiet = quiet or on_message is not None
        self._on_message = on_message
        self._console = err() if self._quiet else out()
        self._live: Live | None = None
        self._has_told_time = False

    def __enter__(self) -> LiveSweep:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, message: Message) -> None:
        lines = self.watched.apply(message)
        if self._on_message is not None:
            self._on_message(message)
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(_live_table(self.watched), refresh=True)
            return
        for line in lines:
            self._console.print(Text(line))

    def expect(self, jobs: Iterable[Job]) -> None:
        """What the scheduler expects of the jobs. Elsewhere than on a terminal it is said once, when it is known."""
        self.watched.expect(jobs)
        if self._quiet or self._live is not None or self._has_told_time or self.watched.left_s is None:
            return
        self._has_told_time = True
        self._console.print(Text(f"about {seconds(self.watched.left_s)} until the last clip"))

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(Text(text))


def _live_table(watched: WatchedSweep) -> Group:
    jobs = sorted(watched.jobs.values(), key=_interest)
    shown = sorted(jobs[:LIVE_ROWS], key=lambda job: job.spec.ordinal)
    table = Table.grid(padding=(0, 2))
    for job in shown:
        table.add_row(
            Text(job.name),
            Text(job.state.value, style=STATE_STYLE[job.state.value]),
            ProgressBar(total=1.0, completed=job.fraction or 0.0, width=20) if _is_moving(job) else Text(""),
            Text(_what(job)),
        )
    hidden = len(jobs) - len(shown)
    done = sum(job.state.is_terminal for job in watched.jobs.values())
    left = f", about {seconds(watched.left_s)} left" if watched.left_s is not None else ""
    foot = f"{done} of {len(jobs)} jobs terminal{left}" + (f", {hidden} not shown" if hidden else "")
    return Group(table, Text.from_markup(f"[dim]{escape(foot)}[/dim]"))


def _interest(job: WatchedJob) -> tuple[int, int]:
    """What moves first, then what has ended badly, then what waits, then what is done."""
    rank = 0 if _is_moving(job) else 2 if not job.state.is_terminal else 3 if job.state is JobState.COMPLETED else 1
    return rank, job.spec.ordinal


def _is_moving(job: WatchedJob) -> bool:
    return job.state in {JobState.ADMITTED, JobState.RUNNING, JobState.ENDED}


def _what(job: WatchedJob) -> str:
    if job.state.is_terminal:
        return "" if job.state is JobState.COMPLETED else job.ended_with
    if job.progress is None or not _is_moving(job):
        return "; ".join(part for part in (waits(job.waits_for) if job.waits_for else "", expects(job)) if part)
    progress = job.progress
    parts = [progress.phase.replace("_", " ")]
    if progress.step is not None and progress.steps:
        parts.append(f"step {progress.step}/{progress.steps}")
    if progress.eta_s is not None:
        parts.append(f"ETA {seconds(progress.eta_s)}")
    return ", ".join(parts)
