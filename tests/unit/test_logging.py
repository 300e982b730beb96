"""A log that cannot be written must not end its service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import structlog
from screentest.kit import logging
logging.configure("test", log_format="json")
structlog.get_logger().info("said")
print("alive")
"""
COMMAND = [sys.executable, "-c", SCRIPT]


def test_full_disk_under_the_log_does_not_end_the_service() -> None:
    with Path("/dev/full").open("w") as full:  # every write to it says ENOSPC
        done = subprocess.run(COMMAND, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.stdout == "alive\n"


def test_log_lines_are_json_on_stderr() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=True)
    assert '"event": "said"' in done.stderr
    assert '"service": "test"' in done.stderr
