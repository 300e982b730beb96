"""The stub: an adapter without model, torch or GPU, for tests and benches. It sleeps, draws, and fails on demand.

Call keywords: prompt, width, height, num_frames, steps, fps, image; `work_s`, seconds of pretended denoising;
`memory_gib`, the pretended peaks in GiB while loading, encoding the prompt, denoising and decoding: a phase that needs
more than the memory cap of the load runs out of memory, and a rung may have a `call.memory_gib` of its own;
`fault`, one of FAULTS, in the lane's [call] table (a fault of the load is read there) or in the job's own call;
`fault_once`, a path: the fault happens only while no such file exists, and creates it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from screentest_runner.failures import OOM_BY_PHASE, AttemptFailure
from screentest_runner.frames import Clip
from screentest_runner.progress import AttemptProgress
from screentest_runner.protocol import FailureClass, Generate, Load, Phase

# fault -> the phase in which it strikes
FAULTS = {
    "load": Phase.LOADING,
    "oom_load": Phase.LOADING,
    "denoise": Phase.DENOISING,
    "oom": Phase.DENOISING,
    "nan": Phase.DENOISING,
    "crash": Phase.DENOISING,  # dies of SIGSEGV, as a broken driver would make it
    "hang": Phase.DENOISING,  # never returns, deaf to Cancel and SIGTERM
    "fork_escape": Phase.DENOISING,  # leaves a double-forked setsid child that holds every descriptor, then goes on
    "decode": Phase.DECODING,
    "oom_decode": Phase.DECODING,
    "truncated": Phase.DECODING,  # one frame too few
}
MEMORY_PHASES = (Phase.LOADING, Phase.ENCODING_PROMPT, Phase.DENOISING, Phase.DECODING)
ESCAPED_LIFE_S = 3600  # longer than any test: only a stop ladder that finds it ends it


class StubAdapter:
    """Draws a disc that crosses a gradient (or the keyframe); the same prompt and seed give the same pixels."""

    def __init__(self, lane: dict[str, Any]) -> None:
        self._lane = lane
        self._memory = PretendedMemory(None)
        self._call: dict[str, Any] = {}
        self._peaks: dict[str, int] | None = None

    def prepare(self) -> dict[str, str]:
        import numpy  # noqa: F401  (imported so that generate does not pay for it)

        return {"python": platform.python_version(), "numpy": metadata.version("numpy")}

    def load(self, load: Load, device: str) -> float | None:
        """On any device: it touches none, and a test may give it a GPU that is a stub too."""
        call = {**self._lane.get("call", {}), **load.rung.get("call", {})}
        self._memory = PretendedMemory(load.memory_cap_gib)
        self._memory.take(call, Phase.LOADING)
        strike(call, Phase.LOADING)
        return None

    def generate(self, generate: Generate, progress: AttemptProgress) -> Clip:
        call = generate.call
        steps = int(call["steps"])
        self._call, self._peaks = call, None
        self._memory.take(call, Phase.ENCODING_PROMPT)
        progress.enter(Phase.DENOISING)
        self._memory.take(call, Phase.DENOISING)
        for _ in range(steps):
            strike(call, Phase.DENOISING)
            time.sleep(float(call["work_s"]) / steps)
            progress.step_done(steps)
        self._memory.take(call, Phase.DECODING)
        strike(call, Phase.DECODING)
        self._peaks = peaks_bytes(call)
        frames = int(call["num_frames"]) - (1 if strikes(call, "truncated") else 0)
        return draw(generate, frames)

    def phase_failed(self, phase: Phase) -> None:
        """It got nothing for that phase; what came before fitted."""
        pretended = peaks_bytes(self._call) or {}
        order = list(Phase)
        fitted = [before.value for before in MEMORY_PHASES if order.index(before) < order.index(phase)]
        self._peaks = {name: pretended[name] for name in fitted if name in pretended}

    def device_bytes(self) -> int | None:
        return None

    def peak_device_bytes(self) -> int | None:
        return max(self._peaks.values()) if self._peaks else None

    def peak_memory_by_phase(self) -> dict[str, int] | None:
        return self._peaks

    def peak_tensors_by_phase(self) -> dict[str, int] | None:
        return None


class PretendedMemory:
    """A device whose memory is a number: what a phase asks above the cap is refused, as torch would."""

    def __init__(self, cap_gib: float | None) -> None:
        self._cap_gib = cap_gib

    def take(self, call: dict[str, Any], phase: Phase) -> None:
        needs = call.get("memory_gib")
        if needs is None or self._cap_gib is None:
            return
        need_gib = needs[MEMORY_PHASES.index(phase)]
        if need_gib > self._cap_gib:
            message = f"the stub pretends to need {need_gib:g} GiB of {self._cap_gib:g} GiB device memory"
            raise AttemptFailure(OOM_BY_PHASE[phase], message)


def peaks_bytes(call: dict[str, Any]) -> dict[str, int] | None:
    """The pretended peaks by phase; None where the call pretends none."""
    needs = call.get("memory_gib")
    if needs is None:
        return None
    return {phase.value: int(need * 2**30) for phase, need in zip(MEMORY_PHASES, needs, strict=True)}


def draw(generate: Generate, frames: int) -> Clip:
    """The clip as (frames, height, width, 3) uint8."""
    import numpy as np

    call = generate.call
    width, height = int(call["width"]), int(call["height"])
    digest = hashlib.sha256(f"{generate.seed}:{call.get('prompt', '')}".encode()).digest()
    background = _background(generate.keyframe_path, width, height, digest)
    pixels = np.repeat(background[None], frames, axis=0)
    rows, columns = np.mgrid[0:height, 0:width]
    radius = max(2, min(width, height) // 6)
    for index in range(frames):
        centre_x = width * (index + 0.5) / frames
        centre_y = height * (0.25 + digest[6] / 512)
        inside = (columns - centre_x) ** 2 + (rows - centre_y) ** 2 <= radius**2
        pixels[index][inside] = tuple(digest[3:6])
    return Clip(pixels=np.ascontiguousarray(pixels), finite_fraction=1.0)


def _background(keyframe_path: str | None, width: int, height: int, digest: bytes) -> Any:
    """The keyframe cut to size, or a gradient towards a colour of the digest; (height, width, 3) uint8."""
    import numpy as np

    if keyframe_path is None:
        ramp = np.linspace(0.2, 1.0, width)[None, :, None] * np.linspace(0.4, 1.0, height)[:, None, None]
        return (ramp * np.frombuffer(digest[:3], np.uint8)).astype(np.uint8)
    from screentest_runner.keyframe import read_keyframe

    return np.asarray(read_keyframe(Path(keyframe_path), width, height))


def strikes(call: dict[str, Any], fault: str) -> bool:
    """Whether this call asks for the fault (and, with fault_once, has not had it)."""
    if call.get("fault") != fault:
        return False
    once = call.get("fault_once")
    if once is None:
        return True
    try:
        Path(once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def strike(call: dict[str, Any], phase: Phase) -> None:
    """Let the fault that the call asks for happen, when this is its phase."""
    fault = call.get("fault")
    if fault is None or fault == "truncated":
        return
    if fault not in FAULTS:
        raise AttemptFailure(FailureClass.BAD_KWARGS, f"unknown fault {fault!r}; the stub knows {', '.join(FAULTS)}")
    if FAULTS[fault] is not phase or not strikes(call, fault):
        return
    match fault:
        case "load" | "denoise" | "decode":
            raise RuntimeError(f"the stub was asked to fail in {phase.value}")
        case "oom_load" | "oom" | "oom_decode":
            raise AttemptFailure(OOM_BY_PHASE[phase], "the stub was asked to run out of device memory")
        case "nan":
            raise AttemptFailure(FailureClass.NAN, "the stub was asked for non-finite latents")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            # the only way out must be SIGKILL; blocked, since only the main thread may set a handler
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
        case "fork_escape":
            _fork_escape()


def _fork_escape() -> None:
    """Leave a grandchild in its own session, as a library's daemon would."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork() == 0:
        time.sleep(ESCAPED_LIFE_S)
    os._exit(0)
