"""The servers we start: ready, durable, private."""

from __future__ import annotations

import asyncio
import http.server
import stat
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from screentest.errors import NotFound, Unavailable
from screentest.kit.bus import Append, Bus
from screentest.kit.clock import new_event_id, process_of
from screentest.kit.store import Store
from screentest_ui import ports, programs, servers
from tests.conftest import Depot, RunningServer


async def test_what_was_acknowledged_survives_a_sigkill_of_the_broker(nats_server: RunningServer, bus: Bus) -> None:
    append = Append(subject="events.s.l.j", payload=b"one", expected_sequence=0, event_id=new_event_id())
    sequence = await bus.append(append)
    nats_server.kill()
    nats_server.start()
    again = await Bus.connect(nats_server.url, name="after")
    last = await again.last("EVENTS", "events.s.l.j")
    await again.close()
    assert last is not None
    assert (last.sequence, last.payload) == (sequence, b"one")


async def test_objects_survive_a_sigkill_of_the_depot(depot: Depot, store: Store) -> None:
    await store.put("a/b.txt", b"kept", "text/plain")
    depot.server.kill()
    depot.server.start()
    assert await store.get("a/b.txt") == b"kept"


async def test_depot_refuses_everybody_without_a_key(depot: Depot, store: Store) -> None:
    await store.put("a.txt", b"secret", "text/plain")
    with pytest.raises(urllib.error.HTTPError) as refused:
        await asyncio.to_thread(urllib.request.urlopen, f"{depot.url}/{depot.bucket}/a.txt", timeout=5)
    assert refused.value.code == 403


async def test_missing_object_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="nothing-here"):
        await store.get("nothing-here")


def test_servers_listen_on_loopback_only(
    nats_server: RunningServer, depot_server: tuple[RunningServer, tuple[servers.DepotKey, ...]]
) -> None:
    ours = {str(server.process.pid) for server in (nats_server, depot_server[0]) if server.process}
    open_ports = [port for pid, address, port in _listeners() if pid in ours and address != "0100007F"]
    assert open_ports == []
    assert len([pid for pid, _, _ in _listeners() if pid in ours]) >= 2


def test_configuration_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    servers.configure_nats(tmp_path, 4222)
    assert stat.S_IMODE((tmp_path / "nats.conf").stat().st_mode) == 0o600


def test_taken_port_names_its_holder_and_the_setting(nats_server: RunningServer) -> None:
    assert nats_server.process is not None
    with pytest.raises(Unavailable, match=rf"port {nats_server.port} .* pid {nats_server.process.pid} .*SCREENTEST_X"):
        ports.require_free(nats_server.port, "the broker", "SCREENTEST_X")


def test_program_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    program = programs.Program(
        name="sick", argv=("/bin/sh", "-c", "echo no disk; sleep 0.1; exit 3"), log_path=tmp_path / "log"
    )
    process = programs.start(program)
    with pytest.raises(programs.StartFailed, match="no disk"):
        programs.wait_ready(program, process, lambda: False, 10)


def test_stop_takes_the_whole_tree(tmp_path: Path) -> None:
    """A child that ignores SIGTERM and left the session dies with its parent."""
    stubborn = "trap '' TERM; echo \\$\\$ > pid; while :; do sleep 0.05; done"
    script = f"trap '' TERM; setsid sh -c \"{stubborn}\" & wait; wait; wait"
    program = programs.Program(name="tree", argv=("/bin/sh", "-c", script), log_path=tmp_path / "log", cwd=tmp_path)
    process = programs.start(program)
    programs.wait_ready(
        program, process, lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()), 5
    )
    child = int((tmp_path / "pid").read_text())
    programs.stop(process, grace_s=0.3)
    assert process_of(process.pid) is None
    assert process_of(child) is None


def _listeners() -> list[tuple[str, str, int]]:
    """(pid, address as the kernel prints it, port) of every listening TCP socket whose process we can see."""
    owners = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                owners.update({str(link.readlink()): entry.name for link in (entry / "fd").iterdir()})
            except OSError:
                continue
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            columns = row.split()
            address, _, port = columns[1].rpartition(":")
            if columns[3] == "0A":
                found.append((owners.get(f"socket:[{columns[9]}]", "?"), address, int(port, 16)))
    return found


class Master(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"Topology": {"DataCenters": [{"Racks": [{"DataNodes": [{"Url": "127.0.0.1:1"}]}]}]}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_proxy_of_the_environment_is_not_asked_about_a_server_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib would ask it where no_proxy is not set, and `screentest up` would give up on a depot that is there."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Master) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert servers._knows_a_volume_server(server.server_port)
        server.shutdown()
