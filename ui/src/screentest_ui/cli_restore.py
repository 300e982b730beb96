"""restore: sweeps back from their archives in the depot."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from screentest.errors import BadRequest
from screentest.kit import logging
from screentest.records import Drained
from screentest_ui import printing
from screentest_ui.home import default_home

if TYPE_CHECKING:
    from screentest_ui.restoring import Outcome


def restore(
    sweeps: Annotated[list[str] | None, typer.Argument(help="The sweeps to bring back.")] = None,
    all_sweeps: Annotated[bool, typer.Option("--all", help="Every sweep that has an archive.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> int | None:
    """Bring archived sweeps back into the running broker.

    After their time in it, or all of them into an empty one. Broker and depot must run; the rest of the stack may.
    It speaks to them with the credentials of this home, or with SCREENTEST_NATS_* and
    SCREENTEST_DEPOT_* where SCREENTEST_NATS_URL is set.
    """
    if bool(sweeps) == all_sweeps:
        raise BadRequest("name the sweeps to restore, or say --all")
    from screentest_ui import restoring  # the S3 client costs every other command a third of a second

    logging.configure("restore", level="warning")
    settings = restoring.settings_of(default_home(), os.environ)
    outcome = asyncio.run(restoring.restore_into(*settings, tuple(sweeps or ())))
    if json:
        printing.as_json(outcome)
    else:
        _show(outcome)
    return 1 if outcome.errors or (outcome.already_there and not all_sweeps) else None


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
