"""Miniatures: a tiny random-weight copy of a lane's own pipeline, saved as a checkpoint folder like a published one.

Every component is of its real class; only the sizes in the lane file's `miniature` tables differ. The folder is then
loaded through the very path that a checkpoint from the hub takes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass
from screentest_runner.tiny_tokenizers import MAKERS

SEED = 20260508  # every machine makes the same weights
INIT_STD = 0.02  # what diffusers and transformers take
LIBRARIES = ("diffusers", "transformers")


def cached(lane: dict[str, Any], cache_dir: Path, versions: Mapping[str, str]) -> Path:
    """Where the lane's miniature lies, or would lie: the name covers what the folder is made from."""
    made_from = {key: lane.get(key) for key in ("model", "pipeline", "components")}
    text = json.dumps([made_from, dict(versions), _own_source()], sort_keys=True)
    return cache_dir / f"{lane['id']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _own_source() -> str:
    """Digest of the two modules that decide what a miniature holds."""
    from screentest_runner import tiny_tokenizers

    sources = (Path(module).read_bytes() for module in (__file__, tiny_tokenizers.__file__))
    return hashlib.sha256(b"".join(sources)).hexdigest()


def build(lane: dict[str, Any], folder: Path) -> None:
    """Make the miniature at `folder`, whole or not at all: built beside it and renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save(lane, temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another runner was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(lane: dict[str, Any], folder: Path) -> None:
    import diffusers

    pipeline_class = getattr(diffusers, lane["pipeline"]["class"])
    parts = _make_components(lane, pipeline_class)
    pipeline = pipeline_class(**parts, **lane["pipeline"].get("init", {}))
    pipeline.save_pretrained(folder, variant=lane["model"].get("variant"))
    _write_published_classes(lane, folder)


def _make_components(lane: dict[str, Any], pipeline_class: type) -> dict[str, Any]:
    import torch

    torch.manual_seed(SEED)
    parts = {name: make(name, part, lane, pipeline_class) for name, part in lane["components"].items()}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            _wake(part)
    return parts


def _wake(model: Any) -> None:
    """Give values to the weights that training begins with at zero (the modulation of Kandinsky's blocks): through
    zeros no prompt reaches the clip.
    """
    import torch

    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=INIT_STD)


def make(name: str, part: Mapping[str, Any], lane: dict[str, Any], pipeline_class: type) -> Any:
    """One component: its `config` with the values of its `miniature` table."""
    config = merged(part.get("config", {}), part.get("miniature", {}))
    published = part.get("index_class", part["class"])
    if published in MAKERS:
        return MAKERS[published](pipeline_class)
    kind = component_class(part, name, lane["id"])
    if part["class"] == "CLIPProcessor":
        return _make_clip_processor(config, pipeline_class)
    if part["library"] != "transformers" or part["class"].endswith("ImageProcessor"):
        return kind(**config)  # of diffusers: a model, a scheduler or a guider
    return kind(kind.config_class(**config)).eval()


def _make_clip_processor(config: dict[str, Any], pipeline_class: type) -> Any:
    import transformers

    images = transformers.CLIPImageProcessor(**config)
    return transformers.CLIPProcessor(images, MAKERS["CLIPTokenizer"](pipeline_class))


def component_class(part: Mapping[str, Any], name: str, lane_id: str) -> Any:
    """The class that a component's table names. Raises AttemptFailure(layout) when the library has none such."""
    import importlib

    library = part["library"]
    module = library if library in LIBRARIES else f"diffusers.pipelines.{library}"
    try:
        return getattr(importlib.import_module(module), part["class"])
    except (ModuleNotFoundError, AttributeError):
        raise AttemptFailure(
            FailureClass.LAYOUT,
            f"lane {lane_id!r}: components.{name}: {library} has no class {part['class']!r}",
        ) from None


def merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """base with the override's values; tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in override.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def _write_published_classes(lane: dict[str, Any], folder: Path) -> None:
    """Name in model_index.json and tokenizer_config.json the classes that the published files name.

    With the class that save_pretrained writes, the miniature would load where the published checkpoint does not.
    """
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text())
    for name, part in lane["components"].items():
        index_class = part.get("index_class", part["class"])
        index[name] = [part["library"], index_class]
        tokenizer_config = folder / name / "tokenizer_config.json"
        is_tokenizer = index_class.endswith(("Tokenizer", "TokenizerFast"))  # a processor has files of its own
        if "index_class" in part and is_tokenizer and tokenizer_config.is_file():
            content = json.loads(tokenizer_config.read_text())
            tokenizer_config.write_text(json.dumps({**content, "tokenizer_class": index_class}, indent=2))
    index_path.write_text(json.dumps(index, indent=2))
