"""What a local stack consists of: the command line, environment and log of every process. Starts nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from screentest.errors import BadRequest
from screentest.judges import JudgeLane, load_judges
from screentest.lanes import Lane, load_lanes
from screentest_ui import credentials, servers
from screentest_ui.home import Home
from screentest_ui.ports import LOOPBACK
from screentest_ui.programs import MARKER, Program

HOST = "local"
BUCKET = "screentest"
STUB_ENV = "stub"
CPU = "cpu-0"

# The GPU lock is the host's, not a stack's: two stacks that share a card must meet at one file.
GPU_LOCK_DIR = Path("/var/lock/screentest")

PORT_NAMES = ("nats", "grpc", "panel", *(f"depot_{name}" for name in servers.DEPOT_PORT_NAMES))

# Before the name of a service: where it serves its numbers.
METRICS = "metrics_"

# A person may fix these ports; the others are between our own processes.
PORT_SETTINGS = {
    "nats": "SCREENTEST_NATS_PORT",
    "grpc": "SCREENTEST_GRPC_PORT",
    "panel": "SCREENTEST_PANEL_PORT",
    "depot_s3": "SCREENTEST_DEPOT_PORT",
}


Entry = TypeVar("Entry", Lane, JudgeLane)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where the checkout keeps lanes, judges and model environments."""

    lanes_dir: Path
    judges_dir: Path
    envs_dir: Path

    @property
    def demo_sweep(self) -> Path:
        """The sweep file of `make demo`; its keyframe and rubric are named from its folder."""
        return self.lanes_dir.parent / "sweeps" / "architects-stillness.toml"

    def env_python(self, env: str) -> Path:
        return self.envs_dir / env / "bin" / "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asks of ``up``. ``device`` "cpu-0" or "gpu-0"; ``weights_dir``: hub weights by lane id.

    ``judges``: those that get a worker. ``with_metrics``: every service that has numbers for Prometheus serves them.
    """

    device: str
    lanes: tuple[Lane, ...]
    weights_dir: Path
    judges: tuple[JudgeLane, ...] = ()
    with_panel: bool = True
    with_metrics: bool = False

    @property
    def workers(self) -> tuple[Lane | JudgeLane, ...]:
        return (*self.lanes, *self.judges)

    @property
    def devices(self) -> tuple[str, ...]:
        """The lanes' device first. Judges that take no GPU work on the CPU, beside it."""
        return tuple(dict.fromkeys((self.device, CPU)))

    def device_of(self, lane: Lane | JudgeLane) -> str:
        return CPU if isinstance(lane, JudgeLane) and lane.device != "gpu" else self.device

    @property
    def port_names(self) -> tuple[str, ...]:
        if not self.with_metrics:
            return PORT_NAMES
        services = ("scheduler", "telemetry", *(worker_name(lane.id) for lane in self.workers))
        return (*PORT_NAMES, *(METRICS + name for name in services))


def installation(environment: Mapping[str, str]) -> Installation:
    """The checkout this package is installed from, unless SCREENTEST_LANES_DIR, _JUDGES_DIR or _ENVS_DIR say otherwise.

    Judges are looked for beside the lanes.
    """
    root = Path(__file__).parents[3]
    lanes_dir = Path(environment.get("SCREENTEST_LANES_DIR") or root / "deploy" / "lanes").absolute()
    return Installation(
        lanes_dir=lanes_dir,
        judges_dir=Path(environment.get("SCREENTEST_JUDGES_DIR") or lanes_dir.parent / "judges").absolute(),
        envs_dir=Path(environment.get("SCREENTEST_ENVS_DIR") or root / ".venvs").absolute(),
    )


def choose_lanes(place: Installation, asked: Sequence[str], *, with_stub: bool) -> tuple[Lane, ...]:
    """The lanes asked for, or every lane whose env is installed; stub lanes only when asked for.

    BadRequest names an unknown lane's neighbours, or the command that installs a missing env.
    """
    catalogue = load_lanes(place.lanes_dir)
    if asked:
        return tuple(_installed(place, known_lane(catalogue, lane_id)) for lane_id in dict.fromkeys(asked))
    usable = tuple(
        lane
        for lane in catalogue.values()
        if (with_stub or lane.env != STUB_ENV) and place.env_python(lane.env).exists()
    )
    if not usable:
        raise BadRequest(f"no model env is installed below {place.envs_dir}; run `make envs`")
    return usable


def choose_judges(place: Installation, asked: Sequence[str]) -> tuple[JudgeLane, ...]:
    """The judges asked for, or every judge that needs neither weights nor a server and whose env is installed.

    BadRequest names an unknown judge's neighbours, or the command that installs a missing env.
    """
    catalogue = load_judges(place.judges_dir)
    if not asked:
        return tuple(
            judge for judge in catalogue.values() if judge.tier == "a" and place.env_python(judge.env).exists()
        )
    for judge_id in asked:
        if judge_id not in catalogue:
            raise BadRequest(f"no judge {judge_id!r}; there are {', '.join(catalogue) or 'none'} in {place.judges_dir}")
    return tuple(_installed(place, catalogue[judge_id]) for judge_id in dict.fromkeys(asked))


def worker_ids(place: Installation) -> tuple[str, ...]:
    """Every lane and judge that there is: each has its own user and queue."""
    return (*load_lanes(place.lanes_dir), *load_judges(place.judges_dir))


def server_programs(home: Home, ports: Mapping[str, int], place: Installation) -> tuple[servers.Server, servers.Server]:
    """NATS and the depot, with their configuration written. Every lane has its user, also those not started now."""
    users = credentials.nats_users(HOST, worker_ids(place))
    nats = servers.configure_nats(
        home.path / "nats",
        ports["nats"],
        authorization=home.secrets.authorization(users),
        log_path=home.log_file("nats"),
    )
    depot_ports = {name: ports[f"depot_{name}"] for name in servers.DEPOT_PORT_NAMES}
    keys = home.secrets.depot_keys(BUCKET)
    depot = servers.configure_depot(home.path / "depot", depot_ports, keys, log_path=home.log_file("depot"))
    return nats, depot


def our_programs(home: Home, ports: Mapping[str, int], place: Installation, wanted: Wanted) -> dict[str, Program]:
    """Scheduler first; then telemetry, reporter, a worker per lane and judge, and the panel."""
    build = _Builder(home, ports, place, wanted)
    programs = [build.scheduler(), build.telemetry(), build.reporter()]
    programs.extend(build.worker(lane) for lane in wanted.workers)
    if wanted.with_panel:
        programs.append(build.panel())
    return {program.name: program for program in programs}


def worker_name(lane_id: str) -> str:
    return f"worker-{lane_id}"


def client_settings(home: Home, ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "SCREENTEST_GRPC_ADDRESS": f"{LOOPBACK}:{ports['grpc']}",
        "SCREENTEST_GRPC_TOKEN_FILE": str(home.secrets.grpc_token_file()),
    }


def metrics_targets(ports: Mapping[str, int]) -> list[dict[str, object]]:
    """What serves numbers, as Prometheus's file_sd_configs reads it."""
    return [
        {"targets": [f"{LOOPBACK}:{port}"], "labels": {"service": name.removeprefix(METRICS)}}
        for name, port in sorted(ports.items())
        if name.startswith(METRICS)
    ]


def marked(program: Program, marker: str) -> Program:
    return Program(
        name=program.name,
        argv=program.argv,
        log_path=program.log_path,
        env={**program.env, MARKER: marker},
        cwd=program.cwd,
    )


class _Builder:
    """The settings every service shares, and one method per service."""

    def __init__(self, home: Home, ports: Mapping[str, int], place: Installation, wanted: Wanted) -> None:
        self._home = home
        self._ports = ports
        self._place = place
        self._wanted = wanted
        self._lock_dir = GPU_LOCK_DIR if wanted.device.startswith("gpu") else home.path / "locks"

    def scheduler(self) -> Program:
        env = {
            **self._bus("scheduler"),
            **self._depot("scheduler"),
            **client_settings(self._home, self._ports),
            "SCREENTEST_LANES_DIR": str(self._place.lanes_dir),
            "SCREENTEST_JUDGES_DIR": str(self._place.judges_dir),
            "SCREENTEST_DEVICES": ",".join(self._wanted.devices),
        }
        return self._service("scheduler", env)

    def telemetry(self) -> Program:
        env = {
            **self._bus("telemetry"),
            "SCREENTEST_DEVICES": ",".join(self._wanted.devices),
            "SCREENTEST_LOCK_DIR": str(self._lock_dir),
            "SCREENTEST_STATE_DIR": str(self._home.path / "telemetry"),
            # Plain processes of one host: there is one pid namespace, so an empty list of processes is complete.
            "SCREENTEST_WORKERS_SHARE_PID_NAMESPACE": "true",
        }
        return self._service("telemetry", env)

    def reporter(self) -> Program:
        env = {
            **self._bus("reporter"),
            **self._depot("reporter"),
            "SCREENTEST_STATE_DIR": str(self._home.path / "reporter"),
        }
        return self._service("reporter", env)

    def worker(self, lane: Lane | JudgeLane) -> Program:
        folder = self._place.judges_dir if isinstance(lane, JudgeLane) else self._place.lanes_dir
        state_dir = self._home.path / "workers" / lane.id
        env = {
            **self._bus(credentials.worker_user(lane.id)),
            "SCREENTEST_LANE_FILE": str(folder / f"{lane.id}.toml"),
            "SCREENTEST_DEVICE": self._wanted.device_of(lane),
            "SCREENTEST_LOCK_DIR": str(self._lock_dir),
            "SCREENTEST_STATE_DIR": str(state_dir),
            "SCREENTEST_ENV_PYTHON": str(self._place.env_python(lane.env)),
            "SCREENTEST_MODELS_DIR": str(self._wanted.weights_dir),
            "SCREENTEST_CACHE_DIR": str(self._home.path / "cache"),
        }
        return self._service(worker_name(lane.id), env, command="screentest-worker")

    def panel(self) -> Program:
        return Program(
            name="panel",
            argv=(
                sys.executable,
                "-m",
                "screentest_ui.panel_server",
                f"--address={LOOPBACK}",
                f"--port={self._ports['panel']}",
            ),
            log_path=self._home.log_file("panel"),
            env={
                **client_settings(self._home, self._ports),
                "SCREENTEST_MODELS_DIR": str(self._wanted.weights_dir),
            },
            cwd=Path(__file__).parent,
        )

    def _service(self, name: str, env: Mapping[str, str], *, command: str = "") -> Program:
        return Program(
            name=name,
            argv=(servers.binary(command or f"screentest-{name}"),),
            log_path=self._home.log_file(name),
            env={"SCREENTEST_HOST": HOST, "SCREENTEST_LOG_FORMAT": "json", **self._metrics(name), **env},
            cwd=self._home.path,
        )

    def _metrics(self, name: str) -> dict[str, str]:
        """Set in any case: one address in a person's environment would be that of all services."""
        port = self._ports.get(METRICS + name)
        return {"SCREENTEST_METRICS_ADDRESS": f"{LOOPBACK}:{port}" if port else ""}

    def _bus(self, user: str) -> dict[str, str]:
        return {
            "SCREENTEST_NATS_URL": f"nats://{LOOPBACK}:{self._ports['nats']}",
            "SCREENTEST_NATS_USER": user,
            "SCREENTEST_NATS_PASSWORD_FILE": str(self._home.secrets.nats_password_file(user)),
        }

    def _depot(self, name: str) -> dict[str, str]:
        url = f"http://{LOOPBACK}:{self._ports['depot_s3']}"
        return {
            "SCREENTEST_DEPOT_URL": url,
            "SCREENTEST_DEPOT_PUBLIC_URL": url,
            "SCREENTEST_DEPOT_BUCKET": BUCKET,
            "SCREENTEST_DEPOT_ACCESS_KEY": f"screentest-{name}",
            "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(self._home.secrets.depot_secret_key_file(name)),
        }


def known_lane(catalogue: Mapping[str, Lane], lane_id: str) -> Lane:
    """BadRequest names the lanes that there are."""
    if lane_id not in catalogue:
        raise BadRequest(f"no lane {lane_id!r}; there are {', '.join(catalogue)}")
    return catalogue[lane_id]


def _installed(place: Installation, lane: Entry) -> Entry:
    python = place.env_python(lane.env)
    if not python.exists():
        raise BadRequest(f"{lane.id!r} wants env {lane.env!r}, and {python} is missing; run `make envs`")
    return lane
