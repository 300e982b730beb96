"""Run by test_runner_miniatures.py in the model environment: one clip per (lane, rung), all in one process.

stdin: a JSON list of {lane, rung, generate}. argv[1]: the cache of miniatures. Last line of stdout: the clips' shapes.
"""

from __future__ import annotations

import json
import sys
from threading import Event
from typing import Any

from screentest_runner.adapters import ADAPTERS
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import Generate, Load, parse


def make_clip(asked: dict[str, Any], cache_dir: str) -> list[int]:
    """The shape of the clip, (T, H, W, 3)."""
    lane, rung = asked["lane"], asked["rung"]
    adapter = ADAPTERS[lane["pipeline"]["adapter"]](lane)
    adapter.load(Load(lane=lane, weights="miniature", rung=rung, cache_dir=cache_dir), "cpu")
    generate = parse(json.dumps(asked["generate"]))
    assert isinstance(generate, Generate)
    clip = adapter.generate(generate, AttemptProgress("a", lambda _reply: None, Event()))
    return list(clip.pixels.shape)


def main() -> None:
    shapes = []
    for asked in json.load(sys.stdin):
        print(asked["lane"]["id"], asked["rung"], file=sys.stderr, flush=True)  # noqa: T201
        shapes.append(make_clip(asked, sys.argv[1]))
    print(json.dumps(shapes))  # noqa: T201


if __name__ == "__main__":
    main()
