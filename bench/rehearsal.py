"""The dress rehearsal: every lane at full size with random weights on one GPU, measured through the real runner.

One fresh runner process a lane, over the runner's own JSON lines, to a real MP4. Beside it, in the same process and on
the same components, one bare call of the diffusers pipeline with the same steps. Results are written lane by lane;
`--resume` takes those of an earlier run over. Needs the model environment `diffusers` and nvidia-ml-py:

    python bench/rehearsal.py --out bench/results/rehearsal.json
    python bench/rehearsal.py --out bench/results/rehearsal-16gib.json --memory-cap-gib 16 --reference \
        bench/results/rehearsal.json

A cap is torch's share of the device's memory; what CUDA itself takes (about half a GiB) comes on top of it.
`--then-cap-gib 12` makes a second clip in the same process under that smaller cap: a load is the longest part of a
streamed lane. The load then counts as fitting when its own peak did.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from runner_child import BARE, LOWER, ROOT, SEED, Child, ChildEnded, Gpu, RunnerChild, machine

from screentest.lanes import Lane, call_at, load_lane
from screentest.memory import BYTES_OF, DENOISERS, GIB
from screentest_runner.protocol import (
    Decoded,
    Encode,
    Encoded,
    EncodeFailed,
    Failed,
    PhaseChanged,
    StepDone,
)

PROMPT = "A cathedral of obsidian under cracked glass, two figures in heavy coats, slow dolly in, film grain."
STEPS_OF_EXTRAPOLATED = 6
# Shortest first, so that an interrupted sweep has most of its results. Source of the order: the seconds per clip that
# reference measurements gave on an H200.
ORDER = (
    "ltx-video-13b-distilled",
    "stable-video-diffusion-xt",
    "cogvideox-2b",
    "hunyuanvideo-i2v",
    "wan2-1-t2v-1-3b",
    "mochi-1-preview",
    "cogvideox-5b",
    "skyreels-v1-hunyuan-i2v",
    "skyreels-v2-df-14b-540p",
    "skyreels-v2-i2v-14b-540p",
)
NEWER = (
    "sana-video-2b",
    "kandinsky-5-t2v-lite",
    "wan2-2-ti2v-5b",
    "hunyuanvideo-1-5-t2v",
    "hunyuanvideo-1-5-i2v",
    "ltx-2",
    "wan2-2-t2v-a14b",
)
FULL_STEPS = ORDER[:4]  # clips of less than a minute run whole
WARM_UP_AT_FULL_SIZE = ORDER[:7]  # where the libraries' choice of kernels for a new shape would show in the ratio
WARM_UP_STEPS = 2
SHORT_CLIP_S = 25.0  # a stray second would show in the ratio
REPEATS_OF_SHORT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run of the script.

    memory_cap_gib: None for the whole device. then_cap_gib: a smaller cap for a second clip, None for no second clip.
    rungs: names to try, None for all.
    """

    lanes: tuple[str, ...]
    memory_cap_gib: float | None
    then_cap_gib: float | None
    rungs: tuple[str, ...] | None
    steps: int
    full_steps: bool
    bare: bool
    device: str
    weights: str
    deadline: float


# --- one lane ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sweep:
    """The state of a run: its plan, its results, and the runner that already imports for the next lane."""

    plan: Plan
    document: dict[str, Any]
    out: Path
    folder: Path
    gpu: Gpu
    reference: dict[str, Any] = field(default_factory=dict)
    ready: RunnerChild | None = None

    def take_runner(self, lane: Lane) -> RunnerChild:
        """The prepared runner when it is this lane's, else a new one."""
        ready, self.ready = self.ready, None
        if ready is not None and ready.lane.id == lane.id:
            return ready
        if ready is not None:
            ready.__exit__()
        return RunnerChild(lane, self.folder, self.gpu)

    def prepare(self, lane: Lane | None) -> None:
        """Start the next lane's interpreter, as a supervisor does while a lane still runs. None: there is no next."""
        if lane is not None and self.ready is None:
            self.ready = RunnerChild(lane, self.folder, self.gpu)

    def write(self) -> None:
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.document, indent=2) + "\n")
        part.replace(self.out)


def rehearse(sweep: Sweep, lane: Lane, following: Lane | None) -> dict[str, Any]:
    """The lane's result: the first rung of its ladder that completes, and why those before it did not."""
    tried: list[dict[str, Any]] = []
    for index, rung in enumerate(lane.content["ladder"]):
        if sweep.plan.rungs is not None and rung["name"] not in sweep.plan.rungs:
            continue
        if reason := too_large(lane, rung, sweep.plan.memory_cap_gib):
            tried.append({"rung": rung["name"], "outcome": "not tried", "reason": reason})
            continue
        began = time.perf_counter()
        try:
            result = on_rung(sweep, lane, index, following)
        except ChildEnded as error:
            result = {"outcome": "crashed", "message": str(error)[-1800:]}
        tried.append(
            {"rung": rung["name"], "wall_s": round(time.perf_counter() - began, 1)}
            | {key: result[key] for key in ("outcome", "failure_class", "phase", "message") if key in result}
        )
        if result["outcome"] == "completed":
            return {"outcome": "completed", "rung": rung["name"], "tried": tried, **result}
    return {"outcome": "failed", "rung": None, "tried": tried}


def too_large(lane: Lane, rung: dict[str, Any], cap_gib: float | None) -> str | None:
    """Why a rung cannot fit under the cap, by arithmetic; None when it may."""
    if cap_gib is None:
        return None
    sizes = [_resident_bytes(lane, name, rung) / GIB for name in lane.components]
    weights_gib = max(sizes) if rung.get("drop_text_encoders") else sum(sizes)  # models that take turns
    return f"its weights on the device are {weights_gib:.1f} GiB" if weights_gib > cap_gib else None


def _resident_bytes(lane: Lane, name: str, rung: dict[str, Any]) -> int:
    params = lane.components[name].params or 0
    if rung.get("group_offload") and (name in DENOISERS or "encoder" in name):
        return 0
    if rung.get("layerwise_fp8") and name in DENOISERS:
        return params
    dtypes = lane.pipeline.dtype
    return params * BYTES_OF[dtypes.get(name, dtypes["default"])]


def on_rung(sweep: Sweep, lane: Lane, index: int, following: Lane | None) -> dict[str, Any]:
    """One runner from start to stop. index: of the rung in the lane's ladder."""
    plan = sweep.plan
    rung = lane.content["ladder"][index]
    with sweep.take_runner(lane) as runner:
        prepared, loaded = runner.load(
            rung, device=plan.device, weights=plan.weights, memory_cap_gib=plan.memory_cap_gib
        )
        if isinstance(loaded, Failed):
            return _failed(loaded)
        base = {
            "import_s": round(prepared.import_s, 2),
            "build_s": loaded.build_s,
            "load_s": loaded.load_s,
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default"),
        }
        warm_up_s = _warm_up(runner, lane, index, plan) if plan.bare else None
        sweep.prepare(following)
        call, steps_full = _call_of(lane, index, plan)
        with Child(["-m", "screentest_runner.encode"], sweep.folder / "encoder.log", sweep.gpu) as encoder:
            decoded = runner.generate("clip", call)
            if isinstance(decoded, Failed):
                return _failed(decoded)
            clip = _encode(encoder, lane, decoded, sweep.folder)
        measured = _measured(runner, decoded, steps_full)
        result = {"outcome": "completed", **base, "warm_up_s": warm_up_s, **measured, "clip": clip}
        if plan.then_cap_gib is not None:
            result[LOWER] = _rounded(_under_lower_cap(runner, lane, call, measured, plan.then_cap_gib))
        if plan.bare:
            result["bare"] = _bare(runner, call, decoded)
        runner.stop()
    sweep.document["versions"] = decoded.versions
    _compare(result, sweep.reference.get("lanes", {}).get(lane.id))
    return _rounded(result)


def _under_lower_cap(
    runner: RunnerChild, lane: Lane, call: dict[str, Any], before: dict[str, Any], cap_gib: float
) -> dict[str, Any]:
    """A second clip of the same process under a smaller cap."""
    load_gib = (before["peak_memory_gib_by_phase"] or {}).get("loading")
    if load_gib is not None and load_gib > cap_gib:
        return {"outcome": "failed", "message": f"the load alone held {load_gib:.1f} GiB"}
    attempt_id = f"{LOWER}{cap_gib:g}"
    decoded = runner.generate(attempt_id, call)
    if isinstance(decoded, Failed):
        return _failed(decoded)
    with Child(["-m", "screentest_runner.encode"], runner.folder / "encoder.log", runner.gpu) as encoder:
        clip = _encode(encoder, lane, decoded, runner.folder)
    return {"outcome": "completed", **_measured(runner, decoded, before["steps_full"], attempt_id), "clip": clip}


def _failed(failed: Failed) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "failure_class": failed.failure_class.value,
        "phase": failed.phase.value,
        "message": (failed.message + "\n" + failed.traceback[-1200:]).strip()
        if failed.failure_class.value == "unclassified"
        else failed.message[:400],
    }


def _warm_up(runner: RunnerChild, lane: Lane, rung: int, plan: Plan) -> float | None:
    """Seconds of a clip of two steps that fills the libraries' caches, so that neither side of the comparison pays.

    None where it failed: a slow lane's is tiny, and not every architecture can be so small.
    """
    began = time.perf_counter()
    size = "full-random" if lane.id in WARM_UP_AT_FULL_SIZE and plan.weights == "full-random" else "miniature"
    settings = {**lane.defaults_for(size), "prompt": PROMPT}
    if "steps" in settings:
        settings["steps"] = WARM_UP_STEPS
    decoded = runner.generate("warm-up", call_at(lane, rung, lane.pipeline_call(size, settings)))
    return time.perf_counter() - began if isinstance(decoded, Decoded) else None


def _call_of(lane: Lane, rung: int, plan: Plan) -> tuple[dict[str, Any], int]:
    """The pipeline's arguments as the rung changes them, and the steps of a whole clip."""
    size = "miniature" if plan.weights == "miniature" else "full-random"
    settings = {**lane.defaults_for(size), "prompt": PROMPT}
    if "steps" not in settings:
        call = call_at(lane, rung, lane.pipeline_call(size, settings))
        return call, len(call["timesteps"])
    steps_full = int(settings["steps"])
    if not (plan.full_steps and lane.id in FULL_STEPS):
        settings["steps"] = min(steps_full, plan.steps)
    return call_at(lane, rung, lane.pipeline_call(size, settings)), steps_full


def _measured(runner: RunnerChild, decoded: Decoded, steps_full: int, attempt_id: str = "clip") -> dict[str, Any]:
    steps = [step.step_s for step in runner.since(StepDone, attempt_id)]
    warm = steps[1:] or steps
    median = statistics.median(warm)
    timings = decoded.timings_s
    clip_s = sum(timings.values())
    extra = steps_full - len(steps)
    energy = _energy_by_phase(runner, attempt_id)
    denoising_j = energy.get("denoising")
    whole_j = None
    if denoising_j is not None:
        whole_j = sum(energy.values()) + extra * denoising_j / len(steps)
    return {
        "steps": len(steps),
        "steps_full": steps_full,
        "is_extrapolated": extra > 0,
        "timings_s": timings,
        "step_s": {"first": steps[0], "median": median, "min": min(warm), "max": max(warm), "n": len(warm)},
        "projected_clip_s": clip_s + extra * median,
        "energy_j_by_phase": energy or None,
        "projected_wh": None if whole_j is None else whole_j / 3600,
        "peak_gib": _gib(decoded.peak_device_bytes),
        "peak_memory_gib_by_phase": _gib_of(decoded.peak_memory_by_phase),
        "peak_tensors_gib_by_phase": _gib_of(decoded.peak_tensors_by_phase),
        "peak_host_gib": _gib(decoded.peak_rss_bytes),
    }


def _energy_by_phase(runner: RunnerChild, attempt_id: str) -> dict[str, float]:
    """Joules between the borders of the clip's phases; `writing` of the raw frames counts to decoding. Empty on cpu."""
    borders = [
        (message.phase.value, energy_j)
        for message, _, energy_j in runner.stamps
        if isinstance(message, PhaseChanged) and message.attempt_id == attempt_id and energy_j is not None
    ]
    pairs = itertools.pairwise(borders)
    return {phase: after_j - before_j for (phase, before_j), (_, after_j) in pairs}


def _gib(count: int | None) -> float | None:
    return None if count is None else count / GIB


def _gib_of(counts: dict[str, int] | None) -> dict[str, float] | None:
    return None if counts is None else {phase: count / GIB for phase, count in counts.items()}


def _encode(encoder: Child, lane: Lane, decoded: Decoded, folder: Path) -> dict[str, Any]:
    """Write the MP4 and read it back. Raises ChildEnded when it is not whole."""
    path = folder / f"{lane.id}.mp4"
    encoder.send(
        Encode(
            frames_path=str(folder / "frames.raw"),
            clip_path=str(path),
            frames=decoded.frames,
            height_px=decoded.height_px,
            width_px=decoded.width_px,
            fps=float(lane.defaults["fps"]),
            title=lane.title,
            comment={"lane": lane.id, "seed": SEED},
            random_weights=True,
        )
    )
    encoded = encoder.until(Encoded, EncodeFailed)
    if isinstance(encoded, EncodeFailed):
        raise ChildEnded(f"the encoder failed: {encoded.message}")
    frames, codec = _probe(path)
    if frames != decoded.frames:
        raise ChildEnded(f"the MP4 holds {frames} frames, the pipeline made {decoded.frames}")
    return {
        "frames": frames,
        "width_px": decoded.width_px,
        "height_px": decoded.height_px,
        "codec": codec,
        "bytes": encoded.bytes,
        "encode_s": encoded.encode_s,
    }


def _probe(path: Path) -> tuple[int, str]:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0)), container.streams.video[0].codec_context.name


def _bare(runner: RunnerChild, call: dict[str, Any], ours: Decoded) -> dict[str, Any]:
    """The same call without anything of ours, and our time over its: up to uint8 frames in host memory, both sides.

    Clips that are short are made again on both sides, in turn: the first one of a process also fills the allocator.
    """
    sides: dict[str, list[Decoded]] = {"bare": [], "ours": [ours]}
    rounds = REPEATS_OF_SHORT if _clip_s(ours) < SHORT_CLIP_S else 1
    for index in range(rounds):
        for side in ("bare", "ours") if index < rounds - 1 else ("bare",):
            decoded = runner.generate(f"{BARE if side == 'bare' else 'again'}-{index}", call)
            if isinstance(decoded, Failed):
                return _failed(decoded)
            sides[side].append(decoded)
    bare_s, ours_s = ([_clip_s(decoded) for decoded in sides[side]] for side in ("bare", "ours"))
    return {
        "outcome": "completed",
        "bare_s": bare_s,
        "ours_s": ours_s,
        "ratio": statistics.median(ours_s) / statistics.median(bare_s),
    }


def _clip_s(decoded: Decoded) -> float:
    """Without `writing`, which the bare side has not."""
    return sum(seconds for phase, seconds in decoded.timings_s.items() if phase != "writing")


def _compare(result: dict[str, Any], reference: dict[str, Any] | None) -> None:
    """Our step beside the resident one of an earlier run on the same machine kind."""
    if reference and reference.get("outcome") == "completed" and "step_s" in result:
        result["step_ratio_to_resident"] = result["step_s"]["median"] / reference["step_s"]["median"]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


# --- the sweep --------------------------------------------------------------------------------------------------------


def run(plan: Plan, out: Path, resume: Path | None, reference: Path | None, then_out: Path | None = None) -> int:
    """Exit status: 0 when every lane of the plan has completed."""
    gpu = Gpu(plan.device)
    done = json.loads(resume.read_text())["lanes"] if resume is not None and resume.is_file() else {}
    done = {lane_id: result for lane_id, result in done.items() if result["outcome"] == "completed"}
    document = {
        "benchmark": "rehearsal",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(gpu),
        "versions": {},
        "settings": {
            "weights": plan.weights,
            "memory_cap_gib": plan.memory_cap_gib,
            "rungs": plan.rungs,
            "steps_of_extrapolated": plan.steps,
            "prompt": PROMPT,
            "seed": SEED,
        },
        "lanes": done,
    }
    lanes = [load_lane(ROOT / "deploy" / "lanes" / f"{lane_id}.toml") for lane_id in plan.lanes if lane_id not in done]
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        known = json.loads(reference.read_text()) if reference is not None else {}
        sweep = Sweep(plan, document, out, Path(folder), gpu, known)
        for lane, following in zip(lanes, [*lanes[1:], None], strict=True):
            if time.monotonic() > plan.deadline:
                print(f"{lane.id}: no time left, not begun", flush=True)
                continue
            began = time.perf_counter()
            measured_at = datetime.now(UTC).isoformat(timespec="seconds")
            document["lanes"][lane.id] = result = {"measured_at": measured_at, **rehearse(sweep, lane, following)}
            lower = result.pop(LOWER, None)
            sweep.write()
            print(f"{time.perf_counter() - began:6.1f} s  {line(lane.id, result)}", flush=True)
            if then_out is not None and lower is not None:
                result = _lower_result(lower, result)
                _compare(result, known.get("lanes", {}).get(lane.id))
                _write_lower(then_out, document, plan, lane.id, result)
                print(f"          under {plan.then_cap_gib:g} GiB: {line(lane.id, result)}", flush=True)
        if sweep.ready is not None:
            sweep.ready.__exit__()
    return 0 if all(document["lanes"].get(lane_id, {}).get("outcome") == "completed" for lane_id in plan.lanes) else 1


def _lower_result(lower: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The second clip's result in the shape of a lane's."""
    load = {key: first[key] for key in ("measured_at", "rung", "import_s", "build_s", "load_s", "allocator")}
    attempt = {key: lower[key] for key in ("outcome", "failure_class", "phase", "message") if key in lower}
    return {**load, **lower, "tried": [{"rung": first["rung"], "same_process_as_larger_cap": True, **attempt}]}


def _write_lower(path: Path, document: dict[str, Any], plan: Plan, lane_id: str, result: dict[str, Any]) -> None:
    """Add one lane to the file of the smaller cap."""
    lanes = json.loads(path.read_text())["lanes"] if path.is_file() else {}
    settings = {**document["settings"], "memory_cap_gib": plan.then_cap_gib}
    whole = {**document, "settings": settings, "lanes": {**lanes, lane_id: result}}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def line(lane_id: str, result: dict[str, Any]) -> str:
    """One lane's result for the terminal."""
    if result["outcome"] != "completed":
        return f"{lane_id}: {result['outcome']}: {json.dumps(result['tried'])}"
    parts = [
        f"{lane_id}: {result['rung']}",
        f"build {result['build_s'] or 0:.1f} load {result['load_s']:.1f} s",
        f"step {result['step_s']['median']:.3f} s x {result['steps']}/{result['steps_full']}",
        f"clip {result['projected_clip_s']:.1f} s",
        f"peak {result['peak_gib'] or 0:.1f} GiB",
        f"{result['projected_wh'] or 0:.2f} Wh",
    ]
    if "bare" in result:
        parts.append(f"x{result['bare'].get('ratio', 0):.3f} of bare {result['bare'].get('message', '')}")
    if "step_ratio_to_resident" in result:
        parts.append(f"step x{result['step_ratio_to_resident']:.3f} of resident")
    return ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write, lane by lane")
    parser.add_argument("--resume", type=Path, help="an earlier result file; its completed lanes are taken over")
    parser.add_argument("--reference", type=Path, help="the uncapped result file, for the ratio of step times")
    parser.add_argument("--lanes", nargs="+", default=(*ORDER, *NEWER), help="lane ids, in order")
    parser.add_argument("--rungs", nargs="+", help="try only these rungs of each ladder")
    parser.add_argument("--memory-cap-gib", type=float)
    parser.add_argument("--then-cap-gib", type=float, help="a second clip in the same process under this smaller cap")
    parser.add_argument("--then-out", type=Path, help="the JSON file of the second clips")
    parser.add_argument("--steps", type=int, default=STEPS_OF_EXTRAPOLATED, help="steps of a clip that is extrapolated")
    parser.add_argument("--extrapolate-all", action="store_true", help="run no lane's full steps")
    parser.add_argument("--no-bare", action="store_true", help="leave the bare diffusers call out")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--weights", default="full-random", choices=("full-random", "miniature"))
    parser.add_argument("--stop-after-s", type=float, default=float("inf"), help="begin no lane after so many seconds")
    asked = parser.parse_args()
    plan = Plan(
        lanes=tuple(asked.lanes),
        memory_cap_gib=asked.memory_cap_gib,
        then_cap_gib=asked.then_cap_gib,
        rungs=None if asked.rungs is None else tuple(asked.rungs),
        steps=asked.steps,
        full_steps=not asked.extrapolate_all,
        bare=not asked.no_bare,
        device=asked.device,
        weights=asked.weights,
        deadline=time.monotonic() + asked.stop_after_s,
    )
    if (asked.then_cap_gib is None) != (asked.then_out is None):
        parser.error("--then-cap-gib and --then-out belong together: give both or neither")
    return run(plan, asked.out, asked.resume, asked.reference, asked.then_out)


if __name__ == "__main__":
    sys.exit(main())
