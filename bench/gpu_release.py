"""How long a GPU takes to be proven clean after its runner was killed, and what an orphan does to the queue.

Through the whole stack on a real GPU: a lane at full size with random weights is killed (SIGKILL) in the middle of its
denoising; then a stranger is started on the GPU, a job is submitted, and the GPU must be drained with the stranger's
pid in the reason. Started by hand on a GPU host:

    .venv/bin/python bench/gpu_release.py --lane skyreels-v2-df-14b-540p --kills 5
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import local_stack
from recording import record, spread

from screentest.client import Client
from screentest.records import (
    AttemptEnded,
    DeviceView,
    Job,
    JobEvent,
    Progress,
    Requested,
    Stamp,
    Started,
    SweepSpec,
    Weights,
)

HOST, DEVICE = "local", "gpu-0"
GIB = 2**30
PROMPT = "A cathedral of obsidian under cracked glass, two figures in heavy coats, slow dolly in, film grain."
STEPS_BEFORE_THE_KILL = 2
STRANGER_GIB = 2
# Takes memory on the GPU in a session of its own, as a process that a wrapper left behind would.
STRANGER = (
    f"import time, torch; held = torch.empty({STRANGER_GIB} << 30, device='cuda', dtype=torch.uint8)\ntime.sleep(900)"
)
POLL_S = 0.01
PATIENCE_S = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lane", default="skyreels-v2-df-14b-540p", help="a lane that holds 40 GiB when resident")
    parser.add_argument("--kills", type=int, default=5, help="at least two")
    parser.add_argument("--env-python", type=Path, default=local_stack.ROOT / ".venvs" / "diffusers" / "bin" / "python")
    asked = parser.parse_args()
    with local_stack.running("--device", DEVICE, "--lanes", asked.lane) as home, local_stack.client(home) as client:
        kills = _kill_each_attempt(client, asked.lane, asked.kills)
        stranger = _orphan(client, asked.lane, asked.env_python)
        gpu = next((gpu for batch in client.list_vitals(last_s=5) for gpu in batch.gpus), None)
        driver = next((batch.driver_version for batch in client.list_vitals(last_s=5)), None)
    results = {
        "gpu": gpu.name if gpu else None,
        "driver": driver,
        "lane": asked.lane,
        "kill_to_proven_clean_s": spread([kill["kill_to_clean_s"] for kill in kills]),
        "kill_to_next_started_s": spread([kill["kill_to_next_started_s"] for kill in kills[:-1]])
        if kills[1:]
        else None,
        "kills": kills,
        "orphan": stranger,
    }
    record("gpu_release", results)
    return 0


def _submit(client: Client, lane_id: str, seeds: int, steps: int | None) -> str:
    spec = SweepSpec(
        title="Release of the GPU",
        prompts=(PROMPT,),
        lane_ids=(lane_id,),
        seeds=tuple(range(1, seeds + 1)),
        weights=Weights.FULL_RANDOM,
        requested=Requested(steps=steps),
    )
    return client.submit_sweep(spec, request_id=uuid.uuid4().hex).sweep.record.sweep_id


def _kill_each_attempt(client: Client, lane_id: str, kills: int) -> list[dict[str, Any]]:
    """One job per kill; each dies at its second step."""
    sweep_id = _submit(client, lane_id, kills, steps=None)
    done: list[dict[str, Any]] = []
    runner: Started | None = None
    killed_at_ns = 0
    for message in client.watch(sweep_id, give_up_after_s=PATIENCE_S):
        match message.body:
            case JobEvent(body=Started() as started, stamp=stamp):
                runner = started
                if done:
                    done[-1]["kill_to_next_started_s"] = _seconds(killed_at_ns, stamp)
            case Progress(phase="denoising", step=step) if runner is not None and (step or 0) >= STEPS_BEFORE_THE_KILL:
                held = _used_bytes(client)
                pid, runner = runner.runner.pid, None
                killed_at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                os.kill(pid, signal.SIGKILL)
                done.append({"held_gib": None if held is None else round(held / GIB, 1), **_until_clean(client)})
                print(f"kill {len(done)}: {done[-1]}", flush=True)
            case JobEvent(body=AttemptEnded(outcome=outcome), stamp=stamp):
                if runner is not None:  # it was not ours to end
                    raise RuntimeError(f"an attempt ended by itself: {outcome.failure_class}: {outcome.cause}")
                done[-1]["kill_to_attempt_ended_s"] = _seconds(killed_at_ns, stamp)
                done[-1]["failure_class"] = outcome.failure_class
            case _:
                pass
        if client.get_sweep(sweep_id).over:
            return done
    return done


def _until_clean(client: Client) -> dict[str, Any]:
    """Asks telemetry through the scheduler until the proof is clean: freshly read lock and NVML's process list."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        proof = _device(client).proof
        if proof is not None and proof.clean and not proof.lock_held:
            return {
                "kill_to_clean_s": round(time.monotonic() - began, 4),
                "method": proof.method,
            }
        time.sleep(POLL_S)
    raise TimeoutError(f"not clean after {PATIENCE_S:.0f} s: {_device(client)}")


def _orphan(client: Client, lane_id: str, python: Path) -> dict[str, Any]:
    """A stranger comes while the GPU is idle; the next job must wait for a person."""
    _wait(lambda: not _device(client).job_id, "the GPU to be idle")
    stranger = subprocess.Popen([str(python), "-c", STRANGER], start_new_session=True)
    try:
        _wait(lambda: _is_seen(client, stranger.pid), "the stranger to hold the GPU")
        began = time.monotonic()
        sweep_id = _submit(client, lane_id, 1, steps=2)
        _wait(lambda: _device(client).drained, "the drain")
        drained_s = round(time.monotonic() - began, 2)
        device, job = _device(client), client.list_jobs(sweep_id)[0]
        print(f"drained after {drained_s} s: {device.drained_reason}\nthe job waits for: {job.waits_for}", flush=True)
    finally:
        stranger.kill()
        stranger.wait()
    undrained_at = time.monotonic()
    client.undrain(HOST, DEVICE)
    _wait(lambda: client.get_sweep(sweep_id).over, "the job after the undrain")
    final: Job = client.list_jobs(sweep_id)[0]
    return {
        "stranger_gib": STRANGER_GIB,
        "submit_to_drained_s": drained_s,
        "drained_reason": device.drained_reason,
        "names_the_pid": str(stranger.pid) in device.drained_reason,
        "job_waited_for": job.waits_for,
        "job_after_undrain": final.state.value,
        "undrain_to_job_over_s": round(time.monotonic() - undrained_at, 1),
    }


def _device(client: Client) -> DeviceView:
    return next(view for view in client.list_gpus() if view.device == DEVICE)


def _is_seen(client: Client, pid: int) -> bool:
    proof = _device(client).proof
    return proof is not None and any(process.pid == pid for process in proof.processes)


def _used_bytes(client: Client) -> int | None:
    samples = [sample for batch in client.list_vitals(last_s=3) for sample in batch.gpu_samples]
    return samples[-1].memory_used_bytes if samples else None


def _seconds(since_ns: int, stamp: Stamp) -> float:
    return round((stamp.boottime_ns - since_ns) / 1e9, 4)


def _wait(holds: Any, what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
