"""Operator notes: what to fix before the next sweep, each derived from what this sweep recorded. Pure.

A note knows no model and no published failure by name: it comes from failure classes, refusals, marks, rungs, killed
survivors, flags, controls, the keyframe's own score and the beats that clips show. A person may edit or add notes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from screentest.records import Attempt, FailureClass, Job, Mark, MarkKind, Task
from screentest.table import latency_text, sentence
from screentest_reporter.model_table import ReportRow, latest_edit
from screentest_reporter.scores import ClipScore, Scores
from screentest_reporter.scoring import SEEN
from screentest_reporter.sweeps import Edit, SweepState, failures
from screentest_reporter.wording import capital, count, listing

# What to do about a class when the event itself brought no fix.
ADVICE: Final[dict[FailureClass, str]] = {
    FailureClass.PREFLIGHT_REFUSED: "change what preflight named, then retry these rows",
    FailureClass.OOM_LOAD: "add a rung that keeps part of the model off the GPU while it loads",
    FailureClass.OOM_ENCODE: "add a rung that drops or offloads the text encoder",
    FailureClass.OOM_DENOISE: "add a low-memory rung, or ask for fewer frames or a smaller size",
    FailureClass.OOM_DECODE: "turn on tiled decoding for the lane",
    FailureClass.HOST_OOM: "give the worker more host memory, or a rung that reads weights in parts",
    FailureClass.TIMEOUT: "raise the lane's attempt_s, or ask for fewer frames or steps",
    FailureClass.STALLED: "read the log for the step that stood still; raise step_stall_s if the card is merely slow",
    FailureClass.CRASHED: "read the log; a crash in native code often needs another version of the model env",
    FailureClass.BAD_KWARGS: "map or drop the argument in the lane's [parameters]",
    FailureClass.LAYOUT: "point the lane at a repository in the layout its pipeline loads",
    FailureClass.CHANNELS: "check the lane's image conditioning: the tensor's channels do not fit the model",
    FailureClass.CONDITIONING: "fix the lane's image-conditioning adapter before scoring it",
    FailureClass.NAN: "use a wider dtype for the component that produced non-finite values",
    FailureClass.TRUNCATED: "retry; if it happens again, look at the disk of the worker",
    FailureClass.UNDECODABLE: "retry; if it happens again, look at the encoder's log",
    FailureClass.ENCODE: "read the encoder's log",
    FailureClass.UPLOAD: "check the depot and its free space, then retry these rows",
    FailureClass.GPU_FAULT: "look at the driver's log (Xid) before anything else runs on this GPU",
    FailureClass.INFRASTRUCTURE: "retry these rows; their pipelines were not at fault",
    FailureClass.UNCLASSIFIED: "read the log; this failure has no class yet",
}
_FLAG_ADVICE: Final = {
    "black": "a black picture often comes from a decoder in half precision: run it in a wider dtype",
    "flat": "one flat tone often comes from a decoder in half precision: run it in a wider dtype",
    "noise": "noise means that latents were not denoised or decoded as the model wants: check scheduler, steps, dtype",
    "frozen": "nothing moves: ask for more motion, more frames, or another seed",
}
# From here on a prompt is dense for one short clip. Design choice until ratings of people replace it.
MANY_ELEMENTS: Final = 10
FEW_BEATS: Final = 0.5
SHORTEST_BEAT_S: Final = 1.0
# Slugs are made of a fix's text, so that a note keeps its edits while rows are added to it.
_SLUG_HEX: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing to fix. ``note_id``: as FindingEdited names it. ``original`` "" = a person added it.

    ``job_ids``: the rows it is about. ``topic``: what it was derived from, as a word or two.
    """

    note_id: str
    topic: str
    original: str
    models: tuple[str, ...] = ()
    job_ids: tuple[str, ...] = ()
    edit: Edit | None = None

    @property
    def text(self) -> str:
        return self.edit.text if self.edit else self.original


def operator_notes(state: SweepState, rows: Sequence[ReportRow], scores: Scores) -> tuple[Note, ...]:
    """Derived notes, failures first, then what a person added; each with its newest edit."""
    view = _View(state, rows)
    derived = [
        *_failures(view),
        *_survivors(view),
        *_unclean(state),
        *_rungs(view),
        *_dropped(view),
        *_skipped(state),
        *_flags(view),
        *_shared(view),
        *_keyframe(state, scores),
        *_controls(scores),
        *_dense(rows),
    ]
    edited = [replace(note, edit=latest_edit(state.edits.get(note.note_id, ()))) for note in derived]
    return (*edited, *_added({note.note_id for note in derived}, state.edits))


def _added(known: set[str], edits: Mapping[str, Sequence[Edit]]) -> Iterator[Note]:
    """Notes of people, and edits of a note whose reason has gone: what somebody wrote is not lost."""
    for note_id, found in edits.items():
        edit = latest_edit(found)
        if note_id.startswith("note:") and note_id not in known and edit is not None:
            yield Note(note_id=note_id, topic=f"added by {edit.by}", original="", edit=edit)


class _View:
    """The jobs that count, with the names that the table gives their rows."""

    def __init__(self, state: SweepState, rows: Sequence[ReportRow]) -> None:
        self.rows = rows
        self.jobs = [state.jobs[row.row.job_id] for row in rows]
        self._model_of = {row.row.job_id: row.row.model for row in rows}

    def note(self, slug: str, topic: str, text: str, jobs: Iterable[Job]) -> Note:
        job_ids = tuple(job.spec.job_id for job in jobs)
        models = tuple(self._model_of[job_id] for job_id in job_ids)
        return Note(note_id=f"note:{slug}", topic=topic, original=text, models=models, job_ids=job_ids)

    def attempts(self) -> Iterator[tuple[Job, Attempt]]:
        for job in self.jobs:
            for attempt in job.attempts:
                yield job, attempt


def _slug(word: str, text: str = "") -> str:
    """``oom-denoise`` or ``oom-denoise-3f2a91``."""
    base = word.replace("_", "-")
    return f"{base}-{hashlib.sha256(text.encode()).hexdigest()[:_SLUG_HEX]}" if text else base


# ---- from failures


def _failures(view: _View) -> Iterator[Note]:
    """By class, and within it by the fix that the event brought, which comes before general advice."""
    for failure_class, jobs in failures(view.jobs).items():
        if failure_class is FailureClass.CANCELLED:
            continue  # a person's wish is nothing to fix
        by_fix: dict[str, list[Job]] = {}
        for job in jobs:
            by_fix.setdefault(job.fix.strip(), []).append(job)
        for fix, affected in by_fix.items():
            advice = capital(sentence(fix or ADVICE.get(failure_class, "read the log")))
            text = f"{advice} {_what_happened(affected)}".strip()
            yield view.note(_slug(failure_class.value, fix), failure_class.value, text, affected)


def _what_happened(jobs: Sequence[Job]) -> str:
    """Cause and time of each, the same cause once: ``CUDA out of memory (20.73s and 48.88s).``"""
    by_cause: dict[str, list[str]] = {}
    for job in jobs:
        by_cause.setdefault(" ".join(job.cause.split()).rstrip("."), []).append(latency_text(_seconds(job)))
    told = [f"{cause} ({listing(times)})" if cause else "" for cause, times in by_cause.items()]
    return sentence(f"It was: {listing([text for text in told if text], limit=4)}") if any(told) else ""


def _seconds(job: Job) -> float | None:
    """Of all attempts together; None when none has both begun and ended."""
    known = [seconds for attempt in job.attempts if (seconds := _attempt_s(attempt)) is not None]
    return sum(known) if known else None


def _attempt_s(attempt: Attempt) -> float | None:
    if attempt.started is None or attempt.ended is None:
        return None
    return (attempt.ended.boottime_ns - attempt.started.boottime_ns) / 1e9


def _survivors(view: _View) -> Iterator[Note]:
    """Processes that outlived the stop of their attempt: a stop of the child alone would have left them on the GPU."""
    found = [(job, a) for job, a in view.attempts() if a.outcome is not None and a.outcome.survivors_killed]
    if not found:
        return
    total = sum(attempt.outcome.survivors_killed for _, attempt in found if attempt.outcome)
    ended_by = listing(list(dict.fromkeys(_ended_as(attempt) for _, attempt in found)))
    processes, verb = ("1 process", "was") if total == 1 else (f"{total} processes", "were")
    text = (
        f"{processes} outlived the stop of {count(len(found), 'attempt')} ({ended_by}) and {verb} killed before the "
        "next job was let on the GPU: these lanes start processes of their own, and a stop that ends only the child it "
        "knows leaves such a process to overlap later jobs."
    )
    yield view.note("survivors-killed", "survivors killed", text, _unique(job for job, _ in found))


def _ended_as(attempt: Attempt) -> str:
    failure = attempt.outcome.failure_class if attempt.outcome else None
    return failure.value if failure else "completed"


def _unique(jobs: Iterable[Job]) -> list[Job]:
    return list({job.spec.job_id: job for job in jobs}.values())


def _unclean(state: SweepState) -> Iterator[Note]:
    for device in state.settlement.body.proofs if state.settlement else ():
        if device.proof is not None and not device.proof.clean:
            text = (
                f"{device.host}/{device.device} was not clean when the sweep ended: {device.proof.reason}. Look at it "
            )
            slug = _slug("unclean", f"{device.host}/{device.device}")
            yield Note(note_id=f"note:{slug}", topic="device", original=f"{text}before anything else runs there.")


# ---- from what ran otherwise than asked


def _rungs(view: _View) -> Iterator[Note]:
    """Lanes that got their clip only further down: their time above it was lost."""
    by_step: dict[tuple[str, str, str], list[tuple[Job, float]]] = {}
    for job in view.jobs:
        if job.clip is None or len(job.attempts) < 2 or job.attempts[0].rung == job.attempts[-1].rung:
            continue
        first, last = job.attempts[0], job.attempts[-1]
        lost_s = sum(_attempt_s(attempt) or 0.0 for attempt in job.attempts[:-1])
        key = (first.rung_name, last.rung_name, _ended_as(first))
        by_step.setdefault(key, []).append((job, lost_s))
    for (first_name, last_name, why), found in by_step.items():
        lost = latency_text(sum(lost_s for _, lost_s in found))
        text = (
            f"Start at rung {last_name} on this card: {count(len(found), 'row')} fell from {first_name} ({why}) and "
            f"lost {lost} before the clip was made."
        )
        slug = _slug("rung", f"{first_name} {last_name} {why}")
        yield view.note(slug, "rung", text, [job for job, _ in found])


def _dropped(view: _View) -> Iterator[Note]:
    """Arguments that were asked for and that a pipeline does not take."""
    by_parameter: dict[str, list[tuple[Job, Mark]]] = {}
    for job in view.jobs:
        for mark in job.spec.marks:
            if mark.kind is MarkKind.DROPPED:
                by_parameter.setdefault(mark.parameter, []).append((job, mark))
    for parameter, found in by_parameter.items():
        reasons = listing(list(dict.fromkeys(mark.reason.rstrip(".") for _, mark in found if mark.reason)), limit=3)
        why = f" ({reasons})" if reasons else ""
        jobs = _unique(job for job, _ in found)
        text = (
            f"{parameter} was not passed to {count(len(jobs), 'row')}{why}: leave it out of the sweep, or read these "
            "rows as made without it."
        )
        yield view.note(_slug("dropped", parameter), "argument not passed", text, jobs)


def _skipped(state: SweepState) -> Iterator[Note]:
    assert state.record is not None
    for lane in state.record.skipped:
        yield Note(
            note_id=f"note:{_slug('skipped', lane.lane_id)}",
            topic="left out before queueing",
            original=capital(sentence(lane.reason)),
            models=(lane.lane_title,),
        )


def _flags(view: _View) -> Iterator[Note]:
    by_flag: dict[str, list[Job]] = {}
    flags_of = {row.row.job_id: row.clip_facts.flags for row in view.rows if row.clip_facts}
    for job in view.jobs:
        for flag in flags_of.get(job.spec.job_id, ()):
            by_flag.setdefault(flag, []).append(job)
    for flag, jobs in by_flag.items():
        if flag in _FLAG_ADVICE and not jobs[0].spec.weights.is_random:
            yield view.note(_slug("flag", flag), f"flag: {flag}", f"{capital(_FLAG_ADVICE[flag])}.", jobs)


def _shared(view: _View) -> Iterator[Note]:
    shared = _unique(job for job, attempt in view.attempts() if attempt.shared_gpu)
    if shared:
        text = (
            "A process that is not ours was on the GPU: end it, or name it as a tenant, and measure these rows again "
            "before their latency, memory or energy is compared."
        )
        yield view.note("shared-gpu", "shared GPU", text, shared)


# ---- from judging


def _keyframe(state: SweepState, scores: Scores) -> Iterator[Note]:
    """A source picture that lacks what the prompt asks for takes every lane that starts from it away from it."""
    assert state.record is not None
    lanes = [lane.lane_title for lane in state.record.lanes if lane.task is Task.I2V]
    for found in scores.keyframe:
        missing = [element.label for element in found.missing]
        judged = len(missing) + len(found.shown)
        if not lanes or not missing:
            continue
        kept, verb = [element.label for element in found.shown], "is" if len(lanes) == 1 else "are"
        shows = f"shows {listing(kept)} but not {listing(missing)}" if kept else f"shows none of {listing(missing)}"
        text = (
            f"The source keyframe drifts from the prompt: it {shows} ({len(kept)} of {count(judged, 'element')}). "
            f"Make another one before {count(len(lanes), 'I2V lane')} {verb} compared by it."
        )
        slug = f"keyframe-{found.prompt_index}" if len(scores.keyframe) > 1 else "keyframe"
        yield Note(note_id=f"note:{slug}", topic="keyframe", original=text, models=tuple(lanes))


def _controls(scores: Scores) -> Iterator[Note]:
    for judge in scores.judges:
        if judge.verdict.is_greyed:
            text = f"Do not rank by {judge.judge_title}: {judge.verdict.why_greyed}."
            slug, advice = _slug("controls", judge.judge_id), "Take another judge, or let people rate."
            yield Note(note_id=f"note:{slug}", topic="judge controls", original=f"{text} {advice}")


def _dense(rows: Sequence[ReportRow]) -> Iterator[Note]:
    """Many elements asked for, and few beats shown, or no time for them: one short clip does not bind them."""
    by_prompt: dict[int, list[tuple[ClipScore, float | None]]] = {}
    for row in rows:
        if row.score is not None and len(row.score.rubric.beats) >= 2:
            duration_s = row.clip_facts.duration_s if row.clip_facts else None
            by_prompt.setdefault(row.row.prompt_index, []).append((row.score, duration_s))
    for prompt_index, found in by_prompt.items():
        rubric = found[0][0].rubric
        beats, elements = len(rubric.beats), len(rubric.elements)
        what_lacks = _too_few_beats(found, beats) or _no_time(found, beats)
        if elements < MANY_ELEMENTS or not what_lacks:
            continue
        text = (
            f"The prompt asks one clip for {elements} elements in {beats} beats, and {what_lacks}. For prompts this "
            "dense, plan a shot (or a keyframe) per beat instead of one short clip for all of them."
        )
        slug = f"dense-{prompt_index}" if len(by_prompt) > 1 else "dense"
        yield Note(note_id=f"note:{slug}", topic="prompt", original=text)


def _too_few_beats(found: Sequence[tuple[ClipScore, float | None]], beats: int) -> str:
    """``the best of 3 scored clips shows 1 beat``; empty where nothing is scored, or enough is seen."""
    seen = [_beats_seen(score) for score, _ in found if score.score.score10 is not None]
    if not seen or max(seen) > FEW_BEATS * beats:
        return ""
    return f"the best of {count(len(seen), 'scored clip')} shows {count(max(seen), 'beat')}"


def _no_time(found: Sequence[tuple[ClipScore, float | None]], beats: int) -> str:
    """``the longest of 3 clips gives each 0.5 s``; only where no score says what was seen."""
    known = [duration_s for score, duration_s in found if score.score.score10 is None and duration_s is not None]
    if len(known) < len(found) or max(known) / beats >= SHORTEST_BEAT_S:
        return ""
    return f"the longest of {count(len(known), 'clip')} gives each {max(known) / beats:.1f} s"


def _beats_seen(score: ClipScore) -> int:
    """A dead clip shows none."""
    parts = score.score.parts
    return sum((beat.best or 0.0) >= SEEN for beat in parts.beats) if parts else 0
