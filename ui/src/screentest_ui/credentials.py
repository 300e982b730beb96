"""Every secret of one stack: made once, kept in files that only their owner can read, one user per service."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from screentest.errors import BadRequest
from screentest_ui.servers import DepotKey, write_private

SECRET_BYTES = 24

# A lane's worker has one consumer per device it may be started on; its name is one token, so each is listed.
DEVICES = ("cpu-0", "gpu-0")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsUser:
    """What one service may publish and subscribe to; its own inbox is added. None = everything."""

    name: str
    publish: tuple[str, ...] | None
    subscribe: tuple[str, ...] | None


class Secrets:
    """The secret files below one directory. Missing ones are made on first use; existing ones are never changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def nats_password_file(self, user: str) -> Path:
        return self._file(f"nats-{user}.password")

    def depot_secret_key_file(self, name: str) -> Path:
        return self._file(f"depot-{name}.secret")

    def grpc_token_file(self) -> Path:
        return self._file("grpc.token")

    def depot_keys(self, bucket: str) -> tuple[DepotKey, ...]:
        """The scheduler makes the bucket and signs for everybody; the reporter reads and writes in it; nobody else."""
        return (
            DepotKey(
                name="scheduler",
                access_key="screentest-scheduler",
                secret_key=self.depot_secret_key_file("scheduler").read_text(),
                actions=("Admin", "Read", "Write", "List", "Tagging"),
            ),
            DepotKey(
                name="reporter",
                access_key="screentest-reporter",
                secret_key=self.depot_secret_key_file("reporter").read_text(),
                actions=(f"Read:{bucket}", f"Write:{bucket}", f"List:{bucket}"),
            ),
        )

    def authorization(self, users: Sequence[NatsUser]) -> str:
        """The ``authorization`` block of nats.conf. It holds the passwords: keep it in a private file."""
        return authorization({user: self.nats_password_file(user.name).read_text() for user in users})

    def _file(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            write_private(path, secrets.token_hex(SECRET_BYTES))
        elif path.stat().st_mode & 0o077:
            raise BadRequest(f"{path} is readable by others; run `chmod 600 {path}`, or delete it to get a new one")
        return path


def nats_users(host: str, lane_ids: Sequence[str], devices: Sequence[str] = DEVICES) -> tuple[NatsUser, ...]:
    """One user per service and one per lane. Panel and CLI have none: they speak gRPC only."""
    return (
        NatsUser(name="scheduler", publish=None, subscribe=None),
        _reporter(),
        *_users_of_a_host(host, lane_ids, devices),
    )


def further_host_users(host: str, lane_ids: Sequence[str], devices: Sequence[str] = DEVICES) -> tuple[NatsUser, ...]:
    """Telemetry and workers of another host: they may speak for it and for no other; ``telemetry-at-<host>``."""
    return tuple(replace(user, name=f"{user.name}-at-{host}") for user in _users_of_a_host(host, lane_ids, devices))


def _users_of_a_host(host: str, lane_ids: Sequence[str], devices: Sequence[str]) -> tuple[NatsUser, ...]:
    return (_telemetry(host), *(_worker(host, lane_id, devices) for lane_id in lane_ids))


def worker_user(lane_id: str) -> str:
    return f"worker-{lane_id}"


def authorization(passwords: dict[NatsUser, str]) -> str:
    """nats.conf text; ``allow_responses`` lets a service answer the requests it may hear, and nothing more."""
    blocks = "\n".join(_block(user, password) for user, password in passwords.items())
    return f"authorization {{\n  users = [\n{blocks}\n  ]\n}}\n"


def _telemetry(host: str) -> NatsUser:
    return NatsUser(
        name="telemetry",
        publish=(f"vitals.{host}", f"fault.{host}.*"),
        subscribe=(f"proof.{host}.*", f"device.{host}.*", f"register.{host}.*", f"alive.{host}.>"),
    )


def _reporter() -> NatsUser:
    """Reads two streams with short-lived consumers; writes to neither."""
    streams = ("EVENTS", "VITALS")
    verbs = ("STREAM.INFO", "CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.MSG.NEXT", "CONSUMER.DELETE", "DIRECT.GET")
    publish = []
    for stream in streams:
        for verb in verbs:
            publish.append(f"$JS.API.{verb}.{stream}")
            if verb != "STREAM.INFO":
                publish.append(f"$JS.API.{verb}.{stream}.>")
    return NatsUser(name="reporter", publish=tuple(publish), subscribe=())


def _worker(host: str, lane_id: str, devices: Sequence[str]) -> NatsUser:
    """A worker pulls, writes and reads one lane: its own. It cannot put a job, nor create or delete anything."""
    consumers = [f"{host}_{device}_{lane_id}" for device in devices]
    return NatsUser(
        name=worker_user(lane_id),
        publish=(
            f"events.*.{lane_id}.*",
            f"progress.*.{lane_id}.*",
            f"alive.{host}.*.{lane_id}",
            f"svc.depot.{lane_id}",
            f"proof.{host}.*",
            f"device.{host}.*",
            f"register.{host}.*",
            f"$JS.API.DIRECT.GET.EVENTS.events.*.{lane_id}.*",
            *(f"$JS.API.CONSUMER.MSG.NEXT.JOBS.{consumer}" for consumer in consumers),
            *(f"$JS.API.CONSUMER.INFO.JOBS.{consumer}" for consumer in consumers),
            *(f"$JS.ACK.JOBS.{consumer}.>" for consumer in consumers),
        ),
        subscribe=(f"cmd.{host}.*.{lane_id}",),
    )


def _block(user: NatsUser, password: str) -> str:
    publish = '">"' if user.publish is None else json.dumps(list(user.publish))
    subscribe = '">"' if user.subscribe is None else json.dumps([*user.subscribe, f"_INBOX_{user.name}.>"])
    return (
        f"    {{ user: {json.dumps(user.name)}, password: {json.dumps(password)}, permissions: {{\n"
        f"        publish: {publish}\n"
        f"        subscribe: {subscribe}\n"
        f"        allow_responses: true }} }}"
    )
