"""The compose files agree with the lanes, with the generated secrets and with what may listen where.

`tests/engine` starts what they describe.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# The workspace has no YAML parser; the model env brings one.
YAML_PYTHON = ROOT / ".venvs/diffusers/bin/python"

# `!reset` and `!override` are Compose's own: their values are read as they stand.
READ_YAML = """
import json, sys, yaml
def plain(loader, suffix, node):
    build = {yaml.MappingNode: loader.construct_mapping, yaml.SequenceNode: loader.construct_sequence}
    return build.get(type(node), loader.construct_scalar)(node)
yaml.SafeLoader.add_multi_constructor("!", plain)
print(json.dumps({name: yaml.safe_load(open(name)) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    """Every compose file by its name."""
    if not YAML_PYTHON.exists():
        pytest.skip("the diffusers env is missing: make envs")
    paths = [ROOT / "compose.yaml", *sorted((ROOT / "deploy").glob("compose.*.yaml"))]
    done = subprocess.run([YAML_PYTHON, "-c", READ_YAML, *paths], capture_output=True, text=True, check=True)
    return {Path(name).name: content for name, content in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def compose(files: dict[str, Any]) -> dict[str, Any]:
    return dict(files["compose.yaml"])


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "SCREENTEST_HOME": str(home)}
    subprocess.run([BIN / "screentest", "secrets", "--also", "spark"], env=environment, check=True, capture_output=True)
    return home / "secrets"


def lanes() -> dict[str, dict[str, Any]]:
    """Every lane that has a container; the stub lanes draw without a model, for tests."""
    paths = (ROOT / "deploy/lanes").glob("*.toml")
    return {path.stem: tomllib.loads(path.read_text()) for path in paths if not path.stem.startswith("stub")}


def judges() -> dict[str, dict[str, Any]]:
    return {path.stem: tomllib.loads(path.read_text()) for path in (ROOT / "deploy/judges").glob("*.toml")}


def of_lanes(services: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): service for name, service in services.items() if name.startswith(prefix)}


def test_every_lane_and_judge_has_its_worker_its_profile_and_its_user(compose: dict[str, Any]) -> None:
    workers = of_lanes(compose["services"], "worker-")
    assert set(workers) == {*lanes(), *judges()}
    for lane_id, lane in lanes().items():
        assert workers[lane_id]["profiles"] == ["gpu", lane["task"]]
        assert workers[lane_id]["environment"]["SCREENTEST_LANE_FILE"].endswith(f"/lanes/{lane_id}.toml")
    for judge_id, judge in judges().items():
        assert ("rehearsal" in workers[judge_id]["profiles"]) == (judge["adapter"] == "pixels")
        assert (workers[judge_id]["extends"]["service"] == "judge-gpu") == (judge["device"] == "gpu")
        assert workers[judge_id]["environment"]["SCREENTEST_LANE_FILE"].endswith(f"/judges/{judge_id}.toml")
    for worker_id, worker in workers.items():
        assert worker["environment"]["SCREENTEST_NATS_USER"] == f"worker-{worker_id}"
        assert [secret["source"] for secret in worker["secrets"]] == [f"nats-worker-{worker_id}"]


def test_overrides_speak_of_every_worker_that_they_concern(files: dict[str, Any]) -> None:
    def spoken_of(name: str) -> set[str]:
        return set(of_lanes(files[name]["services"], "worker-"))

    on_gpu = {judge_id for judge_id, judge in judges().items() if judge["device"] == "gpu"}
    assert spoken_of("compose.cpu.yaml") == {*lanes(), *on_gpu}
    assert spoken_of("compose.spark.yaml") == {*lanes(), *judges()}
    assert spoken_of("compose.second-host.yaml") == set(lanes())


def test_rehearsal_has_the_lanes_of_the_demo(compose: dict[str, Any]) -> None:
    demo = tomllib.loads((ROOT / "deploy/sweeps/architects-stillness.toml").read_text())["lanes"]
    rehearsed = of_lanes(compose["services"], "rehearsal-")
    assert set(rehearsed) == set(demo)
    assert all(service["profiles"] == ["rehearsal"] for service in rehearsed.values())


def test_no_two_workers_share_a_disk(compose: dict[str, Any]) -> None:
    disks = [
        service["volumes"] for name, service in compose["services"].items() if "-".join(name.split("-")[1:]) in lanes()
    ]
    assert len(disks) == len({json.dumps(disk) for disk in disks})


def test_every_secret_is_one_that_make_secrets_writes(files: dict[str, Any], secrets: Path) -> None:
    named = {
        secret["file"].rpartition("/")[2].replace("${SCREENTEST_HOST}", "spark")
        for content in files.values()
        for secret in content.get("secrets", {}).values()
    }
    by_hand = {"panel-login.toml"}  # what an identity provider gave: docs/operations.md
    assert named - by_hand <= {path.name for path in secrets.iterdir()}


def test_published_ports_are_on_loopback(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    # The panel's may be moved by a variable that the panel is told too: beyond loopback it wants a login.
    loopback = ("127.0.0.1:", "${SCREENTEST_PANEL_BIND:-127.0.0.1}:")
    assert all(port.startswith(loopback) for port in published)
    assert compose["services"]["ui"]["environment"]["SCREENTEST_PANEL_BIND"] == loopback[1].removesuffix(":")


def test_only_telemetry_sees_the_host_s_processes_and_workers_have_no_way_out(files: dict[str, Any]) -> None:
    compose, worker = files["compose.yaml"], files["compose.worker.yaml"]["services"]
    assert {name for name, service in compose["services"].items() if service.get("pid")} == {
        "telemetry",
        "telemetry-cpu",
    }
    assert worker["base"]["networks"] == ["lanes"]
    assert all("networks" not in service for name, service in worker.items() if name != "base")
    workers = of_lanes(compose["services"], "worker-")
    # A judge that asks a server elsewhere has to reach it; it holds no model.
    assert {name for name, service in workers.items() if "networks" in service} == {"endpoint"}
    assert all(compose["networks"][name]["internal"] for name in ("broker", "lanes", "storage", "vault", "api"))


def test_every_container_is_locked_down_and_says_whether_it_is_well(files: dict[str, Any]) -> None:
    services = {
        **{name: service for name, service in files["compose.yaml"]["services"].items() if "extends" not in service},
        "worker": files["compose.worker.yaml"]["services"]["base"],
    }
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].startswith("${SCREENTEST_UID:-1000}"), name
        assert service["pids_limit"] and service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", [])), name
    limited = {**services, **{name: files["compose.worker.yaml"]["services"][name] for name in ("gpu", "rehearsal")}}
    assert all("mem_limit" in service for name, service in limited.items() if name != "worker")


def test_broker_accepts_the_configuration_with_the_generated_users(secrets: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/nats.conf", tmp_path)
    shutil.copy(secrets / "nats-users.conf", tmp_path)
    done = subprocess.run([BIN / "nats-server", "-t", "-c", tmp_path / "nats.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
