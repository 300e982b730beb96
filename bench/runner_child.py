"""The real runner as a benchmark's child, over its own JSON lines, with the device's counters beside every reply.

Run as a program it is that child: the runner with two additions, which `side_by_side` names.
"""

from __future__ import annotations

import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
RUNNER_SOURCE = ROOT / "services" / "gpu-worker" / "runner"
sys.path[:0] = [str(RUNNER_SOURCE), str(ROOT / "proto" / "src")]

from screentest.lanes import Lane  # noqa: E402
from screentest.memory import DENOISERS, GIB  # noqa: E402
from screentest_runner.protocol import (  # noqa: E402
    REPLY_FD_VARIABLE,
    Decoded,
    Failed,
    Generate,
    Load,
    Loaded,
    Message,
    Open,
    PhaseChanged,
    Prepare,
    Prepared,
    Stop,
    Stopped,
    parse,
    to_line,
)

BARE = "bare"  # attempts whose id begins so are the pipeline alone, see side_by_side
LOWER = "lower-cap-"  # attempts whose id begins so run under the GiB that follow, see side_by_side
SEED = 7
REPLY_DEADLINE_S = 420.0


class ChildEnded(Exception):
    """A child process ended or stayed silent; the text says which and what its log says last."""


class Gpu:
    """NVML readings of the first device; every one None where there is no NVML (a cpu)."""

    def __init__(self, device: str) -> None:
        self._nvml: Any = None
        if device == "cpu":
            return
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)

    def energy_j(self) -> float | None:
        """The energy counter, joules since the driver was loaded."""
        if self._nvml is None:
            return None
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def facts(self) -> dict[str, Any]:
        if self._nvml is None:
            return {"gpu": None, "driver": None, "gpu_memory_gib": None}
        return {
            "gpu": self._nvml.nvmlDeviceGetName(self._handle),
            "driver": self._nvml.nvmlSystemGetDriverVersion(),
            "gpu_memory_gib": round(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total / GIB, 1),
        }


def machine(gpu: Gpu) -> dict[str, Any]:
    return {**gpu.facts(), "cores": os.cpu_count(), "python": platform.python_version()}


class Child:
    """A child that speaks the protocol. A thread stamps each reply with the time and the energy of its arrival."""

    def __init__(self, command: list[str], log: Path, gpu: Gpu, pass_fds: tuple[int, ...] = ()) -> None:
        read_fd, write_fd = os.pipe()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(write_fd, *pass_fds),
                env={**os.environ, REPLY_FD_VARIABLE: str(write_fd), "PYTHONPATH": _python_path()},
            )
        os.close(write_fd)
        self._log, self.gpu = log, gpu
        self._replies: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.stamps: list[tuple[Message, float, float | None]] = []
        threading.Thread(target=self._read, args=(read_fd,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self, read_fd: int) -> None:
        with os.fdopen(read_fd, "rb") as replies:
            for line in replies:
                message = parse(line)
                is_border = isinstance(message, PhaseChanged | Decoded)  # reading energy at each step is not needed
                self.stamps.append((message, time.perf_counter(), self.gpu.energy_j() if is_border else None))
                self._replies.put(message)
        self._replies.put(None)

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(to_line(message))
        self.process.stdin.flush()

    def until(self, *kinds: type) -> Message:
        """The next reply of one of the kinds. Raises ChildEnded."""
        while True:
            try:
                message = self._replies.get(timeout=REPLY_DEADLINE_S)
            except queue.Empty:
                raise ChildEnded(f"no reply within {REPLY_DEADLINE_S:.0f} s; {self._last_words()}") from None
            if message is None:
                raise ChildEnded(f"the child ended with {self.process.wait()}; {self._last_words()}")
            if isinstance(message, kinds):
                return message

    def since(self, kind: type, attempt_id: str) -> list[Any]:
        return [
            message for message, _, _ in self.stamps if isinstance(message, kind) and message.attempt_id == attempt_id
        ]

    def _last_words(self) -> str:
        return f"its log ends: {self._log.read_text(errors='replace')[-1500:]}"


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(RUNNER_SOURCE), os.environ.get("PYTHONPATH")]))


class RunnerChild(Child):
    """A runner that has begun to import; it touches the device when `load` is called."""

    def __init__(self, lane: Lane, folder: Path, gpu: Gpu) -> None:
        self.lane, self.folder = lane, folder
        self._lock_fd = os.open(folder / "gpu.lock", os.O_RDWR | os.O_CREAT, 0o600)
        super().__init__([__file__], folder / f"{lane.id}.log", gpu, (self._lock_fd,))
        self.send(Prepare(lane=lane.content))

    def load(
        self,
        rung: dict[str, Any],
        *,
        device: str,
        weights: Any,
        memory_cap_gib: float | None = None,
        weights_dir: Path | None = None,
    ) -> tuple[Prepared, Loaded | Failed]:
        prepared = self.until(Prepared, Failed)
        if isinstance(prepared, Failed):
            raise ChildEnded(f"Prepare failed: {prepared.message}\n{prepared.traceback[-1500:]}")
        self.send(Open(lock_fd=self._lock_fd, device=device))
        os.close(self._lock_fd)
        self.send(
            Load(
                lane=self.lane.content,
                weights=weights,
                weights_dir=None if weights_dir is None else str(weights_dir),
                rung=rung,
                cache_dir=str(self.folder / "miniatures"),
                memory_cap_gib=memory_cap_gib,
            )
        )
        return prepared, self.until(Loaded, Failed)

    def generate(self, attempt_id: str, call: dict[str, Any]) -> Decoded | Failed:
        keyframe = str(_keyframe(self.folder)) if self.lane.task == "i2v" else None
        self.send(
            Generate(
                attempt_id=attempt_id,
                call=call,
                seed=SEED,
                frames_path=str(self.folder / "frames.raw"),
                fps=float(self.lane.defaults["fps"]),
                keyframe_path=keyframe,
            )
        )
        return self.until(Decoded, Failed)

    def stop(self) -> None:
        self.send(Stop())
        self.until(Stopped)
        self.process.wait(timeout=60)


def _keyframe(folder: Path) -> Path:
    """A picture to begin with: a gradient with a disc, which no resize can hide."""
    from PIL import Image, ImageDraw

    path = folder / "keyframe.png"
    if not path.exists():
        picture = Image.linear_gradient("L").resize((1280, 720)).convert("RGB")
        ImageDraw.Draw(picture).ellipse((500, 220, 780, 500), fill=(200, 80, 40))
        picture.save(path)
    return path


def side_by_side() -> int:
    """The runner itself, with two additions: an attempt called `bare...` is the diffusers call and nothing of ours,
    and one called `lower-cap-12` first takes torch's memory down to 12 GiB.
    """
    from screentest_runner import adapters
    from screentest_runner.__main__ import main

    class SideBySide(adapters.ADAPTERS["diffusers"]):  # type: ignore[misc]
        def _call(self, generate: Any, progress: Any) -> Any:
            if generate.attempt_id.startswith(LOWER):
                _lower_cap(float(generate.attempt_id.removeprefix(LOWER)))
            if not generate.attempt_id.startswith(BARE):
                return super()._call(generate, progress)
            with _unwatched(self._pipe):
                return self._pipe(**self.arguments(generate)).frames[0]

    adapters.ADAPTERS["diffusers"] = SideBySide
    return main()


@contextmanager
def _unwatched(pipe: Any) -> Iterator[None]:
    """The pipeline without the finite check of what it decodes and without the report of its phases."""
    decode = pipe.vae.__dict__.pop("decode")
    denoisers = [model for name in DENOISERS if (model := getattr(pipe, name, None)) is not None]
    hooks = [dict(model._forward_pre_hooks) for model in denoisers]
    for model in denoisers:
        model._forward_pre_hooks.clear()
    try:
        yield
    finally:
        pipe.vae.decode = decode
        for model, kept in zip(denoisers, hooks, strict=True):
            model._forward_pre_hooks.update(kept)


def _lower_cap(cap_gib: float) -> None:
    import torch

    from screentest_runner.adapters.device_memory import cap_memory

    if not torch.cuda.is_available():
        return
    torch.cuda.empty_cache()  # what torch keeps from the clip before would count against the cap
    cap_memory(cap_gib)
    torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    sys.exit(side_by_side())
