"""models pull, verify, list: the published weights of lanes and judges, on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from screentest.errors import BadRequest
from screentest.judges import JudgeLane, load_judges
from screentest.lanes import Lane, load_lanes
from screentest_ui import printing, services, weights_lock
from screentest_ui.home import default_home
from screentest_ui.services import Installation
from screentest_ui.weights_folder import Folder, Record, State
from screentest_ui.weights_lock import Pin
from screentest_ui.weights_progress import gib, showing

WeightsDir = Annotated[
    Path | None, typer.Option(help="Where hub weights are, one folder per lane id. Default: <home>/models.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


Catalogue = Mapping[str, Lane | JudgeLane]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One row of `models list`. licence, gated: as the lane file says. behind: pins that the lock file has moved on."""

    lane_id: str
    state: State
    size_bytes: int
    pins: tuple[Pin, ...]
    behind: tuple[str, ...]
    licence: str | None
    gated: bool


def pull(
    lanes: Annotated[list[str] | None, typer.Argument(help="Lane ids, as `screentest models list` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every lane and judge that has published weights.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Move to the newest commit of the lane's revision, and lock that.")
    ] = False,
    weights_dir: WeightsDir = None,
) -> int | None:
    """Fetch the weights that lanes need.

    Checked, resumable, at the commit of the lock file.
    """
    # Only here: its HTTP stack costs every other verb half a second.
    from screentest_ui.weights_hub import Hub
    from screentest_ui.weights_pull import Puller

    place = services.installation(os.environ)
    wanted = _wanted_for_pull(_catalogue(place), lanes or [], every=every)
    puller = Puller(
        Hub(),
        _models_dir(weights_dir),
        weights_lock.beside(place.lanes_dir),
        is_update=update,
        say=printing.say,
    )
    try:
        failed = puller.pull(wanted)
    except KeyboardInterrupt:
        printing.err().print("interrupted; what has come is kept, and the next pull goes on from there")
        raise
    for lane_id, error in failed.items():
        printing.err().print(f"error: {lane_id}: {error}", markup=False)
    return 1 if failed else None


def verify(
    lanes: Annotated[list[str] | None, typer.Argument(help="Lane ids; without any, all that are here.")] = None,
    weights_dir: WeightsDir = None,
) -> int | None:
    """Compare every byte with what was pulled; needs no network."""
    place = services.installation(os.environ)
    pins = weights_lock.read(weights_lock.beside(place.lanes_dir))
    folders = _folders(_catalogue(place), lanes or [], _models_dir(weights_dir))
    here = folders if lanes else [folder for folder in folders if folder.state() is not State.ABSENT]
    if not here:
        printing.say("no weights are here yet; fetch some with `screentest models pull LANE`")
    is_bad = False
    for folder in here:
        problems = _problems(folder, pins)
        is_bad = is_bad or bool(problems)
        for problem in problems:
            printing.say(f"{folder.lane_id}: {problem}")
        if not problems:
            printing.say(f"{folder.lane_id}: ok")
    return 1 if is_bad else None


def list_models(weights_dir: WeightsDir = None, json: Json = False) -> None:
    """List which weights are here, their commit and licence."""
    place = services.installation(os.environ)
    pins = weights_lock.read(weights_lock.beside(place.lanes_dir))
    catalogue = _catalogue(place)
    folders = _folders(catalogue, [], _models_dir(weights_dir))
    listed = [_listed(catalogue[folder.lane_id], folder, pins) for folder in folders]
    if json:
        printing.as_json(listed)
        return
    printing.print_table(("Lane", "State", "On disk", "Commit", "Licence"), map(_row, listed))


def _catalogue(place: Installation) -> Catalogue:
    """Lanes, then judges."""
    return {**load_lanes(place.lanes_dir), **load_judges(place.judges_dir)}


def _known(catalogue: Catalogue, lane_id: str) -> Lane | JudgeLane:
    if lane_id not in catalogue:
        raise BadRequest(f"no lane {lane_id!r}; there are {', '.join(catalogue)}")
    return catalogue[lane_id]


def _wanted_for_pull(catalogue: Catalogue, asked: Sequence[str], *, every: bool) -> list[Lane | JudgeLane]:
    if every == bool(asked):
        raise BadRequest("name the lanes to pull, or say --all; `screentest models list` shows them")
    if every:
        return [lane for lane in catalogue.values() if lane.model is not None]
    return [_known(catalogue, lane_id) for lane_id in dict.fromkeys(asked)]


def _folders(catalogue: Catalogue, asked: Sequence[str], models_dir: Path) -> list[Folder]:
    """Of the lanes asked for, or of every lane that has published weights."""
    chosen = [_known(catalogue, lane_id) for lane_id in dict.fromkeys(asked)]
    with_model = [lane for lane in catalogue.values() if lane.model is not None]
    return [Folder(models_dir=models_dir, lane_id=lane.id) for lane in chosen or with_model]


def _models_dir(weights_dir: Path | None) -> Path:
    return (weights_dir or default_home().path / "models").absolute()


def _problems(folder: Folder, pins: tuple[Pin, ...]) -> list[str]:
    """As sentences that end in what to do; empty for weights that are what was pulled."""
    again = f"run `screentest models pull {folder.lane_id}`"
    record = folder.record()
    if record is None:
        return [f"{_UNVERIFIABLE[folder.state()]}; {again}"]
    with showing(f"{folder.lane_id}: reading", total_bytes=sum(file.size for file in record.files)) as shown:
        misfits = [f"{misfit}; {again}" for misfit in folder.misfits(record)]
        altered = [f"{problem}; delete it and {again}" for problem in folder.alterations(record, shown.advance)]
    return misfits + altered + [f"{behind}; {again}" for behind in _behind(record, pins)]


_UNVERIFIABLE = {
    State.ABSENT: "is not here",
    State.PARTIAL: "is here in part: a pull broke off",
    State.UNRECORDED: "was put here by other means, so nothing says what it should be",
}


def _behind(record: Record, pins: tuple[Pin, ...]) -> tuple[str, ...]:
    """Where the folder is at another commit than the lock file."""
    pinned = ((pin, weights_lock.commit_of(pins, pin.repo, pin.revision)) for pin in record.pins)
    return tuple(
        f"{pin.repo} is at {pin.commit[:12]}, and {weights_lock.NAME} says {commit[:12]}"
        for pin, commit in pinned
        if commit not in {None, pin.commit} and commit is not None
    )


def _listed(lane: Lane | JudgeLane, folder: Folder, pins: tuple[Pin, ...]) -> ListedModel:
    assert lane.model is not None
    record = folder.record()
    return ListedModel(
        lane_id=lane.id,
        state=folder.state(),
        size_bytes=folder.size_bytes(),
        pins=record.pins if record is not None else (),
        behind=_behind(record, pins) if record is not None else (),
        licence=lane.model.licence,
        gated=lane.model.gated,
    )


def _row(model: ListedModel) -> tuple[str, ...]:
    commits = ", ".join(pin.commit[:12] for pin in model.pins) + (" (not the locked one)" if model.behind else "")
    licence = (model.licence or "unknown") + (" (gated)" if model.gated else "")
    return (model.lane_id, model.state.value, gib(model.size_bytes) if model.size_bytes else "-", commits, licence)
