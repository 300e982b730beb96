"""Run in a model env: builds the miniature of each lane below a folder, and tells what `inspect` sees of its class.

stdin: a JSON list of lane contents. argv: the folder. Last line of stdout: JSON by lane id.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import diffusers

    from screentest_runner import miniature

    told = {}
    for lane in json.load(sys.stdin):
        miniature.build(lane, Path(sys.argv[1]) / lane["id"])
        kind = getattr(diffusers, lane["pipeline"]["class"])
        told[lane["id"]] = {
            "call": method(kind.__call__),
            "init": method(kind.__init__),
            "optional_components": list(kind._optional_components),
        }
    print(json.dumps(told))  # noqa: T201


def method(function: Any) -> dict[str, Any]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [item for item in parameters if item.kind not in {item.VAR_KEYWORD, item.VAR_POSITIONAL}]
    return {
        "parameters": [[item.name, item.default is item.empty] for item in named],
        "takes_any": any(item.kind is item.VAR_KEYWORD for item in parameters),
    }


if __name__ == "__main__":
    main()
