"""Every open sweep by its events, and which of them have something new to show."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from screentest import subjects, wire
from screentest.errors import BadRequest
from screentest.kit.bus import Bus, Stored
from screentest.records import JobEvent, SweepArchived, SweepEvent
from screentest_reporter.sweeps import SweepState

log = structlog.get_logger()

# A revision of a running sweep costs a page and its uploads; the final one does not wait.
REVISION_EVERY_S = 5.0


@dataclass(slots=True, kw_only=True)
class _Turn:
    """Loop times: the distance between revisions, and when to try again after an error."""

    is_new: bool = False
    next_revision_at: float = 0.0
    retry_at: float = 0.0

    def due_at(self, is_last: bool) -> float:
        return self.retry_at if is_last else max(self.retry_at, self.next_revision_at)


class Ledger:
    """A sweep whose final report is published is let go; a later event (a retry) brings it back from the stream."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._states: dict[str, SweepState] = {}
        self._turns: dict[str, _Turn] = {}
        self._closed: set[str] = set()
        self.changed = asyncio.Event()

    async def take(self, stored: Stored) -> None:
        """Folds one event. Unavailable when a sweep must be read again and the broker is away."""
        sweep_id = stored.subject.split(".")[1]
        if sweep_id in self._closed:
            if _is_farewell(stored):
                return
            await self._reopen(sweep_id)
        state = self._states.setdefault(sweep_id, SweepState(sweep_id=sweep_id))
        if stored.sequence > state.last_sequence and apply(state, stored):
            self._mark(sweep_id)

    def due(self, now: float) -> tuple[SweepState | None, float | None]:
        """(a snapshot to publish, None), or (None, seconds until one is due; None = not before the next event)."""
        waits = []
        for sweep_id, turn in self._turns.items():
            if not turn.is_new:
                continue
            state = self._states[sweep_id]
            if not state.is_whole:
                continue
            wait_s = turn.due_at(state.is_at_rest) - now
            if wait_s <= 0:
                turn.is_new = False
                return state.snapshot(), None
            waits.append(wait_s)
        return None, min(waits, default=None)

    def published(self, snapshot: SweepState, now: float) -> bool:
        """Whether the sweep was let go: nothing more is expected of it, and nothing came meanwhile."""
        self._turns[snapshot.sweep_id].next_revision_at = now + REVISION_EVERY_S
        if not snapshot.is_at_rest or self._states[snapshot.sweep_id].last_sequence != snapshot.last_sequence:
            return False
        del self._states[snapshot.sweep_id], self._turns[snapshot.sweep_id]
        self._closed.add(snapshot.sweep_id)
        return True

    def postpone(self, snapshot: SweepState, until: float) -> None:
        """After an error that may pass."""
        turn = self._turns[snapshot.sweep_id]
        turn.is_new, turn.retry_at = True, until
        self.changed.set()

    def _mark(self, sweep_id: str) -> None:
        self._turns.setdefault(sweep_id, _Turn()).is_new = True
        self.changed.set()

    async def _reopen(self, sweep_id: str) -> None:
        state = SweepState(sweep_id=sweep_id)
        filters = [subjects.sweep_job_events(sweep_id), subjects.sweep_events(sweep_id)]
        async with contextlib.aclosing(self._bus.read(subjects.EVENTS_STREAM, filters)) as history:
            async for stored in history:
                apply(state, stored)
        self._states[sweep_id] = state
        self._closed.discard(sweep_id)
        self._mark(sweep_id)
        log.info("sweep_reopened", sweep=sweep_id)


def _is_farewell(stored: Stored) -> bool:
    """Whether it says that the sweep's events leave the stream: there may be nothing left to read again."""
    if not stored.subject.startswith("sweeps."):
        return False
    try:
        return isinstance(wire.decode(stored.payload, SweepEvent).body, SweepArchived)
    except BadRequest:
        return False


def apply(state: SweepState, stored: Stored) -> bool:
    """Folds one event; whether the report should show it. One that cannot be read or folded is logged and left out."""
    try:
        if stored.subject.startswith("events."):
            return state.apply_job_event(wire.decode(stored.payload, JobEvent), stored.sequence)
        return state.apply_sweep_event(wire.decode(stored.payload, SweepEvent), stored.sequence)
    except (BadRequest, ValueError) as error:
        log.error("event_not_folded", subject=stored.subject, sequence=stored.sequence, error=str(error))
        return False
