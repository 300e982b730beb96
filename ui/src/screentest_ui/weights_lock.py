"""The lock file of the weights: which commit each repository and revision of the lane files stands for.

It lies beside the lane files, is committed with them and enforced by every pull: a team that shares the checkout has
the same weights on every machine, and a branch that moves on the hub changes nobody's clips. A commit covers every
byte (git hashes small files, LFS pointers carry the sha256 of large ones), so hashes of files are not repeated here.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from screentest.errors import BadRequest

NAME = "weights.lock.toml"

_HEADER = """\
# The commit that each repository and revision of the lane files stands for. Commit this file.
# Written by `screentest models pull`; `screentest models pull --update LANE` moves a lane to the newest commit.
"""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A repository, the revision that a lane file names, and the commit (40 hex digits) that it stands for."""

    repo: str
    revision: str
    commit: str


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit itself: then there is nothing to pin."""
    return _COMMIT.fullmatch(revision) is not None


def beside(lanes_dir: Path) -> Path:
    return lanes_dir.parent / NAME


def read(path: Path) -> tuple[Pin, ...]:
    """Empty before the first pull. Raises BadRequest for a file that is none of ours."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not a TOML file: {error}; take it from your last commit") from error
    return tuple(
        _pin(path, repo, revision, commit)
        for repo, revisions in content.items()
        for revision, commit in _table(path, repo, revisions).items()
    )


def commit_of(pins: tuple[Pin, ...], repo: str, revision: str) -> str | None:
    """None for a revision that was never pulled."""
    if is_commit(revision):
        return revision
    return next((pin.commit for pin in pins if (pin.repo, pin.revision) == (repo, revision)), None)


def record(path: Path, pins: tuple[Pin, ...]) -> None:
    """Write or replace these pins; the others stay. Two pulls that end at once both get in."""
    new = {(pin.repo, pin.revision): pin for pin in pins if not is_commit(pin.revision)}
    with _alone(path.parent):
        kept = {(pin.repo, pin.revision): pin for pin in read(path)}
        if kept | new != kept:
            _replace(path, _text(list((kept | new).values())))


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _table(path: Path, repo: str, revisions: object) -> dict[str, object]:
    if not isinstance(revisions, dict):
        raise BadRequest(f"{path}: {repo!r} wants a table of revision and commit, got {revisions!r}")
    return revisions


def _pin(path: Path, repo: str, revision: str, commit: object) -> Pin:
    if not isinstance(commit, str) or not is_commit(commit):
        raise BadRequest(f"{path}: {repo} {revision}: {commit!r} is no commit (40 hex digits)")
    return Pin(repo=repo, revision=revision, commit=commit)


def _text(pins: list[Pin]) -> str:
    tables: dict[str, list[Pin]] = {}
    for pin in sorted(pins, key=lambda pin: (pin.repo.lower(), pin.revision)):
        tables.setdefault(pin.repo, []).append(pin)
    blocks = [
        "\n".join([f"[{json.dumps(repo)}]", *(f"{json.dumps(pin.revision)} = {json.dumps(pin.commit)}" for pin in of)])
        for repo, of in tables.items()
    ]
    return _HEADER + "\n" + "\n\n".join(blocks) + "\n"
