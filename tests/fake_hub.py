"""A model hub on loopback: as much of the hub's HTTP as a pull uses, with tiny repositories, and faults on demand.

Large files (`*.safetensors`) are in LFS and come from another path by redirect, as on the real hub. Every request is
kept, so that a test can say what was fetched and what was not.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

# huggingface_hub hands bytes on in pieces of 10 MiB: what breaks off earlier leaves nothing behind.
PIECE_BYTES = 10 * 2**20


@dataclass(kw_only=True)
class Repo:
    """Commits by their hash, oldest first; each a mapping of path to content. claimed_bytes: sizes that are a lie."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    claimed_bytes: dict[str, int] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes]) -> str:
        """A new commit, which `main` stands for from now on."""
        new = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[new] = dict(files)
        return new

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


@dataclass(kw_only=True)
class FakeHub:
    """token: what a gated repository wants. accepted: whether that person has accepted its licence."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    token: str = "hf_right"
    accepted: bool = True
    # How many bytes of a body are sent before the connection is cut; None: no cut. cuts: how many are still to come.
    cut_after_bytes: int | None = None
    cuts: int = 0
    # Bodies of LFS files are of the right length and not what is listed.
    is_altering: bool = False
    # Bodies of LFS files wait for this after their first piece.
    go_on: threading.Event = field(default_factory=threading.Event)

    def add(self, repo: str, files: Mapping[str, bytes], **settings: Any) -> str:
        """Returns the commit."""
        self.repos[repo] = Repo(**settings)
        return self.repos[repo].commit(files)

    def fetched(self) -> list[str]:
        """Paths of the files whose bodies were asked for, in order; a resumed one counts twice."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/")]

    def ranges(self) -> list[str]:
        return [given for _, _, given in self.requests if given is not None]


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    hub.go_on.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The test reads `requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if listing := re.fullmatch(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", path):
            self._list(**listing.groupdict())
        elif file := re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", path):
            self._resolve(**file.groupdict())
        elif stored := re.fullmatch(r"/lfs/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)", path):
            self._send_stored(**stored.groupdict())
        else:
            self._refuse(404, "EntryNotFound", path)

    def _list(self, repo: str, revision: str) -> None:
        self.hub.requests.append((self.command, f"/api/{repo}", None))
        found = self._found(repo, revision)
        if found is None:
            return
        holder, commit = found
        siblings = [_sibling(path, content, holder) for path, content in holder.commits[commit].items()]
        gated = "auto" if holder.gated else False
        self._send_json({"id": repo, "sha": commit, "gated": gated, "private": False, "siblings": siblings})

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        holder, commit = found
        if holder.gated and not self._may_read(repo):
            return
        content = holder.commits[commit].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", path)
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_oid(content)}"'}
        if _is_large(path):
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            headers |= {"Location": f"{self.hub.url}/lfs/{repo}/{commit}/{path}", "Content-Length": "0"}
            self._head(302, headers)
        else:
            self.hub.requests.append((self.command, path, self.headers.get("Range")))
            self._send(content, headers)

    def _send_stored(self, repo: str, revision: str, path: str) -> None:
        given = self.headers.get("Range")
        self.hub.requests.append((self.command, path, given))
        content = self.hub.repos[repo].commits[revision][path]
        if self.hub.is_altering:
            content = bytes(len(content))
        if given is None:
            self._send(content, {})
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", given)[1])  # type: ignore[index]
        self._send(content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, status=206)

    def _found(self, repo: str, revision: str) -> tuple[Repo, str] | None:
        holder = self.hub.repos.get(repo)
        if holder is None:  # as the real hub: it does not say whether a private one is there
            self._refuse(401, "RepoNotFound", "Repository not found")
            return None
        commit = holder.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return holder, commit

    def _may_read(self, repo: str) -> bool:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted. Please log in.")
            return False
        if not self.hub.accepted:
            self._refuse(403, "GatedRepo", f"Access to model {repo} is restricted. Visit it to ask for access.")
            return False
        return True

    def _send(self, content: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self._head(status, {**headers, "Content-Length": str(len(content))})
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after_bytes
        if cut is not None and self.hub.cuts > 0 and len(content) > cut:
            self.hub.cuts -= 1
            self.wfile.write(content[:cut])
            self.close_connection = True
            return
        self.wfile.write(content[: PIECE_BYTES + 1])
        if len(content) > PIECE_BYTES:
            self.wfile.flush()
            self.hub.go_on.wait(60)
            self.wfile.write(content[PIECE_BYTES + 1 :])

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}
        self._head(status, headers)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _sibling(path: str, content: bytes, holder: Repo) -> dict[str, Any]:
    size = holder.claimed_bytes.get(path, len(content))
    listed: dict[str, Any] = {"rfilename": path, "size": size, "blobId": _git_oid(content)}
    if _is_large(path):
        listed["lfs"] = {"sha256": _sha256(content), "size": size, "pointerSize": 134}
    return listed


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".gguf"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
