"""Runs in a container, with its user and its network, and tries what it must not do. One line for each try.

`probe.py NETWORK [NATS_USER]`; the password comes on stdin. Standard library and, for a NATS user, nats-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

OUTSIDE = (("198.41.0.4", 53), ("1.1.1.1", 443), ("9.9.9.9", 443))  # a root name server, two resolvers
# Who listens for whom; everything else must be closed. The names of services that are not there must not resolve.
OPEN = {
    "broker": {("nats", 4222), ("scheduler", 50051)},
    "lanes": {("nats", 4222), ("depot", 8333)},
    "storage": {("depot", 8333), ("scheduler", 50051), ("ui", 8501)},
    "api": {("scheduler", 50051), ("ui", 8501)},
    "edge": {("depot", 8333), ("scheduler", 50051), ("ui", 8501)},
}
HOSTS = ("nats", "depot", "weed", "scheduler", "telemetry-cpu", "reporter", "ui")
# Clients, monitor; S3 and its gRPC; master, volume and filer with theirs; API, panel, metrics.
PORTS = (4222, 8222, 6222, 8333, 18333, 9333, 19333, 8080, 18080, 8888, 18888, 23646, 50051, 8501, 9464)
WITHIN_S = 1.0


def say(what: str, refused: bool, how: str) -> None:
    print(f"{'refused' if refused else 'ALLOWED'}: {what} ({' '.join(how.split())[:90]})", flush=True)


def tries(what: str, act: Callable[[], object]) -> None:
    try:
        result = act()
    except OSError as error:
        say(what, True, str(error))
    else:
        say(what, False, repr(result))


def connect(address: tuple[str, int]) -> str:
    with socket.create_connection(address, timeout=WITHIN_S):
        return "connected"


def http(method: str, url: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, method=method, data=None), timeout=3) as reply:
        return str(reply.status)


def look_around(network: str) -> None:
    for address in OUTSIDE:
        tries(f"{network}: outside address {address[0]}", partial(connect, address))
    tries(f"{network}: outside name", lambda: socket.gethostbyname("example.org"))
    for host in HOSTS:
        try:
            socket.gethostbyname(host)
        except OSError as error:
            say(f"{network}: name {host}", True, str(error))
            continue
        for port in PORTS:
            if (host, port) in OPEN[network]:
                connect((host, port))
                print(f"may: {network}: {host}:{port}", flush=True)
            else:
                tries(f"{network}: {host}:{port}", partial(connect, (host, port)))


def touch_things(network: str) -> None:
    tries(f"{network}: docker.sock", lambda: connect_unix("/var/run/docker.sock"))
    for place in ("/probe", "/app/probe", "/etc/probe", "/usr/local/bin/probe"):
        tries(f"{network}: write {place}", partial(Path(place).write_text, "x"))
    tries(f"{network}: become root", lambda: os.setuid(0))


def connect_unix(path: str) -> str:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
        opened.connect(path)
        return "connected"


def ask_depot(network: str) -> None:
    for method, path in (
        ("DELETE", "screentest/sweeps/x"),
        ("DELETE", "screentest"),
        ("PUT", "screentest/x"),
        ("GET", "screentest"),
    ):
        tries(f"{network}: S3 {method} /{path} without key", partial(http, method, f"http://depot:8333/{path}"))
    tries(
        f"{network}: filer through the gateway", lambda: http("GET", "http://depot:8333/buckets/screentest/?pretty=y")
    )


async def ask_broker(network: str, user: str, password: str) -> None:
    """What the user of one lane, of telemetry or of the reporter may not do."""
    import nats
    from nats.errors import Error

    refusals: list[str] = []

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    client = await nats.connect(
        "nats://nats:4222",
        user=user,
        password=password,
        inbox_prefix=f"_INBOX_{user}".encode(),
        error_cb=on_error,
        allow_reconnect=False,
    )

    async def attempt(what: str, act: Callable[[], Awaitable[object]]) -> None:
        refusals.clear()
        try:
            await act()
            await client.flush(timeout=2)
        except (Error, OSError, TimeoutError) as error:
            refusals.append(str(error) or type(error).__name__)
        await asyncio.sleep(0.05)
        said = [refusal for refusal in refusals if "permissions violation" in refusal.lower()]
        say(f"{network}: {user} {what}", bool(said), "; ".join(said or refusals) or "nobody objected")

    publish = {
        "writes an event of another lane": "events.some-sweep.another-lane.some-job",
        "writes a sweep": "sweeps.some-sweep",
        "undrains a device": "control.local.cpu-0",
        "puts a job": "jobs.local.cpu-0.another-lane.some-job.1",
        "speaks for another lane": "alive.local.cpu-0.another-lane",
        "commands another lane": "cmd.local.cpu-0.another-lane",
        "asks for another lane's upload": "svc.depot.another-lane",
        "purges a stream": "$JS.API.STREAM.PURGE.EVENTS",
        "deletes a stream": "$JS.API.STREAM.DELETE.EVENTS",
        "deletes a message": "$JS.API.STREAM.MSG.DELETE.EVENTS",
        "changes a stream": "$JS.API.STREAM.UPDATE.EVENTS",
        "pulls another lane's jobs": "$JS.API.CONSUMER.MSG.NEXT.JOBS.local_cpu-0_another-lane",
        "makes a consumer of jobs": "$JS.API.CONSUMER.CREATE.JOBS.x",
        "acknowledges another lane's job": "$JS.ACK.JOBS.local_cpu-0_another-lane.1.1.1.1.0",
    }
    for what, subject in publish.items():
        await attempt(what, partial(client.publish, subject, b"x"))
    for subject in ("events.>", "jobs.>", "_INBOX_scheduler.>", "$SYS.>"):
        await attempt(f"listens to {subject}", partial(client.subscribe, subject))
    await client.close()


if __name__ == "__main__":
    look_around(sys.argv[1])
    touch_things(sys.argv[1])
    if ("depot", 8333) in OPEN[sys.argv[1]]:
        ask_depot(sys.argv[1])
    if len(sys.argv) > 2:
        asyncio.run(ask_broker(sys.argv[1], sys.argv[2], sys.stdin.read().strip()))
