"""``screentest-panel``: starts the panel, and beyond this machine only where people have to log in.

Every page asks the same question again (``panel_access.guard``), for whoever starts Streamlit by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from streamlit import config

from screentest_ui import panel_access

PAGE: Final = Path(__file__).with_name("panel.py")
# Streamlit's secrets.toml of the login, where it lies in none of the places in which Streamlit looks for it.
LOGIN_FILE: Final = "SCREENTEST_PANEL_LOGIN_FILE"
REFUSED: Final = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Becomes the server; or says on stderr why it may not, and ends with 2 before any port is open."""
    parser = argparse.ArgumentParser(prog="screentest-panel", description="Start the panel.")
    parser.add_argument("--address", default="127.0.0.1", help="where it listens (default: this machine only)")
    parser.add_argument("--port", type=int, default=8501)
    asked = parser.parse_args(arguments)
    options = [f"--server.address={asked.address}", f"--server.port={asked.port}"]
    login_file = os.environ.get(LOGIN_FILE, "")
    if login_file:
        options.append(f"--secrets.files={login_file}")
        config.set_option("secrets.files", [login_file])
    refusal = panel_access.problem(panel_access.door(asked.address))
    if refusal:
        sys.stderr.write(f"screentest-panel: {refusal}\n")
        sys.exit(REFUSED)
    # What does not change stands in .streamlit/config.toml beside the page.
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(PAGE), *options])


if __name__ == "__main__":
    main()
