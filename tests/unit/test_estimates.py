"""What an attempt will take and hold: arithmetic on what was measured, never a number out of nothing."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from screentest import cost, estimates, lanes, memory
from screentest.errors import BadRequest
from screentest.lanes import Cost, Guidance, Lane, Tflop, Token, load_lanes
from screentest.measured import Experience, Measured, Shape, Speed, clips_from_json, load_measured
from screentest.records import (
    ClipFacts,
    FailureClass,
    JobSpec,
    Outcome,
    Parameter,
    PhaseMemory,
    PhaseTime,
    Weights,
)
from tests.contract import examples

DEPLOY = Path(__file__).parents[2] / "deploy"
GIB = memory.GIB
H200 = "NVIDIA H200"
CATALOGUE = load_lanes(DEPLOY / "lanes")
SHIPPED = load_measured(DEPLOY / "measured")
# The lanes that were rehearsed at full size; TFLOP of one forward from the reference counts, see [cost] of each.
REFERENCE_TFLOP = {
    "wan2-1-t2v-1-3b": (832, 480, 81, 283.0),
    "cogvideox-2b": (720, 480, 49, 240.0),
    "cogvideox-5b": (720, 480, 49, 664.4),
    "mochi-1-preview": (848, 480, 49, 561.0),
    "skyreels-v2-df-14b-540p": (960, 544, 49, 1223.5),
    "skyreels-v2-i2v-14b-540p": (960, 544, 49, 1230.0),
    "stable-video-diffusion-xt": (1024, 576, 25, 160.0),
    "ltx-video-13b-distilled": (768, 512, 97, 135.2),
    "hunyuanvideo-i2v": (832, 480, 49, 596.6),
    "skyreels-v1-hunyuan-i2v": (960, 544, 49, 893.0),
}
LARGER_REFERENCE_TFLOP = {
    "wan2-1-t2v-1-3b": (832, 480, 49, 128.6),
    "mochi-1-preview": (848, 480, 85, 1204.0),
    "skyreels-v2-df-14b-540p": (960, 544, 97, 3373.7),
    "ltx-video-13b-distilled": (1216, 704, 121, 449.0),
    "hunyuanvideo-i2v": (1280, 720, 129, 12096.0),
    "skyreels-v1-hunyuan-i2v": (960, 544, 97, 2633.0),
}


def own_shape(lane: Lane) -> Shape:
    return Shape(**{name: int(lane.defaults[name]) for name in ("width_px", "height_px", "num_frames")})


def index(lane: Lane, rung: str) -> int:
    return [step.name for step in lane.ladder].index(rung)


def only(lane_id: str, **chosen: Any) -> Measured:
    """The shipped clips of one lane whose fields are so."""
    clips = [clip for clip in SHIPPED.shipped if clip.lane_id == lane_id]
    return Measured(shipped=tuple(c for c in clips if all(getattr(c, name) == value for name, value in chosen.items())))


MEASURED_LANES = sorted({clip.lane_id for clip in SHIPPED.shipped})
LANES_MEASURED_AT_A_LOWER_RUNG = sorted({clip.lane_id for clip in SHIPPED.shipped if clip.rung != "resident"})
shapes = st.builds(
    Shape,
    width_px=st.integers(8, 80).map(lambda n: 16 * n),
    height_px=st.integers(8, 80).map(lambda n: 16 * n),
    num_frames=st.integers(2, 40).map(lambda n: 4 * n + 1),
)


# --- operations


@pytest.mark.parametrize(
    ("lane_id", "width_px", "height_px", "num_frames", "tflop"),
    [(lane_id, *row) for table in (REFERENCE_TFLOP, LARGER_REFERENCE_TFLOP) for lane_id, row in table.items()],
)
def test_a_forward_costs_what_the_reference_count_says(
    lane_id: str, width_px: int, height_px: int, num_frames: int, tflop: float
) -> None:
    found = CATALOGUE[lane_id].cost
    assert found is not None
    shape = Shape(width_px=width_px, height_px=height_px, num_frames=num_frames)
    guided = cost.is_guided(found, CATALOGUE[lane_id].pipeline_call("hub", CATALOGUE[lane_id].defaults))
    assert cost.forward_tflop(found, shape, guided=guided) == pytest.approx(tflop, rel=0.01)


def test_every_model_lane_says_what_a_clip_costs() -> None:
    assert [lane.id for lane in CATALOGUE.values() if lane.cost is None and lane.env != "stub"] == []


def test_guidance_doubles_the_forwards_or_the_batch_and_never_both() -> None:
    base = Cost(token=Token(frames=4, width_px=16, height_px=16), tflop=Tflop(tokens=0.01))
    shape = Shape(width_px=160, height_px=160, num_frames=9)
    plain = cost.clip_tflop(base, shape, 10)
    for doubles, calls in (("forwards", 20), ("batch", 10)):
        guided = replace(base, guidance=Guidance(keyword="guidance_scale", doubles=doubles))  # type: ignore[arg-type]
        assert cost.forwards(guided, 10) == calls
        assert cost.clip_tflop(guided, shape, 10) == pytest.approx(2 * plain)
        assert cost.clip_tflop(guided, shape, 10, guided=False) == pytest.approx(plain)


@pytest.mark.parametrize(("call", "guided"), [({"g": 5.0}, True), ({"g": 1.0}, False), ({"g": 0}, False), ({}, True)])
def test_a_scale_above_one_is_guidance(call: dict[str, object], guided: bool) -> None:
    found = Cost(
        token=Token(frames=1, width_px=8, height_px=8),
        tflop=Tflop(),
        guidance=Guidance(keyword="g", doubles="forwards"),
    )
    assert cost.is_guided(found, call) is guided


@settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(shape=shapes, more=st.integers(1, 10), lane_id=st.sampled_from(MEASURED_LANES))
def test_a_longer_or_larger_clip_never_costs_less(shape: Shape, more: int, lane_id: str) -> None:
    found = CATALOGUE[lane_id].cost
    assert found is not None
    longer = replace(shape, num_frames=shape.num_frames + 8 * more)
    larger = replace(shape, width_px=shape.width_px + 64 * more)
    own = cost.forward_tflop(found, shape)
    assert own > 0
    assert cost.forward_tflop(found, longer) >= own
    assert cost.forward_tflop(found, larger) >= own


# --- time


@pytest.mark.parametrize("clip", SHIPPED.shipped, ids=lambda c: f"{c.lane_id}-{c.rung}-{c.memory_cap_gib}")
def test_a_measured_clip_lies_in_its_own_range(clip: Experience) -> None:
    lane = CATALOGUE[clip.lane_id]
    found = estimates.estimate(lane, index(lane, clip.rung), clip.shape, clip.steps, H200, SHIPPED)
    took = float(clip.encode_s or 0) + clip.start_s + clip.steps * float(clip.step_s[0]) + float(clip.decode_s or 0)
    assert found.clip_s is not None and found.low_s is not None and found.high_s is not None
    assert found.low_s <= took <= found.high_s
    assert found.clips >= 1
    assert found.energy_wh == pytest.approx(float(clip.energy_wh or 0), rel=0.1)


@settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(shape=shapes, steps=st.integers(1, 60), more=st.integers(1, 10), lane_id=st.sampled_from(MEASURED_LANES))
def test_more_frames_or_steps_or_pixels_never_take_less(shape: Shape, steps: int, more: int, lane_id: str) -> None:
    lane = CATALOGUE[lane_id]

    def seconds(of: Shape, count: int) -> float:
        found = estimates.estimate(lane, 0, of, count, H200, only(lane_id))
        assert found.clip_s is not None and found.low_s is not None and found.high_s is not None
        assert found.low_s <= found.clip_s <= found.high_s
        return found.clip_s

    # where the exact shape was measured the estimate is the measurement; a strategy never draws a lane's own
    own = seconds(shape, steps)
    assert seconds(shape, steps + more) > own
    assert seconds(replace(shape, num_frames=shape.num_frames + 8 * more), steps) >= own * 0.999
    assert seconds(replace(shape, height_px=shape.height_px + 64 * more), steps) >= own * 0.999


def test_without_any_measurement_nothing_is_claimed() -> None:
    lane = CATALOGUE["wan2-1-t2v-1-3b"]
    found = estimates.estimate(lane, 0, own_shape(lane), 50, H200, Measured())
    assert (found.clip_s, found.low_s, found.high_s) == (None, None, None)
    assert (found.load_s, found.energy_wh, found.peak_memory_bytes, found.clips) == (None, None, None, 0)
    assert found.basis


@pytest.mark.parametrize(("gpu", "weights"), [(None, "hub"), (H200, "miniature")])
def test_no_gpu_and_miniature_weights_have_no_estimate(gpu: str | None, weights: lanes.Weights) -> None:
    lane = CATALOGUE["wan2-1-t2v-1-3b"]
    found = estimates.estimate(lane, 0, own_shape(lane), 50, gpu, SHIPPED, weights=weights)
    assert found.clip_s is None and found.peak_memory_bytes is None


def test_a_gpu_with_published_clips_is_carried_over_with_a_wide_range() -> None:
    """CogVideoX 5B on a DGX Spark took 714.54 s in the case study."""
    lane = CATALOGUE["cogvideox-5b"]
    found = estimates.estimate(lane, 0, own_shape(lane), 50, "NVIDIA GB10", SHIPPED, unified=True)
    assert found.low_s is not None and found.high_s is not None
    assert found.low_s < 714.54 < found.high_s
    assert found.high_s > 2 * found.low_s
    assert found.clips == 0
    assert found.energy_wh is None
    assert "carried over from NVIDIA H200" in found.basis


def test_a_gpu_that_nobody_measured_has_memory_but_no_time() -> None:
    lane = CATALOGUE["cogvideox-5b"]
    found = estimates.estimate(lane, 0, own_shape(lane), 50, "NVIDIA T4", SHIPPED)
    assert found.clip_s is None
    assert found.peak_memory_bytes is not None


def test_other_lanes_on_this_gpu_speak_for_a_lane_that_has_not_run_here() -> None:
    lane, other = CATALOGUE["cogvideox-5b"], CATALOGUE["cogvideox-2b"]
    there = only("cogvideox-2b", rung="resident").shipped[0]
    here = replace(there, gpu="NVIDIA T4", step_s=(10 * there.step_s[0],))
    found = estimates.estimate(lane, 0, own_shape(lane), 50, "NVIDIA T4", replace(SHIPPED, learned={here.key: here}))
    at_home = estimates.estimate(lane, 0, own_shape(lane), 50, H200, SHIPPED)
    assert found.clip_s is not None and at_home.clip_s is not None
    assert found.clip_s == pytest.approx(10 * at_home.clip_s, rel=0.1)
    assert found.clips == 0
    assert other.id not in found.basis


def test_published_seconds_are_used_only_for_the_gpu_they_name() -> None:
    speed = Speed(gpus=("A",), clip_s={"cogvideox-5b": 200}, source="a page")
    lane = CATALOGUE["cogvideox-5b"]
    measured = replace(SHIPPED, speeds=(speed,))
    assert estimates.estimate(lane, 0, own_shape(lane), 50, "A", measured).clip_s == pytest.approx(200, rel=0.01)
    assert estimates.estimate(lane, 0, own_shape(lane), 50, "B", measured).clip_s is None


# --- learning


def job(lane: Lane, **changed: Any) -> JobSpec:
    shape = own_shape(lane)
    call = lane.pipeline_call("hub", {**lane.defaults, "prompt": "x"})
    return replace(
        examples.JOB,
        lane_id=lane.id,
        weights=Weights.HUB,
        width_px=shape.width_px,
        height_px=shape.height_px,
        num_frames=shape.num_frames,
        steps=int(lane.defaults.get("steps", 8)),
        call=tuple(
            Parameter(name=name, value=value) for name, value in call.items() if isinstance(value, int | float | str)
        ),
        rungs=tuple(rung.name for rung in lane.ladder),
        first_rung=0,
        memory_cap_gib=None,
        **changed,
    )


def completed(lane: Lane, step_s: float, *, peak_gib: float = 20.0, gpu: str | None = "NVIDIA T4") -> Outcome:
    shape = own_shape(lane)
    return Outcome(
        failure_class=None,
        clip=ClipFacts(
            codec="h264",
            pixel_format="yuv420p",
            frames=shape.num_frames,
            width_px=shape.width_px,
            height_px=shape.height_px,
            fps=8.0,
            duration_s=6.0,
        ),
        phases=tuple(
            PhaseTime(phase=phase, seconds=seconds, started_boottime_ns=0)
            for phase, seconds in (("loading", 9.0), ("encoding_prompt", 1.0), ("denoising", 50.0), ("decoding", 2.0))
        ),
        peak_memory_by_phase=(PhaseMemory(phase="denoising", peak_bytes=int(peak_gib * GIB)),),
        steps_done=50,
        step_s=step_s,
        gpu_name=gpu,
    )


def test_a_clip_teaches_its_lane_on_its_gpu() -> None:
    lane = CATALOGUE["cogvideox-5b"]
    measured = estimates.learn(SHIPPED, lane, job(lane), 0, completed(lane, 2.0))
    measured = estimates.learn(measured, lane, job(lane), 0, completed(lane, 3.0, peak_gib=18.0))
    found = estimates.estimate(lane, 0, own_shape(lane), 50, "NVIDIA T4", measured)
    assert found.clips == 2
    assert found.clip_s == pytest.approx(1.0 + 50 * 2.5 + 2.0)
    assert found.low_s is not None and found.low_s <= 1.0 + 50 * 2.0 + 2.0
    assert found.high_s is not None and found.high_s >= 1.0 + 50 * 3.0 + 2.0
    assert found.load_s == 9.0
    assert found.peak_memory_bytes is not None


def test_unguided_clips_teach_the_rate_and_not_the_seconds() -> None:
    lane = CATALOGUE["wan2-1-t2v-1-3b"]
    spec = job(lane)
    unguided = replace(spec, call=tuple(replace(p, value=1.0) if p.name == "guidance_scale" else p for p in spec.call))
    measured = estimates.learn(SHIPPED, lane, unguided, 0, completed(lane, 1.0))
    found = estimates.estimate(lane, 0, own_shape(lane), 50, "NVIDIA T4", measured)
    assert found.clip_s == pytest.approx(1.0 + 50 * 2.0 + 2.0)


@pytest.mark.parametrize("why", ["failed", "no gpu", "miniature"])
def test_what_is_no_full_size_clip_on_a_gpu_teaches_nothing(why: str) -> None:
    lane = CATALOGUE["cogvideox-5b"]
    spec, outcome = job(lane), completed(lane, 2.0)
    match why:
        case "failed":
            outcome = replace(outcome, failure_class=FailureClass.NAN)
        case "no gpu":
            outcome = completed(lane, 2.0, gpu=None)
        case _:
            spec = replace(spec, weights=Weights.MINIATURE)
    assert estimates.learn(SHIPPED, lane, spec, 0, outcome) is SHIPPED


# --- memory


@pytest.mark.parametrize("clip", SHIPPED.shipped, ids=lambda c: f"{c.lane_id}-{c.rung}-{c.memory_cap_gib}")
def test_a_measured_peak_is_the_estimate_at_its_cap(clip: Experience) -> None:
    lane = CATALOGUE[clip.lane_id]
    allowed = None if clip.memory_cap_gib is None else int(clip.memory_cap_gib * GIB)
    found = memory.peak(lane, index(lane, clip.rung), clip.shape, SHIPPED, torch_bytes=allowed)
    assert found is not None and found.basis.startswith("measured on")
    assert found.likely_bytes == pytest.approx(max(clip.held_bytes.values()), rel=0.1)
    assert found.tensor_bytes <= found.least_bytes <= found.likely_bytes


@settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(shape=shapes, more=st.integers(1, 10), lane_id=st.sampled_from(MEASURED_LANES), unified=st.booleans())
def test_a_longer_or_larger_clip_never_holds_less(shape: Shape, more: int, lane_id: str, unified: bool) -> None:
    lane = CATALOGUE[lane_id]
    for rung in lanes.usable_rungs(lane, unified):
        if lane.ladder[rung].changes_picture:
            continue
        longer, larger = (
            replace(shape, num_frames=shape.num_frames + 8 * more),
            replace(shape, width_px=shape.width_px + 64 * more),
        )
        # a measured shape is its measurement, which no arithmetic need meet
        assume(not {shape, longer, larger} & {clip.shape for clip in SHIPPED.shipped})
        own, of_longer, of_larger = (
            memory.peak(lane, rung, of, SHIPPED, unified=unified) for of in (shape, longer, larger)
        )
        if own is None:
            continue
        assert of_longer is not None and of_larger is not None
        assert own.tensor_bytes <= of_longer.tensor_bytes and own.least_bytes <= of_longer.least_bytes
        assert own.tensor_bytes <= of_larger.tensor_bytes and own.least_bytes <= of_larger.least_bytes


def test_a_peak_without_a_measurement_is_unknown_and_fits_where_the_weights_do() -> None:
    """Wan 2.1 has 15.9 GiB of weights, and streams all but the VAE's half GiB."""
    lane = CATALOGUE["wan2-1-t2v-1-3b"]
    assert memory.peak_bytes(lane, 0, own_shape(lane), Measured()) is None
    assert memory.first_rung(lane, own_shape(lane), 24 * GIB, Measured()) == 0
    assert memory.first_rung(lane, own_shape(lane), 2 * GIB, Measured()) == index(lane, "offload")


def test_dropping_the_text_encoder_holds_less_than_everything_and_more_than_streaming() -> None:
    for lane_id in LANES_MEASURED_AT_A_LOWER_RUNG:
        lane = CATALOGUE[lane_id]
        lean, offload = (memory.peak_bytes(lane, index(lane, n), own_shape(lane), SHIPPED) for n in ("lean", "offload"))
        resident = memory.peak_bytes(lane, 0, own_shape(lane), SHIPPED)
        assert resident is not None and lean is not None
        assert lean <= resident, lane_id
        assert offload is None or offload < lean, lane_id  # what streaming holds at least must be measured


@pytest.mark.parametrize("lane_id", MEASURED_LANES)
def test_the_first_rung_follows_the_memory(lane_id: str) -> None:
    lane = CATALOGUE[lane_id]
    chosen = [memory.first_rung(lane, own_shape(lane), card * GIB, SHIPPED) for card in (140, 48, 24, 16, 12)]
    assert chosen[0] == 0
    assert all(a is not None and b is not None and a <= b for a, b in itertools.pairwise(chosen))
    capped = memory.first_rung(lane, own_shape(lane), 140 * GIB, SHIPPED, memory_cap_gib=16)
    assert capped is not None and chosen[2] is not None and chosen[2] <= capped


def test_a_tight_rung_is_tried_before_the_picture_changes() -> None:
    """SkyReels V1 held 11.4 GiB when it streamed under 12 GiB, of which tensors took 4.2."""
    lane = CATALOGUE["skyreels-v1-hunyuan-i2v"]
    rung = memory.first_rung(lane, own_shape(lane), 10 * GIB, SHIPPED)
    assert rung is not None and lane.ladder[rung].name == "offload"


def test_nothing_fits_a_card_that_is_smaller_than_any_rung_and_the_refusal_names_what_would() -> None:
    lane = CATALOGUE["skyreels-v2-df-14b-540p"]
    asked, free = own_shape(lane), 8 * GIB
    neutral = replace(lane, ladder=tuple(rung for rung in lane.ladder if not rung.changes_picture))
    assert memory.first_rung(neutral, asked, free, only(lane.id, rung="offload")) is None
    nearest = memory.nearest_shape_that_fits(neutral, asked, free, only(lane.id, rung="offload"))
    assert nearest is not None
    assert (nearest.width_px, nearest.height_px) == (asked.width_px, asked.height_px)
    assert nearest.num_frames < asked.num_frames and lane.constraints.frames.is_legal(nearest.num_frames)
    assert memory.first_rung(neutral, nearest, free, only(lane.id, rung="offload")) is not None
    smaller = memory.nearest_shape_that_fits(neutral, asked, 3 * GIB, only(lane.id, rung="offload"))
    assert smaller is None or smaller.width_px < asked.width_px


@pytest.mark.parametrize(("peak_gib", "card"), [(5.0, 8), (7.4, 8), (7.5, 10), (15.3, 16), (15.5, 20), (500.0, None)])
def test_a_card_holds_the_peak_and_what_cuda_takes(peak_gib: float, card: int | None) -> None:
    assert memory.card_gib(int(peak_gib * GIB)) == card


# --- files


def test_a_measured_file_with_a_wrong_key_or_another_gpu_is_refused() -> None:
    good = {"gpu": "A", "sources": [], "clips": [clip_content("A")]}
    assert len(clips_from_json(good, "a.json")) == 1
    with pytest.raises(BadRequest, match=r"a\.json: unknown key 'clips\[0\]\.stepz'"):
        clips_from_json({**good, "clips": [{**clip_content("A"), "stepz": 1}]}, "a.json")
    with pytest.raises(BadRequest, match="one file holds one GPU"):
        clips_from_json({**good, "clips": [clip_content("B")]}, "a.json")
    with pytest.raises(BadRequest, match="no completed clip"):
        clips_from_json({**good, "clips": [{**clip_content("A"), "step_s": []}]}, "a.json")


def clip_content(gpu: str) -> dict[str, Any]:
    shape = {"width_px": 64, "height_px": 64, "num_frames": 9}
    return {
        "lane_id": "x",
        "rung": "resident",
        "shape": shape,
        "gpu": gpu,
        "steps": 2,
        "clips": 1,
        "step_s": [1.0],
    }


def test_a_lane_file_says_what_a_clip_costs_in_known_words() -> None:
    content = tomllib.loads((DEPLOY / "lanes" / "wan2-1-t2v-1-3b.toml").read_text())
    content["cost"]["guidance"]["doubles"] = "steps"
    with pytest.raises(BadRequest, match="'steps' is none of forwards, batch"):
        lanes.from_json(content, "x.toml")
