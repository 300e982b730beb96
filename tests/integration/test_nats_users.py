"""Each service can do its job on the real broker, and a worker cannot touch another lane."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from screentest import subjects
from screentest.errors import BadRequest, ScreentestError, Unavailable
from screentest.kit import bus as bus_module
from screentest.kit.bus import Append, Bus
from screentest.kit.clock import new_event_id
from screentest.kit.config import read_secret
from screentest_ui import credentials, ports, servers
from tests.conftest import RunningServer

LANES = ("stub", "other-lane")
HOST, DEVICE = "local", "cpu-0"
OTHER_HOST = "spark"
REFUSED_AFTER_S = 1.0


@pytest.fixture
def kept(tmp_path: Path) -> credentials.Secrets:
    return credentials.Secrets(tmp_path / "secrets")


@pytest.fixture
def broker(tmp_path: Path, kept: credentials.Secrets) -> Iterator[RunningServer]:
    users = credentials.nats_users(HOST, LANES) + credentials.further_host_users(OTHER_HOST, LANES)
    text = kept.authorization(users)
    server = RunningServer(servers.configure_nats(tmp_path / "nats", ports.choose(1)[0], authorization=text))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def as_user(broker: RunningServer, kept: credentials.Secrets, monkeypatch: pytest.MonkeyPatch):
    """Connects as one of the users. A refused permission shows as a time-out: make it short."""
    monkeypatch.setattr(bus_module, "JETSTREAM_TIMEOUT_S", REFUSED_AFTER_S)

    async def connect(user: str) -> Bus:
        password = read_secret(kept.nats_password_file(user))
        return await Bus.connect(broker.url, name=user, user=user, password=password)

    return connect


@pytest.fixture
async def scheduler(as_user):
    connection = await as_user("scheduler")
    await connection.ensure_streams()
    for lane in LANES:
        await connection.ensure_lane_consumer(HOST, DEVICE, lane)
    yield connection
    await connection.close()


def event(lane: str, sequence: int = 0) -> Append:
    subject = subjects.job_events("s", lane, "j")
    return Append(subject=subject, payload=b"x", expected_sequence=sequence, event_id=new_event_id())


async def test_worker_works_its_own_lane(scheduler: Bus, as_user) -> None:
    await scheduler.dispatch(subjects.dispatch(HOST, DEVICE, "stub", "j", 1), b"job")
    worker = await as_user("worker-stub")
    delivery = await (await worker.lane_puller(HOST, DEVICE, "stub")).next(2)
    assert delivery is not None
    sequence = await worker.append(event("stub"))
    last = await worker.last("EVENTS", subjects.job_events("s", "stub", "j"))
    assert last is not None
    assert last.sequence == sequence
    await delivery.renew()
    await delivery.ack()
    assert await scheduler.dispatched() == ()
    await worker.close()


async def test_worker_asks_and_answers(scheduler: Bus, as_user) -> None:
    worker, telemetry = await as_user("worker-stub"), await as_user("telemetry")

    async def answer(subject: str, payload: bytes) -> bytes:
        return b"answer to " + payload

    await telemetry.answer(subjects.proof(HOST, DEVICE), answer)
    await worker.answer(subjects.command(HOST, DEVICE, "stub"), answer)
    await scheduler.answer(subjects.depot_url("stub"), answer)
    for connection in (worker, telemetry, scheduler):
        await connection.flush()
    assert await worker.request(subjects.proof(HOST, DEVICE), b"p", timeout_s=10) == b"answer to p"
    assert await scheduler.request(subjects.command(HOST, DEVICE, "stub"), b"c", timeout_s=10) == b"answer to c"
    assert await worker.request(subjects.depot_url("stub"), b"u", timeout_s=10) == b"answer to u"
    for connection in (worker, telemetry):
        await connection.close()


async def test_worker_cannot_write_events_of_another_lane(scheduler: Bus, as_user) -> None:
    worker = await as_user("worker-stub")
    with pytest.raises(Unavailable):
        await worker.append(event("other-lane"))
    await worker.close()
    assert await scheduler.last("EVENTS", subjects.job_events("s", "other-lane", "j")) is None


async def test_worker_cannot_read_another_lane(scheduler: Bus, as_user) -> None:
    await scheduler.append(event("other-lane"))
    worker = await as_user("worker-stub")
    with pytest.raises(Unavailable):
        await worker.last("EVENTS", subjects.job_events("s", "other-lane", "j"))
    await worker.close()


async def test_worker_cannot_pull_another_lane(scheduler: Bus, as_user) -> None:
    await scheduler.dispatch(subjects.dispatch(HOST, DEVICE, "other-lane", "j", 1), b"job")
    worker = await as_user("worker-stub")
    with pytest.raises(ScreentestError):
        delivery = await (await worker.lane_puller(HOST, DEVICE, "other-lane")).next(REFUSED_AFTER_S)
        assert delivery is None
        raise ScreentestError("nothing was delivered")
    await worker.close()


async def test_worker_cannot_dispatch_or_purge(scheduler: Bus, as_user) -> None:
    await scheduler.dispatch(subjects.dispatch(HOST, DEVICE, "stub", "j", 1), b"job")
    worker = await as_user("worker-stub")
    with pytest.raises(Unavailable):
        await worker.dispatch(subjects.dispatch(HOST, DEVICE, "stub", "forged", 1), b"job")
    with pytest.raises(Unavailable):
        await worker.withdraw(subjects.dispatch(HOST, DEVICE, "stub", "j", 1))
    await worker.close()
    assert await scheduler.dispatched() == (subjects.dispatch(HOST, DEVICE, "stub", "j", 1),)


async def test_worker_cannot_hear_commands_to_another_lane(scheduler: Bus, as_user) -> None:
    worker = await as_user("worker-stub")
    heard: list[str] = []

    async def listen(subject: str, payload: bytes) -> None:
        heard.append(subject)

    await worker.listen(subjects.command(HOST, DEVICE, "other-lane"), listen)
    await worker.flush()
    await scheduler.publish(subjects.command(HOST, DEVICE, "other-lane"), b"retire")
    await scheduler.flush()
    await asyncio.sleep(0.2)
    assert heard == []
    await worker.close()


async def test_reporter_reads_and_cannot_write(scheduler: Bus, as_user) -> None:
    await scheduler.append(event("stub"))
    reporter = await as_user("reporter")
    assert [stored.payload async for stored in reporter.read("EVENTS", ["events.>", "sweeps.>"])] == [b"x"]
    with pytest.raises(Unavailable):
        await reporter.append(event("stub", 1))
    await reporter.close()


async def test_telemetry_publishes_vitals_of_its_host(scheduler: Bus, as_user) -> None:
    telemetry = await as_user("telemetry")
    await telemetry.publish(subjects.vitals(HOST), b"v")
    await telemetry.publish(subjects.vitals("another"), b"v")
    await telemetry.flush()

    async def stored() -> list[str]:
        return [item.subject async for item in scheduler.read("VITALS", ["vitals.>"])]

    async with asyncio.timeout(10):  # a flush is answered before the stream has written
        while not await stored():
            await asyncio.sleep(0.05)
    assert await stored() == [subjects.vitals(HOST)]
    await telemetry.close()


async def test_telemetry_tells_faults_of_its_host_and_a_worker_none(scheduler: Bus, as_user) -> None:
    async def write_down(_subject: str, payload: bytes) -> bytes:
        return b"written " + payload

    await scheduler.answer(subjects.device_fault("*", "*"), write_down)
    await scheduler.flush()
    telemetry, worker = await as_user("telemetry"), await as_user("worker-stub")
    assert await telemetry.request(subjects.device_fault(HOST, DEVICE), b"f", timeout_s=10) == b"written f"
    for connection, host in ((telemetry, "another"), (worker, HOST)):
        with pytest.raises(Unavailable):
            await connection.request(subjects.device_fault(host, DEVICE), b"f", timeout_s=1)
        await connection.close()


async def test_nobody_enters_without_a_password(broker: RunningServer) -> None:
    with pytest.raises(Unavailable, match="make secrets"):
        await Bus.connect(broker.url, name="x", user="scheduler", timeout_s=1)


def test_secrets_are_private_and_stay(tmp_path: Path, kept: credentials.Secrets) -> None:
    first = kept.grpc_token_file().read_text()
    assert stat.S_IMODE(kept.grpc_token_file().stat().st_mode) == 0o600
    assert credentials.Secrets(tmp_path / "secrets").grpc_token_file().read_text() == first


def test_secret_that_others_can_read_is_refused(kept: credentials.Secrets) -> None:
    kept.grpc_token_file().chmod(0o644)
    with pytest.raises(BadRequest, match="chmod 600"):
        kept.grpc_token_file()


async def test_worker_of_a_further_host_works_there_and_not_here(scheduler: Bus, as_user) -> None:
    for host in (HOST, OTHER_HOST):
        await scheduler.ensure_lane_consumer(host, DEVICE, "stub")
        await scheduler.dispatch(subjects.dispatch(host, DEVICE, "stub", "j", 1), host.encode())
    worker = await as_user(f"worker-stub-at-{OTHER_HOST}")
    delivery = await (await worker.lane_puller(OTHER_HOST, DEVICE, "stub")).next(2)
    assert delivery is not None
    assert delivery.payload == OTHER_HOST.encode()
    await delivery.ack()
    with pytest.raises(ScreentestError):
        assert await (await worker.lane_puller(HOST, DEVICE, "stub")).next(REFUSED_AFTER_S) is None
        raise Unavailable("nothing came, as it should")
    await worker.close()
