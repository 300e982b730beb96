"""The local stack: bring up what is missing, wait until it answers, take everything down."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets as stdlib_secrets
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from screentest.client import Client
from screentest.errors import BadRequest, NotPossibleNow, Unavailable
from screentest.records import Process
from screentest_ui import ports, programs, services
from screentest_ui.home import Home, Running
from screentest_ui.programs import Program
from screentest_ui.servers import READY_WITHIN_S, Server, write_private
from screentest_ui.services import Installation, Wanted

Say = Callable[[str], None]

# Ten supervisors importing on two cores take 10 to 15 s; a loaded machine takes longer.
SERVICES_READY_WITHIN_S = 90.0
POLL_S = 0.1

# A worker walks its stop ladder (stop, SIGTERM, SIGKILL) over a runner that is denoising.
STOP_GRACE_S = 25.0

STREAMLIT_PORT = 8501


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """``started``: names of what was missing; empty = everything ran already."""

    started: tuple[str, ...]
    grpc_address: str
    panel_url: str | None


def up(home: Home, place: Installation, wanted: Wanted, environment: Mapping[str, str], say: Say) -> Up:
    """Starts what does not run yet and waits until all of it answers.

    A failing service's last log lines are in the error; what was started stays up, so that ``up`` can be repeated.
    """
    _require_device(wanted.device)
    with home.locked():
        running = _plan(home, wanted, environment, say)
        home.write(running)
        launcher = _Launcher(home, running, say)
        for server in services.server_programs(home, running.ports, place):
            launcher.launch_server(server)
        launcher.launch_services(services.our_programs(home, running.ports, place, wanted))
        _write_client_file(home, running.ports)
        home.metrics_file.write_text(json.dumps(services.metrics_targets(running.ports), indent=1) + "\n")
        launcher.wait_until_ready(wanted)
    panel_url = f"http://{ports.LOOPBACK}:{running.ports['panel']}" if wanted.with_panel else None
    return Up(
        started=tuple(launcher.started), grpc_address=f"{ports.LOOPBACK}:{running.ports['grpc']}", panel_url=panel_url
    )


def down(home: Home, say: Say) -> int:
    """Stops every process of the stack, whole trees; returns how many named ones were running."""
    running = home.read()
    if running is None:
        say(f"nothing was ever started in {home.path}")
        return 0
    with home.locked():
        up_now = {name: process for name, process in running.processes.items() if programs.is_running(process)}
        for group in _stop_groups(up_now):
            if group:
                say(f"stopping {', '.join(sorted(group))}")
                programs.stop_all(tuple(group.values()), grace_s=STOP_GRACE_S)
        stray = programs.marked(running.marker)
        if stray:
            say(f"killing {len(stray)} processes that outlived their parents")
            programs.kill(stray)
        home.client_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk; nothing runs, and a dead pid is known by its start time
            home.write(replace(running, processes={}))
    return len(up_now)


@contextlib.contextmanager
def servers_running(home: Home, place: Installation, environment: Mapping[str, str], say: Say) -> Iterator[None]:
    """Broker and depot of this home run meanwhile. Those that did not are started for it, and stopped behind it."""
    if {"nats", "depot"} <= set(alive(home)):
        yield
        return
    known = home.read()
    nothing_else = Wanted(device=known.device if known else "cpu-0", lanes=(), weights_dir=home.path, with_panel=False)
    with home.locked():
        launcher = _Launcher(home, _plan(home, nothing_else, environment, say), say)
        home.write(launcher.running)
        try:
            for server in services.server_programs(home, launcher.running.ports, place):
                launcher.launch_server(server)
            yield
        finally:
            ours = {name: launcher.running.processes[name] for name in launcher.started}
            programs.stop_all(tuple(ours.values()), grace_s=STOP_GRACE_S)
            left = {name: process for name, process in launcher.running.processes.items() if name not in ours}
            home.write(replace(launcher.running, processes=left))


def is_up(home: Home) -> bool:
    """True when at least one process of the stack runs."""
    return bool(alive(home))


def alive(home: Home) -> tuple[str, ...]:
    """Names of the processes of the stack that run now."""
    running = home.read()
    if running is None:
        return ()
    return tuple(name for name, process in running.processes.items() if programs.is_running(process))


class _Launcher:
    """Starts programs one by one and writes each down before the next."""

    def __init__(self, home: Home, running: Running, say: Say) -> None:
        self._home = home
        self._running = running
        self._say = say
        self._programs: dict[str, Program] = {}
        self.started: list[str] = []

    @property
    def running(self) -> Running:
        """With everything that was started."""
        return self._running

    def launch_server(self, server: Server) -> None:
        """Starts NATS or the depot and waits for it; tells a running NATS to read its users again."""
        name = server.program.name
        process = self._alive(name)
        if process is None:
            process = self._start(server.program)
        elif name == "nats":
            os.kill(process.pid, signal.SIGHUP)  # a lane may have been added since
        programs.wait_ready(server.program, process, server.is_ready, READY_WITHIN_S)

    def launch_services(self, wanted: Mapping[str, Program]) -> None:
        """The scheduler makes the streams that all others read: it answers before they start."""
        self._programs = dict(wanted)
        for name, program in wanted.items():
            if self._alive(name) is None:
                self._start(program)
            if name == "scheduler":
                self._wait(name, self._scheduler_answers)

    def wait_until_ready(self, wanted: Wanted) -> None:
        with self._client() as client:
            self._wait("telemetry", lambda: all(device.proof is not None for device in client.list_gpus()))
            for lane in wanted.workers:
                self._wait(services.worker_name(lane.id), partial(_worker_is_alive, client, lane.id))
        self._wait("reporter", lambda: True)
        if wanted.with_panel:
            self._wait("panel", self._panel_answers)

    def _scheduler_answers(self) -> bool:
        try:
            with self._client() as client:
                client.list_lanes()
        except Unavailable:
            return False
        return True

    def _panel_answers(self) -> bool:
        port, process = self._running.ports["panel"], self._running.processes["panel"]
        return ports.is_held_by(port, process.pid) and _http_ok(port, "/_stcore/health")

    def _client(self) -> Client:
        settings = services.client_settings(self._home, self._running.ports)
        token = Path(settings["SCREENTEST_GRPC_TOKEN_FILE"]).read_text()
        return Client.connect(settings["SCREENTEST_GRPC_ADDRESS"], token=token)

    def _alive(self, name: str) -> Process | None:
        process = self._running.processes.get(name)
        return process if process is not None and programs.is_running(process) else None

    def _start(self, program: Program) -> Process:
        if "SCREENTEST_STATE_DIR" in program.env:
            Path(program.env["SCREENTEST_STATE_DIR"]).mkdir(parents=True, exist_ok=True)
        process = programs.start(services.marked(program, self._running.marker))
        self._running = replace(self._running, processes={**self._running.processes, program.name: process})
        self._home.write(self._running)
        self.started.append(program.name)
        return process

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        def answers() -> bool:
            try:
                return is_ready()
            except Unavailable:  # the scheduler is busy or restarts: look again
                return False

        process = self._running.processes[name]
        was_started = name in self.started
        programs.wait_ready(self._programs[name], process, answers, SERVICES_READY_WITHIN_S, poll_s=POLL_S)
        if was_started:
            self._say(f"{name} is up")


def _worker_is_alive(client: Client, lane_id: str) -> bool:
    return any(lane.lane_id == lane_id and lane.worker_alive for lane in client.list_lanes())


def _plan(home: Home, wanted: Wanted, environment: Mapping[str, str], say: Say) -> Running:
    """The record of this stack: the old one where something still runs, new ports where they are needed."""
    known = home.read() or Running(marker=stdlib_secrets.token_hex(8), device=wanted.device)
    running = {name: process for name, process in known.processes.items() if programs.is_running(process)}
    if running:
        say(f"already running in {home.path}: {', '.join(running)}")
        if known.device != wanted.device:
            raise NotPossibleNow(f"this stack runs with --device {known.device}; run `screentest down` first")
    lane_ids = tuple(dict.fromkeys([*(known.lane_ids if running else ()), *(lane.id for lane in wanted.workers)]))
    return replace(
        known,
        device=wanted.device,
        lane_ids=lane_ids,
        ports=_ports(known.ports, environment, wanted.port_names, keep=bool(running), say=say),
        processes=running,
    )


def _ports(
    known: Mapping[str, int], environment: Mapping[str, str], names: Sequence[str], *, keep: bool, say: Say
) -> dict[str, int]:
    """Set ones, else those of last time, else free ones. While anything runs (``keep``) they must stay."""
    fixed = {name: _port_setting(setting, environment) for name, setting in services.PORT_SETTINGS.items()}
    if keep:
        if any(name.startswith(services.METRICS) and name not in known for name in names):
            say("what runs without metrics keeps running so; `screentest down`, then `screentest up --metrics`")
        return dict(known)
    chosen: dict[str, int] = {}
    for name in names:
        asked, before = fixed.get(name), known.get(name)
        if asked is not None:
            ports.require_free(asked, name, services.PORT_SETTINGS[name])
            chosen[name] = asked
        elif before is not None and ports.is_free(before):
            chosen[name] = before
        elif before is not None:
            say(f"port {before} ({name}) was taken by {ports.holder_of(before) or 'another user'}; choosing another")
    missing = [name for name in names if name not in chosen]
    if "panel" in missing and ports.is_free(STREAMLIT_PORT) and STREAMLIT_PORT not in chosen.values():
        chosen["panel"] = STREAMLIT_PORT
        missing.remove("panel")
    spare = iter(ports.choose(len(missing) + len(chosen)))
    for name in missing:
        chosen[name] = next(port for port in spare if port not in chosen.values())
    return chosen


def _port_setting(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise BadRequest(f"{name}={text!r} is no port; give a number between 1024 and 65535")
    return int(text)


def _require_device(device: str) -> None:
    if device == "cpu-0":
        return
    if device != "gpu-0":
        raise BadRequest(f"device {device!r} is unknown; use cpu-0 or gpu-0")
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        raise NotPossibleNow(
            "no NVIDIA GPU is visible here (no /dev/nvidia0): install the driver, or give the container the GPU; "
            "`screentest up --device cpu-0` runs the miniatures without one"
        )


def _write_client_file(home: Home, chosen: Mapping[str, int]) -> None:
    settings = services.client_settings(home, chosen)
    write_private(home.client_file, "".join(f"{name}={value}\n" for name, value in settings.items()))


def _stop_groups(up_now: Mapping[str, Process]) -> tuple[dict[str, Process], ...]:
    """Workers before the scheduler they report to, the servers last."""
    last = {"nats", "depot"}
    middle = {"scheduler", "telemetry", "reporter"}
    return (
        {name: process for name, process in up_now.items() if name not in last | middle},
        {name: process for name, process in up_now.items() if name in middle},
        {name: process for name, process in up_now.items() if name in last},
    )


def _http_ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
