"""The API beyond loopback: encrypted, with a token, checked against our own authority, and silent about itself."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from screentest.addresses import is_loopback
from screentest.client import Client
from screentest.errors import BadRequest, Unavailable
from screentest_scheduler import exposure
from screentest_ui import certificates
from tests.played import TOKEN, Scheduler

NOW = datetime.now(UTC)


@pytest.fixture
def files(tmp_path: Path) -> certificates.Certificates:
    return certificates.ensure(tmp_path / "certs", NOW)


class TlsScheduler(Scheduler):
    """The same process on every interface of this machine."""

    ca: Path

    def client(self) -> Client:
        return Client.connect(self.address, token=TOKEN, ca=self.ca)


@pytest.fixture
def exposed(scheduler: Scheduler, files: certificates.Certificates) -> TlsScheduler:
    scheduler.kill()
    port = scheduler.address.rpartition(":")[2]
    scheduler.environment.update(
        SCREENTEST_GRPC_ADDRESS=f"0.0.0.0:{port}",
        SCREENTEST_GRPC_TLS_CERT_FILE=str(files.server),
        SCREENTEST_GRPC_TLS_KEY_FILE=str(files.server_key),
    )
    scheduler.__class__ = TlsScheduler  # the fixture stops what it started
    assert isinstance(scheduler, TlsScheduler)
    scheduler.ca = files.ca
    scheduler.start()
    return scheduler


def test_beyond_loopback_calls_are_encrypted_and_the_server_proves_itself(
    exposed: TlsScheduler, tmp_path: Path
) -> None:
    with exposed.client() as client:
        assert client.list_sweeps() == ()
    other = certificates.ensure(tmp_path / "other", NOW)
    with (
        Client.connect(exposed.address, token=TOKEN, ca=other.ca) as client,
        pytest.raises(Unavailable, match="does not prove who it is"),
    ):
        client.list_sweeps()
    with Client.connect(exposed.address) as client, pytest.raises(Unavailable):  # plain text
        client.list_sweeps()

    channel = grpc.secure_channel(exposed.address, grpc.ssl_channel_credentials(exposed.ca.read_bytes()))
    reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with channel, pytest.raises(grpc.RpcError) as refused:
        list(reflect(iter([b""]), timeout=10, metadata=(("authorization", f"Bearer {TOKEN}"),)))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_command_finds_an_exposed_scheduler_by_its_settings(exposed: TlsScheduler, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "screentest"), "status", "--json"]
    environment = {
        **os.environ,
        "SCREENTEST_HOME": str(tmp_path / "empty"),
        "SCREENTEST_GRPC_ADDRESS": exposed.address,
        "SCREENTEST_GRPC_TOKEN_FILE": exposed.environment["SCREENTEST_GRPC_TOKEN_FILE"],
        "SCREENTEST_GRPC_CA_FILE": str(exposed.ca),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_scheduler_refuses_to_be_exposed_without_tls(scheduler: Scheduler, tmp_path: Path) -> None:
    scheduler.kill()
    scheduler.environment["SCREENTEST_GRPC_ADDRESS"] = "0.0.0.0:0"
    done = subprocess.run(
        [sys.executable, "-m", "screentest_scheduler.main"],
        env=scheduler.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("the scheduler does not listen on 0.0.0.0:0, beyond this machine, without TLS; set SCREEN")
    assert "make certs" in last


def test_no_exposure_without_token_and_no_half_pair(files: certificates.Certificates) -> None:
    with pytest.raises(BadRequest, match="without a token"):
        exposure.credentials("0.0.0.0:1", files.server, files.server_key, has_token=False)
    with pytest.raises(BadRequest, match="go together"):
        exposure.credentials("127.0.0.1:1", files.server, None, has_token=True)
    with pytest.raises(BadRequest, match="cannot be read"):
        exposure.credentials("0.0.0.0:1", files.server, files.server / "no", has_token=True)
    assert exposure.credentials("127.0.0.1:1", None, None, has_token=False) is None


def test_client_sends_no_token_readable_beyond_this_machine() -> None:
    with pytest.raises(BadRequest, match="would travel readable"):
        Client.connect("gpu-host:50051", token="t")
    with pytest.raises(BadRequest, match="SCREENTEST_GRPC_CA_FILE"):
        Client.connect("gpu-host:50051", token="t", ca=Path("/nowhere/ca.pem"))


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("dns:///localhost:1", True),
        ("unix:/run/s.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("localhost.evil.example:1", False),
        ("192.168.1.4:1", False),
    ],
)
def test_only_this_machine_is_loopback(address: str, is_local: bool) -> None:
    assert is_loopback(address) is is_local


def test_new_names_need_no_new_authority_and_files_are_private(tmp_path: Path) -> None:
    environment = {**os.environ, "SCREENTEST_HOME": str(tmp_path)}
    run = [str(Path(sys.executable).parent / "screentest"), "certs"]
    files = certificates.Certificates.in_(tmp_path / "secrets")
    subprocess.run(run, env=environment, check=True, capture_output=True)
    first = files.ca.read_bytes(), files.server.read_bytes()
    done = subprocess.run(
        [*run, "--name", "gpu.lan", "--name", "10.0.0.5"], env=environment, check=True, capture_output=True, text=True
    )
    assert "gpu.lan, 10.0.0.5 until" in done.stdout
    assert files.ca.read_bytes() == first[0]
    assert files.server.read_bytes() != first[1]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == {0o600}


def test_files_that_do_not_belong_together_are_told(files: certificates.Certificates, tmp_path: Path) -> None:
    other = certificates.ensure(tmp_path / "other", NOW)
    files.ca_key.write_bytes(other.ca_key.read_bytes())
    with pytest.raises(BadRequest, match="is not the key of"):
        certificates.sign(files.ca.parent, (), NOW)
    with pytest.raises(BadRequest, match="neither a host name nor an address"):
        certificates.sign(other.ca.parent, ("bücher",), NOW)
