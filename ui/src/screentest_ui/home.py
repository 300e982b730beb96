"""Where a local stack keeps everything it owns, and how a client finds the stack that runs there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from screentest.errors import BadRequest, NotPossibleNow
from screentest.records import Process
from screentest_ui.credentials import Secrets
from screentest_ui.servers import write_private


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What ``up`` wrote down, so that a later ``up`` or ``down`` knows its processes again.

    ``marker`` stands in the environment of every process of the stack. ``ports`` are chosen once and kept.
    """

    marker: str
    device: str
    lane_ids: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, Process] = field(default_factory=dict)


class Home:
    """One directory; two of them are two stacks that know nothing of each other."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def secrets(self) -> Secrets:
        return Secrets(self.path / "secrets")

    @property
    def record_file(self) -> Path:
        return self.path / "stack.json"

    @property
    def client_file(self) -> Path:
        """Lines of ``NAME=value`` for a client's environment: the address, and the file of the token."""
        return self.path / "client.env"

    @property
    def metrics_file(self) -> Path:
        """Where the services of this stack serve their numbers, for Prometheus's file_sd_configs."""
        return self.path / "prometheus-targets.json"

    def log_file(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def read(self) -> Running | None:
        """None before the first ``up``."""
        try:
            content = json.loads(self.record_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BadRequest(
                f"{self.record_file} cannot be read ({error}); stop what runs there by hand and delete the file"
            ) from error
        processes = {name: Process(**process) for name, process in content.pop("processes").items()}
        return Running(**{**content, "lane_ids": tuple(content["lane_ids"]), "processes": processes})

    def write(self, running: Running) -> None:
        write_private(self.record_file, json.dumps(asdict(running), indent=1, default=dict))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One ``up`` or ``down`` at a time. NotPossibleNow when another is at work."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Python opens without inheritance: no service of the stack keeps this lock.
        with (self.path / "stack.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotPossibleNow(f"another `screentest up` or `down` works on {self.path}; wait for it") from None
            yield


def default_home(environment: Mapping[str, str] = os.environ) -> Home:
    """``SCREENTEST_HOME``, or ``.state`` in the current directory."""
    return Home(Path(environment.get("SCREENTEST_HOME") or ".state"))


def client_environment(home: Home, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """SCREENTEST_GRPC_ADDRESS, _GRPC_TOKEN_FILE, _GRPC_CA_FILE: the caller's own settings, else what ``up`` wrote."""
    found: dict[str, str] = {}
    if home.client_file.exists():
        lines = home.client_file.read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines if "=" in line)
    names = ("SCREENTEST_GRPC_ADDRESS", "SCREENTEST_GRPC_TOKEN_FILE", "SCREENTEST_GRPC_CA_FILE")
    if environment.get(names[0]):  # a token belongs to an address: never mix the two sources
        found = {}
    return {name: value for name in names if (value := environment.get(name) or found.get(name))}
