"""``make demo``: the main job from nothing to the case study, on a machine without a GPU, leaving no process behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from screentest import table as model_table
from screentest.client import Client
from screentest.errors import NotPossibleNow, ScreentestError
from screentest.records import Weights
from screentest_ui import printing, reportfetch, services, stack, sweepfile
from screentest_ui.cli_sweeps import send, shown_path, unfinished_cells, wait_for_end
from screentest_ui.connection import connect
from screentest_ui.home import Home, default_home

DEVICE = "cpu-0"
OUT = Path("out")
# Pixels take half a second a clip on two cores.
JUDGED_WITHIN_S = 30.0
LOOK_EVERY_S = 0.5


def main() -> None:
    """Exit status 0 only when the sweep has settled with every row completed."""
    try:
        sys.exit(run(default_home()))
    except ScreentestError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(home: Home) -> int:
    """A stack that ran before stays up afterwards; one that we started goes down, whatever happened."""
    began = time.monotonic()
    was_up = stack.is_up(home)
    _require_cpu(home, was_up)
    try:
        place = services.installation(os.environ)
        asked = sweepfile.load(place.demo_sweep).with_options(weights=Weights.MINIATURE)
        wanted = services.Wanted(
            device=DEVICE,
            lanes=services.choose_lanes(place, asked.lane_ids, with_stub=False),
            judges=services.choose_judges(place, ()),
            weights_dir=home.path / "models",
            with_panel=False,
        )
        stack.up(home, place, wanted, os.environ, printing.say)
        printing.say(f"the stack is up after {time.monotonic() - began:.0f} s")
        index, unfinished = _sweep(asked, judged=bool(wanted.judges))
    finally:
        if not was_up:
            stack.down(home, printing.say)
    printing.say(f"the demo took {time.monotonic() - began:.0f} s")
    printing.say("panel: make up")
    printing.say(f"report: {shown_path(index)}")
    return 1 if unfinished else 0


def _sweep(asked: sweepfile.SweepFile, *, judged: bool) -> tuple[Path, tuple[str, ...]]:
    """(the fetched report, cells that did not complete). ``judged``: there is a worker that judges the clips."""
    with connect() as client:
        sweep = send(client, asked)
        sweep_id = sweep.record.sweep_id
        printing.say(f"sweep: {sweep_id} ({sweep.counts.total} jobs)")
        wait_for_end(client, sweep_id)
        jobs = client.list_jobs(sweep_id)
        printing.print_model_table(model_table.rows(jobs, sweep.record.lanes))
        if judged:
            _wait_for_judges(client, sweep_id)
        fetched = reportfetch.fetch(client, sweep_id, OUT, wait_for_final=True)
    for problem in fetched.problems:
        printing.err().print(problem, markup=False)
    return fetched.index, (*unfinished_cells(jobs), *fetched.problems)


def _wait_for_judges(client: Client, sweep_id: str) -> None:
    """Until the report holds what the judges found. A judge that takes too long is no reason for no demo."""
    deadline = time.monotonic() + JUDGED_WITHIN_S
    while time.monotonic() < deadline:
        scoring = client.get_sweep(sweep_id).scoring
        is_open = scoring is not None and (scoring.counts.queued or scoring.counts.running)
        if not is_open and not _pending(client, sweep_id):
            return
        time.sleep(LOOK_EVERY_S)
    printing.say("some clips are not judged yet; the report says which")


def _pending(client: Client, sweep_id: str) -> int:
    """Judgements that the published report still waits for."""
    document = reportfetch.document(client, sweep_id, wait_for_final=True)
    pending: int = document["scoring"]["pending"]
    return pending


def _require_cpu(home: Home, was_up: bool) -> None:
    running = home.read()
    if was_up and running is not None and running.device != DEVICE:
        raise NotPossibleNow(f"a stack with --device {running.device} runs in {home.path}; run `make down` first")


if __name__ == "__main__":
    main()
