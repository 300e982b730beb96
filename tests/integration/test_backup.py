"""A backup of the real servers comes back as it was: every message in its place, every object byte for byte."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from screentest import subjects
from screentest.errors import BadRequest, NotPossibleNow, Unavailable
from screentest.kit.bus import Append, Bus, Stored
from screentest.kit.store import Store
from screentest_ui import backup, ports, servers
from screentest_ui.backup import BackupDamaged, Done
from tests.conftest import Depot, RunningServer

CLIP = b"a clip of some length " * 5000
CLIP_KEY = f"s/clips/stub-j1-1-{hashlib.sha256(CLIP).hexdigest()[:16]}.mp4"
OBJECTS = {
    CLIP_KEY: (CLIP, "video/mp4"),
    "s/report/index.html": (b"<p>one</p>", "text/html; charset=utf-8"),
    f"keyframes/{hashlib.sha256(b'png').hexdigest()}.png": (b"png", "image/png"),
    "empty": (b"", "text/plain"),
    "odd name/ä+%2F.txt": (b"odd", "text/plain"),
}


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(servers.configure_nats(tmp_path / "other-nats", ports.choose(1)[0]))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def other_bus(other_server: RunningServer) -> AsyncIterator[Bus]:
    connection = await Bus.connect(other_server.url, name="other")
    yield connection
    await connection.close()


@pytest.fixture
def other_store(depot: Depot) -> Store:
    """A bucket that nobody has made yet."""
    found = depot.store()
    found.bucket = f"other-{uuid.uuid4().hex[:12]}"
    return found


async def fill(bus: Bus, store: Store, messages: int = 300) -> None:
    """More than one piece of a snapshot: what compresses badly."""
    appends = [
        Append(
            subject=f"events.s.stub.j{number}",
            payload=uuid.uuid4().bytes * 100,
            expected_sequence=0,
            event_id=f"e{number}",
        )
        for number in range(messages)
    ]
    assert all(isinstance(result, int) for result in await bus.append_all(appends))
    await bus.append(Append(subject="vitals.local", payload=b"v", expected_sequence=0, event_id="v"))
    await bus.purge(subjects.EVENTS_STREAM, "events.s.stub.j7", before_sequence=10**9)  # a hole in the sequences
    for key, (content, content_type) in OBJECTS.items():
        await store.put(key, content, content_type)


async def made(bus: Bus, store: Store, folder: Path) -> Done:
    return await backup.make(bus, store, folder, now=datetime.now(UTC), version="1", say=lambda _line: None)


async def restored(bus: Bus, store: Store, folder: Path) -> Done:
    return await backup.restore(bus, store, folder, say=lambda _line: None)


async def messages(bus: Bus, stream: str) -> list[Stored]:
    return [stored async for stored in bus.read(stream, (">",))]


async def objects(store: Store) -> dict[str, tuple[bytes, str]]:
    found = {}
    for key in await store.keys(""):
        stat = await store.stat(key)
        assert stat is not None
        found[key] = (await store.get(key), stat.content_type)
    return found


async def test_everything_comes_back_into_empty_servers(
    bus: Bus, store: Store, other_bus: Bus, other_store: Store, tmp_path: Path
) -> None:
    await fill(bus, store)
    done = await made(bus, store, tmp_path / "b")
    assert (done.messages, done.objects, done.copied, done.problems) == (300, len(OBJECTS), len(OBJECTS), ())
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0

    again = await restored(other_bus, other_store, tmp_path / "b")
    assert (again.messages, again.copied) == (300, len(OBJECTS))
    for stream in (subjects.EVENTS_STREAM, subjects.VITALS_STREAM):
        assert await messages(other_bus, stream) == await messages(bus, stream)  # sequences, headers and times too
    assert await objects(other_store) == OBJECTS
    # The scheduler finds streams that it can go on with: guarded by the sequences of before.
    await other_bus.ensure_streams()
    last = await other_bus.last(subjects.EVENTS_STREAM, "events.s.stub.j3")
    assert last is not None
    append = Append(subject="events.s.stub.j3", payload=b"n", expected_sequence=last.sequence, event_id="n")
    assert await other_bus.append(append) > last.sequence


async def test_second_backup_copies_only_what_is_new(bus: Bus, store: Store, tmp_path: Path) -> None:
    await fill(bus, store, messages=3)
    await made(bus, store, tmp_path)
    files = set((tmp_path / backup.CONTENTS).rglob("*"))
    assert (await made(bus, store, tmp_path)).copied == 0
    await store.put("s/report/index.html", b"<p>two</p>", "text/html; charset=utf-8")
    done = await made(bus, store, tmp_path)
    assert (done.copied, done.objects) == (1, len(OBJECTS))
    replaced = tmp_path / backup.CONTENTS / hashlib.sha256(b"<p>one</p>").hexdigest()[:2]
    assert replaced in files
    assert not list(replaced.glob(hashlib.sha256(b"<p>one</p>").hexdigest()))  # nothing refers to it any more


async def test_backup_that_was_broken_off_goes_on(
    bus: Bus, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(bus, store, messages=3)
    download, taken = Store.download, []

    async def fails_later(self: Store, key: str, path: Path) -> None:
        if len(taken) == 2:
            raise Unavailable("the depot went away")
        taken.append(key)
        await download(self, key, path)

    monkeypatch.setattr(Store, "download", fails_later)
    monkeypatch.setattr(backup, "AT_ONCE", 1)
    with pytest.raises(Unavailable):
        await made(bus, store, tmp_path)
    with pytest.raises(BadRequest, match="holds no backup"):
        backup.read_index(tmp_path)
    with (tmp_path / backup.JOURNAL).open("a") as journal:
        journal.write('{"key": "cut o')  # the kill came in the middle of a line
    monkeypatch.setattr(Store, "download", download)
    done = await made(bus, store, tmp_path)
    assert (done.copied, done.objects) == (len(OBJECTS) - 2, len(OBJECTS))
    assert not (tmp_path / backup.JOURNAL).exists()


async def test_object_that_is_not_what_its_name_tells_is_a_problem(bus: Bus, store: Store, tmp_path: Path) -> None:
    await store.put(CLIP_KEY, b"another clip", "video/mp4")
    done = await made(bus, store, tmp_path)
    assert done.problems == (f"{CLIP_KEY}: its content is not the one its name tells",)


async def test_broker_with_events_takes_no_backup(bus: Bus, store: Store, tmp_path: Path) -> None:
    await fill(bus, store, messages=3)
    await made(bus, store, tmp_path)
    with pytest.raises(NotPossibleNow, match="the broker has 3 events"):
        await restored(bus, store, tmp_path)


@pytest.mark.parametrize("victim", ["stream", "object"])
async def test_damaged_backup_brings_back_no_event(
    victim: str, bus: Bus, store: Store, other_bus: Bus, other_store: Store, tmp_path: Path
) -> None:
    await fill(bus, store, messages=3)
    await made(bus, store, tmp_path)
    index = backup.read_index(tmp_path)
    sha256 = index.streams[0].sha256 if victim == "stream" else index.objects[0].sha256
    path = tmp_path / backup.CONTENTS / sha256[:2] / sha256
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(BackupDamaged, match="take another backup"):
        await restored(other_bus, other_store, tmp_path)
    assert await other_bus.stored_messages(subjects.EVENTS_STREAM) == 0


async def test_restore_that_was_broken_off_goes_on(
    bus: Bus, store: Store, other_bus: Bus, other_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(bus, store, messages=3)
    await made(bus, store, tmp_path)
    restore_snapshot = Bus.restore_snapshot

    async def fails_at_events(self: Bus, stream: str, *rest: object) -> None:
        if stream == subjects.EVENTS_STREAM:
            raise Unavailable("the broker went away")
        await restore_snapshot(self, stream, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Bus, "restore_snapshot", fails_at_events)
    with pytest.raises(Unavailable):
        await restored(other_bus, other_store, tmp_path)
    monkeypatch.setattr(Bus, "restore_snapshot", restore_snapshot)
    done = await restored(other_bus, other_store, tmp_path)
    assert done.copied == len(OBJECTS) - 2  # what carries its content in its name is there already
    for stream in (subjects.EVENTS_STREAM, subjects.VITALS_STREAM):
        assert await messages(other_bus, stream) == await messages(bus, stream)
