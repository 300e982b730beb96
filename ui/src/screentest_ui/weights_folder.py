"""A lane's weights on this disk: the record that makes a folder complete, its state, and its check without network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from screentest.errors import BadRequest
from screentest_ui.weights_lock import Pin

RECORD = "screentest-weights.json"
RECORD_VERSION = 1
READ_BYTES = 16 * 2**20

# Below the models folder: pulls that are under way or broke off, one folder and one lock file per lane.
PULLING = ".pulling"


class State(StrEnum):
    PRESENT = "present"
    PARTIAL = "partial"
    ABSENT = "absent"
    # Put there by other means: perhaps complete, but nothing says what it should be.
    UNRECORDED = "unrecorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFile:
    """path: below the lane's folder. size: bytes. sha256: in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a complete folder holds, and where from. Written last: a folder without it is not complete."""

    lane_id: str
    pins: tuple[Pin, ...]
    files: tuple[RecordedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where the weights of one lane are, or will be."""

    models_dir: Path
    lane_id: str

    @property
    def path(self) -> Path:
        return self.models_dir / self.lane_id

    @property
    def staging(self) -> Path:
        """What a pull gathers before it becomes the folder."""
        return self.models_dir / PULLING / self.lane_id

    @property
    def record_file(self) -> Path:
        return self.path / RECORD

    def record(self) -> Record | None:
        """None for a folder that is not there or not ours. Raises BadRequest for a record that cannot be read."""
        try:
            content = json.loads(self.record_file.read_text(encoding="utf-8"))
            if content["version"] != RECORD_VERSION:
                raise ValueError(f"version {content['version']!r} is not {RECORD_VERSION}")
            return Record(
                lane_id=content["lane_id"],
                pins=tuple(Pin(**pin) for pin in content["pins"]),
                files=tuple(RecordedFile(**file) for file in content["files"]),
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(
                f"{self.record_file} cannot be read ({error}); delete it and run `screentest models pull "
                f"{self.lane_id}`, which fetches only what is not there"
            ) from error

    def state(self) -> State:
        """By names and sizes, without reading the files."""
        record = self.record()
        if record is not None:
            return State.PARTIAL if any(self.misfits(record)) else State.PRESENT
        if (self.path / "model_index.json").is_file():
            return State.UNRECORDED
        return State.PARTIAL if self.staging.exists() or self.path.exists() else State.ABSENT

    def size_bytes(self) -> int:
        """Of everything of this lane on the disk, an unfinished pull included."""
        return sum(path.stat().st_size for root in (self.path, self.staging) for path in _files(root))

    def misfits(self, record: Record) -> Iterator[str]:
        """Recorded files that are not there in their size, as sentences."""
        for file in record.files:
            size = _size(self.path / file.path)
            if size is None:
                yield f"{file.path} is missing"
            elif size < file.size:
                yield f"{file.path} is truncated: {size} of {file.size} bytes"
            elif size > file.size:
                yield f"{file.path} is altered: {size} bytes instead of {file.size}"

    def alterations(self, record: Record, on_bytes: Callable[[int], None]) -> Iterator[str]:
        """Recorded files of the right size and wrong content, as sentences. Reads every byte."""
        for file in record.files:
            path = self.path / file.path
            if _size(path) == file.size and sha256_of(path, on_bytes) != file.sha256:
                yield f"{file.path} is altered: its content is not what was pulled"


def write_record(folder: Path, record: Record) -> None:
    content = {"version": RECORD_VERSION, **asdict(record)}
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def sha256_of(path: Path, on_bytes: Callable[[int], None] = lambda size: None) -> str:
    """In hex; on_bytes hears of every piece that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def git_oid_of(path: Path) -> str:
    """The id that git gives to this content as a blob."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def recorded(folder: Path, path: str, sha256: str | None = None) -> RecordedFile:
    """sha256: where it is known already; a large file is not read twice."""
    found = folder / PurePosixPath(path)
    return RecordedFile(path=path, size=found.stat().st_size, sha256=sha256 or sha256_of(found))


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None
