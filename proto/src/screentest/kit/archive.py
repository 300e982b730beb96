"""A sweep's archive in the depot: immutable parts, each the very messages of the streams, and a manifest that says what
a part must contain.

A part is gzip of JSON lines, one message a line with its payload as base64; equal messages give equal bytes. Its key
carries its hash. Its manifest has a key that follows from sweep and number, and whoever writes it first wins: two
archivers cannot tell two stories. The manifest is written last, so a part without one was never finished.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from screentest import objects
from screentest.errors import NotFound, ScreentestError
from screentest.kit.bus import EVENT_ID_HEADER, Stored
from screentest.kit.store import Store

SCHEMA = "screentest-archive-1"
PART_TYPE = "application/gzip"
MANIFEST_TYPE = "application/json"
# Level 6 takes four times as long for a tenth less.
COMPRESSION = 3


class ArchiveDamaged(ScreentestError):
    """What the depot holds is not what was archived; a person must look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as it stood in its stream."""

    stream: str
    subject: str
    sequence: int
    stored_at: datetime | None
    headers: Mapping[str, str]
    payload: bytes

    @property
    def event_id(self) -> str:
        return self.headers.get(EVENT_ID_HEADER, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one part contains. Sequences are of ``stream`` in the incarnation ``epoch``; vitals have others.

    ``previous``: sha256 of the manifest before, empty for the first. ``key`` and ``sha256`` are the part's.
    """

    schema: str
    sweep_id: str
    number: int
    previous: str
    key: str
    sha256: str
    size_bytes: int
    events: int
    vitals: int
    stream: str
    epoch: str
    first_sequence: int
    last_sequence: int

    @property
    def messages(self) -> int:
        return self.events + self.vitals

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def message_of(stream: str, stored: Stored) -> Message:
    return Message(
        stream=stream,
        subject=stored.subject,
        sequence=stored.sequence,
        stored_at=stored.stored_at,
        headers=stored.headers,
        payload=stored.payload,
    )


def pack(messages: Iterable[Message]) -> bytes:
    """The bytes of a part; the same messages give the same bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=COMPRESSION, mtime=0) as lines:
        for message in messages:
            lines.write(json.dumps(_to_json(message), separators=(",", ":")).encode() + b"\n")
    return packed.getvalue()


def unpack(data: bytes) -> Iterator[Message]:
    """The messages of a part; ArchiveDamaged when these bytes are none."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as lines:
            for line in lines:
                yield _from_json(json.loads(line))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ArchiveDamaged(f"this is no part of an archive ({type(error).__name__}: {error})") from error


class Archive:
    """Reads and writes archives in one depot."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def sweeps(self) -> tuple[str, ...]:
        """Ids of every sweep that has an archive."""
        keys = await self._store.keys(objects.ARCHIVES)
        return tuple(sorted({key.removeprefix(objects.ARCHIVES).split("/")[0] for key in keys}))

    async def manifests(self, sweep_id: str) -> tuple[Manifest, ...]:
        """Of every part in order; empty when there is no archive. ArchiveDamaged when one does not follow another."""
        keys = set(await self._store.keys(objects.sweep_archive(sweep_id)))
        named = sorted(key for key in keys if key.endswith(".json"))
        found: list[Manifest] = []
        previous = ""
        for number, key in enumerate(named, start=1):
            if key != objects.archive_manifest(sweep_id, number):
                raise ArchiveDamaged(f"the archive of {sweep_id} lacks its part {number}: {key} comes next")
            content = await self._store.get(key)
            manifest = _manifest(key, content)
            if (manifest.sweep_id, manifest.number, manifest.previous) != (sweep_id, number, previous):
                raise ArchiveDamaged(f"{key} does not follow the part before it; it was changed after it was written")
            previous = hashlib.sha256(content).hexdigest()
            found.append(manifest)
        return tuple(found)

    async def read(self, manifest: Manifest) -> list[Message]:
        """The messages of a part, verified. ArchiveDamaged when hash or count is not what the manifest says."""
        try:
            data = await self._store.get(manifest.key)
        except NotFound as error:
            raise ArchiveDamaged(f"{manifest.key} is missing in the depot, and its manifest is there") from error
        return await asyncio.to_thread(_checked, manifest, data)

    async def write(
        self, sweep_id: str, before: tuple[Manifest, ...], epoch: str, events: list[Message], vitals: list[Message]
    ) -> Manifest | None:
        """Adds the next part behind ``before``; None when somebody else wrote a part of this number first."""
        data = await asyncio.to_thread(pack, [*events, *vitals])
        number, sha256 = len(before) + 1, hashlib.sha256(data).hexdigest()
        manifest = Manifest(
            schema=SCHEMA,
            sweep_id=sweep_id,
            number=number,
            previous=hashlib.sha256(before[-1].to_bytes()).hexdigest() if before else "",
            key=objects.archive_part(sweep_id, number, sha256),
            sha256=sha256,
            size_bytes=len(data),
            events=len(events),
            vitals=len(vitals),
            stream=events[0].stream,
            epoch=epoch,
            first_sequence=events[0].sequence,
            last_sequence=events[-1].sequence,
        )
        await self._store.put_new(manifest.key, data, PART_TYPE)
        # Before anybody can find it: what the depot holds is what was sent.
        await self.read(manifest)
        key = objects.archive_manifest(sweep_id, number)
        return manifest if await self._store.put_new(key, manifest.to_bytes(), MANIFEST_TYPE) else None


def _checked(manifest: Manifest, data: bytes) -> list[Message]:
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != manifest.sha256:
        raise ArchiveDamaged(
            f"{manifest.key} has sha256 {sha256[:16]} and {len(data)} bytes; "
            f"archived were {manifest.sha256[:16]} and {manifest.size_bytes} bytes"
        )
    messages = list(unpack(data))
    if len(messages) != manifest.messages:
        raise ArchiveDamaged(f"{manifest.key} holds {len(messages)} messages; archived were {manifest.messages}")
    return messages


def _manifest(key: str, content: bytes) -> Manifest:
    try:
        manifest = Manifest(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise ArchiveDamaged(f"{key} is no manifest of an archive: {error}") from error
    if manifest.schema != SCHEMA:
        raise ArchiveDamaged(f"{key} has schema {manifest.schema!r}, this version reads {SCHEMA!r}; update this one")
    return manifest


def _to_json(message: Message) -> dict[str, Any]:
    return {
        "stream": message.stream,
        "subject": message.subject,
        "sequence": message.sequence,
        "stored_at": message.stored_at.isoformat() if message.stored_at else None,
        "headers": dict(message.headers),
        "payload": base64.b64encode(message.payload).decode(),
    }


def _from_json(line: Mapping[str, Any]) -> Message:
    return Message(
        stream=line["stream"],
        subject=line["subject"],
        sequence=line["sequence"],
        stored_at=datetime.fromisoformat(line["stored_at"]) if line["stored_at"] else None,
        headers=line["headers"],
        payload=base64.b64decode(line["payload"]),
    )
