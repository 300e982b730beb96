"""A web server in front of the depot that answers every second request with 500, and passes the others on as they are.

As they are: the signature of a URL covers its Host header.
"""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FlakyDepot:
    """``failed``: how many requests were answered with 500."""

    def __init__(self, port: int) -> None:
        self.failed = 0
        self._count = 0
        self._one_at_a_time = threading.Lock()
        flaky = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if flaky.fails():
                    self._answer(500, [], b"every second request fails here")
                    return
                there = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    there.putheader(name, value)
                there.endheaders(body)
                reply = there.getresponse()
                kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in HOP_BY_HOP]
                self._answer(reply.status, kept, reply.read(), reply.getheader("Content-Length"))
                there.close()

            do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

            def _answer(
                self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                is_head = self.command == "HEAD"
                self.send_header("Content-Length", (length or "0") if is_head else str(len(body)))
                self.end_headers()
                if not is_head:
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fails(self) -> bool:
        with self._one_at_a_time:
            self._count += 1
            fails = self._count % 2 == 0
            self.failed += fails
            return fails

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


HOP_BY_HOP = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})


@contextmanager
def flaky_depot(port: int) -> Iterator[FlakyDepot]:
    found = FlakyDepot(port)
    try:
        yield found
    finally:
        found.close()
