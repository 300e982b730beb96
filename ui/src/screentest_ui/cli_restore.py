"""restore: sweeps back from their archives in the depot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from screentest.errors import BadRequest, ScreentestError, Unavailable
from screentest.kit import logging
from screentest.kit.archive import Archive, Message
from screentest.kit.bus import Bus
from screentest.kit.config import DepotSettings, ServiceSettings
from screentest.kit.store import Store
from screentest.records import ControlEvent, Drained
from screentest_ui import printing, restoring, services
from screentest_ui.home import Home, default_home
from screentest_ui.ports import LOOPBACK
from screentest_ui.restoring import AlreadyThere, Restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a restore did. ``errors``: one sentence per sweep that could not be restored."""

    restored: tuple[Restored, ...]
    already_there: tuple[str, ...]
    drained: tuple[ControlEvent, ...]
    errors: tuple[str, ...]


def restore(
    sweeps: Annotated[list[str] | None, typer.Argument(help="The sweeps to bring back.")] = None,
    all_sweeps: Annotated[bool, typer.Option("--all", help="Every sweep that has an archive.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> int | None:
    """Bring sweeps back from their archives: after their time in the broker, or all of them into an empty broker.

    Broker and depot must run; the rest of the stack may. It speaks to them with the credentials of this home, or with
    SCREENTEST_NATS_* and SCREENTEST_DEPOT_* where SCREENTEST_NATS_URL is set.
    """
    if bool(sweeps) == all_sweeps:
        raise BadRequest("name the sweeps to restore, or say --all")
    logging.configure("restore", level="warning")
    bus_settings, depot_settings = settings_of(default_home(), os.environ)
    outcome = asyncio.run(_restore(bus_settings, depot_settings, tuple(sweeps or ())))
    if json:
        printing.as_json(outcome)
    else:
        _show(outcome)
    return 1 if outcome.errors or (outcome.already_there and not all_sweeps) else None


def settings_of(home: Home, environment: Mapping[str, str]) -> tuple[ServiceSettings, DepotSettings]:
    """The caller's own settings, else the scheduler's of the stack in this home. Unavailable when it has none."""
    if environment.get("SCREENTEST_NATS_URL"):
        return ServiceSettings(), DepotSettings()
    running = home.read()
    if running is None:
        raise Unavailable(f"no stack was ever started in {home.path}; run `screentest up` first, then restore into it")
    bus = ServiceSettings(
        nats_url=f"nats://{LOOPBACK}:{running.ports['nats']}",
        nats_user="scheduler",
        nats_password_file=home.secrets.nats_password_file("scheduler"),
    )
    depot = DepotSettings(
        url=f"http://{LOOPBACK}:{running.ports['depot_s3']}",
        bucket=services.BUCKET,
        access_key="screentest-scheduler",
        secret_key_file=home.secrets.depot_secret_key_file("scheduler"),
    )
    return bus, depot


async def _restore(settings: ServiceSettings, depot: DepotSettings, asked: Sequence[str]) -> Outcome:
    store = Store(
        url=depot.url,
        bucket=depot.bucket,
        access_key=depot.access_key,
        secret_key=depot.secret_key(),
        region=depot.region,
    )
    bus = await Bus.connect(
        settings.nats_url, name="restore", user=settings.nats_user, password=settings.nats_password(), timeout_s=5
    )
    try:
        await bus.ensure_streams()
        archive = Archive(store)
        return await restore_all(bus, archive, asked or await archive.sweeps())
    finally:
        await bus.close()


async def restore_all(bus: Bus, archive: Archive, sweep_ids: Sequence[str]) -> Outcome:
    """One after the other; what goes wrong with one does not keep the others from coming back."""
    restored: list[Restored] = []
    already_there: list[str] = []
    errors: list[str] = []
    control: list[Message] = []
    for sweep_id in sweep_ids:
        try:
            content = await restoring.load(archive, sweep_id)
            control += content.control
            restored.append(await restoring.restore(bus, content))
        except AlreadyThere as error:
            already_there.append(str(error))
        except Unavailable:
            raise
        except ScreentestError as error:
            errors.append(str(error))
    drained = await restoring.restore_control(bus, control)
    return Outcome(restored=tuple(restored), already_there=tuple(already_there), drained=drained, errors=tuple(errors))


def _show(outcome: Outcome) -> None:
    for done in outcome.restored:
        printing.say(f"{done.sweep_id}: {done.events} events and {done.vitals} vitals from {done.parts} parts")
    for line in outcome.already_there:
        printing.say(line)
    for event in outcome.drained:
        reason = event.body.reason if isinstance(event.body, Drained) else ""
        printing.say(f"{event.host}/{event.device} is drained: {reason}; look at it, then `screentest undrain`")
    for line in outcome.errors:
        printing.err().print(f"error: {line}", markup=False)
    if not (outcome.restored or outcome.already_there or outcome.errors):
        printing.say("the depot has no archive of any sweep")
