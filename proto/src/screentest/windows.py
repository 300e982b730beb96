"""Which stretches of the boot clock belong to a sweep: what the report shows and the archive keeps of the vitals. Pure.

Attempts and samples are joined by boot id and boot clock, never by the wall clock, which may be set in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from screentest.records import Attempt, Job

# A longer pause (a retry days later) belongs to other sweeps: their samples are not this one's.
LONGEST_PAUSE_NS = 600 * 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of one boot's clock."""

    boot_id: str
    begin_ns: int
    end_ns: int

    def covers(self, other: Window) -> bool:
        return self.boot_id == other.boot_id and self.begin_ns <= other.begin_ns and other.end_ns <= self.end_ns


def attempt_window(attempt: Attempt) -> Window | None:
    """None until it has started and ended within one boot."""
    if attempt.started is None or attempt.ended is None or attempt.started.boot_id != attempt.ended.boot_id:
        return None
    return Window(
        boot_id=attempt.started.boot_id,
        begin_ns=attempt.started.boottime_ns,
        end_ns=attempt.ended.boottime_ns,
    )


def sweep_windows(jobs: Iterable[Job]) -> tuple[Window, ...]:
    """From the first start to the last end of an attempt, once per boot and sitting, in the order they began."""
    found = [window for job in jobs for attempt in job.attempts if (window := attempt_window(attempt)) is not None]
    boots = dict.fromkeys(window.boot_id for window in found)
    return tuple(merged for boot in boots for merged in _merged(w for w in found if w.boot_id == boot))


def _merged(windows: Iterable[Window]) -> list[Window]:
    """Windows of one boot; those with no longer pause between them become one."""
    merged: list[Window] = []
    for window in sorted(windows, key=lambda window: window.begin_ns):
        if merged and window.begin_ns - merged[-1].end_ns <= LONGEST_PAUSE_NS:
            merged[-1] = replace(merged[-1], end_ns=max(merged[-1].end_ns, window.end_ns))
        else:
            merged.append(window)
    return merged
