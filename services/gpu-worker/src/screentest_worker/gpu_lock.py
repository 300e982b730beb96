"""The device's lock file: opened here, locked by the runner, freed by the runner's death and by nothing else.

The lock is a kernel flock on an open file. The supervisor opens the file and hands the descriptor to the runner; the
runner locks it as its first act. Nobody calls LOCK_UN: that would free the device under a process that inherited it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened(lock_dir: Path, lock_name: str) -> Iterator[int]:
    """A descriptor of the lock file for one spawn (``pass_fds``); our own copy is closed at once after it.

    A copy that we kept would hold the device past the runner's death. The file is made when it is missing and is
    never unlinked: two processes could then lock two files of the same name.
    """
    lock_dir.mkdir(parents=True, exist_ok=True)
    path = lock_dir / lock_name
    # No O_TRUNC and close-on-exec: only the runner, which is told the number, inherits it.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)
