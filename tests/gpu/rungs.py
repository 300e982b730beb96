"""Every rung of every lane on a GPU, with miniature weights: what a cpu cannot show.

Models really move, stream and are cast there: the second clip of a seed must equal the first although a cancelled
attempt lies between, and after that cancel the device must hold as little as after a clip. Needs torch and diffusers:

    PYTHONPATH=proto/src:services/gpu-worker/runner python tests/gpu/rungs.py [lane ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / "proto" / "src"),
    str(ROOT / "services" / "gpu-worker" / "runner"),
    str(ROOT / "tests" / "integration"),
]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from rungs_in_one_process import clips_at_rung  # noqa: E402

from screentest.lanes import Lane, call_at, load_lanes, usable_rungs  # noqa: E402
from screentest_runner.protocol import Generate, to_line  # noqa: E402

SLACK_BYTES = 1 << 20  # a cached table or two of the libraries


def keyframes(folder: Path) -> list[Path]:
    paths = [folder / "a.png", folder / "b.png"]
    for seed, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 120, 3), np.uint8), "RGB").save(path)
    return paths


def asked(lane: Lane, rung: int, pictures: list[Path], *, unified: bool) -> dict[str, Any]:
    own = lane.defaults_for("miniature")
    requests = [
        Generate(
            attempt_id="a",
            call=call_at(lane, rung, lane.pipeline_call("miniature", {**own, "prompt": prompt})),
            seed=1,
            frames_path="unused",
            fps=8.0,
            keyframe_path=str(picture) if lane.task == "i2v" else None,
        )
        for prompt, picture in zip(("a doll in a red dress", "a soldier in a control room"), pictures, strict=True)
    ]
    generate, other = (json.loads(to_line(request)) for request in requests)
    content = {"lane": lane.content, "rung": lane.content["ladder"][rung], "unified_memory": unified}
    return {**content, "generate": generate, "other": other}


def verdict(found: dict[str, Any]) -> str:
    """`ok`, or what is wrong."""
    first, after_cancel = found["digests"]
    if first != after_cancel:
        return "another clip of the same seed after a cancel"
    after_clip, held = found["device_bytes"]
    if held > after_clip + SLACK_BYTES:
        return f"{held} bytes on the device after a cancel, {after_clip} after a clip"
    return "ok"


def main() -> int:
    lanes = [lane for lane in load_lanes(ROOT / "deploy" / "lanes").values() if lane.env == "diffusers"]
    wanted = [lane for lane in lanes if not sys.argv[1:] or lane.id in sys.argv[1:]]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        pictures = keyframes(Path(folder))
        cases = [(lane, rung, unified) for lane in wanted for unified in (False, True)
                 for rung in usable_rungs(lane, unified)]  # fmt: skip
        for lane, rung, unified in cases:
            began = time.perf_counter()
            try:
                said = verdict(clips_at_rung(asked(lane, rung, pictures, unified=unified), f"{folder}/cache", "cuda:0"))
            except Exception as error:  # noqa: BLE001  (one lane's failure must not hide the others')
                said = f"{type(error).__name__}: {error}"
            bad += said != "ok"
            where = f"{lane.id} {lane.ladder[rung].name}{' unified' if unified else ''}"
            print(f"{where}: {said} ({time.perf_counter() - began:.1f} s)", flush=True)
    print("all ok" if not bad else f"{bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
