"""`python -m screentest_runner`: started by the supervisor with SCREENTEST_REPLY_FD, speaks `protocol` until Stop."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys

from screentest_runner.loop import Inbox, Outbox, Runner
from screentest_runner.protocol import REPLY_FD_VARIABLE

PR_SET_PDEATHSIG = 1  # Source: prctl(2)
PR_SET_DUMPABLE = 4  # Source: prctl(2)

# The supervisor sets these; a runner started by hand behaves the same.
DEFAULT_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # weights are fetched before, never by a runner
    "TOKENIZERS_PARALLELISM": "false",  # its threads deadlock after a fork
    # without it SVD's decode fragments: 15.9 GiB held for 9.3 GiB of tensors, out of memory under 12 GiB (H200)
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def main() -> int:
    """Exit status: 0 after Stop or end of stdin, 1 when the supervisor vanished, 2 on a protocol error."""
    if REPLY_FD_VARIABLE not in os.environ:
        print(  # noqa: T201
            f"{REPLY_FD_VARIABLE} is not set: the runner is started by screentest-worker, not by hand", file=sys.stderr
        )
        return 2
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Fires when the supervisor's spawning thread dies; the end of stdin covers a supervisor that died before this call.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        # In a container, where the supervisor is PID 1: no process of this user may read our memory, environment or
        # open files. The proof needs none of them there, because what we leave behind ends with PID 1.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the stack dump of the stop ladder
    inbox = Inbox(sys.stdin.buffer)
    inbox.start()
    Runner(inbox, Outbox(int(os.environ[REPLY_FD_VARIABLE]))).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking the interpreter and torch apart in order costs up to a second that the next lane waits for


if __name__ == "__main__":
    sys.exit(main())
