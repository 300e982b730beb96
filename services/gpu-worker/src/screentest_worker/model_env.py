"""The doctor's child in a model env: one request at a time, each with a deadline; a dead child is an answer too."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from screentest_runner.protocol import REPLY_FD_VARIABLE

MODULE = "screentest_runner.doctor"
LOG_LINES = 3  # of a dead child, told with its end


class ChildEnded(Exception):
    """No answer will come; the text says why and is one line."""


class ModelEnv:
    """Starts the child with the first request, and a new one after every end."""

    def __init__(self, env_python: Path) -> None:
        self._env_python = env_python
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this object)
        self._fd = -1
        self._buffer = b""

    def ask(self, do: str, *, deadline: float, **arguments: Any) -> dict[str, Any]:
        """The child's answer. deadline: of time.monotonic(). Raises ChildEnded; the child is gone then."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer(deadline)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # a request that a dead child never took
            self._process.stdin.close()
        os.close(self._fd)
        self._process, self._buffer = None, b""

    def _start(self) -> subprocess.Popen[bytes]:
        self._fd, write_fd = os.pipe()
        source = find_spec("screentest_runner")
        assert source is not None
        assert source.origin is not None
        try:
            self._process = subprocess.Popen(
                [self._env_python, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(write_fd,),
                env={
                    **os.environ,
                    REPLY_FD_VARIABLE: str(write_fd),
                    "PYTHONPATH": str(Path(source.origin).parents[1]),
                },
            )
        finally:
            os.close(write_fd)
        return self._process

    def _answer(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.stop()
                raise ChildEnded("no answer within the time limit; the child was killed")
            chunk = os.read(self._fd, 65536)
            if not chunk:
                raise self._ended()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Mapping[str, Any] = json.loads(line)
        return dict(answer)

    def _ended(self) -> ChildEnded:
        """Its end as a sentence, with the last words of its log."""
        assert self._process is not None
        status = self._process.wait()
        said = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").split("\n")
        words = " | ".join([line.strip() for line in last if line.strip()][-LOG_LINES:])
        self.stop()
        return ChildEnded(f"the child in the model env ended with {said}: {words or 'it said nothing'}")
