"""A cold runner of every lane: from the start of its process to the first denoising step, on miniature weights.

The miniatures themselves are built once before: a hub checkpoint is on disk too when its runner starts. Lane ids as
arguments measure only those.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import recording
from PIL import Image

from screentest_runner.protocol import Loaded, Prepared, StepDone

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.integration.runner_process import RunnerProcess, lane_of

LANES = (
    "wan2-1-t2v-1-3b",
    "cogvideox-2b",
    "cogvideox-5b",
    "mochi-1-preview",
    "skyreels-v2-df-14b-540p",
    "ltx-video-13b-distilled",
    "hunyuanvideo-i2v",
    "skyreels-v1-hunyuan-i2v",
    "skyreels-v2-i2v-14b-540p",
    "stable-video-diffusion-xt",
)
ROUNDS = 5


def seconds_to_first_step(lane_id: str, folder: Path, cache: Path, keyframe: Path) -> dict[str, float]:
    lane = lane_of(lane_id)
    folder.mkdir()
    begun = time.monotonic()
    with RunnerProcess(lane, folder) as runner:
        runner.prepare()
        runner.open()
        runner.load(cache=cache)
        runner.generate("a", keyframe if lane.task == "i2v" else None)
        runner.until(StepDone)
        seconds = time.monotonic() - begun
        return {
            "total": seconds,
            "imports": runner.of(Prepared)[0].import_s,
            "load": runner.of(Loaded)[0].load_s,
        }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="screentest-bench-") as name:
        home = Path(name)
        keyframe = home / "keyframe.png"
        Image.radial_gradient("L").resize((960, 544)).convert("RGB").save(keyframe)
        results = {}
        for lane_id in sys.argv[1:] or LANES:
            seconds_to_first_step(lane_id, home / f"{lane_id}-build", home / "cache", keyframe)
            runs = [
                seconds_to_first_step(lane_id, home / f"{lane_id}-{index}", home / "cache", keyframe)
                for index in range(ROUNDS)
            ]
            results[lane_id] = {
                "first_step_s": recording.spread([run["total"] for run in runs]),
                "of_that_imports_s": round(statistics.median(run["imports"] for run in runs), 2),
                "of_that_load_s": round(statistics.median(run["load"] for run in runs), 2),
            }
            print(lane_id, results[lane_id]["first_step_s"]["p50"], flush=True)
        recording.record("cold_runner", results)


if __name__ == "__main__":
    main()
