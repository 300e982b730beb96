"""compose.yaml on a real Docker Engine: images, isolation, the demo from outside, and a sweep through failures.

The only tests of the containers themselves; everything takes 5 to 10 minutes on two cores, so it runs last. Where no
engine can be started the tests are skipped, and say why.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from screentest.client import Client
from screentest.errors import ScreentestError
from screentest.records import FailureClass, Job, JobState, Weights
from screentest_ui import ports
from screentest_ui.home import Home
from screentest_ui.sweepfile import load
from tests.engine import engine as engines
from tests.engine.engine import ROOT, Compose, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

SCREENTEST = Path(sys.executable).parent / "screentest"
DEMO = ROOT / "deploy/sweeps/architects-stillness.toml"
# Who a container runs as; root has no business in one.
USER = 1000
IMAGES = ("servers", *engines.LIGHT, "worker-diffusers", "worker-judge")
# Over the base. Streamlit's tables go through NumPy, pandas and Arrow, 200 MiB by themselves; choix through SciPy, 160.
LIGHT_MIB = 200
HEAVY = {"reporter": 360, "ui": 350, "worker-diffusers": 2600, "worker-judge": 2600}
OVERRIDES = ("cpu", "spark", "lan", "login", "minio", "s3")
# What a file asks for with `:?`; only validated here.
PLACES = {
    "SCREENTEST_LAN_ADDRESS": "10.0.0.1",
    "SCREENTEST_FIRST_HOST": "10.0.0.1",
    "SCREENTEST_MINIO_IMAGE": "registry.invalid/minio:pinned",
    "SCREENTEST_DEPOT_URL": "https://s3.example.org",
}
T = TypeVar("T")
Tell = Callable[[str], None]
# No measure of speed: what has not come by then will not come.
START_WITHIN_S = 240.0
STARTED = frozenset({JobState.RUNNING, JobState.COMPLETED})
DONE = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.REFUSED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The rehearsal of compose.yaml, up and well, as a person outside the containers sees it."""

    compose: Compose
    home: Home
    grpc: str

    @property
    def settings(self) -> dict[str, str]:
        secrets = self.home.secrets.directory
        return {
            "SCREENTEST_HOME": str(self.home.path),
            "SCREENTEST_GRPC_ADDRESS": self.grpc,
            "SCREENTEST_GRPC_TOKEN_FILE": str(secrets / "grpc.token"),
            "SCREENTEST_GRPC_CA_FILE": str(secrets / "grpc-ca.pem"),
        }

    def client(self) -> Client:
        return Client.from_environment(self.settings)

    def screentest(self, *arguments: str, timeout_s: float = 400) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SCREENTEST_")}
        done = subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.home.path,
            env={**clean, **self.settings},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + self.compose.logs()[-6000:]
        return done.stdout


@pytest.fixture(scope="module")
def tell(request: pytest.FixtureRequest) -> Tell:
    """Writes into the run's output, also when the test passes, and also from a worker of xdist."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n{text}\n")

    return write


@pytest.fixture(scope="module")
def engine(tell: Tell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    try:
        with engines.started(tmp_path_factory.mktemp("engine") / "docker") as running:
            yield running
    except engines.NoEngine as reason:
        _skip(tell, reason)


@pytest.fixture(scope="module")
def tools(tell: Tell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return engines.install_tools(tmp_path_factory.mktemp("tools"))
    except engines.NoEngine as reason:
        _skip(tell, reason)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the secrets of a stack, readable by the user of the containers and by nobody else."""
    found = Home(tmp_path_factory.mktemp("home"))
    subprocess.run(
        [SCREENTEST, "secrets"], env={**os.environ, "SCREENTEST_HOME": str(found.path)}, check=True, capture_output=True
    )
    for path in (found.secrets.directory, *found.secrets.directory.iterdir()):
        os.chown(path, USER, USER)
    return found


@pytest.fixture(scope="module")
def images(engine: Engine, home: Home, tell: Tell, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Built after the secrets were made, so that one could be in them."""
    folder = tmp_path_factory.mktemp("images")
    try:
        engines.import_base(engine, folder)
    except engines.NoEngine as reason:
        _skip(tell, reason)
    engines.build_all(engine, folder)
    return tuple(f"screentest-{name}:latest" for name in IMAGES)


@pytest.fixture(scope="module")
def stack(engine: Engine, tools: Path, home: Home, images: tuple[str, ...], tell: Tell) -> Iterator[Stack]:
    grpc, depot, panel = ports.choose(3)
    settings = {
        "SCREENTEST_SECRETS": str(home.secrets.directory),
        "SCREENTEST_UID": str(USER),
        "SCREENTEST_GID": str(USER),
        "SCREENTEST_GRPC_PORT": str(grpc),
        "SCREENTEST_DEPOT_PORT": str(depot),
        "SCREENTEST_DEPOT_PUBLIC_URL": f"http://127.0.0.1:{depot}",
        "SCREENTEST_PANEL_PORT": str(panel),
        # Nothing here waits for a person: what is wrong shows in the sweep.
        "SCREENTEST_DEVICES": "cpu-0",
    }
    compose = Compose(engine=engine, binary=tools / "docker-compose", settings=settings)
    stack = Stack(compose=compose, home=home, grpc=f"127.0.0.1:{grpc}")
    try:
        began = time.monotonic()
        # Compose comes back when every container is well; a person can submit long before that.
        with ThreadPoolExecutor(max_workers=1) as beside:
            coming_up = beside.submit(compose.run, "up", "--no-build", "--detach", "--wait", check=False)
            moments = _submit_at_once(stack, coming_up, began)
        up = coming_up.result()
        assert up.returncode == 0, up.stderr[-3000:] + compose.logs()
        tell(f"compose up: {moments}; up and well after {time.monotonic() - began:.0f} s")
        yield stack
    finally:
        compose.run("down", "--volumes", "--timeout=5", check=False)


def _submit_at_once(stack: Stack, coming_up: Future[Any], began: float) -> str:
    """Asks for one job of the demo until the API takes it, then waits for its worker and its start. Says when."""
    lane = tomllib.loads(DEMO.read_text())["lanes"][0]
    spec = load(DEMO).with_options(lane_ids=(lane,), weights=Weights.MINIATURE).spec(None)
    request_id = uuid.uuid4().hex  # the same each time: an answer that got lost does not make a second sweep
    moments: list[str] = []

    def reach(what: str, look: Callable[[], T | None]) -> T:
        while True:
            with contextlib.suppress(ScreentestError):
                if (found := look()) is not None:
                    moments.append(f"{what} after {time.monotonic() - began:.1f} s")
                    return found
            assert not coming_up.done() or coming_up.result().returncode == 0, coming_up.result().stderr[-3000:]
            assert time.monotonic() - began < START_WITHIN_S, f"never {what}: {moments}\n{stack.compose.logs()[-6000:]}"
            time.sleep(0.1)

    with stack.client() as client:
        accepted = reach("submit acknowledged", lambda: client.submit_sweep(spec, request_id=request_id))
        sweep_id = accepted.sweep.record.sweep_id
        reach(
            "its lane's worker there",
            lambda: lane in {v.lane_id for v in client.list_lanes() if v.worker_alive} or None,
        )
        reach("its job started", lambda: next((j for j in client.list_jobs(sweep_id) if j.state in STARTED), None))
    return ", ".join(moments)


def _skip(tell: Tell, reason: Exception) -> NoReturn:
    text = f"NO DOCKER ENGINE: what compose.yaml describes was NOT tested. {reason}"
    tell(f"{'!' * 100}\n{text}\n{'!' * 100}")
    pytest.skip(text)


# ---- what is written


def test_dockerfiles_and_every_compose_file_are_in_order(tools: Path, home: Home) -> None:
    recipes = sorted((ROOT / "deploy").glob("Dockerfile.*"))
    linted = subprocess.run([tools / "hadolint", *recipes], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")
    for override in ("", *OVERRIDES):
        files = ["--file=compose.yaml", *([f"--file=deploy/compose.{override}.yaml"] if override else [])]
        for profile in ("gpu", "rehearsal", "t2v", "i2v"):
            _config(tools, home, *files, f"--profile={profile}")
    _config(tools, home, "--file=deploy/compose.second-host.yaml", "--profile=gpu", SCREENTEST_HOST="spark")


def test_overrides_take_away_what_their_machines_do_not_have(tools: Path, home: Home) -> None:
    plain = _config(tools, home, "--file=compose.yaml", "--profile=gpu")
    cpu = _config(tools, home, "--file=compose.yaml", "--file=deploy/compose.cpu.yaml", "--profile=gpu")
    spark = _config(tools, home, "--file=compose.yaml", "--file=deploy/compose.spark.yaml", "--profile=gpu")
    worker = "worker-wan2-1-t2v-1-3b"
    assert plain[worker]["gpus"] and plain[worker]["mem_limit"]
    assert not [name for name, service in cpu.items() if service.get("gpus")]
    assert cpu[worker]["environment"]["SCREENTEST_DEVICE"] == "cpu-0"
    assert spark[worker]["gpus"] and not spark[worker].get("mem_limit")
    assert {service["platform"] for service in spark.values()} == {"linux/arm64"}
    s3 = _config(tools, home, "--file=compose.yaml", "--file=deploy/compose.s3.yaml", "--profile=gpu")
    assert not {"depot", "weed"} & set(s3)
    second = _config(tools, home, "--file=deploy/compose.second-host.yaml", "--profile=gpu", SCREENTEST_HOST="spark")
    assert all(name == "telemetry" or name.startswith("worker-") for name in second)
    assert all(service["environment"]["SCREENTEST_NATS_USER"].endswith("-at-spark") for service in second.values())


def _config(tools: Path, home: Home, *arguments: str, **settings: str) -> dict[str, dict[str, Any]]:
    """The services as Compose understands them."""
    environment = {**os.environ, **PLACES, "SCREENTEST_SECRETS": str(home.secrets.directory), **settings}
    done = subprocess.run(
        [tools / "docker-compose", "--env-file", os.devnull, *arguments, "config", "--format=json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return dict(json.loads(done.stdout)["services"])


def test_images_are_light_run_as_nobody_special_and_hold_no_tools(
    engine: Engine, images: tuple[str, ...], tell: Tell
) -> None:
    base = _mib(engine, engines.BASE)
    sizes = [f"base {base:.0f} MiB"]
    for name, image in zip(IMAGES, images, strict=True):
        over = _mib(engine, image) - base
        sizes.append(f"{image} {over:.0f} MiB over the base")
        assert over <= HEAVY.get(name, LIGHT_MIB), image
        about = json.loads(engine.run("inspect", image).stdout)[0]["Config"]
        assert about["User"] == f"{USER}:{USER}"
        assert about["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
        found = engine.run("run", "--rm", "--entrypoint=sh", image, "-c", "command -v uv gcc cc make git curl; true")
        assert found.stdout == "", image
    tell("; ".join(sizes))


def _mib(engine: Engine, image: str) -> float:
    return int(engine.run("inspect", "--format", "{{.Size}}", image).stdout) / 2**20


def test_no_layer_holds_a_secret(engine: Engine, home: Home, images: tuple[str, ...], tmp_path: Path) -> None:
    """Passwords, keys, tokens, and how this machine reaches its package index."""
    kept = home.secrets.directory
    secrets = {path.read_text().strip() for path in kept.iterdir() if path.suffix in {".password", ".secret", ".token"}}
    keys = {path.read_text().splitlines()[1] for path in kept.glob("*.key")}
    folders = {part for part in os.environ.get("PIP_FIND_LINKS", "").split() if part}
    words = tmp_path / "words"
    control = "org.opencontainers.image.licenses"  # is in every image: a search that finds nothing searched nothing
    words.write_text("\n".join(sorted(secrets | keys | folders | {"UV_FIND_LINKS=", control})))
    for image in images:
        with subprocess.Popen([engine.docker, "save", image], env=engine.environment, stdout=subprocess.PIPE) as saved:
            found = subprocess.run(
                ["grep", "--text", "--only-matching", "--fixed-strings", f"--file={words}"],
                stdin=saved.stdout,
                capture_output=True,
                env={**os.environ, "LC_ALL": "C"},
            )
        assert set(found.stdout.decode(errors="replace").split()) == {control}, image


# ---- what runs


def test_demo_sweep_from_outside_completes_all_ten_rows(stack: Stack, tell: Tell) -> None:
    began = time.monotonic()
    out = stack.screentest("submit", str(DEMO), "--weights=miniature", "--wait")
    tell(f"the demo took {time.monotonic() - began:.0f} s")
    [sweep_id] = set(re.findall(r"the-architects-stillness-[0-9a-z]+", out))
    fetched = json.loads(stack.screentest("report", sweep_id, "--json").splitlines()[-1])
    report = json.loads((stack.home.path / fetched["index"]).with_name("report.json").read_text())
    assert report["final"] is True
    assert [row["status"] for row in report["rows"]] == ["completed"] * 10
    assert fetched["clips"] == 10
    assert "random weights" in (stack.home.path / fetched["index"]).read_text()


def test_panel_answers_on_loopback(stack: Stack) -> None:
    import urllib.request

    port = stack.compose.settings["SCREENTEST_PANEL_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=10) as reply:
        assert reply.read() == b"ok"


def test_every_page_of_the_panel_opens_in_its_slim_image(stack: Stack) -> None:
    """After the demo, so that there is something to show; what the image lacks shows as an exception on a page."""
    with stack.client() as client:
        demo = max(client.list_sweeps(), key=lambda sweep: len(sweep.record.lanes)).record.sweep_id
    done = subprocess.run(
        [stack.compose.engine.docker, "exec", "--interactive", stack.compose.container("ui"), "python3", "-", demo],
        input=(ROOT / "tests/engine/pages.py").read_text(),
        env=stack.compose.engine.environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert set(seen) == {"submit", "queue", "sweeps", "vitals", "lanes", "report"}
    assert {page: found["troubles"] for page, found in seen.items() if found["troubles"]} == {}
    # Tables with rows in them went through pandas and Arrow.
    assert seen["lanes"]["rows"] >= 10
    assert seen["sweeps"]["rows"] == 10


def test_nothing_on_any_network_does_what_it_must_not(stack: Stack, tell: Tell) -> None:
    tries: list[str] = []
    lane = "mochi-1-preview"
    for network, image, user in (
        ("lanes", "worker-diffusers", f"worker-{lane}"),
        ("broker", "telemetry", "telemetry"),
        ("broker", "reporter", "reporter"),
        ("storage", "reporter", ""),
        ("api", "ui", ""),
        ("edge", "scheduler", ""),
    ):
        tries += _probe(stack, network, image, user)
    tell("\n".join(tries))
    assert len(tries) > 200
    assert [line for line in tries if not line.startswith(("refused: ", "may: "))] == []
    # A probe that reaches nothing proves nothing.
    assert sum(line.startswith("may: ") for line in tries) == 14


def _probe(stack: Stack, network: str, image: str, user: str) -> list[str]:
    """The lines of probe.py, run as a container of that network runs: same user, same locks."""
    password = stack.home.secrets.nats_password_file(user).read_text() if user else ""
    done = subprocess.run(
        [
            *(stack.compose.engine.docker, "run", "--rm", "--interactive", "--read-only", "--cap-drop=ALL"),
            *(f"--user={USER}:{USER}", "--security-opt=no-new-privileges:true"),
            *("--dns=127.0.0.1", "--dns-option=timeout:1", "--dns-option=attempts:1"),
            *(f"--network={stack.compose.project}_{network}", f"--volume={ROOT}/tests/engine/probe.py:/probe.py:ro"),
            *("--entrypoint=python3", f"screentest-{image}:latest", "/probe.py", network, *([user] if user else [])),
        ],
        input=password,
        env=stack.compose.engine.environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_runner_is_unreadable_and_proven_all_the_same(stack: Stack) -> None:
    """Telemetry sees every process of the host, as the same user; it needs no more than their names and numbers.

    After the demo: its last runner is still warm.
    """
    script = (
        "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)\" in"
        " *'-m screentest_runne'[r]' '*) echo runner; cat $p/environ >/dev/null 2>&1 && echo READ;"
        " ls $p/fd/ >/dev/null 2>&1 && echo LISTED;; esac; done"
    )
    container = stack.compose.container("telemetry-cpu")
    seen = stack.compose.engine.run("exec", container, "sh", "-c", script).stdout.split()
    assert seen and set(seen) == {"runner"}
    log = stack.compose.engine.run("logs", container)
    assert '"kind": "handover", "clean": true' in log.stdout + log.stderr


def test_sweep_ends_right_through_killed_worker_restarted_broker_and_stopped_scheduler(
    stack: Stack, tell: Tell
) -> None:
    lanes = tuple(tomllib.loads(DEMO.read_text())["lanes"][:3])
    began = time.monotonic()
    with stack.client() as client:
        asked = load(DEMO).with_options(lane_ids=lanes, seeds=(1, 2), weights=Weights.MINIATURE)
        sweep_id = client.submit_sweep(asked.spec(None), request_id=uuid.uuid4().hex).sweep.record.sweep_id
        victim = _until(client, sweep_id, _running, "a running job")
        stack.compose.kill_first_process(f"rehearsal-{victim.spec.lane_id}")
        _until(
            client,
            sweep_id,
            lambda jobs: _running([job for job in jobs if job.spec.job_id != victim.spec.job_id]),
            "another job",
        )
        stack.compose.run("restart", "--timeout=5", "nats")
        _until(client, sweep_id, _one_more_done, "a job that ended after the broker was back")
        stack.compose.run("stop", "--timeout=10", "scheduler")
        time.sleep(2)
        stack.compose.run("start", "scheduler")
        jobs = _until(
            client, sweep_id, lambda jobs: jobs if all(job.state in DONE for job in jobs) else None, "the end"
        )
    ends = [(job.state.value, len(job.attempts)) for job in jobs]
    tell(f"the sweep ended after {time.monotonic() - began:.0f} s: {ends}")
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 6
    [lost] = [job for job in jobs if job.spec.job_id == victim.spec.job_id]
    assert len(lost.attempts) == 2
    assert lost.attempts[0].outcome is not None
    assert lost.attempts[0].outcome.failure_class is FailureClass.INFRASTRUCTURE


def _running(jobs: list[Job]) -> Job | None:
    return next((job for job in jobs if job.state is JobState.RUNNING), None)


def _one_more_done(jobs: list[Job]) -> Job | None:
    done = [job for job in jobs if job.state is JobState.COMPLETED]
    return done[-1] if len(done) >= 2 else None


def _until(client: Client, sweep_id: str, look: Callable[[list[Job]], T | None], what: str, within_s: float = 300) -> T:
    """Polls; a scheduler that is away is asked again."""
    deadline = time.monotonic() + within_s
    jobs: list[Job] = []
    while time.monotonic() < deadline:
        try:
            jobs = list(client.list_jobs(sweep_id))
        except ScreentestError:
            jobs = []
        if jobs and (found := look(jobs)) is not None:
            return found
        time.sleep(0.3)
    raise AssertionError(f"no {what} within {within_s:.0f} s: {[(job.spec.lane_id, job.state.value) for job in jobs]}")
