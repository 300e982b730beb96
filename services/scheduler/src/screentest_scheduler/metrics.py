"""The scheduler's numbers: what waits, how attempts end and how long their phases take, which devices take jobs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from screentest import folding
from screentest.kit.metrics import Family, Metrics, Number
from screentest.records import FailureClass, JobSpec, JobState, Outcome, Stamp
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.ledger import Ledger

JOBS = Family(
    name="screentest_jobs", help="Jobs of the sweeps in the event stream, by their status.", labels=("lane", "status")
)
SWEEPS = Family(name="screentest_sweeps", help="Sweeps: open, over, or in the archive only.", labels=("state",))
WORKER = Family(
    name="screentest_lane_worker_alive",
    help="1 while a worker of the lane is heard.",
    labels=("lane", "host", "device"),
)
DRAINED = Family(name="screentest_device_drained", help="1 while no job is admitted.", labels=("host", "device"))
BUSY = Family(name="screentest_device_busy", help="1 while an attempt needs the device.", labels=("host", "device"))
ATTEMPTS = Family(
    name="screentest_attempts_total",
    help="Attempts that ended since this scheduler started, by how: completed, or their failure class.",
    labels=("lane", "class"),
    kind="counter",
)
PHASES = Family(
    name="screentest_phase_seconds",
    help="How long each phase of the attempts that ended since this scheduler started took.",
    labels=("lane", "phase"),
)
COMPLETED = "completed"
STATUSES = tuple(dict.fromkeys(folding.status(state) for state in JobState))


class AttemptNumbers:
    """Counts attempts as they end. What ended before ``since`` was another scheduler's to count.

    Every way to end begins at 0 for ``lane_ids``: Prometheus sees no increase in a series that begins with its first
    failure.
    """

    def __init__(self, metrics: Metrics, since: datetime, lane_ids: Iterable[str]) -> None:
        self._since = since
        self._attempts = metrics.counter(ATTEMPTS)
        for lane_id, how in itertools.product(lane_ids, (COMPLETED, *FailureClass)):
            self._attempts.labels(lane_id, str(how))
        self._phases = metrics.histogram(PHASES)

    def ended(self, spec: JobSpec, outcome: Outcome, stamp: Stamp) -> None:
        if stamp.at < self._since:
            return
        how = outcome.failure_class.value if outcome.failure_class else COMPLETED
        self._attempts.labels(spec.lane_id, how).inc()
        for phase in outcome.phases:
            self._phases.labels(spec.lane_id, phase.phase).observe(phase.seconds)


def read(ledger: Ledger, conductor: Conductor, lane_ids: Iterable[str]) -> Iterator[Number]:
    """What is so now."""
    yield from _jobs(ledger, lane_ids)
    over = sum(ledger.is_over(sweep_id) for sweep_id in ledger.sweeps)
    for state, count in (("open", len(ledger.sweeps) - over), ("over", over), ("archived", len(ledger.archived))):
        yield Number(family=SWEEPS, labels={"state": state}, value=count)
    for host, device in conductor.turns.places():
        slot, place = conductor.turns.slot(host, device), {"host": host, "device": device}
        yield Number(family=DRAINED, labels=place, value=bool(slot.drained_reason))
        yield Number(family=BUSY, labels=place, value=bool(slot.holder))
        alive = conductor.presence.lanes_alive(host, device)
        for lane_id in sorted({*lane_ids, *alive}):
            yield Number(family=WORKER, labels={"lane": lane_id, **place}, value=lane_id in alive)


def _jobs(ledger: Ledger, lane_ids: Iterable[str]) -> Iterator[Number]:
    counted = Counter((entry.spec.lane_id, folding.status(entry.state)) for entry in ledger.jobs.values())
    for lane_id in sorted({*lane_ids, *(lane_id for lane_id, _ in counted)}):
        for status in STATUSES:
            yield Number(family=JOBS, labels={"lane": lane_id, "status": status}, value=counted[(lane_id, status)])
