"""The operations that lane files claim, counted again from the full-size architectures."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from screentest import cost
from screentest.measured import Shape

from .runner_process import RUNNER_SOURCE, env_python, lane_of

pytestmark = pytest.mark.slow

COUNT = """
import json, sys
from screentest_runner.counting import Counter, Shape
asked = json.load(sys.stdin)
for lane, shape in asked:
    forward = Counter(lane).forward(Shape(**shape))
    print(json.dumps([lane["id"], forward.tflop, forward.batch]))
"""
# one whose batch holds the guidance and whose attention selects by a mask, one without guidance; small, for the time
RECOUNTED = {
    "ltx-video-13b-distilled": {"width_px": 512, "height_px": 512, "num_frames": 49},
    "mochi-1-preview": {"width_px": 432, "height_px": 240, "num_frames": 19},
}


def recounted(asked: list[Any]) -> dict[str, tuple[float, int]]:
    done = subprocess.run(
        [env_python("diffusers"), "-c", COUNT],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {lane_id: (tflop, batch) for lane_id, tflop, batch in rows}


@pytest.mark.timeout(300)  # two full-size denoisers, layer by layer, without values: 30 s on two idle cores
def test_lane_files_claim_the_operations_that_are_counted() -> None:
    lanes = {lane_id: lane_of(lane_id) for lane_id in RECOUNTED}
    counted = recounted([[lane.content, RECOUNTED[lane_id]] for lane_id, lane in lanes.items()])
    for lane_id, lane in lanes.items():
        assert lane.cost is not None
        guided = cost.is_guided(lane.cost, lane.pipeline_call("hub", lane.defaults))
        claimed = cost.forward_tflop(lane.cost, Shape(**RECOUNTED[lane_id]), guided=guided)
        tflop, batch = counted[lane_id]
        assert claimed == pytest.approx(tflop, rel=0.01), lane_id
        is_doubled = guided and lane.cost.guidance is not None and lane.cost.guidance.doubles == "batch"
        assert batch == (2 if is_doubled else 1), lane_id
