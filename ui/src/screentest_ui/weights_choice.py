"""Chooses which published files a lane needs, and where they belong in its folder; pure: listings in, files out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from screentest.errors import BadRequest
from screentest.judges import JudgeLane
from screentest.lanes import Lane

INDEX = "model_index.json"
CONFIG = "config.json"

# Beside weights a component is read from these: configs, vocabularies, SentencePiece models, chat templates.
TEXT_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja"})

# Why weights in these formats are never fetched.
REFUSED_FORMATS = {
    ".bin": "pickle, which runs code when it is read",
    ".pt": "pickle, which runs code when it is read",
    ".pth": "pickle, which runs code when it is read",
    ".ckpt": "pickle, which runs code when it is read",
    ".gguf": "GGUF, which is no diffusers checkpoint",
}

_STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
_SHARD = r"-(?P<number>\d{5})-of-(?P<count>\d{5})"
_WEIGHT_INDEX = re.compile(rf"{_STEM}\.\w+(?:\.\w+)?\.index(?:\.\w+)?\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """One file of a repository at one commit. size: bytes.

    git_oid: git's blob id. sha256: in hex, where the file is kept in LFS (every large one), None elsewhere.
    """

    path: str
    size: int
    git_oid: str
    sha256: str | None

    @property
    def oid(self) -> str:
        """What its content hashes to: the sha256 where the hub knows it, git's blob id elsewhere."""
        return self.sha256 or self.git_oid


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What a hub lists of a repository at a commit (40 hex digits)."""

    repo: str
    commit: str
    files: tuple[PublishedFile, ...]

    def holds(self, path: str) -> bool:
        return any(file.path == path for file in self.files)

    def within(self, folder: str) -> tuple[PublishedFile, ...]:
        """The files directly in a folder; "" is the root."""
        wanted = PurePosixPath(folder)
        return tuple(file for file in self.files if PurePosixPath(file.path).parent == wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFile:
    """A published file and its path in the lane's folder."""

    path: str
    source: Repository
    published: PublishedFile


def choose(lane: Lane, main: Repository, base: Repository | None, index: Mapping[str, Any]) -> tuple[WantedFile, ...]:
    """The files of the lane's folder. `index`: the content of the published model_index.json.

    An assembled lane's own index is written, not fetched (`assembled_index`). Raises BadRequest where a component
    is missing, incomplete, or there as pickle or GGUF only.
    """
    assert lane.model is not None
    variant = lane.model.variant
    wanted: list[WantedFile] = []
    if base is None:
        wanted += [WantedFile(path=INDEX, source=main, published=file) for file in main.files if file.path == INDEX]
    for name in _component_names(lane, base is not None, index):
        is_root = name == lane.model.root_component
        part = _Part(
            source=main if is_root or base is None else base,
            folder="" if is_root else name,
            library=_library(lane, name, index),
            has_weights=(component := lane.components.get(name)) is not None and component.params is not None,
        )
        wanted += [
            WantedFile(path=f"{name}/{PurePosixPath(file.path).name}", source=part.source, published=file)
            for file in part.files(variant)
        ]
    _require_variant(lane, wanted)
    return tuple(wanted)


def choose_checkpoint(judge: JudgeLane, source: Repository) -> tuple[WantedFile, ...]:
    """The files of a judge's folder: a transformers checkpoint lies at the root of its repository."""
    assert judge.model is not None
    if not source.holds(CONFIG):
        raise BadRequest(f"{source.repo} has no {CONFIG} at {source.commit[:12]}: it is no transformers checkpoint")
    root = _Part(source=source, folder="", library="transformers", has_weights=True, is_whole=True)
    return tuple(WantedFile(path=file.path, source=source, published=file) for file in root.files(judge.model.variant))


def assembled_index(lane: Lane, index: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json of a lane of two repositories: the base's, with the lane's pipeline class and root component.

    Entries of components that the lane does not have are left out: its folder does not hold them.
    """
    assert lane.model is not None and lane.model.root_component is not None
    root = lane.model.root_component
    kept = {name: entry for name, entry in index.items() if name.startswith("_") or name in lane.components}
    part = lane.components[root]
    return {**kept, "_class_name": lane.pipeline.class_name, root: [part.library, part.class_name]}


def require_pipeline(repository: Repository) -> None:
    """BadRequest when the repository is no diffusers pipeline."""
    if repository.holds(INDEX):
        return
    refused = _refused_format(repository.files)
    holds = f"weights only as {refused}" if refused else "at most single components"
    raise BadRequest(
        f"{repository.repo} has no {INDEX} at {repository.commit[:12]}: it is no diffusers pipeline and holds {holds}; "
        "name a repository in diffusers format as the lane's model.repo, or, for a bare component, the rest of the "
        "pipeline as model.base_repo and the component as model.root_component"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One component where it is published. has_weights: whether it has parameters at all (a tokenizer has none).

    is_whole: the repository is this component, tokenizer and all.
    """

    source: Repository
    folder: str
    library: str
    has_weights: bool
    is_whole: bool = False

    def files(self, variant: str | None) -> tuple[PublishedFile, ...]:
        inside = self.source.within(self.folder)
        weights = self._weights(inside, variant) or self._weights(inside, None)
        if not weights and self.has_weights:
            raise BadRequest(self._no_weights(inside))
        texts = [file for file in inside if self._is_text(file.path)]
        if not texts and not weights:
            raise BadRequest(f"{self._where} does not exist, and the lane's [components] name it")
        return (*texts, *weights)

    def _weights(self, inside: Iterable[PublishedFile], variant: str | None) -> tuple[PublishedFile, ...]:
        """Safetensors of one variant, with the index of its shards; empty where there are none."""
        named = [(file, match) for file in inside if (match := _weight(file.path, variant))]
        single = tuple(file for file, match in named if _shard_of(match) is None)
        shards = [(file, shard) for file, match in named if (shard := _shard_of(match)) is not None]
        # Where a folder has both, diffusers reads the shards and transformers the single file.
        if single and (not shards or self.library == "transformers"):
            return single
        if not shards:
            return ()
        self._require_all_shards([shard for _, shard in shards])
        indexes = tuple(file for file in inside if _is_index_of(file.path, variant))
        return (*indexes, *(file for file, _ in shards))

    def _require_all_shards(self, shards: list[tuple[int, int]]) -> None:
        count = max(count for _, count in shards)
        missing = sorted(set(range(1, count + 1)) - {number for number, of in shards if of == count})
        if missing:
            raise BadRequest(f"{self._where} lacks shard {missing[0]} of {count}; choose another model.revision")

    def _is_text(self, path: str) -> bool:
        name = PurePosixPath(path)
        # The root of a pipeline's repository also holds what is not the component's: workflows, examples.
        if self.folder == "" and not self.is_whole:
            return name.name == CONFIG
        return name.suffix in TEXT_SUFFIXES and _WEIGHT_INDEX.fullmatch(name.name) is None

    def _no_weights(self, inside: Iterable[PublishedFile]) -> str:
        refused = _refused_format(inside)
        if refused is None:
            return f"{self._where} holds no weights (*.safetensors)"
        return (
            f"{self._where} holds weights only as {refused}; Screentest loads safetensors alone: look for a "
            "repository that has them, or for a commit (model.revision) where somebody converted this one"
        )

    @property
    def _where(self) -> str:
        place = f"folder {self.folder!r}" if self.folder else "root"
        return f"the {place} of {self.source.repo} at {self.source.commit[:12]}"


def _component_names(lane: Lane, is_assembled: bool, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The lane's components, and those that the pipeline's own index makes the loader look for."""
    names = list(lane.components)
    if not is_assembled:
        names += [name for name, entry in index.items() if name not in lane.components and _is_component(name, entry)]
    return tuple(names)


def _is_component(name: str, entry: Any) -> bool:
    """An index holds `[library, class]` for a component, `[null, null]` for one left out, scalars for settings.

    A name is an argument of the pipeline's class; a stranger's index must not name a folder outside of ours.
    """
    return name.isidentifier() and isinstance(entry, list) and [type(part) for part in entry] == [str, str]


def _library(lane: Lane, name: str, index: Mapping[str, Any]) -> str:
    component = lane.components.get(name)
    return component.library if component is not None else str(index[name][0])


def _weight(path: str, variant: str | None) -> re.Match[str] | None:
    """Names as diffusers' variant_compatible_siblings knows them."""
    name = PurePosixPath(path).name
    if variant is None:
        return re.fullmatch(rf"{_STEM}(?:{_SHARD})?\.safetensors", name)
    word = re.escape(variant)
    return re.fullmatch(rf"{_STEM}\.{word}(?:{_SHARD})?\.safetensors", name) or re.fullmatch(
        rf"{_STEM}{_SHARD}\.{word}\.safetensors", name
    )


def _is_index_of(path: str, variant: str | None) -> bool:
    name = PurePosixPath(path).name
    if variant is None:
        return re.fullmatch(rf"{_STEM}\.safetensors\.index\.json", name) is not None
    word = re.escape(variant)
    endings = rf"(?:index\.{word}|{word}\.index)"
    return re.fullmatch(rf"{_STEM}\.safetensors\.{endings}\.json", name) is not None


def _shard_of(match: re.Match[str]) -> tuple[int, int] | None:
    """(number, count), None for a file that is not split."""
    if match["number"] is None:
        return None
    return int(match["number"]), int(match["count"])


def _refused_format(files: Iterable[PublishedFile]) -> str | None:
    """The first file in a format that is refused, and why; None where there is none."""
    for file in files:
        why = REFUSED_FORMATS.get(PurePosixPath(file.path).suffix)
        if why is not None:
            return f"{PurePosixPath(file.path).name} ({why})"
    return None


def _require_variant(lane: Lane, wanted: Iterable[WantedFile]) -> None:
    """A variant that nothing has would quietly fetch the plain files, often twice as large."""
    assert lane.model is not None
    variant = lane.model.variant
    if variant is not None and not any(_weight(file.path, variant) for file in wanted):
        raise BadRequest(
            f"{lane.model.repo} has no file of the variant {variant!r}; correct or delete model.variant of the lane"
        )
