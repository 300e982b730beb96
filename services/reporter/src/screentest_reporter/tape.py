"""Reads the part of the VITALS stream that belongs to a sweep, and goes on where it stopped."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from screentest import subjects, wire
from screentest.errors import BadRequest
from screentest.kit.bus import Bus, Stored
from screentest.records import VitalsBatch
from screentest_reporter.vitals import Recording

log = structlog.get_logger()

# Batches are found by the wall clock, samples are then joined by the boot clock: be generous about where to begin.
MARGIN = timedelta(seconds=30)


@dataclass(slots=True, kw_only=True)
class Tape:
    """The vitals of one host since a sweep began; ``next_sequence`` is where to read on."""

    recording: Recording
    next_sequence: int


async def rewind(bus: Bus, host: str, sweep_id: str, began_at: datetime) -> Tape:
    """A tape that begins at the sweep's beginning, with nothing read but what a restore wrote back of it."""
    recording = await _restored(bus, host, sweep_id)
    since = began_at - MARGIN if recording.newest is None else recording.newest.stamp.at + timedelta(microseconds=1)
    return Tape(recording=recording, next_sequence=await _first_sequence(bus, subjects.vitals(host), since))


async def _restored(bus: Bus, host: str, sweep_id: str) -> Recording:
    recording = Recording(host=host)
    filters = [subjects.restored_vitals(host, sweep_id)]
    async with contextlib.aclosing(bus.read(subjects.VITALS_STREAM, filters)) as stored_batches:
        async for stored in stored_batches:
            batch = _decode(stored)
            if batch is not None:
                recording.add(batch)
    return recording


async def advance(bus: Bus, tape: Tape) -> None:
    """Reads to the present. Unavailable when the broker is away: what was read so far is kept."""
    subject = subjects.vitals(tape.recording.host)
    async with contextlib.aclosing(
        bus.read(subjects.VITALS_STREAM, [subject], start_sequence=tape.next_sequence)
    ) as stored_batches:
        async for stored in stored_batches:
            tape.next_sequence = stored.sequence + 1
            batch = _decode(stored)
            if batch is not None:
                tape.recording.add(batch)


async def _first_sequence(bus: Bus, subject: str, not_before: datetime) -> int:
    """Of the first batch at or after a time: backwards from the end in growing steps, then by halves."""
    high = (await bus.stream_state(subjects.VITALS_STREAM)).last_sequence + 1
    step, low = 64, max(1, high - 64)
    while low > 1 and await _is_after(bus, subject, low, not_before):
        high, step = low, step * 4
        low = max(1, low - step)
    while low < high:
        middle = (low + high) // 2
        if await _is_after(bus, subject, middle, not_before):
            high = middle
        else:
            low = middle + 1
    return low


async def _is_after(bus: Bus, subject: str, sequence: int, not_before: datetime) -> bool:
    """Whether the first batch from ``sequence`` on is of that time or later; so is the end of the stream."""
    async with contextlib.aclosing(bus.read(subjects.VITALS_STREAM, [subject], start_sequence=sequence)) as batches:
        async for stored in batches:
            batch = _decode(stored)
            if batch is not None:
                return batch.stamp.at >= not_before
    return True


def _decode(stored: Stored) -> VitalsBatch | None:
    try:
        return wire.decode(stored.payload, VitalsBatch)
    except BadRequest as error:
        log.error("vitals_unreadable", sequence=stored.sequence, error=str(error))
        return None
