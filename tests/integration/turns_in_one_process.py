"""Run by test_runner_turns.py in the model environment: two models take turns on a device that keeps no values.

`meta` stands for the GPU: what is copied there cannot be copied back, so a model that has its values again was kept.
"""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from screentest_runner.adapters.turns import Turns


class Tied(torch.nn.Module):
    """Two layers of one weight, as T5's embeddings are."""

    dtype, device = torch.float32, torch.device("cpu")  # a pipeline asks every model

    def __init__(self) -> None:
        super().__init__()
        self.into = torch.nn.Linear(4, 4)
        self.out_of = torch.nn.Linear(4, 4)
        self.out_of.weight = self.into.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.out_of(self.into(values))


class Two(DiffusionPipeline):
    model_cpu_offload_seq = "encoder->denoiser"

    def __init__(self, encoder: Tied, denoiser: Tied) -> None:
        super().__init__()
        self.register_modules(encoder=encoder, denoiser=denoiser)


def places(model: torch.nn.Module) -> list[int | str]:
    """Where each parameter's values lie, by every name of it."""
    return [
        "device" if parameter.is_meta else parameter.data_ptr()
        for _, parameter in model.named_parameters(remove_duplicate=False)
    ]


def compute_on_meta(pipe: DiffusionPipeline) -> None:
    for hook in pipe._all_hooks:
        hook.hook.execution_device = torch.device("meta")


def main() -> None:
    encoder, denoiser = Tied(), Tied()
    host = places(encoder), places(denoiser)
    values = torch.ones(1, 4)
    expected = encoder(values).detach().clone()
    pipe = Two(encoder, denoiser)
    turns = Turns(pipe, torch.device("cpu"))
    for ending in (pipe.maybe_free_model_hooks, turns.all_leave):  # of a whole call, and of a cancelled one
        compute_on_meta(pipe)
        encoder(values)
        assert set(places(encoder)) == {"device"}, places(encoder)
        denoiser(values)
        assert (places(encoder), set(places(denoiser))) == (host[0], {"device"})
        ending()
        assert (places(encoder), places(denoiser)) == host
        assert encoder.into.weight is encoder.out_of.weight
        assert torch.equal(encoder(values), expected)
    print("kept")


if __name__ == "__main__":
    main()
