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

from screentest.errors import NotFound, Unavailable
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
    with _in_front(depot.url, loses="If-None-Match") as url:
        results = await Contract(_store(depot, url)).run()
    broken = {result.what: result.problem for result in results if result.problem}
    assert broken == {
        "If-None-Match: * keeps the first content": "the second PUT is accepted",
        "of 8 conditional PUTs at once one wins": "8 of them were accepted",
    }


async def test_what_is_not_there_is_known_also_where_errors_are_text(depot: Depot) -> None:
    """rclone's S3 says text/xml: the reporter waited for ever for a first report that it took for a depot's fault."""
    with _in_front(depot.url, xml_type="text/xml; charset=utf-8") as url:
        with pytest.raises(NotFound, match="no object nothing"):
            await _store(depot, url).get("nothing")
        stranger = Store(url=url, bucket=depot.bucket, access_key="stranger", secret_key=SecretStr("stranger"))
        with pytest.raises(Unavailable, match=r"answers 403 for nothing.*depot check"):
            await stranger.get("nothing")


def _store(depot: Depot, url: str) -> Store:
    secret = SecretStr(depot.scheduler.secret_key)
    return Store(url=url, bucket=depot.bucket, access_key=depot.scheduler.access_key, secret_key=secret)


@contextmanager
def _in_front(url: str, *, loses: str = "", xml_type: str = "application/xml") -> Iterator[str]:
    """A server before the depot that loses one header of requests, or words its errors otherwise, as others do."""
    pool = urllib3.PoolManager(retries=False)

    class Losing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name != loses}
            reply = pool.request(self.command, url + self.path, body=body, headers=headers, decode_content=False)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                    self.send_header(name, xml_type if value == "application/xml" else value)
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
