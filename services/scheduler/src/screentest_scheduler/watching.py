"""One watcher of one sweep: its events in order from a cursor on, and between them live progress and heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from screentest import subjects, wire
from screentest.errors import BadRequest
from screentest.kit import clock
from screentest.kit.bus import Bus, Stored
from screentest.records import Heartbeat, JobEvent, Progress, SweepEvent, Waiting
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.ledger import Ledger

WAITING_EVERY_S = 1.0

Said = JobEvent | SweepEvent | Progress | Waiting | Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in one incarnation of the stream. ``<epoch>:<sequence>`` on the wire."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.sequence}"


def parse_cursor(text: str, epoch: str) -> Cursor:
    """Empty = the beginning. BadRequest for a cursor of another epoch: its sequences mean nothing here."""
    if not text:
        return Cursor(epoch=epoch, sequence=0)
    found_epoch, _, number = text.partition(":")
    if not (number.isascii() and number.isdigit()):
        raise BadRequest(f"{text!r} is no cursor; give one that WatchSweep returned, or none to start at the beginning")
    if found_epoch != epoch:
        raise BadRequest(f"cursor {text!r} is of another event stream (now {epoch}); watch from the beginning")
    return Cursor(epoch=epoch, sequence=int(number))


async def watch(
    bus: Bus, ledger: Ledger, conductor: Conductor, sweep_id: str, cursor: Cursor, heartbeat_s: float
) -> AsyncIterator[tuple[Cursor, Said]]:
    """Never ends by itself. Events are pulled at the reader's pace; progress that it does not read is dropped."""
    said: asyncio.Queue[tuple[int, Said]] = asyncio.Queue(maxsize=1)
    progress = conductor.presence.subscribe(sweep_id)
    tasks = [
        asyncio.create_task(_events(bus, sweep_id, cursor.sequence + 1, said)),
        asyncio.create_task(_progress(progress, said)),
        asyncio.create_task(_waiting(ledger, conductor, sweep_id, said)),
        asyncio.create_task(_heartbeats(heartbeat_s, said)),
    ]
    try:
        while True:
            getting = asyncio.ensure_future(said.get())
            await asyncio.wait([getting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    getting.cancel()
                    task.result()  # raises what ended it
            sequence, item = await getting
            if sequence:
                cursor = Cursor(epoch=cursor.epoch, sequence=sequence)
            yield cursor, item
    finally:
        conductor.presence.unsubscribe(progress)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(bus: Bus, sweep_id: str, start_sequence: int, said: asyncio.Queue[tuple[int, Said]]) -> None:
    filters = (subjects.sweep_events(sweep_id), subjects.sweep_job_events(sweep_id))
    async for stored in bus.read(subjects.EVENTS_STREAM, filters, start_sequence=start_sequence, follow=True):
        await said.put((stored.sequence, _event(stored)))


def _event(stored: Stored) -> JobEvent | SweepEvent:
    is_job = subjects.parse_job_events(stored.subject) is not None
    return wire.decode(stored.payload, JobEvent) if is_job else wire.decode(stored.payload, SweepEvent)


async def _progress(queue: asyncio.Queue[Progress], said: asyncio.Queue[tuple[int, Said]]) -> None:
    while True:
        await said.put((0, await queue.get()))


async def _waiting(ledger: Ledger, conductor: Conductor, sweep_id: str, said: asyncio.Queue[tuple[int, Said]]) -> None:
    """Why each queued job waits, when that changes."""
    told: dict[str, str] = {}
    while True:
        waiting = conductor.turns.waiting(ledger.open_jobs_of(sweep_id))
        for job_id in told | waiting:
            reason = waiting.get(job_id, "")  # a job that waits no more is told as well
            if told.get(job_id, "") != reason:
                await said.put((0, Waiting(job_id=job_id, waits_for=reason)))
        told = waiting
        await asyncio.sleep(WAITING_EVERY_S)


async def _heartbeats(every_s: float, said: asyncio.Queue[tuple[int, Said]]) -> None:
    while True:
        await asyncio.sleep(every_s)
        await said.put((0, Heartbeat(stamp=clock.stamp())))
