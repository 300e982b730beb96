"""depot check: whether an S3 does what Screentest needs of it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from screentest_ui import printing
from screentest_ui.home import default_home

if TYPE_CHECKING:
    from screentest_ui.depot_contract import Result


def check(json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False) -> int | None:
    """Try at the depot everything that Screentest uses of S3.

    The depot of SCREENTEST_DEPOT_URL, _BUCKET, _ACCESS_KEY and _SECRET_KEY_FILE where that is set, else of the stack in
    this home. It writes below `checks/` in the bucket and removes that again.
    """
    from screentest.kit.config import DepotSettings  # as in restore: the S3 client costs other commands a moment
    from screentest.kit.store import Store
    from screentest_ui import restoring
    from screentest_ui.depot_contract import Contract

    named = os.environ.get("SCREENTEST_DEPOT_URL")
    settings = DepotSettings() if named else restoring.settings_of(default_home(), {})[1]
    store = Store(
        url=settings.url,
        bucket=settings.bucket,
        access_key=settings.access_key,
        secret_key=settings.secret_key(),
        region=settings.region,
    )
    results = asyncio.run(Contract(store).run())
    if json:
        printing.as_json(results)
    else:
        _show(settings.url, results)
    return 1 if any(result.problem for result in results) else None


def _show(url: str, results: tuple[Result, ...]) -> None:
    for result in results:
        verdict = f"NO: {result.problem}; it is needed for: {result.why}" if result.problem else "yes"
        printing.say(f"{result.what}: {verdict}")
    broken = sum(bool(result.problem) for result in results)
    printing.say(
        f"{url} cannot be the depot: {broken} of {len(results)} do not hold; take a server that holds "
        "them all, such as the SeaweedFS that `screentest up` and compose.yaml bring along"
        if broken
        else f"{url} can be the depot: all {len(results)} hold"
    )
