"""Whole models that take turns on the device: each comes when it computes, and leaves when the next one comes.

accelerate's hooks copy a model that leaves back to pageable host memory: 8 s of every clip with T5's 11 GB. Weights do
not change while they compute, so here the host keeps its copy and the device's is dropped. The host needs no more than
before: between two clips it held all of them anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """One name of a parameter: the module that has it, and its values in host memory."""

    owner: Any
    name: str
    parameter: Any
    host: Any


class Turns:
    """Carries out `enable_model_cpu_offload` on a pipeline whose models lie in host memory."""

    def __init__(self, pipe: Any, device: Any) -> None:
        pipe.enable_model_cpu_offload(device=device)
        self._pipe = pipe
        self._kept = {hook.model: _kept(hook.model) for hook in pipe._all_hooks}
        self._free_hooks = pipe.maybe_free_model_hooks
        pipe.maybe_free_model_hooks = self.all_leave  # pipelines call it when their clip is decoded
        self._take_over()

    def all_leave(self) -> None:
        """Every model back to the host, and ready for the first turn of the next attempt."""
        for model in self._kept:
            self._leave(model)
        self._free_hooks()  # makes the hooks anew, over models that are all on the host
        self._take_over()

    def _take_over(self) -> None:
        for hook in self._pipe._all_hooks:
            hook.hook.init_hook = self._leave

    def _leave(self, model: Any) -> Any:
        for kept in self._kept[model]:
            kept.parameter.data = kept.host
            kept.owner._parameters[kept.name] = kept.parameter  # `to` may have put another one in its place
        return model.to("cpu")  # what is left are buffers, which are small


def _kept(model: Any) -> tuple[_Kept, ...]:
    return tuple(
        _Kept(owner=owner, name=name, parameter=parameter, host=parameter.data)
        for owner in model.modules()
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
    )
