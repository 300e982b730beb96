"""The depot: the only importer of minio. Blocking calls go through threads."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error
from pydantic import SecretStr

from screentest.errors import BadRequest, NotFound, ScreentestError, Unavailable

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 60.0
URL_LIFETIME = timedelta(hours=12)
CONDITIONAL_PUT_LIFETIME = timedelta(minutes=15)
NOT_THERE = 404
PRECONDITION_FAILED = 412


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    key: str
    size_bytes: int
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of a list; ``etag`` changes with the content."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedUrl:
    url: str
    expires_at: datetime


class Store:
    """One bucket at one endpoint. ``public_url`` signs what a browser fetches: it cannot resolve our inner names."""

    def __init__(
        self, *, url: str, bucket: str, access_key: str, secret_key: SecretStr, public_url: str = "", region: str = ""
    ) -> None:
        self.url = url
        self.bucket = bucket
        self._http = _pool()
        self._inner = _client(url, access_key, secret_key, region, self._http)
        self._public = _client(public_url or url, access_key, secret_key, region, self._http)

    async def ensure_bucket(self) -> None:
        def ensure() -> None:
            if not self._inner.bucket_exists(self.bucket):
                self._inner.make_bucket(self.bucket)

        await self._call(f"bucket {self.bucket}", ensure)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Writes or replaces one object."""

        def put() -> None:
            self._inner.put_object(self.bucket, key, io.BytesIO(data), len(data), content_type=content_type)

        await self._call(key, put)

    async def put_new(self, key: str, data: bytes, content_type: str) -> bool:
        """Writes one object if there is none; False when there was one, which stays as it is."""

        def put() -> bool:
            # minio's own put takes no condition: the same way a worker goes, by a signed URL.
            url = self._inner.presigned_put_object(self.bucket, key, expires=CONDITIONAL_PUT_LIFETIME)
            headers = {"If-None-Match": "*", "Content-Type": content_type, "Content-Length": str(len(data))}
            response = self._http.request("PUT", url, body=data, headers=headers)
            if response.status not in {200, 201, 204, PRECONDITION_FAILED}:
                words = " ".join(response.data[:200].decode(errors="replace").split())
                raise Unavailable(f"the depot at {self.url} refuses {key}: {response.status} {words}")
            return response.status != PRECONDITION_FAILED

        return await self._call(key, put)

    async def get(self, key: str, *, most_bytes: int | None = None) -> bytes:
        """The whole object; NotFound when it is not there, BadRequest when it is larger than ``most_bytes``."""

        def get() -> bytes:
            response = self._inner.get_object(self.bucket, key)
            try:
                data = bytes(response.read() if most_bytes is None else response.read(most_bytes + 1))
                if most_bytes is not None and len(data) > most_bytes:
                    raise BadRequest(f"{key} has more than its {most_bytes} bytes")
                return data
            finally:
                response.close()
                response.release_conn()

        return await self._call(key, get)

    async def remove(self, key: str) -> None:
        """Removes one object; one that is not there is no error."""
        await self._call(key, lambda: self._inner.remove_object(self.bucket, key))

    async def download(self, key: str, path: Path) -> None:
        """To a file, by way of a temporary name beside it."""
        await self._call(key, lambda: self._inner.fget_object(self.bucket, key, str(path)))

    async def stat(self, key: str) -> Stat | None:
        """None when the object is not there."""

        def stat() -> Stat:
            found = self._inner.stat_object(self.bucket, key)
            return Stat(key=key, size_bytes=int(found.size or 0), content_type=found.content_type or "")

        try:
            return await self._call(key, stat)
        except NotFound:
            return None

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        """Writes or replaces one object from a file."""
        await self._call(key, lambda: self._inner.fput_object(self.bucket, key, str(path), content_type=content_type))

    async def listed(self, prefix: str) -> tuple[Listed, ...]:
        """Every object below a prefix."""

        def listed() -> tuple[Listed, ...]:
            found = self._inner.list_objects(self.bucket, prefix=prefix, recursive=True)
            return tuple(
                Listed(key=item.object_name, size_bytes=int(item.size or 0), etag=item.etag or "")
                for item in found
                if item.object_name and not item.is_dir
            )

        return await self._call(prefix or f"bucket {self.bucket}", listed)

    async def keys(self, prefix: str) -> tuple[str, ...]:
        def keys() -> tuple[str, ...]:
            found = self._inner.list_objects(self.bucket, prefix=prefix, recursive=True)
            return tuple(item.object_name for item in found if item.object_name)

        return await self._call(prefix, keys)

    def put_url(self, key: str, lifetime: timedelta = timedelta(minutes=15)) -> SignedUrl:
        """For exactly one object, at the inner endpoint. The putter sends ``If-None-Match: *``: first content wins."""
        url = self._inner.presigned_put_object(self.bucket, key, expires=lifetime)
        return SignedUrl(url=url, expires_at=datetime.now(UTC) + lifetime)

    def get_url(self, key: str, lifetime: timedelta = URL_LIFETIME, *, public: bool = True) -> SignedUrl:
        """``public``: signed for the host that a browser can resolve."""
        client = self._public if public else self._inner
        url = client.presigned_get_object(self.bucket, key, expires=lifetime)
        return SignedUrl(url=url, expires_at=datetime.now(UTC) + lifetime)

    async def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except S3Error as error:
            raise self._translate(what, error) from error
        except InvalidResponseError as error:
            raise self._translate_unread(what, error) from error
        except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(
                f"the depot at {self.url} does not answer ({type(error).__name__}); start it with `screentest up`"
            ) from error

    def _translate(self, what: str, error: S3Error) -> ScreentestError:
        if error.code in {"NoSuchKey", "NoSuchBucket", "NoSuchObject"}:
            return NotFound(f"the depot has no object {what} in bucket {self.bucket}")
        return Unavailable(f"the depot at {self.url} refuses {what}: {error.code} {error.message}")

    def _translate_unread(self, what: str, error: InvalidResponseError) -> ScreentestError:
        """minio 7.2 reads errors of type application/xml only, and has no public name for their status; rclone's S3
        says text/xml."""
        if error._code == NOT_THERE:
            return NotFound(f"the depot has no object {what} in bucket {self.bucket}")
        return Unavailable(
            f"the depot at {self.url} answers {error._code} for {what} in words that are not S3's; "
            "see with `screentest depot check` whether it is one"
        )


def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        maxsize=16,
        retries=urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )


def _client(url: str, access_key: str, secret_key: SecretStr, region: str, pool: urllib3.PoolManager) -> Minio:
    parts = urlsplit(url)
    # A region given here saves the client a request before it can sign anything.
    return Minio(
        parts.netloc,
        access_key=access_key,
        secret_key=secret_key.get_secret_value(),
        secure=parts.scheme == "https",
        region=region or "us-east-1",
        http_client=pool,
    )
