"""Whether a folder of weights is the pipeline that a lane expects: complete, readable, of its architecture. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from screentest.lanes import Lane
from screentest.memory import DENOISERS
from screentest_worker.findings import Check, Problem
from screentest_worker.tensor_header import Broken, Tensor
from screentest_worker.weights_folder import INDEX, Part, WeightsFolder

# Entries of a config.json that say what a component is made for; other entries may be left to the class's defaults.
_CHANNEL_KEYS: Final = (
    "in_channels",
    "in_visual_dim",
    "out_channels",
    "out_visual_dim",
    "latent_channels",
    "z_dim",
    "image_dim",
)

# The layer that takes the latents: its second dimension is the channels it takes, whatever config.json says.
_FIRST_LAYERS: Final = (
    "patch_embedding.weight",
    "patch_embed.proj.weight",
    "x_embedder.proj.weight",
    "conv_in.weight",
    "proj_in.weight",
)

# Of components of diffusers: a position table may be saved with the weights (CogVideoX 2B: 2 %); the nearest wrong
# checkpoint, text-to-video instead of image-to-video, is 13 % off.
_DIFFUSERS_TOLERANCE: Final = (0.95, 1.05)
# Of components of transformers: the token embedding may be saved twice (UMT5-XXL: 16 %), and position ids with it.
_TRANSFORMERS_TOLERANCE: Final = (0.95, 1.25)

_VOCABULARIES: Final = frozenset(
    {"tokenizer.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"}
)
_PREPROCESSORS: Final = frozenset({"preprocessor_config.json", "processor_config.json"})
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
_QUANTIZED: Final = frozenset({"U8", "I8", "I4", "U4", "F4", "F8_E4M3", "F8_E5M2", "F8_E8M0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedPart:
    """index_class: what model_index.json may name besides class_name. params: None = not known, any count will do."""

    library: str
    class_name: str
    index_class: str | None = None
    has_weights: bool = False
    params: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def published_class(self) -> str:
        return self.index_class or self.class_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a lane's weights must be. init: arguments of the pipeline that model_index.json must carry."""

    lane_id: str
    pipeline_class: str
    init: Mapping[str, Any]
    variant: str | None
    parts: Mapping[str, ExpectedPart]

    @classmethod
    def of_lane(cls, lane: Lane, *, miniature: bool = False) -> Expectation:
        """The published weights; or a miniature, whose sizes are its own and whose parameters nobody has counted."""
        return cls(
            lane_id=lane.id,
            pipeline_class=lane.pipeline.class_name,
            init=lane.pipeline.init,
            variant=lane.model.variant if lane.model is not None else None,
            parts={
                name: ExpectedPart(
                    library=part.library,
                    class_name=part.class_name,
                    index_class=part.index_class,
                    has_weights=part.params is not None,
                    params=None if miniature else part.params,
                    config={**part.config, **(part.miniature if miniature else {})},
                )
                for name, part in lane.components.items()
            },
        )

    @property
    def pull(self) -> str:
        return f"run `screentest models pull {self.lane_id}`"


def problems(expected: Expectation, found: WeightsFolder) -> tuple[Problem, ...]:
    """Everything wrong, most telling first; empty for weights that will load."""
    index = found.index
    if index is None:
        return (_no_index(expected, found),)
    return (
        *_of_index(expected, index, found.path),
        *(
            problem
            for name, part in expected.parts.items()
            for problem in _of_part(expected, name, part, found.parts.get(name), found.path)
        ),
        *_of_variant(expected, found),
    )


def checkpoint_problems(found: WeightsFolder, fetch: str) -> tuple[Problem, ...]:
    """What a bare checkpoint of transformers lacks, of config, weights, tokenizer and preprocessor."""
    root, again = found.root, f"{fetch} again"
    if not found.exists or not root.files:
        return (_layout(f"the weights are not there: no files in {found.path}", fetch),)
    wanted = ExpectedPart(library="transformers", class_name="", has_weights=True)
    lacking = [_layout(f"{found.path}/{file} {why}", again) for file, why in root.unreadable.items()]
    if "config.json" not in root.files:
        lacking.append(_layout(f"{found.path} has no config.json", again))
    lacking += _of_files(wanted, root, None, found.path, again)
    if not _VOCABULARIES & root.files.keys():
        wants = ", ".join(sorted(_VOCABULARIES))
        lacking.append(_layout(f"the tokenizer in {found.path} has no vocabulary (one of {wants})", again))
    if not _PREPROCESSORS & root.files.keys():
        wants = " or ".join(sorted(_PREPROCESSORS))
        lacking.append(_layout(f"{found.path} has no {wants}: nothing says how pictures are read", again))
    return tuple(lacking)


def _layout(reason: str, fix: str) -> Problem:
    return Problem(check=Check.LAYOUT, reason=reason, fix=fix)


def _no_index(expected: Expectation, found: WeightsFolder) -> Problem:
    if not found.exists:
        return _layout(f"the weights are not there: no folder {found.path}", expected.pull)
    if INDEX in found.root.unreadable:
        return _layout(f"{found.path}/{INDEX} {found.root.unreadable[INDEX]}", f"{expected.pull} again")
    bare = found.root.configs.get("config.json", {}).get("_class_name")
    if bare:
        reason = f"{found.path} has no {INDEX}: it is a bare {bare}, not a pipeline"
        return _layout(reason, f"{expected.pull}, which assembles the whole pipeline")
    refused = _refused_format(found.root)
    if refused:
        return _layout(f"{found.path} has no {INDEX}, and its weights are only {refused}", _SAFETENSORS_ONLY)
    return _layout(f"{found.path} has no {INDEX}: it is no diffusers pipeline", expected.pull)


_SAFETENSORS_ONLY: Final = "Screentest loads safetensors alone: name a repository that has them in model.repo"


# ---- model_index.json


def _of_index(expected: Expectation, index: Mapping[str, Any], path: str) -> Iterator[Problem]:
    named = index.get("_class_name")
    if named != expected.pipeline_class:
        reason = f"{INDEX} in {path} names the pipeline {named}, the lane wants {expected.pipeline_class}"
        yield _layout(reason, f"correct model.repo or pipeline.class of the lane, then {expected.pull}")
    for name, value in expected.init.items():
        found = index.get(name)
        if found != value and (found is not None or value):  # absent and False, or 0, are the same
            reason = f"{INDEX} says {name} = {found!r}, pipeline.init of the lane says {value!r}"
            yield _layout(f"{reason}: they are another model's weights", f"correct the lane, then {expected.pull}")
    for name, part in expected.parts.items():
        yield from _of_entry(expected, name, part, index.get(name))


def _of_entry(expected: Expectation, name: str, part: ExpectedPart, entry: Any) -> Iterator[Problem]:
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found is None:
        fix = f"correct model.repo or components.{name} of the lane, then {expected.pull}"
        yield _layout(f"{INDEX} names no {name}, and the lane has one", fix)
    elif part.has_weights and found not in {part.class_name, part.published_class}:
        reason = f"{INDEX} names {found} as {name}, the lane wants {part.published_class}"
        yield Problem(check=Check.ARCHITECTURE, reason=reason, fix=f"correct model.repo or components.{name}.class")
    elif found == "LlamaTokenizerFast" and part.index_class is None:
        reason = f"{INDEX} names LlamaTokenizerFast as {name}, which transformers 5 reads without its spaces"
        fix = f'in components.{name} of the lane set class = "PreTrainedTokenizerFast", index_class = "{found}"'
        yield _layout(f"{reason} (huggingface/transformers#45488)", fix)


# ---- one component


def _of_part(
    expected: Expectation, name: str, wanted: ExpectedPart, found: Part | None, path: str
) -> Iterator[Problem]:
    again = f"{expected.pull} again"
    where = f"{path}/{name}"
    if found is None or not found.files:
        yield _layout(f"the component {name} is missing: no files in {where}", again)
        return
    for file, why in found.unreadable.items():
        yield _layout(f"{where}/{file} {why}", again)
    if not wanted.has_weights:
        yield from _of_texts(wanted, found, where, again)
        return
    if "config.json" not in found.files:
        yield _layout(f"{where} has no config.json", again)
    lacking = tuple(_of_files(wanted, found, expected.variant, where, again))
    yield from lacking
    if not lacking:
        tensors = tuple(_tensors(found, tuple(_weight_files(wanted, found, expected.variant))))
        yield from _of_architecture(name, wanted, found, tensors, expected)


def _of_files(wanted: ExpectedPart, found: Part, variant: str | None, where: str, again: str) -> Iterator[Problem]:
    """Safetensors that are not there, or cannot be read."""
    for file in _weight_files(wanted, found, variant):
        header = found.headers.get(file)
        if isinstance(header, Broken):
            yield _layout(f"{where}/{file} {header.why}", again)
    for reason in _missing_weights(wanted, found, variant, where):
        yield _layout(reason, _SAFETENSORS_ONLY if "only as" in reason else again)


def _of_texts(wanted: ExpectedPart, found: Part, where: str, again: str) -> Iterator[Problem]:
    """Tokenizers, processors, schedulers, guiders: what they are read from is there and not empty."""
    kind = wanted.published_class
    if kind.endswith(("Tokenizer", "TokenizerFast")) and not kind.startswith("ByT5"):  # ByT5 reads bytes
        if not _VOCABULARIES & found.files.keys():
            wants = ", ".join(sorted(_VOCABULARIES))
            yield _layout(f"the tokenizer in {where} has no vocabulary (one of {wants})", again)
    elif not any(file.endswith("config.json") for file in found.files):
        yield _layout(f"{where} has no *config.json", again)
    for file, size in found.files.items():
        if size == 0 and (file in _VOCABULARIES or file.endswith(".json")):
            yield _layout(f"{where}/{file} is empty", again)


def _stem(wanted: ExpectedPart) -> str:
    """The name that the component's library looks for."""
    return "model" if wanted.library == "transformers" else "diffusion_pytorch_model"


def _names(stem: str, variant: str | None) -> tuple[str, re.Pattern[str], tuple[str, ...]]:
    """(single file, shards, indexes of shards) of one variant, as diffusers and transformers name them."""
    shard = r"-\d{5}-of-(\d{5})"
    if variant is None:
        return (
            f"{stem}.safetensors",
            re.compile(rf"{stem}{shard}\.safetensors"),
            (f"{stem}.safetensors.index.json",),
        )
    word = re.escape(variant)
    return (
        f"{stem}.{variant}.safetensors",
        re.compile(rf"{stem}(?:\.{word}{shard}|{shard}\.{word})\.safetensors"),
        (f"{stem}.safetensors.index.{variant}.json", f"{stem}.safetensors.{variant}.index.json"),
    )


def _variant_of(wanted: ExpectedPart, found: Part, variant: str | None) -> str | None:
    """The lane's variant where the component has it; the plain files where it has not: so do the loaders."""
    if variant is None:
        return None
    single, shards, indexes = _names(_stem(wanted), variant)
    has = any(file == single or file in indexes or shards.fullmatch(file) for file in found.files)
    return variant if has else None


def _weight_files(wanted: ExpectedPart, found: Part, variant: str | None) -> Iterator[str]:
    """The safetensors that would be read, as far as they are there."""
    single, shards, _ = _names(_stem(wanted), _variant_of(wanted, found, variant))
    split = [file for file in found.files if shards.fullmatch(file)]
    # Where a folder has both, diffusers reads the shards and transformers the single file.
    if single in found.files and (not split or wanted.library == "transformers"):
        yield single
    else:
        yield from split


def _missing_weights(wanted: ExpectedPart, found: Part, variant: str | None, where: str) -> Iterator[str]:
    """What is not there, as sentences: no weights at all, an index of shards, a shard, or tensors of one."""
    single, _, indexes = _names(_stem(wanted), _variant_of(wanted, found, variant))
    index = next((found.configs[file] for file in indexes if file in found.configs), None)
    files = set(_weight_files(wanted, found, variant))
    if not files and index is None:
        refused = _refused_format(found)
        kept = f"weights only as {refused}" if refused else "no weights"
        yield f"{where} holds {kept}; wanted is {single}"
        return
    if single in files:
        return
    if index is None:
        if not found.unreadable.keys() & set(indexes):  # else told already
            yield f"{where} has shards without their index {indexes[0]}"
        return
    homes = index.get("weight_map")
    if not isinstance(homes, dict):
        yield f"{where}/{indexes[0]} has no weight_map"
        return
    for file in sorted(set(homes.values()) - files):
        yield f"the shard {where}/{file} is missing"
    held = {tensor.name for tensor in _tensors(found, tuple(files))}
    lost = sorted(name for name, file in homes.items() if file in files and name not in held)
    if lost and not any(isinstance(found.headers[file], Broken) for file in files):
        yield f"the shards in {where} lack {lost[0]} and {len(lost) - 1} more tensors of their index"


def _refused_format(part: Part) -> str:
    """The format that there is instead of safetensors; empty when there is none."""
    for file in part.files:
        if file.endswith(_PICKLES):
            return f"pickle ({file}), which runs code when it is read"
        if file.endswith(".gguf"):
            return f"GGUF ({file}), which is no diffusers checkpoint"
    return ""


def _of_variant(expected: Expectation, found: WeightsFolder) -> Iterator[Problem]:
    """Without one file of the variant, from_pretrained refuses the folder."""
    if expected.variant is None:
        return
    parts = [(part, found.parts[name]) for name, part in expected.parts.items() if name in found.parts]
    if not any(part.has_weights and _variant_of(part, folder, expected.variant) for part, folder in parts):
        reason = f"{found.path} has no weights of the variant {expected.variant!r}"
        yield _layout(reason, f"{expected.pull}, or correct model.variant of the lane")


def _tensors(found: Part, files: tuple[str, ...]) -> Iterator[Tensor]:
    for file in files:
        header = found.headers[file]
        if not isinstance(header, Broken):
            yield from header.tensors


# ---- what the weights are


def _of_architecture(
    name: str, wanted: ExpectedPart, found: Part, tensors: tuple[Tensor, ...], expected: Expectation
) -> Iterator[Problem]:
    config = found.configs.get("config.json", {})
    wrong = list(_wrong_channels(name, wanted, config, tensors, expected))
    yield from wrong
    count = _wrong_count(name, wanted, tensors)
    if count is not None and not wrong:  # else only an echo of the channels
        yield count
    quantized = sum(tensor.parameters for tensor in tensors if tensor.dtype in _QUANTIZED)
    if name in DENOISERS and 2 * quantized > sum(tensor.parameters for tensor in tensors):
        kind = next(tensor.dtype for tensor in tensors if tensor.dtype in _QUANTIZED)
        reason = f"the {name} is stored quantized ({kind})"
        fix = "name the 16-bit weights in the lane; a rung of the ladder stores them smaller"
        yield Problem(check=Check.DTYPE, reason=reason, fix=fix)


def _wrong_channels(
    name: str, wanted: ExpectedPart, config: Mapping[str, Any], tensors: tuple[Tensor, ...], expected: Expectation
) -> Iterator[Problem]:
    fix = "use the weights of the lane's own task: correct model.repo, then " + expected.pull
    for key in _CHANNEL_KEYS:
        if key in config and key in wanted.config and config[key] != wanted.config[key]:
            made_of = _made_of(wanted.config[key], expected) if name in DENOISERS and key == "in_channels" else ""
            found = f"the {name} of these weights has {key} {config[key]}"
            reason = f"{found}, the lane wants {wanted.config[key]}{made_of}"
            yield Problem(check=Check.ARCHITECTURE, reason=reason, fix=fix)
            return
    channels = wanted.config.get("in_channels")
    first = next((tensor for layer in _FIRST_LAYERS for tensor in tensors if tensor.name == layer), None)
    if name in DENOISERS and isinstance(channels, int) and first is not None and len(first.shape) >= 2:
        # A convolution says its channels; a linear layer takes those of a whole patch.
        taken = first.shape[1]
        if taken != channels and (len(first.shape) > 2 or taken % channels):
            reason = f"{first.name} of the {name} takes {taken} channels, the lane wants {channels}"
            yield Problem(check=Check.ARCHITECTURE, reason=f"{reason}{_made_of(channels, expected)}", fix=fix)


def _made_of(channels: Any, expected: Expectation) -> str:
    """` (16 of the latents and 20 of keyframe and mask)`; empty where the VAE's number is not in the lane."""
    vae = expected.parts.get("vae")
    latent = (vae.config.get("latent_channels") or vae.config.get("z_dim")) if vae is not None else None
    if not isinstance(latent, int) or not isinstance(channels, int) or channels <= latent:
        return ""
    return f" ({latent} of the latents and {channels - latent} of keyframe and mask)"


def _wrong_count(name: str, wanted: ExpectedPart, tensors: tuple[Tensor, ...]) -> Problem | None:
    if wanted.params is None or wanted.index_class is not None:  # published as part of a larger class
        return None
    low, high = _TRANSFORMERS_TOLERANCE if wanted.library == "transformers" else _DIFFUSERS_TOLERANCE
    count = sum(tensor.parameters for tensor in tensors)
    if low * wanted.params <= count <= high * wanted.params:
        return None
    reason = f"the {name} of these weights has {_billions(count)} parameters, the lane wants {_billions(wanted.params)}"
    fix = f"use the weights that the lane names, or correct components.{name}.params of the lane"
    return Problem(check=Check.ARCHITECTURE, reason=reason, fix=fix)


def _billions(count: int) -> str:
    return f"{count / 1e9:.3g} B" if count >= 1e8 else f"{count:,}"
