"""A folder with everything a stack cannot make again: its two lasting streams and its bucket.

Contents lie under their sha256, written once; ``backup.json`` names them and is replaced last, in one step. So a backup
that is killed leaves the one before, and the next goes on where it stopped. The streams come first: every object that
an event in them speaks of is in the depot by then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from screentest import subjects
from screentest.errors import BadRequest, Conflict, NotFound, NotPossibleNow
from screentest.kit.bus import Bus
from screentest.kit.store import Listed, Store
from screentest_ui.servers import write_private

SCHEMA = "backup/1"
# JOBS is not kept: the scheduler makes it from EVENTS. The last one is restored last: with it the rest counts.
STREAMS = (subjects.VITALS_STREAM, subjects.EVENTS_STREAM)
INDEX, JOURNAL, CONTENTS = "backup.json", "backup.part", "contents"
AT_ONCE = 8
PIECE_BYTES = 128 * 1024

# Keys that carry their content: 16 hex of it behind a dash, or all of it.
_NAMED_BY_CONTENT = re.compile(r"[-/]([0-9a-f]{64}|[0-9a-f]{16})\.[a-z0-9.]+")

Say = Callable[[str], None]


class BackupDamaged(Conflict):
    """A file of the backup is missing, or not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCopy:
    """``described``: what the broker wants to know before it takes the content back."""

    name: str
    messages: int
    sha256: str
    described: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCopy:
    """``etag``: the depot's when it was copied; the same one means the same content."""

    key: str
    size_bytes: int
    etag: str
    sha256: str
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """``made_at``: ISO 8601, UTC. ``version``: of the code that made it."""

    made_at: str
    version: str
    bucket: str
    streams: tuple[StreamCopy, ...]
    objects: tuple[ObjectCopy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """``copied``: objects that were not there before. ``problems``: objects that are not what their name says."""

    messages: int
    objects: int
    copied: int
    copied_bytes: int
    problems: tuple[str, ...] = ()


class Contents:
    """Files by their sha256."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and clips are nobody else's
        self._folder = folder / CONTENTS
        self._folder.mkdir(exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def part(self, name: str) -> Path:
        """A place for what is not whole yet; the same name always has the same one."""
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.part"

    def take(self, part: Path) -> str:
        """Gives a whole file its place and returns its sha256."""
        with part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.path(sha256).parent.mkdir(exist_ok=True)
        part.replace(self.path(sha256))
        return sha256

    def checked(self, sha256: str, what: str) -> Path:
        """BackupDamaged when the file is missing or not what it was."""
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            found = "nothing"
        if found != sha256:
            raise BackupDamaged(f"{what}: {path} is damaged or missing; take another backup, this one is not complete")
        return path

    def keep_only(self, wanted: set[str]) -> None:
        for path in self._folder.rglob("*"):
            if path.is_file() and path.name not in wanted:
                path.unlink()


# ---- making one


async def make(bus: Bus, store: Store, folder: Path, *, now: datetime, version: str, say: Say) -> Done:
    """Into a folder of its own; one that holds an older backup is brought up to date."""
    contents, before = Contents(folder), _objects_before(folder)
    streams = [await _copy_stream(bus, contents, name) for name in STREAMS]
    say(", ".join(f"{stream.name} {stream.messages} messages" for stream in streams))
    listed = await store.listed("")
    fresh = [item for item in listed if not _is_here(before.get(item.key), item, contents)]
    say(f"depot: {len(listed)} objects, {len(fresh)} not here yet")
    copied = await _copy_objects(store, contents, fresh, folder / JOURNAL)
    here = {**before, **{item.key: item for item in copied}}
    index = Index(
        made_at=now.isoformat(),
        version=version,
        bucket=store.bucket,
        streams=tuple(streams),
        objects=tuple(here[item.key] for item in listed if item.key in here),
    )
    write_private(folder / INDEX, json.dumps({"schema": SCHEMA, **asdict(index)}, indent=1) + "\n")
    (folder / JOURNAL).unlink(missing_ok=True)
    contents.keep_only({stream.sha256 for stream in streams} | {item.sha256 for item in index.objects})
    return Done(
        messages=sum(stream.messages for stream in streams),
        objects=len(index.objects),
        copied=len(copied),
        copied_bytes=sum(item.size_bytes for item in copied),
        problems=tuple(
            f"{item.key}: its content is not the one its name tells" for item in index.objects if not _is_true(item)
        ),
    )


async def _copy_stream(bus: Bus, contents: Contents, name: str) -> StreamCopy:
    part = contents.part(name)
    with part.open("wb") as file:
        described = await bus.snapshot(name, file.write)
    sha256 = await asyncio.to_thread(contents.take, part)
    return StreamCopy(name=name, messages=int(described["state"]["messages"]), sha256=sha256, described=described)


async def _copy_objects(
    store: Store, contents: Contents, listed: Iterable[Listed], journal_path: Path
) -> list[ObjectCopy]:
    """Writes each into the journal as soon as it is here: whoever comes after a kill need not fetch it again."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: Listed, journal: TextIO) -> ObjectCopy | None:
        async with gate:
            copy = await _copy_object(store, contents, item)
        if copy is not None:
            journal.write(json.dumps(asdict(copy)) + "\n")
            journal.flush()
        return copy

    with journal_path.open("a") as journal:
        copies = await asyncio.gather(*(one(item, journal) for item in listed))
    return [copy for copy in copies if copy is not None]


async def _copy_object(store: Store, contents: Contents, item: Listed) -> ObjectCopy | None:
    """None for an object that went away meanwhile: a report's older revision, to which nothing refers."""
    part = contents.part(item.key)
    try:
        stat = await store.stat(item.key)
        if stat is None:
            return None
        await store.download(item.key, part)
    except NotFound:
        return None
    size_bytes = part.stat().st_size
    sha256 = await asyncio.to_thread(contents.take, part)
    return ObjectCopy(
        key=item.key, size_bytes=size_bytes, etag=item.etag, sha256=sha256, content_type=stat.content_type
    )


def _is_here(known: ObjectCopy | None, item: Listed, contents: Contents) -> bool:
    is_same = known is not None and (known.etag, known.size_bytes) == (item.etag, item.size_bytes)
    return is_same and known is not None and contents.path(known.sha256).exists()


def _is_true(item: ObjectCopy) -> bool:
    """Whether a key that carries its content carries this one."""
    named = _NAMED_BY_CONTENT.search(item.key)
    return named is None or item.sha256.startswith(named[1])


# ---- bringing one back


async def restore(bus: Bus, store: Store, folder: Path, *, say: Say) -> Done:
    """Into an empty broker; a depot may have some of the objects. NotPossibleNow when the broker has events.

    It may be killed and repeated: until the events are there, which come last and at once, nothing counts.
    """
    index, contents = read_index(folder), Contents(folder)
    present = await bus.stored_messages(subjects.EVENTS_STREAM)
    if present:
        raise NotPossibleNow(
            f"the broker has {present} events; a backup comes back into an empty one: run it with another "
            "SCREENTEST_HOME, or move the broker's folder away while it is down"
        )
    snapshots = {stream.name: contents.checked(stream.sha256, stream.name) for stream in index.streams}
    await store.ensure_bucket()
    there = {item.key: item for item in await store.listed("")}
    missing = [item for item in index.objects if not _is_there(item, there.get(item.key))]
    say(f"depot: {len(index.objects)} objects, {len(missing)} not there yet")
    await _put_objects(store, contents, missing)
    for stream in sorted(index.streams, key=lambda stream: STREAMS.index(stream.name)):
        await bus.delete_stream(stream.name)
        with snapshots[stream.name].open("rb") as file:
            await bus.restore_snapshot(stream.name, stream.described, _pieces(file.read))
        say(f"{stream.name} {stream.messages} messages")
    return Done(
        messages=sum(stream.messages for stream in index.streams),
        objects=len(index.objects),
        copied=len(missing),
        copied_bytes=sum(item.size_bytes for item in missing),
    )


async def _put_objects(store: Store, contents: Contents, missing: Iterable[ObjectCopy]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: ObjectCopy) -> None:
        async with gate:
            path = await asyncio.to_thread(contents.checked, item.sha256, item.key)
            await store.put_file(item.key, path, item.content_type or "application/octet-stream")

    await asyncio.gather(*(one(item) for item in missing))


def _is_there(item: ObjectCopy, listed: Listed | None) -> bool:
    """Of a key that carries its content the size says that it arrived whole; any other is written again."""
    is_named = _NAMED_BY_CONTENT.search(item.key) is not None
    return is_named and listed is not None and listed.size_bytes == item.size_bytes


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(PIECE_BYTES):
        yield piece


# ---- its files


def read_index(folder: Path) -> Index:
    """BadRequest when there is no backup here, or one of another version."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadRequest(f"{folder} holds no backup ({INDEX} is missing); `screentest backup` makes one") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error
    if content.pop("schema", None) != SCHEMA:
        raise BadRequest(f"{path} is no {SCHEMA}; restore it with the version that made it")
    return Index(
        **{
            **content,
            "streams": tuple(StreamCopy(**item) for item in content["streams"]),
            "objects": tuple(ObjectCopy(**item) for item in content["objects"]),
        }
    )


def _objects_before(folder: Path) -> Mapping[str, ObjectCopy]:
    """By key, of the last backup and of one that was broken off behind it."""
    done = read_index(folder).objects if (folder / INDEX).exists() else ()
    return {item.key: item for item in (*done, *_journal(folder / JOURNAL))}


def _journal(path: Path) -> Iterator[ObjectCopy]:
    """A kill may have cut its last line."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield ObjectCopy(**json.loads(line))
        except (ValueError, TypeError):
            return
