"""One worker's numbers: what it holds on disk and in memory, and what it works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from screentest.kit.metrics import Family, Number
from screentest.records import Alive
from screentest_worker import processes
from screentest_worker.spool import Spool

_WORKER = ("lane", "host", "device")
ON_DEVICE = Family(name="screentest_worker_on_device", help="1 while an attempt has the device.", labels=_WORKER)
FINISHING = Family(
    name="screentest_worker_finishing_attempts", help="Attempts that encode, upload or wait for it.", labels=_WORKER
)
RUNNER = Family(name="screentest_runner_alive", help="1 while a runner holds the device's lock.", labels=_WORKER)
RUNNER_MEMORY = Family(
    name="screentest_runner_memory_bytes", help="Resident memory of the runner on the host.", labels=_WORKER
)
SPOOL_BYTES = Family(name="screentest_spool_bytes", help="Of attempts and clips not delivered yet.", labels=_WORKER)
SPOOL_ATTEMPTS = Family(name="screentest_spool_attempts", help="Attempts not delivered yet.", labels=_WORKER)
UNDELIVERED = Family(
    name="screentest_undelivered_clips", help="Clips that could not be uploaded and wait for a person.", labels=_WORKER
)


def reader(snapshot: Callable[[], Alive], spool: Spool) -> Callable[[], Iterator[Number]]:
    """What is so at the moment of a scrape."""

    def read() -> Iterator[Number]:
        alive, content = snapshot(), spool.content()
        labels = {"lane": alive.lane_id, "host": alive.host, "device": alive.device}
        resident = processes.resident_bytes(alive.runner.pid) if alive.runner else None
        for family, value in (
            (ON_DEVICE, alive.job_id is not None),
            (FINISHING, len(alive.finishing_job_ids)),
            (RUNNER, alive.runner is not None),
            (RUNNER_MEMORY, resident),
            (SPOOL_BYTES, content.size_bytes),
            (SPOOL_ATTEMPTS, content.attempts),
            (UNDELIVERED, content.undelivered_clips),
        ):
            yield Number(family=family, labels=labels, value=value)

    return read
