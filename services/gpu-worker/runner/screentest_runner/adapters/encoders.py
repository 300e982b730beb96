"""Text and image encoders that give their memory back between prompts, where host and device share one memory.

There, moving weights to the host frees nothing. They are dropped instead, and read again from the checkpoint when a
prompt or keyframe comes that was not encoded for the last clip: jobs of one prompt with other seeds read nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder")


def encoder_names(pipe: Any) -> list[str]:
    """Those that this pipeline has."""
    return [name for name in ENCODERS if getattr(pipe, name, None) is not None]


class ReleasedEncoder:
    """Replaces the module's forward: remembers what was encoded for the last clip, and drops the weights on demand.

    reload: makes the module anew, with weights; its parameters have the names of the first one's.
    """

    def __init__(self, module: Any, reload: Callable[[], Any]) -> None:
        self._module = module
        self._reload = reload
        self._forward = module.forward
        self._device = module.device
        self._kept: dict[str, Any] = {}
        self._used: dict[str, Any] = {}
        self._has_weights = True
        module.forward = self._encode

    def release(self) -> None:
        """Free the weights. Keeps what was encoded since the last release; does nothing where nothing was."""
        if self._used:
            self._kept, self._used = self._used, {}
        if not self._has_weights:
            return
        for parameter in self._module.parameters():
            # the parameter stays, because pipelines ask an encoder for its device and dtype
            parameter.data = parameter.data.new_empty(0)
        self._has_weights = False

    def _encode(self, *arguments: Any, **keywords: Any) -> Any:
        key = fingerprint([arguments, keywords])
        found = self._used.get(key, self._kept.get(key))
        if found is None:
            self._take_weights()
            found = self._forward(*arguments, **keywords)
        self._used[key] = found
        return found

    def _take_weights(self) -> None:
        if self._has_weights:
            return
        fresh = dict(self._reload().named_parameters())
        for name, parameter in self._module.named_parameters():
            parameter.data = fresh[name].data.to(self._device)
        self._has_weights = True


def fingerprint(value: Any) -> str:
    """sha256 in hex of tensors and plain values, at any depth of lists, tuples and mappings."""
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode() + content)
    elif isinstance(value, dict):
        digest.update(f"mapping {len(value)}\n".encode())
        for key in sorted(value):
            digest.update(f"{key}\n".encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}\n".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r}\n".encode())
