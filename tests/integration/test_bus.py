"""The kit's bus on a connection that breaks while the broker lives on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from screentest import subjects
from screentest.kit.bus import Append, Bus

if TYPE_CHECKING:
    from tests.conftest import RunningServer


class Cable:
    """A TCP proxy that can be cut: bytes under way are lost, as in a real cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_swallowing = False
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.is_swallowing = False

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there_writer}
        await asyncio.gather(
            self._pump(reader, there_writer, False), self._pump(there_reader, writer, True), return_exceptions=True
        )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_broker: bool) -> None:
        while data := await reader.read(65536):
            if not (from_broker and self.is_swallowing):
                writer.write(data)
                await writer.drain()


@pytest.fixture
async def cable(nats_server: RunningServer) -> AsyncIterator[Cable]:
    cable = Cable(nats_server.port)
    await cable.start()
    yield cable
    await cable.stop()


def event(index: int) -> Append:
    return Append(
        subject=subjects.job_events("s", "stub", f"j{index}"),
        payload=str(index).encode(),
        expected_sequence=0,
        event_id=f"e{index}",
    )


async def test_a_cut_loses_no_message_of_a_reader(bus: Bus, cable: Cable) -> None:
    """What the broker sent into the dead connection is read again from where the reader was."""
    reader = await Bus.connect(f"nats://127.0.0.1:{cable.port}", name="reader")
    read: list[int] = []

    async def follow() -> None:
        async for stored in reader.read(subjects.EVENTS_STREAM, ("events.>",), follow=True):
            read.append(int(stored.payload))

    following = asyncio.create_task(follow())
    for index in range(5):
        await bus.append(event(index))
    async with asyncio.timeout(10):
        while len(read) < 5:
            await asyncio.sleep(0.02)
    cable.is_swallowing = True
    for index in range(5, 10):
        await bus.append(event(index))
    await asyncio.sleep(0.2)
    cable.cut()
    for index in range(10, 15):
        await bus.append(event(index))
    async with asyncio.timeout(30):
        while len(read) < 15:
            await asyncio.sleep(0.05)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await reader.close()
    assert read == list(range(15))
