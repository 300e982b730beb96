"""Which of a repository's files a lane needs, by the names that diffusers and transformers give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from screentest.errors import BadRequest
from screentest.lanes import Lane, load_lanes
from screentest_ui.weights_choice import PublishedFile, Repository, choose, require_pipeline

LANES = {lane.id: lane for lane in load_lanes(Path(__file__).parents[2] / "deploy" / "lanes").values() if lane.model}
COMMIT = "c" * 40


def repository(*paths: str) -> Repository:
    files = tuple(PublishedFile(path=path, size=1, git_oid="0" * 40, sha256=None) for path in paths)
    return Repository(repo="some/model", commit=COMMIT, files=files)


def lane_of(*names: str, variant: str | None = None) -> Lane:
    """The Wan lane with these of its components."""
    lane = LANES["wan2-1-t2v-1-3b"]
    assert lane.model is not None
    return replace(
        lane,
        model=replace(lane.model, variant=variant),
        components={name: lane.components[name] for name in names},
    )


def chosen(lane: Lane, *paths: str, index: dict[str, Any] | None = None) -> set[str]:
    return {file.path for file in choose(lane, repository("model_index.json", *paths), None, index or {})} - {
        "model_index.json"
    }


@pytest.mark.parametrize(
    ("variant", "has", "takes"),
    [
        (None, ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], [0]),
        ("fp16", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], [1]),
        (
            "fp16",
            [
                "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model-00001-of-00001.safetensors",
            ],
            [0, 1, 2],
        ),
        (  # the old names
            "fp16",
            [
                "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
                "diffusion_pytorch_model.safetensors.fp16.index.json",
                "diffusion_pytorch_model-00001-of-00001.safetensors",
                "diffusion_pytorch_model.bin.index.json",
            ],
            [0, 1],
        ),
        (  # diffusers reads the shards where there is a whole file too
            None,
            [
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model-00001-of-00001.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
            ],
            [1, 2],
        ),
    ],
)
def test_weights_of_one_variant_are_chosen_with_their_own_index(
    variant: str | None, has: list[str], takes: list[int]
) -> None:
    paths = [f"transformer/{name}" for name in has]
    assert chosen(lane_of("transformer", variant=variant), *paths) == {paths[number] for number in takes}


def test_variant_that_is_nowhere_is_refused() -> None:
    with pytest.raises(BadRequest, match="no file of the variant 'fp8'"):
        chosen(lane_of("transformer", variant="fp8"), "transformer/diffusion_pytorch_model.safetensors")


def test_component_that_only_the_index_names_is_fetched_as_the_loader_wants_it() -> None:
    index = {"_class_name": "X", "helper": ["transformers", "T5"], "absent": [None, None], "expand_timesteps": False}
    paths = ("helper/model.safetensors", "helper/config.json", "helper/notes.md", "absent/config.json")
    assert chosen(lane_of("tokenizer"), "tokenizer/spiece.model", *paths, index=index) == {
        "tokenizer/spiece.model",
        "helper/model.safetensors",
        "helper/config.json",
    }


def test_index_of_a_stranger_names_no_folder_outside_of_ours() -> None:
    index = {"../../home": ["diffusers", "Evil"]}
    assert chosen(lane_of("tokenizer"), "tokenizer/spiece.model", "../../home/config.json", index=index) == {
        "tokenizer/spiece.model"
    }


def test_component_of_the_lane_that_the_repository_lacks_is_named() -> None:
    with pytest.raises(BadRequest, match=r"the folder 'tokenizer' of some/model at cccccccccccc does not exist"):
        chosen(lane_of("tokenizer"), "transformer/config.json")


def test_folder_without_any_weights_is_named() -> None:
    with pytest.raises(BadRequest, match="holds no weights"):
        chosen(lane_of("transformer"), "transformer/config.json")


def test_repository_of_single_components_is_no_pipeline() -> None:
    with pytest.raises(BadRequest, match=r"model\.base_repo"):
        require_pipeline(repository("config.json", "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("lane", LANES.values(), ids=LANES.keys())
def test_every_lane_takes_all_its_components_from_an_ordinary_repository(lane: Lane) -> None:
    assert lane.model is not None
    ending = f".{lane.model.variant}.safetensors" if lane.model.variant else ".safetensors"
    paths = [f"{name}/config.json" for name in lane.components]
    paths += [f"{name}/model{ending}" for name, part in lane.components.items() if part.params is not None]
    main = base = repository("model_index.json", *paths)
    is_assembled = lane.model.base_repo is not None
    if is_assembled:
        main = repository("config.json", f"model{ending}")
    files = choose(lane, main, base if is_assembled else None, {})
    assert {file.path for file in files} - {"model_index.json"} == set(paths)
