"""Loading a judge's checkpoint from a folder: nothing from the network, no code from it, no weight made up."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Final

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging.found import TEST_JUDGE
from screentest_runner.protocol import FailureClass

PACKAGES: Final = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
# In the config.json of a checkpoint that knows a toy world only.
TEST_MARKER: Final = "screentest_test_judge"
OFFLINE: Final = {"local_files_only": True, "trust_remote_code": False}


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def folder_of(load: dict[str, Any]) -> Path:
    """The checkpoint of a Load. Raises AttemptFailure(layout) that says what is missing."""
    judge = load["lane"]["id"]
    if not load.get("weights_dir"):
        raise _layout(f"judge {judge!r} has no weights: fetch them with `screentest models pull {judge}`")
    folder = Path(load["weights_dir"])
    if not (folder / "config.json").is_file():
        raise _layout(f"judge {judge!r}: no file named config.json in {folder.name}; fetch the checkpoint again")
    return folder


def config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, **OFFLINE)


def model_of(auto_class: Any, folder: Path, *, dtype: str, device: str) -> Any:
    """The model, in eval mode. Raises AttemptFailure(layout) when the files lack weights: transformers draws lots for
    those and only warns.
    """
    import torch

    model, info = auto_class.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **OFFLINE
    )
    if missing := sorted(info["missing_keys"]):
        raise _layout(
            f"{folder.name}: {len(missing)} weights are missing, the first is {missing[0]!r}; fetch them again"
        )
    return model.eval().requires_grad_(False).to(device)


def badges(config: Any) -> tuple[str, ...]:
    return (TEST_JUDGE,) if getattr(config, TEST_MARKER, False) else ()


def _layout(message: str) -> AttemptFailure:
    return AttemptFailure(FailureClass.LAYOUT, message)
