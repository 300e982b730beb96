"""Models that take turns on a discrete card: one that leaves it is not copied back, its host copy has stayed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .runner_process import RUNNER_SOURCE, env_python

pytestmark = pytest.mark.slow


def test_a_model_that_leaves_the_device_has_its_host_copy_again() -> None:
    result = subprocess.run(
        [env_python("diffusers"), Path(__file__).with_name("turns_in_one_process.py")],
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "kept", result.stderr[-3000:]
