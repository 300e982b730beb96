"""Reading and judging weights without loading them: headers of safetensors, names of variants, counts and dtypes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screentest_worker import tensor_header, weights_folder, weights_layout
from screentest_worker.findings import Check, Problem
from screentest_worker.tensor_header import Broken, Header, Tensor
from screentest_worker.weights_layout import Expectation, ExpectedPart
from tests.broken_weights import write_tensors

Tensors = dict[str, tuple[str, list[int], bytes]]
DENOISER: Tensors = {
    "patch_embedding.weight": ("F32", [4, 16, 1, 2, 2], b"\0" * 1024),
    "block.weight": ("F32", [4, 4], b"\0" * 64),
}
PART = ExpectedPart(
    library="diffusers", class_name="Denoiser", has_weights=True, params=272, config={"in_channels": 16}
)
EXPECTED = Expectation(lane_id="lane", pipeline_class="Pipe", init={}, variant=None, parts={"transformer": PART})


def made(folder: Path, tensors: Tensors, name: str = "diffusion_pytorch_model.safetensors", **config: object) -> Path:
    """A folder with one component."""
    part = folder / "transformer"
    part.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "Pipe", "transformer": ["diffusers", "Denoiser"]})
    )
    (part / "config.json").write_text(json.dumps(config))
    write_tensors(part / name, tensors)
    return folder


def judged(folder: Path, part: ExpectedPart = PART, variant: str | None = None) -> tuple[Problem, ...]:
    expected = replace(EXPECTED, parts={"transformer": part}, variant=variant)
    return weights_layout.problems(expected, weights_folder.read(folder))


class TestHeader:
    def test_tells_names_dtypes_and_shapes(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "w", {"a": ("BF16", [2, 3], b"\0" * 12)})
        assert tensor_header.read(tmp_path / "w") == Header(tensors=(Tensor(name="a", dtype="BF16", shape=(2, 3)),))

    def test_scalar_has_one_parameter(self) -> None:
        assert Tensor(name="a", dtype="F32", shape=()).parameters == 1

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 1199))
    def test_cut_anywhere_it_is_no_whole_file(self, tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
        file = tmp_path_factory.mktemp("cut") / "w"
        write_tensors(file, DENOISER)
        whole = file.read_bytes()
        assert len(whole) > 1200
        file.write_bytes(whole[:kept])
        assert isinstance(tensor_header.read(file), Broken)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "is no safetensors file"),
            (b"<html><body>not found</body></html>", "is no safetensors file"),
            ((2).to_bytes(8, "little") + b"[]", "has no readable safetensors header"),
            ((9).to_bytes(8, "little") + b'{"a": {}}', "has no readable safetensors header"),
            ((2).to_bytes(8, "little") + b"{}" + b"more", "is 4 bytes longer than its header says"),
        ],
    )
    def test_what_is_no_header_is_said(self, content: bytes, why: str, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(content)
        assert tensor_header.read(tmp_path / "w") == Broken(why=why)

    def test_missing_file_is_no_crash(self, tmp_path: Path) -> None:
        assert tensor_header.read(tmp_path / "w") == Broken(why="cannot be read: No such file or directory")


class TestArchitecture:
    def test_right_weights_are_right(self, tmp_path: Path) -> None:
        assert judged(made(tmp_path, DENOISER, in_channels=16)) == ()

    @pytest.mark.parametrize(
        ("library", "params", "is_right"),
        [
            ("diffusers", 265, True),  # a table of positions that is saved with the weights
            ("diffusers", 250, False),
            ("diffusers", 290, False),
            ("transformers", 230, True),  # the token embedding twice
            ("transformers", 200, False),
            ("transformers", 290, False),
        ],
    )
    def test_parameters_are_counted_with_a_tolerance(
        self, library: str, params: int, is_right: bool, tmp_path: Path
    ) -> None:
        name = "model.safetensors" if library == "transformers" else "diffusion_pytorch_model.safetensors"
        problems = judged(made(tmp_path, DENOISER, name), replace(PART, library=library, params=params))
        assert [problem.check for problem in problems] == [] if is_right else [Check.ARCHITECTURE]
        assert is_right or "has 272 parameters" in problems[0].reason

    def test_part_of_a_larger_published_class_is_not_counted(self, tmp_path: Path) -> None:
        part = replace(PART, params=10, index_class="Larger", class_name="Denoiser")
        assert judged(made(tmp_path, DENOISER), part) == ()

    def test_linear_first_layer_takes_the_channels_of_a_patch(self, tmp_path: Path) -> None:
        tensors: Tensors = {"proj_in.weight": ("F32", [1, 64], b"\0" * 256)}
        part = replace(PART, params=None)
        assert judged(made(tmp_path, tensors), part) == ()
        tensors = {"proj_in.weight": ("F32", [1, 36], b"\0" * 144)}
        assert "takes 36 channels, the lane wants 16" in judged(made(tmp_path, tensors), part)[0].reason

    @pytest.mark.parametrize("dtype", ["F8_E4M3", "U8", "I8"])
    def test_quantized_denoiser_is_refused(self, dtype: str, tmp_path: Path) -> None:
        tensors: Tensors = {**DENOISER, "block.weight": (dtype, [1000], b"\0" * 1000)}
        problems = judged(made(tmp_path, tensors), replace(PART, params=None))
        assert [problem.check for problem in problems] == [Check.DTYPE]
        assert f"stored quantized ({dtype})" in problems[0].reason

    @pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
    def test_any_float_is_cast_at_the_load(self, dtype: str, tmp_path: Path) -> None:
        size = 4 if dtype == "F32" else 2
        tensors: Tensors = {"block.weight": (dtype, [272], b"\0" * 272 * size)}
        assert judged(made(tmp_path, tensors)) == ()


class TestInit:
    @pytest.mark.parametrize(
        ("wanted", "said", "is_right"),
        [
            ({"boundary_ratio": 0.875}, {"boundary_ratio": 0.875}, True),
            ({"boundary_ratio": 0.875}, {}, False),
            ({"boundary_ratio": 0.875}, {"boundary_ratio": 0.9}, False),
            ({"expand_timesteps": False}, {}, True),
            ({"expand_timesteps": False}, {"expand_timesteps": True}, False),
        ],
    )
    def test_arguments_of_the_pipeline_must_be_in_its_index(
        self, wanted: dict[str, object], said: dict[str, object], is_right: bool, tmp_path: Path
    ) -> None:
        made(tmp_path, DENOISER)
        index = tmp_path / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), **said}))
        problems = weights_layout.problems(replace(EXPECTED, init=wanted), weights_folder.read(tmp_path))
        assert (problems == ()) is is_right


class TestVariant:
    @pytest.mark.parametrize(
        "name",
        [
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        ],
    )
    def test_every_name_of_a_variant_is_known(self, name: str, tmp_path: Path) -> None:
        made(tmp_path, DENOISER, name)
        if "-of-" in name:
            index = {"weight_map": dict.fromkeys(DENOISER, name)}
            file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json"
            file.write_text(json.dumps(index))
        assert judged(tmp_path, variant="fp16") == ()
        assert judged(tmp_path) != ()

    def test_tensor_that_no_shard_holds_is_named(self, tmp_path: Path) -> None:
        name = "diffusion_pytorch_model-00001-of-00001.safetensors"
        made(tmp_path, DENOISER, name)
        index = {"weight_map": dict.fromkeys([*DENOISER, "block.bias"], name)}
        (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        assert "lack block.bias and 0 more tensors" in judged(tmp_path)[0].reason
