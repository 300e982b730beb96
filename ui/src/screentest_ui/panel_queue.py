"""The Queue page's view: what each device does, how far each job is, what waits and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from screentest.records import DeviceView, Job, JobState, LaneView, Progress, ProofKind
from screentest_ui.panel_text import duration, shortened

PHASES = ("preparing", "loading", "encoding_prompt", "denoising", "decoding", "decoded", "encoding", "uploading")
_PHASE_WORDS = {
    "preparing": "preparing",
    "loading": "loading the model",
    "encoding_prompt": "encoding the prompt",
    "denoising": "denoising",
    "decoding": "decoding",
    "decoded": "decoded, the device is free",
    "encoding": "writing the MP4",
    "uploading": "uploading the clip",
    "judging": "judging",
}
AT_WORK = (JobState.RUNNING, JobState.ENDED)
_AHEAD = (JobState.QUEUED, JobState.ADMITTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCard:
    """One job at work.

    ``phase_key``: the phase's name in the contract, "" before the first progress. ``fraction``: of the steps of its
    phase, None where the phase has no steps.
    """

    job_id: str
    sweep_id: str
    lane_title: str
    device: str
    prompt: str
    seed: int
    attempt: int
    phase: str
    phase_key: str
    fraction: float | None
    detail: str
    cancelling: bool
    random_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """One job that waits; ``waits_for`` "" = the scheduler has not said why (it is about to be admitted).

    ``expected``: when it begins and how long it takes, "" where nobody knows.
    """

    job_id: str
    sweep_id: str
    lane_title: str
    prompt: str
    seed: int
    waits_for: str
    cancelling: bool
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCard:
    """One device: ``state`` is idle, busy or drained; ``detail`` says with what, or why."""

    host: str
    device: str
    state: str
    detail: str
    proof: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedClip:
    """The clip of a job that completed lately."""

    job_id: str
    sweep_id: str
    lane_title: str
    seed: int
    ended_at: datetime
    random_weights: bool


def just_ended(jobs: Iterable[Job], most: int) -> tuple[EndedClip, ...]:
    """The clips that were finished last, the newest first."""
    found = [
        EndedClip(
            job_id=job.spec.job_id,
            sweep_id=job.spec.sweep_id,
            lane_title=job.spec.lane_title,
            seed=job.spec.seed,
            ended_at=job.ended.at,
            random_weights=job.spec.weights.is_random,
        )
        for job in jobs
        if job.clip is not None and job.ended is not None
    ]
    return tuple(sorted(found, key=lambda clip: clip.ended_at, reverse=True)[:most])


def at_work(jobs: Iterable[Job]) -> tuple[JobCard, ...]:
    """The jobs that hold a device, encode or upload, in the order they started."""
    working = [job for job in jobs if job.state in AT_WORK]
    return tuple(job_card(job) for job in sorted(working, key=_started_at))


def waiting(jobs: Iterable[Job]) -> tuple[WaitingJob, ...]:
    """The jobs that wait, in the scheduler's order: priority, then submission, then position in the sweep."""
    ahead = [job for job in jobs if job.state in _AHEAD]
    ahead.sort(key=lambda job: (-job.spec.priority, job.submitted.at, job.spec.ordinal))
    return tuple(
        WaitingJob(
            job_id=job.spec.job_id,
            sweep_id=job.spec.sweep_id,
            lane_title=_title(job),
            prompt=shortened(job.spec.prompt, 80),
            seed=job.spec.seed,
            waits_for="admitted, its worker starts it next" if job.state is JobState.ADMITTED else job.waits_for,
            cancelling=job.cancel_requested,
            expected=_expected(job),
        )
        for job in ahead
    )


def _title(job: Job) -> str:
    """The lane's, and of a judge also what it looks at: ``Pixels, clip of wan2-1-t2v-1-3b``."""
    judged = job.spec.judged
    if judged is None:
        return job.spec.lane_title
    of = f"{judged.purpose.value} of {judged.lane_id}" if judged.lane_id else judged.purpose.value
    return f"{job.spec.lane_title}, {of}"


def _expected(job: Job) -> str:
    """``starts in about 12 min 0 s, takes about 5 min 44 s``: only what is known."""
    parts = [f"starts in about {duration(job.expected_wait_s)}"] if job.expected_wait_s else []
    parts += [f"takes about {duration(job.expected_run_s)}"] if job.expected_run_s is not None else []
    return ", ".join(parts)


def left_words(jobs: Iterable[Job]) -> str:
    """When a sweep's last open job is expected to end, in words; "" where somebody's time is unknown."""
    ends = []
    for job in jobs:
        if job.state.is_terminal:
            continue
        if job.expected_run_s is None:
            return ""
        ends.append((job.expected_wait_s or 0.0) + job.expected_run_s)
    return f"about {duration(max(ends))} left" if ends else ""


def reasons(jobs: Sequence[WaitingJob]) -> tuple[tuple[str, int], ...]:
    """Why jobs wait and how many of them, the most frequent reason first."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.waits_for or "their turn"] = counts.get(job.waits_for or "their turn", 0) + 1
    return tuple(sorted(counts.items(), key=lambda item: -item[1]))


def judges_waited_for(judging: Iterable[Job], lanes: Iterable[LaneView]) -> tuple[str, ...]:
    """The judges without a worker that all open ones of these judge jobs wait for, by title.

    Empty where one of them can go on, and where none is open.
    """
    alive = {lane.lane_id for lane in lanes if lane.worker_alive}
    still = [job for job in judging if not job.state.is_terminal]
    if any(job.state is not JobState.QUEUED or job.spec.lane_id in alive for job in still):
        return ()
    return tuple(dict.fromkeys(job.spec.lane_title for job in still))


def job_card(job: Job) -> JobCard:
    progress = _current(job)
    return JobCard(
        job_id=job.spec.job_id,
        sweep_id=job.spec.sweep_id,
        lane_title=_title(job),
        device=f"{job.spec.host} {job.spec.device}",
        prompt=shortened(job.spec.prompt),
        seed=job.spec.seed,
        attempt=job.attempts[-1].attempt if job.attempts else 0,
        phase=_phase_words(progress, job),
        phase_key=progress.phase if progress else "",
        fraction=fraction(progress),
        detail=", ".join(part for part in (_detail(progress), _planned(job)) if part),
        cancelling=job.cancel_requested,
        random_weights=job.spec.weights.is_random,
    )


def fraction(progress: Progress | None) -> float | None:
    """Steps done of the steps of this phase, 0..1; None where the phase has no steps."""
    if progress is None or progress.step is None or not progress.steps:
        return None
    return min(max(progress.step / progress.steps, 0.0), 1.0)


def trail(phase: str) -> tuple[tuple[str, str], ...]:
    """The eight phases with their place in time: done, now or ahead. An unknown phase leaves all ahead."""
    now = PHASES.index(phase) if phase in PHASES else -1
    place = {True: "done", False: "ahead"}
    return tuple((name, "now" if index == now else place[index < now]) for index, name in enumerate(PHASES))


def device_card(view: DeviceView, jobs: Mapping[str, Job], lane_titles: Mapping[str, str]) -> DeviceCard:
    warm = lane_titles.get(view.warm_lane_id, view.warm_lane_id)
    holder = jobs.get(view.job_id)
    if view.drained:
        state, detail = "drained", view.drained_reason
    elif view.job_id:
        state, detail = "busy", _holder_words(holder) if holder else view.job_id
    else:
        state, detail = "idle", f"the runner of {warm} is warm" if warm else "no runner is loaded"
    return DeviceCard(host=view.host, device=view.device, state=state, detail=detail, proof=_proof_line(view))


def _holder_words(holder: Job) -> str:
    starts = holder.state is JobState.ADMITTED
    return f"{holder.spec.lane_title}, about to start" if starts else holder.spec.lane_title


def _proof_line(view: DeviceView) -> str:
    """``clean at 02:53:32 UTC (proc)``. Between two jobs a runner that still leaves is the rule, no fault."""
    if view.proof is None:
        return "not proven yet"
    seen = f"at {view.proof.stamp.at:%H:%M:%S} UTC ({view.proof.method})"
    if view.proof.clean:
        return f"clean {seen}"
    handing_over = not view.drained and (bool(view.job_id) or view.proof.kind is ProofKind.CONTINUE)
    return f"{'not proven free' if handing_over else 'not clean'} {seen}: {view.proof.reason}"


def _current(job: Job) -> Progress | None:
    """The progress of the job's last attempt; an earlier attempt's last word says nothing about this one."""
    if job.progress is None or not job.attempts or job.progress.attempt != job.attempts[-1].attempt:
        return None
    return job.progress


def _phase_words(progress: Progress | None, job: Job) -> str:
    if job.state is JobState.ENDED:
        return "the attempt has ended, the scheduler decides what follows"
    return _PHASE_WORDS.get(progress.phase, progress.phase) if progress else "started, no progress reported yet"


def _detail(progress: Progress | None) -> str:
    """``step 12 of 50, 1.4 s a step, about 52 s left``: only what is known."""
    if progress is None:
        return ""
    parts = []
    if progress.step is not None and progress.steps:
        parts.append(f"step {progress.step} of {progress.steps}")
    if progress.step_s is not None:
        parts.append(f"{duration(progress.step_s)} a step")
    if progress.eta_s is not None:
        parts.append(f"about {duration(progress.eta_s)} left")
    return ", ".join(parts)


def _planned(job: Job) -> str:
    return "" if job.expected_run_s is None else f"{duration(job.expected_run_s)} expected in all"


def _started_at(job: Job) -> float:
    started = job.attempts[-1].started if job.attempts else None
    return (started or job.submitted).at.timestamp()
