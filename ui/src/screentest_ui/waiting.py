"""Waits for a sweep to end, shows it meanwhile, and gives up when nobody can run it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from screentest.client import Client
from screentest.errors import NotPossibleNow, Unavailable
from screentest_ui.printing import LiveSweep
from screentest_ui.watching import WatchedSweep

NO_WORKER_AFTER_S = 60.0
LOOK_EVERY_S = 5.0
EXPECT_EVERY_S = 5.0
# A sweep of 1,000 jobs is listed in a second: ask for it every half minute.
EXPECT_EVERY_S_EACH = 0.03


@dataclass(slots=True)
class WorkerWatch:
    """Raises NotPossibleNow once no lane of the sweep has had a worker for ``NO_WORKER_AFTER_S``."""

    client: Client
    clock: Callable[[], float] = time.monotonic
    limit_s: float = NO_WORKER_AFTER_S
    _looked_at: float = float("-inf")
    _seen_at: float | None = None

    def look(self, watched: WatchedSweep) -> None:
        now = self.clock()
        if now - self._looked_at < min(LOOK_EVERY_S, self.limit_s / 4):
            return
        self._looked_at = now
        open_lanes = {job.spec.lane_id for job in watched.jobs.values() if not job.state.is_terminal}
        alive = {lane.lane_id for lane in self.client.list_lanes() if lane.worker_alive}
        if self._seen_at is None or not open_lanes or open_lanes & alive:
            self._seen_at = now
        if now - self._seen_at > self.limit_s:
            names = ",".join(sorted(open_lanes))
            raise NotPossibleNow(
                f"no worker for {names} in the last {self.limit_s:.0f} s; start one with `screentest up --lanes "
                f"{names}`; the sweep stays queued and goes on by itself then"
            )


@dataclass(slots=True)
class Expecting:
    """Asks the scheduler now and then how long everything will take: that changes with every clip."""

    client: Client
    sweep_id: str
    clock: Callable[[], float] = time.monotonic
    _asked_at: float = float("-inf")

    def look(self, live: LiveSweep) -> None:
        every_s = max(EXPECT_EVERY_S, EXPECT_EVERY_S_EACH * len(live.watched.jobs))
        if self.clock() - self._asked_at >= every_s:
            live.expect(self.client.list_jobs(self.sweep_id))
            self._asked_at = self.clock()


def follow(client: Client, sweep_id: str, cursor: str, live: LiveSweep, workers: WorkerWatch | None) -> None:
    """Feeds ``live`` until the sweep has settled. It survives a restart of the scheduler.

    A sweep that was settled, then retried, has settled before: only the settlement of all its present jobs counts.
    """
    interrupted: list[Unavailable] = []

    def on_interruption(error: Unavailable) -> None:
        if not interrupted:
            live.note(f"{error}; still trying")
        interrupted.append(error)

    jobs = client.get_sweep(sweep_id).counts.total
    expecting = Expecting(client, sweep_id)
    while True:
        for message in client.watch(sweep_id, cursor, on_interruption=on_interruption):
            if interrupted:
                live.note("connected again")
                interrupted.clear()
            cursor = message.cursor or cursor
            live.show(message)
            settled = live.watched.settled
            if settled is not None and settled.jobs >= jobs:
                return
            if workers is not None:
                workers.look(live.watched)
            expecting.look(live)
