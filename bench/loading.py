"""How long a checkpoint takes from disk to the GPU, beside safetensors alone on the same files in the same minute.

Makes the lane's full-size checkpoint once (random weights, written as a hub folder would be), then alternates: a fresh
runner that loads it as a job's would be loaded, and a fresh process that reads the same *.safetensors straight to the
GPU. The page cache is warm for both. Started by hand on a GPU host, with the model environment's Python:

    python bench/loading.py --lane cogvideox-5b --folder /scratch/cogvideox-5b --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rehearsal import PROMPT
from runner_child import ROOT, Gpu, RunnerChild, machine

from screentest.lanes import Lane, load_lane
from screentest_runner.protocol import Decoded, Loaded

RESULTS = Path(__file__).resolve().parent / "results" / "loading.json"
GIB = 2**30
SAFETENSORS_ALONE = """
import sys, time, torch
from safetensors.torch import load_file
torch.zeros(1, device="cuda")
began = time.perf_counter()
held = [load_file(path, device="cuda") for path in sys.argv[1:]]
torch.cuda.synchronize()
print(time.perf_counter() - began)
"""


def write_checkpoint(lane: Lane, folder: Path) -> None:
    """The lane's full-size pipeline with random weights, saved as its repository holds it."""
    import torch

    from screentest_runner import full_random
    from screentest_runner.adapters import ADAPTERS

    adapter = ADAPTERS[lane.pipeline.adapter](lane.content)
    device = torch.device("cuda")
    maker = full_random.Maker(
        lane.content,
        adapter.pipeline_class(),
        dtype_of=adapter.dtype_of,
        home_of=lambda _: full_random.Home(device=device),
        device=device,
    )
    pipe = maker.pipeline()
    pipe.save_pretrained(folder, variant=lane.content["model"].get("variant"))


def load_once(lane: Lane, weights: Path, folder: Path, *, clips: int) -> dict[str, Any]:
    """One fresh runner: seconds of its load, then so many clips of two steps each on the warm pipeline."""
    with RunnerChild(lane, folder, Gpu("cuda:0")) as runner:
        _, loaded = runner.load(lane.content["ladder"][0], device="cuda:0", weights="hub", weights_dir=weights)
        assert isinstance(loaded, Loaded), loaded
        call = lane.pipeline_call("hub", {**lane.defaults, "prompt": PROMPT, "steps": 2})
        made = [_clip(runner, f"warm-{index}", call) for index in range(clips)]
        runner.stop()
    return {"load_s": round(loaded.load_s, 3), "clips_of_two_steps": made}


def _clip(runner: RunnerChild, attempt_id: str, call: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    decoded = runner.generate(attempt_id, call)
    assert isinstance(decoded, Decoded), decoded
    return {"wall_s": round(time.perf_counter() - began, 3), "loads": decoded.loads}


def alone(files: list[str]) -> float:
    command = [sys.executable, "-c", SAFETENSORS_ALONE, *files]
    return round(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]), 3)


def measure(lane: Lane, weights: Path, folder: Path, repeats: int) -> dict[str, Any]:
    files = sorted(map(str, weights.rglob("*.safetensors")))
    alone(files)  # fills the page cache
    pairs = [
        {"alone_s": alone(files), **load_once(lane, weights, folder, clips=2 if index == 0 else 0)}
        for index in range(repeats)
    ]
    ratios = [round(pair["load_s"] / pair["alone_s"], 3) for pair in pairs]
    return {
        "benchmark": "loading",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(Gpu("cuda:0")),
        "lane": lane.id,
        "checkpoint_gib": round(sum(Path(file).stat().st_size for file in files) / GIB, 2),
        "files": len(files),
        "pairs": pairs,
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lane", default="cogvideox-5b")
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes; default: a temporary folder")
    parser.add_argument("--write-only", action="store_true", help="write the checkpoint and stop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    lane = load_lane(ROOT / "deploy" / "lanes" / f"{asked.lane}.toml")
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        weights = asked.folder or Path(folder) / "checkpoint"
        if asked.write_only:
            write_checkpoint(lane, weights)
            return 0
        if not weights.is_dir():
            # in a process of its own: what it leaves on the GPU must not be there when the others load
            again = [sys.executable, __file__, "--lane", lane.id, "--folder", str(weights), "--write-only"]
            subprocess.run(again, check=True)
        document = measure(lane, weights, Path(folder), asked.repeats)
    asked.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
