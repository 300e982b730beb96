"""Run in a model env: builds the miniature of each lane below a folder, and tells what `inspect` sees of its class.

stdin: a JSON list of lane contents. argv: the folder. Last line of stdout: JSON by lane id.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import diffusers

    from screentest_runner import miniature
    from screentest_runner.doctor import signature_of

    told = {}
    for lane in json.load(sys.stdin):
        miniature.build(lane, Path(sys.argv[1]) / lane["id"])
        told[lane["id"]] = signature_of(getattr(diffusers, lane["pipeline"]["class"]))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
