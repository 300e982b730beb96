"""``make demo``: the main job from nothing to the case study, on a machine without a GPU, leaving no process behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from screentest import table as model_table
from screentest.errors import NotPossibleNow, ScreentestError
from screentest.records import Weights
from screentest_ui import printing, reportfetch, services, stack, sweepfile
from screentest_ui.cli_sweeps import send, shown_path, unfinished_cells, wait_for_end
from screentest_ui.connection import connect
from screentest_ui.home import Home, default_home

DEVICE = "cpu-0"
OUT = Path("out")


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
        asked = sweepfile.load(place.lanes_dir.parent / "sweeps" / "architects-stillness.toml").with_options(
            weights=Weights.MINIATURE
        )
        wanted = services.Wanted(
            device=DEVICE,
            lanes=services.choose_lanes(place, asked.lane_ids, with_stub=False),
            judges=services.choose_judges(place, ()),
            weights_dir=home.path / "models",
            with_panel=False,
        )
        stack.up(home, place, wanted, os.environ, printing.say)
        printing.say(f"the stack is up after {time.monotonic() - began:.0f} s")
        index, unfinished = _sweep(asked)
    finally:
        if not was_up:
            stack.down(home, printing.say)
    printing.say(f"the demo took {time.monotonic() - began:.0f} s")
    printing.say("panel: make up")
    printing.say(f"report: {shown_path(index)}")
    return 1 if unfinished else 0


def _sweep(asked: sweepfile.SweepFile) -> tuple[Path, tuple[str, ...]]:
    """(the fetched report, cells that did not complete)."""
    with connect() as client:
        sweep = send(client, asked)
        sweep_id = sweep.record.sweep_id
        printing.say(f"sweep: {sweep_id} ({sweep.counts.total} jobs)")
        wait_for_end(client, sweep_id)
        jobs = client.list_jobs(sweep_id)
        printing.print_model_table(model_table.rows(jobs, sweep.record.lanes))
        fetched = reportfetch.fetch(client, sweep_id, OUT, wait_for_final=True)
    for problem in fetched.problems:
        printing.err().print(problem, markup=False)
    return fetched.index, (*unfinished_cells(jobs), *fetched.problems)


def _require_cpu(home: Home, was_up: bool) -> None:
    running = home.read()
    if was_up and running is not None and running.device != DEVICE:
        raise NotPossibleNow(f"a stack with --device {running.device} runs in {home.path}; run `make down` first")


if __name__ == "__main__":
    main()
