"""Preflight of real miniature folders: the good ones pass, each broken one is refused with its own reason.

And what `ast` reads of a pipeline class is what `inspect` sees.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from screentest.lanes import Lane, from_json
from screentest_worker import signature
from screentest_worker.facts import inspect_lane
from screentest_worker.findings import Check, Problem
from screentest_worker.signature import Method, PipelineSignature
from tests import broken_weights as broken
from tests.broken_weights import Break

from .runner_process import LANES, RUNNER_SOURCE, env_python, lane_of

pytestmark = pytest.mark.slow

MODEL_LANES = sorted(path.stem for path in LANES.glob("*.toml") if not path.stem.startswith("stub"))
WAN, I2V, SVD = "wan2-1-t2v-1-3b", "skyreels-v2-i2v-14b-540p", "stable-video-diffusion-xt"


class Built:
    """The miniatures of all lanes, and what `inspect` says of their classes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        asked = [lane_of(lane_id).content for lane_id in MODEL_LANES]
        result = subprocess.run(
            [env_python("diffusers"), Path(__file__).with_name("miniatures_in_one_process.py"), folder],
            input=json.dumps(asked),
            env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        self.inspected: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])

    def copy(self, lane_id: str, target: Path) -> Path:
        return Path(shutil.copytree(self.folder / lane_id, target / lane_id))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("miniatures"))


def inspected(lane: Lane, folder: Path) -> tuple[Problem, ...]:
    return inspect_lane(lane, folder, env_python(lane.env), miniature=True)


def changed(lane_id: str, table: str, **values: Any) -> Lane:
    """The lane with other values in one table of its file (`pipeline`, `components.vae`)."""
    content = json.loads(json.dumps(lane_of(lane_id).content))
    part = content
    for key in table.split("."):
        part = part.setdefault(key, {})
    part.update(values)
    return from_json(content, f"{lane_id}.toml")


@pytest.mark.parametrize("lane_id", MODEL_LANES)
def test_source_says_what_inspect_sees(lane_id: str, built: Built) -> None:
    packages = signature.site_packages(env_python("diffusers"))
    assert packages is not None
    read = signature.read(packages, lane_of(lane_id).pipeline.class_name)
    assert isinstance(read, PipelineSignature), read
    seen = built.inspected[lane_id]
    assert as_json(read.call) == seen["call"]
    assert as_json(read.init) == seen["init"]
    assert list(read.optional_components) == seen["optional_components"]


def as_json(method: Method) -> Mapping[str, Any]:
    return {"parameters": [[item.name, item.required] for item in method.parameters], "takes_any": method.takes_any}


@pytest.mark.parametrize("lane_id", MODEL_LANES)
def test_good_folder_passes_within_a_second(lane_id: str, built: Built) -> None:
    began = time.perf_counter()
    assert inspected(lane_of(lane_id), built.folder / lane_id) == ()
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize("harmless", [broken.into_shards, broken.pickle_beside, broken.more_files, broken.as_links])
@pytest.mark.parametrize("lane_id", [WAN, I2V, SVD])
def test_unlike_but_whole_folder_passes(lane_id: str, harmless: Break, built: Built, tmp_path: Path) -> None:
    folder = built.copy(lane_id, tmp_path)
    harmless(folder)
    assert inspected(lane_of(lane_id), folder) == ()


@pytest.mark.parametrize(
    ("lane_id", "break_it", "check", "reason"),
    [
        (WAN, broken.lose_the_folder, Check.LAYOUT, "the weights are not there"),
        (WAN, broken.lose_model_index, Check.LAYOUT, "has no model_index.json: it is no diffusers pipeline"),
        (WAN, broken.cut_model_index, Check.LAYOUT, "model_index.json is no JSON"),
        ("skyreels-v1-hunyuan-i2v", broken.bare_transformer, Check.LAYOUT, "is a bare HunyuanVideoTransformer3DModel"),
        (WAN, broken.another_pipeline, Check.LAYOUT, "names the pipeline LTXPipeline, the lane wants WanPipeline"),
        (WAN, broken.another_denoiser, Check.ARCHITECTURE, "names FluxTransformer2DModel as transformer"),
        (WAN, broken.lose_component_of_index, Check.LAYOUT, "model_index.json names no vae"),
        (WAN, broken.lose_shard, Check.LAYOUT, "-00002-of-00002.safetensors is missing"),
        (WAN, broken.lose_shard_index, Check.LAYOUT, "shards without their index"),
        (WAN, broken.cut_shard, Check.LAYOUT, "-00001-of-00002.safetensors is truncated"),
        (WAN, broken.cut_weights, Check.LAYOUT, "vae/diffusion_pytorch_model.safetensors is truncated"),
        (WAN, broken.cut_header, Check.LAYOUT, "is truncated: 100 bytes"),
        (WAN, broken.error_page_for_weights, Check.LAYOUT, "is no safetensors file"),
        (WAN, broken.only_pickle, Check.LAYOUT, "weights only as pickle (diffusion_pytorch_model.bin)"),
        (WAN, broken.only_gguf, Check.LAYOUT, "weights only as GGUF (diffusion_pytorch_model.gguf)"),
        (WAN, broken.lose_weights, Check.LAYOUT, "holds no weights; wanted is diffusion_pytorch_model.safetensors"),
        (WAN, broken.lose_config, Check.LAYOUT, "transformer has no config.json"),
        (WAN, broken.cut_config, Check.LAYOUT, "vae/config.json is no JSON"),
        (WAN, broken.lose_tokenizer, Check.LAYOUT, "the component tokenizer is missing"),
        (WAN, broken.lose_vocabulary, Check.LAYOUT, "has no vocabulary"),
        (WAN, broken.empty_vocabulary, Check.LAYOUT, "tokenizer.json is empty"),
        (WAN, broken.lose_scheduler_config, Check.LAYOUT, "the component scheduler is missing"),
        (SVD, broken.lose_shard, Check.LAYOUT, "diffusion_pytorch_model.fp16-00002-of-00002.safetensors is missing"),
        (SVD, broken.lose_variant, Check.LAYOUT, "no weights of the variant 'fp16'"),
        (
            I2V,
            broken.text_to_video_denoiser,
            Check.ARCHITECTURE,
            "has in_channels 16, the lane wants 36 (16 of the latents and 20 of keyframe and mask)",
        ),
        (I2V, broken.text_to_video_tensors, Check.ARCHITECTURE, "takes 16 channels, the lane wants 36"),
    ],
)
def test_broken_folder_is_refused_with_its_own_reason(
    lane_id: str, break_it: Break, check: Check, reason: str, built: Built, tmp_path: Path
) -> None:
    folder = built.copy(lane_id, tmp_path)
    break_it(folder)
    problems = inspected(lane_of(lane_id), folder)
    assert len(problems) == 1, [problem.reason for problem in problems]
    assert problems[0].check is check
    assert reason in problems[0].reason
    assert problems[0].fix


@pytest.mark.parametrize(
    ("lane", "check", "reason", "fix"),
    [
        (
            changed(WAN, "pipeline", **{"class": "WanPipelin"}),
            Check.SIGNATURE,
            "has no pipeline 'WanPipelin'",
            "WanPipeline",
        ),
        (
            changed(WAN, "pipeline", **{"class": "WanImageToVideoPipeline"}),
            Check.SIGNATURE,
            "WanImageToVideoPipeline wants 'image', and the lane passes none",
            "of the lane's own task",
        ),
        (
            changed(I2V, "pipeline", **{"class": "SkyReelsV2Pipeline"}),
            Check.SIGNATURE,
            "SkyReelsV2Pipeline takes no 'image'",
            "correct the lane file",
        ),
        (
            changed(SVD, "parameters", guidance_scale="guidance_scale"),
            Check.SIGNATURE,
            "StableVideoDiffusionPipeline takes no 'guidance_scale'",
            "'max_guidance_scale'",
        ),
        (
            changed(WAN, "call", motion_bucket_id=127),
            Check.SIGNATURE,
            "WanPipeline takes no 'motion_bucket_id'",
            "it takes prompt",
        ),
        (
            changed(WAN, "components.vea", **{"library": "diffusers", "class": "AutoencoderKLWan"}),
            Check.SIGNATURE,
            "WanPipeline has no part for components.vea",
            "did you mean 'vae'",
        ),
        (
            changed("mochi-1-preview", "pipeline", dtype={"default": "bfloat16", "vae": "float32"}),
            Check.DTYPE,
            "MochiPipeline computes in one dtype",
            "only a default",
        ),
        (
            changed("cogvideox-5b", "pipeline", dtype={"default": "float16"}),
            Check.DTYPE,
            "its clips are black",
            "bfloat16",
        ),
        (
            changed("hunyuanvideo-i2v", "components.vae", **{"class": "AutoencoderKLWan"}),
            Check.ARCHITECTURE,
            "names AutoencoderKLHunyuanVideo as vae, the lane wants AutoencoderKLWan",
            "components.vae.class",
        ),
    ],
)
def test_wrong_lane_file_is_refused_with_its_own_reason(
    lane: Lane, check: Check, reason: str, fix: str, built: Built
) -> None:
    problems = inspected(lane, built.folder / lane.id)
    found = [problem for problem in problems if problem.check is check and reason in problem.reason]
    assert len(found) == 1, [problem.reason for problem in problems]
    assert fix in found[0].fix


def test_llama_tokenizer_without_the_right_class_is_refused(built: Built) -> None:
    """The garbage prompt of both Hunyuan lanes: transformers 5 reads LlamaTokenizerFast without its spaces."""
    content = json.loads(json.dumps(lane_of("hunyuanvideo-i2v").content))
    del content["components"]["tokenizer"]["index_class"]
    problems = inspected(from_json(content, "hunyuanvideo-i2v.toml"), built.folder / "hunyuanvideo-i2v")
    assert ["names LlamaTokenizerFast as tokenizer" in problem.reason for problem in problems] == [True]


def test_every_problem_is_told_at_once(built: Built, tmp_path: Path) -> None:
    folder = built.copy(WAN, tmp_path)
    broken.cut_weights(folder)
    broken.lose_tokenizer(folder)
    broken.only_pickle(folder)
    problems = inspected(changed(WAN, "call", motion_bucket_id=127), folder)
    assert {problem.check for problem in problems} == {Check.LAYOUT, Check.SIGNATURE}
    assert len(problems) == 4


def test_published_numbers_are_not_those_of_a_miniature(built: Built) -> None:
    """The same folder as hub weights: too few parameters in each component that has any."""
    lane = lane_of(WAN)
    problems = inspect_lane(lane, built.folder / WAN, env_python(lane.env))
    assert [problem.check for problem in problems] == [Check.ARCHITECTURE] * 3
    assert "the lane wants 1.42 B" in problems[0].reason


def test_env_without_diffusers_is_named(built: Built) -> None:
    lane = lane_of(WAN)
    problems = inspect_lane(lane, built.folder / WAN, env_python("stub"), miniature=True)
    assert [problem.reason for problem in problems] == ["the model env has no diffusers"]
