"""gpus, drain, undrain: where jobs run."""

from __future__ import annotations

from typing import Annotated

import typer

from screentest.records import DeviceView
from screentest_ui import draining, overview, printing
from screentest_ui.connection import connect

DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="The device, as `screentest gpus` lists it.")]
HostName = Annotated[str, typer.Option(help="Its host.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def gpus(json: Json = False) -> None:
    """List the devices: what holds them, and if they are clean."""
    with connect() as client:
        listed = client.list_gpus()
    if json:
        printing.as_json(listed)
        return
    printing.print_table(overview.DEVICE_COLUMNS, map(device_line, listed))


def drain(
    device: DeviceName,
    host: HostName = "local",
    reason: Annotated[str, typer.Option(help="Why, for the next person who looks.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until the attempts there have ended.")] = False,
    json: Json = False,
) -> None:
    """Let no further job onto a device; what runs there goes on. Before an upgrade, or before you open the case."""
    with connect() as client:
        view = client.drain(host, device, reason=reason)
        if wait:
            draining.wait_until_idle(client, host, device, note=printing.note)
            view = draining.find(client, host, device) or view
    if json:
        printing.as_json(view)
    else:
        printing.say(f"{view.host}/{view.device} takes no further job: {view.drained_reason}")


def undrain(device: DeviceName, host: HostName = "local", json: Json = False) -> None:
    """Let jobs onto a drained device again, once you have looked."""
    with connect() as client:
        view = client.undrain(host, device)
    if json:
        printing.as_json(view)
    else:
        printing.say(f"{view.host}/{view.device} takes jobs again")


def device_line(view: DeviceView) -> tuple[str, ...]:
    state = f"drained: {view.drained_reason}" if view.drained else "in use" if view.job_id else "idle"
    proof = "telemetry does not answer" if view.proof is None else "clean" if view.proof.clean else view.proof.reason
    return (view.host, view.device, state, view.job_id, view.warm_lane_id, proof)
