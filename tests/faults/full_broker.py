"""A broker that takes no further event, as one whose disk is full does; reading goes on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import nats

from screentest import subjects


@contextlib.asynccontextmanager
async def full_events(nats_url: str, *, room: int = 0) -> AsyncIterator[None]:
    """``room``: how many more events it takes."""
    client = await nats.connect(nats_url)
    try:
        stream = client.jetstream()
        info = await stream.stream_info(subjects.EVENTS_STREAM)
        await stream.update_stream(info.config.evolve(max_msgs=info.state.messages + room))
        yield
        await stream.update_stream(info.config)
    finally:
        await client.close()
