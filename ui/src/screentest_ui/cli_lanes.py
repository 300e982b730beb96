"""lanes, lanes doctor: the catalogue, and whether its files are right."""

from __future__ import annotations

import json as jsonlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.status import Status

from screentest.errors import BadRequest, Unavailable
from screentest.judges import load_judges
from screentest.lanes import load_lanes
from screentest.measured import load_measured
from screentest.records import LaneView
from screentest_ui import catalogue, printing, services
from screentest_ui.connection import connect
from screentest_ui.home import client_environment, default_home
from screentest_ui.panel_text import counted
from screentest_ui.services import Installation
from screentest_ui.weights_folder import Folder

Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
WeightsDir = Annotated[
    Path | None, typer.Option(help="Where hub weights are, one folder per lane id. Default: <home>/models.")
]

DOCTOR = "screentest_worker.doctor"
OK, FAILED = 0, 1
LANE_LIMIT_S = 240.0


def lanes(weights_dir: WeightsDir = None, json: Json = False) -> None:
    """List the lanes: licence, size, weights on this machine, smallest card; with a stack, who serves them.

    Below them the judges by tier; --json lists the lanes.
    """
    place = services.installation(os.environ)
    known = load_lanes(place.lanes_dir)
    models_dir = (weights_dir or default_home().path / "models").absolute()
    weights = {lane_id: Folder(models_dir=models_dir, lane_id=lane_id).state() for lane_id in known}
    views = _views()
    listed = catalogue.rows(known, weights, load_measured(place.lanes_dir.parent / "measured"), views)
    if json:
        printing.as_json(listed)
        return
    printing.print_table(catalogue.COLUMNS, (row.cells for row in listed))
    printing.say("")
    seen = {view.lane_id: view for view in views or ()}
    judges = sorted(load_judges(place.judges_dir).values(), key=lambda judge: judge.tier)
    states = {judge.id: Folder(models_dir=models_dir, lane_id=judge.id).state() for judge in judges}
    lines = (catalogue.judge_cells(judge, states[judge.id], seen.get(judge.id)) for judge in judges)
    printing.print_table(catalogue.JUDGE_COLUMNS, lines)


def _views() -> tuple[LaneView, ...] | None:
    """None without a stack; one that does not answer is told and does not keep the files from being shown."""
    if not client_environment(default_home()):
        return None
    try:
        with connect() as client:
            return client.list_lanes()
    except Unavailable as error:
        printing.err().print(f"workers unknown: {error}", markup=False)
        return None


# ---- the doctor


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor. fix: empty unless failed."""

    lane: str
    check: str
    status: str
    detail: str
    fix: str
    seconds: float

    @property
    def is_ok(self) -> bool:
        return self.status == "ok"

    @property
    def line(self) -> str:
        return f"{self.lane}: {self.check}: {self.status}: {self.detail}" + (f"; {self.fix}" if self.fix else "")


def doctor(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE|LANE]...", help="Lane files or ids; none = all that have a model."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also count parameters and operations at full size: a minute a lane.")
    ] = False,
    miniatures: Annotated[
        Path | None, typer.Option(help="Folders by lane id, to examine instead of miniatures built from the file.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Lanes at a time; each takes a core and a GiB.")] = 2,
    limit_s: Annotated[
        float, typer.Option(min=1, help="Seconds for one lane; a lane that needs more has failed.")
    ] = LANE_LIMIT_S,
    json: Json = False,
) -> int:
    """Examine lane files without a GPU or a download.

    The pipeline's signature, a miniature's clips, every rung. Exit 1 when any check failed.
    With --json every check is one line.
    """
    place = services.installation(os.environ)
    chosen = _files(place, files or [])
    options = ["--jobs", str(jobs), "--limit-s", str(limit_s), *(["--full"] if full else [])]
    options += ["--miniatures", str(miniatures)] if miniatures is not None else []
    command = [sys.executable, "-m", DOCTOR, "--envs-dir", str(place.envs_dir), *options, *map(str, chosen)]
    is_table = sys.stdout.isatty() and not json
    seen: list[Check] = []
    with _progress(is_shown=is_table) as progress:
        for check in _checks(command):
            seen.append(check)
            if json:
                printing.as_json(check)
            elif progress is None:
                printing.say(check.line)
            else:
                progress.update(f"{check.lane}: {check.check}")
    if not json:
        _conclude(seen, len(chosen), is_table=is_table)
    return OK if all(check.is_ok for check in seen) else FAILED


def _files(place: Installation, asked: Sequence[str]) -> tuple[Path, ...]:
    """A name with a slash or `.toml` is a file, any other the id of a lane of the catalogue."""
    catalogued = {path.stem: path for path in sorted(place.lanes_dir.glob("*.toml"))}
    if not asked:
        return tuple(path for path in catalogued.values() if _has_model(path))
    chosen = []
    for name in dict.fromkeys(asked):
        is_file = name.endswith(".toml") or "/" in name
        path = Path(name) if is_file else catalogued.get(name)
        if path is None:
            raise BadRequest(f"no lane {name!r}; there are {', '.join(catalogued)}")
        if not path.is_file():
            raise BadRequest(f"{path}: no such lane file")
        chosen.append(path)
    return tuple(chosen)


def _has_model(path: Path) -> bool:
    """Also of a file that cannot be read: the doctor says what is wrong with it."""
    try:
        return "model" in tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True


def _checks(command: Sequence[str]) -> Iterator[Check]:
    """What the doctor tells, as it tells it. Raises Unavailable when it ends in the middle."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield Check(**jsonlib.loads(line))
    if child.returncode not in {OK, FAILED}:
        raise Unavailable(f"the doctor ended with status {child.returncode}; what it said is above")


@contextmanager
def _progress(*, is_shown: bool) -> Iterator[Status | None]:
    if not is_shown:
        yield None
        return
    with printing.out().status("examining") as status:
        yield status


def _conclude(seen: Sequence[Check], lanes: int, *, is_table: bool) -> None:
    faults = [check for check in seen if not check.is_ok]
    if is_table:
        names = dict.fromkeys(check.lane for check in seen)
        printing.print_table(("Lane", "Checks", "Result", "Seconds"), (_lane_cells(name, seen) for name in names))
        for check in faults:
            printing.say(check.line)
    bad = len({check.lane for check in faults})
    said = f"{bad} of {counted(lanes, 'lane')} failed" if bad else f"{counted(lanes, 'lane')} passed"
    printing.say(f"{said}, {counted(len(seen), 'check')}")


def _lane_cells(name: str, seen: Sequence[Check]) -> tuple[str, str, str, str]:
    own = [check for check in seen if check.lane == name]
    faults = ", ".join(check.check for check in own if not check.is_ok)
    return name, str(len(own)), f"failed: {faults}" if faults else "ok", f"{sum(check.seconds for check in own):.0f}"
