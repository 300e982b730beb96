"""What the reporter makes of a sweep whose events leave the stream, and come back."""

from __future__ import annotations

from screentest import wire
from screentest.kit.bus import Stored
from screentest.records import Counts, JobEvent, RestoreBegun, SweepArchived, SweepEvent, SweepRestored, SweepSettled
from screentest_reporter.ledger import Ledger
from tests import made_sweeps

RECORD = made_sweeps.record((made_sweeps.plan("stub", "Stub"),))
HISTORIES = [made_sweeps.History(spec).complete() for spec in made_sweeps.specs(RECORD)]
JOBS = [history.job for history in HISTORIES]
SUBMITTED = made_sweeps.submitted(RECORD)
SETTLED = made_sweeps.settled(RECORD, JOBS, (), 900)


def of_sweep(body: SweepArchived | RestoreBegun | SweepRestored) -> SweepEvent:
    return SweepEvent(event_id="mark", sweep_id=RECORD.sweep_id, stamp=made_sweeps.stamp(1000), body=body)


def farewell() -> SweepEvent:
    assert isinstance(SETTLED.body, SweepSettled)
    return of_sweep(SweepArchived(record=RECORD, counts=Counts(), settled=SETTLED.body, parts=1))


def job_events() -> list[JobEvent]:
    return [event for history in HISTORIES for event in history.events]


async def ledger_of(*events: SweepEvent | JobEvent) -> Ledger:
    """After it has read these events, as if nothing else stood in the stream."""
    ledger = Ledger(bus=None)  # type: ignore[arg-type]  # nothing is read again
    for sequence, event in enumerate(events, start=1):
        kind = "events" if isinstance(event, JobEvent) else "sweeps"
        await ledger.take(
            Stored(
                subject=f"{kind}.{RECORD.sweep_id}",
                sequence=sequence,
                event_id=event.event_id,
                payload=wire.encode(event),
            )
        )
    return ledger


async def test_sweep_whose_jobs_are_purged_already_gets_no_empty_report() -> None:
    """Started between the two purges of a sweep that leaves, the reporter put an empty report over the final one."""
    ledger = await ledger_of(SUBMITTED, SETTLED, farewell())
    assert ledger.due(0.0) == (None, None)


async def test_final_report_is_still_published_when_the_sweep_has_just_left() -> None:
    ledger = await ledger_of(SUBMITTED, *job_events(), SETTLED, farewell())
    snapshot, _ = ledger.due(0.0)
    assert snapshot is not None and snapshot.is_final


async def test_restored_sweep_is_reported_when_all_of_it_is_there() -> None:
    begun = of_sweep(RestoreBegun(parts=1))
    half = await ledger_of(SUBMITTED, SETTLED, farewell(), begun, SUBMITTED, *job_events())
    assert half.due(0.0) == (None, None)
    restored = of_sweep(SweepRestored(parts=1))
    whole = await ledger_of(SUBMITTED, SETTLED, farewell(), begun, SUBMITTED, *job_events(), SETTLED, restored)
    snapshot, _ = whole.due(0.0)
    assert snapshot is not None and snapshot.is_final and len(snapshot.jobs) == len(JOBS)
