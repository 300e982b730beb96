"""A model env whose runner or encoder misbehaves as library code does, while the supervisor sees the usual commands."""

from __future__ import annotations

from pathlib import Path

from tests.integration.worker_rig import VENVS

# What a library may do to its process; each is a change of the stub adapter before the runner begins.
SLOW_LOAD = """
load = stub.StubAdapter.load
def changed(self, request, device):
    time.sleep(60)
    return load(self, request, device)
stub.StubAdapter.load = changed
"""
SLOW_DECODE = """
draw = stub.draw
def changed(generate, frames):
    time.sleep(60)
    return draw(generate, frames)
stub.draw = changed
"""
# The grandchild is in a session of its own, holds no descriptor at all (the lock neither) and goes on computing.
DAEMONISES = """
def changed(call, phase):
    if phase is not stub.Phase.DENOISING:
        return
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 4096)
            while True:
                time.sleep(1)
        os._exit(0)
    {after}
stub.strike = changed
"""
ENDS_AFTER_IT = DAEMONISES.format(after="os._exit(0)")
STAYS_AFTER_IT = DAEMONISES.format(after="os.wait(); time.sleep(3600)")
GOES_ON_AFTER_IT = DAEMONISES.format(after="os.wait()")
SLOW_ENCODER = """
time.sleep(60)
"""
# The job takes its worker along: what a driver that panics in the supervisor's namespace looks like.
KILLS_ITS_WORKER = """
import signal
def changed(call, phase):
    if phase is stub.Phase.DENOISING:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
stub.strike = changed
"""

_SCRIPT = """
import os, sys, time
from screentest_runner.adapters import stub
from screentest_runner import __main__ as program
{change}
sys.exit(program.main())
"""
_ENCODER = """
import sys, time
from screentest_runner import encode
{change}
sys.exit(encode.main())
"""


def odd_python(folder: Path, *, runner: str = "", encoder: str = "", env: str = "stub") -> Path:
    """An interpreter for SCREENTEST_ENV_PYTHON; what is not named runs as ever."""
    folder.mkdir(parents=True, exist_ok=True)
    python = VENVS / env / "bin" / "python"
    cases = []
    for module, template, change in (
        ("screentest_runner", _SCRIPT, runner),
        ("screentest_runner.encode", _ENCODER, encoder),
    ):
        if change:
            script = folder / f"odd_runner_{module.rpartition('.')[2]}.py"
            script.write_text(template.format(change=change))
            cases.append(f'if [ "$2" = {module} ]; then exec {python} {script}; fi')
    wrapper = folder / "python"
    wrapper.write_text("\n".join(["#!/bin/sh", *cases, f'exec {python} "$@"', ""]))
    wrapper.chmod(0o755)
    return wrapper
