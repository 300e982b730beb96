"""The reporter's side of the contact-sheet child: one request at a time, a deadline, and a new child after a crash."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import structlog

log = structlog.get_logger()

# A clip of the longest lane decodes in seconds; a file that keeps a decoder busy for longer than this is broken.
REQUEST_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0


class PictureError(Exception):
    """No picture can be made of this file; the message says why."""


class PictureMaker:
    """Starts its child when it is first needed."""

    def __init__(self) -> None:
        self._child: Process | None = None

    async def make(self, request: dict[str, Any]) -> None:
        """PictureError when the file is broken, or its decoder crashed or hung."""
        child = await self._running()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                reply = await _ask(child, request)
        except TimeoutError as error:
            await self.close()
            raise PictureError(f"its decoder did not end within {REQUEST_TIMEOUT_S:.0f} s") from error
        if reply is None:
            await self.close()
            raise PictureError(f"its decoder crashed (exit status {child.returncode})")
        if "error" in reply:
            raise PictureError(reply["error"])

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.stdin is not None:
            child.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()

    async def _running(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            module = "screentest_reporter.contact_sheet"
            self._child = await asyncio.create_subprocess_exec(sys.executable, "-m", module, stdin=PIPE, stdout=PIPE)
            log.info("picture_child_started", pid=self._child.pid)
        return self._child


async def _ask(child: Process, request: dict[str, Any]) -> dict[str, str] | None:
    """None = the child ended without an answer."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        await child.stdin.drain()
        line = await child.stdout.readline()
    except (BrokenPipeError, ConnectionResetError):
        line = b""
    if not line:
        await child.wait()
        return None
    reply: dict[str, str] = json.loads(line)
    return reply
