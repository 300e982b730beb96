"""Lane files: the delivered ones load, and what is wrong with a lane is said with file, key and the legal form."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from screentest.errors import BadRequest
from screentest.lanes import FrameRule, from_json, lane_digest, load_lane, load_lanes, to_json

LANES = Path(__file__).parents[2] / "deploy" / "lanes"
TITLES = {
    "wan2-1-t2v-1-3b": "Wan 2.1 T2V 1.3B",
    "cogvideox-2b": "CogVideoX 2B",
    "cogvideox-5b": "CogVideoX 5B",
    "mochi-1-preview": "Mochi 1 Preview",
    "skyreels-v2-df-14b-540p": "SkyReels V2 DF 14B 540P",
    "ltx-video-13b-distilled": "LTX Video 13B Distilled",
    "hunyuanvideo-i2v": "HunyuanVideo I2V",
    "skyreels-v1-hunyuan-i2v": "SkyReels V1 Hunyuan I2V",
    "skyreels-v2-i2v-14b-540p": "SkyReels V2 I2V 14B 540P",
    "stable-video-diffusion-xt": "Stable Video Diffusion XT",
}
NEXT_TITLES = {
    "wan2-2-ti2v-5b": "Wan 2.2 TI2V 5B",
    "wan2-2-t2v-a14b": "Wan 2.2 T2V A14B",
    "hunyuanvideo-1-5-t2v": "HunyuanVideo 1.5 T2V",
    "hunyuanvideo-1-5-i2v": "HunyuanVideo 1.5 I2V",
    "kandinsky-5-t2v-lite": "Kandinsky 5.0 T2V Lite",
    "ltx-2": "LTX-2",
    "sana-video-2b": "SANA-Video 2B",
}
DEMO_FRAMES = 25  # what the demo sweep asks of every lane


@pytest.fixture
def content() -> dict[str, Any]:
    """The content of a delivered lane, to be spoilt."""
    return tomllib.loads((LANES / "wan2-1-t2v-1-3b.toml").read_text())


def refusal(content: dict[str, Any]) -> str:
    with pytest.raises(BadRequest) as caught:
        from_json(content, "some.toml")
    return str(caught.value)


def test_the_ten_lanes_of_the_case_study_the_next_ones_and_two_stubs_load() -> None:
    lanes = load_lanes(LANES)
    assert {lane.id: lane.title for lane in lanes.values() if lane.env != "stub"} == TITLES | NEXT_TITLES
    assert sorted(lane.id for lane in lanes.values() if lane.env == "stub") == ["stub", "stub-i2v"]


def test_half_of_the_ten_lanes_take_a_keyframe() -> None:
    lanes = load_lanes(LANES)
    assert sum(lanes[lane_id].task == "i2v" for lane_id in TITLES) == 5
    assert all((lane.task == "i2v") == lane.takes("keyframe") for lane in lanes.values())


@pytest.mark.parametrize("lane_id", [*TITLES, *NEXT_TITLES])
def test_parameters_and_weights_are_the_sum_of_the_components(lane_id: str) -> None:
    lane = load_lane(LANES / f"{lane_id}.toml")
    assert lane.model is not None
    total = sum(component.params or 0 for component in lane.components.values())
    assert lane.model.parameters_b == pytest.approx(total / 1e9, abs=0.01)
    assert lane.model.weights_gib_16bit == pytest.approx(total * 2 / 2**30, abs=0.1)


def test_the_frame_count_of_the_demo_is_legal_in_every_lane() -> None:
    assert all(lane.constraints.frames.is_legal(DEMO_FRAMES) for lane in load_lanes(LANES).values())


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ((), "titel", "'title'"),
        (("pipeline",), "adaptor", "'adapter'"),
        (("constraints", "frames"), "multipel", "'multiple'"),
        (("parameters",), "negativ_prompt", "'negative_prompt'"),
        (("defaults",), "widht_px", "'width_px'"),
        (("components", "vae"), "parms", "'params'"),
        (("miniature", "defaults"), "step", "'steps'"),
    ],
)
def test_unknown_key_names_file_key_and_nearest_legal_key(
    content: dict[str, Any], path: tuple[str, ...], wrong: str, right: str
) -> None:
    table = content
    for key in path:
        table = table[key]
    table[wrong] = "x"
    message = refusal(content)
    assert message.startswith("some.toml: unknown key")
    assert ".".join((*path, wrong)) in message
    assert f"did you mean {right}?" in message


def test_unknown_key_of_a_rung_is_an_error(content: dict[str, Any]) -> None:
    content["ladder"][1]["layerwise_fp16"] = True
    assert "ladder[1].layerwise_fp16" in refusal(content)


def test_missing_key_is_an_error(content: dict[str, Any]) -> None:
    del content["limits"]["attempt_s"]
    assert refusal(content) == "some.toml: 'limits.attempt_s' is missing"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("title",), 5, "title: wants a text, got 5"),
        (("limits", "load_s"), "900", "limits.load_s: wants a whole number or a number"),
        (("limits", "load_s"), True, "limits.load_s: wants"),
        (("task",), "v2v", "task: 'v2v' is none of t2v, i2v"),
        (("pipeline", "dtype", "vae"), "float8", "pipeline.dtype.vae: 'float8' is none of"),
        (("model",), "wan", "model: wants a table"),
    ],
)
def test_wrong_type_or_word_is_an_error(
    content: dict[str, Any], path: tuple[str, ...], value: object, says: str
) -> None:
    table = content
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    assert says in refusal(content)


def test_dotted_id_is_refused_with_its_legal_form(content: dict[str, Any]) -> None:
    content["id"] = "wan2.1-t2v-1.3b"
    assert "call it 'wan2-1-t2v-1-3b'" in refusal(content)


def test_default_that_breaks_the_lanes_own_rule_is_an_error(content: dict[str, Any]) -> None:
    content["defaults"]["num_frames"] = 80
    assert "defaults.num_frames" in refusal(content)
    content["defaults"]["num_frames"] = 81
    content["miniature"]["defaults"]["width_px"] = 90
    assert "miniature.defaults.width_px" in refusal(content)


def test_image_lane_without_a_keyframe_keyword_is_an_error(content: dict[str, Any]) -> None:
    content["task"] = "i2v"
    assert "parameters.keyframe" in refusal(content)


def test_dotted_keyword_must_begin_with_a_component(content: dict[str, Any]) -> None:
    content["parameters"]["guidance_scale"] = "guider.guidance_scale"
    assert "parameters.guidance_scale: 'guider.guidance_scale': there is no components.guider" in refusal(content)


def test_size_is_a_keyword_or_follows_the_keyframe_but_not_both(content: dict[str, Any]) -> None:
    del content["parameters"]["width_px"]
    assert "parameters.width_px: must be there, unless constraints.size_follows_keyframe is true" in refusal(content)
    del content["parameters"]["height_px"]
    content["constraints"]["size_follows_keyframe"] = True
    assert "constraints.size_follows_keyframe: wants the task 'i2v'" in refusal(content)
    content["task"], content["parameters"]["keyframe"], content["ladder"] = "i2v", "image", [{"name": "resident"}]
    lane = from_json(content, "some.toml")
    assert not lane.takes("width_px")
    assert lane.defaults["width_px"] == 832


def test_ladder_must_begin_resident(content: dict[str, Any]) -> None:
    content["ladder"].pop(0)
    assert "must begin with 'resident'" in refusal(content)


def test_file_must_bear_the_lanes_name(tmp_path: Path) -> None:
    path = tmp_path / "wan.toml"
    path.write_text((LANES / "wan2-1-t2v-1-3b.toml").read_text())
    with pytest.raises(BadRequest, match=r"name the file wan2-1-t2v-1-3b\.toml"):
        load_lane(path)


def test_broken_toml_and_missing_files_are_bad_requests(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("id = ")
    with pytest.raises(BadRequest, match="not a TOML file"):
        load_lane(tmp_path / "x.toml")
    with pytest.raises(BadRequest, match="no such lane file"):
        load_lane(tmp_path / "y.toml")
    with pytest.raises(BadRequest, match="no lane files"):
        load_lanes(tmp_path / "nothing")


def test_digest_covers_every_value_and_no_comment(content: dict[str, Any], tmp_path: Path) -> None:
    digest = lane_digest(from_json(content, "a"))
    commented = tmp_path / "wan2-1-t2v-1-3b.toml"
    commented.write_text("# another remark\n" + (LANES / commented.name).read_text())
    assert lane_digest(load_lane(commented)) == digest
    changed = copy.deepcopy(content)
    changed["components"]["vae"]["config"]["dropout"] = 0.1
    assert lane_digest(from_json(changed, "a")) != digest


def test_json_round_trip_keeps_the_lane() -> None:
    for lane in load_lanes(LANES).values():
        again = from_json(to_json(lane), lane.id)
        assert again == lane
        assert lane_digest(again) == lane_digest(lane)


@pytest.mark.parametrize(
    ("asked", "nearest"), [(1, 8), (10, 9), (12, 9), (13, 16), (24, 24), (25, 25), (48, 48), (99, 49)]
)
def test_nearest_legal_frame_count(asked: int, nearest: int) -> None:
    rule = FrameRule(multiple=8, plus=(0, 1), minimum=8, maximum=49)
    assert rule.nearest(asked) == nearest
    assert rule.is_legal(nearest)


@pytest.mark.parametrize(("asked", "nearest"), [(1, 32), (48, 32), (49, 64), (720, 704), (768, 768)])
def test_nearest_legal_size(asked: int, nearest: int) -> None:
    assert load_lane(LANES / "ltx-video-13b-distilled.toml").constraints.nearest_px(asked) == nearest


def test_pipeline_call_maps_names_applies_the_template_and_keeps_fixed_keywords() -> None:
    lane = load_lane(LANES / "skyreels-v1-hunyuan-i2v.toml")
    call = lane.pipeline_call("hub", {"prompt": "a {doll}", "steps": 4, "guidance_scale": 5.0, "keyframe": "x.png"})
    assert call == {
        "guidance_scale": 1.0,  # distilled guidance, always
        "true_cfg_scale": 5.0,
        "prompt": "FPS-24, a {doll}",
        "num_inference_steps": 4,
    }


def test_a_lane_drops_what_it_does_not_take() -> None:
    lane = load_lane(LANES / "stable-video-diffusion-xt.toml")
    assert not lane.takes("prompt")
    assert not lane.takes("negative_prompt")
    call = lane.pipeline_call("hub", {"prompt": "x", "guidance_scale": 2.5, "fps": 7})
    assert "prompt" not in call
    assert call["max_guidance_scale"] == 2.5


def test_miniature_weights_have_smaller_settings() -> None:
    lane = load_lane(LANES / "ltx-video-13b-distilled.toml")
    assert lane.defaults_for("miniature")["num_frames"] == DEMO_FRAMES
    assert lane.defaults_for("full-random") == dict(lane.defaults)
    assert len(lane.pipeline_call("miniature", {})["timesteps"]) == 2
    assert len(lane.pipeline_call("hub", {})["timesteps"]) == 8
