"""Removes clips whose time is over. Only of sweeps whose history is archived, verified and at rest: an event says so
afterwards, and the report then says it of every clip. Logs, manifests, pictures, reports and archives stay.

It may be killed between any two lines: what is removed is written down first, and told until it was told once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog

from screentest.errors import ScreentestError
from screentest.kit import clock, expiry
from screentest.kit.expiry import Expiry
from screentest.kit.store import Store
from screentest.records import FindingEdited
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger, SweepState

log = structlog.get_logger()

NOTE = "note:clips-expired"
BY = "retention"


class Retention:
    """``kept``: how long clips stay after the last event of their sweep; None = for ever."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        journal: Journal,
        is_archived: Callable[[str], bool],
        *,
        kept: timedelta | None,
        every_s: float,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._journal = journal
        self._is_archived = is_archived
        self._kept = kept
        self._every_s = every_s
        self._done: dict[str, int] = {}  # by sweep: the last sequence of its own subject when nothing was left to do

    async def run(self) -> None:
        """Until cancelled."""
        while self._kept is not None:
            await self.work(self._kept)
            await asyncio.sleep(self._every_s)

    async def work(self, kept: timedelta) -> None:
        """One look at all sweeps; the trouble of one is its own."""
        for sweep_id, sweep in list(self._ledger.sweeps.items()):
            if not self._is_due(sweep, kept):
                continue
            try:
                await self._expire(sweep_id)
            except ScreentestError as error:
                log.warning("expiry_interrupted", sweep=sweep_id, error=str(error))

    def _is_due(self, sweep: SweepState, kept: timedelta) -> bool:
        sweep_id = sweep.record.sweep_id
        if self._done.get(sweep_id) == sweep.sequence or not self._is_archived(sweep_id):
            return False
        return clock.stamp().at - sweep.changed_at >= kept

    async def _expire(self, sweep_id: str) -> None:
        known = await expiry.read(self._store, sweep_id)
        keys = await self._store.keys(expiry.clips_prefix(sweep_id))
        if keys:
            before = known.keys if known else ()
            known = Expiry(at=clock.stamp().at, keys=tuple(sorted({*before, *keys})), is_told=False)
            await expiry.write(self._store, sweep_id, known)
            for key in keys:
                await self._store.remove(key)
            log.info("clips_expired", sweep=sweep_id, clips=len(keys))
        if known is not None and not known.is_told:
            await self._journal.say(sweep_id, FindingEdited(row=NOTE, text=_words(known), by=BY))
            await expiry.write(self._store, sweep_id, replace(known, is_told=True))
        self._done[sweep_id] = self._ledger.sweep(sweep_id).sequence


def _words(known: Expiry) -> str:
    count = len(known.keys)
    clips = "1 clip of this sweep has" if count == 1 else f"{count} clips of this sweep have"
    return f"{clips} expired, removed on {known.at:%Y-%m-%d}. The pictures stay."
