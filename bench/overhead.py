"""What the stack adds: 30 sequential submits to a warm stub lane of 2 s, from the call to the clip in the depot.

Above the stub's own denoising seconds of each attempt, as its runner reports them. Also what idle workers weigh.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import local_stack
import recording

from screentest.client import Client
from screentest.records import AttemptEnded, JobEvent, Progress, SweepSpec, Weights

SUBMITS = 30
WARM_UP = 2
STUB_PHASE = "denoising"  # the stub's pretended work


def one(client: Client, seed: int) -> dict[str, float]:
    """Seconds of one submit: until the clip is in the depot, of which the stub's own, and until the first progress."""
    spec = SweepSpec(
        title="overhead", prompts=("a door",), lane_ids=("stub",), seeds=(seed,), weights=Weights.MINIATURE
    )
    begun = time.monotonic()
    accepted = client.submit_sweep(spec, request_id=uuid.uuid4().hex)
    accepted_s = time.monotonic() - begun
    first_progress_s = None
    for message in client.watch(accepted.sweep.record.sweep_id):
        if isinstance(message.body, Progress) and first_progress_s is None:
            first_progress_s = time.monotonic() - begun
        if isinstance(message.body, JobEvent) and isinstance(message.body.body, AttemptEnded):
            ended_s = time.monotonic() - begun
            outcome = message.body.body.outcome
            assert outcome.failure_class is None, outcome.cause
            work_s = sum(phase.seconds for phase in outcome.phases if phase.phase == STUB_PHASE)
            return {
                "submit": accepted_s,
                "first_progress": first_progress_s if first_progress_s is not None else ended_s,
                "total": ended_s,
                "work": work_s,
                **{f"phase_{phase.phase}": phase.seconds for phase in outcome.phases},
            }
    raise RuntimeError("the watch ended before the job")


def main() -> None:
    with local_stack.running("--stub") as home:
        time.sleep(5)  # let eleven interpreters come to rest
        idle_mib = {name: recording.rss_mib(pid) for name, pid in pids(home).items()}
        with local_stack.client(home) as client:
            for seed in range(WARM_UP):
                one(client, seed)
            runs = []
            for seed in range(WARM_UP, WARM_UP + SUBMITS):
                time.sleep(0.5)  # sequential submits of a person, not a queue that is never empty
                runs.append(one(client, seed))
        workers = [mib for name, mib in idle_mib.items() if name.startswith("worker-")]
        phases = sorted({key for run in runs for key in run if key.startswith("phase_")})
        recording.record(
            "overhead",
            {
                "submits": SUBMITS,
                "overhead_s": recording.spread([run["total"] - run["work"] for run in runs]),
                "stub_work_s": recording.spread([run["work"] for run in runs]),
                "submit_answered_s": recording.spread([run["submit"] for run in runs]),
                "first_progress_s": recording.spread([run["first_progress"] for run in runs]),
                "phases_s": {key[6:]: recording.spread([run.get(key, 0.0) for run in runs])["p50"] for key in phases},
                "idle_rss_mib": {
                    "worker_max": round(max(workers), 1),
                    "workers": len(workers),
                    **{name: round(mib, 1) for name, mib in idle_mib.items() if not name.startswith("worker-")},
                },
            },
        )


def pids(home: Path) -> dict[str, int]:
    """Process ids by program name, as ``up`` recorded them."""
    state = json.loads((home / "stack.json").read_text())
    return {name: entry["pid"] for name, entry in state["processes"].items()}


if __name__ == "__main__":
    main()
