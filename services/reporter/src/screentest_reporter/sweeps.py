"""One sweep as the report sees it: its record, its jobs, and how it settled. Folds events; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import assert_never

from screentest import folding
from screentest.records import (
    FailureClass,
    FindingEdited,
    Job,
    JobEvent,
    JudgingRequested,
    PairVoted,
    PrioritySet,
    Rated,
    RestoreBegun,
    RetryRequested,
    Stamp,
    Started,
    SweepArchived,
    SweepEvent,
    SweepPaused,
    SweepRecord,
    SweepRestored,
    SweepSettled,
    SweepSubmitted,
    Task,
)

ProcessKey = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    body: SweepSettled
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a person wrote into a row of the table or an operator note; ``text`` "" = back to the original."""

    text: str
    by: str
    at: datetime


@dataclass(slots=True, kw_only=True)
class SweepState:
    """Grows by ``apply``. ``jobs`` make clips, ``judging`` judges them. ``runner_lanes``: (pid, start ticks) of every
    runner that started a job, to its lane's title.

    ``edits``: by row (a job id or ``note:<slug>``), oldest first. ``ratings`` and ``votes``: of people, oldest first.
    ``last_sequence`` is the stream sequence of the newest event folded in. ``is_returning``: it is being written back
    from its archive, and what there is of it so far is no state it ever was in. ``has_left``: only its archive has all
    of it; who reads the stream now may find its jobs gone and its own events not yet.
    """

    sweep_id: str
    record: SweepRecord | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    judging: dict[str, Job] = field(default_factory=dict)
    edits: dict[str, tuple[Edit, ...]] = field(default_factory=dict)
    judging_requests: tuple[JudgingRequested, ...] = ()
    ratings: tuple[Rated, ...] = ()
    votes: tuple[PairVoted, ...] = ()
    settlement: Settlement | None = None
    runner_lanes: dict[ProcessKey, str] = field(default_factory=dict)
    last_sequence: int = 0
    is_returning: bool = False
    has_left: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether this is a state the sweep was ever in, and not what a purge has left or a restore has brought yet."""
        return not self.is_returning and (self.is_final or not self.has_left)

    @property
    def is_final(self) -> bool:
        """Settled, and no retry has been asked for since."""
        jobs = self.jobs.values()
        return (
            self.settlement is not None
            and self.settlement.body.jobs == len(self.jobs)
            and all(job.state.is_terminal for job in jobs)
        )

    @property
    def is_at_rest(self) -> bool:
        """Final, and every judgement that was asked for has come or failed: nothing is expected but votes and edits."""
        return self.is_final and all(job.state.is_terminal for job in self.judging.values())

    def snapshot(self) -> SweepState:
        """As it is now: it does not grow with the original."""
        return replace(
            self,
            jobs=dict(self.jobs),
            judging=dict(self.judging),
            edits=dict(self.edits),
            runner_lanes=dict(self.runner_lanes),
        )

    def apply_job_event(self, event: JobEvent, sequence: int) -> bool:
        """Whether the report should show it: a job was added or came to its end. ValueError for a broken history."""
        self.last_sequence = sequence
        before = self.jobs.get(event.job_id) or self.judging.get(event.job_id)
        after = folding.fold(before, event)
        kept = self.judging if after.spec.task is Task.JUDGE else self.jobs
        kept[event.job_id] = after
        if isinstance(event.body, Started):
            runner = event.body.runner
            self.runner_lanes[(runner.pid, runner.start_ticks)] = after.spec.lane_title
        return before is None or after.state.is_terminal

    def apply_sweep_event(self, event: SweepEvent, sequence: int) -> bool:
        """Whether the report should show it."""
        if isinstance(event.body, SweepArchived):
            self.has_left = True
            return False  # nothing of the report changes when its events leave the stream
        self.last_sequence = sequence
        match event.body:
            case RestoreBegun():
                self.is_returning = True
                return False
            case SweepRestored():
                self.is_returning = self.has_left = False
                return True
            case SweepSubmitted(record=record):
                self.record = record
                return True
            case SweepSettled() as body:
                self.settlement = Settlement(body=body, stamp=event.stamp)
                return True
            case RetryRequested():
                self.settlement = None
                return True
            case FindingEdited(row=row, text=text, by=by):
                self.edits[row] = (*self.edits.get(row, ()), Edit(text=text.strip(), by=by, at=event.stamp.at))
                return True
            case JudgingRequested() as body:
                self.judging_requests = (*self.judging_requests, body)
                return True
            case Rated() as body:
                self.ratings = (*self.ratings, body)
                return True
            case PairVoted() as body:
                self.votes = (*self.votes, body)
                return True
            case SweepPaused() | PrioritySet():
                return False  # they do not show in a report
            case _:
                assert_never(event.body)


def failures(jobs: list[Job]) -> dict[FailureClass, list[Job]]:
    """Jobs that ended without a clip, by class, in the order given."""
    found: dict[FailureClass, list[Job]] = {}
    for job in jobs:
        if job.state.is_terminal and job.failure_class is not None and job.clip is None:
            found.setdefault(job.failure_class, []).append(job)
    return found
