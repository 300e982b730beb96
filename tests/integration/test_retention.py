"""Clips leave the depot after their time, of archived sweeps only, and the report says so."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from screentest import objects
from screentest.errors import Unavailable
from screentest.kit import clock, expiry
from screentest.kit.store import Store
from screentest.records import Artifact, ArtifactKind, FindingEdited, JobSpec, RetryRequested, SweepEvent
from screentest.wire import decode
from screentest_scheduler import planning
from screentest_scheduler.archiver import Archiver
from screentest_scheduler.retention import NOTE, Retention
from screentest_scheduler.settings import SchedulerSettings
from tests.integration.test_archive import (
    AT_ONCE,
    SWEEP,
    SWEEP_ID,
    House,
    house,
    play_sweep,
    sweep_event,
)

__all__ = ["house"]  # a fixture

CLIP = b"a clip"
LOG_KEY = f"{SWEEP_ID}/logs/wan-1.log"


def clip_putter(house: House) -> Any:
    async def put(job: JobSpec) -> Artifact:
        sha256 = hashlib.sha256(CLIP).hexdigest()
        key = objects.attempt_object(ArtifactKind.CLIP, SWEEP_ID, job.lane_id, job.job_id, 1, sha256)
        await house.store.put(key, CLIP, "video/mp4")
        await house.store.put(LOG_KEY, b"a log", "text/plain")
        return Artifact(kind=ArtifactKind.CLIP, key=key, sha256=sha256, size_bytes=len(CLIP), content_type="video/mp4")

    return put


async def begin(house: House, kept: timedelta | None = AT_ONCE) -> tuple[Archiver, Retention]:
    """A scheduler that has just started."""
    archiver = await house.begin()
    retention = Retention(house.store, house.ledger, house.journal, archiver.is_archived, kept=kept, every_s=1)
    return archiver, retention


async def look(archiver: Archiver, retention: Retention, kept: timedelta = AT_ONCE) -> None:
    await archiver.work()  # writes the part
    await archiver.work()  # and sees that nothing is left to write
    await retention.work(kept)


async def clips(house: House) -> tuple[str, ...]:
    return await house.store.keys(expiry.clips_prefix(SWEEP_ID))


async def notes(house: House) -> list[FindingEdited]:
    told = [decode(s.payload, SweepEvent).body for s in await house.events() if s.subject.startswith("sweeps.")]
    return [body for body in told if isinstance(body, FindingEdited)]


async def test_clips_of_an_archived_sweep_expire_and_nothing_else_does(house: House) -> None:
    await play_sweep(house, clip_of=clip_putter(house))
    archiver, retention = await begin(house)
    [key] = await clips(house)
    await look(archiver, retention)
    assert await clips(house) == ()
    assert await house.store.get(LOG_KEY) == b"a log"
    assert len(await house.archive.manifests(SWEEP_ID)) == 1
    remembered = await expiry.read(house.store, SWEEP_ID)
    assert remembered is not None
    assert (remembered.keys, remembered.is_told) == ((key,), True)
    [note] = await notes(house)
    assert (note.row, note.by) == (NOTE, "retention")
    assert note.text.startswith("1 clip of this sweep has expired")
    await look(archiver, retention)
    await look(*await begin(house))
    assert len(await notes(house)) == 1  # told once, also by the next scheduler
    assert len(await house.archive.manifests(SWEEP_ID)) == 2  # and archived too


async def test_clip_of_a_sweep_that_is_not_archived_never_expires(house: House) -> None:
    await play_sweep(house, clip_of=clip_putter(house))
    _, retention = await begin(house)
    await retention.work(AT_ONCE)
    assert len(await clips(house)) == 1
    archiver, retention = await begin(house)
    await archiver.work()
    await archiver.work()
    again = planning.retry(planning.jobs(SWEEP)[1], 1)
    await house.writer.write(sweep_event(RetryRequested(spec=again, by="ada"), 5000, "retry"))
    archiver, retention = await begin(house)  # it has read the retry, which is not over
    await look(archiver, retention)
    assert len(await clips(house)) == 1


async def test_clip_stays_until_its_time(house: House) -> None:
    await play_sweep(house, clip_of=clip_putter(house))
    archiver, retention = await begin(house)
    since = clock.stamp().at - house.ledger.sweep(SWEEP_ID).changed_at
    await look(archiver, retention, kept=since + timedelta(hours=1))
    assert len(await clips(house)) == 1
    await look(archiver, retention, kept=since)
    assert await clips(house) == ()


async def test_without_the_setting_nothing_expires(house: House) -> None:
    await play_sweep(house, clip_of=clip_putter(house))
    archiver, retention = await begin(house, kept=None)
    await archiver.work()
    await archiver.work()
    await retention.run()  # ends at once
    assert len(await clips(house)) == 1


@pytest.mark.parametrize("call", ["remove", "put"])
async def test_expiry_that_was_broken_off_is_finished_and_told(
    call: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off at the removal, or behind the event before that was written down."""
    await play_sweep(house, clip_of=clip_putter(house))
    [key] = await clips(house)
    real, calls = getattr(Store, call), []

    async def fails(self: Store, *rest: Any) -> None:
        calls.append(rest)
        if len(calls) == {"remove": 1, "put": 2}[call]:
            raise Unavailable("the depot went away")
        await real(self, *rest)

    archiver, retention = await begin(house)
    await archiver.work()
    await archiver.work()
    monkeypatch.setattr(Store, call, fails)
    await retention.work(AT_ONCE)
    monkeypatch.setattr(Store, call, real)
    remembered = await expiry.read(house.store, SWEEP_ID)
    assert remembered is not None
    assert (remembered.keys, remembered.is_told) == ((key,), False)
    await look(*await begin(house))
    assert await clips(house) == ()
    assert {note.row for note in await notes(house)} == {NOTE}
    remembered = await expiry.read(house.store, SWEEP_ID)
    assert remembered is not None
    assert remembered.is_told


def test_settings_that_would_lose_something_are_refused() -> None:
    with pytest.raises(ValidationError, match="SCREENTEST_ARCHIVE_KEPT_S"):
        SchedulerSettings(archive_kept_s=10, clips_kept_s=11)
    with pytest.raises(ValidationError, match="SCREENTEST_ARCHIVE_AFTER_S"):
        SchedulerSettings(archive_after_s=60, vitals_kept_s=60)
    assert SchedulerSettings().clips_kept_s is None
