"""Full-random weights: a lane's full-size pipeline made on the spot, without a download.

The architecture comes from the lane file's `config` tables and is made on the meta device; the values are random, drawn
on the device that computes. Latency, memory and energy of a pipeline do not depend on the values, so a clip of such
weights tells what the real ones will cost. What it shows means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from screentest_runner import miniature
from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass

# The tokenizers are the miniature's, so the encoders must know their special tokens: the only values of a `miniature`
# table that full-random weights take. None of them changes a size.
TOKEN_ID_ENDINGS = ("token_id", "token_index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a component's weights lie after the build. is_pinned: page-locked, for parts that stream to the device."""

    device: Any
    is_pinned: bool = False


class Maker:
    """Makes a lane's parts at full size, each with the same values every time.

    dtype_of, home_of: by component name. device: where the values are drawn; drawing 20e9 of them on a host takes
    minutes, on a GPU a second.
    """

    def __init__(
        self,
        lane: dict[str, Any],
        pipeline_class: type,
        *,
        dtype_of: Callable[[str], Any],
        home_of: Callable[[str], Home],
        device: Any,
    ) -> None:
        self._lane = lane
        self._pipeline_class = pipeline_class
        self._dtype_of = dtype_of
        self._home_of = home_of
        self._device = device

    def pipeline(self) -> Any:
        """Raises AttemptFailure(layout) when a part has not the lane's `params`."""
        import torch

        parts = {name: self._empty(name) for name in self._lane["components"]}
        models = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
        for name, model in models.items():  # all, before tens of gigabytes are filled in vain
            _check_count(self._lane["id"], name, model, self._lane["components"][name].get("params"))
        for name, model in models.items():
            self._fill(name, model)
        return self._pipeline_class(**parts, **self._lane["pipeline"].get("init", {}))

    def component(self, name: str) -> Any:
        """One model of the pipeline anew."""
        return self._fill(name, self._empty(name))

    def _empty(self, name: str) -> Any:
        return make_empty(name, self._lane["components"][name], self._lane, self._pipeline_class)

    def _fill(self, name: str, model: Any) -> Any:
        import torch

        generator = torch.Generator(self._device).manual_seed(miniature.SEED)
        _fill(model.eval(), self._dtype_of(name), self._home_of(name), generator)
        return model


def make_empty(name: str, part: Mapping[str, Any], lane: dict[str, Any], pipeline_class: type) -> Any:
    """One component: parameters on the meta device, buffers (rope tables, sigmas) computed as always."""
    from accelerate import init_empty_weights

    full_size = {**part, "miniature": token_ids(part.get("miniature", {}))}
    with init_empty_weights(include_buffers=False):
        made = miniature.make(name, full_size, lane, pipeline_class)
    if part["library"] == "transformers" and hasattr(made, "tie_weights"):
        made.tie_weights()  # moving to meta makes a new parameter of each name, also of shared ones
    return made


def token_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config, at any depth, that are ids of tokens."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            if inner := token_ids(value):
                found[key] = inner
        elif key.endswith(TOKEN_ID_ENDINGS):
            found[key] = value
    return found


def count_parameters(model: Any) -> int:
    """A shared parameter counts once for each of its names, because whether T5's two embeddings are shared differs
    between releases of transformers 5.
    """
    return sum(parameter.numel() for _, parameter in model.named_parameters(remove_duplicate=False))


def _check_count(lane_id: str, name: str, model: Any, expected: int | None) -> None:
    """expected: None when the lane file does not say."""
    found = count_parameters(model)
    if expected is not None and found != expected:
        raise AttemptFailure(
            FailureClass.LAYOUT,
            f"lane {lane_id!r}: components.{name}.config makes {found} parameters, params says {expected}; correct "
            "whichever is not as published",
        )


def _fill(model: Any, dtype: Any, home: Home, generator: Any) -> None:
    """Give every parameter memory and a value. Parameters that are shared stay shared."""
    import torch

    kept = _names_kept_in_float32(model, dtype)
    made: dict[Any, Any] = {}  # keyed by the empty parameter itself, which keeps it alive and its identity unique
    for path, module, leaf, empty in _parameters(model):
        if empty not in made:
            wanted = torch.float32 if kept & {*path.split("."), leaf} else dtype
            tensor = torch.empty(empty.shape, dtype=wanted, device=home.device, pin_memory=home.is_pinned)
            _draw(tensor, module, leaf, generator)
            made[empty] = torch.nn.Parameter(tensor, requires_grad=False)
        module.register_parameter(leaf, made[empty])
    _place_buffers(model, None if kept or not _is_of_diffusers(model) else dtype, home.device)


def _parameters(model: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """(path of the module, module, name of the parameter in it, parameter)."""
    for path, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            yield path, module, leaf, parameter


def _names_kept_in_float32(model: Any, dtype: Any) -> set[str]:
    """Names of modules or parameters that from_pretrained leaves in float32 when it loads in `dtype`."""
    import torch

    if dtype is torch.float32:
        return set()
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    strictly = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if _is_of_diffusers(model) or dtype is torch.float16:
        return kept | strictly
    return strictly  # transformers means its plain list for float16 only


def _is_of_diffusers(model: Any) -> bool:
    return type(model).__module__.startswith("diffusers.")


def _draw(tensor: Any, module: Any, leaf: str, generator: Any) -> None:
    """Ones for scales, zeros for biases, a normal whose width keeps the size of what passes through for the rest.

    Thus latents stay finite, also in float16 and over fifty steps.
    """
    import torch

    if leaf.endswith("bias"):
        tensor.zero_()
    elif tensor.ndim < 2 or leaf == "gamma" or "Norm" in type(module).__name__:
        tensor.fill_(1.0)
    else:
        fan_in = math.prod(tensor.shape[1:])
        drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
        tensor.copy_(drawn.normal_(0.0, fan_in**-0.5, generator=generator))


def _place_buffers(model: Any, dtype: Any, device: Any) -> None:
    """dtype: of floating buffers, None to leave each as it was computed."""
    for module in model.modules():
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            wanted = dtype if dtype is not None and buffer.is_floating_point() else buffer.dtype
            setattr(module, leaf, buffer.to(device, wanted))
