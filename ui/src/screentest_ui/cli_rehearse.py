"""rehearse: the whole catalogue with random weights, before anything is downloaded."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from screentest.client import Client
from screentest.devices import is_cpu
from screentest.errors import BadRequest, NotPossibleNow, ScreentestError
from screentest.records import Keyframe, LaneView, Requested, Sweep, SweepSpec, Task, Weights
from screentest_ui import printing, rehearsal, reportfetch, services, sweepfile
from screentest_ui.cli_sweeps import FAILED, Json, KeyframeFile, wait_for_end
from screentest_ui.connection import connect
from screentest_ui.rehearsal import Rehearsed

TITLE = "Dress rehearsal"
# What a prompt says costs nothing: every text encoder pads it to the same length.
PROMPT = "A lantern swings over a harbour at dusk."
SEED = 42
KEYFRAME = "architects-stillness.png"
# The first step is left out of the pace: it compiles kernels and fills caches.
FEWEST_STEPS_FOR_A_PACE = 2


def rehearse(
    lanes: Annotated[
        str, typer.Option(help="Lane ids, separated by commas; none = every model that has a worker.")
    ] = "",
    memory_cap_gib: Annotated[
        float | None,
        typer.Option("--memory-cap-gib", help="Device memory a job may take: rehearse for a smaller card."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps instead of each lane's own.")] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="With --steps: compute a whole clip from the pace of these steps.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="full-random: the full-size models. miniature: tiny copies, to try this without a GPU.")
    ] = Weights.FULL_RANDOM.value,
    keyframe: KeyframeFile = None,
    json: Json = False,
) -> int | None:
    """Find out what this card runs, how fast and at what cost.

    Random weights at full size: nothing is fetched. Exit 1 unless every lane made a clip.
    """
    kind = sweepfile.weights(weights, "--weights")
    _check(kind, steps, extrapolate=extrapolate)
    with connect() as client:
        chosen = _chosen(client.list_lanes(), lanes)
        asked = SweepSpec(
            title=TITLE,
            prompts=(PROMPT,),
            lane_ids=tuple(lane.lane_id for lane in chosen),
            seeds=(SEED,),
            weights=kind,
            keyframe=_keyframe(client, chosen, keyframe),
            requested=Requested(steps=steps),
            skip_impossible=True,
            memory_cap_gib=memory_cap_gib,
        )
        sweep = client.submit_sweep(asked, request_id=str(uuid.uuid4())).sweep
        if not json:
            printing.say(f"sweep: {sweep.record.sweep_id} ({sweep.counts.total} jobs, {kind.value} weights)")
        wait_for_end(client, sweep.record.sweep_id, quiet=json)
        found = _found(client, sweep, _full_steps(client, asked), extrapolate=extrapolate)
    _show(found, sweep, as_json=json)
    return None if all(item.rung is not None for item in found) else FAILED


def _check(weights: Weights, steps: int | None, *, extrapolate: bool) -> None:
    if not weights.is_random:
        raise BadRequest("a rehearsal has random weights; `screentest submit` runs the published ones")
    if extrapolate and (steps is None or steps < FEWEST_STEPS_FOR_A_PACE):
        raise BadRequest(f"--extrapolate needs --steps of at least {FEWEST_STEPS_FOR_A_PACE}: the first is left out")


def _chosen(known: tuple[LaneView, ...], lanes: str) -> tuple[LaneView, ...]:
    """The lanes asked for, else every model's lane that has a worker now: no stub, which has no model, and no judge."""
    wanted = tuple(dict.fromkeys(part.strip() for part in lanes.split(",") if part.strip()))
    if wanted:
        return tuple(_lane(known, lane_id) for lane_id in wanted)
    models = tuple(lane for lane in known if lane.repo and not lane.tier)
    alive = tuple(lane for lane in models if lane.worker_alive)
    if not alive:
        raise NotPossibleNow("no lane has a worker; start them with `screentest up`, or name lanes with --lanes")
    if left_out := [lane.lane_id for lane in models if lane not in alive]:
        printing.err().print(f"left out, no worker: {', '.join(left_out)}", markup=False)
    return alive


def _lane(known: tuple[LaneView, ...], lane_id: str) -> LaneView:
    found = next((lane for lane in known if lane.lane_id == lane_id), None)
    if found is None:
        raise BadRequest(f"there is no lane {lane_id!r}; `screentest lanes` lists them")
    return found


def _keyframe(client: Client, lanes: tuple[LaneView, ...], path: Path | None) -> Keyframe | None:
    """The person's own, else the shipped one; None where no lane wants any."""
    if path is not None and not path.is_file():
        raise BadRequest(f"{path}: no such picture")
    if all(lane.task is not Task.I2V for lane in lanes):
        return None
    shipped = services.installation(os.environ).lanes_dir.parent / "sweeps" / KEYFRAME
    found = path or shipped
    if not found.is_file():
        raise BadRequest(f"{found}: no such picture; image-to-video lanes need one: give --keyframe")
    return client.upload_keyframe(found)


def _full_steps(client: Client, asked: SweepSpec) -> dict[str, int]:
    """Each lane's own number of steps; empty when that is what runs."""
    if asked.requested.steps is None:
        return {}
    verdicts = client.preflight(replace(asked, requested=Requested()))
    return {verdict.lane_id: verdict.plan.steps for verdict in verdicts if verdict.plan is not None}


def _found(client: Client, sweep: Sweep, full_steps: Mapping[str, int], *, extrapolate: bool) -> tuple[Rehearsed, ...]:
    sweep_id, record = sweep.record.sweep_id, sweep.record
    jobs = client.list_jobs(sweep_id)
    has_gpu = any(not is_cpu(lane.device) for lane in record.lanes)
    energy_wh = _energy_wh(client, sweep_id) if has_gpu else {}
    made = rehearsal.rehearsed(jobs, record.lanes, full_steps, energy_wh, extrapolate=extrapolate)
    return (*made, *rehearsal.refused(record.skipped))


def _energy_wh(client: Client, sweep_id: str) -> dict[str, float]:
    """By job id, as the report has it; nothing where no report comes."""
    try:
        document = reportfetch.document(client, sweep_id, wait_for_final=True)
    except ScreentestError as error:
        printing.err().print(f"energy is not known: {error}", markup=False)
        return {}
    return {row["job_id"]: row["gpu_energy_wh"] for row in document["rows"] if row["gpu_energy_wh"] is not None}


def _show(found: tuple[Rehearsed, ...], sweep: Sweep, *, as_json: bool) -> None:
    spec = sweep.record.spec
    if as_json:
        printing.as_json(
            {
                "sweep_id": sweep.record.sweep_id,
                "weights": spec.weights.value,
                "random_weights": True,
                "memory_cap_gib": spec.memory_cap_gib,
                "lanes": found,
            }
        )
        return
    printing.print_table(rehearsal.COLUMNS, (item.cells for item in found))
    printing.say(rehearsal.headline(found, spec.memory_cap_gib))
    if spec.weights is Weights.MINIATURE:
        printing.say("miniature weights: tiny random copies; these numbers say nothing about the models themselves")
    else:
        printing.say(
            "full-random weights: time, memory and energy of a clip are the model's own, the pictures are noise; "
            "a build says nothing of loading real weights from a disk"
        )
