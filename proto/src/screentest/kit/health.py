"""A sign of life for a container's health check: a file that stays fresh while the service does its work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger()

EVERY_S = 2.0


async def show(path: Path | None, is_well: Callable[[], bool]) -> None:
    """Touches ``path`` every 2 s while ``is_well()``; None = nobody looks. Runs in the service's own loop.

    So a loop that is blocked, a broker that is away and a process that is gone all let the file grow old. A file and
    no port: a worker's network has nothing listening on it that need not be there.
    """
    if path is None:
        return
    while True:
        if is_well():
            try:
                await asyncio.to_thread(path.touch)
            except OSError as error:
                log.warning("sign_of_life_failed", path=str(path), error=error.strerror)
        await asyncio.sleep(EVERY_S)
