"""`screentest lanes doctor`: passes every shipped lane, and tells each broken file or folder by its own reason."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import broken_weights as broken
from tests.broken_weights import Break

from .runner_process import LANES, RUNNER_SOURCE, env_python, lane_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODEL_LANES = sorted(path.stem for path in LANES.glob("*.toml") if not path.stem.startswith("stub"))
WAN, I2V, SVD, LTX = (
    "wan2-1-t2v-1-3b",
    "skyreels-v2-i2v-14b-540p",
    "stable-video-diffusion-xt",
    "ltx-video-13b-distilled",
)
HUNYUAN, MOCHI = "hunyuanvideo-i2v", "mochi-1-preview"
# Four minutes of two cores; the wall clock of a busy machine says nothing.
LIMIT_CPU_S = 480.0


def doctor(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and checks of the real command."""
    command = Path(sys.executable).with_name("screentest")
    result = subprocess.run(
        [command, "lanes", "doctor", "--json", "--limit-s", "600", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in {0, 1}, result.stderr[-3000:]
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]


def test_every_shipped_lane_passes() -> None:
    began = cpu_s()
    status, checks = doctor()
    assert [check for check in checks if check["status"] != "ok"] == []
    assert status == 0
    assert {check["lane"] for check in checks} == set(MODEL_LANES)
    assert len(MODEL_LANES) == 17
    assert cpu_s() - began < LIMIT_CPU_S
    for lane_id in MODEL_LANES:
        lane = lane_of(lane_id)
        done = {check["check"] for check in checks if check["lane"] == lane_id}
        assert done >= {"signature", "preflight", "load", "clip", "steps", "parameters", "frames rule", "size rule"}
        assert done >= {"cancel", "repeat", *(f"rung {rung.name}" for rung in lane.ladder[1:])}


def cpu_s() -> float:
    """Processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One shipped lane, changed in one place. edits: of the file's text, each (old, new). break_it: of its folder."""

    name: str
    lane_id: str = WAN
    edits: tuple[tuple[str, str], ...] = ()
    break_it: Break | None = None
    check: str
    reason: str


MUTATIONS = (
    # the file
    Mutation(
        name="unknown-key",
        edits=(("[limits]\n", "[limits]\ncolour = 1\n"),),
        check="file",
        reason="unknown key 'limits.colour'",
    ),
    Mutation(name="missing-key", edits=(('class = "WanPipeline"\n', ""),), check="file", reason="pipeline.class"),
    Mutation(
        name="number-in-quotes",
        edits=(("steps = 50\n", 'steps = "50"\n'),),
        check="file",
        reason="defaults.steps: wants a whole number, got '50'",
    ),
    Mutation(
        name="unknown-env",
        edits=(('env = "diffusers"', 'env = "diffuser"'),),
        check="signature",
        reason="the model env 'diffuser' is not there",
    ),
    Mutation(
        name="template-without-prompt",
        edits=(("[pipeline]\n", '[pipeline]\nprompt_template = "A film."\n'),),
        check="file",
        reason="pipeline.prompt_template: lacks '{prompt}'",
    ),
    Mutation(
        name="rung-that-does-nothing",
        edits=(('name = "lean"\ndrop_text_encoders = true\nvae_tiling = true\n', 'name = "lean"\n'),),
        check="ladder",
        reason="the rung 'lean' changes nothing against 'resident'",
    ),
    # against the pipeline class
    Mutation(
        name="wrong-class",
        edits=(('"WanPipeline"', '"WanPipelin"'),),
        check="signature",
        reason="has no pipeline 'WanPipelin'",
    ),
    Mutation(
        name="class-of-another-task",
        edits=(('"WanPipeline"', '"WanImageToVideoPipeline"'),),
        check="signature",
        reason="WanImageToVideoPipeline wants 'image', and the lane passes none",
    ),
    Mutation(
        name="unknown-keyword",
        edits=(("[call]\n", "[call]\nmotion_bucket_id = 127\n"),),
        check="signature",
        reason="WanPipeline takes no 'motion_bucket_id'",
    ),
    Mutation(
        name="parameter-to-nowhere",
        edits=(('steps = "num_inference_steps"', 'steps = "inference_steps"'),),
        check="signature",
        reason="WanPipeline takes no 'inference_steps'",
    ),
    Mutation(
        name="dtype-mix",
        lane_id=MOCHI,
        edits=(("dtype = {", 'dtype = { vae = "float32",'),),
        check="signature",
        reason="MochiPipeline computes in one dtype, the lane names several",
    ),
    # the folder
    Mutation(
        name="missing-shard", break_it=broken.lose_shard, check="preflight", reason="00002.safetensors is missing"
    ),
    Mutation(name="truncated-shard", break_it=broken.cut_shard, check="preflight", reason="safetensors is truncated"),
    Mutation(
        name="sixteen-channels",
        lane_id=I2V,
        break_it=broken.text_to_video_denoiser,
        check="preflight",
        reason="has in_channels 16, the lane wants 36",
    ),
    Mutation(name="gguf-only", break_it=broken.only_gguf, check="preflight", reason="weights only as GGUF"),
    Mutation(name="pickle-only", break_it=broken.only_pickle, check="preflight", reason="weights only as pickle"),
    Mutation(
        name="no-model-index", break_it=broken.lose_model_index, check="preflight", reason="has no model_index.json"
    ),
    Mutation(
        name="index-of-another-pipeline",
        break_it=broken.another_pipeline,
        check="preflight",
        reason="names the pipeline LTXPipeline, the lane wants WanPipeline",
    ),
    Mutation(
        name="missing-tokenizer",
        break_it=broken.lose_tokenizer,
        check="preflight",
        reason="the component tokenizer is missing",
    ),
    Mutation(
        name="wrong-tokenizer-class",
        lane_id=HUNYUAN,
        edits=(
            ('class = "PreTrainedTokenizerFast"', 'class = "LlamaTokenizerFast"'),
            ('index_class = "LlamaTokenizerFast"\n', ""),
        ),
        break_it=lambda _folder: None,
        check="preflight",
        reason="names LlamaTokenizerFast as tokenizer, which transformers 5 reads without its spaces",
    ),
    Mutation(
        name="missing-variant",
        lane_id=SVD,
        break_it=broken.lose_variant,
        check="preflight",
        reason="has no weights of the variant 'fp16'",
    ),
    # what only running shows
    Mutation(
        name="zero-text-embedding",
        break_it=broken.zero_text_embedding,
        check="load",
        reason="the token embedding of text_encoder (UMT5EncoderModel) is all zero",
    ),
    Mutation(
        name="weights-not-a-number",
        break_it=broken.not_a_number,
        check="clip",
        reason="nan while denoising: the latents of step 1 are not finite",
    ),
    Mutation(
        name="frames-rule-off",
        edits=(("frames = { multiple = 4,", "frames = { multiple = 2,"),),
        check="frames rule",
        reason="7 frames are legal in the lane file: truncated while decoding: the pipeline returned 5 frames",
    ),
    Mutation(
        name="few-frames-off",
        lane_id="cogvideox-2b",
        edits=(("multiple = 8, plus = [0, 1], minimum = 8,", "multiple = 4, plus = [1], minimum = 5,"),),
        check="frames rule",
        reason="5 frames are legal in the lane file: truncated while decoding: the pipeline returned 8 frames",
    ),
    Mutation(
        name="size-multiple-off",
        edits=(("size_multiple_px = 16", "size_multiple_px = 8"),),
        check="size rule",
        reason="104x72 is legal in the lane file",
    ),
    Mutation(
        name="steps-ignored",
        lane_id=LTX,
        edits=(
            ("[parameters]\n", '[parameters]\nsteps = "num_inference_steps"\n'),
            ("[defaults]\n", "[defaults]\nsteps = 8\n"),
        ),
        check="steps",
        reason="asked for 8 steps, the pipeline reported 1/2, 2/2",
    ),
    Mutation(
        name="parameter-without-effect",
        lane_id=LTX,
        edits=(("[parameters]\n", '[parameters]\nnegative_prompt = "negative_prompt"\n'),),
        check="parameters",
        reason="no effect on the clip: negative_prompt (negative_prompt)",
    ),
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The checks of every mutation by its name, of one run of the command."""
    folder = tmp_path_factory.mktemp("doctor")
    build(sorted({mutation.lane_id for mutation in MUTATIONS if mutation.break_it is not None}), folder / "good")
    files = [mutated(mutation, folder) for mutation in MUTATIONS]
    status, checks = doctor("--miniatures", folder / "broken", *files)
    assert status == 1
    yield {mutation.name: [check for check in checks if check["lane"] == mutation.name] for mutation in MUTATIONS}


def build(lane_ids: list[str], folder: Path) -> None:
    subprocess.run(
        [env_python("diffusers"), Path(__file__).with_name("miniatures_in_one_process.py"), folder],
        input=json.dumps([lane_of(lane_id).content for lane_id in lane_ids]),
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )


def mutated(mutation: Mutation, folder: Path) -> Path:
    """The changed lane file; its folder of weights lies beside it where that is what is broken."""
    text = (LANES / f"{mutation.lane_id}.toml").read_text()
    for old, new in ((f'id = "{mutation.lane_id}"', f'id = "{mutation.name}"'), *mutation.edits):
        assert old in text, old
        text = text.replace(old, new)
    file = folder / f"{mutation.name}.toml"
    file.write_text(text)
    if mutation.break_it is not None:
        target = folder / "broken" / mutation.name
        shutil.copytree(folder / "good" / mutation.lane_id, target)
        mutation.break_it(target)
    return file


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_broken_lane_fails_with_its_own_reason(mutation: Mutation, told: dict[str, list[dict[str, Any]]]) -> None:
    faults = [check for check in told[mutation.name] if check["status"] != "ok"]
    assert [check["check"] for check in faults] == [mutation.check], faults
    assert mutation.reason in faults[0]["detail"]
    assert faults[0]["fix"]
