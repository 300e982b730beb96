"""Says that this worker lives, what it holds and what it works on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from screentest import subjects, wire
from screentest.errors import ScreentestError
from screentest.kit.bus import Bus
from screentest.records import Alive

EVERY_S = 2.0


class Heartbeat:
    """Beats every 2 s and at every change. Nothing is stored: a missed beat is made up by the next."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._changed = asyncio.Event()

    def change(self) -> None:
        """Something changed that a listener wants to know at once."""
        self._changed.set()

    async def run(self, snapshot: Callable[[], Alive]) -> None:
        """Beats until it is cancelled."""
        while True:
            self._changed.clear()
            alive = snapshot()
            with contextlib.suppress(ScreentestError):
                await self._bus.publish(subjects.alive(alive.host, alive.device, alive.lane_id), wire.encode(alive))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._changed.wait()
