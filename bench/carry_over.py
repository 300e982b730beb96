"""Makes deploy/measured/<gpu>.json from result files of the dress rehearsal: what estimates are shipped with.

    python bench/carry_over.py bench/results/rehearsal.json bench/results/rehearsal-16gib.json ...

One file per GPU of the results, each written whole. Only completed lanes count; nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "proto" / "src")]

from screentest import cost, memory, subjects  # noqa: E402
from screentest.lanes import Lane, load_lanes  # noqa: E402
from screentest.measured import Shape, clips_from_json  # noqa: E402

MEASURED = ROOT / "deploy" / "measured"


def clip_of(lane: Lane, result: dict[str, Any], gpu: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One lane's result as the content of an Experience."""
    seconds, clip = result["timings_s"], result["clip"]
    shape = {"width_px": clip["width_px"], "height_px": clip["height_px"], "num_frames": clip["frames"]}
    found = {
        "lane_id": lane.id,
        "rung": result["rung"],
        "shape": shape,
        "gpu": gpu,
        "steps": result["steps_full"],
        "clips": 1,
        "step_s": [result["step_s"]["median"]],
        "step_tflop": _step_tflop(lane, Shape(**shape)),
        "memory_cap_gib": settings["memory_cap_gib"],
        "encode_s": seconds["encoding_prompt"],
        "start_s": round(max(seconds["denoising"] - result["steps"] * result["step_s"]["median"], 0.0), 4),
        "decode_s": seconds["decoding"],
        "load_s": {settings["weights"]: round((result["build_s"] or 0.0) + result["load_s"], 2)},
        "held_bytes": _bytes(result["peak_memory_gib_by_phase"]),
        "tensor_bytes": _bytes(result["peak_tensors_gib_by_phase"]),
        "energy_wh": result["projected_wh"],
    }
    return {key: value for key, value in found.items() if value is not None}  # JSON's null is no number


def _bytes(gib_by_phase: dict[str, float]) -> dict[str, int]:
    return {phase: round(gib * memory.GIB) for phase, gib in gib_by_phase.items()}


def _step_tflop(lane: Lane, shape: Shape) -> float | None:
    if lane.cost is None:
        return None
    guided = cost.is_guided(lane.cost, lane.pipeline_call("hub", lane.defaults_for("hub")))
    return round(cost.clip_tflop(lane.cost, shape, 1, guided=guided), 2)


def carry_over(paths: list[Path], lanes: dict[str, Lane]) -> dict[str, dict[str, Any]]:
    """The content of each GPU's file by the GPU's name."""
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        gpu = document["machine"]["gpu"]
        if gpu is None:
            raise SystemExit(f"{path}: was measured without a GPU; give results of a GPU")
        content = files.setdefault(gpu, {"gpu": gpu, "sources": [], "clips": []})
        source = {key: document[key] for key in ("measured_at", "machine", "versions")}
        content["sources"].append({"result": path.resolve().relative_to(ROOT).as_posix(), **source})
        content["clips"] += [
            clip_of(lanes[lane_id], result, gpu, document["settings"])
            for lane_id, result in sorted(document["lanes"].items())
            if result["outcome"] == "completed"
        ]
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="result files of bench/rehearsal.py")
    parser.add_argument("--out", type=Path, default=MEASURED, help="the folder to write to")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for gpu, content in carry_over(asked.results, load_lanes(ROOT / "deploy" / "lanes")).items():
        path = asked.out / f"{subjects.legal_form(gpu)}.json"
        clips_from_json(content, str(path))  # what cannot be read is not written
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: {len(content['clips'])} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
