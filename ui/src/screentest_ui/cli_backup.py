"""backup, restore-backup: everything a stack cannot make again, in a folder and back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screentest.errors import NotPossibleNow
from screentest.kit import logging
from screentest_ui import panel_text, printing, services, stack
from screentest_ui.home import default_home

if TYPE_CHECKING:
    from screentest.kit.bus import Bus
    from screentest.kit.store import Store
    from screentest_ui.backup import Done

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the backup.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def backup(folder: Folder, json: Json = False) -> int | None:
    """Copy events, vitals and the whole depot into a folder; again brings it up to date.

    The stack may run: each stream is copied as of one moment. Secrets are not part of it. It speaks to broker and depot
    of this home, or to those of SCREENTEST_NATS_* and SCREENTEST_DEPOT_* where SCREENTEST_NATS_URL is set.
    """
    from screentest.kit.version import version
    from screentest_ui import backup as backups  # the S3 client costs every other command a third of a second

    async def make(bus: Bus, store: Store) -> Done:
        return await backups.make(bus, store, folder, now=datetime.now(UTC), version=version(), say=printing.note)

    done = _with_servers(make)
    _show(done, json, f"{folder}: {done.messages} messages and {done.objects} objects, {_new(done)} new")
    return 1 if done.problems else None


def restore_backup(folder: Folder, json: Json = False) -> None:
    """Bring a backup back into an empty broker, and what is missing into the depot.

    The stack must be down; of this home's, broker and depot are started for it. Then `screentest up`: sweeps that ran
    go on.
    """
    from screentest_ui import backup as backups  # as above

    if "scheduler" in stack.alive(default_home()):
        raise NotPossibleNow("the stack is running; `screentest down` first, a scheduler must not see half a history")

    async def bring_back(bus: Bus, store: Store) -> Done:
        return await backups.restore(bus, store, folder, say=printing.note)

    done = _with_servers(bring_back)
    _show(done, json, f"{done.messages} messages and {done.objects} objects are back, {_new(done)} were missing")


def _with_servers(work: Callable[[Bus, Store], Awaitable[Done]]) -> Done:
    from screentest_ui import restoring  # as above

    logging.configure("backup", level="error")
    home, place = default_home(), services.installation(os.environ)
    is_ours = not os.environ.get("SCREENTEST_NATS_URL")
    running = stack.servers_running(home, place, os.environ, printing.note) if is_ours else nullcontext()
    with running:
        return asyncio.run(restoring.connected(*restoring.settings_of(home, os.environ), work))


def _new(done: Done) -> str:
    return f"{done.copied} of them ({panel_text.file_size(done.copied_bytes)})"


def _show(done: Done, as_json: bool, line: str) -> None:
    for problem in done.problems:
        printing.err().print(f"error: {problem}", markup=False)
    if as_json:
        printing.as_json(done)
    else:
        printing.say(line)
