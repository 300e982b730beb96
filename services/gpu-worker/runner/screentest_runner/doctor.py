"""The doctor's hands in a model env: shows what a pipeline class takes, builds a lane's miniature, loads it, runs it.

Started by screentest_worker.doctor, which decides; this side acts and tells. stdin: one JSON object a line, `do` names
a method of Hands, the rest are its arguments. The answer is one JSON object on the descriptor of
SCREENTEST_REPLY_FD; stdout and stderr are logs. Requests reach the lane through the runner's own loop.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from screentest_runner import miniature
from screentest_runner.__main__ import DEFAULT_ENVIRONMENT
from screentest_runner.adapters import ADAPTERS
from screentest_runner.failures import AttemptFailure, classify
from screentest_runner.loop import Runner
from screentest_runner.protocol import (
    REPLY_FD_VARIABLE,
    Decoded,
    Failed,
    Generate,
    Load,
    Loaded,
    Locked,
    Open,
    Phase,
    PhaseChanged,
    Prepare,
    RunnerReply,
    StepDone,
)

ATTEMPT = "doctor"
KEYFRAME_PX = (300, 200)  # of another aspect ratio than any lane: what a person uploads
Answer = dict[str, Any]


class Desk:
    """Stands for the runner's inbox and outbox: keeps what is sent, and cancels after a chosen step."""

    def __init__(self) -> None:
        self.sent: list[RunnerReply] = []
        self.cancel_after_step: int | None = None
        self._cancelled = Event()

    def cancellation(self, _attempt_id: str) -> Event:
        self._cancelled = Event()
        return self._cancelled

    def forget(self, _attempt_id: str) -> None:
        """An attempt has ended."""

    def send(self, reply: RunnerReply) -> None:
        self.sent.append(reply)
        if isinstance(reply, StepDone) and reply.step == self.cancel_after_step:
            self._cancelled.set()


class Session:
    """One runner without a process of its own: one lane, one load, any number of clips."""

    def __init__(self, folder: Path) -> None:
        self.desk = Desk()
        self._folder = folder
        self._runner = Runner(self.desk, self.desk)  # type: ignore[arg-type]  # a desk is inbox and outbox

    def ask(self, request: Prepare | Open | Load | Generate, wanted: type) -> RunnerReply:
        """The answer to a request: one of `wanted`, or Failed."""
        self.desk.sent.clear()
        self._runner.serve(request)
        return next(reply for reply in self.desk.sent if isinstance(reply, wanted | Failed))

    def open(self) -> RunnerReply:
        """A lock of its own: the descriptor stays with the process, as in a runner."""
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".lock") as lock:
            return self.ask(Open(lock_fd=os.open(lock.name, os.O_RDWR), device="cpu"), Locked)


class Hands:
    """What the doctor can have done. Every method answers with what happened; `failure` when it did not succeed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session: Session | None = None

    def signature(self, *, class_name: str) -> Answer:
        """What `inspect` sees of a pipeline class."""
        import diffusers

        kind = getattr(diffusers, class_name)
        return signature_of(kind)

    def build(self, *, lane: dict[str, Any], cache_dir: str, instead: str | None) -> Answer:
        """Make the miniature where a load looks for it. instead: a folder that stands there in its place."""
        adapter = ADAPTERS[lane["pipeline"]["adapter"]](lane)
        folder = miniature.cached(lane, Path(cache_dir), adapter.prepare())
        if instead is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.unlink(missing_ok=True)
            folder.symlink_to(instead)
        elif not folder.is_dir():
            miniature.build(lane, folder)
        return {"folder": str(folder)}

    def load(self, *, lane: dict[str, Any], rung: dict[str, Any], cache_dir: str, unified_memory: bool) -> Answer:
        """A new runner takes the lane's miniature at a rung."""
        self._session = None  # the one before gives its memory back first
        session = Session(self._folder)
        session.open()
        request = Load(lane=lane, weights="miniature", rung=rung, cache_dir=cache_dir, unified_memory=unified_memory)
        answer = session.ask(request, Loaded)
        if isinstance(answer, Failed):
            return {"failure": _failure(answer)}
        self._session = session
        return {}

    def generate(
        self, *, call: dict[str, Any], seed: int, fps: float, keyframe: int | None, cancel_after_step: int | None
    ) -> Answer:
        """A clip of what is loaded. keyframe: which of the drawn ones, None for none."""
        assert self._session is not None, "nothing is loaded"
        desk, frames = self._session.desk, self._folder / "frames.raw"
        desk.cancel_after_step = cancel_after_step
        began = time.perf_counter()
        request = Generate(
            attempt_id=ATTEMPT,
            call=call,
            seed=seed,
            frames_path=str(frames),
            fps=fps,
            keyframe_path=None if keyframe is None else str(self._keyframe(keyframe)),
        )
        answer = self._session.ask(request, Decoded)
        told = {
            "seconds": time.perf_counter() - began,
            "phases": [reply.phase.value for reply in desk.sent if isinstance(reply, PhaseChanged)],
            "steps": [[reply.step, reply.steps] for reply in desk.sent if isinstance(reply, StepDone)],
        }
        if isinstance(answer, Failed):
            return {**told, "failure": _failure(answer)}
        assert isinstance(answer, Decoded)
        digest = hashlib.sha256(frames.read_bytes()).hexdigest()
        frames.unlink()
        return {
            **told,
            "frames": answer.frames,
            "width_px": answer.width_px,
            "height_px": answer.height_px,
            "finite_fraction": answer.finite_fraction,
            "digest": digest,
        }

    def parameters(self, *, lane: dict[str, Any]) -> Answer:
        """Parameters of every component at full size, counted on the meta device."""
        import torch

        from screentest_runner.full_random import count_parameters, make_empty

        kind = ADAPTERS[lane["pipeline"]["adapter"]](lane).pipeline_class()  # type: ignore[attr-defined]
        parts = {name: make_empty(name, part, lane, kind) for name, part in lane["components"].items()}
        models = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
        return {"params": {name: count_parameters(part) for name, part in models.items()}}

    def forwards(self, *, lane: dict[str, Any]) -> Answer:
        """Operations of one forward of the full-size denoiser, at the smallest shape that is counted and at the
        lane's own.
        """
        from screentest_runner import counting

        counter = counting.Counter(lane)
        shapes = counting.shapes(lane)
        return {"forwards": [{**asdict(shape), **asdict(counter.forward(shape))} for shape in (shapes[0], shapes[-1])]}

    def _keyframe(self, number: int) -> Path:
        """Noise with an alpha channel, another one for every number."""
        path = self._folder / f"keyframe-{number}.png"
        if not path.exists():
            import numpy as np
            from PIL import Image

            width_px, height_px = KEYFRAME_PX
            noise = np.random.default_rng(number).integers(0, 256, (height_px, width_px, 4), np.uint8)
            Image.fromarray(noise, "RGBA").save(path)
        return path


def signature_of(pipeline_class: Any) -> Answer:
    """Its `__init__`, its `__call__`, and the components that may be None."""
    return {
        "init": _method(pipeline_class.__init__),
        "call": _method(pipeline_class.__call__),
        "optional_components": list(pipeline_class._optional_components),
    }


def _method(function: Any) -> Answer:
    """Without `self`; a parameter that only `*args` or `**kwargs` would take is none."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [item for item in parameters if item.kind not in {item.VAR_KEYWORD, item.VAR_POSITIONAL}]
    return {
        "parameters": [[item.name, item.default is item.empty] for item in named],
        "takes_any": any(item.kind is item.VAR_KEYWORD for item in parameters),
    }


def _failure(failed: Failed) -> Answer:
    if failed.traceback:
        print(failed.traceback, file=sys.stderr, flush=True)  # noqa: T201
    return {"failure_class": failed.failure_class.value, "phase": failed.phase.value, "message": failed.message}


def _answer(hands: Hands, request: Mapping[str, Any]) -> Answer:
    """Library code raises anything; each becomes a failure, as in the runner."""
    arguments = {name: value for name, value in request.items() if name != "do"}
    try:
        answer: Answer = getattr(hands, request["do"])(**arguments)
    except Exception as error:  # noqa: BLE001
        own = isinstance(error, AttemptFailure)
        message = str(error) if own else f"{type(error).__name__}: {error}"
        kind = classify(error, Phase.LOADING)
        return {"failure": {"failure_class": kind.value, "phase": Phase.LOADING.value, "message": message}}
    return answer


def main() -> None:
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="screentest-doctor-") as folder:
        hands = Hands(Path(folder))
        with os.fdopen(int(os.environ[REPLY_FD_VARIABLE]), "w", encoding="utf-8") as replies:
            for line in sys.stdin:
                print(json.dumps(_answer(hands, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
