"""What follows when jobs end: the sweep settles, and its clips are judged. Pure.

A judge job is written as soon as what it looks at exists; when it may run is for `behind` to say. Its id follows from
what it asks about what, so a restart finds the same jobs again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from screentest.devices import is_cpu
from screentest.records import (
    JobSpec,
    JobState,
    Judged,
    JudgePlan,
    JudgePurpose,
    Keyframe,
    RubricRef,
    SweepRecord,
    SweepSettled,
    Task,
    Weights,
)
from screentest_scheduler.transitions import Entry

# Nothing is there to judge: pixels alone prove it. Frozen is not among them: a still picture may show the whole scene.
DEAD_FLAGS = frozenset({"black", "flat", "noise"})
PIXELS = "a"


# ---- the sweep settles


def must_settle(entries: Iterable[Entry], settled: SweepSettled | None) -> bool:
    """Every job is terminal, and the last settlement (if any) does not know all of them yet (a retry came after)."""
    states = [entry.state for entry in entries]
    if not states or not all(state.is_terminal for state in states):
        return False
    return settled is None or settled.jobs != len(states)


def clips(entries: Iterable[Entry]) -> int:
    """How many jobs of the sweep left a clip."""
    return sum(entry.state is JobState.COMPLETED for entry in entries)


def devices(entries: Iterable[Entry]) -> tuple[tuple[str, str], ...]:
    """(host, device) of every device the sweep used, in a stable order."""
    return tuple(sorted({(entry.spec.host, entry.spec.device) for entry in entries}))


# ---- what is asked of whom


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """One wish to have the sweep judged: its record's own, or a later one. ``sequence``: of the event that says so."""

    judges: tuple[JudgePlan, ...]
    rubrics: tuple[RubricRef, ...]
    sequence: int

    def rubric(self, prompt_index: int) -> RubricRef | None:
        return next((ref for ref in self.rubrics if ref.prompt_index == prompt_index), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One judge and the rubric it is asked. ``since``: sequence of the last wish; ``position``: among the judges."""

    judge: JudgePlan
    rubric: RubricRef
    since: int
    position: int


def current_rubric(judgings: Sequence[Judging], prompt_index: int) -> RubricRef | None:
    """Of the last wish; None where the prompt has none."""
    return judgings[-1].rubric(prompt_index) if judgings else None


def asked(judgings: Sequence[Judging], prompt_index: int) -> tuple[Asked, ...]:
    """Every judge that was ever wished for with the rubric that the prompt has now; one of an older rubric is not."""
    rubric = current_rubric(judgings, prompt_index)
    if rubric is None:
        return ()
    found: dict[str, Asked] = {}
    for judging in judgings:
        own = judging.rubric(prompt_index)
        if own is None or own.rubric_sha256 != rubric.rubric_sha256:
            continue
        for judge in judging.judges:
            earlier = found.get(judge.lane_id)
            position = earlier.position if earlier else len(found)
            found[judge.lane_id] = Asked(judge=judge, rubric=rubric, since=judging.sequence, position=position)
    return tuple(found.values())


# ---- the judge jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A sweep as its judging sees it.

    ``known``: jobs by id, among them its judge jobs, which ``judge_ids`` names. ``open_clips``: by judge, how many
    clips it has yet to judge. ``stranger``: a rubric of no prompt of it.
    """

    record: SweepRecord
    judgings: tuple[Judging, ...]
    known: Mapping[str, Entry]
    judge_ids: Sequence[str]
    open_clips: Mapping[str, int]
    stranger: RubricRef
    is_settled: bool

    @property
    def cells(self) -> int:
        spec = self.record.spec
        return len(self.record.lanes) * len(spec.prompts) * len(spec.seeds)


def judge_jobs(scene: Scene, made: Iterable[Entry]) -> tuple[JobSpec, ...]:
    """Every judge job that must be written now. ``made``: completed generation jobs that may not be judged yet."""
    return (*_of_keyframe(scene), *(job for entry in made for job in _of_clip(scene, entry)), *_of_controls(scene))


def _of_clip(scene: Scene, entry: Entry) -> Iterator[JobSpec]:
    clip = entry.clip
    if clip is None:
        return
    is_for_pixels = entry.spec.weights.is_random or bool(DEAD_FLAGS & set(entry.flags))
    for item in asked(scene.judgings, entry.spec.prompt_index):
        if is_for_pixels and item.judge.tier != PIXELS:
            continue
        judged = Judged(
            purpose=JudgePurpose.CLIP,
            job_id=entry.spec.job_id,
            lane_id=entry.spec.lane_id,
            key=clip.key,
            sha256=clip.sha256,
            size_bytes=clip.size_bytes,
            rubric=item.rubric,
        )
        yield from _due(scene, item, _first_try(scene, item, entry.spec, judged))


def _of_keyframe(scene: Scene) -> Iterator[JobSpec]:
    """One per judge and prompt, of a keyframe that lanes start from; an opinion on random weights is not asked for."""
    record = scene.record
    keyframe = record.spec.keyframe
    starts = next((lane for lane in record.lanes if lane.task is Task.I2V), None)
    if keyframe is None or starts is None or record.spec.weights.is_random:
        return
    for prompt_index in range(len(record.spec.prompts)):
        for item in asked(scene.judgings, prompt_index):
            if item.judge.tier != PIXELS:
                judged = _judged_keyframe(keyframe, item.rubric)
                yield from _due(scene, item, _of_picture(scene, item, keyframe, prompt_index, judged))


def _judged_keyframe(keyframe: Keyframe, rubric: RubricRef) -> Judged:
    return Judged(
        purpose=JudgePurpose.KEYFRAME,
        job_id="",
        lane_id="",
        key=keyframe.key,
        sha256=keyframe.sha256,
        size_bytes=keyframe.size_bytes,
        rubric=rubric,
    )


def _of_controls(scene: Scene) -> Iterator[JobSpec]:
    """One per judge and prompt, of the clip that shows most, once every clip of that prompt was judged."""
    if not scene.is_settled:
        return
    for prompt_index in range(len(scene.record.spec.prompts)):
        for item in asked(scene.judgings, prompt_index):
            if item.judge.tier == PIXELS or scene.open_clips.get(item.judge.lane_id):
                continue
            best = _most_present(scene, item)
            if best is not None and best.spec.judged is not None:
                other = _wrong_prompt(scene, item.rubric)
                judged = replace(best.spec.judged, purpose=JudgePurpose.CONTROLS, other_rubric=other)
                yield from _due(scene, item, _first_try(scene, item, best.spec, judged))


def _most_present(scene: Scene, item: Asked) -> Entry | None:
    """The judgement to make the controls of; None where none can be used, or one was called off.

    Controls that there are already stand, of whichever clip.
    """
    judgements = _entries(scene, item, JudgePurpose.CLIP)
    if any(entry.state is JobState.CANCELLED and entry.sequence > item.since for entry in judgements):
        return None
    if any(not _may_repeat(entry, item) for entry in _entries(scene, item, JudgePurpose.CONTROLS)):
        return None
    found = [(entry.presence, -entry.spec.ordinal, entry) for entry in judgements if entry.presence is not None]
    return max(found, key=lambda each: each[:2])[2] if found else None


def _entries(scene: Scene, item: Asked, purpose: JudgePurpose) -> list[Entry]:
    """What this judge was asked about this prompt with this rubric."""
    return [
        entry
        for entry in (scene.known[job_id] for job_id in scene.judge_ids)
        if entry.spec.lane_id == item.judge.lane_id
        and entry.spec.judged is not None
        and entry.spec.judged.purpose is purpose
        and entry.spec.judged.rubric.rubric_sha256 == item.rubric.rubric_sha256
        and entry.spec.prompt_index == item.rubric.prompt_index
    ]


def _wrong_prompt(scene: Scene, rubric: RubricRef) -> RubricRef:
    """The next prompt's rubric where the sweep has one that asks something else."""
    prompts = len(scene.record.spec.prompts)
    for step in range(1, prompts):
        other = current_rubric(scene.judgings, (rubric.prompt_index + step) % prompts)
        if other is not None and other.rubric_sha256 != rubric.rubric_sha256:
            return other
    return replace(scene.stranger, prompt_index=prompts)


def expected_controls(scene: Scene, due: Iterable[JobSpec]) -> Iterator[JobSpec]:
    """What will follow from clips that are due, to count its cost: one per judge and prompt, of any clip."""
    told = set()
    for spec in due:
        judged, key = spec.judged, (spec.lane_id, spec.prompt_index)
        tiers = {item.judge.lane_id: item.judge.tier for item in asked(scene.judgings, spec.prompt_index)}
        if judged is None or judged.purpose is not JudgePurpose.CLIP or tiers[spec.lane_id] == PIXELS or key in told:
            continue
        told.add(key)
        other = _wrong_prompt(scene, judged.rubric)
        yield replace(spec, judged=replace(judged, purpose=JudgePurpose.CONTROLS, other_rubric=other))


def _due(scene: Scene, item: Asked, first: JobSpec) -> Iterator[JobSpec]:
    """The job to write: the first try, or the next one where somebody wished for it again after the last had failed."""
    spec = first
    while (entry := scene.known.get(spec.job_id)) is not None:
        if not _may_repeat(entry, item):
            return
        spec = _next_try(first, spec)
    yield spec


def _may_repeat(entry: Entry, item: Asked) -> bool:
    """Ended before the last wish, without a judgement or with one of an older version of the judge's file."""
    if not entry.state.is_terminal or entry.sequence > item.since:
        return False
    return entry.state is not JobState.COMPLETED or entry.spec.lane_digest != item.judge.lane_digest


def _next_try(first: JobSpec, last: JobSpec) -> JobSpec:
    index = last.retry_index + 1
    assert first.judged is not None
    job_id = judge_job_id(first.sweep_id, first.lane_id, first.judged, index)
    return replace(first, job_id=job_id, retry_of=last.job_id, retry_index=index)


def judge_job_id(sweep_id: str, judge_lane_id: str, judged: Judged, retry_index: int = 0) -> str:
    """``judge-clip-`` and 12 hex of who is asked what about what; unique over all sweeps."""
    asked_what = (sweep_id, judge_lane_id, judged.job_id, judged.purpose.value, judged.rubric.rubric_sha256)
    text = "/".join((*asked_what, str(judged.rubric.prompt_index), str(retry_index)))
    return f"judge-{judged.purpose.value}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _first_try(scene: Scene, item: Asked, clip: JobSpec, judged: Judged) -> JobSpec:
    """``clip``: the job that made it, or an earlier judgement of it: size, frames and fps are those it should have."""
    judge = item.judge
    place = clip.ordinal if judged.purpose is JudgePurpose.CLIP else scene.cells + clip.prompt_index
    return replace(
        clip,
        job_id=judge_job_id(clip.sweep_id, judge.lane_id, judged),
        lane_id=judge.lane_id,
        lane_title=judge.lane_title,
        task=Task.JUDGE,
        ordinal=_base(scene, item) + len(scene.record.spec.prompts) + place,
        weights=Weights.HUB,  # the judge's own
        lane_digest=judge.lane_digest,
        host=judge.host,
        device=judge.device,
        steps=0,
        call=(),
        marks=(),
        limits=judge.limits,
        rungs=(),
        weights_repo=judge.weights_repo,
        weights_revision=judge.weights_revision,
        retry_of=None,
        retry_index=0,
        expires_at=None,
        first_rung=0,
        memory_cap_gib=None,
        judged=judged,
    )


def _of_picture(scene: Scene, item: Asked, keyframe: Keyframe, prompt_index: int, judged: Judged) -> JobSpec:
    record, judge = scene.record, item.judge
    return JobSpec(
        job_id=judge_job_id(record.sweep_id, judge.lane_id, judged),
        sweep_id=record.sweep_id,
        lane_id=judge.lane_id,
        lane_title=judge.lane_title,
        task=Task.JUDGE,
        ordinal=_base(scene, item) + prompt_index,
        prompt_index=prompt_index,
        prompt=record.spec.prompts[prompt_index],
        seed=0,
        weights=Weights.HUB,
        keyframe=keyframe,
        lane_digest=judge.lane_digest,
        host=judge.host,
        device=judge.device,
        width_px=keyframe.width_px,
        height_px=keyframe.height_px,
        num_frames=1,
        steps=0,
        fps=1.0,
        call=(),
        marks=(),
        limits=judge.limits,
        rungs=(),
        weights_repo=judge.weights_repo,
        weights_revision=judge.weights_revision,
        priority=record.spec.priority,
        judged=judged,
    )


def _stride(scene: Scene) -> int:
    """Ordinals of one judge: its keyframes, its clips, its controls. A judge that is loaded does all of its work."""
    return scene.cells + 2 * len(scene.record.spec.prompts)


def _base(scene: Scene, item: Asked) -> int:
    return _stride(scene) * (item.position + 1)


# ---- when a judge job may run


def behind(spec: JobSpec, *, is_settled: bool, is_prioritised: bool, open_keyframes: Iterable[str]) -> str:
    """What must be over before this judge job starts, in words; empty when nothing must.

    ``open_keyframes``: judges that have not answered about the keyframe yet.
    """
    if spec.judged is None:
        return ""
    if not is_cpu(spec.device) and not is_settled and not is_prioritised:
        return "judged when the sweep's clips are made"
    is_clip = spec.judged.purpose is not JudgePurpose.KEYFRAME
    return "the keyframe is judged first" if is_clip and spec.lane_id in open_keyframes else ""
