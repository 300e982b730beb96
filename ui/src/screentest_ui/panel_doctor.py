"""The doctor's verdict on lanes, asked from the Lanes page: one examination at a time, beside the page."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import streamlit as st

from screentest.errors import ScreentestError
from screentest_ui import servers
from screentest_ui.panel_text import counted


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What the doctor has said of one lane's file so far. ``trouble``: why the examination itself did not end well."""

    is_done: bool = False
    checks: int = 0
    faults: list[str] = field(default_factory=list)
    trouble: str = ""

    @property
    def words(self) -> str:
        """One line for the table of lanes."""
        if self.trouble:
            return f"not examined: {self.trouble}"
        if self.faults:
            return "; ".join(self.faults)
        passed = f"{counted(self.checks, 'check')} passed"
        return passed if self.is_done else f"examining … {passed}"


class Doctor:
    """Examinations of this panel process. They take a core and up to minutes a lane, so there is only one."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def examine(self, lane_ids: Sequence[str]) -> None:
        """Begins; the verdicts fill while the page refreshes. A second call while it is at work does nothing."""
        if self.is_busy:
            return
        self.verdicts.update({lane_id: Verdict() for lane_id in lane_ids})
        self._thread = threading.Thread(target=self._run, args=(tuple(lane_ids),), daemon=True, name="doctor")
        self._thread.start()

    def _run(self, lane_ids: Sequence[str]) -> None:
        for lane_id in lane_ids:
            verdict = self.verdicts[lane_id]
            try:
                command = [servers.binary("screentest"), "lanes", "doctor", lane_id, "--jobs", "1", "--json"]
                _listen(command, verdict)
            except (OSError, ValueError, KeyError, ScreentestError) as error:
                verdict.trouble = f"`screentest lanes doctor {lane_id}` cannot be run here ({error})"
            verdict.is_done = True


def _listen(command: Sequence[str], verdict: Verdict) -> None:
    # Errors into a file: a pipe that nobody reads meanwhile would hold the child up when it is full.
    with tempfile.TemporaryFile("w+") as errors:
        said = _follow(command, errors, verdict)
    if said and not verdict.faults:
        verdict.trouble = said


def _follow(command: Sequence[str], errors: IO[str], verdict: Verdict) -> str:
    """Counts the checks as they come; returns why the examination failed as a whole, "" = it did not."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            check = json.loads(line)
            verdict.checks += 1
            if check["status"] != "ok":
                verdict.faults.append(f"{check['check']}: {check['detail']}. {check['fix']}".strip())
    if not child.returncode:
        return ""
    errors.seek(0)
    return (errors.read().strip().splitlines() or [f"it ended with status {child.returncode}"])[-1]


@st.cache_resource(show_spinner=False)
def doctor() -> Doctor:
    """The one of this process: verdicts are the same for everybody who looks."""
    return Doctor()
