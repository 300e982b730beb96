"""The depot's front door: passes TCP connections on to the S3 port of the object store, and to nothing else of it.

SeaweedFS opens a gRPC port beside its S3 port on the same address, for its own servers, and no switch closes it (4.48,
seen from a worker's network). So the store stands on a network of its own, and this stands between. Standard library
only. `python3 gateway.py HOST:PORT`: listens on that port, on every address of its container.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

BLOCK_BYTES = 1 << 16
CONNECT_WITHIN_S = 3.0


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, until it ends; the other may go on."""
    while block := await reader.read(BLOCK_BYTES):
        writer.write(block)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def serve_one(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A store that is away ends the connection: the client tries again, as it does with any store."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_WITHIN_S):
            to_reader, to_writer = await asyncio.open_connection(host, port)
        with contextlib.closing(to_writer):
            await asyncio.gather(pass_on(reader, to_writer), pass_on(to_reader, writer))
    writer.close()


async def main(host: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await asyncio.start_server(lambda reader, writer: serve_one(host, port, reader, writer), port=port)
    await stopping.wait()
    server.close()


if __name__ == "__main__":
    store_host, _, store_port = sys.argv[1].rpartition(":")
    asyncio.run(main(store_host, int(store_port)))
