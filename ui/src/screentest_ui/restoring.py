"""Writes sweeps back into the streams from their archives in the depot.

Events keep their bytes and their order; their sequences are new. A restore may be killed anywhere and repeated: what is
there already is not written again, and until SweepRestored stands behind it nothing of the sweep counts.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from screentest import subjects, wire
from screentest.errors import Conflict, NotFound, NotPossibleNow, ScreentestError, Unavailable
from screentest.kit import clock
from screentest.kit.archive import Archive, Message
from screentest.kit.bus import Append, Bus, Stored, WrongLastSequence
from screentest.kit.config import DepotSettings, ServiceSettings
from screentest.kit.store import Store
from screentest.records import ControlEvent, Drained, RestoreBegun, SweepArchived, SweepEvent, SweepRestored
from screentest_ui import services
from screentest_ui.home import Home
from screentest_ui.ports import LOOPBACK

T = TypeVar("T")

# As many appends to different subjects are on their way at once.
WAVE = 256


class AlreadyThere(Conflict):
    """The broker has this sweep, all that is archived of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the archive of one sweep holds, each message once, in its order."""

    sweep_id: str
    parts: int
    claims: tuple[Message, ...]
    events: tuple[Message, ...]
    control: tuple[Message, ...]
    vitals: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """``events`` and ``vitals``: how many messages the streams have of the sweep now."""

    sweep_id: str
    parts: int
    events: int
    vitals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where to go on: the last sequence by subject, and (subject, event id) of what is written."""

    mark_sequence: int
    last: dict[str, int]
    written: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a restore did. ``errors``: one sentence per sweep that could not be restored."""

    restored: tuple[Restored, ...]
    already_there: tuple[str, ...]
    drained: tuple[ControlEvent, ...]
    errors: tuple[str, ...]


def settings_of(home: Home, environment: Mapping[str, str]) -> tuple[ServiceSettings, DepotSettings]:
    """The caller's own settings, else the scheduler's of the stack in this home. Unavailable when it has none."""
    if environment.get("SCREENTEST_NATS_URL"):
        return ServiceSettings(), DepotSettings()
    running = home.read()
    if running is None:
        raise Unavailable(f"no stack was ever started in {home.path}; run `screentest up` first, then restore into it")
    bus = ServiceSettings(
        nats_url=f"nats://{LOOPBACK}:{running.ports['nats']}",
        nats_user="scheduler",
        nats_password_file=home.secrets.nats_password_file("scheduler"),
    )
    depot = DepotSettings(
        url=f"http://{LOOPBACK}:{running.ports['depot_s3']}",
        bucket=services.BUCKET,
        access_key="screentest-scheduler",
        secret_key_file=home.secrets.depot_secret_key_file("scheduler"),
    )
    return bus, depot


async def restore_into(settings: ServiceSettings, depot: DepotSettings, asked: Sequence[str]) -> Outcome:
    """The sweeps asked for, or with none all that have an archive."""

    async def restore_them(bus: Bus, store: Store) -> Outcome:
        await bus.ensure_streams()
        archive = Archive(store)
        return await restore_all(bus, archive, asked or await archive.sweeps())

    return await connected(settings, depot, restore_them)


async def connected(settings: ServiceSettings, depot: DepotSettings, work: Callable[[Bus, Store], Awaitable[T]]) -> T:
    """``work`` with broker and depot. Unavailable when the broker does not answer within seconds."""
    store = Store(
        url=depot.url,
        bucket=depot.bucket,
        access_key=depot.access_key,
        secret_key=depot.secret_key(),
        region=depot.region,
    )
    bus = await Bus.connect(
        settings.nats_url, name="restore", user=settings.nats_user, password=settings.nats_password(), timeout_s=5
    )
    try:
        return await work(bus, store)
    finally:
        await bus.close()


async def restore_all(bus: Bus, archive: Archive, sweep_ids: Sequence[str]) -> Outcome:
    """One after the other; what goes wrong with one does not keep the others from coming back."""
    restored: list[Restored] = []
    already_there: list[str] = []
    errors: list[str] = []
    control: list[Message] = []
    for sweep_id in sweep_ids:
        try:
            content = await load(archive, sweep_id)
            control += content.control
            restored.append(await restore(bus, content))
        except AlreadyThere as error:
            already_there.append(str(error))
        except Unavailable:
            raise
        except ScreentestError as error:
            errors.append(str(error))
    drained = await restore_control(bus, control)
    return Outcome(restored=tuple(restored), already_there=tuple(already_there), drained=drained, errors=tuple(errors))


async def load(archive: Archive, sweep_id: str) -> Content:
    """Reads and verifies every part. NotFound without an archive, ArchiveDamaged when it is not what was written."""
    manifests = await archive.manifests(sweep_id)
    if not manifests:
        raise NotFound(
            f"the depot has no archive of sweep {sweep_id!r}; `screentest restore --all` takes what is there"
        )
    messages = [message for manifest in manifests for message in await archive.read(manifest)]
    return Content(
        sweep_id=sweep_id,
        parts=len(manifests),
        claims=_of_kind(messages, "requests"),
        events=_of_kind(messages, "events", "sweeps"),
        control=_of_kind(messages, "control"),
        vitals=_of_kind(messages, "vitals"),
    )


async def restore(bus: Bus, content: Content) -> Restored:
    """Writes one sweep back. AlreadyThere when nothing is missing, Conflict when the broker tells another story."""
    place = await _begin(bus, content)
    vitals = await _write_vitals(bus, content, place.mark_sequence)
    for claim in content.claims:
        with contextlib.suppress(WrongLastSequence):  # the claim of a sweep that left the stream stays in it
            await bus.append(_append(claim, claim.subject, 0, place.mark_sequence))
    last = await _write_events(bus, content, place)
    subject = subjects.sweep_events(content.sweep_id)
    await _mark(bus, content, SweepRestored(parts=content.parts), last[subject])
    return Restored(sweep_id=content.sweep_id, parts=content.parts, events=len(content.events), vitals=vitals)


async def restore_control(bus: Bus, messages: Iterable[Message]) -> tuple[ControlEvent, ...]:
    """Writes the devices' events of all restored sweeps, for devices of which the broker knows nothing else.

    Returns the last events of those that are drained now.
    """
    drained = []
    by_subject: dict[str, list[Message]] = {}
    for message in sorted(_once(messages), key=_time):
        by_subject.setdefault(message.subject, []).append(message)
    for subject, archived in by_subject.items():
        there = [stored async for stored in bus.read(subjects.EVENTS_STREAM, [subject])]
        if not {stored.event_id for stored in there} <= {message.event_id for message in archived}:
            continue  # the broker has a later history of this device
        sequence = there[-1].sequence if there else 0
        for message in archived[len(there) :]:
            sequence = await bus.append(_append(message, subject, sequence, 0))
        last = wire.decode(archived[-1].payload, ControlEvent)
        if isinstance(last.body, Drained):
            drained.append(last)
    return tuple(drained)


# ---- where to begin


async def _begin(bus: Bus, content: Content) -> _Place:
    """Marks the sweep as being restored, or finds the mark of a restore that was broken off."""
    sweep_id = content.sweep_id
    filters = [subjects.sweep_events(sweep_id), subjects.sweep_job_events(sweep_id)]
    there = [stored async for stored in bus.read(subjects.EVENTS_STREAM, filters)]
    marks = [stored for stored in there if _mark_of(stored) is not None]
    mark = _mark_of(marks[-1]) if marks else None
    last = {stored.subject: stored.sequence for stored in there}
    if isinstance(mark, RestoreBegun):
        own = [stored for stored in there if stored.sequence > marks[-1].sequence]
        _require_same(content, own)
        written = frozenset((stored.subject, stored.event_id) for stored in own)
        return _Place(mark_sequence=marks[-1].sequence, last=last, written=written)
    _require_absent(content, mark, [stored for stored in there if _mark_of(stored) is None])
    sequence = await _mark(bus, content, RestoreBegun(parts=content.parts), last.get(filters[0], 0))
    return _Place(mark_sequence=sequence, last={filters[0]: sequence}, written=frozenset())


def _require_absent(content: Content, mark: object, own: Sequence[Stored]) -> None:
    if not own:
        return
    sweep_id = content.sweep_id
    if isinstance(mark, SweepArchived):
        raise NotPossibleNow(f"the scheduler is still removing the events of {sweep_id}; try again in a minute")
    there = {(stored.subject, stored.event_id) for stored in own}
    lacking = sum((message.subject, message.event_id) not in there for message in content.events)
    if lacking:
        raise Conflict(
            f"the broker has sweep {sweep_id}, but not {lacking} of the {len(content.events)} events of its archive; "
            "restore it into an empty broker"
        )
    raise AlreadyThere(f"sweep {sweep_id} is in the broker already; `screentest status {sweep_id}` shows it")


def _require_same(content: Content, own: Sequence[Stored]) -> None:
    archived = {(message.subject, message.event_id, message.payload) for message in content.events}
    foreign = [stored for stored in own if (stored.subject, stored.event_id, stored.payload) not in archived]
    if foreign:
        raise Conflict(
            f"behind a restore of {content.sweep_id} that was broken off stands event {foreign[0].sequence} "
            f"({foreign[0].subject}), which its archive does not have; restore it into an empty broker"
        )


def _mark_of(stored: Stored) -> SweepArchived | RestoreBegun | SweepRestored | None:
    if not stored.subject.startswith("sweeps."):
        return None
    body = wire.decode(stored.payload, SweepEvent).body
    return body if isinstance(body, SweepArchived | RestoreBegun | SweepRestored) else None


# ---- writing


async def _mark(bus: Bus, content: Content, body: RestoreBegun | SweepRestored, expected_sequence: int) -> int:
    event = SweepEvent(event_id=clock.new_event_id(), sweep_id=content.sweep_id, stamp=clock.stamp(), body=body)
    return await bus.append(
        Append(
            subject=subjects.sweep_events(content.sweep_id),
            payload=wire.encode(event),
            expected_sequence=expected_sequence,
            event_id=event.event_id,
        )
    )


async def _write_events(bus: Bus, content: Content, place: _Place) -> dict[str, int]:
    """Returns the last sequence of every subject."""
    last = dict(place.last)
    missing = [message for message in content.events if (message.subject, message.event_id) not in place.written]
    for wave in _waves(missing):
        appends = [
            _append(message, message.subject, last.get(message.subject, 0), place.mark_sequence) for message in wave
        ]
        for append, result in zip(appends, await bus.append_all(appends), strict=True):
            if isinstance(result, ScreentestError):
                raise result
            last[append.subject] = result
    return last


async def _write_vitals(bus: Bus, content: Content, mark_sequence: int) -> int:
    """On a subject of the sweep's own: they are older than what stands in the stream. Returns how many are there."""
    count = 0
    for origin in sorted({message.subject for message in content.vitals}):
        subject = f"{origin}.{content.sweep_id}"
        there = [stored async for stored in bus.read(subjects.VITALS_STREAM, [subject])]
        sequence = there[-1].sequence if there else 0
        known = {stored.payload for stored in there}
        archived = [message for message in content.vitals if message.subject == origin]
        for message in archived:
            if message.payload not in known:
                sequence = await bus.append(_append(message, subject, sequence, mark_sequence))
        count += len(archived)
    return count


def _append(message: Message, subject: str, expected_sequence: int, mark_sequence: int) -> Append:
    event_id = message.event_id or hashlib.sha256(subject.encode() + message.payload).hexdigest()[:32]
    append = Append(subject=subject, payload=message.payload, expected_sequence=expected_sequence, event_id=event_id)
    # The broker remembers ids for two minutes: this is no second try of what was there before the sweep left.
    return replace(append, message_id=f"{event_id}-restored-{mark_sequence}")


def _waves(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Runs of messages to different subjects, in order; a sweep's own event stands alone, as its jobs refer to it."""
    wave: dict[str, Message] = {}
    for message in messages:
        stands_alone = message.subject.startswith("sweeps.")
        if wave and (stands_alone or message.subject in wave or len(wave) == WAVE):
            yield list(wave.values())
            wave = {}
        wave[message.subject] = message
        if stands_alone:
            yield list(wave.values())
            wave = {}
    if wave:
        yield list(wave.values())


# ---- telling messages apart


def _of_kind(messages: Iterable[Message], *kinds: str) -> tuple[Message, ...]:
    return tuple(_once(message for message in messages if message.subject.partition(".")[0] in kinds))


def _once(messages: Iterable[Message]) -> list[Message]:
    """Vitals of one sitting may stand in two parts, events of a device in two archives."""
    seen: dict[tuple[str, bytes], Message] = {}
    for message in messages:
        seen.setdefault((message.subject, message.payload), message)
    return list(seen.values())


def _time(message: Message) -> float:
    return message.stored_at.timestamp() if message.stored_at else 0.0
