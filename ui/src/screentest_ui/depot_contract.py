"""What Screentest needs of an S3, tried one by one at a real endpoint: the subset that its services use, no more."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import urllib3

from screentest.errors import NotFound, ScreentestError
from screentest.kit.store import Store

# minio's client would cut what is larger into parts: one clip must stay one PUT.
CONTENT_BYTES = 1 << 20
AT_ONCE = 8
CONTENT_TYPE = "video/mp4"
SHORT = timedelta(seconds=1)
# SeaweedFS answers 403; rclone's S3 answers 400 where a signature is missing or too old. Nothing of ours reads which.
REFUSALS = frozenset({400, 401, 403})
WAIT_S = 2.5


class Broken(Exception):
    """The endpoint did something else than the contract says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``problem`` "" = as it must be. ``why``: what Screentest uses it for."""

    what: str
    why: str
    problem: str


class Contract:
    """The checks of one endpoint, below one prefix of the bucket that is removed afterwards."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = f"checks/{uuid.uuid4().hex}/"
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=3.0, read=30.0), retries=False, maxsize=AT_ONCE
        )
        self._content = os.urandom(CONTENT_BYTES)

    async def run(self) -> tuple[Result, ...]:
        """Every check, also after a failing one; Unavailable when nothing answers at the endpoint."""
        await self._store.ensure_bucket()
        try:
            return tuple([await self._tried(*check) for check in self._checks()])
        finally:
            for key in await self._store.keys(self._prefix):
                await self._store.remove(key)

    def _checks(self) -> tuple[tuple[str, str, Callable[[], Awaitable[None]]], ...]:
        return (
            ("an object reads back as it was written", "clips, reports, archives", self._round_trip),
            ("a second write is seen at once", "a report's revisions replace each other", self._replaced),
            ("what is not there is known not to be", "a report that is not published yet", self._absent),
            ("a prefix lists its keys", "archives of a sweep", self._listed),
            ("If-None-Match: * keeps the first content", "a clip's key never changes content", self._conditional),
            (f"of {AT_ONCE} conditional PUTs at once one wins", "two attempts upload at once", self._raced),
            ("a wrong Content-MD5 is refused", "a clip damaged on its way", self._checksum),
            ("a signed PUT opens its own key only", "workers hold no key of the depot", self._other_key),
            ("a signed PUT does not delete", "workers hold no key of the depot", self._no_delete),
            ("a signed GET answers a range", "a browser seeks in a clip", self._range),
            ("a range beyond the end is told", "a browser seeks in a clip", self._beyond),
            ("a signed link expires", "links in pages and logs", self._expired),
            ("nobody reads or writes without a key", "clips are the user's", self._anonymous),
        )

    async def _tried(self, what: str, why: str, check: Callable[[], Awaitable[None]]) -> Result:
        try:
            await check()
        except (Broken, ScreentestError, urllib3.exceptions.HTTPError) as error:
            return Result(what=what, why=why, problem=str(error) or type(error).__name__)
        return Result(what=what, why=why, problem="")

    # ---- one by one

    async def _round_trip(self) -> None:
        key = await self._written("clip.mp4")
        _expect(await self._store.get(key) == self._content, "the bytes differ")
        stat = await self._store.stat(key)
        _expect(stat is not None and stat.size_bytes == CONTENT_BYTES, "its size is wrong")
        _expect(stat is not None and stat.content_type == CONTENT_TYPE, "its content type is lost")

    async def _replaced(self) -> None:
        key = await self._written("report.html")
        await self._store.put(key, b"second", CONTENT_TYPE)
        _expect(await self._store.get(key) == b"second", "the first content is still read")

    async def _absent(self) -> None:
        _expect(await self._store.stat(f"{self._prefix}nothing") is None, "an object is said to be there")
        try:
            await self._store.get(f"{self._prefix}nothing")
        except NotFound:
            return
        raise Broken("an object is read from there")

    async def _listed(self) -> None:
        keys = {await self._written(f"parts/{number}") for number in range(3)}
        _expect(set(await self._store.keys(f"{self._prefix}parts/")) == keys, "the list is not what was written")

    async def _conditional(self) -> None:
        key = f"{self._prefix}once"
        _expect(await self._store.put_new(key, b"first", CONTENT_TYPE), "the first PUT is refused")
        _expect(not await self._store.put_new(key, b"second", CONTENT_TYPE), "the second PUT is accepted")
        _expect(await self._store.get(key) == b"first", "the second content has replaced the first")

    async def _raced(self) -> None:
        key = f"{self._prefix}raced"
        puts = [self._store.put_new(key, f"{number}".encode(), CONTENT_TYPE) for number in range(AT_ONCE)]
        won = sum(await asyncio.gather(*puts))
        _expect(won == 1, f"{won} of them were accepted")

    async def _checksum(self) -> None:
        url = self._store.put_url(f"{self._prefix}damaged").url
        wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
        status = await self._asked("PUT", url, body=b"content", headers={"Content-MD5": wrong})
        _expect(status == 400, f"it answers {status}")

    async def _other_key(self) -> None:
        mine, other = f"{self._prefix}mine", f"{self._prefix}other"
        status = await self._asked("PUT", _moved(self._store.put_url(mine).url, mine, other), body=b"x")
        _expect(status in REFUSALS, f"it answers {status}")
        _expect(await self._store.stat(other) is None, "the other key is written")

    async def _no_delete(self) -> None:
        key = await self._written("kept")
        status = await self._asked("DELETE", self._store.put_url(key).url)
        _expect(status in REFUSALS, f"it answers {status}")
        _expect(await self._store.stat(key) is not None, "the object is gone")

    async def _range(self) -> None:
        url = await self._readable()
        reply = await self._answer("GET", url, headers={"Range": "bytes=1000-1999"})
        _expect(reply.status == 206 and reply.data == self._content[1000:2000], f"it answers {reply.status}")
        _expect(reply.headers.get("Content-Range") == f"bytes 1000-1999/{CONTENT_BYTES}", "Content-Range is wrong")

    async def _beyond(self) -> None:
        status = await self._asked("GET", await self._readable(), headers={"Range": f"bytes={CONTENT_BYTES + 1}-"})
        _expect(status == 416, f"it answers {status}")

    async def _expired(self) -> None:
        url = self._store.get_url(await self._written("clip.mp4"), SHORT, public=False).url
        await asyncio.sleep(WAIT_S)
        status = await self._asked("GET", url)
        _expect(status in REFUSALS, f"it answers {status}")

    async def _anonymous(self) -> None:
        url = self._store.put_url(await self._written("closed")).url
        bare = urlunsplit(urlsplit(url)._replace(query=""))
        for method in ("GET", "PUT", "DELETE"):
            status = await self._asked(method, bare)
            _expect(status in REFUSALS, f"{method} answers {status}")

    # ---- steps

    async def _written(self, name: str) -> str:
        key = self._prefix + name
        await self._store.put(key, self._content, CONTENT_TYPE)
        return key

    async def _readable(self) -> str:
        return self._store.get_url(await self._written("clip.mp4"), public=False).url

    async def _asked(self, method: str, url: str, *, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
        return (await self._answer(method, url, body=body, headers=headers)).status

    async def _answer(
        self, method: str, url: str, *, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        content = body if method == "PUT" else None
        return await asyncio.to_thread(self._http.request, method, url, body=content, headers=headers)


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise Broken(problem)


def _moved(url: str, key: str, other: str) -> str:
    """The same signature, at another key."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.replace(key, other)))
