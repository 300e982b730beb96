"""The nine promises, checked from outside: the raw event history, the probe's log and the depot, nothing else.

Nothing here asks the product how it went. Each check returns what is wrong, in words, and the promise it breaks.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import av

from screentest import subjects, wire
from screentest.errors import NotFound
from screentest.kit.bus import Bus
from screentest.kit.store import Store
from screentest.records import (
    Admitted,
    Artifact,
    AttemptEnded,
    Completed,
    Failed,
    FailureClass,
    JobEvent,
    JobSpec,
    JobState,
    Refused,
    Started,
    Submitted,
)
from tests.faults.probe import Sample

GRACE_S = 60.0
# From Admitted to Started: the proof, the interpreter, a keyframe. Past this the scheduler ends the attempt.
START_WITHIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is left of a run. ``events``: of all jobs, in stream order. ``objects``: the depot by key.

    ``acknowledged``: sweeps whose submit was answered with success, each with the number of its jobs.
    ``expected``: the failure classes that the injected faults allow, by lane; a lane that is not named may fail in
    no way but ``infrastructure`` and ``cancelled``.
    """

    events: tuple[JobEvent, ...]
    dispatched: tuple[str, ...]
    samples: tuple[Sample, ...] = ()
    objects: Mapping[str, bytes] = field(default_factory=dict)
    acknowledged: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, Collection[FailureClass]] = field(default_factory=dict)

    def jobs(self) -> dict[str, list[JobEvent]]:
        """The jobs that make clips."""
        return {job_id: events for job_id, events in self.all_jobs().items() if _spec(events).judged is None}

    def all_jobs(self) -> dict[str, list[JobEvent]]:
        """Those that judge clips too: one may wait for its judge for ever, and its end is nobody's row."""
        found: dict[str, list[JobEvent]] = {}
        for event in self.events:
            found.setdefault(event.job_id, []).append(event)
        return found


async def gather(
    bus: Bus,
    store: Store | None = None,
    *,
    samples: tuple[Sample, ...] = (),
    acknowledged: Mapping[str, int] | None = None,
    expected: Mapping[str, Collection[FailureClass]] | None = None,
) -> Evidence:
    """Reads the history raw from the broker and every object of the depot."""
    stored = [item async for item in bus.read(subjects.EVENTS_STREAM, ["events.>"])]
    keys = await store.keys("") if store is not None else ()
    objects: dict[str, bytes] = {}
    for key in keys:
        try:
            objects[key] = await store.get(key) if store is not None else b""
        except NotFound:  # a listing may be older than the object's end
            continue
    return Evidence(
        events=tuple(wire.decode(item.payload, JobEvent) for item in stored),
        dispatched=await bus.dispatched(),
        samples=samples,
        objects=objects,
        acknowledged=acknowledged or {},
        expected=expected or {},
    )


def violations(evidence: Evidence) -> list[str]:
    """Everything that breaks a promise; empty = all of them were kept."""
    checks = (one_end, one_tree, ended_in_time, nothing_left, clip_is_there, nothing_lost, keys_keep, right_class)
    return [words for check in checks for words in check(evidence)]


def one_end(evidence: Evidence) -> Iterator[str]:
    """I1: exactly one terminal event, the last one; each attempt is admitted, started and ended at most once."""
    for job_id, events in evidence.all_jobs().items():
        terminal = [event for event in events if event.state.is_terminal]
        if not terminal and len(events) == 1 and _spec(events).judged is not None:
            continue
        if len(terminal) != 1:
            yield f"I1 {job_id} has {len(terminal)} terminal events"
        elif terminal[0] is not events[-1]:
            yield f"I1 {job_id} goes on after its end: {type(events[-1].body).__name__}"
        counted = Counter(
            (event.attempt, type(event.body).__name__)
            for event in events
            if isinstance(event.body, Admitted | Started | AttemptEnded)
        )
        for (attempt, kind), times in counted.items():
            if times > 1:
                yield f"I1 {job_id} attempt {attempt}: {times} times {kind}"


def one_tree(evidence: Evidence) -> Iterator[str]:
    """I2: when an attempt starts, no other runner that ever was on the device is alive, nor what it forked.

    And the kernel's lock was held by that very runner, as long as it was seen.
    """
    if not evidence.samples:
        return
    specs = {event.job_id: event.body.spec for event in evidence.events if isinstance(event.body, Submitted)}
    starts = [event for event in evidence.events if isinstance(event.body, Started)]
    by_device: dict[str, list[JobEvent]] = {}
    for event in starts:
        by_device.setdefault(specs[event.job_id].device, []).append(event)
    for device, events in by_device.items():
        events.sort(key=lambda event: event.stamp.boottime_ns)
        yield from _overlaps(events, evidence.samples)
        yield from _unlocked(events, f"{device}.lock", evidence.samples)
    yield from _two_at_once(evidence.events, by_device)


def _overlaps(events: Sequence[JobEvent], samples: Sequence[Sample]) -> Iterator[str]:
    family_of = {pid: family for sample in samples for family, pids in sample.alive.items() for pid in pids}
    last_alive = _last_alive(samples)
    earlier: dict[str, str] = {}
    for event in events:
        assert isinstance(event.body, Started)
        own = family_of.get(event.body.runner.pid)
        for family, name in earlier.items():
            if family != own and last_alive[family] > event.stamp.boottime_ns:
                late_ms = (last_alive[family] - event.stamp.boottime_ns) / 1e6
                yield f"I2 {_name(event)} started while the runner of {name} lived on for {late_ms:.0f} ms"
        if own is not None:
            earlier[own] = _name(event)


def _last_alive(samples: Sequence[Sample]) -> dict[str, int]:
    """When each family was surely alive for the last time: in the sample before the one that shows a change."""
    found: dict[str, int] = {}
    for sample, following in itertools.zip_longest(samples, samples[1:]):
        for family in sample.alive:
            found[family] = max(sample.at_ns, following.before_ns if following is not None else 0)
    return found


def _unlocked(events: Sequence[JobEvent], lock: str, samples: Sequence[Sample]) -> Iterator[str]:
    for event in events:
        assert isinstance(event.body, Started)
        pid = event.body.runner.pid
        seen = [
            sample
            for sample in samples
            if sample.at_ns > event.stamp.boottime_ns and any(pid in pids for pids in sample.alive.values())
        ]
        # The lock's list and the list of processes are not read in one moment: the last sample may be of two.
        for sample in seen[:-1]:
            if sample.holders.get(lock) != (pid,):
                yield f"I2 {_name(event)} computes in pid {pid}, but the lock is held by {sample.holders.get(lock)}"
                break


def _two_at_once(events: Sequence[JobEvent], by_device: Mapping[str, Sequence[JobEvent]]) -> Iterator[str]:
    """By the events alone: an attempt has decoded or ended before the next one starts on that device."""
    free_ns: dict[tuple[str, int], int] = {}
    for event in events:
        if isinstance(event.body, AttemptEnded):
            done = [
                phase.started_boottime_ns + int(phase.seconds * 1e9)
                for phase in event.body.outcome.phases
                if phase.phase == "decoding"
            ]
            free_ns[(event.job_id, event.attempt)] = min([event.stamp.boottime_ns, *done])
    for starts in by_device.values():
        for first, second in itertools.pairwise(starts):
            free = free_ns.get((first.job_id, first.attempt), 0)
            was_lost = any(
                isinstance(event.body, AttemptEnded)
                and event.body.outcome.infrastructure
                and (event.job_id, event.attempt) == (first.job_id, first.attempt)
                for event in events
            )
            # A lost attempt ended when its runner died, which the probe sees, not when somebody wrote it down.
            if free > second.stamp.boottime_ns and not was_lost:
                yield f"I2 {_name(second)} started before {_name(first)} had let go"


def ended_in_time(evidence: Evidence) -> Iterator[str]:
    """I3: an attempt has ended by its start + attempt_s + 60 s; one that never starts is ended too."""
    for job_id, events in evidence.all_jobs().items():
        spec = _spec(events)
        began: dict[int, tuple[int, float]] = {}
        for event in events:
            match event.body:
                case Admitted():
                    began[event.attempt] = (event.stamp.boottime_ns, START_WITHIN_S)
                case Started():
                    began[event.attempt] = (event.stamp.boottime_ns, spec.limits.attempt_s)
                case AttemptEnded():
                    since_ns, limit_s = began.pop(event.attempt)
                    took_s = (event.stamp.boottime_ns - since_ns) / 1e9
                    if took_s > limit_s + GRACE_S:
                        yield f"I3 {job_id} attempt {event.attempt} ended after {took_s:.0f} s, its limit is {limit_s}"
                case _ if event.state.is_terminal:
                    began.clear()
        for attempt in began:
            yield f"I3 {job_id} attempt {attempt} has not ended"


def nothing_left(evidence: Evidence) -> Iterator[str]:
    """I4, the broker's part: no dispatch message. Processes, locks and files are for the test's end to look at."""
    for subject in evidence.dispatched:
        yield f"I4 {subject} is still on the queue"


def clip_is_there(evidence: Evidence) -> Iterator[str]:
    """I5: what a completed job made exists and has its sha256; a clip decodes to the frames that were asked for."""
    for job_id, events in evidence.all_jobs().items():
        body = events[-1].body
        if not isinstance(body, Completed):
            continue
        made = _made(body)
        data = evidence.objects.get(made.key)
        if data is None:
            yield f"I5 {job_id} is completed, but {made.key} is not in the depot"
        elif hashlib.sha256(data).hexdigest() != made.sha256:
            yield f"I5 {job_id}: the {made.kind.value} in the depot is not the one that was reported"
        elif body.clip is not None and (frames := _frames(data)) != _spec(events).num_frames:
            yield f"I5 {job_id}: the clip decodes to {frames} frames, asked for {_spec(events).num_frames}"


def nothing_lost(evidence: Evidence) -> Iterator[str]:
    """I6: every sweep whose submit was acknowledged has all its jobs."""
    found = Counter(events[0].sweep_id for events in evidence.jobs().values())
    for sweep_id, jobs in evidence.acknowledged.items():
        if found[sweep_id] != jobs:
            yield f"I6 {sweep_id} was acknowledged with {jobs} jobs, {found[sweep_id]} are there"


def keys_keep(evidence: Evidence) -> Iterator[str]:
    """I7: what stands under a key is what its name says, and what every event said of it."""
    told: dict[str, set[str]] = {}
    for artifact in _artifacts(evidence.events):
        told.setdefault(artifact.key, set()).add(artifact.sha256)
    for key, hashes in told.items():
        if len(hashes) > 1:
            yield f"I7 {key} was reported with {len(hashes)} contents"
        data = evidence.objects.get(key)
        if data is not None and hashlib.sha256(data).hexdigest() not in hashes:
            yield f"I7 {key} has another content than was reported"
        if data is not None and hashlib.sha256(data).hexdigest()[:16] not in key:
            yield f"I7 {key} does not carry its content's hash"


def right_class(evidence: Evidence) -> Iterator[str]:
    """I9: a failure has a class that the injected faults explain, a cause in one line, and a fix."""
    for job_id, events in evidence.jobs().items():
        body = events[-1].body
        if isinstance(body, Refused) and not body.reason:
            yield f"I9 {job_id} is refused without a reason"
        if not isinstance(body, Failed):
            continue
        allowed = evidence.expected.get(events[0].lane_id, (FailureClass.INFRASTRUCTURE,))
        if body.failure_class not in allowed:
            yield f"I9 {job_id} failed as {body.failure_class}: {body.cause}"
        if not body.cause or "\n" in body.cause or not body.fix:
            yield f"I9 {job_id} failed without a cause in one line, or without a fix: {body.cause!r} {body.fix!r}"


def rows_told(evidence: Evidence, report: Mapping[str, object]) -> Iterator[str]:
    """I8: the published report has one row per job, with the status of its terminal event and a clip only if there is
    one. ``report``: report.json as it was published."""
    rows = {str(row["job_id"]): row for row in report["rows"]}  # type: ignore[attr-defined]
    jobs = evidence.jobs()
    if rows.keys() != jobs.keys():
        yield f"I8 the report has rows of {sorted(rows.keys() ^ jobs.keys())} too many or too few"
    for job_id, events in jobs.items():
        row = rows.get(job_id, {})
        if row.get("status") != events[-1].state.value:
            yield f"I8 {job_id} is {events[-1].state.value}, the report says {row.get('status')}"
        if (row.get("clip") is not None) != (events[-1].state is JobState.COMPLETED):
            yield f"I8 {job_id} is {events[-1].state.value}, and the report shows {row.get('clip')}"


def told(evidence: Evidence) -> str:
    """The history line by line, for the message of a failed test."""
    lines = []
    for event in evidence.events:
        outcome = event.body.outcome if isinstance(event.body, AttemptEnded) else None
        detail = f"{outcome.failure_class} {outcome.cause}" if outcome else ""
        lines.append(f"{event.stamp.boottime_ns / 1e9:12.3f} s  {_name(event):40} {type(event.body).__name__} {detail}")
    return "\n".join(lines)


def assert_kept(evidence: Evidence, about: str = "") -> None:
    found = violations(evidence)
    assert found == [], "\n".join([about, *found, told(evidence)])


def _artifacts(events: Sequence[JobEvent]) -> Iterator[Artifact]:
    for event in events:
        if isinstance(event.body, AttemptEnded):
            yield from event.body.outcome.artifacts
        elif isinstance(event.body, Completed):
            yield _made(event.body)


def _made(body: Completed) -> Artifact:
    made = body.clip or body.judgement
    assert made is not None, "a completed job has made something"
    return made


def _frames(data: bytes) -> int:
    """-1 when it cannot be decoded."""
    try:
        with av.open(io.BytesIO(data)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.error.FFmpegError, IndexError):
        return -1


def _spec(events: Sequence[JobEvent]) -> JobSpec:
    assert isinstance(events[0].body, Submitted)
    return events[0].body.spec


def _name(event: JobEvent) -> str:
    return f"{event.job_id}/{event.attempt}"
