"""A sweep as asked becomes jobs: legal ids, parameters a lane can do, and a mark on everything that differs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screentest import wire
from screentest.errors import BadRequest
from screentest.lanes import Lane, Limits, Rung, load_lanes
from screentest.records import (
    DeviceFacts,
    Estimate,
    Keyframe,
    LanePlan,
    Mark,
    MarkKind,
    Parameter,
    Requested,
    SkippedLane,
    SweepRecord,
    SweepSpec,
    Task,
    Verdict,
    Weights,
)
from screentest_scheduler import planning
from screentest_scheduler.planning import Placement

LANES = load_lanes(Path(__file__).parents[2] / "deploy" / "lanes")
WAN, SVD, LTX = "wan2-1-t2v-1-3b", "stable-video-diffusion-xt", "ltx-video-13b-distilled"
SKYREELS_V1 = "skyreels-v1-hunyuan-i2v"
NOW = datetime(2026, 5, 8, 23, 29, 59, tzinfo=UTC)
KEYFRAME = Keyframe(key="keyframes/a.png", sha256="a" * 64, width_px=768, height_px=512, size_bytes=1000)
ON_GPU = Placement(host="local", device="gpu-0", has_worker=True)
ON_CPU = Placement(host="local", device="cpu-0", has_worker=True)
LEGAL_ID = re.compile(r"[a-z0-9-]{1,63}")
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def asked(*lane_ids: str, **changes: object) -> SweepSpec:
    spec = SweepSpec(
        title="The Architect's Stillness",
        prompts=("An obsidian cathedral.",),
        lane_ids=lane_ids or (WAN,),
        seeds=(42,),
        weights=Weights.MINIATURE,
        keyframe=KEYFRAME,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def everywhere(place: Placement = ON_GPU) -> Mapping[str, Placement]:
    return dict.fromkeys(LANES, place)


def planned(spec: SweepSpec, place: Placement = ON_GPU) -> planning.Plan:
    return planning.plan(spec, LANES, everywhere(place))


def only_lane(spec: SweepSpec, place: Placement = ON_GPU) -> LanePlan:
    [lane] = planned(spec, place).lanes
    return lane


def record(spec: SweepSpec, sweep_id: str = "sweep-20260508t232959z") -> SweepRecord:
    return SweepRecord(
        sweep_id=sweep_id,
        request_id="r",
        content_sha256="",
        submitted_at=NOW,
        spec=spec,
        lanes=planned(spec).lanes,
    )


def refusal(spec: SweepSpec) -> dict[str, str]:
    """What is wrong, by field path."""
    with pytest.raises(BadRequest) as caught:
        planning.check(spec, LANES)
    return {violation.field: violation.description for violation in caught.value.violations}


def marks(lane: LanePlan) -> dict[str, Mark]:
    """Of what differs from what was asked."""
    return {name: mark for name, mark in all_marks(lane).items() if mark.is_change}


def all_marks(lane: LanePlan) -> dict[str, Mark]:
    assert len({mark.parameter for mark in lane.marks}) == len(lane.marks), "a parameter is marked twice"
    return {mark.parameter: mark for mark in lane.marks}


def argument(lane: LanePlan, keyword: str) -> object:
    return next((item.value for item in lane.call if item.name == keyword), None)


# ---- ids


def test_a_sweep_is_named_after_its_title_and_time() -> None:
    made = planning.sweep_id("The Architect's Stillness", NOW)
    assert made == "the-architects-stillness-20260508t232959z"


def test_sweeps_of_the_same_second_are_told_apart() -> None:
    assert planning.sweep_id("A", NOW, 1) == "a-20260508t232959z-2"


@PROPERTY
@given(
    title=st.text(max_size=300) | st.text("aB -", min_size=40, max_size=80),
    collision=st.integers(0, 10**6),
    moment=st.datetimes(datetime(1970, 1, 1)),
)
def test_any_title_gives_a_legal_sweep_id(title: str, collision: int, moment: datetime) -> None:
    made = planning.sweep_id(title, moment.replace(tzinfo=UTC), collision)
    assert LEGAL_ID.fullmatch(made)
    assert not made.startswith("-")
    assert made == planning.sweep_id(title, moment.replace(tzinfo=UTC), collision)


@PROPERTY
@given(
    title=st.text(max_size=100),
    prompt_index=st.integers(0, planning.MAX_JOBS),
    seed=st.integers(0, planning.MAX_SEED),
    retry_index=st.integers(0, 10_000),
)
def test_any_cell_gives_a_legal_job_id(title: str, prompt_index: int, seed: int, retry_index: int) -> None:
    sweep_id = planning.sweep_id(title, NOW)
    made = planning.job_id(sweep_id, "l" * 63, prompt_index, seed, retry_index)
    assert LEGAL_ID.fullmatch(made)
    assert made == planning.job_id(sweep_id, "l" * 63, prompt_index, seed, retry_index)


def test_job_ids_are_unique_over_all_cells_and_sweeps() -> None:
    spec = asked(*LANES, prompts=("one", "two", "three"), seeds=tuple(range(20)))
    sweeps = [record(spec, f"sweep-{index}") for index in range(3)]
    ids = [job.job_id for sweep in sweeps for job in planning.jobs(sweep)]
    assert len(ids) == 3 * len(LANES) * 3 * 20
    assert len(set(ids)) == len(ids)


def test_jobs_come_lane_by_lane_then_prompt_then_seed() -> None:
    jobs = planning.jobs(record(asked(WAN, SVD, prompts=("one", "two"), seeds=(7, 3))))
    assert [job.ordinal for job in jobs] == list(range(8))
    assert [(job.lane_id, job.prompt, job.seed) for job in jobs] == [
        (lane, prompt, seed) for lane in (WAN, SVD) for prompt in ("one", "two") for seed in (7, 3)
    ]


def test_jobs_derive_the_same_from_a_decoded_record() -> None:
    """A scheduler that has restarted re-derives what is missing from what it wrote."""
    requested = Requested(width_px=700, num_frames=30, guidance_scale=7.5, fps=12.5, negative_prompt="blurred")
    spec = asked(*LANES, prompts=("Ein Kind.", "静寂"), seeds=(1, planning.MAX_SEED), requested=requested)
    spec = replace(spec, expires_at=NOW + timedelta(hours=1), priority=-2)
    original = record(spec)
    decoded = wire.decode(wire.encode(original), SweepRecord)
    assert planning.jobs(decoded) == planning.jobs(original)
    assert repr(planning.jobs(decoded)) == repr(planning.jobs(original))  # 1 and 1.0 and True are equal


def test_a_retry_is_the_same_cell_under_a_new_id() -> None:
    [job] = planning.jobs(record(asked()))
    first, second = planning.retry(job, 1), planning.retry(planning.retry(job, 1), 2)
    assert (first.retry_of, first.retry_index) == (job.job_id, 1)
    assert (second.retry_of, second.retry_index) == (first.job_id, 2)
    assert len({job.job_id, first.job_id, second.job_id}) == 3
    assert "-r1-" in first.job_id
    assert replace(second, job_id=job.job_id, retry_of=None, retry_index=0) == job


def test_a_retry_has_at_least_the_attempt_limit_of_the_lane_file() -> None:
    """An estimate that was too short must not end every retry too: only the lane file can be raised by a person."""
    [job] = planning.jobs(record(asked(WAN)))
    short = replace(job, limits=replace(job.limits, attempt_s=600))
    lane = replace(LANES[WAN], limits=Limits(load_s=900, step_stall_s=60, attempt_s=7200))
    assert planning.with_patience(short, lane).limits == replace(job.limits, attempt_s=7200)
    long = replace(job, limits=replace(job.limits, attempt_s=9000))
    assert planning.with_patience(long, lane) == long


def test_a_retry_does_not_expire_with_its_sweep() -> None:
    [job] = planning.jobs(record(asked(expires_at=NOW)))
    assert planning.retry(job, 1).expires_at is None


def test_the_content_hash_knows_every_field_of_the_spec() -> None:
    spec = asked()
    changed = (
        replace(spec, title="Other"),
        replace(spec, seeds=(43,)),
        replace(spec, requested=Requested(steps=3)),
        replace(spec, skip_impossible=True),
        replace(spec, expires_at=NOW),
        replace(spec, priority=1),
        replace(spec, keyframe=None),
    )
    hashes = {planning.content_sha256(item) for item in (spec, *changed)}
    assert len(hashes) == len(changed) + 1
    assert planning.content_sha256(wire.decode(wire.encode(spec), SweepSpec)) == planning.content_sha256(spec)


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"title": " "}, "spec.title", "empty"),
        ({"prompts": ()}, "spec.prompts", "at least one"),
        ({"prompts": ("a", " \n")}, "spec.prompts[1]", "prompt 1 is empty"),
        ({"prompts": ("x" * (planning.MAX_PROMPT_CHARACTERS + 1),)}, "spec.prompts[0]", "20000 fit"),
        ({"lane_ids": ()}, "spec.lane_ids", f"choose from .*{WAN}"),
        ({"lane_ids": (WAN, SVD, WAN)}, "spec.lane_ids[2]", "chosen twice"),
        ({"seeds": ()}, "spec.seeds", "for example 42"),
        ({"seeds": (1, 2, 1)}, "spec.seeds", "given twice"),
        ({"seeds": (5, -1)}, "spec.seeds[1]", "seed -1 is not between 0"),
        ({"seeds": (2**63,)}, "spec.seeds[0]", "is not between 0"),
        ({"memory_cap_gib": 0.0}, "spec.memory_cap_gib", "0 is not above 0"),
        ({"memory_cap_gib": float("nan")}, "spec.memory_cap_gib", "nan is not above 0"),
        ({"seeds": tuple(range(planning.MAX_JOBS + 1))}, "spec.seeds", "several sweeps"),
        ({"requested": Requested(width_px=0)}, "spec.requested.width_px", "0 is not between 16 and 8192"),
        ({"requested": Requested(height_px=9000)}, "spec.requested.height_px", "9000"),
        ({"requested": Requested(num_frames=0)}, "spec.requested.num_frames", "between 1 and"),
        ({"requested": Requested(steps=-4)}, "spec.requested.steps", "-4"),
        ({"requested": Requested(guidance_scale=float("nan"))}, "spec.requested.guidance_scale", "nan"),
        ({"requested": Requested(fps=float("inf"))}, "spec.requested.fps", "inf"),
    ],
)
def test_what_cannot_be_used_is_refused_at_its_field(changes: dict[str, object], field: str, told: str) -> None:
    found = refusal(asked(**changes))
    assert list(found) == [field]
    assert re.search(told, found[field])


def test_all_violations_are_told_at_once() -> None:
    spec = asked("nowhere", WAN, WAN, title="", prompts=("",), seeds=(1, 1, -1), requested=Requested(steps=0, fps=0))
    found = refusal(spec)
    assert set(found) == {
        "spec.title",
        "spec.prompts[0]",
        "spec.lane_ids[0]",
        "spec.lane_ids[2]",
        "spec.seeds",
        "spec.seeds[2]",
        "spec.requested.steps",
        "spec.requested.fps",
    }


def test_the_message_of_a_refusal_says_every_violation() -> None:
    with pytest.raises(BadRequest) as caught:
        planning.check(asked(title="", seeds=()), LANES)
    assert all(violation.description in str(caught.value) for violation in caught.value.violations)
    assert len(caught.value.violations) == 2


@pytest.mark.parametrize("written", ["wan2.1-t2v-1.3b", "Wan2.1-T2V-1.3B", "wan2-1_t2v-1-3b"])
def test_an_illegal_lane_id_is_refused_with_its_legal_form(written: str) -> None:
    assert refusal(asked(written)) == {
        "spec.lane_ids[0]": f"lane id {written!r} is not legal; the lane is 'wan2-1-t2v-1-3b'"
    }


def test_an_unknown_lane_is_refused_with_the_nearest_one() -> None:
    assert "did you mean 'mochi-1-preview'?" in refusal(asked("mochi-preview"))["spec.lane_ids[0]"]


def test_a_lane_like_no_other_is_refused_with_where_to_look() -> None:
    assert "screentest lanes" in refusal(asked("qqqqqqqq"))["spec.lane_ids[0]"]


def test_a_legal_spec_for_all_lanes_is_not_refused() -> None:
    planning.check(asked(*LANES), LANES)


# ---- lanes that cannot take part


def test_image_to_video_without_keyframe_is_refused_before_anything_is_queued() -> None:
    spec = asked(WAN, SVD, keyframe=None)
    with pytest.raises(BadRequest, match=r"needs a keyframe; give one.*skip-impossible") as caught:
        planning.require_runnable(planned(spec), spec)
    assert [violation.field for violation in caught.value.violations] == ["spec.lane_ids[1]"]


def test_image_to_video_without_keyframe_is_skipped_by_choice() -> None:
    spec = asked(WAN, SVD, keyframe=None, skip_impossible=True)
    plan = planned(spec)
    planning.require_runnable(plan, spec)
    assert [lane.lane_id for lane in plan.lanes] == [WAN]
    assert [(lane.lane_id, "keyframe" in lane.reason) for lane in plan.skipped] == [(SVD, True)]


def test_skipping_every_lane_is_no_choice() -> None:
    spec = asked(SVD, LTX, keyframe=None, skip_impossible=True)
    with pytest.raises(BadRequest) as caught:
        planning.require_runnable(planned(spec), spec)
    assert "skip-impossible" not in str(caught.value)
    assert len(caught.value.violations) == 2


def test_hub_weights_need_a_gpu() -> None:
    spec = asked(WAN, "stub", weights=Weights.HUB)
    plan = planned(spec, ON_CPU)
    assert [lane.lane_id for lane in plan.lanes] == ["stub"]
    assert "screentest up --device gpu-0" in plan.skipped[0].reason
    assert planned(spec, ON_GPU).skipped == ()


def test_full_size_random_weights_need_a_gpu_too() -> None:
    spec = asked(WAN, weights=Weights.FULL_RANDOM)
    [skipped] = planned(spec, ON_CPU).skipped
    assert skipped.reason.startswith("full-size random weights need a GPU; start with")
    assert planned(spec).skipped == ()
    assert only_lane(spec).num_frames == LANES[WAN].defaults["num_frames"]


def test_one_reason_of_many_lanes_is_said_once() -> None:
    spec = asked(WAN, SVD, weights=Weights.FULL_RANDOM)
    with pytest.raises(BadRequest) as caught:
        planning.require_runnable(planned(spec, ON_CPU), spec)
    assert str(caught.value).startswith(f"{WAN}, {SVD}: full-size random weights need a GPU; ")
    assert len(caught.value.violations) == 2


def test_a_memory_cap_and_the_first_rung_reach_every_job() -> None:
    made = record(asked(WAN, memory_cap_gib=15.5))
    jobs = planning.jobs(replace(made, lanes=(replace(made.lanes[0], first_rung=1),)))
    assert {(job.memory_cap_gib, job.first_rung) for job in jobs} == {(15.5, 1)}


def estimate(rung: int, clip_s: float | None, high_s: float | None = None, load_s: float | None = 20) -> Estimate:
    return Estimate(rung=rung, rung_name=f"rung {rung}", load_s=load_s, clip_s=clip_s, high_s=high_s)


@pytest.mark.parametrize(
    ("estimates", "attempt_s"),
    [
        ((estimate(0, 400), estimate(1, 500)), 3 * 520),  # of the slowest rung
        ((estimate(0, 40),), 600),  # never less than ten minutes
        ((estimate(0, 4000),), 3 * 4020),  # and more than the lane's two hours where that is honest
        ((estimate(0, 400, high_s=2000),), 2020),  # the top of its own range is no failure
        ((estimate(0, 400, load_s=None),), 900 + 400),  # an unknown load counts with its limit
        ((estimate(0, 400), estimate(1, None)), 7200),  # one unknown rung leaves the lane's own number
        ((), 7200),
    ],
)
def test_the_limit_follows_the_estimate(estimates: tuple[Estimate, ...], attempt_s: float) -> None:
    lane = replace(LANES[WAN], limits=Limits(load_s=900, step_stall_s=60, attempt_s=7200))
    limits = planning.limits(lane, estimates)
    assert limits.attempt_s == attempt_s
    assert (limits.load_s, limits.step_stall_s) == (900, 60)


class Known:
    """Knows one estimate, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[planning.Work] = []

    def estimates(self, lane: Lane, work: planning.Work, placement: Placement) -> tuple[Estimate, ...]:
        self.asked.append(work)
        return (estimate(0, 100),)

    def first_rung(self, lane: Lane, work: planning.Work, placement: Placement) -> int:
        return 1


def test_a_plan_carries_what_is_known_of_its_work() -> None:
    known = Known()
    spec = asked(WAN, requested=Requested(steps=7), memory_cap_gib=16.0)
    [made] = planning.plan(spec, LANES, everywhere(), known).lanes
    assert made.estimates == (estimate(0, 100),)
    assert (made.limits.attempt_s, made.first_rung) == (600, 1)
    [work] = known.asked
    assert (work.weights, work.steps, work.memory_cap_gib) == (spec.weights, 7, 16.0)
    assert (work.width_px, work.height_px, work.num_frames) == (made.width_px, made.height_px, made.num_frames)
    assert work.call == made.call


def test_prompts_make_no_other_work() -> None:
    known = Known()
    planning.plan(asked(WAN, requested=Requested(negative_prompt="fog")), LANES, everywhere(), known)
    planning.plan(asked(WAN, requested=Requested(negative_prompt="rain")), LANES, everywhere(), known)
    planning.plan(asked(WAN, requested=Requested(guidance_scale=1)), LANES, everywhere(), known)
    first, second, unguided = (work.alike for work in known.asked)
    assert first == second != unguided


def test_verdicts_say_what_would_happen() -> None:
    spec = asked(WAN, SVD, "mochi-1-preview", "stub", keyframe=None, requested=Requested(num_frames=25))
    places = {**everywhere(), "stub": replace(ON_GPU, has_worker=False), WAN: ON_GPU}
    spec = replace(spec, requested=Requested(num_frames=26))
    verdicts = {item.lane_id: item for item in planning.plan(spec, LANES, places).verdicts}
    assert [verdicts[lane].verdict for lane in spec.lane_ids] == [
        Verdict.FIXED,
        Verdict.REFUSED,
        Verdict.FIXED,
        Verdict.NOT_PREFLIGHTED,
    ]
    assert verdicts[WAN].detail == "num_frames 26 -> 25"
    assert "no worker for stub" in verdicts["stub"].detail
    assert verdicts[SVD].plan is None
    assert only_lane(asked(WAN)).preflight == "ok"


# ---- parameters


def test_a_lane_left_alone_runs_its_own_settings_and_says_which() -> None:
    for lane_id, lane in LANES.items():
        plan = only_lane(asked(lane_id, weights=Weights.HUB))
        assert (plan.width_px, plan.height_px, plan.num_frames) == tuple(
            lane.defaults[name] for name in ("width_px", "height_px", "num_frames")
        )
        assert set(marks(plan)) <= {"prompt", "audio", "keyframe"}
        defaulted = {mark.parameter: mark.effective for mark in plan.marks if not mark.is_change}
        assert defaulted["num_frames"] == str(lane.defaults["num_frames"])
        assert set(defaulted) == {name for name, value in lane.defaults.items() if value != ""}


def test_defaults_are_nothing_that_preflight_has_fixed() -> None:
    [verdict] = planned(asked(WAN)).verdicts
    assert (verdict.verdict, verdict.detail) == (Verdict.OK, "")
    [verdict] = planned(asked(WAN, requested=Requested(num_frames=48))).verdicts
    assert (verdict.verdict, verdict.detail) == (Verdict.FIXED, "num_frames 48 -> 49")


def test_a_keyframe_that_loses_its_edges_is_marked() -> None:
    """In the plan, so that manifest, table and report carry it as they carry every other change."""
    wide = replace(KEYFRAME, width_px=1920, height_px=512)
    cut = marks(only_lane(asked(SVD, keyframe=wide, weights=Weights.HUB)))["keyframe"]
    assert (cut.kind, cut.requested, cut.effective) == (MarkKind.CLAMPED, "1920x512", "1024x576")
    fitting = replace(KEYFRAME, width_px=2048, height_px=1152)
    assert "keyframe" not in marks(only_lane(asked(SVD, keyframe=fitting, weights=Weights.HUB)))
    assert "keyframe" not in marks(only_lane(asked(WAN, keyframe=wide)))


def test_miniature_weights_run_the_miniature_settings() -> None:
    assert (only_lane(asked(WAN)).width_px, only_lane(asked(WAN)).steps) == (96, 2)
    assert only_lane(asked(LTX)).steps == 2
    assert only_lane(asked(LTX, weights=Weights.HUB)).steps == 8


def test_frames_a_lane_cannot_do_become_the_nearest_legal_count_and_are_marked() -> None:
    lane = only_lane(asked(WAN, requested=Requested(num_frames=48)))
    assert lane.num_frames == argument(lane, "num_frames") == 49
    assert marks(lane)["num_frames"] == Mark(
        kind=MarkKind.CLAMPED,
        parameter="num_frames",
        requested="48",
        effective="49",
        reason="4k+1 frames from 5 to 257 only",
    )


def test_frames_beyond_the_last_legal_count_become_it() -> None:
    lane = only_lane(asked(SVD, requested=Requested(num_frames=999)))
    assert (lane.num_frames, marks(lane)["num_frames"].reason) == (25, "2 to 25 frames only")
    assert only_lane(asked("cogvideox-2b", requested=Requested(num_frames=1))).num_frames == 8


def test_a_size_a_lane_cannot_do_becomes_the_nearest_multiple_and_is_marked() -> None:
    lane = only_lane(asked(SVD, requested=Requested(width_px=1000, height_px=20)))
    assert (lane.width_px, lane.height_px) == (argument(lane, "width"), argument(lane, "height")) == (1024, 64)
    assert {name: (mark.kind, mark.requested, mark.effective) for name, mark in marks(lane).items()} == {
        "width_px": (MarkKind.CLAMPED, "1000", "1024"),
        "height_px": (MarkKind.CLAMPED, "20", "64"),
        "keyframe": (MarkKind.CLAMPED, "768x512", "1024x64"),
        "prompt": (MarkKind.DROPPED, "given", "none"),
    }


def test_a_rate_the_model_is_not_made_for_is_marked() -> None:
    lane = only_lane(asked(WAN, requested=Requested(fps=30.0)))
    assert lane.fps == 16
    assert (marks(lane)["fps"].requested, marks(lane)["fps"].effective) == ("30", "16")


def test_a_rate_the_pipeline_takes_is_taken() -> None:
    lane = only_lane(asked(SVD, requested=Requested(fps=12.0)))
    assert lane.fps == argument(lane, "fps") == 12.0
    assert "fps" not in marks(lane)


def test_a_parameter_the_lane_does_not_take_is_marked_as_dropped() -> None:
    lane = only_lane(asked(SVD, requested=Requested(negative_prompt="blurred")))
    assert marks(lane)["negative_prompt"].kind is MarkKind.DROPPED
    assert "blurred" not in [item.value for item in lane.call]


def test_a_dropped_parameter_says_what_ran_instead() -> None:
    """LTX is distilled: its list of timesteps and its own guidance run, whatever is asked."""
    spec = asked(LTX, weights=Weights.HUB, requested=Requested(steps=50, guidance_scale=7.0))
    found = marks(only_lane(spec))
    assert (found["steps"].requested, found["steps"].effective) == ("50", "8")
    assert (found["guidance_scale"].requested, found["guidance_scale"].effective) == ("7", "1")


def test_a_size_that_the_lane_decides_is_marked_with_its_own() -> None:
    """HunyuanVideo 1.5 I2V cuts its keyframe to one of its own shapes, so its clips have the lane's size."""
    own = Requested(width_px=96, height_px=64)
    assert "width_px" not in marks(only_lane(asked("hunyuanvideo-1-5-i2v", requested=own)))
    lane = only_lane(asked("hunyuanvideo-1-5-i2v", requested=Requested(width_px=832)))
    assert (lane.width_px, lane.height_px) == (96, 64)
    found = marks(lane)["width_px"]
    assert (found.kind, found.requested, found.effective) == (MarkKind.DROPPED, "832", "96")


def test_sound_that_a_clip_does_not_have_is_marked() -> None:
    found = marks(only_lane(asked("ltx-2")))["audio"]
    assert (found.kind, found.effective) == (MarkKind.DROPPED, "none")
    assert "audio" not in marks(only_lane(asked(LTX)))


@pytest.mark.parametrize(("lane_id", "keyword"), [(SVD, "max_guidance_scale"), (SKYREELS_V1, "true_cfg_scale")])
def test_guidance_under_another_name_is_marked_as_renamed(lane_id: str, keyword: str) -> None:
    lane = only_lane(asked(lane_id, requested=Requested(guidance_scale=7.5)))
    assert argument(lane, keyword) == 7.5
    mark = marks(lane)["guidance_scale"]
    assert (mark.kind, mark.effective) == (MarkKind.RENAMED, f"{keyword}=7.5")


def test_a_lane_without_prompt_says_so() -> None:
    lane = only_lane(asked(SVD))
    assert lane.prompt_keyword == ""
    assert marks(lane)["prompt"].kind is MarkKind.DROPPED
    [job] = planning.jobs(record(asked(SVD)))
    assert job.prompt not in [item.value for item in job.call]


def test_the_call_contains_the_prompt_in_the_lanes_template() -> None:
    [job] = planning.jobs(record(asked(SKYREELS_V1)))
    assert {item.name: item.value for item in job.call}["prompt"] == "FPS-24, An obsidian cathedral."


@pytest.mark.parametrize("prompt", ["{prompt}", "a {brace} and {0}", "100 % {prompt} {prompt}", "{{}}"])
def test_braces_in_a_prompt_stay_as_written(prompt: str) -> None:
    jobs = planning.jobs(record(asked(WAN, SKYREELS_V1, prompts=(prompt,))))
    assert [{item.name: item.value for item in job.call}["prompt"] for job in jobs] == [prompt, f"FPS-24, {prompt}"]


def test_braces_in_a_negative_prompt_are_no_template() -> None:
    [job] = planning.jobs(record(asked(WAN, requested=Requested(negative_prompt="{prompt}"))))
    assert {item.name: item.value for item in job.call}["negative_prompt"] == "{prompt}"


def test_only_image_to_video_gets_the_keyframe() -> None:
    jobs = planning.jobs(record(asked(*LANES)))
    assert {job.task for job in jobs} == {Task.T2V, Task.I2V}
    assert all((job.keyframe == KEYFRAME) == (job.task is Task.I2V) for job in jobs)


def test_a_job_expires_and_ranks_as_its_sweep_was_submitted() -> None:
    jobs = planning.jobs(record(asked(WAN, SVD, expires_at=NOW, priority=4)))
    assert {(job.expires_at, job.priority) for job in jobs} == {(NOW, 4)}


def test_a_job_knows_its_lane_as_the_file_was() -> None:
    jobs = planning.jobs(record(asked(*LANES)))
    assert len({job.lane_digest for job in jobs}) == len(LANES)
    for job in jobs:
        lane = LANES[job.lane_id]
        assert job.rungs == tuple(rung.name for rung in lane.ladder)
        assert job.limits.attempt_s == lane.limits.attempt_s
        assert job.weights_repo == (lane.model.repo if lane.model else "")


def test_rungs_without_use_on_unified_memory_are_left_empty() -> None:
    ladder = (
        Rung(name="resident"),
        Rung(name="offload", group_offload="leaf_level"),
        Rung(name="fp8", layerwise_fp8=True),
    )
    lane = replace(LANES[WAN], ladder=ladder)
    facts = DeviceFacts(host="local", device="gpu-0", lock_name="a.lock", memory_kind="unified")
    for place, rungs in (
        (ON_GPU, ("resident", "offload", "fp8")),
        (replace(ON_GPU, facts=facts), ("resident", "", "fp8")),
        (replace(ON_GPU, facts=replace(facts, memory_kind="device")), ("resident", "offload", "fp8")),
        (ON_CPU, ("resident", "", "fp8")),
    ):
        made = planning.plan_lane(lane, asked(WAN), place)
        assert isinstance(made, LanePlan)
        assert made.rungs == rungs


def test_a_list_argument_is_recorded_as_the_wire_carries_it() -> None:
    lane = only_lane(asked(LTX))
    assert Parameter(name="timesteps", value=(1000.0, 0.03)) in lane.call


requests = st.builds(
    Requested,
    width_px=st.none() | st.integers(16, planning.MAX_SIZE_PX),
    height_px=st.none() | st.integers(16, planning.MAX_SIZE_PX),
    num_frames=st.none() | st.integers(1, 10_000),
    steps=st.none() | st.integers(1, planning.MAX_STEPS),
    guidance_scale=st.none() | st.floats(0, 100),
    fps=st.none() | st.floats(1, 240),
    negative_prompt=st.none() | st.text(max_size=5),
)


@settings(PROPERTY, max_examples=300)
@given(
    lane_id=st.sampled_from(sorted(LANES)),
    requested=requests,
    weights=st.sampled_from([Weights.HUB, Weights.MINIATURE]),
)
def test_nothing_differs_from_what_was_asked_without_a_mark(
    lane_id: str, requested: Requested, weights: Weights
) -> None:
    lane = only_lane(asked(lane_id, requested=requested, weights=weights))
    marked = all_marks(lane)
    effective = effective_values(LANES[lane_id], lane)
    for name in Requested.__slots__:
        wanted = getattr(requested, name)
        if wanted is None:
            assert name not in marked or marked[name].kind is MarkKind.DEFAULTED, "nobody asked for it"
            assert name not in marked or marked[name].effective == short(effective[name])
        elif name not in marked:
            assert effective[name] == wanted
        elif marked[name].kind is not MarkKind.RENAMED:
            assert effective[name] != wanted
            assert marked[name].effective == shown(effective[name])


@settings(PROPERTY, max_examples=300)
@given(lane_id=st.sampled_from(sorted(LANES)), requested=requests)
def test_what_runs_is_always_legal_in_its_lane(lane_id: str, requested: Requested) -> None:
    lane, constraints = only_lane(asked(lane_id, requested=requested)), LANES[lane_id].constraints
    assert constraints.frames.is_legal(lane.num_frames)
    assert lane.width_px % constraints.size_multiple_px == lane.height_px % constraints.size_multiple_px == 0
    assert min(lane.width_px, lane.height_px) > 0


@settings(PROPERTY, max_examples=300)
@given(lane_id=st.sampled_from(sorted(LANES)), frames=st.integers(1, 400), width_px=st.integers(16, 3000))
def test_no_legal_value_is_nearer_than_the_chosen_one(lane_id: str, frames: int, width_px: int) -> None:
    lane = only_lane(asked(lane_id, requested=Requested(num_frames=frames, width_px=width_px)))
    constraints = LANES[lane_id].constraints
    nearer = abs(lane.num_frames - frames)
    assert not any(constraints.frames.is_legal(count) for count in range(frames - nearer + 1, frames + nearer))
    if constraints.size_follows_keyframe:
        assert lane.width_px == LANES[lane_id].defaults_for("miniature")["width_px"]
        return
    nearer = abs(lane.width_px - width_px)
    multiple = constraints.size_multiple_px
    others = range(max(1, width_px - nearer + 1), width_px + nearer)
    assert not any(length % multiple == 0 for length in others)


def effective_values(lane: Lane, plan: LanePlan) -> dict[str, object]:
    """What the pipeline and the encoder really get, by our names; None where the pipeline gets nothing of the kind."""
    call = {item.name: item.value for item in plan.call}
    found = {name: call.get(lane.parameters.get(name, name)) for name in ("guidance_scale", "negative_prompt")}
    for name in ("width_px", "height_px", "num_frames", "fps"):
        found[name] = getattr(plan, name)
        if name in lane.parameters:
            assert call[lane.parameters[name]] == found[name], "what is recorded is not what is passed"
    return {**found, "steps": plan.steps}


def short(value: object) -> str:
    """A negative prompt may be longer than a mark."""
    return shown(value) if len(shown(value)) <= 80 else f"{shown(value)[:79]}…"


def shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_a_skipped_lane_carries_its_title_for_the_table() -> None:
    [skipped] = planned(asked(SVD, keyframe=None)).skipped
    assert skipped == SkippedLane(lane_id=SVD, lane_title="Stable Video Diffusion XT", reason=skipped.reason)
