"""Fetches what a signed URL of the depot names; needs nothing but the standard library."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from screentest.errors import Conflict, NotFound, Unavailable

FETCH_TIMEOUT_S = 60.0


class NotWhatWasListed(Conflict):
    """The content is not what was listed: it was replaced by a newer revision, or damaged."""


def read(url: str, key: str) -> bytes:
    """The whole object. NotFound when it is not there; the depot may be away, or its signed host not resolvable here:
    Unavailable says which."""
    try:
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFound(f"the depot has no object {key}") from error
        raise Unavailable(f"the depot refuses {key}: HTTP {error.code}") from error
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        host = url.split("/")[2]
        raise Unavailable(f"the depot at {host} does not answer ({error}); start it with `screentest up`") from error


def save(url: str, key: str, sha256: str, path: Path) -> None:
    """To a file, whole or not at all. A file that is there with the right content is not fetched again.

    ``sha256``: lower-case hex, empty = not known beforehand (a report is replaced by its next revision).
    NotWhatWasListed when the depot has something else.
    """
    if sha256 and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return
    content = read(url, key)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise NotWhatWasListed(f"{key} is not the content its sha256 names; fetch it again")
    write(path, content)


def write(path: Path, content: bytes) -> None:
    """By way of a temporary name beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
