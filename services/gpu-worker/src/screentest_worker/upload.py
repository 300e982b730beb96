"""One file to the depot: a URL from the scheduler, one conditional PUT. The worker holds no key of the depot."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

import structlog
import urllib3

from screentest import objects, subjects, wire
from screentest.errors import BadRequest, Unavailable
from screentest.kit.bus import Bus
from screentest.records import Artifact, ArtifactKind, JobSpec, UrlReply, UrlRequest

log = structlog.get_logger()

URL_WITHIN_S = 5.0
CONNECT_WITHIN_S = 3.0
SILENCE_S = 60.0  # between two bytes of an answer; a big clip takes long, silence does not
ALREADY_THERE = 412  # the key carries the content's hash: the same bytes are there

SHA256 = re.compile(r"[0-9a-f]{64}")


class DepotAway(Unavailable):
    """The depot did not take or give the bytes; another try may succeed."""


class UrlRefused(DepotAway):
    """The scheduler is there and gives no URL: the attempt may not be ours any more."""


class Depot:
    """The depot as this worker sees it: signed URLs for its own lane."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        timeout = urllib3.Timeout(connect=CONNECT_WITHIN_S, read=SILENCE_S)
        self._http = urllib3.PoolManager(timeout=timeout, retries=False, maxsize=4)

    async def put(self, spec: JobSpec, attempt: int, kind: ArtifactKind, path: Path) -> Artifact:
        """Uploads one file; a second call with the same content finds it there: success.

        Raises Unavailable while the scheduler is away, DepotAway while the depot is (or either of them refuses).
        """
        sha256, md5, size_bytes = await asyncio.to_thread(_digests, path)
        reply = await self._url(spec, attempt, kind, sha256, size_bytes)
        content_type = objects.content_type(kind)
        await asyncio.to_thread(self._put, reply.url, path, size_bytes, content_type, md5)
        return Artifact(kind=kind, key=reply.key, sha256=sha256, size_bytes=size_bytes, content_type=content_type)

    async def get_keyframe(self, spec: JobSpec, attempt: int, folder: Path) -> Path:
        """The job's keyframe as a file, by its content: several jobs share it.

        Raises Unavailable or DepotAway, and BadRequest when the job names no sha256 or the depot holds other bytes.
        """
        assert spec.keyframe is not None
        if not SHA256.fullmatch(spec.keyframe.sha256):  # it becomes a file name
            raise BadRequest(f"the job names its keyframe {spec.keyframe.sha256[:80]!r}, which is no sha256 in hex")
        path = folder / f"{spec.keyframe.sha256}.png"
        if path.is_file():
            return path
        reply = await self._url(spec, attempt, ArtifactKind.KEYFRAME, spec.keyframe.sha256, spec.keyframe.size_bytes)
        data = await asyncio.to_thread(self._get, reply.url)
        found = hashlib.sha256(data).hexdigest()
        if found != spec.keyframe.sha256:
            raise BadRequest(f"the keyframe in the depot is {found[:16]}, the job names {spec.keyframe.sha256[:16]}")
        await asyncio.to_thread(_write_whole, path, data)
        return path

    async def _url(self, spec: JobSpec, attempt: int, kind: ArtifactKind, sha256: str, size_bytes: int) -> UrlReply:
        request = UrlRequest(
            sweep_id=spec.sweep_id,
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=attempt,
            kind=kind,
            sha256=sha256,
            size_bytes=size_bytes,
        )
        payload = await self._bus.request(
            subjects.depot_url(spec.lane_id), wire.encode(request), timeout_s=URL_WITHIN_S
        )
        reply = wire.decode(payload, UrlReply)
        if reply.error:
            raise UrlRefused(f"the scheduler gives no URL for the {kind.value} of {spec.job_id}: {reply.error}")
        return reply

    def _put(self, url: str, path: Path, size_bytes: int, content_type: str, md5: str) -> None:
        headers = {
            "If-None-Match": "*",
            "Content-MD5": md5,
            "Content-Type": content_type,
            "Content-Length": str(size_bytes),
        }
        try:
            with path.open("rb") as file:
                response = self._http.request("PUT", url, body=file, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise DepotAway(
                f"the depot does not answer ({type(error).__name__}); start it with `screentest up`"
            ) from error
        if response.status not in {200, 201, 204, ALREADY_THERE}:
            raise DepotAway(f"the depot refuses the {path.name}: {response.status} {_words(response.data)}")

    def _get(self, url: str) -> bytes:
        try:
            response = self._http.request("GET", url)
        except urllib3.exceptions.HTTPError as error:
            raise DepotAway(
                f"the depot does not answer ({type(error).__name__}); start it with `screentest up`"
            ) from error
        if response.status != 200:
            raise DepotAway(f"the depot gives no keyframe: {response.status} {_words(response.data)}")
        return bytes(response.data)


def _write_whole(path: Path, data: bytes) -> None:
    """The file appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def _digests(path: Path) -> tuple[str, str, int]:
    """sha256 in hex, MD5 in base64 (of RFC 1864, what Content-MD5 wants) and the size."""
    sha256, md5, size_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size_bytes += len(block)
    return sha256.hexdigest(), base64.b64encode(md5.digest()).decode(), size_bytes


def _words(data: bytes) -> str:
    return " ".join(data[:200].decode(errors="replace").split())
