"""``make demo`` after installation: how long the ten rows take, each run from a stack that is down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import recording

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3


def main() -> None:
    runs = []
    for index in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="screentest-bench-") as home:
            environment = {**os.environ, "SCREENTEST_HOME": home}
            begun = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "screentest_ui.demo"], env=environment, cwd=ROOT, capture_output=True, text=True
            )
            seconds = time.monotonic() - begun
            sys.stdout.write(done.stdout[-2500:])
            if done.returncode != 0:
                sys.exit(f"the demo ended with {done.returncode}:\n{done.stderr[-3000:]}")
            report = ROOT / Path(done.stdout.strip().splitlines()[-1].partition(": ")[2]).parent / "report.json"
            rows = json.loads(report.read_text())["rows"]
            completed = sum(row["status"] == "completed" for row in rows)
            # The first run builds the ten miniatures in this home; every run has a fresh one.
            runs.append({"run": index, "seconds": round(seconds, 1), "completed": completed, "rows": len(rows)})
    recording.record("demo", {"seconds": recording.spread([run["seconds"] for run in runs]), "runs": runs})


if __name__ == "__main__":
    main()
