"""Runs every benchmark that this machine can run; each writes its numbers below bench/results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The GPU's own (rehearsal.py) is started by hand on a GPU host.
BENCHMARKS = ("scheduler", "overhead", "cold_runner", "report", "judging", "judging_questions", "demo")


def main() -> int:
    chosen = sys.argv[1:] or BENCHMARKS
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
