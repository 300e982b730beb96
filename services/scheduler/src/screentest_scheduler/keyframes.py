"""Keyframes come from strangers: a child process checks and re-encodes them, then they are stored by content."""

from __future__ import annotations

import asyncio
import hashlib
import sys

from screentest import objects
from screentest.errors import BadRequest, Exhausted, FieldViolation, ScreentestError
from screentest.kit.store import Store
from screentest.records import ArtifactKind, Keyframe
from screentest_scheduler.reencode import REFUSED_STATUS

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
CHILD_TIMEOUT_S = 30.0


async def accept(store: Store, name: str, data: bytes) -> Keyframe:
    """Stores the picture as an RGB PNG without metadata, under its own sha256. BadRequest says what is wrong."""
    check_size(name, len(data))
    png = await _reencode(name, data)
    width_px, height_px = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")  # IHDR
    sha256 = hashlib.sha256(png).hexdigest()
    key = objects.keyframe(sha256)
    if await store.stat(key) is None:
        await store.put(key, png, objects.content_type(ArtifactKind.KEYFRAME))
    return Keyframe(key=key, sha256=sha256, width_px=width_px, height_px=height_px, size_bytes=len(png))


def check_size(name: str, size_bytes: int) -> None:
    """Exhausted above the limit; called for every chunk, so that a large upload ends early."""
    if size_bytes > MAX_UPLOAD_BYTES:
        limit_mb = MAX_UPLOAD_BYTES // 1024 // 1024
        raise Exhausted(f"keyframe {name!r} is larger than {limit_mb} MB; scale it down")


async def _reencode(name: str, data: bytes) -> bytes:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "screentest_scheduler.reencode",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHILD_TIMEOUT_S):
            png, errors = await child.communicate(data)
    except TimeoutError:
        child.kill()
        await child.wait()
        raise _refused(name, f"reading it takes longer than {CHILD_TIMEOUT_S:.0f} s") from None
    if child.returncode == 0:
        return png
    if child.returncode == REFUSED_STATUS:
        raise _refused(name, errors.decode(errors="replace").strip())
    raise _refused(name, "reading it broke the image library; give a PNG, JPEG or WebP")


def _refused(name: str, why: str) -> ScreentestError:
    message = f"keyframe {name!r} cannot be used: {why}"
    return BadRequest(message, (FieldViolation(field="keyframe", description=message),))
