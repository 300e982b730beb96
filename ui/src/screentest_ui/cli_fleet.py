"""gpus, undrain: where jobs run."""

from __future__ import annotations

from typing import Annotated

import typer

from screentest.records import DeviceView
from screentest_ui import printing
from screentest_ui.connection import connect

Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def gpus(json: Json = False) -> None:
    """List the devices: what holds them, and if they are clean."""
    with connect() as client:
        listed = client.list_gpus()
    if json:
        printing.as_json(listed)
        return
    printing.print_table(("Host", "Device", "State", "Job", "Warm lane", "Proof"), map(_device, listed))


def undrain(
    device: Annotated[str, typer.Argument(help="The device, as `screentest gpus` lists it.")],
    host: Annotated[str, typer.Option(help="Its host.")] = "local",
    json: Json = False,
) -> None:
    """Let jobs onto a drained device again, once you have looked."""
    with connect() as client:
        view = client.undrain(host, device)
    if json:
        printing.as_json(view)
    else:
        printing.say(f"{view.host}/{view.device} takes jobs again")


def _device(view: DeviceView) -> tuple[str, ...]:
    state = f"drained: {view.drained_reason}" if view.drained else "in use" if view.job_id else "idle"
    proof = "telemetry does not answer" if view.proof is None else "clean" if view.proof.clean else view.proof.reason
    return (view.host, view.device, state, view.job_id, view.warm_lane_id, proof)
