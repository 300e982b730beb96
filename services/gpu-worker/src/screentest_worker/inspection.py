"""What is wrong with a lane file and a folder of its weights: preflight without a job, a broker or a device.

`python -m screentest_worker.inspection LANE_FILE FOLDER ENV_PYTHON [--miniature]` prints one JSON object a problem
(check, reason, fix) and exits with 1 when there is one, with 2 when the lane file itself cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from screentest import lanes
from screentest.errors import BadRequest
from screentest.lanes import Lane, lane_digest
from screentest_worker import facts, preflight, weights_folder
from screentest_worker.findings import Problem
from screentest_worker.preflight import Facts
from screentest_worker.weights_layout import Expectation


def inspect_lane(lane: Lane, folder: Path, env_python: Path, *, miniature: bool = False) -> tuple[Problem, ...]:
    """What is wrong with a lane file and a folder of its weights, without a job, a broker or a device.

    ``miniature``: the folder holds the lane's miniature, whose architecture is that of the `miniature` tables.
    """
    weights: lanes.Weights = "miniature" if miniature else "hub"
    found = Facts(
        lane=lane,
        lane_digest=lane_digest(lane),
        missing_env=None if env_python.exists() else str(env_python),
        signature=facts.signature_of(lane, env_python),
        weights=weights_folder.read(folder),
        expected=Expectation.of_lane(lane, miniature=miniature),
    )
    call = lane.pipeline_call(weights, {**lane.defaults_for(weights), "prompt": ""})
    return preflight.of_lane(found, call)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m screentest_worker.inspection")
    parser.add_argument("lane_file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("env_python", type=Path, help="the interpreter of the lane's model env")
    parser.add_argument("--miniature", action="store_true", help="the folder holds the lane's miniature")
    asked = parser.parse_args()
    try:
        lane = lanes.load_lane(asked.lane_file)
    except BadRequest as error:
        sys.stderr.write(f"{error}\n")
        return 2
    problems = inspect_lane(lane, asked.folder, asked.env_python.absolute(), miniature=asked.miniature)
    for problem in problems:
        sys.stdout.write(json.dumps(asdict(problem)) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
