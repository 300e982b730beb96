"""What attempts are given, as files on scratch named by their content: keyframes, rubrics, and clips to judge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from screentest.errors import BadRequest
from screentest.records import ArtifactKind, Dispatch
from screentest_worker.upload import Depot

SHA256 = re.compile(r"[0-9a-f]{64}")

# kind -> (folder, suffix)
_PLACES: Final = {
    ArtifactKind.KEYFRAME: ("keyframes", "png"),
    ArtifactKind.RUBRIC: ("rubrics", "json"),
    ArtifactKind.CLIP: ("clips", "mp4"),
}
# Small, and wanted by many jobs of a sweep: they stay, also over a restart of the worker.
KEPT_FOLDERS: Final = frozenset(_PLACES[kind][0] for kind in (ArtifactKind.KEYFRAME, ArtifactKind.RUBRIC))


class Inputs:
    """Fetches what is not on scratch yet."""

    def __init__(self, depot: Depot, scratch: Path) -> None:
        self._depot = depot
        self._scratch = scratch

    async def fetch(self, dispatch: Dispatch, kind: ArtifactKind, sha256: str, size_bytes: int) -> Path:
        """Raises Unavailable or DepotAway; BadRequest when the job names no sha256, or bytes that the depot lacks."""
        if not SHA256.fullmatch(sha256):  # it becomes a file name
            raise BadRequest(f"the job names its {kind.value} {sha256[:80]!r}, which is no sha256 in hex")
        folder, suffix = _PLACES[kind]
        path = self._scratch / folder / f"{sha256}.{suffix}"
        if not path.is_file():
            await self._depot.get(dispatch.spec, dispatch.attempt, kind, sha256, size_bytes, path)
        return path
