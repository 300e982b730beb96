"""What follows when jobs end: the sweep settles. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from screentest.records import JobState, SweepSettled
from screentest_scheduler.transitions import Entry


def must_settle(entries: Iterable[Entry], settled: SweepSettled | None) -> bool:
    """Every job is terminal, and the last settlement (if any) does not know all of them yet (a retry came after)."""
    states = [entry.state for entry in entries]
    if not states or not all(state.is_terminal for state in states):
        return False
    return settled is None or settled.jobs != len(states)


def clips(entries: Iterable[Entry]) -> int:
    """How many jobs of the sweep left a clip."""
    return sum(entry.state is JobState.COMPLETED for entry in entries)


def devices(entries: Iterable[Entry]) -> tuple[tuple[str, str], ...]:
    """(host, device) of every device the sweep used, in a stable order."""
    return tuple(sorted({(entry.spec.host, entry.spec.device) for entry in entries}))
