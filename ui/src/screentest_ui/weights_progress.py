"""How a long pull or check shows that it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from screentest_ui import printing

# A plain log shows life this often, also in the middle of a large file.
PLAIN_LINE_EVERY_S = 30.0


class Shown(Protocol):
    """One lane under way; called from several threads."""

    def advance(self, size_bytes: int) -> None: ...

    def finish(self, path: str) -> None: ...


@contextmanager
def showing(name: str, *, total_bytes: int, there_bytes: int = 0) -> Iterator[Shown]:
    """there_bytes: of the total, what was there before."""
    if not sys.stdout.isatty():
        yield _Lines(name, total_bytes, there_bytes)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=printing.out()) as progress:
        yield _Bar(progress, name, total_bytes, there_bytes)


def gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**29 else f"{size_bytes / 2**20:.1f} MiB"


class _Bar:
    def __init__(self, progress: Progress, name: str, total_bytes: int, there_bytes: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total_bytes, completed=there_bytes)

    def advance(self, size_bytes: int) -> None:
        self._progress.advance(self._task, size_bytes)

    def finish(self, path: str) -> None:
        """The bar says enough."""


class _Lines:
    def __init__(self, name: str, total_bytes: int, there_bytes: int) -> None:
        self._name, self._total_bytes, self._done_bytes = name, total_bytes, there_bytes
        self._lock = threading.Lock()
        self._last_at = time.monotonic()

    def advance(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if time.monotonic() - self._last_at > PLAIN_LINE_EVERY_S:
                self._say("")

    def finish(self, path: str) -> None:
        with self._lock:
            self._say(f", {path} done")

    def _say(self, what: str) -> None:
        self._last_at = time.monotonic()
        printing.say(f"{self._name}: {gib(self._done_bytes)} of {gib(self._total_bytes)}{what}")
