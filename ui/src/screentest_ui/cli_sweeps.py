"""submit, watch, status, cancel, retry, report, events, preflight: what a person does with a sweep."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Annotated

import typer

from screentest import folding
from screentest import table as model_table
from screentest.client import Client, Message
from screentest.errors import BadRequest, ScreentestError
from screentest.records import Job, JobEvent, LaneVerdict, Sweep, SweepEvent, SweepSpec, Verdict
from screentest_ui import cli_fleet, outlook, overview, printing, reportfetch, sweepfile, waiting
from screentest_ui.connection import connect
from screentest_ui.printing import LiveSweep
from screentest_ui.sweepfile import SweepFile

FAILED = 1
QUIET_S = 1.0

Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
SweepId = Annotated[str, typer.Argument(help="The sweep, as `screentest status` lists it.")]
File = Annotated[Path, typer.Argument(help="A sweep file, for example deploy/sweeps/architects-stillness.toml.")]
Lanes = Annotated[str, typer.Option(help="Lane ids, separated by commas, instead of the file's.")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas, instead of the file's.")]
WeightsName = Annotated[str, typer.Option("--weights", help="hub, miniature or full-random, instead of the file's.")]
KeyframeFile = Annotated[Path | None, typer.Option(help="PNG, JPEG or WebP, instead of the file's.")]
MemoryCap = Annotated[
    float | None, typer.Option("--memory-cap-gib", help="Device memory a job may take, to try a smaller card.")
]
Skip = Annotated[
    bool | None, typer.Option(help="Skip lanes that cannot take part, with the reason, instead of refusing the sweep.")
]


def submit(
    file: File,
    lanes: Lanes = "",
    seeds: Seeds = "",
    weights: WeightsName = "",
    keyframe: KeyframeFile = None,
    skip_impossible: Skip = None,
    memory_cap_gib: MemoryCap = None,
    request_id: Annotated[str, typer.Option(help="Makes the submit repeatable: the same id is the same sweep.")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Show it until it has ended; exit 1 unless all completed.")
    ] = False,
    json: Json = False,
) -> int | None:
    """Send a sweep to the scheduler."""
    asked = _asked(file, lanes, seeds, weights, keyframe, memory_cap_gib, skip_impossible)
    with connect() as client:
        sweep = send(client, asked, request_id)
        sweep_id = sweep.record.sweep_id
        if not wait:
            _show_submitted(sweep, as_json=json)
            return None
        if not json:
            _show_submitted(sweep, as_json=False)
        return _wait_and_show(client, sweep_id, "", as_json=json, must_complete=True)


def watch(
    sweep_id: SweepId,
    json: Json = False,
) -> int | None:
    """Show a sweep until it has ended.

    With --json every message is one line.
    """
    with connect() as client:
        if not json:
            return _wait_and_show(client, sweep_id, "", as_json=False, must_complete=False)
        wait_for_end(client, sweep_id, on_message=lambda message: printing.as_json(message.body))
    return None


def status(
    sweep_id: Annotated[str, typer.Argument(help="One sweep; none = list them all.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Also jobs by their ids; without a sweep devices, workers, streams, depot.")
    ] = False,
    json: Json = False,
) -> None:
    """List the sweeps, or show one as the model table."""
    with connect() as client:
        if sweep_id:
            _show_sweep(client, sweep_id, as_json=json, with_jobs=everything)
            return
        found = overview.ask(client) if everything else None
        sweeps = found.sweeps if found else client.list_sweeps()
    if json:
        printing.as_json(found or sweeps)
    elif found:
        overview.show(found, _sweep_line, cli_fleet.device_line)
    else:
        printing.print_table(overview.SWEEP_COLUMNS, map(_sweep_line, sweeps))


def cancel(
    sweep_id: Annotated[str, typer.Argument(help="The sweep; leave out with --job.")] = "",
    job: Annotated[str, typer.Option(help="Only this job.")] = "",
    json: Json = False,
) -> None:
    """Cancel a sweep, or one job."""
    if bool(sweep_id) == bool(job):
        raise BadRequest("name either a sweep or a job: `screentest cancel <sweep>` or `screentest cancel --job <job>`")
    with connect() as client:
        if job:
            cancelled = client.cancel_job(job)
            printing.as_json(cancelled) if json else printing.say(f"{job}: {_cancel_word(cancelled)}")
            return
        count = client.cancel_sweep(sweep_id)
    if json:
        printing.as_json({"sweep_id": sweep_id, "jobs": count})
    else:
        printing.say(f"cancel requested for {count} jobs of {sweep_id}" if count else "every job had ended already")


def retry(
    sweep_id: Annotated[str, typer.Argument(help="The sweep; leave out with --job.")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="Every cell of the sweep that did not complete.")] = False,
    job: Annotated[str, typer.Option(help="Only this job.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show the sweep until it has ended.")] = False,
    json: Json = False,
) -> int | None:
    """Try cells again, as new jobs of the same sweep."""
    if bool(job) == (bool(sweep_id) and failed):
        raise BadRequest("say what: `screentest retry <sweep> --failed` or `screentest retry --job <job>`")
    with connect() as client:
        before = client.get_sweep(sweep_id).cursor if sweep_id else ""
        again = (job,) if job else unfinished_cells(client.list_jobs(sweep_id))
        retried = [client.retry_job(job_id) for job_id in again]
        if json and not wait:
            printing.as_json(retried)
            return None
        if not json:
            for new in retried:
                spec = new.spec
                printing.say(f"{spec.lane_title}, seed {spec.seed}: {spec.job_id} tries {spec.retry_of} again")
        if not retried:
            if not json:
                printing.say("every cell has completed; there is nothing to try again")
            return None
        if not wait:
            return None
        return _wait_and_show(client, retried[0].spec.sweep_id, before, as_json=json, must_complete=True)


def report(
    sweep_id: SweepId,
    out: Annotated[Path, typer.Option(help="Folder of all fetched reports.")] = Path("out"),
    final: Annotated[bool, typer.Option(help="Wait for the report of the ended sweep, if it has ended.")] = True,
    json: Json = False,
) -> None:
    """Fetch a sweep's report and clips to out/<sweep>/, and the same as out/<sweep>.zip."""
    with connect() as client:
        fetched = reportfetch.fetch(client, sweep_id, out, wait_for_final=final)
    if json:
        counts = {"files": len(fetched.files), "clips": len(fetched.clips)}
        printing.as_json({"index": str(fetched.index), "archive": str(fetched.archive), **counts})
        return
    for problem in fetched.problems:
        printing.err().print(problem, markup=False)
    printing.say(f"{len(fetched.clips)} clips, {len(fetched.files)} report files")
    printing.say(f"zip: {shown_path(fetched.archive)}")
    printing.say(f"report: {shown_path(fetched.index)}")


def events(sweep_id: SweepId, json: Json = False) -> None:
    """List what has happened to a sweep, oldest first."""
    with connect() as client:
        client.get_sweep(sweep_id)
        for event in past_events(client, sweep_id):
            if json:
                printing.as_json(event)
            else:
                printing.say(_event_line(event))


def preflight(
    file: File,
    lanes: Lanes = "",
    seeds: Seeds = "",
    weights: WeightsName = "",
    keyframe: KeyframeFile = None,
    memory_cap_gib: MemoryCap = None,
    json: Json = False,
) -> int | None:
    """Say what each lane would do with a sweep, queueing nothing.

    Exit 1 when a lane refuses.
    """
    asked = _asked(file, lanes, seeds, weights, keyframe, memory_cap_gib, None)
    with connect() as client:
        verdicts = client.preflight(uploaded(client, asked))
    if json:
        printing.as_json(verdicts)
    else:
        show_outlooks(verdicts)
    return FAILED if any(verdict.verdict is Verdict.REFUSED for verdict in verdicts) else None


# ---- used by `make demo` too


def send(client: Client, asked: SweepFile, request_id: str = "") -> Sweep:
    """Uploads keyframe and rubrics, then submits; a lost answer is asked for again under the same request id."""
    return client.submit_sweep(uploaded(client, asked), request_id=request_id or str(uuid.uuid4())).sweep


def uploaded(client: Client, asked: SweepFile) -> SweepSpec:
    """What the file asks for, once its keyframe and rubrics are in the depot."""
    keyframe = client.upload_keyframe(asked.keyframe) if asked.keyframe else None
    rubrics = tuple(
        client.upload_rubric(path, prompt=asked.prompts[index], prompt_index=index)
        for index, path in enumerate(asked.rubrics)
    )
    return asked.spec(keyframe, rubrics)


def wait_for_end(
    client: Client,
    sweep_id: str,
    cursor: str = "",
    *,
    quiet: bool = False,
    on_message: Callable[[Message], None] | None = None,
) -> None:
    """Shows the sweep until it has settled, or gives every message to ``on_message`` and shows nothing.

    A Ctrl-C says how to come back, and goes on.
    """
    with LiveSweep(quiet=quiet, on_message=on_message) as live:
        try:
            waiting.follow(client, sweep_id, cursor, live, waiting.WorkerWatch(client))
        except KeyboardInterrupt:
            printing.err().print(
                f"\nthe sweep goes on; `screentest watch {sweep_id}` shows it, `screentest cancel {sweep_id}` ends it",
                markup=False,
            )
            raise


def past_events(client: Client, sweep_id: str, quiet_s: float = QUIET_S) -> Iterator[JobEvent | SweepEvent]:
    """Every event of a sweep up to now: the stream has no end, so it is now when nothing more comes for a moment."""
    read: Queue[JobEvent | SweepEvent | ScreentestError] = Queue()
    messages = client.watch(sweep_id, give_up_after_s=0)

    def pump() -> None:
        try:
            for message in messages:
                if isinstance(message.body, (JobEvent, SweepEvent)):
                    read.put(message.body)
        except ScreentestError as error:
            read.put(error)

    Thread(target=pump, daemon=True).start()
    while True:
        try:
            event = read.get(timeout=quiet_s)
        except Empty:
            return
        if isinstance(event, ScreentestError):
            raise event
        yield event


def unfinished_cells(jobs: tuple[Job, ...]) -> tuple[str, ...]:
    """The last job of every cell that ended without completing."""
    return tuple(row.job_id for row in model_table.rows(jobs) if row.status in {"failed", "refused", "cancelled"})


def shown_path(path: Path) -> str:
    """Relative where that is shorter to read."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)


# ---- lines


def show_outlooks(verdicts: Iterable[LaneVerdict]) -> None:
    """A line per lane, and below the table where its numbers come from."""
    outlooks = [outlook.outlook(verdict) for verdict in verdicts]
    printing.print_table(outlook.COLUMNS, (item.cells for item in outlooks))
    by_basis: dict[str, list[str]] = {}
    for item in outlooks:
        by_basis.setdefault(item.basis, []).append(item.lane_id)
    for basis, lane_ids in by_basis.items():
        if basis:
            printing.say(f"{', '.join(lane_ids)}: {basis}")


def _asked(
    file: Path,
    lanes: str,
    seeds: str,
    weights: str,
    keyframe: Path | None,
    memory_cap_gib: float | None,
    skip_impossible: bool | None,
) -> SweepFile:
    return sweepfile.load(file).with_options(
        lane_ids=tuple(part.strip() for part in lanes.split(",") if part.strip()),
        seeds=_seeds(seeds),
        weights=sweepfile.weights(weights, "--weights") if weights else None,
        keyframe=keyframe,
        memory_cap_gib=memory_cap_gib,
        skip_impossible=skip_impossible,
    )


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise BadRequest(f"--seeds {text!r}: give whole numbers separated by commas, for example 42,43") from None


def _show_submitted(sweep: Sweep, *, as_json: bool) -> None:
    if as_json:
        printing.as_json(sweep)
        return
    printing.say(f"sweep: {sweep.record.sweep_id} ({sweep.counts.total} jobs)")
    for skipped in sweep.record.skipped:
        printing.say(f"{skipped.lane_title}: skipped: {skipped.reason}")
    for lane in sweep.record.lanes:
        if lane.preflight not in {"", "ok"}:
            printing.say(f"{lane.lane_title}: {lane.preflight}")


def _wait_and_show(client: Client, sweep_id: str, cursor: str, *, as_json: bool, must_complete: bool) -> int | None:
    wait_for_end(client, sweep_id, cursor, quiet=as_json)
    _show_sweep(client, sweep_id, as_json=as_json)
    return FAILED if must_complete and unfinished_cells(client.list_jobs(sweep_id)) else None


def _show_sweep(client: Client, sweep_id: str, *, as_json: bool, with_jobs: bool = False) -> None:
    sweep, jobs = client.get_sweep(sweep_id), client.list_jobs(sweep_id)
    rows = model_table.rows(jobs, sweep.record.lanes)
    if sweep.scoring is not None:
        rows = model_table.matched(rows, reportfetch.matches(client, sweep_id))
    if as_json:
        plain = [{**printing.plain(row), "job_id": row.job_id} for row in rows]
        printing.as_json({"sweep": sweep, "rows": plain, "jobs": jobs})
        return
    printing.print_model_table(rows)
    if with_jobs:
        printing.say("")
        printing.print_table(overview.JOB_COLUMNS, map(overview.job_line, jobs))


def _sweep_line(sweep: Sweep) -> tuple[str, ...]:
    counts = sweep.counts
    bad = counts.failed + counts.refused + counts.cancelled
    state = "archived" if sweep.archived else _sweep_state(sweep)
    title = sweep.record.spec.title
    return (sweep.record.sweep_id, title, str(counts.total), str(counts.completed), str(bad), state)


def _sweep_state(sweep: Sweep) -> str:
    if sweep.over:
        return "over"
    if sweep.paused:
        return "paused"
    return "running" if sweep.counts.running else "queued"


def _cancel_word(job: Job) -> str:
    return folding.status(job.state) if job.state.is_terminal else "cancel requested"


def _event_line(event: JobEvent | SweepEvent) -> str:
    at = f"{event.stamp.at:%Y-%m-%d %H:%M:%S}Z"
    kind = type(event.body).__name__
    if isinstance(event, SweepEvent):
        return f"{at}  {kind}  {event.sweep_id}"
    return f"{at}  {kind}  {event.lane_id}  {event.job_id}  attempt {event.attempt}  {event.state.value}"
