"""What of a sweep belongs into its archive, and when it is due. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from screentest.records import Job, SweepRestored
from screentest.windows import Window, attempt_window, sweep_windows

# Around the attempts: energy is read between two neighbours at most 5 s apart, and batches come once a second.
MARGIN_NS = 10 * 1_000_000_000
# Batches are found by the wall clock and joined by the boot clock: be generous about where to look.
WALL_MARGIN = timedelta(seconds=60)


class Step(Enum):
    WAIT = "wait"
    WRITE = "write"
    LET_GO = "let go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One sweep. ``is_settled``: every job is terminal and the settlement knows all of them. ``changed_at``: its last
    event. ``archived_sequence``: up to which sequence of the stream the archive has everything; 0 = nothing."""

    is_settled: bool
    changed_at: datetime
    last_sequence: int
    archived_sequence: int

    @property
    def is_archived(self) -> bool:
        return self.is_settled and self.archived_sequence >= self.last_sequence


def next_step(standing: Standing, now: datetime, *, after: timedelta, kept: timedelta) -> Step:
    """``after``: rest before a part is written, so that votes and the last vitals come along. ``kept``: how long a
    sweep stays in the stream after its last event."""
    if not standing.is_settled:
        return Step.WAIT
    resting = now - standing.changed_at
    if not standing.is_archived:
        return Step.WRITE if resting >= after else Step.WAIT
    return Step.LET_GO if resting >= kept else Step.WAIT


def archived_sequence(
    parts: Sequence[tuple[str, int]], epoch: str, restored: SweepRestored | None, restored_sequence: int
) -> int:
    """Up to which sequence the archive has everything. ``parts``: epoch and last sequence of each.

    What a restore wrote back is archived although it stands at other sequences now.
    """
    known = [last for part_epoch, last in parts if part_epoch == epoch]
    if restored is not None and len(parts) >= restored.parts:
        known.append(restored_sequence)
    return max(known, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The vitals of one host that belong to a part: within ``windows``, to be looked for between two wall times."""

    host: str
    windows: tuple[Window, ...]
    begin_at: datetime
    end_at: datetime

    def has(self, boot_id: str, boottime_ns: int) -> bool:
        return any(
            window.boot_id == boot_id and window.begin_ns - MARGIN_NS <= boottime_ns <= window.end_ns + MARGIN_NS
            for window in self.windows
        )


def stretches(jobs: Sequence[Job], ended_in_part: Mapping[str, frozenset[int]]) -> tuple[Stretch, ...]:
    """One per host on which an attempt ended in this part. ``ended_in_part``: attempt numbers by job id.

    A window is the report's: from the first start to the last end of a sitting, so that it reads the same again.
    """
    found = []
    for host in sorted({job.spec.host for job in jobs}):
        of_host = [job for job in jobs if job.spec.host == host]
        new = [
            attempt
            for job in of_host
            for attempt in job.attempts
            if attempt.attempt in ended_in_part.get(job.spec.job_id, ()) and attempt_window(attempt) is not None
        ]
        windows = _covering(sweep_windows(of_host), [window for item in new if (window := attempt_window(item))])
        inside = [
            attempt
            for job in of_host
            for attempt in job.attempts
            if (own := attempt_window(attempt)) is not None and any(window.covers(own) for window in windows)
        ]
        if inside:
            begins = [attempt.started.at for attempt in inside if attempt.started]
            ends = [attempt.ended.at for attempt in inside if attempt.ended]
            found.append(
                Stretch(
                    host=host,
                    windows=windows,
                    begin_at=min(begins) - WALL_MARGIN,
                    end_at=max(ends) + WALL_MARGIN,
                )
            )
    return tuple(found)


def _covering(windows: Iterable[Window], attempts: Iterable[Window]) -> tuple[Window, ...]:
    wanted = tuple(attempts)
    return tuple(window for window in windows if any(window.covers(attempt) for attempt in wanted))
