"""Taking a file over that is on another disk: a copy that breaks off leaves nothing that looks whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from screentest_ui import weights_pull
from screentest_ui.weights_choice import PublishedFile, Repository, WantedFile

CONTENT = b"weights" * 1000


def wanted() -> WantedFile:
    published = PublishedFile(
        path="vae/a.safetensors", size=len(CONTENT), git_oid="0" * 40, sha256=hashlib.sha256(CONTENT).hexdigest()
    )
    source = Repository(repo="a/b", commit="c" * 40, files=(published,))
    return WantedFile(path=published.path, source=source, published=published)


def no_links(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")


@pytest.fixture
def candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights_pull.os, "link", no_links)
    path = tmp_path / "cache" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def test_a_file_of_another_disk_is_copied(candidate: Path, tmp_path: Path) -> None:
    blobs = weights_pull._Blobs(tmp_path / "blobs")
    blobs.prepare()
    assert blobs.adopt(wanted(), candidate)
    assert blobs.path(wanted()).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [wanted().published.oid]


def test_a_copy_that_breaks_off_is_no_blob(candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob's name says that its content was checked; half a copy under it went into the lane's folder as present."""

    def broken(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[: len(CONTENT) // 2])
        raise OSError(28, "No space left on device")

    blobs = weights_pull._Blobs(tmp_path / "blobs")
    blobs.prepare()
    with monkeypatch.context() as full:
        full.setattr(weights_pull.shutil, "copyfile", broken)
        with pytest.raises(OSError, match="No space"):
            blobs.adopt(wanted(), candidate)
    assert not blobs.has(wanted())
    assert blobs.there_bytes(wanted()) == 0
    assert blobs.adopt(wanted(), candidate)
    assert blobs.path(wanted()).read_bytes() == CONTENT
