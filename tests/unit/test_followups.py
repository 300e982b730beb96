"""When a sweep settles, what its settlement counts, and which judge jobs follow from its clips."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest.records import (
    JobSpec,
    JobState,
    JudgePlan,
    JudgePurpose,
    Keyframe,
    RubricRef,
    SweepSettled,
    Task,
    Weights,
)
from screentest_scheduler import followups, planning, transitions
from screentest_scheduler.followups import Judging, Scene
from screentest_scheduler.transitions import Entry
from tests.made_judgings import KEYFRAME, PIXELS, SIGLIP, STRANGER, VLM, completed, ended, judge, ref
from tests.made_sweeps import plan, record, specs, stamp

[SPEC] = specs(record([plan("wan", "Wan")]))
NEW = transitions.submitted_entry(SPEC, stamp(0), 1)


def entries(*states: JobState) -> list[Entry]:
    return [replace(NEW, state=state) for state in states]


def settled(jobs: int) -> SweepSettled:
    return SweepSettled(jobs=jobs, clips=0, proofs=())


@pytest.mark.parametrize("state", list(JobState))
def test_a_sweep_settles_when_every_job_is_terminal(state: JobState) -> None:
    assert followups.must_settle(entries(JobState.COMPLETED, state), None) == state.is_terminal


def test_a_sweep_without_jobs_does_not_settle() -> None:
    """Its jobs may not be written yet."""
    assert not followups.must_settle([], None)


def test_a_settled_sweep_does_not_settle_again() -> None:
    assert not followups.must_settle(entries(JobState.FAILED, JobState.COMPLETED), settled(2))


def test_a_retry_reopens_the_settlement_until_it_has_ended() -> None:
    assert not followups.must_settle(entries(JobState.FAILED, JobState.RUNNING), settled(1))
    assert followups.must_settle(entries(JobState.FAILED, JobState.COMPLETED), settled(1))


def test_only_completed_jobs_leave_a_clip() -> None:
    assert followups.clips(entries(*JobState)) == 1
    assert followups.clips(entries(JobState.COMPLETED, JobState.COMPLETED, JobState.FAILED)) == 2


def test_every_device_of_a_sweep_is_proven_once_in_a_stable_order() -> None:
    used = [("b", "gpu-0"), ("a", "gpu-1"), ("b", "gpu-0"), ("a", "cpu-0")]
    jobs = [replace(NEW, spec=replace(SPEC, host=host, device=device)) for host, device in used]
    assert followups.devices(jobs) == (("a", "cpu-0"), ("a", "gpu-1"), ("b", "gpu-0"))


# ---- judge jobs

RUBRIC = ref("a")
OTHER = ref("b", 1)


def scene(
    *judgings: Judging,
    known: tuple[Entry, ...] = (),
    prompts: tuple[str, ...] = ("a door",),
    weights: Weights = Weights.HUB,
    keyframe: Keyframe | None = None,
    is_settled: bool = False,
) -> Scene:
    lanes = [plan("wan", "Wan"), plan("svd", "SVD", Task.I2V)] if keyframe else [plan("wan", "Wan"), plan("ltx", "LTX")]
    by_id = {entry.spec.job_id: entry for entry in known}
    open_clips: dict[str, int] = {}
    for entry in known:
        is_clip = entry.spec.judged is not None and entry.spec.judged.purpose is JudgePurpose.CLIP
        if is_clip and not entry.state.is_terminal:
            open_clips[entry.spec.lane_id] = open_clips.get(entry.spec.lane_id, 0) + 1
    return Scene(
        record=record(lanes, prompts=prompts, weights=weights, keyframe=keyframe),
        judgings=judgings,
        known=by_id,
        judge_ids=tuple(by_id),
        open_clips=open_clips,
        stranger=STRANGER,
        is_settled=is_settled,
    )


def judging(*judges: JudgePlan, rubrics: tuple[RubricRef, ...] = (RUBRIC,), sequence: int = 1) -> Judging:
    return Judging(judges=judges, rubrics=rubrics, sequence=sequence)


def clips_of(seen: Scene, flags: tuple[str, ...] = ()) -> list[Entry]:
    return [completed(spec, flags=flags) for spec in planning.jobs(seen.record)]


def told(jobs: tuple[JobSpec, ...]) -> list[tuple[str, str, str]]:
    found = []
    for job in jobs:
        assert job.judged is not None
        found.append((job.lane_id, job.judged.purpose.value, job.judged.lane_id))
    return found


def test_every_judge_is_asked_about_every_clip_in_the_order_in_which_it_works() -> None:
    seen = scene(judging(PIXELS, SIGLIP))
    jobs = sorted(followups.judge_jobs(seen, clips_of(seen)), key=lambda job: job.ordinal)
    assert told(tuple(jobs)) == [
        ("pixels", "clip", "wan"),
        ("pixels", "clip", "ltx"),
        ("siglip", "clip", "wan"),
        ("siglip", "clip", "ltx"),
    ]
    assert min(job.ordinal for job in jobs) >= seen.cells
    assert {(job.task, job.weights, job.rungs) for job in jobs} == {(Task.JUDGE, Weights.HUB, ())}
    assert [(job.width_px, job.num_frames, job.fps) for job in jobs] == [(96, 25, 16)] * 4


def test_a_judge_job_has_the_same_id_whenever_it_is_derived() -> None:
    first, again = (scene(judging(PIXELS)), scene(judging(PIXELS, sequence=7)))
    ids = [job.job_id for job in followups.judge_jobs(first, clips_of(first))]
    assert ids == [job.job_id for job in followups.judge_jobs(again, clips_of(again))]
    assert len(set(ids)) == 2
    other_rubric = scene(judging(PIXELS, rubrics=(ref("c"),)))
    assert not {*ids} & {job.job_id for job in followups.judge_jobs(other_rubric, clips_of(other_rubric))}


@pytest.mark.parametrize(("flag", "judges"), [("black", 1), ("flat", 1), ("noise", 1), ("frozen", 2)])
def test_a_dead_clip_is_left_to_pixels(flag: str, judges: int) -> None:
    seen = scene(judging(PIXELS, SIGLIP))
    assert len(followups.judge_jobs(seen, clips_of(seen, (flag,))[:1])) == judges


def test_a_clip_on_random_weights_is_left_to_pixels_and_its_keyframe_to_nobody() -> None:
    seen = scene(judging(PIXELS, SIGLIP), weights=Weights.MINIATURE, keyframe=KEYFRAME)
    assert told(followups.judge_jobs(seen, clips_of(seen))) == [("pixels", "clip", "wan"), ("pixels", "clip", "svd")]


def test_a_job_that_is_judged_already_is_not_written_twice() -> None:
    seen = scene(judging(PIXELS))
    clips = clips_of(seen)
    known = tuple(ended(job, JobState.RUNNING) for job in followups.judge_jobs(seen, clips)[:1])
    assert told(followups.judge_jobs(scene(judging(PIXELS), known=known), clips)) == [("pixels", "clip", "ltx")]


def test_a_prompt_without_a_rubric_is_not_judged() -> None:
    seen = scene(judging(PIXELS, rubrics=(OTHER,)), prompts=("?", "a door"))
    jobs = followups.judge_jobs(seen, clips_of(seen))
    assert {job.prompt_index for job in jobs} == {1}


# ---- the keyframe comes first


def test_the_keyframe_is_asked_about_at_once_by_those_who_know_what_a_picture_shows() -> None:
    seen = scene(judging(PIXELS, SIGLIP, VLM), keyframe=KEYFRAME)
    jobs = followups.judge_jobs(seen, ())
    assert told(jobs) == [("siglip", "keyframe", ""), ("vlm", "keyframe", "")]
    assert [(job.width_px, job.num_frames) for job in jobs] == [(640, 1)] * 2
    assert max(job.ordinal for job in jobs if job.lane_id == "siglip") < min(
        job.ordinal for job in followups.judge_jobs(seen, clips_of(seen)) if told((job,))[0][:2] == ("siglip", "clip")
    )


def test_clips_wait_for_the_keyframe_of_their_judge_only() -> None:
    seen = scene(judging(PIXELS, SIGLIP), keyframe=KEYFRAME)
    of = {(job.lane_id, told((job,))[0][1]): job for job in followups.judge_jobs(seen, clips_of(seen))}

    def waits(job: JobSpec) -> str:
        return followups.behind(job, is_settled=False, is_prioritised=False, open_keyframes=["siglip"])

    assert waits(of["siglip", "clip"]) == "the keyframe is judged first"
    assert waits(of["siglip", "keyframe"]) == ""
    assert waits(of["pixels", "clip"]) == ""


@pytest.mark.parametrize(
    ("is_settled", "is_prioritised", "waits"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_a_judge_on_the_gpu_waits_for_the_clips_of_the_sweep(
    is_settled: bool, is_prioritised: bool, waits: bool
) -> None:
    seen = scene(judging(PIXELS, VLM))
    pixels, vlm = followups.judge_jobs(seen, clips_of(seen)[:1])
    more = {"is_settled": is_settled, "is_prioritised": is_prioritised, "open_keyframes": ()}
    assert bool(followups.behind(vlm, **more)) is waits  # type: ignore[arg-type]
    assert followups.behind(pixels, **more) == ""  # type: ignore[arg-type]
    assert followups.behind(SPEC, **more) == ""  # type: ignore[arg-type]


# ---- controls come last


def judged_scene(*states: JobState, presences: tuple[float | None, ...], **more: object) -> Scene:
    """Two clips judged by pixels and siglip; the states are siglip's."""
    plain = scene(judging(PIXELS, SIGLIP), **more)  # type: ignore[arg-type]
    jobs = [job for job in followups.judge_jobs(plain, clips_of(plain)) if job.lane_id == "siglip"]
    known = tuple(ended(job, *each[:1], presence=each[1]) for job, *each in zip(jobs, states, presences, strict=True))
    return scene(judging(PIXELS, SIGLIP), known=known, is_settled=True, **more)  # type: ignore[arg-type]


def test_controls_are_made_of_the_clip_that_shows_most() -> None:
    seen = judged_scene(JobState.COMPLETED, JobState.COMPLETED, presences=(0.2, 0.7))
    [controls] = followups.judge_jobs(seen, ())
    assert told((controls,)) == [("siglip", "controls", "ltx")]
    assert controls.judged is not None
    assert controls.judged.other_rubric == replace(STRANGER, prompt_index=1)
    known = (*seen.known.values(), ended(controls, JobState.QUEUED))
    assert followups.judge_jobs(scene(judging(PIXELS, SIGLIP), known=known, is_settled=True), ()) == ()


def test_the_wrong_prompt_is_another_prompt_of_the_sweep_where_there_is_one() -> None:
    rubrics = (RUBRIC, OTHER)
    plain = scene(judging(SIGLIP, rubrics=rubrics), prompts=("a door", "a boat"))
    jobs = followups.judge_jobs(plain, clips_of(plain))
    known = tuple(ended(job, JobState.COMPLETED, presence=0.5) for job in jobs)
    seen = scene(judging(SIGLIP, rubrics=rubrics), prompts=("a door", "a boat"), known=known, is_settled=True)
    others = {job.prompt_index: job.judged.other_rubric for job in followups.judge_jobs(seen, ()) if job.judged}
    assert others == {0: OTHER, 1: RUBRIC}


@pytest.mark.parametrize(
    ("states", "presences"),
    [
        ((JobState.COMPLETED, JobState.RUNNING), (0.7, None)),
        ((JobState.FAILED, JobState.FAILED), (None, None)),
        ((JobState.COMPLETED, JobState.CANCELLED), (0.7, None)),
        ((JobState.COMPLETED, JobState.COMPLETED), (None, None)),
    ],
)
def test_no_controls_while_clips_are_open_or_judging_was_called_off_or_nothing_can_be_used(
    states: tuple[JobState, ...], presences: tuple[float | None, ...]
) -> None:
    assert followups.judge_jobs(judged_scene(*states, presences=presences), ()) == ()


def test_no_controls_before_the_sweep_has_settled() -> None:
    seen = judged_scene(JobState.COMPLETED, JobState.COMPLETED, presences=(0.2, 0.7))
    assert followups.judge_jobs(replace(seen, is_settled=False), ()) == ()


def test_one_failed_judgement_takes_the_controls_from_nobody() -> None:
    seen = judged_scene(JobState.FAILED, JobState.COMPLETED, presences=(None, 0.4))
    assert told(followups.judge_jobs(seen, ())) == [("siglip", "controls", "ltx")]


# ---- asked again


def test_a_new_rubric_asks_only_the_judges_that_were_asked_for_it() -> None:
    new = ref("c")
    seen = scene(judging(PIXELS, SIGLIP), judging(PIXELS, rubrics=(new,), sequence=50))
    jobs = followups.judge_jobs(seen, clips_of(seen))
    assert {job.lane_id for job in jobs} == {"pixels"}
    assert {job.judged.rubric for job in jobs if job.judged} == {new}


def test_another_judge_for_the_same_rubric_leaves_the_first_one_asked() -> None:
    seen = scene(judging(PIXELS, SIGLIP), judging(PIXELS, VLM, sequence=50))
    assert [item.judge.lane_id for item in followups.asked(seen.judgings, 0)] == ["pixels", "siglip", "vlm"]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.REFUSED])
def test_what_failed_is_tried_again_when_somebody_asks_after_it(state: JobState) -> None:
    plain = scene(judging(PIXELS))
    [first, _] = followups.judge_jobs(plain, clips_of(plain))
    known = (ended(first, state, sequence=20),)
    clip = clips_of(plain)[:1]
    assert followups.judge_jobs(scene(judging(PIXELS), known=known), clip) == ()
    [again] = followups.judge_jobs(scene(judging(PIXELS), judging(PIXELS, sequence=30), known=known), clip)
    assert (again.retry_of, again.retry_index) == (first.job_id, 1)
    assert again.job_id != first.job_id
    known = (*known, ended(again, state, sequence=40))
    assert followups.judge_jobs(scene(judging(PIXELS), judging(PIXELS, sequence=30), known=known), clip) == ()


def test_a_judge_whose_file_has_changed_answers_anew_when_somebody_asks() -> None:
    plain = scene(judging(PIXELS))
    [first, _] = followups.judge_jobs(plain, clips_of(plain))
    known, clip = (ended(first, JobState.COMPLETED, sequence=20),), clips_of(plain)[:1]
    mended = judge("pixels", digest="2")
    assert followups.judge_jobs(scene(judging(PIXELS), judging(PIXELS, sequence=30), known=known), clip) == ()
    [again] = followups.judge_jobs(scene(judging(PIXELS), judging(mended, sequence=30), known=known), clip)
    assert (again.retry_of, again.lane_digest) == (first.job_id, "2")
