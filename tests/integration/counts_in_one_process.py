"""Run by test_runner_full_random.py in the model environment: parameters of every component at full size.

stdin: a JSON list of lane files' contents. Last line of stdout: lane id to component to count.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from screentest_runner.adapters.diffusers import DiffusersAdapter
from screentest_runner.full_random import count_parameters, make_empty


def counts_of(lane: dict[str, Any]) -> dict[str, int]:
    pipeline_class = DiffusersAdapter(lane).pipeline_class()
    parts = {name: make_empty(name, part, lane, pipeline_class) for name, part in lane["components"].items()}
    return {name: count_parameters(part) for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def main() -> None:
    print(json.dumps({lane["id"]: counts_of(lane) for lane in json.load(sys.stdin)}))


if __name__ == "__main__":
    main()
