"""What the scheduler's own clips teach: estimates of the jobs to come, and where their ladder begins."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from screentest.lanes import Cost, Tflop, Token, load_lane, usable_rungs
from screentest.records import (
    ClipFacts,
    DeviceFacts,
    Estimate,
    FailureClass,
    JobSpec,
    Outcome,
    PhaseMemory,
    PhaseTime,
    SweepSpec,
    Weights,
)
from screentest_scheduler import planning
from screentest_scheduler.lessons import Lessons
from screentest_scheduler.planning import Placement
from tests.made_sweeps import record

WAN = replace(
    load_lane(Path(__file__).parents[2] / "deploy" / "lanes" / "wan2-1-t2v-1-3b.toml"),
    cost=Cost(token=Token(frames=4, width_px=16, height_px=16), tflop=Tflop(tokens=1e-3)),
)
CATALOGUE = {WAN.id: WAN}
GIB = 2**30
AT = datetime(2026, 5, 8, 23, 29, 59, tzinfo=UTC)
CARD = DeviceFacts(
    host="local",
    device="gpu-0",
    lock_name="gpu.lock",
    gpu_name="NVIDIA Test",
    memory_total_bytes=24 * GIB,
    memory_kind="device",
)
PLACE = Placement(host="local", device="gpu-0", has_worker=True, facts=CARD)
ASKED = SweepSpec(title="A", prompts=("a door",), lane_ids=(WAN.id,), seeds=(1, 2), weights=Weights.FULL_RANDOM)


def planned(lessons: Lessons, place: Placement = PLACE, **changes: object) -> tuple[JobSpec, tuple[Estimate, ...]]:
    spec = replace(ASKED, **changes)  # type: ignore[arg-type]
    [lane] = planning.plan(spec, CATALOGUE, {WAN.id: place}, lessons).lanes
    made = replace(record([lane], weights=spec.weights), spec=spec)
    return planning.jobs(made)[0], lane.estimates


def clip_of(spec: JobSpec, *, step_s: float = 0.5, gpu_name: str | None = "NVIDIA Test") -> Outcome:
    phases = (("loading", 20), ("encoding_prompt", 1), ("denoising", step_s * spec.steps), ("decoding", 4))
    return Outcome(
        failure_class=None,
        clip=ClipFacts(
            codec="h264",
            pixel_format="yuv420p",
            frames=spec.num_frames,
            width_px=spec.width_px,
            height_px=spec.height_px,
            fps=spec.fps,
            duration_s=5,
        ),
        phases=tuple(PhaseTime(phase=phase, seconds=seconds, started_boottime_ns=0) for phase, seconds in phases),
        peak_memory_by_phase=tuple(PhaseMemory(phase=phase, peak_bytes=15 * GIB) for phase, _ in phases),
        steps_done=spec.steps,
        step_s=step_s,
        gpu_name=gpu_name,
    )


def taught(*, rung: int = 0, shared_gpu: bool = False, gpu_name: str | None = "NVIDIA Test") -> Lessons:
    lessons = Lessons(CATALOGUE)
    spec, _ = planned(lessons)
    lessons.learn(spec, rung, clip_of(spec, gpu_name=gpu_name), AT, shared_gpu=shared_gpu)
    return lessons


def test_before_the_first_clip_nothing_is_known() -> None:
    spec, found = planned(Lessons(CATALOGUE))
    assert [estimate.rung for estimate in found] == list(usable_rungs(WAN, False))
    assert {estimate.clip_s for estimate in found} == {None}
    assert spec.limits.attempt_s == WAN.limits.attempt_s


def test_one_clip_tells_time_and_memory_of_the_next() -> None:
    lessons = taught()
    _, [first, *_] = planned(lessons)
    assert first.clips == 1
    assert first.clip_s == pytest.approx(1 + 0.5 * WAN.defaults["steps"] + 4, rel=0.01)  # type: ignore[operator]
    assert first.load_s == 20
    assert first.peak_memory_bytes == 15 * GIB
    hub, found = planned(lessons, weights=Weights.HUB)
    assert found[0].clip_s == first.clip_s
    assert lessons.of_job(hub, 0, PLACE) == found[0]


def test_a_new_clip_replaces_what_was_computed_before() -> None:
    lessons = taught()
    spec, [before, *_] = planned(lessons)
    lessons.learn(spec, 0, clip_of(spec, step_s=1.5), AT, shared_gpu=False)
    _, [after, *_] = planned(lessons)
    assert after.clips == 2
    assert before.clip_s is not None
    assert after.clip_s is not None
    assert after.clip_s > before.clip_s


def test_miniatures_neither_teach_nor_learn() -> None:
    lessons = Lessons(CATALOGUE)
    spec, _ = planned(lessons, weights=Weights.MINIATURE)
    lessons.learn(spec, 0, clip_of(spec), AT, shared_gpu=False)
    _, [first, *_] = planned(lessons)
    assert first.clip_s is None
    _, [first, *_] = planned(taught(), weights=Weights.MINIATURE)
    assert (first.clip_s, first.peak_memory_bytes, first.basis) == (None, None, "miniature weights")


def test_a_clip_beside_a_stranger_teaches_nothing() -> None:
    lessons = taught(rung=1, shared_gpu=True)
    spec, [first, *_] = planned(lessons)
    assert first.clip_s is None
    assert lessons.winning_rungs.first_rung(spec, "NVIDIA Test") == spec.first_rung


def test_a_clip_of_an_older_lane_file_teaches_nothing_of_the_lane_of_today() -> None:
    """It may have had another dtype or attention: its memory and rate are another model's."""
    lessons = Lessons(CATALOGUE)
    spec, _ = planned(lessons)
    older = replace(spec, lane_digest="older")
    lessons.learn(older, 1, clip_of(older), AT, shared_gpu=False)
    assert planned(lessons)[1][0].clip_s is None
    assert lessons.winning_rungs.first_rung(spec, "NVIDIA Test") == spec.first_rung
    assert lessons.winning_rungs.first_rung(older, "NVIDIA Test") == 1


def test_an_attempt_without_clip_teaches_nothing() -> None:
    lessons = Lessons(CATALOGUE)
    spec, _ = planned(lessons)
    failed = replace(clip_of(spec), failure_class=FailureClass.OOM_DECODE, clip=None)
    lessons.learn(spec, 0, failed, AT, shared_gpu=False)
    assert planned(lessons)[1][0].clip_s is None


def test_a_card_that_is_measured_too_small_begins_lower() -> None:
    small = replace(PLACE, facts=replace(CARD, memory_total_bytes=12 * GIB))
    assert planned(taught())[0].first_rung == 0
    assert planned(taught(), small)[0].first_rung > 0
    assert planned(taught(), memory_cap_gib=12.0)[0].first_rung > 0


def test_the_rung_that_was_needed_here_is_where_the_next_plan_begins() -> None:
    """The first one that fits by the numbers ran out of memory; the next one made the clip."""
    lessons = taught(rung=1)
    spec, _ = planned(lessons)
    assert (spec.first_rung, lessons.winning_rungs.first_rung(spec, "NVIDIA Test")) == (1, 1)
    another = replace(PLACE, facts=replace(CARD, gpu_name="another"))
    assert planned(lessons, another)[0].first_rung == 0
    assert planned(lessons, memory_cap_gib=20.0)[0].first_rung == 0


def recalled(*told: Lessons) -> Lessons:
    """By another process, in this order."""
    lessons = Lessons(CATALOGUE)
    for item in told:
        lessons.recall(item.told(), item.winning_rungs.told())
    return lessons


def test_what_is_told_is_recalled_as_it_was_learned() -> None:
    lessons = taught(rung=1)
    again = recalled(lessons)
    assert planned(again) == planned(lessons)
    assert (again.told(), again.winning_rungs.told()) == (lessons.told(), lessons.winning_rungs.told())


def test_lessons_count_by_their_time_and_not_by_the_order_of_the_telling() -> None:
    first, later = Lessons(CATALOGUE), Lessons(CATALOGUE)
    spec, _ = planned(first)
    first.learn(spec, 2, clip_of(spec, step_s=0.5), AT, shared_gpu=False)
    later.learn(spec, 1, clip_of(spec, step_s=1.5), AT + timedelta(days=1), shared_gpu=False)
    first.learn(spec, 0, clip_of(spec, step_s=0.5), AT, shared_gpu=False)
    later.learn(spec, 0, clip_of(spec, step_s=1.5), AT + timedelta(days=1), shared_gpu=False)
    for order in ((first, later), (later, first)):
        lessons = recalled(*order)
        resident = next(lesson for lesson in lessons.told() if lesson.rung_name == "resident")
        assert (resident.clips, resident.step_s, resident.at) == (2, (0.5, 1.5), AT + timedelta(days=1))
        assert planned(lessons)[0].first_rung == 1


def test_lessons_of_another_lane_file_are_not_recalled() -> None:
    lessons = Lessons(CATALOGUE)
    lessons.recall((replace(taught().told()[0], lane_digest="older"),), ())
    assert lessons.told() == ()


def test_a_job_of_another_lane_file_is_not_estimated() -> None:
    lessons = taught()
    spec, _ = planned(lessons)
    assert lessons.of_job(replace(spec, lane_digest="other"), 0, PLACE) is None
    assert lessons.of_job(replace(spec, lane_id="other"), 0, PLACE) is None
