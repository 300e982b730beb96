"""The executive read: what the sweep proved, each sentence with the rows and plots that prove it. Only from data; pure.

The operator's notes are in `notes`, the words that both use in `wording`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from screentest.records import DeviceProof, FailureClass, Job, JobState, SweepRecord
from screentest.table import latency_text
from screentest_reporter import ranking
from screentest_reporter.energy import wh_text
from screentest_reporter.energy_ledger import Ledger
from screentest_reporter.model_table import ReportRow
from screentest_reporter.scores import Scores
from screentest_reporter.scoring import SEEN
from screentest_reporter.sweeps import SweepState, failures
from screentest_reporter.wording import are, capital, count, listing

RANDOM_WEIGHTS_BADGE = "random weights: shows what runs, not how a picture looks"
# How much more of the style than of the story there must be before it is worth a sentence; 0..1.
MOOD_OVER_STORY = 0.25
MOST_ROW_LINKS = 12

# What kind of trouble a class is: the reader of a table of ten wants three words, not ten classes.
FAMILY: Final[dict[FailureClass, str]] = {
    **dict.fromkeys(
        (FailureClass.OOM_LOAD, FailureClass.OOM_ENCODE, FailureClass.OOM_DENOISE, FailureClass.OOM_DECODE),
        "memory pressure",
    ),
    FailureClass.HOST_OOM: "memory pressure",
    **dict.fromkeys((FailureClass.TIMEOUT, FailureClass.STALLED), "running out of time"),
    **dict.fromkeys(
        (FailureClass.BAD_KWARGS, FailureClass.LAYOUT, FailureClass.CHANNELS, FailureClass.CONDITIONING),
        "adapter or API mismatch",
    ),
    **dict.fromkeys(
        (FailureClass.NAN, FailureClass.TRUNCATED, FailureClass.UNDECODABLE, FailureClass.ENCODE), "a broken picture"
    ),
    **dict.fromkeys(
        (FailureClass.UPLOAD, FailureClass.GPU_FAULT, FailureClass.INFRASTRUCTURE), "the machine, not the model"
    ),
    FailureClass.PREFLIGHT_REFUSED: "refusal before the start",
    FailureClass.CANCELLED: "a person's wish",
    FailureClass.CRASHED: "a crash",
    FailureClass.UNCLASSIFIED: "a failure without a class",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Where on the page a sentence is proven."""

    anchor: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    text: str
    proofs: tuple[Proof, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One group of the executive read."""

    title: str
    sentences: tuple[Sentence, ...]


TABLE = Proof(anchor="table", label="model table")
HEAT_MAP = Proof(anchor="elements", label="heat map")
VITALS = Proof(anchor="vitals", label="vitals")
ENERGY = Proof(anchor="energy", label="energy ledger")
PROVENANCE = Proof(anchor="provenance", label="provenance")


def row_proofs(rows: Sequence[ReportRow]) -> tuple[Proof, ...]:
    """A link to each row, or to the table where they are many."""
    if len(rows) > MOST_ROW_LINKS:
        return (TABLE,)
    return tuple(Proof(anchor=f"row-{row.row.job_id}", label=row.row.model) for row in rows)


def read(state: SweepState, rows: Sequence[ReportRow], scores: Scores, ledger: Ledger) -> tuple[Reading, ...]:
    """The executive read in its groups; a group without a sentence is left out."""
    record = state.record
    assert record is not None, "a report is made of a sweep with its record"
    groups = (
        ("What the sweep proved", _proved(state, rows, scores, ledger)),
        ("By task", _by_task(state, rows)),
        ("By failure class", _by_class(state, rows)),
        ("What this sweep can and cannot say", _limits(state, record, rows, scores)),
    )
    readings = (Reading(title=title, sentences=tuple(sentences)) for title, sentences in groups)
    return tuple(reading for reading in readings if reading.sentences)


# ---- what it proved


def _proved(state: SweepState, rows: Sequence[ReportRow], scores: Scores, ledger: Ledger) -> Iterator[Sentence]:
    yield _plumbing(state, rows)
    yield from _unreadable(rows)
    yield from _returned(rows)
    yield from _best(rows, scores)
    yield from _mood(rows)
    yield from _never_shown(rows)
    yield from _keyframe(scores)
    yield from _flags(rows)
    yield from _latencies(rows)
    yield from _cost(ledger)
    yield from _second_tries(rows)


def _plumbing(state: SweepState, rows: Sequence[ReportRow]) -> Sentence:
    terminal = sum(job.state.is_terminal for job in state.jobs.values())
    clips = sum(row.clip is not None for row in rows)
    total = count(len(state.jobs), "job")
    if not state.is_final:
        return Sentence(text=f"The sweep is still running: {terminal} of {total} terminal so far.", proofs=(TABLE,))
    return Sentence(
        text=f"The queue and the depot worked: {terminal} of {total} reached a terminal state, "
        f"{count(clips, 'clip')} {are(clips)} in the depot.",
        proofs=(TABLE, PROVENANCE),
    )


def _unreadable(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    broken = [row for row in rows if row.pictures.error]
    if broken:
        named = listing([f"{row.row.model} ({row.pictures.error})" for row in broken])
        text = f"{count(len(broken), 'clip')} could not be read back from the depot: {named}."
        yield Sentence(text=text, proofs=row_proofs(broken))


def _returned(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    completed = [row for row in rows if row.clip is not None]
    if not completed:
        return
    named = listing([row.row.model for row in completed])
    share = f"{count(len(completed), 'row')} of {len(rows)} returned a clip"
    text = f"Every row of the table returned a clip: {named}." if len(completed) == len(rows) else f"{share}: {named}."
    yield Sentence(text=text, proofs=row_proofs(completed))


def _best(rows: Sequence[ReportRow], scores: Scores) -> Iterator[Sentence]:
    """Per prompt the lane with the highest mean; a tie is called one."""
    of_lane = {row.row.lane_id: row for row in rows}
    for prompt_index, ranked in sorted(scores.ranked.items()):
        best = next((lane for lane in ranked if lane.rank is not None), None)
        if best is None or best.lane_id not in of_lane or best.low is None or best.high is None:
            continue
        shown = [row for row in rows if row.row.lane_id == best.lane_id and row.row.prompt_index == prompt_index]
        where = f" for prompt {prompt_index + 1}" if len(scores.ranked) > 1 else ""
        text = (
            f"The highest score{where} is that of {of_lane[best.lane_id].lane_title}: "
            f"{best.score10:.1f}/10 ({best.low:.1f} to {best.high:.1f})"
        )
        ties = [of_lane[lane_id].lane_title for lane_id in best.tied_with if lane_id in of_lane]
        tie = f"; its interval overlaps that of {listing(ties)}, so this is a tie" if ties else ""
        yield Sentence(text=f"{text}{tie}.", proofs=row_proofs(shown))


def _mood(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    """Style against story, over the scored clips: means of the mean style presence and of B."""
    styles, stories = [], []
    for row in rows:
        parts = row.score.score.parts if row.score else None
        if row.score is None or parts is None or parts.story is None:
            continue
        of_clip = [s.presence for e, s in row.score.elements if e.kind == "style" and s and s.presence is not None]
        if of_clip:
            styles.append(sum(of_clip) / len(of_clip))
            stories.append(parts.story)
    if not styles:
        return
    style, story = sum(styles) / len(styles), sum(stories) / len(stories)
    if abs(style - story) < MOOD_OVER_STORY:
        return
    more, less = ("mood", "story") if style > story else ("story", "mood")
    yield Sentence(
        text=f"The {count(len(styles), 'scored clip')} follow the {more} better than the {less}: "
        f"style elements are present at {style:.2f} on average, the story at {story:.2f}.",
        proofs=(HEAT_MAP,),
    )


def _never_shown(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    """Judged in at least one clip, seen in none. A camera move is no thing to be shown, a negative is not missed."""
    highest: dict[str, float] = {}
    labels: dict[str, str] = {}
    for row in rows:
        for element, found in row.score.elements if row.score else ():
            if element.kind not in ("camera", "negative") and found is not None and found.presence is not None:
                highest[element.id] = max(found.presence, highest.get(element.id, 0.0))
                labels[element.id] = element.label
    missing = [labels[element_id] for element_id, presence in highest.items() if presence < SEEN]
    if missing:
        yield Sentence(text=f"No scored clip shows {listing(missing, last='or')}.", proofs=(HEAT_MAP,))


def _keyframe(scores: Scores) -> Iterator[Sentence]:
    for keyframe in scores.keyframe:
        missing = [element.label for element in keyframe.missing]
        if missing:
            judged = len(missing) + len(keyframe.shown)
            text = f"The source keyframe shows {len(keyframe.shown)} of {count(judged, 'element')} of its prompt"
            proof = Proof(anchor="keyframe", label="keyframe")
            yield Sentence(text=f"{text}; it lacks {listing(missing)}.", proofs=(proof,))


def _flags(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    flagged = [row for row in rows if row.clip_facts and row.clip_facts.flags]
    if flagged:
        named = [f"{row.row.model} ({', '.join(row.clip_facts.flags)})" for row in flagged if row.clip_facts]
        yield Sentence(text=f"Completed with a flag: {listing(named)}.", proofs=row_proofs(flagged))


def _latencies(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    known = [(row.row.latency_s, row) for row in rows if row.clip and row.row.latency_s is not None]
    if len(known) < 2:
        return
    fast_s, fast = min(known, key=lambda item: item[0])
    slow_s, slow = max(known, key=lambda item: item[0])
    yield Sentence(
        text=f"The fastest clip took {latency_text(fast_s)} ({fast.row.model}), "
        f"the slowest {latency_text(slow_s)} ({slow.row.model}).",
        proofs=row_proofs([fast, slow]),
    )


def _cost(ledger: Ledger) -> Iterator[Sentence]:
    if ledger.measured_wh is None:
        return
    failed = f", {wh_text(ledger.failed_wh)} of it on attempts without a clip" if ledger.failed_wh else ""
    at_least = "at least " if ledger.unmeasured else ""
    yield Sentence(
        text=f"The attempts took {at_least}{wh_text(ledger.measured_wh)} of GPU energy{failed}.", proofs=(ENERGY,)
    )


def _second_tries(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    retried = [row for row in rows if row.row.earlier]
    if retried:
        verb = "is" if len(retried) == 1 else "are"
        named = listing([row.row.model for row in retried])
        text = f"{count(len(retried), 'row')} {verb} a second or later try: {named}."
        yield Sentence(text=text, proofs=row_proofs(retried))


# ---- by task and by class


def _by_task(state: SweepState, rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    for task in dict.fromkeys(row.row.task for row in rows):
        of_task = [row for row in rows if row.row.task == task]
        yield Sentence(text=_task_text(task, of_task, state), proofs=row_proofs(of_task))


def _task_text(task: str, rows: Sequence[ReportRow], state: SweepState) -> str:
    completed = sum(row.clip is not None for row in rows)
    ended = [state.jobs[row.row.job_id] for row in rows if state.jobs[row.row.job_id].state.is_terminal]
    reasons = _family_text(ended)
    if completed == len(rows):
        return f"{task}: every row returned a clip ({completed} of {len(rows)})."
    if not completed and len(ended) == len(rows):
        return f"{task} is not ready as configured: none of {count(len(rows), 'row')} returned a clip ({reasons})."
    because = f" ({reasons})" if reasons else ""
    return f"{task}: {completed} of {count(len(rows), 'row')} returned a clip{because}."


def _family_text(jobs: Sequence[Job]) -> str:
    """``4 by adapter or API mismatch, 1 by memory pressure``, the most frequent first."""
    tally: dict[str, int] = {}
    for failure_class, found in failures(list(jobs)).items():
        family = FAMILY[failure_class]
        tally[family] = tally.get(family, 0) + len(found)
    ordered = sorted(tally.items(), key=lambda item: -item[1])
    return ", ".join(f"{number} lost to {family}" for family, number in ordered)


def _by_class(state: SweepState, rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    row_of = {row.row.job_id: row for row in rows}
    counting = [state.jobs[row.row.job_id] for row in rows]
    for failure_class, jobs in failures(counting).items():
        affected = [row_of[job.spec.job_id] for job in jobs]
        known = [row.row.latency_s for row in affected if row.row.latency_s is not None]
        lost = f", {latency_text(sum(known))} spent" if known else ", refused before any time was spent"
        named = listing([row.row.model for row in affected])
        yield Sentence(
            text=f"{failure_class.value}: {count(len(affected), 'row')} ({named}){lost}.", proofs=row_proofs(affected)
        )


# ---- what it can and cannot say


def _limits(state: SweepState, record: SweepRecord, rows: Sequence[ReportRow], scores: Scores) -> Iterator[Sentence]:
    yield from _weights(record)
    yield from _seeds(record)
    yield from _marks(rows)
    yield from _shared(state, rows)
    yield from _skipped(record)
    yield from _judged(rows, scores)
    yield from _greyed(scores)


def _weights(record: SweepRecord) -> Iterator[Sentence]:
    weights = record.spec.weights
    if weights.is_random:
        yield Sentence(
            text=f"The weights were random ({weights.value}): this sweep shows what runs, how long it takes and where "
            "it fails, and nothing about how a model's pictures look."
        )


def _seeds(record: SweepRecord) -> Iterator[Sentence]:
    """Random weights are not ranked at all, which `_weights` says."""
    seeds, prompts = len(record.spec.seeds), len(record.spec.prompts)
    if seeds < ranking.LEAST_SEEDS and not record.spec.weights.is_random:
        yield Sentence(
            text=f"{capital(count(seeds, 'seed'))} and {count(prompts, 'prompt')} can eliminate a lane but not rank "
            f"those that remain: a rank needs {ranking.LEAST_SEEDS} seeds."
        )


def _marks(rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    marked = [row for row in rows if row.row.has_changes]
    if marked:
        text = f"{count(len(marked), 'row')} ran with other parameters than the sweep asked for"
        yield Sentence(
            text=f"{text}, which makes rows harder to compare; footnotes say which.", proofs=row_proofs(marked)
        )


def _shared(state: SweepState, rows: Sequence[ReportRow]) -> Iterator[Sentence]:
    shared = [row for row in rows if any(a.shared_gpu for a in state.jobs[row.row.job_id].attempts[-1:])]
    if shared:
        text = f"{count(len(shared), 'row')} shared the GPU with a process that is not ours: latency, memory and energy"
        yield Sentence(text=f"{text} of these are upper bounds.", proofs=row_proofs(shared))


def _skipped(record: SweepRecord) -> Iterator[Sentence]:
    lanes = [lane.lane_title for lane in record.skipped]
    if lanes:
        verb = "was" if len(lanes) == 1 else "were"
        proof = Proof(anchor="skipped", label="skipped lanes")
        text = f"{count(len(lanes), 'lane')} {verb} left out before queueing: {listing(lanes)}."
        yield Sentence(text=text, proofs=(proof,))


def _judged(rows: Sequence[ReportRow], scores: Scores) -> Iterator[Sentence]:
    clips = [row for row in rows if row.clip is not None]
    scored = [row for row in clips if row.score is not None and row.score.score.score10 is not None]
    if not clips:
        return
    if not scored:
        reasons = dict.fromkeys(row.score.score.not_scored for row in clips if row.score and row.score.score.not_scored)
        why = f"{scores.pending} judgements are pending" if scores.pending else listing(list(reasons)[:3])
        yield Sentence(text=f"Prompt match is not scored: {why or scores.not_scored}.")
        return
    if len(scored) < len(clips):
        yield Sentence(text=f"{len(scored)} of {count(len(clips), 'clip')} are scored.", proofs=(TABLE,))
    badges = dict.fromkeys(badge for row in scored if row.score for badge in row.score.score.badges)
    for badge in badges:
        if text := _BADGES.get(badge):
            yield Sentence(text=text)


_BADGES: Final = {
    "uncalibrated": "The scores are uncalibrated: no ratings of people were used to correct them, so their intervals "
    "are at least 1.5 points to either side.",
    "draft rubric": "The rubric is a draft that nobody has approved: a score says how a clip follows the draft.",
    "preliminary": "Fewer than 30 people's ratings are in: they are preliminary.",
    "test judge": "The judge is a test judge made for synthetic shapes: its scores prove the plumbing, nothing else.",
}


def _greyed(scores: Scores) -> Iterator[Sentence]:
    for judge in scores.judges:
        if judge.verdict.is_greyed:
            yield Sentence(
                text=f"The scores of {judge.judge_title} are greyed: {judge.verdict.why_greyed}.",
                proofs=(Proof(anchor="controls", label="controls"),),
            )


# ---- how it closed


def closing_line(state: SweepState) -> str | None:
    """``10 of 10 jobs terminal, 10 clips under <prefix>, process table clean at <time>``; None until it has settled."""
    if not state.is_final or state.settlement is None:
        return None
    settled = state.settlement.body
    terminal = sum(job.state.is_terminal for job in state.jobs.values())
    clips = sum(job.state is JobState.COMPLETED for job in state.jobs.values())
    tables = "; ".join(_process_table(proof, state, len(settled.proofs) > 1) for proof in settled.proofs)
    jobs = f"{terminal} of {count(len(state.jobs), 'job')} terminal"
    where = f"{count(clips, 'clip')} under {state.sweep_id}/clips/"
    return f"{jobs}, {where}, {tables or 'process table not asked: no device was used'}"


def _process_table(device: DeviceProof, state: SweepState, name_device: bool) -> str:
    where = f" of {device.host}/{device.device}" if name_device else ""
    proof = device.proof
    if proof is None:
        return f"process table{where} unknown: telemetry did not answer"
    at = f"{proof.stamp.at:%Y-%m-%dT%H:%M:%SZ}"
    if not proof.clean:
        return f"process table{where} NOT clean at {at}: {proof.reason}"
    warm = [
        state.runner_lanes.get((holder.pid, holder.start_ticks), "another sweep")
        for holder in (proof.lock_holders if proof.lock_held else ())
    ]
    return f"process table{where} clean at {at}" + (f" but for the warm runner of {listing(warm)}" if warm else "")
