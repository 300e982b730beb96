"""What judging costs per clip: seconds of tier a, on a clip as a lane makes it and on a larger one.

The measuring itself runs in the judge environment, whose libraries it measures: `python bench/judging.py measure`
prints it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNNER_SOURCE = ROOT / "services" / "gpu-worker" / "runner"
ROUNDS = 20
# frames, width and height in pixels, frames per second
CLIPS = {"49 frames 832x480": (49, 832, 480, 16.0), "121 frames 1280x720": (121, 1280, 720, 24.0)}


def pixels_s(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Clip -> seconds of each round, to decode it and to examine it, and of CPU for both; the first only warms up."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, form in CLIPS.items():
        path = _moving_clip(folder / "clip.mp4", *form)
        rounds = [_timed(path) for _ in range(ROUNDS + 1)]
        found[name] = {
            "decode_s": [decode_s for decode_s, _, _ in rounds[1:]],
            "examine_s": [examine_s for _, examine_s, _ in rounds[1:]],
            "total_s": [decode_s + examine_s for decode_s, examine_s, _ in rounds[1:]],
            "cpu_s": [cpu_s for _, _, cpu_s in rounds[1:]],
        }
    return found


def _timed(path: Path) -> tuple[float, float, float]:
    """Seconds to decode, to examine, and of CPU: a busy machine doubles the first two."""
    from screentest_runner.judging import media, pixels

    begun, cpu_begun = time.perf_counter(), time.process_time()
    clip = media.read(path)
    decoded = time.perf_counter()
    pixels.examine(clip, {})
    return decoded - begun, time.perf_counter() - decoded, time.process_time() - cpu_begun


def _moving_clip(path: Path, frames: int, width_px: int, height_px: int, fps: float) -> Path:
    """A pan over a texture with a little grain, encoded as every clip is."""
    import cv2
    import numpy as np

    from tests.judging import pixel_clips

    random = np.random.default_rng(1)
    scene = cv2.resize(pixel_clips.texture(random, height_px // 2, width_px // 2 + 2 * frames), None, fx=2.0, fy=2.0)
    views = [
        scene[:height_px, 3 * i : 3 * i + width_px] + random.normal(0, 2, (height_px, width_px, 1))
        for i in range(frames)
    ]
    pixel_clips.write(pixel_clips.stacked(views), path, fps)
    return path


def measured() -> dict[str, Any]:
    """What the judge environment prints."""
    child = subprocess.run(
        [ROOT / ".venvs" / "judge" / "bin" / "python", __file__, "measure"],
        env={**os.environ, "PYTHONPATH": f"{RUNNER_SOURCE}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def main() -> None:
    if sys.argv[1:] == ["measure"]:
        with tempfile.TemporaryDirectory(prefix="screentest-bench-") as name:
            print(json.dumps({"pixels": pixels_s(Path(name))}))
        return
    import recording

    found = measured()
    spread = {
        name: {key: recording.spread(values) for key, values in by.items()} for name, by in found["pixels"].items()
    }
    recording.record("judging", {"rounds": ROUNDS, "pixels": spread})


if __name__ == "__main__":
    main()
