"""Run by test_runner_gates.py in the model environment: gates that need torch. argv[1]: a case.

Prints the failure class and the message, or `passed`.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from screentest_runner import conditioning, gates
from screentest_runner.failures import AttemptFailure


def conv3d(case: str) -> None:
    import torch

    def sound(*arguments: Any, **keywords: Any) -> Any:
        return torch.nn.functional.conv3d(*arguments, **keywords)

    wrong = {
        "sound": sound,
        "scaled": lambda *arguments, **keywords: sound(*arguments, **keywords) * 1.1,
        "not-a-number": lambda *arguments, **keywords: sound(*arguments, **keywords) * float("nan"),
        "last-row-lost": lambda *arguments, **keywords: sound(*arguments, **keywords).index_fill(
            3, torch.tensor([23]), 0.0
        ),
    }
    gates.check_conv3d("cpu", wrong[case])


def embeddings(case: str) -> None:
    """A tiny T5 that is called as pipelines call it: a prompt, padded to a length, and its mask."""
    import torch
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(config).eval()
    conditioning.watch_text_encoders(SimpleNamespace(components={"text_encoder": encoder, "tokenizer": None}))
    match case:
        case "zero" | "zero-again":
            for weight in encoder.parameters():
                weight.data.zero_()
        case "same":
            encoder.get_input_embeddings().weight.data.fill_(0.5)
        case "not-finite":
            encoder.get_input_embeddings().weight.data[5] = float("inf")
    empty = torch.tensor([[1, 0, 0, 0, 0, 0]])
    prompt = torch.tensor([[5, 9, 4, 1, 0, 0]])
    with torch.no_grad():
        if case == "zero-again":  # the runner stays warm after the first failure
            with suppress(AttemptFailure):
                encoder(prompt, attention_mask=(prompt != 0).long())
        for ids in (empty, prompt, prompt):
            encoder(ids, attention_mask=(ids != 0).long())
    assert not encoder._forward_hooks, "the encoder is still watched after a prompt"


def main() -> None:
    kind, _, case = sys.argv[1].partition(":")
    try:
        {"conv3d": conv3d, "embeddings": embeddings}[kind](case)
    except AttemptFailure as failure:
        print(failure.failure_class.value, failure)
    else:
        print("passed")


if __name__ == "__main__":
    main()
