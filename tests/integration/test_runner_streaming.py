"""What a streamed model's hooks reach, and how far the host may run ahead of the device."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from .runner_process import RUNNER_SOURCE, env_python

pytestmark = pytest.mark.slow

STREAMED_ON_A_CPU = """
import json, torch
from screentest_runner.adapters.streaming import stream

class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(*[self.inner(x)] * 3)[0]

def hooked(model):
    stream(model, torch.device("cpu"), "leaf_level")
    model(torch.zeros(1, 3, 8))
    return sorted(name for name, module in model.named_modules() if hasattr(module, "_diffusers_hook"))

print(json.dumps([hooked(Pooled()), hooked(torch.nn.Sequential(torch.nn.Linear(8, 8)))]))
"""

HOST_AND_DEVICE = """
import json, torch
from screentest_runner.adapters.streaming import bound_run_ahead

said = []

class Event:
    made = 0

    def record(self):
        self.number = Event.made
        Event.made += 1

    def synchronize(self):
        said.append(f"waited for {self.number}")

class Block(torch.nn.Module):
    def forward(self, x):
        said.append("queued")
        return x

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.ModuleList([Block(), Block()])
        self.second = torch.nn.ModuleList([Block()])

    def forward(self, x):
        for block in (*self.first, *self.second):
            x = block(x)
        return x

model = Model()
bound_run_ahead(model, Event)
for _ in range(2):
    model(torch.zeros(1))
print(json.dumps(said))
"""


def printed(script: str) -> Any:
    result = subprocess.run(
        [env_python("diffusers"), "-c", script],
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_weights_read_past_their_layer_are_streamed_with_the_whole_model() -> None:
    """torch's MultiheadAttention reads its last layer's weights without calling it (SigLIP's pooling head does so).

    A hook of that layer alone would never run: on a GPU, HunyuanVideo 1.5 I2V found them on the host.
    """
    with_attention, without = printed(STREAMED_ON_A_CPU)
    assert with_attention == [""]
    assert without == ["0"]


def test_the_host_queues_one_block_beyond_the_one_being_computed() -> None:
    assert printed(HOST_AND_DEVICE) == [
        "queued",
        "queued",
        "waited for 0",
        "queued",
        "waited for 1",
        "queued",
        "waited for 2",
        "queued",
        "waited for 3",
        "queued",
    ]
