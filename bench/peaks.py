"""How near the estimate of a peak is to a measured one that it was not made from.

    python bench/peaks.py bench/results/rehearsal-resident.json bench/results/rehearsal-16gib.json ...

Takes each result file of the dress rehearsal in turn, makes the estimates from the others alone, as preflight would
know them on that GPU, and sets both side by side. Nothing runs; needs no GPU. Writes bench/results/peaks.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import carry_over

from screentest import memory
from screentest.lanes import Lane, load_lanes
from screentest.measured import Measured, Shape, load_measured

RESULTS = carry_over.ROOT / "bench" / "results"
NEAR = 0.1


def estimates_from(paths: list[Path], lanes: dict[str, Lane]) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(carry_over.carry_over(paths, lanes).values()):
            (Path(folder) / f"{number}.json").write_text(json.dumps(content))
        return load_measured(Path(folder))


def beside(lane: Lane, result: dict[str, Any], known: Measured, cap_gib: float | None) -> dict[str, Any]:
    """One lane's measured and estimated peak in GiB, and their ratio; the estimate is None where nothing is known."""
    clip = result["clip"]
    found = memory.peak(
        lane,
        [rung.name for rung in lane.ladder].index(result["rung"]),
        Shape(width_px=clip["width_px"], height_px=clip["height_px"], num_frames=clip["frames"]),
        known,
        torch_bytes=None if cap_gib is None else int(cap_gib * memory.GIB),
    )
    measured = result["peak_gib"]
    estimate = None if found is None else found.likely_bytes / memory.GIB
    return {
        "rung": result["rung"],
        "measured_gib": measured,
        "estimate_gib": None if estimate is None else round(estimate, 2),
        "ratio": None if estimate is None else round(estimate / measured, 3),
        "basis": None if found is None else found.basis,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="two or more result files of bench/rehearsal.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "peaks.json")
    asked = parser.parse_args()
    lanes = load_lanes(carry_over.ROOT / "deploy" / "lanes")
    document: dict[str, Any] = {"benchmark": "peaks", "near": NEAR, "files": {}}
    for path in asked.results:
        known = estimates_from([other for other in asked.results if other != path], lanes)
        content = json.loads(path.read_text())
        cap_gib = content["settings"]["memory_cap_gib"]
        rows = {lane_id: beside(lanes[lane_id], result, known, cap_gib) for lane_id, result in content["lanes"].items()}
        near = sum(row["ratio"] is not None and abs(row["ratio"] - 1) <= NEAR for row in rows.values())
        estimated = sum(row["ratio"] is not None for row in rows.values())
        document["files"][path.name] = {"estimated": estimated, "within_a_tenth": near, "lanes": rows}
        print(f"{path.name}: {near} of {estimated} estimates within {NEAR:.0%}, {len(rows) - estimated} unknown")
        for lane_id, row in rows.items():
            estimate = "unknown" if row["ratio"] is None else f"{row['estimate_gib']} GiB, {row['ratio']}x"
            print(f"  {lane_id} at {row['rung']}: measured {row['measured_gib']} GiB, estimate {estimate}")
    asked.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
