"""Which code this is."""

from __future__ import annotations

import importlib.metadata
import os


def version() -> str:
    """SCREENTEST_VERSION where an image was built with one, else the version of the installed package."""
    return os.environ.get("SCREENTEST_VERSION") or importlib.metadata.version("screentest")
