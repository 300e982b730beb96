"""`screentest depot check` on the real depot, and on one with a fault in front of it."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from pydantic import SecretStr

from screentest.kit.store import Store
from screentest_ui import cli
from screentest_ui.depot_contract import Contract
from tests.conftest import Depot


def test_our_depot_holds_the_contract_and_is_left_as_it_was(
    depot: Depot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(depot.scheduler.secret_key)
    monkeypatch.setenv("SCREENTEST_DEPOT_URL", depot.url)
    monkeypatch.setenv("SCREENTEST_DEPOT_BUCKET", depot.bucket)
    monkeypatch.setenv("SCREENTEST_DEPOT_ACCESS_KEY", depot.scheduler.access_key)
    monkeypatch.setenv("SCREENTEST_DEPOT_SECRET_KEY_FILE", str(secret))
    assert cli.run(["depot", "check", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 13
    assert [result["problem"] for result in results] == [""] * 13
    assert asyncio.run(depot.store().keys("checks/")) == ()


async def test_a_depot_that_ignores_the_condition_is_found_out(depot: Depot) -> None:
    with _without_header(depot.url, "If-None-Match") as url:
        secret = SecretStr(depot.scheduler.secret_key)
        store = Store(url=url, bucket=depot.bucket, access_key=depot.scheduler.access_key, secret_key=secret)
        results = await Contract(store).run()
    broken = {result.what: result.problem for result in results if result.problem}
    assert broken == {
        "If-None-Match: * keeps the first content": "the second PUT is accepted",
        "of 8 conditional PUTs at once one wins": "8 of them were accepted",
    }


@contextmanager
def _without_header(url: str, header: str) -> Iterator[str]:
    """A server before the depot that loses one header, as older S3 servers do."""
    pool = urllib3.PoolManager(retries=False)

    class Losing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name != header}
            reply = pool.request(self.command, url + self.path, body=body, headers=headers, decode_content=False)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                    self.send_header(name, value)
            length = reply.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(reply.data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Losing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
