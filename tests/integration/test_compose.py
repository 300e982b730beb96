"""compose.yaml agrees with the lanes, with the generated secrets and with what may listen where."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# The workspace has no YAML parser; the model env brings one.
YAML_PYTHON = ROOT / ".venvs/diffusers/bin/python"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    if not YAML_PYTHON.exists():
        pytest.skip("the diffusers env is missing: make envs")
    script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    text = (ROOT / "compose.yaml").read_text()
    done = subprocess.run([YAML_PYTHON, "-c", script], input=text, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "SCREENTEST_HOME": str(home)}
    subprocess.run([BIN / "screentest", "secrets"], env=environment, check=True, capture_output=True)
    return home / "secrets"


def test_every_lane_has_its_worker(compose: dict[str, Any]) -> None:
    lanes = {path.stem for path in (ROOT / "deploy/lanes").glob("*.toml") if not path.stem.startswith("stub")}
    workers = {name.removeprefix("worker-") for name in compose["services"] if name.startswith("worker-")}
    assert workers == lanes


def test_every_secret_is_one_that_make_secrets_writes(compose: dict[str, Any], secrets: Path) -> None:
    named = {Path(secret["file"]).name for secret in compose["secrets"].values()}
    assert named <= {path.name for path in secrets.iterdir()}


def test_published_ports_are_on_loopback(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_only_telemetry_sees_the_host_s_processes_and_workers_have_no_way_out(compose: dict[str, Any]) -> None:
    assert [name for name, service in compose["services"].items() if service.get("pid")] == ["telemetry"]
    workers = [service for name, service in compose["services"].items() if name.startswith("worker-")]
    assert all(service["networks"] == ["inner"] for service in workers)
    assert compose["networks"]["inner"]["internal"] is True


def test_broker_accepts_the_configuration_with_the_generated_users(secrets: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/nats.conf", tmp_path)
    shutil.copy(secrets / "nats-users.conf", tmp_path)
    done = subprocess.run([BIN / "nats-server", "-t", "-c", tmp_path / "nats.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
