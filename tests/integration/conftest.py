"""A running scheduler and a played worker, for tests of the API and of the rules between them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from screentest import subjects, wire
from screentest.kit import clock
from screentest.kit.bus import Bus
from screentest.records import (
    Proof,
    ProofRequest,
)
from screentest_ui import ports

if TYPE_CHECKING:
    from tests.conftest import Depot, RunningServer

from tests.played import ROOT, TOKEN, HandWorker, Scheduler


@pytest.fixture
def scheduler(nats_server: RunningServer, depot: Depot, tmp_path: Path) -> Iterator[Scheduler]:
    secret = tmp_path / "secret"
    secret.write_text(depot.scheduler.secret_key)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    [port] = ports.choose(1)
    environment = {
        "PATH": os.environ["PATH"],
        "SCREENTEST_NATS_URL": nats_server.url,
        "SCREENTEST_GRPC_ADDRESS": f"127.0.0.1:{port}",
        "SCREENTEST_GRPC_TOKEN_FILE": str(token),
        "SCREENTEST_LANES_DIR": str(ROOT / "deploy" / "lanes"),
        "SCREENTEST_HEARTBEAT_S": "0.5",
        "SCREENTEST_DEPOT_URL": depot.url,
        "SCREENTEST_DEPOT_BUCKET": depot.bucket,
        "SCREENTEST_DEPOT_ACCESS_KEY": depot.scheduler.access_key,
        "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(secret),
    }
    running = Scheduler(environment, port, tmp_path / "scheduler.log")
    running.start()
    yield running
    running.kill()
    sys.stdout.write((tmp_path / "scheduler.log").read_text()[-4000:])  # shown when the test failed


@pytest.fixture
def laddered_scheduler(scheduler: Scheduler, tmp_path: Path) -> Scheduler:
    """The scheduler with a stub lane of three rungs."""
    folder = tmp_path / "lanes"
    folder.mkdir()
    text = (ROOT / "deploy" / "lanes" / "stub.toml").read_text()
    more = "".join(
        f'\n[[ladder]]\nname = "{name}"\ncall = {{ work_s = {work_s} }}\n'
        for name, work_s in (("lean", 1.5), ("fp8", 1.0))
    )
    (folder / "stub.toml").write_text(text + more)
    scheduler.kill()
    scheduler.environment["SCREENTEST_LANES_DIR"] = str(folder)
    scheduler.start()
    return scheduler


@pytest.fixture
async def worker(bus: Bus, depot: Depot) -> AsyncIterator[HandWorker]:
    hand = HandWorker(bus=bus, depot=depot, lane_id="stub")

    async def prove(_subject: str, payload: bytes) -> bytes:
        request = wire.decode(payload, ProofRequest)
        reason = "" if hand.is_clean else "lock is held by nobody we know"
        proof = Proof(
            kind=request.kind,
            clean=hand.is_clean,
            reason=reason,
            lock_held=False,
            lock_holders=(),
            processes=(),
            stamp=clock.stamp(),
            method="proc",
        )
        return wire.encode(proof)

    await bus.answer(subjects.proof("local", "cpu-0"), prove)
    await hand.start()
    beating = asyncio.create_task(hand.beat())
    yield hand
    beating.cancel()
