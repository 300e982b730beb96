"""The scheduler that a command talks to: the caller's own settings, else the stack that ``screentest up`` started."""

from __future__ import annotations

import os

from screentest.client import Client
from screentest.errors import Unavailable
from screentest_ui.home import client_environment, default_home


def connect() -> Client:
    """Unavailable when neither the environment nor the home directory names a scheduler."""
    home = default_home()
    settings = client_environment(home, os.environ)
    if not settings.get("SCREENTEST_GRPC_ADDRESS"):
        raise Unavailable(
            f"no stack runs in {home.path}; start one with `screentest up`, or name a scheduler with "
            "SCREENTEST_GRPC_ADDRESS, SCREENTEST_GRPC_TOKEN_FILE and, beyond this machine, SCREENTEST_GRPC_CA_FILE"
        )
    return Client.from_environment(settings)
