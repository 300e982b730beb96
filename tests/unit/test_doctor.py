"""What the doctor concludes from trials, and what it says of a child that dies; no model env."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from screentest.lanes import Lane, load_lane
from screentest.measured import Shape
from screentest_worker import trials
from screentest_worker.model_env import ChildEnded, ModelEnv
from screentest_worker.signature import Method, Taken
from screentest_worker.trials import Failure, Outcome, Status

LANES = Path(__file__).parents[2] / "deploy" / "lanes"
WAN, MOCHI, COG, SVD, LTX = (
    load_lane(LANES / f"{name}.toml")
    for name in (
        "wan2-1-t2v-1-3b",
        "mochi-1-preview",
        "cogvideox-2b",
        "stable-video-diffusion-xt",
        "ltx-video-13b-distilled",
    )
)
CANCELLED = Failure(failure_class="cancelled", phase="denoising", message="cancelled while denoising")


def made(lane: Lane = WAN, **changes: object) -> Outcome:
    """The miniature's own clip, as asked."""
    plain = Outcome(
        phases=trials.PHASES,
        steps=((1, 2), (2, 2)),
        seconds=1.0,
        shape=trials.shape_of(lane, trials.own(lane)),
        digest="a",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def ended(failure: Failure, steps: int) -> Outcome:
    return made(failure=failure, shape=None, digest=None, steps=tuple((step, 200) for step in range(1, steps + 1)))


def test_clip_as_asked_passes() -> None:
    assert trials.clip(WAN, trials.own(WAN), made()).status is Status.OK


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (made(shape=Shape(width_px=96, height_px=64, num_frames=24)), "24 frames of 96x64, asked for 25 frames"),
        (made(phases=("encoding_prompt", "decoding", "decoded")), "reported the phases encoding_prompt, decoding"),
        (made(failure=CANCELLED, shape=None, digest=None), "cancelled while denoising"),
    ],
)
def test_clip_that_is_not_as_asked_fails(found: Outcome, reason: str) -> None:
    finding = trials.clip(WAN, trials.own(WAN), found)
    assert finding.status is Status.FAILED
    assert reason in finding.detail
    assert finding.fix


@pytest.mark.parametrize(
    ("asked", "reported", "status"),
    [
        (2, ((1, 2), (2, 2)), Status.OK),
        (None, ((1, 8), (2, 8)), Status.FAILED),
        (None, (), Status.FAILED),
        (3, ((1, 2), (2, 2)), Status.FAILED),
        (2, ((1, 2), (1, 2)), Status.FAILED),
    ],
)
def test_every_step_must_be_told(asked: int | None, reported: tuple[tuple[int, int], ...], status: Status) -> None:
    assert trials.steps([(asked, made(steps=reported))]).status is status


def test_attempt_must_end_within_the_step_of_its_cancel() -> None:
    assert trials.cancel(ended(CANCELLED, 1)).status is Status.OK
    assert "it made 3" in trials.cancel(ended(CANCELLED, 3)).detail
    assert "it ended with 25 frames" in trials.cancel(made()).detail


def test_warm_runner_must_make_the_same_frames_after_a_cancel() -> None:
    assert trials.repeat(made(), made()).status is Status.OK
    assert trials.repeat(made(), made(digest="b")).status is Status.FAILED
    assert trials.repeat(made(), ended(CANCELLED, 1)).status is Status.FAILED


def test_parameter_that_changes_nothing_is_named() -> None:
    changed = {"prompt": made(digest="b"), "guidance_scale": made()}
    (finding,) = trials.parameters(made(), changed, WAN)
    assert finding.status is Status.FAILED
    assert finding.detail == "no effect on the clip: guidance_scale (guidance_scale)"


def test_frame_counts_of_a_rule_are_tried_and_its_neighbours() -> None:
    assert [trials.legal_frames(lane) for lane in (WAN, MOCHI, COG, SVD)] == [(9,), (13,), (16, 9), (6,)]
    assert [trials.illegal_frames(lane) for lane in (WAN, MOCHI, COG, SVD)] == [6, 8, 10, None]


def test_illegal_count_that_the_pipeline_makes_is_told_and_no_fault() -> None:
    legal = {9: made(shape=Shape(width_px=96, height_px=64, num_frames=9))}
    finding = trials.frames_rule(WAN, legal, (6, made()))
    assert finding.status is Status.OK
    assert "the pipeline makes 6 frames too" in finding.detail


def test_cancelled_trial_has_many_steps_however_a_lane_counts_them() -> None:
    assert trials.call_of(WAN, trials.cancelled(WAN))["num_inference_steps"] == trials.MANY_STEPS
    assert len(trials.call_of(LTX, trials.cancelled(LTX))["timesteps"]) == trials.MANY_STEPS


def test_rung_trial_leaves_room_for_fewer_frames() -> None:
    for lane in (WAN, MOCHI, COG, SVD, LTX):
        short = next(index for index, rung in enumerate(lane.ladder) if rung.num_frames_ratio < 1)
        trial = trials.rung_trial(lane, short)
        assert trials.shape_of(lane, trial).num_frames < trial.settings["num_frames"], lane.id


def test_shipped_ladders_have_no_idle_rung() -> None:
    for path in LANES.glob("*.toml"):
        assert list(trials.idle_rungs(load_lane(path))) == []


def test_method_that_inspect_sees_differently_is_told() -> None:
    read = {"call": Method(parameters=(Taken(name="prompt", required=True),), takes_any=False)}
    seen = {"parameters": [["prompt", True]], "takes_any": False}
    assert list(trials.signatures(read, {"call": seen})) == []
    assert list(trials.signatures(read, {"call": {**seen, "takes_any": True}})) != []
    (odd,) = trials.signatures(read, {"call": {**seen, "parameters": [["prompt", False]]}})
    assert "__call__ is read differently" in odd


def test_parameter_counts_are_held_against_the_file() -> None:
    right = {name: part.params for name, part in WAN.components.items() if part.params is not None}
    assert trials.counts(WAN, right).status is Status.OK
    assert "vae 1, not 126892531" in trials.counts(WAN, {**right, "vae": 1}).detail
    assert "image_encoder 5, and the lane says none" in trials.counts(WAN, {**right, "image_encoder": 5}).detail


def test_cost_is_held_against_what_was_counted() -> None:
    shape = Shape(width_px=832, height_px=480, num_frames=81)
    assert trials.cost_counted(WAN, [(shape, 283.0)]).status is Status.OK
    assert "[cost] says" in trials.cost_counted(WAN, [(shape, 560.0)]).detail
    assert trials.cost_counted(replace(WAN, cost=None), []).status is Status.FAILED


def fake_env(folder: Path, script: str) -> ModelEnv:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return ModelEnv(python)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo Segmentation fault >&2; kill -SEGV $$", "ended with SIGSEGV: Segmentation fault"),
        ("read line; echo out of memory >&2; exit 9", "ended with status 9: out of memory"),
        ("exec 2>&1; read line; exit 0", "ended with status 0: it said nothing"),
    ],
)
def test_child_that_dies_is_told_with_its_last_words(tmp_path: Path, script: str, reason: str) -> None:
    child = fake_env(tmp_path, script)
    with pytest.raises(ChildEnded, match=reason):
        child.ask("signature", deadline=time.monotonic() + 10, class_name="WanPipeline")


def test_silent_child_is_killed_at_its_deadline_and_another_one_starts(tmp_path: Path) -> None:
    child = fake_env(tmp_path, "exec sleep 60")
    for _ in range(2):
        with pytest.raises(ChildEnded, match="no answer within the time limit"):
            child.ask("signature", deadline=time.monotonic() + 0.1)
