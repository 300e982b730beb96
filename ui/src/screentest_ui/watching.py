"""What a watcher of a sweep knows, message by message: pure state, and the plain lines it is worth printing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from screentest.client import Message
from screentest.records import (
    Admitted,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    Completed,
    Failed,
    Heartbeat,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    Progress,
    Refused,
    RetryRequested,
    Started,
    Submitted,
    SweepEvent,
    SweepSettled,
    SweepSubmitted,
    Waiting,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedJob:
    """One job as it looks now; ``name`` tells it from the other cells of its sweep.

    ``starts_in_s``, ``takes_s``: as the scheduler expected when it was last asked, None = unknown.
    """

    spec: JobSpec
    name: str
    state: JobState = JobState.QUEUED
    attempt: int = 0
    progress: Progress | None = None
    waits_for: str = ""
    ended_with: str = ""
    starts_in_s: float | None = None
    takes_s: float | None = None

    @property
    def fraction(self) -> float | None:
        """Of the denoising steps, 0 to 1; None before the first."""
        progress = self.progress
        if progress is None or not progress.steps or progress.step is None:
            return None
        return min(1.0, progress.step / progress.steps)


class WatchedSweep:
    """All jobs of one sweep in the order they were planned. Feed it every message; it returns the lines to print."""

    def __init__(self) -> None:
        self.jobs: dict[str, WatchedJob] = {}
        self.settled: SweepSettled | None = None
        self._told_reasons: set[str] = set()
        self._early: dict[str, str] = {}
        self._prompts: set[int] = set()
        self._seeds: set[int] = set()

    def apply(self, message: Message) -> tuple[str, ...]:
        match message.body:
            case JobEvent() as event:
                return self._job_event(event)
            case SweepEvent() as event:
                return self._sweep_event(event)
            case Progress() as progress:
                return self._progress(progress)
            case Waiting() as waiting:
                return self._waiting(waiting)
            case Heartbeat():
                return ()

    def expect(self, jobs: Iterable[Job]) -> None:
        """What the scheduler expects of the jobs that have not ended."""
        for job in jobs:
            known = self.jobs.get(job.spec.job_id)
            if known is not None:
                expected = replace(known, starts_in_s=job.expected_wait_s, takes_s=job.expected_run_s)
                self.jobs[job.spec.job_id] = expected

    @property
    def left_s(self) -> float | None:
        """Until the last job that waits lets go of its device; None when that of any is unknown, or none waits."""
        ends = [_ends_in_s(job) for job in self.jobs.values() if job.state is JobState.QUEUED]
        known = [end_s for end_s in ends if end_s is not None]
        return max(known) if known and len(known) == len(ends) else None

    def _job_event(self, event: JobEvent) -> tuple[str, ...]:
        if isinstance(event.body, Submitted):
            self._add(event.body.spec)
            early = self._early.pop(event.job_id, "")
            return self._waiting(Waiting(job_id=event.job_id, waits_for=early)) if early else ()
        job = self.jobs.get(event.job_id)
        if job is None:  # its Submitted came before our cursor
            return ()
        job = replace(job, state=event.state, attempt=event.attempt, waits_for="")
        line = ""
        match event.body:
            case Admitted(rung_name=rung_name):
                job = replace(job, progress=None)
                line = f"attempt {event.attempt} admitted at rung {rung_name}" if event.attempt > 1 else ""
            case Started(warm=warm):
                line = f"attempt {event.attempt} started" + (" on a warm runner" if warm else "")
            case CancelRequested():
                line = "cancel requested"
            case AttemptEnded(outcome=outcome):
                failure = outcome.failure_class
                line = f"attempt {event.attempt}: {failure.value}: {outcome.cause}" if failure else ""
            case Completed():
                line = "completed"
            case Failed(failure_class=failure_class, cause=cause, fix=fix):
                line = f"failed: {failure_class.value}: {cause}" + (f" Fix: {fix}" if fix else "")
            case Refused(reason=reason, fix=fix):
                line = f"refused: {reason}" + (f" Fix: {fix}" if fix else "")
            case Cancelled(by=by):
                line = f"cancelled by {by}"
        if event.state.is_terminal:
            job = replace(job, ended_with=line)
        self.jobs[event.job_id] = job
        return (f"{job.name}: {line}",) if line else ()

    def _sweep_event(self, event: SweepEvent) -> tuple[str, ...]:
        match event.body:
            case SweepSubmitted(record=record):
                return tuple(f"{lane.lane_title}: skipped: {lane.reason}" for lane in record.skipped)
            case RetryRequested(spec=spec, by=by):
                self.settled = None
                self._add(spec)
                return (f"{self.jobs[spec.job_id].name}: retried by {by}",)
            case SweepSettled() as settled:
                if settled.jobs >= len(self.jobs):  # else it is of a time before a retry
                    self.settled = settled
                return ()
        return ()

    def _progress(self, progress: Progress) -> tuple[str, ...]:
        job = self.jobs.get(progress.job_id)
        if job is None or job.state.is_terminal:
            return ()
        before = job.progress
        self.jobs[progress.job_id] = replace(job, progress=progress)
        if before is not None and before.phase == progress.phase:
            return ()
        steps = f" ({progress.steps} steps)" if progress.steps else ""
        return (f"{job.name}: {progress.phase.replace('_', ' ')}{steps}",)

    def _waiting(self, waiting: Waiting) -> tuple[str, ...]:
        job = self.jobs.get(waiting.job_id)
        if job is None:  # said before its Submitted was read
            self._early[waiting.job_id] = waiting.waits_for
            return ()
        if job.waits_for == waiting.waits_for:
            return ()
        self.jobs[waiting.job_id] = replace(job, waits_for=waiting.waits_for)
        # Ten lanes behind one device wait for the same thing: say it once.
        if not waiting.waits_for or waiting.waits_for in self._told_reasons:
            return ()
        self._told_reasons.add(waiting.waits_for)
        return (f"{job.name}: {waits(waiting.waits_for)}",)

    def _add(self, spec: JobSpec) -> None:
        """Judge jobs are left out: a sweep is over without them."""
        if spec.job_id in self.jobs or spec.judged is not None:
            return
        several = self._several
        self._prompts.add(spec.prompt_index)
        self._seeds.add(spec.seed)
        self.jobs[spec.job_id] = WatchedJob(spec=spec, name=self._cell_name(spec))
        if self._several != several:
            self.jobs = {job_id: replace(job, name=self._cell_name(job.spec)) for job_id, job in self.jobs.items()}

    @property
    def _several(self) -> tuple[bool, bool]:
        """Whether there are several prompts, and several seeds."""
        return len(self._prompts) > 1, len(self._seeds) > 1

    def _cell_name(self, spec: JobSpec) -> str:
        """The lane, and by prompt and seed only what tells it from other cells; as in the model table."""
        prompts, seeds = self._several
        parts = [f"prompt {spec.prompt_index + 1}"] if prompts else []
        parts += [f"seed {spec.seed}"] if seeds else []
        return f"{spec.lane_title} ({', '.join(parts)})" if parts else spec.lane_title


def waits(reason: str) -> str:
    """``waits: no worker for stub``; a reason that is a sentence already stays as it is."""
    return reason if reason.startswith("waits ") else f"waits: {reason}"


def _ends_in_s(job: WatchedJob) -> float | None:
    return None if job.starts_in_s is None or job.takes_s is None else job.starts_in_s + job.takes_s


def expects(job: WatchedJob) -> str:
    """``starts in about 12 min 0 s, takes about 5 min 44 s``: only what is known, and only of a job that waits."""
    if job.state is not JobState.QUEUED:
        return ""
    parts = [f"starts in about {seconds(job.starts_in_s)}"] if job.starts_in_s else []
    parts += [f"takes about {seconds(job.takes_s)}"] if job.takes_s is not None else []
    return ", ".join(parts)


def seconds(value: float | None) -> str:
    """``7 s``, ``3 min 20 s``, ``1 h 5 min``; empty when unknown."""
    if value is None:
        return ""
    whole = max(0, round(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
