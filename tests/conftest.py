"""Real servers for tests: a NATS with a fresh store per test, one depot per session with a fresh bucket per test."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from screentest.kit.bus import Bus
from screentest.kit.store import Store
from screentest.records import Process
from screentest_ui import ports, programs, servers

COMMAND_PORTS = range(ports.FIRST, ports.LAST)  # before pytest_configure chooses others
PORTS_OF_ALL_WORKERS = range(10000, COMMAND_PORTS.start)
MOST_WORKERS = 16

FOLDERS = ("contract", "unit", "judging", "integration", "faults", "e2e", "engine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "engine: builds and runs the containers on a Docker Engine; runs last")
    config.addinivalue_line("markers", "fault: named in tests/faults/README.md; `make faults` runs these")
    # A shell that starts tests in the background has them ignore Ctrl-C, and so does every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own = _ports_of(os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
    ports.FIRST, ports.LAST = own.start, own.stop


def _ports_of(worker: str) -> range:
    """Each xdist worker chooses from a slice of its own: the same free port must not be found twice before it is used.

    All slices lie below what commands choose from, which tests start as processes of their own.
    """
    width = len(PORTS_OF_ALL_WORKERS) // MOST_WORKERS
    first = PORTS_OF_ALL_WORKERS.start + width * (int(worker.removeprefix("gw")) % MOST_WORKERS)
    return range(first, first + width)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a broken rule shows in seconds, before a model is built or a browser started."""
    faults = fault_tests()
    for item in items:
        if getattr(item, "originalname", item.name) in faults:
            item.add_marker(pytest.mark.fault)

    def rank(item: pytest.Item) -> tuple[bool, bool, int]:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        is_slow = item.get_closest_marker("slow") is not None
        return item.get_closest_marker("engine") is not None, is_slow, FOLDERS.index(folder)

    items.sort(key=rank)


def fault_tests() -> frozenset[str]:
    """The tests that the table of faults names."""
    table = Path(__file__).parent / "faults" / "README.md"
    return frozenset(re.findall(r"`(test_\w+)`", table.read_text()))


class RunningServer:
    """One server process that a test may kill and start again on the same port and state."""

    def __init__(self, server: servers.Server) -> None:
        self._server = server
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    def start(self) -> None:
        self.process = programs.start(self._server.program)
        programs.wait_ready(self._server.program, self.process, self._server.is_ready, servers.READY_WITHIN_S)

    def stop(self) -> None:
        """SIGTERM; a no-op when it is down."""
        if self.process is not None:
            programs.stop(self.process, grace_s=10)
            self.process = None

    def kill(self) -> None:
        """SIGKILL, as a power cut of the process; ``start`` brings it back."""
        if self.process is not None:
            programs.kill((self.process,))
            self.process = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Depot:
    """Where a test's depot is and who may do what; ``bucket`` exists and is empty."""

    url: str
    bucket: str
    scheduler: servers.DepotKey
    reporter: servers.DepotKey
    server: RunningServer

    def store(self, key: servers.DepotKey | None = None) -> Store:
        key = key or self.scheduler
        secret = SecretStr(key.secret_key)
        return Store(url=self.url, bucket=self.bucket, access_key=key.access_key, secret_key=secret)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[RunningServer]:
    """JetStream with an empty store and no users."""
    server = RunningServer(servers.configure_nats(tmp_path / "nats", ports.choose(1)[0]))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def bus(nats_server: RunningServer) -> AsyncIterator[Bus]:
    """A connection with the three streams in place."""
    connection = await Bus.connect(nats_server.url, name="test")
    await connection.ensure_streams()
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def depot_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningServer, tuple[servers.DepotKey, ...]]]:
    keys = (
        servers.DepotKey(
            name="scheduler",
            access_key="scheduler",
            secret_key=uuid.uuid4().hex,
            actions=("Admin", "Read", "Write", "List", "Tagging"),
        ),
        servers.DepotKey(
            name="reporter", access_key="reporter", secret_key=uuid.uuid4().hex, actions=("Read", "Write", "List")
        ),
    )
    names = servers.DEPOT_PORT_NAMES
    depot_ports = dict(zip(names, ports.choose(len(names)), strict=True))
    server = RunningServer(servers.configure_depot(tmp_path_factory.mktemp("depot"), depot_ports, keys))
    server.start()
    yield server, keys
    server.stop()


@pytest.fixture
async def depot(depot_server: tuple[RunningServer, tuple[servers.DepotKey, ...]]) -> Depot:
    """The session's depot with a bucket of this test's own."""
    server, (scheduler, reporter) = depot_server
    if server.process is None or not programs.is_running(server.process):
        server.start()  # a test before this one killed it
    found = Depot(
        url=server.url, bucket=f"test-{uuid.uuid4().hex[:12]}", scheduler=scheduler, reporter=reporter, server=server
    )
    await found.store().ensure_bucket()
    return found


@pytest.fixture
def store(depot: Depot) -> Store:
    """The scheduler's view of the depot: it may do everything."""
    return depot.store()
