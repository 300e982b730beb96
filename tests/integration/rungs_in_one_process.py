"""Run by test_runner_rungs.py in the model environment: a lane at one of its rungs, many of them in one process.

stdin: a JSON list of {lane, rung, generate, other, unified_memory}; `other` is a Generate of another prompt or
keyframe. argv[1]: the cache of miniatures. argv[2]: the device. Last line of stdout: a JSON list of what came out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from threading import Event
from typing import Any

from screentest_runner.adapters import ADAPTERS
from screentest_runner.failures import AttemptFailure
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Generate, Load, RunnerReply, StepDone, parse


def clips_at_rung(asked: dict[str, Any], cache_dir: str, device: str) -> dict[str, Any]:
    """Two clips of one request on a warm pipeline, with a cancelled attempt of another prompt between them."""
    lane = asked["lane"]
    adapter = ADAPTERS[lane["pipeline"]["adapter"]](lane)
    adapter.load(
        Load(
            lane=lane,
            weights="miniature",
            rung=asked["rung"],
            cache_dir=cache_dir,
            unified_memory=asked["unified_memory"],
        ),
        device,
    )
    first = clip_of(adapter, request(asked["generate"]))
    held_between, on_device = encoder_bytes(adapter), [device_bytes(device)]
    cancel_after_a_step(adapter, request(asked["other"]))
    on_device.append(device_bytes(device))
    second = clip_of(adapter, request(asked["generate"]))
    return {
        "shape": first["shape"],
        "digests": [first["digest"], second["digest"]],
        "encoder_bytes_between": held_between,
        "device_bytes": on_device,
    }


def request(content: dict[str, Any]) -> Generate:
    message = parse(json.dumps(content))
    assert isinstance(message, Generate)
    return message


def clip_of(adapter: Any, generate: Generate) -> dict[str, Any]:
    pixels = adapter.generate(generate, AttemptProgress("a", lambda _reply: None, Event())).pixels
    return {"shape": list(pixels.shape), "digest": hashlib.sha256(pixels.tobytes()).hexdigest()}


def cancel_after_a_step(adapter: Any, generate: Generate) -> None:
    cancelled = Event()

    def after_step(reply: RunnerReply) -> None:
        if isinstance(reply, StepDone):
            cancelled.set()

    try:
        adapter.generate(generate, AttemptProgress("b", after_step, cancelled))
    except AttemptFailure as failure:
        assert failure.failure_class is FailureClass.CANCELLED, failure
    else:
        raise AssertionError("the attempt was not cancelled")


def device_bytes(device: str) -> int | None:
    """Bytes of all tensors on the device; None on a cpu."""
    if device == "cpu":
        return None
    import gc

    import torch

    gc.collect()  # the exception of a cancelled attempt holds the tensors of its frames
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def encoder_bytes(adapter: Any) -> int:
    """Bytes of all parameters of the text and image encoders, in host or device memory."""
    encoders = [part for name, part in adapter._pipe.components.items() if "encoder" in name and part is not None]
    return sum(parameter.nbytes for encoder in encoders for parameter in encoder.parameters())


def main() -> None:
    results = []
    for asked in json.load(sys.stdin):
        print(asked["lane"]["id"], asked["rung"], asked["unified_memory"], file=sys.stderr, flush=True)
        results.append(clips_at_rung(asked, sys.argv[1], sys.argv[2]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
