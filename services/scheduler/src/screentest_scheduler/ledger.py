"""The scheduler's memory: what the events say now, folded one by one. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from screentest import folding, subjects, wire
from screentest.errors import NotFound
from screentest.kit.bus import Stored
from screentest.records import (
    AttemptEnded,
    ControlEvent,
    Counts,
    Drained,
    FindingEdited,
    JobEvent,
    JobSpec,
    JobState,
    Outcome,
    PrioritySet,
    RetryRequested,
    Submitted,
    SweepEvent,
    SweepPaused,
    SweepRecord,
    SweepSettled,
    SweepSubmitted,
    Undrained,
)
from screentest_scheduler import planning, transitions
from screentest_scheduler.admission import Candidate
from screentest_scheduler.ladder import WinningRungs
from screentest_scheduler.transitions import Entry


@dataclass(slots=True)
class SweepState:
    """One sweep. ``sequence`` is the last of its own subject. ``expected`` are all jobs it must have, by id."""

    record: SweepRecord
    sequence: int
    expected: dict[str, JobSpec]
    is_paused: bool
    priority: int
    settled: SweepSettled | None = None
    job_ids: list[str] = field(default_factory=list)

    @property
    def order(self) -> int:
        return int(self.record.submitted_at.timestamp() * 1e6)


@dataclass(slots=True)
class DeviceState:
    sequence: int = 0
    drained_reason: str = ""


class Ledger:
    """Every sweep, job and device by id, in the order of the stream."""

    def __init__(self) -> None:
        self.sweeps: dict[str, SweepState] = {}
        self.jobs: dict[str, Entry] = {}
        self.devices: dict[tuple[str, str], DeviceState] = {}
        self.winning_rungs = WinningRungs()
        self.sequence = 0
        self._open: dict[str, None] = {}  # jobs that are not terminal, in order
        self._active: dict[str, None] = {}  # those of them that are not simply queued
        self._expiring: dict[str, None] = {}  # those of them that end at a given time

    # ---- reading

    def sweep(self, sweep_id: str) -> SweepState:
        found = self.sweeps.get(sweep_id)
        if found is None:
            raise NotFound(f"there is no sweep {sweep_id!r}; `screentest status` lists them")
        return found

    def job(self, job_id: str) -> Entry:
        found = self.jobs.get(job_id)
        if found is None:
            raise NotFound(f"there is no job {job_id!r}; `screentest status <sweep>` lists the jobs of a sweep")
        return found

    def open_jobs(self) -> list[Entry]:
        """Every job that is not terminal, oldest first."""
        return [self.jobs[job_id] for job_id in self._open]

    def open_jobs_of(self, sweep_id: str) -> list[Entry]:
        return [entry for entry in self.open_jobs() if entry.spec.sweep_id == sweep_id]

    def active_jobs(self) -> list[Entry]:
        """Open jobs that something may follow for now: all but the simply queued ones. Ten thousand may wait."""
        return [self.jobs[job_id] for job_id in self._active]

    def expiring_jobs(self) -> list[Entry]:
        return [self.jobs[job_id] for job_id in self._expiring]

    def sweep_jobs(self, sweep_id: str) -> list[Entry]:
        """In the sweep's order, retries behind the cells they retry."""
        entries = [self.jobs[job_id] for job_id in self.sweep(sweep_id).job_ids]
        return sorted(entries, key=lambda entry: (entry.spec.ordinal, entry.spec.retry_index))

    def counts(self, sweep_id: str) -> Counts:
        return folding.count(self.jobs[job_id].state for job_id in self.sweep(sweep_id).job_ids)

    def is_over(self, sweep_id: str) -> bool:
        sweep = self.sweep(sweep_id)
        counts = self.counts(sweep_id)
        return not counts.queued and not counts.running and counts.total == len(sweep.expected)

    def candidates(self, host: str, device: str) -> Iterator[Candidate]:
        for entry in self.open_jobs():
            if entry.may_be_admitted and (entry.spec.host, entry.spec.device) == (host, device):
                yield self.candidate(entry)

    def candidate(self, entry: Entry) -> Candidate:
        sweep = self.sweeps[entry.spec.sweep_id]
        order = (sweep.order, entry.spec.ordinal)
        return Candidate(entry=entry, priority=sweep.priority, is_paused=sweep.is_paused, order=order)

    def missing_jobs(self, sweep_id: str) -> list[JobSpec]:
        """Jobs that the sweep's record promises and the stream does not have yet."""
        sweep = self.sweep(sweep_id)
        return [spec for job_id, spec in sweep.expected.items() if job_id not in self.jobs]

    def next_retry_index(self, spec: JobSpec) -> int:
        return max(other.retry_index for other in self.same_cell(spec)) + 1

    def same_cell(self, spec: JobSpec) -> list[JobSpec]:
        """Every job of the cell, the first one and its retries."""
        cell = (spec.lane_id, spec.prompt_index, spec.seed)
        jobs = self.sweep(spec.sweep_id).expected.values()
        return [other for other in jobs if (other.lane_id, other.prompt_index, other.seed) == cell]

    # ---- folding

    def apply(self, stored: Stored) -> None:
        """One message of EVENTS, in stream order or by our own append just now; seen before = no change."""
        self.sequence = max(self.sequence, stored.sequence)
        kind = stored.subject.partition(".")[0]
        if kind == "events":
            self.apply_job(wire.decode(stored.payload, JobEvent), stored.sequence)
        elif kind == "sweeps":
            self.apply_sweep(wire.decode(stored.payload, SweepEvent), stored.sequence)
        elif kind == "control":
            self.apply_control(wire.decode(stored.payload, ControlEvent), stored.sequence)

    def apply_job(self, event: JobEvent, sequence: int) -> None:
        entry = self.jobs.get(event.job_id)
        if entry is None:
            if isinstance(event.body, Submitted):
                self._add(event, sequence)
            return
        changed = transitions.apply(entry, event, sequence)
        self.jobs[event.job_id] = changed
        if changed is not entry and isinstance(event.body, AttemptEnded):
            self._learn(changed, event.body.outcome)
        if changed.state.is_terminal:
            for index in (self._open, self._active, self._expiring):
                index.pop(event.job_id, None)
        elif changed.state is not JobState.QUEUED or changed.cancel_by:
            self._active[event.job_id] = None

    def _learn(self, entry: Entry, outcome: Outcome) -> None:
        self.winning_rungs.learn(entry.spec, entry.rung, outcome, shared_gpu=entry.shared_gpu)

    def apply_sweep(self, event: SweepEvent, sequence: int) -> None:
        if isinstance(event.body, SweepSubmitted):
            self._add_sweep(event.body.record, sequence)
            return
        sweep = self.sweeps.get(event.sweep_id)
        if sweep is None or sequence <= sweep.sequence:
            return
        sweep.sequence = sequence
        match event.body:
            case RetryRequested(spec=spec):
                sweep.expected[spec.job_id] = spec
            case SweepSettled():
                sweep.settled = event.body
            case SweepPaused(paused=paused):
                sweep.is_paused = paused
            case PrioritySet(priority=priority):
                sweep.priority = priority
            case FindingEdited():
                pass  # the reporter's business

    def apply_control(self, event: ControlEvent, sequence: int) -> None:
        device = self.devices.setdefault((event.host, event.device), DeviceState())
        if sequence <= device.sequence:
            return
        device.sequence = sequence
        match event.body:
            case Drained(reason=reason):
                device.drained_reason = reason
            case Undrained():
                device.drained_reason = ""

    def _add_sweep(self, record: SweepRecord, sequence: int) -> None:
        if record.sweep_id in self.sweeps:
            return
        self.sweeps[record.sweep_id] = SweepState(
            record=record,
            sequence=sequence,
            expected={spec.job_id: spec for spec in planning.jobs(record)},
            is_paused=record.spec.paused,
            priority=record.spec.priority,
        )

    def _add(self, event: JobEvent, sequence: int) -> None:
        assert isinstance(event.body, Submitted)
        sweep = self.sweeps.get(event.sweep_id)
        if sweep is None:
            raise NotFound(f"job {event.job_id} is of sweep {event.sweep_id}, which is not in the stream")
        # The record's own spec shares prompt and parameters with its siblings; the event's copy would not.
        spec = sweep.expected.get(event.job_id, event.body.spec)
        self.jobs[event.job_id] = transitions.submitted_entry(spec, event.stamp, sequence)
        self._open[event.job_id] = None
        if spec.expires_at is not None:
            self._expiring[event.job_id] = None
        sweep.job_ids.append(event.job_id)


def subject_of(spec: JobSpec) -> str:
    return subjects.job_events(spec.sweep_id, spec.lane_id, spec.job_id)
