"""A sweep's history in the depot: complete, verified before anything leaves EVENTS, and the same after a restore."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from screentest import objects, subjects, table, wire
from screentest.client import Client
from screentest.errors import AlreadyExists, BadRequest, Conflict, NotPossibleNow
from screentest.kit import archive as archive_module
from screentest.kit.archive import Archive, ArchiveDamaged, Message
from screentest.kit.bus import Append, Bus, Stored
from screentest.kit.store import Store
from screentest.lanes import Lane
from screentest.records import (
    ArtifactKind,
    ControlEvent,
    DeviceProof,
    Drained,
    FailureClass,
    FindingEdited,
    Job,
    JobEvent,
    Judged,
    JudgePurpose,
    Outcome,
    RequestClaim,
    RetryRequested,
    SweepEvent,
    Task,
    Undrained,
)
from screentest_scheduler import planning
from screentest_scheduler.archiver import Archiver
from screentest_scheduler.journal import Journal, claim_subject
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.lessons import Lessons
from screentest_ui import ports, restoring, servers
from screentest_ui.home import Home, client_environment
from screentest_ui.restoring import AlreadyThere, restore_all
from tests.conftest import Depot, RunningServer
from tests.integration.test_reporter_service import Reporter, Writer, is_final, upload_clip, wait_report
from tests.integration.test_scheduler import spec
from tests.integration.test_stack import SCREENTEST, environment, wait_for
from tests.made_judgings import ref
from tests.made_sweeps import History, plan, record, settled, stamp, submitted
from tests.unit.test_lessons import ASKED, CATALOGUE, PLACE
from tests.unit.test_lessons import clip_of as made_by
from tests.unit.test_reporter_vitals import batch, gpu_sample

WAN = replace(plan("wan2-1-t2v-1-3b", "Wan 2.1 T2V 1.3B"), device="gpu-0")
MOCHI = replace(plan("mochi-1-preview", "Mochi 1 Preview"), device="gpu-0")
SWEEP = record([WAN, MOCHI])
SWEEP_ID = SWEEP.sweep_id
FOR_EVER = timedelta(days=36500)
AT_ONCE = timedelta(0)
NOT_PROVEN = DeviceProof(host="local", device="gpu-0", proof=None)


class Killed(BaseException):
    """The process is gone: nothing below may catch it."""


@dataclass
class Kill:
    """Lets so many calls through, then kills: before the call or, as if the answer was lost, behind it."""

    after_calls: int
    behind: bool = False
    calls: int = 0

    def around(self, target: Any, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(target, name, self._counted(getattr(target, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        async def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls <= self.after_calls:
                return await call(*args, **kwargs)
            if self.behind:
                await call(*args, **kwargs)
            raise Killed

        return counted


@dataclass
class House:
    """What stands in the depot and the broker, with a scheduler's archiver that may begin anew at any time."""

    bus: Bus
    store: Store
    writer: Writer
    kill: Kill | None = None
    catalogue: Mapping[str, Lane] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def archive(self) -> Archive:
        return Archive(self.store)

    async def begin(
        self,
        *,
        kept: timedelta = FOR_EVER,
        bus: Bus | None = None,
        store: Store | None = None,
        has_worker: bool = False,
    ) -> Archiver:
        """A new process: all it knows it reads. ``has_worker``: whether every queued job has one."""
        bus, store = bus or self.bus, store or self.store
        self.ledger = Ledger(Lessons(self.catalogue))
        self.journal = Journal(bus, self.ledger)
        await self.journal.replay()
        return Archiver(
            bus,
            self.ledger,
            self.journal,
            Archive(store),
            after=AT_ONCE,
            kept=kept,
            every_s=1,
            has_worker=lambda _spec: has_worker,
        )

    async def events(self) -> list[Stored]:
        """Of the sweep and its jobs, without what tells of the archive itself."""
        filters = [subjects.sweep_events(SWEEP_ID), subjects.sweep_job_events(SWEEP_ID)]
        there = [stored async for stored in self.bus.read(subjects.EVENTS_STREAM, filters)]
        return [stored for stored in there if restoring._mark_of(stored) is None]

    async def said(self) -> list[tuple[str, str, bytes]]:
        return [(stored.subject, stored.event_id, stored.payload) for stored in await self.events()]


@pytest.fixture
def house(bus: Bus, store: Store) -> House:
    return House(bus=bus, store=store, writer=Writer(bus))


async def play_sweep(house: House, *, clip_of: Callable[..., Any] | None = None) -> list[Any]:
    """One completed row and one failed one, their vitals, a drain in between, settled."""
    before = (await house.bus.stream_state(subjects.VITALS_STREAM)).last_sequence
    for second in range(70):
        sample = gpu_sample(second, utilisation_percent=96.0, power_w=93.0 + second, energy_mj=90_000 * second)
        await house.bus.publish(subjects.vitals("local"), wire.encode(batch(second, sample)))
    # Nobody acknowledges them, and each is synced: on a busy disk the events below would overtake them.
    while (await house.bus.stream_state(subjects.VITALS_STREAM)).last_sequence < before + 70:
        await asyncio.sleep(0.01)
    claim = RequestClaim(request_id=SWEEP.request_id, content_sha256=SWEEP.content_sha256, sweep_id=SWEEP_ID)
    await house.bus.append(
        Append(
            subject=claim_subject(SWEEP.request_id), payload=wire.encode(claim), expected_sequence=0, event_id="claim"
        )
    )
    wan, mochi = planning.jobs(SWEEP)
    clip = {"clip": await clip_of(wan)} if clip_of else {}
    histories = [
        History(wan, second=2).complete(10, **clip),
        History(mochi, second=20).fail(FailureClass.OOM_LOAD, "CUDA out of memory", "take a lower rung", 20.73),
    ]
    await house.writer.write(submitted(SWEEP))
    await house.writer.write(*histories[0].events)
    await drain(house.bus)
    await house.writer.write(*histories[1].events)
    jobs = [history.job for history in histories]
    await house.writer.write(settled(SWEEP, jobs, [NOT_PROVEN], 60))
    return jobs


async def drain(bus: Bus) -> None:
    sequence = 0
    for body in (Drained(reason="a stray process", proof=None), Undrained(by="ada")):
        event = ControlEvent(
            event_id=f"control-{type(body).__name__}", host="local", device="gpu-0", stamp=stamp(15), body=body
        )
        subject = subjects.control("local", "gpu-0")
        sequence = await bus.append(
            Append(subject=subject, payload=wire.encode(event), expected_sequence=sequence, event_id=event.event_id)
        )


def sweep_event(body: object, second: float, event_id: str) -> SweepEvent:
    return SweepEvent(event_id=event_id, sweep_id=SWEEP_ID, stamp=stamp(second), body=body)  # type: ignore[arg-type]


async def archived(house: House) -> list[Message]:
    return [
        message
        for manifest in await house.archive.manifests(SWEEP_ID)
        for message in await house.archive.read(manifest)
    ]


# ---- writing


async def test_settled_sweep_is_archived_whole(house: House) -> None:
    await play_sweep(house)
    await (await house.begin()).work()
    (manifest,) = await house.archive.manifests(SWEEP_ID)
    messages = await archived(house)
    told = {message.subject.partition(".")[0] for message in messages}
    assert told == {"requests", "sweeps", "events", "control", "vitals"}
    own = [(m.subject, m.event_id, m.payload) for m in messages if m.subject.startswith(("sweeps.", "events."))]
    assert own == await house.said()
    seconds = [wire.decode(m.payload, type(batch(0))).stamp.boottime_ns for m in messages if m.stream == "VITALS"]
    # From 10 s before the first start to 10 s behind the last end, as far as there is something.
    assert (min(seconds), max(seconds)) == (1000_000_000_000, 1050_000_000_000)
    epoch = (await house.bus.stream_state(subjects.EVENTS_STREAM)).epoch
    assert (manifest.stream, manifest.epoch, manifest.messages) == ("EVENTS", epoch, len(messages))


async def test_running_and_unsettled_sweeps_are_left_alone(house: House) -> None:
    wan, mochi = planning.jobs(SWEEP)
    await house.writer.write(submitted(SWEEP), *History(wan).complete().events, *History(mochi).start().events)
    await (await house.begin(kept=AT_ONCE)).work()
    assert await house.archive.sweeps() == ()
    assert len(await house.events()) > 0


async def test_second_look_writes_nothing_and_a_restart_neither(house: House) -> None:
    await play_sweep(house)
    archiver = await house.begin()
    await archiver.work()
    before = await house.store.keys(objects.ARCHIVES)
    await archiver.work()
    await (await house.begin()).work()
    assert await house.store.keys(objects.ARCHIVES) == before
    assert len(before) == 2


async def test_later_finding_and_retry_make_new_parts(house: House) -> None:
    jobs = await play_sweep(house)
    await (await house.begin()).work()
    await house.writer.write(sweep_event(FindingEdited(row="r", text="It blinks.", by="ada"), 100, "finding"))
    await (await house.begin()).work()
    again = planning.retry(planning.jobs(SWEEP)[1], 1)
    await house.writer.write(sweep_event(RetryRequested(spec=again, by="ada"), 5000, "retry"))
    await (await house.begin()).work()
    assert len(await house.archive.manifests(SWEEP_ID)) == 2  # the retry is not over
    history = History(again, second=5001).complete(10)
    await house.bus.publish(subjects.vitals("local"), wire.encode(batch(5003, gpu_sample(5003, power_w=1.0))))
    await house.writer.write(*history.events)
    await house.writer.write(replace(settled(SWEEP, [*jobs, history.job], [NOT_PROVEN], 5020), event_id="settled-2"))
    await (await house.begin()).work()
    _, second, third = await house.archive.manifests(SWEEP_ID)
    assert (second.events, second.vitals) == (1, 0)
    assert (third.events, third.vitals) == (len(history.events) + 2, 1)
    own = [(m.subject, m.event_id, m.payload) for m in await archived(house) if m.subject.startswith(("sw", "ev"))]
    assert own == await house.said()


async def test_archive_waits_for_judges_that_are_there_and_later_judgements_are_a_part_of_their_own(
    house: House,
) -> None:
    await play_sweep(house)
    made = planning.jobs(SWEEP)[0]
    judged = Judged(
        purpose=JudgePurpose.CLIP, job_id=made.job_id, lane_id="wan", key="k", sha256="c", size_bytes=1, rubric=ref("a")
    )
    judging = replace(made, job_id="judge-clip-1", lane_id="pixels", task=Task.JUDGE, rungs=("",), judged=judged)
    history = History(judging, second=70)
    await house.writer.write(*history.events)
    await (await house.begin(kept=AT_ONCE, has_worker=True)).work()
    assert await house.archive.manifests(SWEEP_ID) == ()
    archiver = await house.begin()
    await archiver.work()
    await archiver.work()  # it rests from now on
    assert len(await house.archive.manifests(SWEEP_ID)) == 1  # nobody is there who could judge it
    written = len(history.events)
    history.start().wait(2).end(Outcome(failure_class=FailureClass.NAN, cause="c")).give_up(FailureClass.NAN)
    await house.writer.write(*history.events[written:])
    for stored in await house.events():
        house.journal.take(stored)
    await archiver.work()
    _, second = await house.archive.manifests(SWEEP_ID)
    assert second.events == len(history.events) - written
    own = [(m.subject, m.event_id, m.payload) for m in await archived(house) if m.subject.startswith(("sw", "ev"))]
    assert own == await house.said()
    await (await house.begin(kept=AT_ONCE)).work()
    assert (await house.events(), SWEEP_ID in house.ledger.archived, house.ledger.jobs) == ([], True, {})


async def test_two_archivers_tell_one_story(house: House) -> None:
    await play_sweep(house)
    one, two = await house.begin(), await house.begin()
    await asyncio.gather(one.work(), two.work())
    await asyncio.gather(one.work(), two.work())
    assert len(await house.archive.manifests(SWEEP_ID)) == 1
    assert len(await house.store.keys(objects.ARCHIVES)) == 2


async def test_first_part_of_a_number_stands(house: House) -> None:
    """Two archivers that read at different moments have different parts: the second one's never counts."""
    await play_sweep(house)
    messages = [
        Message(stream="EVENTS", subject="sweeps.s", sequence=n, stored_at=None, headers={}, payload=b"x")
        for n in (1, 2)
    ]
    first = await house.archive.write("s", (), "epoch", messages[:1], [])
    assert first is not None
    assert await house.archive.write("s", (), "epoch", messages, []) is None
    assert await house.archive.manifests("s") == (first,)
    assert await house.archive.read(first) == messages[:1]


# ---- leaving the stream


async def test_sweep_leaves_the_stream_after_its_time_and_stays_in_the_list(house: House) -> None:
    await play_sweep(house)
    counts = (await house.begin()).work
    await counts()
    assert len(await house.events()) == 12
    archiver = await house.begin(kept=AT_ONCE)
    await archiver.work()
    assert await house.events() == []
    await house.begin()  # from the stream alone
    body = house.ledger.archived[SWEEP_ID].body
    assert (body.record, body.counts.completed, body.counts.failed, body.parts) == (SWEEP, 1, 1, 1)
    assert house.ledger.jobs == {}
    with pytest.raises(NotPossibleNow, match="screentest restore"):
        house.ledger.sweep(SWEEP_ID)


async def test_what_a_sweep_has_taught_outlives_its_events_and_is_counted_once(house: House) -> None:
    """Rates, the rung that won, and what judging took: after a restart, and after a restore and another restart."""
    [lane] = planning.plan(ASKED, CATALOGUE, dict.fromkeys(CATALOGUE, PLACE)).lanes
    sweep = replace(record([lane], weights=ASKED.weights), spec=ASKED)
    first, second = planning.jobs(sweep)
    made = [History(first).start(rung=1), History(second, second=20).start(rung=1)]
    await house.writer.write(submitted(sweep))
    for history, step_s in zip(made, (0.5, 0.75), strict=True):
        await house.writer.write(*history.wait(5).end(made_by(history.spec, step_s=step_s)).succeed().events)
    await house.writer.write(settled(sweep, [history.job for history in made], [NOT_PROVEN], 60))
    house.catalogue = CATALOGUE
    archiver = await house.begin(kept=AT_ONCE)
    known = knowledge(house.ledger)
    assert ([lesson.clips for lesson in known[0]], [won.rung for won in known[1]]) == ([2], [1])
    await archiver.work()
    await archiver.work()
    assert (await house.said(), knowledge(house.ledger)) == ([], known)
    await house.begin()
    assert (house.ledger.sweeps, knowledge(house.ledger)) == ({}, known)
    await restoring.restore(house.bus, await restoring.load(house.archive, SWEEP_ID))
    await house.begin()
    assert (list(house.ledger.sweeps), knowledge(house.ledger)) == ([SWEEP_ID], known)


def knowledge(ledger: Ledger) -> tuple[Any, ...]:
    return ledger.lessons.told(), ledger.lessons.winning_rungs.told(), ledger.judge_times.told()


async def test_damaged_part_keeps_the_sweep_in_the_stream_and_says_so(house: House) -> None:
    await play_sweep(house)
    await (await house.begin()).work()
    (manifest,) = await house.archive.manifests(SWEEP_ID)
    data = bytearray(await house.store.get(manifest.key))
    data[len(data) // 2] ^= 1
    await house.store.put(manifest.key, bytes(data), "application/gzip")
    with capture_logs() as logs:
        await (await house.begin(kept=AT_ONCE)).work()
    assert len(await house.events()) == 12
    (told,) = [line for line in logs if line["event"] == "archive_damaged"]
    assert told["log_level"] == "error"
    assert manifest.key in told["error"]
    outcome = await restore_all(house.bus, house.archive, [SWEEP_ID])
    assert manifest.key in outcome.errors[0]


async def test_missing_part_and_shorter_part_keep_the_sweep_in_the_stream(house: House) -> None:
    await play_sweep(house)
    await (await house.begin()).work()
    (manifest,) = await house.archive.manifests(SWEEP_ID)
    messages = (await archived(house))[:-1]
    data = archive_module.pack(messages)
    lying = replace(manifest, sha256=archive_module.hashlib.sha256(data).hexdigest())
    await house.store.put(manifest.key, data, "application/gzip")
    await house.store.put(objects.archive_manifest(SWEEP_ID, 1), lying.to_bytes(), "application/json")
    await (await house.begin(kept=AT_ONCE)).work()
    with pytest.raises(ArchiveDamaged, match="holds"):
        await house.archive.read(lying)
    assert len(await house.events()) == 12


async def test_event_that_no_part_has_keeps_the_sweep_in_the_stream(house: House) -> None:
    """Not even a manifest that claims to reach further lets an event go that is in no part."""
    await play_sweep(house)
    await (await house.begin()).work()
    (manifest,) = await house.archive.manifests(SWEEP_ID)
    boasting = replace(manifest, last_sequence=manifest.last_sequence + 100)
    await house.store.put(objects.archive_manifest(SWEEP_ID, 1), boasting.to_bytes(), "application/json")
    await house.writer.write(sweep_event(FindingEdited(row="r", text="It blinks.", by="ada"), 100, "finding"))
    await (await house.begin(kept=AT_ONCE)).work()
    assert len(await house.events()) == 13


async def test_late_retry_and_farewell_exclude_each_other(house: House) -> None:
    """Another process asks for a retry between the check and the farewell: the guard keeps the sweep."""
    await play_sweep(house)
    await (await house.begin()).work()
    archiver = await house.begin(kept=AT_ONCE)
    again = planning.retry(planning.jobs(SWEEP)[1], 1)
    append = house.journal.append_sweep

    async def retry_first(sweep: Any, body: object) -> None:
        await house.writer.write(sweep_event(RetryRequested(spec=again, by="ada"), 100, "retry"))
        await append(sweep, body)

    house.journal.append_sweep = retry_first  # type: ignore[method-assign]
    await archiver.work()
    assert len(await house.events()) == 13
    await house.begin()
    assert house.ledger.archived == {}


@pytest.mark.parametrize("behind", [False, True])
async def test_archiver_killed_anywhere_ends_the_same(
    house: House, nats_server: RunningServer, depot: Depot, behind: bool
) -> None:
    """One kill per call of the depot and the broker that writes, before it or behind it; then a new process."""
    await play_sweep(house)
    story = await house.said()
    for after_calls in range(20):
        kill = Kill(after_calls=after_calls, behind=behind)
        bus, store = await Bus.connect(nats_server.url, name="doomed"), depot.store()
        kill.around(store, ("put_new", "get", "keys"))
        kill.around(bus, ("append", "purge", "last"))
        doomed = await house.begin(kept=AT_ONCE, bus=bus, store=store)
        try:
            await doomed.work()
            await doomed.work()
            survived = True
        except Killed:
            survived = False
        await bus.close()
        whole = await house.said() == story
        if not whole:  # something has left: then all of it is in the archive, verified
            own = [(m.subject, m.event_id, m.payload) for m in await archived(house)]
            assert set(story) <= set(own)
            assert len(await house.archive.manifests(SWEEP_ID)) == 1
        archiver = await house.begin(kept=AT_ONCE)
        await archiver.work()
        await archiver.work()
        assert await house.said() == []
        assert len(await house.archive.manifests(SWEEP_ID)) == 1
        if survived:
            break
        # The next round begins where the first one did.
        await restoring.restore(house.bus, await restoring.load(house.archive, SWEEP_ID))
        assert await house.said() == story
        if after_calls < 8:
            for key in await house.store.keys(objects.sweep_archive(SWEEP_ID)):
                await asyncio.to_thread(house.store._inner.remove_object, house.store.bucket, key)
    assert survived
    assert after_calls > 5


# ---- restoring


@pytest.fixture
async def fresh(tmp_path: Path) -> AsyncIterator[Bus]:
    """A broker that knows nothing."""
    server = RunningServer(servers.configure_nats(tmp_path / "fresh-nats", ports.choose(1)[0]))
    server.start()
    bus = await Bus.connect(server.url, name="fresh")
    await bus.ensure_streams()
    yield bus
    await bus.close()
    server.stop()


async def everything(bus: Bus) -> list[tuple[str, str, bytes]]:
    """All of EVENTS without what tells of archive and restore."""
    there = [stored async for stored in bus.read(subjects.EVENTS_STREAM, subjects.EVENTS_SUBJECTS)]
    return [(s.subject, s.event_id, s.payload) for s in there if restoring._mark_of(s) is None]


async def listed(bus: Bus) -> tuple[Any, ...]:
    """What a scheduler makes of the stream: its sweeps, every job and the devices, without sequences."""
    ledger = Ledger()
    journal = Journal(bus, ledger)
    await journal.replay()
    jobs = [await journal.views(ledger.sweep_jobs(sweep_id)) for sweep_id in ledger.sweeps]
    devices = {place: device.drained_reason for place, device in ledger.devices.items()}
    counts = {sweep_id: ledger.counts(sweep_id) for sweep_id in ledger.sweeps}
    return [(state.record, state.settled, state.priority) for state in ledger.sweeps.values()], jobs, devices, counts


async def test_restored_stream_tells_the_same_story(house: House, fresh: Bus) -> None:
    await play_sweep(house)
    await (await house.begin()).work()
    outcome = await restore_all(fresh, house.archive, await house.archive.sweeps())
    assert ([done.sweep_id for done in outcome.restored], outcome.errors, outcome.drained) == ([SWEEP_ID], (), ())
    assert sorted(await everything(fresh)) == sorted(await everything(house.bus))
    assert await House(bus=fresh, store=house.store, writer=house.writer).said() == await house.said()
    assert await listed(fresh) == await listed(house.bus)
    again = await restore_all(fresh, house.archive, [SWEEP_ID])
    assert "in the broker already" in again.already_there[0]


async def test_restored_sweep_is_archived_no_second_time_but_what_follows_is(house: House, fresh: Bus) -> None:
    await play_sweep(house)
    await (await house.begin()).work()
    await restore_all(fresh, house.archive, [SWEEP_ID])
    there = House(bus=fresh, store=house.store, writer=Writer(fresh))
    await (await there.begin()).work()
    assert len(await house.archive.manifests(SWEEP_ID)) == 1
    last = await fresh.last(subjects.EVENTS_STREAM, subjects.sweep_events(SWEEP_ID))
    assert last is not None
    finding = sweep_event(FindingEdited(row="r", text="It blinks.", by="ada"), 100, "finding")
    append = Append(
        subject=last.subject, payload=wire.encode(finding), expected_sequence=last.sequence, event_id="finding"
    )
    await fresh.append(append)
    archiver = await there.begin(kept=AT_ONCE)
    await archiver.work()
    # The finding, and the device's two events, which a restore writes behind the sweeps.
    assert [manifest.events for manifest in await house.archive.manifests(SWEEP_ID)] == [15, 3]
    await archiver.work()
    assert await there.said() == []
    assert (await restoring.restore(fresh, await restoring.load(house.archive, SWEEP_ID))).events == 13
    assert len(await there.said()) == 13


@pytest.mark.parametrize("behind", [False, True])
async def test_restore_killed_anywhere_goes_on_where_it_was(house: House, fresh: Bus, behind: bool) -> None:
    """Half a sweep never counts: a scheduler that starts in between takes no job of it for a queued one."""
    await play_sweep(house)
    await (await house.begin()).work()
    content = await restoring.load(house.archive, SWEEP_ID)
    content = replace(content, vitals=content.vitals[:2])
    story = await house.said()
    append = type(fresh).append
    filters = [subjects.sweep_events(SWEEP_ID), subjects.sweep_job_events(SWEEP_ID)]
    for after_calls in range(30):
        kill = Kill(after_calls=after_calls, behind=behind)
        kill.around(fresh, ("append",))
        try:
            await restoring.restore(fresh, content)
            survived = True
        except Killed:
            survived = False
        fresh.append = functools.partial(append, fresh)  # type: ignore[method-assign]
        is_whole = survived or (behind and await _is_restored(fresh))
        sweeps, jobs, _, _ = await listed(fresh)
        assert bool(sweeps) == bool(jobs) == is_whole
        with contextlib.suppress(AlreadyThere):
            await restoring.restore(fresh, content)
        there = House(bus=fresh, store=house.store, writer=house.writer)
        assert await there.said() == story
        vitals = [s.payload async for s in fresh.read(subjects.VITALS_STREAM, [f"vitals.local.{SWEEP_ID}"])]
        assert vitals == [message.payload for message in content.vitals]
        if survived:
            break
        for subject in (*filters, claim_subject(SWEEP.request_id)):
            await fresh.purge(subjects.EVENTS_STREAM, subject, before_sequence=10_000)
        await fresh.purge(subjects.VITALS_STREAM, "vitals.>", before_sequence=10_000)
    assert survived
    assert after_calls > 12


async def _is_restored(bus: Bus) -> bool:
    last = await bus.last(subjects.EVENTS_STREAM, subjects.sweep_events(SWEEP_ID))
    return last is not None and type(restoring._mark_of(last)).__name__ == "SweepRestored"


async def test_restore_refuses_a_broker_that_tells_another_story(house: House, fresh: Bus) -> None:
    await play_sweep(house)
    await (await house.begin()).work()
    content = await restoring.load(house.archive, SWEEP_ID)
    first = content.events[0]
    await fresh.append(
        Append(subject=first.subject, payload=first.payload, expected_sequence=0, event_id=first.event_id)
    )
    with pytest.raises(Conflict, match="not 11 of the 12 events"):
        await restoring.restore(fresh, content)


async def test_restore_waits_until_the_purge_is_done(house: House) -> None:
    """Else the rest of the purge would take restored events along."""
    await play_sweep(house)
    await (await house.begin()).work()
    archiver = await house.begin(kept=AT_ONCE)
    Kill(after_calls=0).around(house.bus, ("purge",))
    with pytest.raises(Killed):
        await archiver.work()
    with pytest.raises(NotPossibleNow, match="still removing"):
        await restoring.restore(house.bus, await restoring.load(house.archive, SWEEP_ID))


async def test_device_stays_drained_after_a_restore_and_a_later_history_is_left_alone(house: House, fresh: Bus) -> None:
    event = ControlEvent(
        event_id="drain-1", host="local", device="gpu-0", stamp=stamp(5), body=Drained(reason="a stray", proof=None)
    )
    drained = Message(
        stream="EVENTS",
        subject=subjects.control("local", "gpu-0"),
        sequence=7,
        stored_at=None,
        headers={"Screentest-Event-Id": "drain-1"},
        payload=wire.encode(event),
    )
    assert await restoring.restore_control(fresh, [drained, drained]) == (event,)
    assert len(await everything(fresh)) == 1
    await drain(house.bus)
    assert await restoring.restore_control(house.bus, [drained]) == ()
    assert len(await everything(house.bus)) == 2


async def test_report_of_a_restored_sweep_says_the_same(
    house: House, fresh: Bus, nats_server: RunningServer, depot: Depot, tmp_path: Path
) -> None:
    store = house.store
    await play_sweep(house, clip_of=lambda spec: upload_clip(store, spec, tmp_path))
    reporter = Reporter(nats_server.url, depot, tmp_path)
    try:
        before = await wait_report(store, is_final)
        await (await house.begin(kept=AT_ONCE)).work()
        archiver = await house.begin(kept=AT_ONCE)
        await archiver.work()
        assert await house.said() == []
        # Another machine's telemetry runs where the sweep comes back to.
        other = batch(9000, gpu_sample(9000, power_w=5.0), driver_version="999")
        await house.bus.publish(subjects.vitals("local"), wire.encode(other))
        await house.bus.purge(subjects.VITALS_STREAM, subjects.vitals("local"), before_sequence=71)
        await restore_all(house.bus, house.archive, [SWEEP_ID])
        after = await wait_report(store, lambda found: is_final(found) and found["revision"] > before["revision"])
    finally:
        reporter.stop()
    assert before["vitals"]["samples"] == 39
    assert told(after) == told(before)


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What the report says, without which revision it is; its pages carry that too."""
    files = [entry["name"] for entry in report["files"]]
    pictures = [entry for entry in report["files"] if "/" in entry["name"]]
    return {**report, "revision": 0, "published_at": "", "cursor": {}, "files": [files, pictures]}


# ---- the whole stack


@dataclass
class Person:
    """A stack with a stub lane, and the command of the person before it."""

    home: Home
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.folder,
            env={**environment(self.home), **self.settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self, **settings: str) -> None:
        self.settings = {"SCREENTEST_ARCHIVE_AFTER_S": "1", "SCREENTEST_ARCHIVE_EVERY_S": "0.5", **settings}
        self.ok("up", "--lanes", "stub", "--no-panel")

    def client(self) -> Client:
        settings = client_environment(self.home, {})
        token = Path(settings["SCREENTEST_GRPC_TOKEN_FILE"]).read_text()
        return Client.connect(settings["SCREENTEST_GRPC_ADDRESS"], token=token)

    def report(self, sweep_id: str) -> dict[str, Any]:
        self.ok("report", sweep_id)
        return json.loads((self.folder / "out" / sweep_id / "report.json").read_text())

    def log(self) -> str:
        return self.home.log_file("scheduler").read_text()


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    person = Person(home=Home(tmp_path / "home"), folder=tmp_path)
    yield person
    person.run("down")


@pytest.mark.timeout(240)
def test_broker_is_lost_and_everything_comes_back(person: Person) -> None:
    person.up()
    with person.client() as client:
        sweep_id = client.submit_sweep(spec(seeds=(1, 2)), request_id="r-1").sweep.record.sweep_id
        wait_for(lambda: client.get_sweep(sweep_id).settled is not None)
        [old_cursor] = [m.cursor for m in islice(client.watch(sweep_id), 5)][-1:]
        jobs = client.list_jobs(sweep_id)
        [sweep] = client.list_sweeps()
    wait_for(lambda: "sweep_archive_written" in person.log())
    wait_for(lambda: person.report(sweep_id)["final"])
    report = person.report(sweep_id)
    assert report["vitals"]["samples"] > 0
    person.ok("down")
    shutil.rmtree(person.home.path / "nats" / "jetstream")
    person.up()
    with person.client() as client:
        assert client.list_sweeps() == ()
        assert f"{sweep_id}: " in person.ok("restore", "--all")
        wait_for(lambda: [replace(found, cursor="") for found in client.list_sweeps()] == [replace(sweep, cursor="")])
        assert client.list_jobs(sweep_id) == jobs
        assert table.rows(client.list_jobs(sweep_id)) == table.rows(jobs)
        with pytest.raises(BadRequest, match="another event stream"):
            next(client.watch(sweep_id, old_cursor))
        wait_for(lambda: person.report(sweep_id)["cursor"]["epoch"] != report["cursor"]["epoch"])
        assert told(person.report(sweep_id)) == told(report)
        wait_for(lambda: len(client.list_vitals(last_s=5)) > 0)  # the restored ones do not stand before the live ones
        # Nothing of it runs again, and the same request still means the same sweep.
        assert client.submit_sweep(spec(seeds=(1, 2)), request_id="r-1").sweep.record.sweep_id == sweep_id
        assert client.list_jobs(sweep_id) == jobs
    leave_and_come_back(person, sweep_id, jobs)


def leave_and_come_back(person: Person, sweep_id: str, jobs: tuple[Job, ...]) -> None:
    with person.client() as client:
        watched = client.get_sweep(sweep_id).cursor
    person.ok("down")
    person.up(SCREENTEST_ARCHIVE_KEPT_S="0")
    with person.client() as client:
        wait_for(lambda: [found.archived for found in client.list_sweeps()] == [True])
        with pytest.raises(NotPossibleNow, match=f"screentest restore {sweep_id}"):
            client.list_jobs(sweep_id)
        with pytest.raises(NotPossibleNow, match=f"screentest restore {sweep_id}"):
            client.judge_sweep(sweep_id, judge_lane_ids=("pixels",), rubrics=(), estimate_only=True)
        with pytest.raises(AlreadyExists, match="in the archive only"):
            client.submit_sweep(spec(seeds=(1, 2)), request_id="r-1")
        # Its report needs no event: it stays where it is.
        assert client.get_artifact(kind=ArtifactKind.REPORT, sweep_id=sweep_id).artifact.size_bytes > 0
    line = next(line for line in person.ok("status").splitlines() if line.startswith(sweep_id))
    assert line.split()[-1] == "archived"
    assert "A test" in line
    person.ok("down")
    person.up()
    assert "events and" in person.ok("restore", sweep_id)
    with person.client() as client:
        wait_for(lambda: not client.get_sweep(sweep_id).archived)
        assert client.list_jobs(sweep_id) == jobs
        # The stream is the same and the events stand elsewhere in it: whoever watched before sees all of them again.
        events = (m.body for m in client.watch(sweep_id, watched) if isinstance(m.body, SweepEvent | JobEvent))
        kinds = [type(event.body).__name__ for event in islice(events, 4)]
        assert kinds == ["SweepArchived", "RestoreBegun", "SweepSubmitted", "Submitted"]
    again = person.run("restore", sweep_id)
    assert again.returncode == 1
    assert "in the broker already" in again.stdout
    assert person.run("restore").returncode == 2
    unknown = person.run("restore", "never-was-20260508t232959z")
    assert unknown.returncode == 1
    assert "no archive of sweep" in unknown.stderr
