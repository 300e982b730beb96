"""A local stack of its own for a benchmark: started by the CLI in a temporary home, stopped at the end."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from screentest.client import Client
from screentest_ui.connection import connect

ROOT = Path(__file__).resolve().parent.parent
SCREENTEST = ROOT / ".venv" / "bin" / "screentest"


@contextmanager
def running(*arguments: str) -> Iterator[Path]:
    """``screentest up`` with these arguments; gives the home."""
    with tempfile.TemporaryDirectory(prefix="screentest-bench-") as home:
        environment = {**os.environ, "SCREENTEST_HOME": home}
        try:
            subprocess.run([SCREENTEST, "up", "--no-panel", *arguments], env=environment, check=True, cwd=ROOT)
            yield Path(home)
        finally:
            subprocess.run([SCREENTEST, "down"], env=environment, check=True, cwd=ROOT)


def client(home: Path) -> Client:
    os.environ["SCREENTEST_HOME"] = str(home)
    return connect()
