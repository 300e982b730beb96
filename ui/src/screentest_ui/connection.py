"""The scheduler that a command talks to: the caller's own settings, else the stack that ``screentest up`` started."""

from __future__ import annotations

import os
from pathlib import Path

from screentest.client import Client
from screentest.errors import Unavailable
from screentest.kit.config import read_secret
from screentest_ui.home import client_environment, default_home


def connect() -> Client:
    """Unavailable when neither the environment nor the home directory names a scheduler."""
    home = default_home()
    settings = client_environment(home, os.environ)
    address = settings.get("SCREENTEST_GRPC_ADDRESS")
    if not address:
        raise Unavailable(
            f"no stack runs in {home.path}; start one with `screentest up`, or name a scheduler with "
            "SCREENTEST_GRPC_ADDRESS, SCREENTEST_GRPC_TOKEN_FILE and, beyond this machine, SCREENTEST_GRPC_CA_FILE"
        )
    token_file, ca_file = settings.get("SCREENTEST_GRPC_TOKEN_FILE"), settings.get("SCREENTEST_GRPC_CA_FILE")
    token = read_secret(Path(token_file)).get_secret_value() if token_file else ""
    return Client.connect(address, token=token, ca=Path(ca_file) if ca_file else None)
