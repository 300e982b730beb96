"""The two servers of a local stack that are not ours: nats-server and SeaweedFS, configured and loopback only."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from screentest.errors import Unavailable
from screentest_ui import ports
from screentest_ui.programs import Program

# Keyframes and clips never travel over NATS; the largest message is a sweep record with all its lanes.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024

# Measured: 0.02 s and 0.6 s on two idle cores. A loaded machine needs more.
READY_WITHIN_S = 30.0

DEPOT_PORT_NAMES = (
    "s3",
    "s3_grpc",
    "master",
    "master_grpc",
    "volume",
    "volume_grpc",
    "filer",
    "filer_grpc",
    "admin",
    "admin_grpc",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DepotKey:
    """One S3 identity; ``actions`` are SeaweedFS's: Admin, or Read/Write/List/Tagging with ``:bucket``."""

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A configured server: how to start it, where it answers once it runs."""

    program: Program
    port: int
    url: str
    is_ready: Callable[[], bool]


def configure_nats(state_dir: Path, port: int, *, authorization: str = "", log_path: Path | None = None) -> Server:
    """Writes ``nats.conf`` (mode 0600) into ``state_dir``; ``authorization`` is the block of users, empty = open."""
    config = state_dir / "nats.conf"
    write_private(config, nats_conf(state_dir / "jetstream", port, authorization))
    program = Program(
        name="nats",
        argv=(binary("nats-server"), "--config", str(config)),
        log_path=log_path or state_dir / "nats.log",
    )
    return Server(
        program=program, port=port, url=f"nats://{ports.LOOPBACK}:{port}", is_ready=partial(_nats_greets, port)
    )


def nats_conf(store_dir: Path, port: int, authorization: str) -> str:
    """``sync_interval: always``: by default an acknowledged publish reaches the disk up to two minutes later."""
    return f"""\
server_name: screentest
listen: "{ports.LOOPBACK}:{port}"
max_payload: {MAX_PAYLOAD_BYTES}
jetstream {{
  store_dir: {json.dumps(str(store_dir))}
  sync_interval: always
}}
{authorization}"""


def configure_depot(
    state_dir: Path, depot_ports: Mapping[str, int], keys: Sequence[DepotKey], *, log_path: Path | None = None
) -> Server:
    """Writes keys and options (mode 0600) into ``state_dir``; ``depot_ports`` holds every name of DEPOT_PORT_NAMES.

    Only the S3 gateway asks for keys: filer and master have none, so nothing here listens beyond loopback.
    """
    data = state_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_private(state_dir / "s3.json", s3_identities(keys))
    write_private(state_dir / "weed.options", depot_options(state_dir, data, depot_ports))
    program = Program(
        name="depot",
        argv=(binary("weed"), "mini", f"-options={state_dir / 'weed.options'}"),
        log_path=log_path or state_dir / "depot.log",
        # weed makes an identity of its own from these, and would look for its files in the caller's home.
        env={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "S3_BUCKET": "", "HOME": str(state_dir)},
        cwd=state_dir,
    )
    port, master = depot_ports["s3"], depot_ports["master"]
    return Server(
        program=program,
        port=port,
        url=f"http://{ports.LOOPBACK}:{port}",
        is_ready=lambda: _s3_answers(port) and _knows_a_volume_server(master),
    )


def depot_options(state_dir: Path, data: Path, depot_ports: Mapping[str, int]) -> str:
    """weed's options file. A file, because the command line of a process is readable by everyone."""
    options = {
        "dir": data,
        "ip": ports.LOOPBACK,
        "ip.bind": ports.LOOPBACK,
        "s3.config": state_dir / "s3.json",
        "s3.port": depot_ports["s3"],
        "s3.port.grpc": depot_ports["s3_grpc"],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.port": depot_ports["master"],
        "master.port.grpc": depot_ports["master_grpc"],
        "master.telemetry": "false",  # no word to anybody outside
        "master.electionTimeout": "1s",  # there is no other master to wait for
        "master.volumeSizeLimitMB": 128,
        "volume.port": depot_ports["volume"],
        "volume.port.grpc": depot_ports["volume_grpc"],
        "volume.preStopSeconds": 0,  # nobody else reads from this volume server
        "filer.port": depot_ports["filer"],
        "filer.port.grpc": depot_ports["filer_grpc"],
        "webdav": "false",
        # `admin.ui=false` stops the pages, not the listener (measured, 4.48): a password nobody knows closes it.
        "admin.ui": "false",
        "admin.port": depot_ports["admin"],
        "admin.port.grpc": depot_ports["admin_grpc"],
        "admin.password": secrets.token_hex(24),
    }
    return "".join(f"{name}={value}\n" for name, value in options.items())


def s3_identities(keys: Sequence[DepotKey]) -> str:
    """SeaweedFS's ``s3.config``. Without an identity in it the gateway would let anybody in, so there must be one."""
    if not keys:
        raise Unavailable("the depot needs at least one key; run `make secrets`")
    identities = [
        {
            "name": key.name,
            "credentials": [{"accessKey": key.access_key, "secretKey": key.secret_key}],
            "actions": list(key.actions),
        }
        for key in keys
    ]
    return json.dumps({"identities": identities}, indent=1)


def binary(name: str) -> str:
    """The path of a program installed beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise Unavailable(f"{name} is not installed beside {sys.executable}; run `make bootstrap`")
    return str(path)


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def _nats_greets(port: int) -> bool:
    try:
        with socket.create_connection((ports.LOOPBACK, port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
    except OSError:
        return False


def _knows_a_volume_server(master_port: int) -> bool:
    """The gateway answers before the volume server has announced itself; until then every object is a 500."""
    status, body = _answer(master_port, "/dir/status")
    if status != http.HTTPStatus.OK:
        return False
    centers = json.loads(body)["Topology"].get("DataCenters") or ()
    return any(rack.get("DataNodes") for center in centers for rack in center.get("Racks") or ())


def _s3_answers(port: int) -> bool:
    """An anonymous request is refused with 403 once the gateway has its keys."""
    status, _ = _answer(port, "/")
    return status is not None and status < 500


def _answer(port: int, path: str) -> tuple[int | None, bytes]:
    """Status and body; None where nobody answers. Not by urllib: it would ask the proxy that the environment names."""
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
