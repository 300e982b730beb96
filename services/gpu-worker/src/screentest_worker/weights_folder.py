"""What lies in a folder of weights: its files, configs and tensor headers. Reads everything, judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from screentest_worker import tensor_header
from screentest_worker.tensor_header import Broken, Header

INDEX = "model_index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component's folder. files: name to size in bytes. configs: parsed `*.json` by name, but for vocabularies.

    unreadable: JSON files that are none, by name, with why. headers: of every `*.safetensors`, by name.
    """

    files: Mapping[str, int] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Header | Broken] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFolder:
    """exists: whether there is such a folder at all. root: what lies beside the components' folders."""

    path: str
    exists: bool
    root: Part
    parts: Mapping[str, Part]

    @property
    def index(self) -> Mapping[str, Any] | None:
        """The content of model_index.json, None when it is missing or unreadable."""
        return self.root.configs.get(INDEX)


def read(folder: Path) -> WeightsFolder:
    """Milliseconds even for 80 GB: of weights only the headers are read."""
    if not folder.is_dir():
        return WeightsFolder(path=str(folder), exists=False, root=Part(), parts={})
    parts = {path.name: _part(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    return WeightsFolder(path=str(folder), exists=True, root=_part(folder), parts=parts)


def _part(folder: Path) -> Part:
    # A link into a cache is as good as a file; one that leads nowhere is no file.
    files = sorted(path for path in folder.iterdir() if path.is_file())
    configs: dict[str, Mapping[str, Any]] = {}
    unreadable: dict[str, str] = {}
    for path in files:
        if _is_config(path.name):
            content = _json(path)
            if isinstance(content, str):
                unreadable[path.name] = content
            else:
                configs[path.name] = content
    return Part(
        files={path.name: path.stat().st_size for path in files},
        configs=configs,
        unreadable=unreadable,
        headers={path.name: tensor_header.read(path) for path in files if path.suffix == ".safetensors"},
    )


def _is_config(name: str) -> bool:
    """`config.json`, `scheduler_config.json`, `model_index.json`, an index of shards; vocabularies have megabytes."""
    return name.endswith(".json") and ("config" in name or "index" in name)


def _json(path: Path) -> Mapping[str, Any] | str:
    """The object in the file, or why there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        return f"is no JSON: {error}"
    return content if isinstance(content, dict) else "holds no JSON object"
