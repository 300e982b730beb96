"""The scheduler's memory: what the events say now, folded one by one. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from screentest import folding, subjects, wire
from screentest.errors import NotFound, NotPossibleNow
from screentest.kit.bus import Stored
from screentest.records import (
    AttemptEnded,
    ControlEvent,
    Counts,
    DeviceFault,
    Drained,
    FindingEdited,
    JobEvent,
    JobSpec,
    JobState,
    JudgePurpose,
    JudgingRequested,
    Outcome,
    PairVoted,
    PrioritySet,
    Rated,
    RestoreBegun,
    RetryRequested,
    Stamp,
    Submitted,
    SweepArchived,
    SweepEvent,
    SweepPaused,
    SweepRecord,
    SweepRestored,
    SweepSettled,
    SweepSubmitted,
    Undrained,
)
from screentest_scheduler import followups, planning, transitions
from screentest_scheduler.admission import Candidate
from screentest_scheduler.followups import Judging
from screentest_scheduler.judge_costs import JudgeTimes
from screentest_scheduler.lessons import Lessons
from screentest_scheduler.transitions import Entry


@dataclass(slots=True)
class SweepState:
    """One sweep. ``sequence`` is the last of its own subject. ``expected`` are all jobs that make its clips, by id.

    ``changed_at``: when its own subject or a judge job changed last; a settlement follows every end of another job.
    ``restored`` and ``restored_sequence``: when it was written back from its archive, the event that says so.
    ``judgings``: every wish to have it judged, oldest first. ``judge_ids``: its judge jobs, ``judged_sequence``: of
    their newest event. ``unjudged``: completed jobs whose judge jobs may not be written yet; ``has_judge_news``:
    whether any may follow from what has happened since somebody looked. ``lessons``, ``judge_times``: what its own
    attempts have taught.
    """

    record: SweepRecord
    sequence: int
    expected: dict[str, JobSpec]
    is_paused: bool
    priority: int
    changed_at: datetime
    settled: SweepSettled | None = None
    restored: SweepRestored | None = None
    restored_sequence: int = 0
    job_ids: list[str] = field(default_factory=list)
    judgings: list[Judging] = field(default_factory=list)
    judge_ids: list[str] = field(default_factory=list)
    judged_sequence: int = 0
    unjudged: dict[str, None] = field(default_factory=dict)
    has_judge_news: bool = True
    open_keyframes: dict[str, str] = field(default_factory=dict)  # the judge by judge job
    open_clips: dict[str, int] = field(default_factory=dict)  # how many are left, by judge
    lessons: Lessons = field(default_factory=Lessons)
    judge_times: JudgeTimes = field(default_factory=JudgeTimes)

    @property
    def is_settled(self) -> bool:
        """The last settlement knows all of its jobs."""
        return self.settled is not None and self.settled.jobs == len(self.expected)

    @property
    def order(self) -> int:
        return int(self.record.submitted_at.timestamp() * 1e6)


@dataclass(slots=True)
class ArchivedSweep:
    """A sweep of which only the archive has the jobs. ``must_purge``: its events may still be in the stream."""

    body: SweepArchived
    sequence: int
    must_purge: bool


@dataclass(slots=True)
class DeviceState:
    """``fault``: what it is drained for, if telemetry reported one. ``undrained``: when a person looked last."""

    sequence: int = 0
    drained_reason: str = ""
    fault: DeviceFault | None = None
    undrained: Stamp | None = None


class Ledger:
    """Every sweep, job and device by id, in the order of the stream."""

    def __init__(
        self,
        lessons: Lessons | None = None,
        *,
        attempt_ended: Callable[[JobSpec, Outcome, Stamp], None] = lambda _spec, _outcome, _stamp: None,
    ) -> None:
        """``attempt_ended`` hears of the end of every attempt once, also while old events are read again."""
        self.lessons = lessons or Lessons()
        self.judge_times = JudgeTimes()
        self._attempt_ended = attempt_ended
        self.sweeps: dict[str, SweepState] = {}
        self.jobs: dict[str, Entry] = {}
        self.devices: dict[tuple[str, str], DeviceState] = {}
        self.archived: dict[str, ArchivedSweep] = {}
        self.sequence = 0
        # Messages of sweeps that are being written back: they count when all of them are there.
        self._returning: dict[str, list[Stored]] = {}
        self._remembered: set[str] = set()  # archived sweeps whose lessons are known
        self._is_retold = False  # what is read now teaches nothing new
        self._open: dict[str, None] = {}  # jobs that are not terminal, in order
        self._active: dict[str, None] = {}  # those of them that are not simply queued
        self._expiring: dict[str, None] = {}  # those of them that end at a given time

    # ---- reading

    def sweep(self, sweep_id: str) -> SweepState:
        found = self.sweeps.get(sweep_id)
        if found is None and sweep_id in self._returning:
            raise NotPossibleNow(
                f"sweep {sweep_id} is being restored; if that stopped, `screentest restore {sweep_id}`"
            )
        if found is None and sweep_id in self.archived:
            raise NotPossibleNow(
                f"sweep {sweep_id} is in the archive only; `screentest restore {sweep_id}` brings it back"
            )
        if found is None:
            raise NotFound(f"there is no sweep {sweep_id!r}; `screentest status` lists them")
        return found

    def submitted_at(self) -> dict[str, datetime]:
        """Of every sweep that a list shows, by id."""
        archived = {sweep_id: sweep.body.record.submitted_at for sweep_id, sweep in self.archived.items()}
        return archived | {sweep_id: sweep.record.submitted_at for sweep_id, sweep in self.sweeps.items()}

    def device(self, host: str, device: str) -> DeviceState:
        """As new when nothing was ever written about it."""
        return self.devices.get((host, device), DeviceState())

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
        """Those that make its clips, in the sweep's order, retries behind the cells they retry."""
        return self._in_order(self.sweep(sweep_id).job_ids)

    def judge_jobs(self, sweep_id: str) -> list[Entry]:
        """Those that judge its clips, in the order in which a judge takes them."""
        return self._in_order(self.sweep(sweep_id).judge_ids)

    def _in_order(self, job_ids: list[str]) -> list[Entry]:
        entries = [self.jobs[job_id] for job_id in job_ids]
        return sorted(entries, key=lambda entry: (entry.spec.ordinal, entry.spec.retry_index))

    def last_sequence(self, sweep_id: str) -> int:
        """Of the newest event of the sweep and all its jobs."""
        sweep = self.sweep(sweep_id)
        made = (self.jobs[job_id].sequence for job_id in sweep.job_ids)
        return max(sweep.sequence, sweep.judged_sequence, *made, 0)

    def is_taken(self, sweep_id: str) -> bool:
        """Whether a sweep has this id, in the stream or in the archive."""
        return sweep_id in self.sweeps or sweep_id in self.archived or sweep_id in self._returning

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
        return Candidate(
            entry=entry,
            priority=sweep.priority,
            is_paused=sweep.is_paused,
            order=(sweep.order, entry.spec.ordinal),
            behind=followups.behind(
                entry.spec,
                is_settled=sweep.is_settled,
                is_prioritised=sweep.priority > 0,
                open_keyframes=sweep.open_keyframes.values(),
            ),
        )

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
        if not self._hold_back(stored):
            self._apply(stored)

    def _apply(self, stored: Stored) -> None:
        kind = stored.subject.partition(".")[0]
        if kind == "events":
            self.apply_job(wire.decode(stored.payload, JobEvent), stored.sequence)
        elif kind == "sweeps":
            self.apply_sweep(wire.decode(stored.payload, SweepEvent), stored.sequence)
        elif kind == "control":
            self.apply_control(wire.decode(stored.payload, ControlEvent), stored.sequence)

    def _hold_back(self, stored: Stored) -> bool:
        """Whether the message belongs to a restore that is not complete yet. The last one lets all of them count."""
        kind, _, rest = stored.subject.partition(".")
        sweep_id = rest.partition(".")[0]
        if kind not in {"events", "sweeps"} or (kind == "events" and sweep_id not in self._returning):
            return False
        body = wire.decode(stored.payload, SweepEvent).body if kind == "sweeps" else None
        if isinstance(body, RestoreBegun) and sweep_id not in self.sweeps:
            self._returning.setdefault(sweep_id, [])
            return True
        held = self._returning.get(sweep_id)
        if held is None:
            return False
        held.append(stored)
        if isinstance(body, SweepRestored):
            del self._returning[sweep_id]
            self._is_retold = sweep_id in self._remembered
            try:
                for message in held:
                    self._apply(message)
            finally:
                self._is_retold = False
        return True

    def apply_job(self, event: JobEvent, sequence: int) -> None:
        entry = self.jobs.get(event.job_id)
        if entry is None:
            if isinstance(event.body, Submitted):
                self._add(event, sequence)
            return
        changed = transitions.apply(entry, event, sequence)
        self.jobs[event.job_id] = changed
        if changed is not entry and isinstance(event.body, AttemptEnded):
            self._learn(entry, changed, event.body.outcome, event.stamp)
            self._attempt_ended(changed.spec, event.body.outcome, event.stamp)
        if changed is not entry:
            self._tell_judging(changed, event.stamp)
        if changed.state.is_terminal:
            for index in (self._open, self._active, self._expiring):
                index.pop(event.job_id, None)
        elif changed.state is not JobState.QUEUED or changed.cancel_by:
            self._active[event.job_id] = None

    def _learn(self, before: Entry, entry: Entry, outcome: Outcome, stamp: Stamp) -> None:
        """From the end of an attempt: for its sweep, which tells it in its farewell, and for everybody."""
        sweep = self.sweeps[entry.spec.sweep_id]
        for lessons in (sweep.lessons,) if self._is_retold else (sweep.lessons, self.lessons):
            lessons.learn(entry.spec, entry.rung, outcome, stamp.at, shared_gpu=entry.shared_gpu)
        for times in (sweep.judge_times,) if self._is_retold else (sweep.judge_times, self.judge_times):
            times.learn(before, outcome, stamp)

    def _recall(self, sweep: SweepState | None, body: SweepArchived) -> None:
        """What an archived sweep has taught: from its farewell, unless its attempts were still there to teach it."""
        if sweep is None or not sweep.job_ids:
            self.lessons.recall(body.lessons, body.won_rungs)
            self.judge_times.recall(body.judge_times)
        if (sweep is not None and sweep.job_ids) or body.lessons or body.won_rungs or body.judge_times:
            self._remembered.add(body.record.sweep_id)

    def _tell_judging(self, entry: Entry, stamp: Stamp) -> None:
        """A clip is there to be judged, or a judgement has come."""
        sweep = self.sweeps[entry.spec.sweep_id]
        if entry.spec.judged is not None:
            sweep.judged_sequence, sweep.changed_at = entry.sequence, stamp.at
            if entry.state.is_terminal:
                sweep.open_keyframes.pop(entry.spec.job_id, None)
                if entry.spec.judged.purpose is JudgePurpose.CLIP:
                    sweep.open_clips[entry.spec.lane_id] -= 1
                sweep.has_judge_news = True
        elif entry.state is JobState.COMPLETED:
            sweep.unjudged[entry.spec.job_id] = None
            sweep.has_judge_news = True

    def apply_sweep(self, event: SweepEvent, sequence: int) -> None:
        if isinstance(event.body, SweepSubmitted):
            self._add_sweep(event.body.record, event.stamp.at, sequence)
            return
        sweep = self.sweeps.get(event.sweep_id)
        if isinstance(event.body, SweepArchived):
            self._let_go(event.sweep_id, event.body, sequence)
            return
        if sweep is None or sequence <= sweep.sequence:
            return
        sweep.sequence, sweep.changed_at = sequence, event.stamp.at
        match event.body:
            case RetryRequested(spec=spec):
                sweep.expected[spec.job_id] = spec
            case SweepSettled():
                sweep.settled, sweep.has_judge_news = event.body, True
            case SweepPaused(paused=paused):
                sweep.is_paused = paused
            case PrioritySet(priority=priority):
                sweep.priority = priority
            case SweepRestored():
                sweep.restored, sweep.restored_sequence = event.body, sequence
            case JudgingRequested(judges=judges, rubrics=rubrics):
                sweep.judgings.append(Judging(judges=judges, rubrics=rubrics, sequence=sequence))
                completed = (job_id for job_id in sweep.job_ids if self.jobs[job_id].state is JobState.COMPLETED)
                sweep.unjudged, sweep.has_judge_news = dict.fromkeys(completed), True
            case FindingEdited() | Rated() | PairVoted() | RestoreBegun():
                pass  # the reporter's business; and a second beginning changes nothing

    def apply_control(self, event: ControlEvent, sequence: int) -> None:
        device = self.devices.setdefault((event.host, event.device), DeviceState())
        if sequence <= device.sequence:
            return
        device.sequence = sequence
        match event.body:
            case Drained(reason=reason, fault=fault):
                device.drained_reason, device.fault = reason, fault
            case Undrained():
                device.drained_reason, device.fault, device.undrained = "", None, event.stamp

    def _add_sweep(self, record: SweepRecord, changed_at: datetime, sequence: int) -> None:
        if record.sweep_id in self.sweeps:
            return
        archived = self.archived.get(record.sweep_id)
        if archived is not None and sequence <= archived.sequence:
            return
        self.archived.pop(record.sweep_id, None)
        self.sweeps[record.sweep_id] = SweepState(
            record=record,
            sequence=sequence,
            expected={spec.job_id: spec for spec in planning.jobs(record)},
            is_paused=record.spec.paused,
            priority=record.spec.priority,
            changed_at=changed_at,
            judgings=[Judging(judges=record.judges, rubrics=record.rubrics, sequence=sequence)],
            lessons=self.lessons.blank(),
        )

    def _let_go(self, sweep_id: str, body: SweepArchived, sequence: int) -> None:
        known = self.archived.get(sweep_id)
        sweep = self.sweeps.get(sweep_id)
        if (known is not None and sequence <= known.sequence) or (sweep is not None and sequence <= sweep.sequence):
            return
        self._recall(sweep, body)
        self.archived[sweep_id] = ArchivedSweep(body=body, sequence=sequence, must_purge=sweep is not None)
        self.sweeps.pop(sweep_id, None)
        for job_id in (*sweep.job_ids, *sweep.judge_ids) if sweep else ():
            for index in (self.jobs, self._open, self._active, self._expiring):
                index.pop(job_id, None)

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
        if spec.judged is None:
            sweep.job_ids.append(event.job_id)
            return
        sweep.judge_ids.append(event.job_id)
        sweep.judged_sequence, sweep.changed_at = sequence, event.stamp.at
        match spec.judged.purpose:
            case JudgePurpose.KEYFRAME:
                sweep.open_keyframes[event.job_id] = spec.lane_id
            case JudgePurpose.CLIP:
                sweep.open_clips[spec.lane_id] = sweep.open_clips.get(spec.lane_id, 0) + 1
            case JudgePurpose.CONTROLS:
                pass


def subject_of(spec: JobSpec) -> str:
    return subjects.job_events(spec.sweep_id, spec.lane_id, spec.job_id)
