"""Files to the depot and from it: a URL from the scheduler, one conditional PUT or one GET. The worker holds no key."""

from __future__ import annotations

import asyncio
import base64
import hashlib
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
NOT_THERE = 404
NO_BUCKET = "NoSuchBucket"  # a depot that is being set up: its objects are still to come


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

    async def get(
        self, spec: JobSpec, attempt: int, kind: ArtifactKind, sha256: str, size_bytes: int, path: Path
    ) -> None:
        """One object of the job as a file, which appears when it is whole and what the job names.

        Raises Unavailable or DepotAway, and BadRequest when the depot has no such object, or other bytes.
        """
        reply = await self._url(spec, attempt, kind, sha256, size_bytes)
        part = path.with_suffix(".part")
        try:
            found = await asyncio.to_thread(self._get, reply.url, kind, size_bytes, part)
            if found != sha256:
                raise BadRequest(f"the {kind.value} in the depot is {found[:16]}, the job names {sha256[:16]}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

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

    def _get(self, url: str, kind: ArtifactKind, size_bytes: int, path: Path) -> str:
        """The sha256 in hex of what was read; it stops where there is more than there should be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, left = hashlib.sha256(), size_bytes
        try:
            response = self._http.request("GET", url, preload_content=False)
            try:
                _require_given(response, kind)
                with path.open("wb") as file:
                    for block in response.stream(1 << 20):
                        left -= len(block)
                        if left < 0:
                            raise BadRequest(f"the {kind.value} in the depot has more than its {size_bytes} bytes")
                        digest.update(block)
                        file.write(block)
            finally:
                response.close()  # what is left of a refused body must not meet the next request
        except urllib3.exceptions.HTTPError as error:
            raise DepotAway(
                f"the depot does not answer ({type(error).__name__}); start it with `screentest up`"
            ) from error
        return digest.hexdigest()


def _require_given(response: urllib3.BaseHTTPResponse, kind: ArtifactKind) -> None:
    """Raises BadRequest when the object is gone, DepotAway for any other answer than the object."""
    if response.status == 200:
        return
    words = _words(response.read(1 << 12))
    if response.status == NOT_THERE and NO_BUCKET not in words:
        raise BadRequest(f"the {kind.value} is not in the depot any more")
    raise DepotAway(f"the depot gives no {kind.value}: {response.status} {words}")


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
