"""What every attempt of a sweep cost in energy, phase by phase, the failed ones too. Pure.

An attempt pays for the GPU from its start until its frames are decoded: while the clip is encoded and uploaded the GPU
belongs to the next job already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from screentest import table, windows
from screentest.records import Attempt, Job
from screentest.windows import Window
from screentest_reporter import vitals
from screentest_reporter.energy import Meter, Method, Used
from screentest_reporter.vitals import Recording

# The GPU has been let go of by then.
OFF_GPU: Final = frozenset({"encoding", "uploading"})
# In the order of an attempt; another phase comes behind them.
PHASES: Final = ("preparing", "loading", "encoding_prompt", "denoising", "decoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One attempt. ``wh`` None = not measured. ``by_phase``: Wh, None = not measured; they may add up to a little less
    than ``wh``, because time between phases belongs to none. ``ended_as``: completed, or its failure class.
    """

    job_id: str
    model: str
    attempt: int
    rung: str
    ended_as: str
    made_a_clip: bool
    seconds: float | None
    wh: float | None
    method: Method | None
    by_phase: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """``waiting_wh``: of the devices between the attempts of a sitting, None where it cannot be told."""

    entries: tuple[Entry, ...]
    waiting_wh: float | None

    @property
    def phases(self) -> tuple[str, ...]:
        """Those of any entry, in the order of an attempt."""
        found = {phase for entry in self.entries for phase in entry.by_phase}
        return (*(phase for phase in PHASES if phase in found), *sorted(found - set(PHASES)))

    @property
    def unmeasured(self) -> int:
        return sum(entry.wh is None for entry in self.entries)

    @property
    def measured_wh(self) -> float | None:
        return _sum(self.entries)

    @property
    def total_wh(self) -> float | None:
        """None when one that ran has no number: a sum with a hole is no sum."""
        return None if self.unmeasured else self.measured_wh

    @property
    def failed_wh(self) -> float | None:
        """Of the attempts that made no clip, as far as measured."""
        return _sum([entry for entry in self.entries if not entry.made_a_clip])

    @property
    def seconds(self) -> float:
        return sum(entry.seconds or 0.0 for entry in self.entries)

    @property
    def lost_s(self) -> float:
        """Of the attempts that made no clip."""
        return sum(entry.seconds or 0.0 for entry in self.entries if not entry.made_a_clip)

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(dict.fromkeys(entry.method for entry in self.entries if entry.method is not None))

    def phase_wh(self, phase: str) -> float | None:
        known = [wh for entry in self.entries if (wh := entry.by_phase.get(phase)) is not None]
        return sum(known) if known else None


def _sum(entries: Sequence[Entry]) -> float | None:
    known = [entry.wh for entry in entries if entry.wh is not None]
    return sum(known) if known else None


class Meters:
    """One meter per GPU and boot, made when it is first asked."""

    def __init__(self, recordings: Mapping[str, Recording]) -> None:
        self._recordings = recordings
        self._made: dict[tuple[str, str, int], Meter] = {}

    def used(self, host: str, device: str, window: Window | None) -> Used | None:
        """None where no GPU, no sample or a stub driver stands behind it."""
        index, recording = vitals.gpu_index(device), self._recordings.get(host)
        if index is None or window is None or recording is None or recording.has_stub:
            return None
        key = (host, window.boot_id, index)
        if key not in self._made:
            self._made[key] = Meter(recording.gpus.get((window.boot_id, index), []))
        return self._made[key].used(window)


def gpu_window(attempt: Attempt) -> Window | None:
    """From Started until the GPU was let go of; None until the attempt has started and ended within one boot."""
    window = windows.attempt_window(attempt)
    if window is None or attempt.outcome is None:
        return window
    let_go = [phase.started_boottime_ns for phase in attempt.outcome.phases if phase.phase in OFF_GPU]
    inside = [at_ns for at_ns in let_go if window.begin_ns <= at_ns <= window.end_ns]
    return replace(window, end_ns=min(inside)) if inside else window


def of(jobs: Sequence[Job], models: Mapping[str, str], meters: Meters) -> Ledger:
    """Every attempt that started, in the order of the jobs. ``models``: by job id, as the table names the row."""
    entries = [
        _entry(job, attempt, models.get(job.spec.job_id, job.spec.lane_title), meters)
        for job in jobs
        for attempt in job.attempts
        if attempt.started is not None and attempt.ended is not None
    ]
    return Ledger(entries=tuple(entries), waiting_wh=_waiting_wh(jobs, entries, meters))


def _entry(job: Job, attempt: Attempt, model: str, meters: Meters) -> Entry:
    spec, outcome = job.spec, attempt.outcome
    used = meters.used(spec.host, spec.device, gpu_window(attempt))
    failure = outcome.failure_class if outcome else None
    return Entry(
        job_id=spec.job_id,
        model=model,
        attempt=attempt.attempt,
        rung=attempt.rung_name,
        ended_as=failure.value if failure else "completed",
        made_a_clip=failure is None,
        seconds=table.attempt_s(attempt),
        wh=used.wh if used else None,
        method=used.method if used else None,
        by_phase=dict(_by_phase(job, attempt, meters)),
    )


def _by_phase(job: Job, attempt: Attempt, meters: Meters) -> Iterable[tuple[str, float | None]]:
    window = windows.attempt_window(attempt)
    if attempt.outcome is None or window is None:
        return
    for phase in attempt.outcome.phases:
        begin_ns = phase.started_boottime_ns
        of_phase = replace(window, begin_ns=begin_ns, end_ns=begin_ns + int(phase.seconds * 1e9))
        if phase.phase not in OFF_GPU and window.covers(of_phase):
            used = meters.used(job.spec.host, job.spec.device, of_phase)
            yield phase.phase, used.wh if used else None


def _waiting_wh(jobs: Sequence[Job], entries: Sequence[Entry], meters: Meters) -> float | None:
    """What the sittings took on every device, less what the attempts took."""
    by_device: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        by_device.setdefault((job.spec.host, job.spec.device), []).append(job)
    sittings = [
        meters.used(host, device, window)
        for (host, device), found in by_device.items()
        for window in windows.sweep_windows(found)
    ]
    if not sittings or any(entry.wh is None for entry in entries):
        return None
    known = [used.wh for used in sittings if used is not None]
    if len(known) < len(sittings):
        return None
    return max(0.0, sum(known) - sum(entry.wh or 0.0 for entry in entries))
