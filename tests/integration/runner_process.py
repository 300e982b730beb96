"""A runner or encoder as a real process, and the lines of its pipe: as much of a supervisor as tests need."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any, Self, TypeVar

from screentest.lanes import Lane, Weights, load_lane
from screentest_runner.protocol import REPLY_FD_VARIABLE, Failed, Generate, Load, Message, Open, Prepare, parse, to_line

ROOT = Path(__file__).parents[2]
LANES = ROOT / "deploy" / "lanes"
RUNNER_SOURCE = ROOT / "services" / "gpu-worker" / "runner"
REPLY_DEADLINE_S = 90.0  # a cold import on a busy two-core machine takes a third of it

Kind = TypeVar("Kind")


def env_python(env: str) -> Path:
    """The interpreter of a model environment. Fails the test when it is not built: a skip would hide the lanes."""
    python = Path(os.environ.get("SCREENTEST_VENVS", ROOT / ".venvs")) / env / "bin" / "python"
    assert python.exists(), f"no model environment {env!r} at {python}; run `make envs`"
    return python


class ChildProcess:
    """`python -m <module>` with a reply pipe. Replies are read with a deadline, so that a silent child fails a test."""

    def __init__(self, module: str, env: str, log: Path, pass_fds: tuple[int, ...] = ()) -> None:
        read_fd, write_fd = os.pipe()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [env_python(env), "-m", module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(write_fd, *pass_fds),
                env={**os.environ, REPLY_FD_VARIABLE: str(write_fd), "PYTHONPATH": str(RUNNER_SOURCE)},
            )
        os.close(write_fd)
        self._fd = read_fd
        self._buffer = b""
        self.seen: list[Message] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._fd)

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(to_line(message))
        self.process.stdin.flush()

    def next(self) -> Message | None:
        """The next reply, None at the end of the pipe."""
        deadline = time.monotonic() + REPLY_DEADLINE_S
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no reply within {REPLY_DEADLINE_S} s; last were {self.seen[-3:]}"
            chunk = os.read(self._fd, 65536)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = parse(line)
        self.seen.append(message)
        return message

    def until(self, kind: type[Kind], fails: bool = False) -> Kind:
        """The next reply of this kind. Another Failed on the way fails the test, unless Failed is what is awaited."""
        while True:
            message = self.next()
            assert message is not None, f"the child ended before {kind.__name__}; last were {self.seen[-3:]}"
            if isinstance(message, kind):
                return message
            assert fails or not isinstance(message, Failed), message

    def of(self, kind: type[Kind]) -> list[Kind]:
        """What has come so far of this kind."""
        return [message for message in self.seen if isinstance(message, kind)]


class RunnerProcess(ChildProcess):
    """A runner with the descriptor of a lock file, as the supervisor starts it."""

    def __init__(self, lane: Lane, folder: Path, lock: Path | None = None) -> None:
        self.lane, self.folder = lane, folder
        self._lock_fd = os.open(lock or folder / "gpu.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            super().__init__("screentest_runner", lane.env, folder / "runner.log", (self._lock_fd,))
        finally:
            os.close(self._lock_fd)  # only the runner keeps the open file, and with it the lock

    def prepare(self) -> None:
        self.send(Prepare(lane=self.lane.content))

    def open(self) -> None:
        self.send(Open(lock_fd=self._lock_fd, device="cpu"))

    def load(self, weights: Weights = "miniature", rung: int = 0, cache: Path | None = None, **more: Any) -> None:
        self.send(
            Load(
                lane=self.lane.content,
                weights=weights,
                rung=self.lane.content["ladder"][rung],
                cache_dir=str(cache or self.folder / "cache"),
                **more,
            )
        )

    def generate(
        self,
        attempt_id: str,
        keyframe: Path | None = None,
        seed: int = 7,
        limit_s: float | None = None,
        leave_out: tuple[str, ...] = (),
        **settings: Any,
    ) -> Path:
        """Ask for a clip at the lane's miniature settings; returns the path of its frames.

        settings: keywords of the call that replace the lane's. leave_out: keywords that the call lacks.
        """
        frames_path = self.folder / f"{attempt_id}.raw"
        asked = {**self.lane.defaults_for("miniature"), "prompt": "A cathedral of obsidian under cracked glass."}
        call = {**self.lane.pipeline_call("miniature", asked), **settings}
        self.send(
            Generate(
                attempt_id=attempt_id,
                call={keyword: value for keyword, value in call.items() if keyword not in leave_out},
                seed=seed,
                frames_path=str(frames_path),
                fps=float(asked["fps"]),
                keyframe_path=None if keyframe is None else str(keyframe),
                limit_s=limit_s,
            )
        )
        return frames_path


def lane_of(lane_id: str) -> Lane:
    return load_lane(LANES / f"{lane_id}.toml")
