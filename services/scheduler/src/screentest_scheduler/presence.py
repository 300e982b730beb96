"""Who is there and how far they are: heartbeats and progress, plain NATS, never stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from screentest import wire
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import Alive, JobId, LaneId, Progress

# Three missed heartbeats: the lane shows as without worker. Losing the attempt takes longer, see transitions.
ALIVE_FOR_S = 7.0

Place = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    alive: Alive
    boottime_ns: int


class Presence:
    """The last heartbeat of each lane and the last progress of each running job."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._workers: dict[tuple[str, str, str], Seen] = {}
        self._progress: dict[str, Progress] = {}
        self._listeners: dict[asyncio.Queue[Progress], str] = {}
        self._on_change = on_change
        # A scheduler that has just started has heard nobody: silence counts from here.
        self._since_ns = clock.boottime_ns()

    def begin_anew(self) -> None:
        """We could not hear for a while (broker away, machine asleep): nobody's silence counts from before now."""
        self._since_ns = clock.boottime_ns()

    @property
    def listening_s(self) -> float:
        """Seconds since we began to hear."""
        return _age_s(self._since_ns)

    async def listen(self, bus: Bus) -> None:
        await bus.listen("alive.>", self._on_alive)
        await bus.listen("progress.>", self._on_progress)

    # ---- workers

    def worker(self, host: str, device: str, lane_id: str) -> Alive | None:
        """The worker's last word, None when it is silent."""
        seen = self._workers.get((host, device, lane_id))
        return seen.alive if seen and _age_s(seen.boottime_ns) < ALIVE_FOR_S else None

    def silent_s(self, host: str, device: str, lane_id: str) -> float:
        """Seconds since the worker's last heartbeat, or since we listen."""
        seen = self._workers.get((host, device, lane_id))
        return _age_s(max(seen.boottime_ns, self._since_ns) if seen else self._since_ns)

    def lanes_alive(self, host: str, device: str) -> frozenset[LaneId]:
        return frozenset(LaneId(alive.lane_id) for alive in self._alive_at(host, device))

    def runners(self, host: str, device: str) -> list[Alive]:
        """Heartbeats of live workers whose runner holds the device or may."""
        return [alive for alive in self._alive_at(host, device) if alive.runner is not None]

    def place_of(self, lane_id: str) -> Place | None:
        """(host, device) of a live worker of this lane; the first by name when there are several."""
        places = sorted(
            (host, device)
            for (host, device, lane), seen in self._workers.items()
            if lane == lane_id and _age_s(seen.boottime_ns) < ALIVE_FOR_S
        )
        return places[0] if places else None

    def _alive_at(self, host: str, device: str) -> list[Alive]:
        return [
            seen.alive
            for (seen_host, seen_device, _), seen in self._workers.items()
            if (seen_host, seen_device) == (host, device) and _age_s(seen.boottime_ns) < ALIVE_FOR_S
        ]

    # ---- progress

    def progress(self, job_id: str, attempt: int) -> Progress | None:
        """The last progress of this very attempt."""
        found = self._progress.get(job_id)
        return found if found and found.attempt == attempt else None

    def forget(self, job_id: str) -> None:
        self._progress.pop(job_id, None)

    def subscribe(self, sweep_id: str) -> asyncio.Queue[Progress]:
        """Live progress of one sweep. The queue is short and loses its oldest: a slow reader costs no memory."""
        queue: asyncio.Queue[Progress] = asyncio.Queue(maxsize=64)
        self._listeners[queue] = sweep_id
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Progress]) -> None:
        self._listeners.pop(queue, None)

    # ---- messages

    async def _on_alive(self, _subject: str, payload: bytes) -> None:
        alive = wire.decode(payload, Alive)
        key = (alive.host, alive.device, alive.lane_id)
        before = self._workers.get(key)
        self._workers[key] = Seen(alive=alive, boottime_ns=clock.boottime_ns())
        if before is None or _differs(before.alive, alive):
            self._on_change()

    async def _on_progress(self, _subject: str, payload: bytes) -> None:
        progress = wire.decode(payload, Progress)
        before = self._progress.get(JobId(progress.job_id))
        self._progress[progress.job_id] = progress
        for queue, sweep_id in self._listeners.items():
            if sweep_id == progress.sweep_id:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(progress)
        if before is None or (before.attempt, before.phase) != (progress.attempt, progress.phase):
            self._on_change()


def _differs(before: Alive, now: Alive) -> bool:
    was = (before.runner, before.job_id, before.attempt, before.finishing_job_ids)
    return was != (now.runner, now.job_id, now.attempt, now.finishing_job_ids)


def _age_s(boottime_ns: int) -> float:
    return (clock.boottime_ns() - boottime_ns) / 1e9
