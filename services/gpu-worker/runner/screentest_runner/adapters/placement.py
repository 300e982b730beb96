"""Where a pipeline's components lie, and in what storage: how a rung of the low-memory ladder is carried out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from screentest_runner import full_random
from screentest_runner.adapters.encoders import ENCODERS, ReleasedEncoder, encoder_names
from screentest_runner.adapters.streaming import stream
from screentest_runner.adapters.turns import Turns
from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass

DENOISERS = ("transformer", "transformer_2", "unet")
STREAMED = (*DENOISERS, *ENCODERS)  # by a group_offload rung, where present


def denoiser_names(pipe: Any) -> list[str]:
    """Two where a pipeline has one for high and one for low noise."""
    return [name for name in DENOISERS if getattr(pipe, name, None) is not None]


class Placement:
    """One rung on one device. is_unified: host and device share one memory, so moving between them saves nothing."""

    def __init__(self, rung: dict[str, Any], device: Any, *, is_unified: bool) -> None:
        self._rung = rung
        self._device = device
        self._offload_type = None if is_unified else rung.get("group_offload")
        drops_encoders = rung.get("drop_text_encoders", False)
        self._releases = drops_encoders and is_unified
        # streaming takes the encoders away as well
        self._moves_whole_models = drops_encoders and not is_unified and self._offload_type is None
        self._pipe: Any = None
        self._released: list[ReleasedEncoder] = []

    def home(self, name: str) -> full_random.Home:
        """Where full-random weights are made: on the device what stays there; on the host what the rung stores
        smaller, streams or moves, as a checkpoint read from disk would be.
        """
        import torch

        is_streamed = self._offload_type is not None and name in STREAMED
        is_cast = bool(self._rung.get("layerwise_fp8")) and name in DENOISERS
        if not (is_streamed or is_cast or self._moves_whole_models):
            return full_random.Home(device=self._device)
        # page-locked at once, or streaming would make a second copy of tens of gigabytes
        return full_random.Home(
            device=torch.device("cpu"), is_pinned=is_streamed and not is_cast and self._device.type == "cuda"
        )

    def place(self, pipe: Any, dtype_of: Callable[[str], Any], reload: Callable[[str], Any]) -> None:
        """Put the pipeline where the rung wants it.

        dtype_of: by component name. reload: makes one component anew, with its weights. Raises AttemptFailure(layout)
        where the rung asks a VAE for tiles that it has not.
        """
        self._pipe = pipe
        if self._rung.get("layerwise_fp8"):
            self._store_in_fp8(dtype_of)
        if self._rung.get("vae_tiling"):
            self._tile_vae()
        if self._offload_type is not None:
            self._stream()
        elif self._moves_whole_models:
            Turns(pipe, self._device)
        else:
            pipe.to(self._device)
        if self._releases:
            self._released = [
                ReleasedEncoder(getattr(pipe, name), partial(reload, name)) for name in encoder_names(pipe)
            ]

    def denoising_begins(self) -> None:
        """Everything is encoded now. May be called at every step."""
        for encoder in self._released:
            encoder.release()

    def attempt_ended(self) -> None:
        """Bring every model back to where the next attempt expects it. A pipeline does so itself only when its call
        returns, not when a cancel or a failure ends it.
        """
        self._pipe.maybe_free_model_hooks()

    def _store_in_fp8(self, dtype_of: Callable[[str], Any]) -> None:
        import torch

        for name in denoiser_names(self._pipe):
            getattr(self._pipe, name).enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype_of(name)
            )

    def _tile_vae(self) -> None:
        try:
            self._pipe.vae.enable_tiling()
        except (AttributeError, NotImplementedError):
            kind = type(self._pipe.vae).__name__
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"{kind} has no tiles; take vae_tiling from the rung {self._rung['name']!r} of the lane file",
            ) from None

    def _stream(self) -> None:
        import torch

        for name, component in self._pipe.components.items():
            if not isinstance(component, torch.nn.Module):
                continue
            if name in STREAMED:
                stream(component, self._device, self._offload_type)
            else:
                component.to(self._device)
