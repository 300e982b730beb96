"""Results on disk until they are delivered: one folder per attempt, so that neither broker, scheduler, depot nor a
restart of this worker loses a finished clip.

``attempt.json`` is written when the attempt starts and at every phase; ``outcome.json`` when it has ended. Both appear
whole or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from screentest import wire
from screentest.errors import BadRequest
from screentest.records import ArtifactKind, Dispatch, Outcome

log = structlog.get_logger()

T = TypeVar("T")

FILE_NAMES = {
    ArtifactKind.CLIP: "clip.mp4",
    ArtifactKind.JUDGEMENT: "judgement.json",
    ArtifactKind.LOG: "log.txt",
    ArtifactKind.MANIFEST: "manifest.json",
}
UNDELIVERED = "undelivered"
UNREADABLE = ".unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A finished attempt that waits for delivery. ``outcome.artifacts`` are those that are in the depot already.

    ``expected_sequence``: of the event that its AttemptEnded follows.
    """

    dispatch: Dispatch
    outcome: Outcome
    expected_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """An attempt that had started when its worker died; ``phase`` None = unknown."""

    dispatch: Dispatch
    phase: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What lies in a spool. ``undelivered_clips``: kept for a person to fetch."""

    attempts: int
    undelivered_clips: int
    size_bytes: int


class Spool:
    """The folder of one worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / UNDELIVERED).mkdir(parents=True, exist_ok=True)

    def path(self, dispatch: Dispatch) -> Path:
        """The folder of one attempt, made when it is missing."""
        folder = self._folder / f"{dispatch.spec.job_id}-{dispatch.attempt}"
        folder.mkdir(exist_ok=True)
        return folder

    def file(self, dispatch: Dispatch, kind: ArtifactKind) -> Path:
        return self.path(dispatch) / FILE_NAMES[kind]

    def note(self, dispatch: Dispatch, phase: str) -> None:
        """Where a started attempt is. Neither synced nor insisted on: it only explains a loss."""
        content = {"schema": "spool/1", "phase": phase, "dispatch": _text(dispatch)}
        try:
            _write(self.path(dispatch) / "attempt.json", content, durable=False)
        except OSError as error:  # a full disk is no reason to end the attempt
            log.warning("phase_not_noted", phase=phase, error=str(error))

    def store(self, ended: Ended) -> None:
        """Durable when it returns. OSError when the disk is full."""
        content = {
            "schema": "spool/1",
            "dispatch": _text(ended.dispatch),
            "outcome": _text(ended.outcome),
            "expected_sequence": ended.expected_sequence,
            "cause": ended.outcome.cause,  # for a person who looks
        }
        _write(self.path(ended.dispatch) / "outcome.json", content, durable=True)

    def ended(self, dispatch: Dispatch) -> Ended | None:
        """The finished outcome of this attempt, None when it has none."""
        return _readable(self.path(dispatch), _ended)

    def interrupted_phase(self, dispatch: Dispatch) -> str | None:
        """None = it has not started here, or nobody knows."""
        found = _readable(self.path(dispatch), _interrupted)
        return found.phase if found else None

    def remove(self, dispatch: Dispatch) -> None:
        shutil.rmtree(self.path(dispatch), ignore_errors=True)

    def keep(self, dispatch: Dispatch, kind: ArtifactKind) -> None:
        """What could not be uploaded is a person's to fetch."""
        made = self.file(dispatch, kind)
        if made.is_file():
            made.replace(self._folder / UNDELIVERED / f"{dispatch.spec.job_id}-{dispatch.attempt}{made.suffix}")

    def content(self) -> Content:
        attempts = [path for path in self._folder.iterdir() if path.is_dir() and _is_attempt(path)]
        clips = sum(1 for _ in (self._folder / UNDELIVERED).glob("*.mp4"))
        return Content(attempts=len(attempts), undelivered_clips=clips, size_bytes=_size_bytes(self._folder))

    def left(self) -> tuple[tuple[Ended, ...], tuple[Interrupted, ...]]:
        """What an earlier process of this worker left: finished results, and attempts that were under way."""
        folders = sorted(path for path in self._folder.iterdir() if path.is_dir() and _is_attempt(path))
        ended = tuple(found for folder in folders if (found := _readable(folder, _ended)) is not None)
        under_way = tuple(
            lost
            for folder in folders
            if not (folder / "outcome.json").exists() and (lost := _readable(folder, _interrupted)) is not None
        )
        return ended, under_way


def _size_bytes(folder: Path) -> int:
    """Of every file below it; what is removed while we look counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _is_attempt(folder: Path) -> bool:
    return folder.name != UNDELIVERED and folder.suffix != UNREADABLE


def _readable(folder: Path, read: Callable[[Path], T | None]) -> T | None:
    """What ``read`` finds in an attempt's folder.

    A folder that it does not understand is of another version, or was edited by hand. It is moved aside for a person:
    in its place it would fail again at every start and at every delivery.
    """
    try:
        return read(folder)
    except (KeyError, TypeError, ValueError, BadRequest) as error:
        aside = folder.with_name(folder.name + UNREADABLE)
        log.error("spool_folder_unreadable", moved_to=aside.name, error=f"{type(error).__name__}: {error}")
        shutil.rmtree(aside, ignore_errors=True)  # an earlier one of the same attempt
        folder.replace(aside)
        return None


def _ended(folder: Path) -> Ended | None:
    content = _read(folder / "outcome.json")
    if content is None:
        return None
    return Ended(
        dispatch=wire.decode(_bytes(content["dispatch"]), Dispatch),
        outcome=wire.decode(_bytes(content["outcome"]), Outcome),
        expected_sequence=int(content["expected_sequence"]),
    )


def _interrupted(folder: Path) -> Interrupted | None:
    content = _read(folder / "attempt.json")
    if content is None:
        return None
    return Interrupted(dispatch=wire.decode(_bytes(content["dispatch"]), Dispatch), phase=content["phase"])


def _read(path: Path) -> dict[str, Any] | None:
    """None when there is no such file; ValueError when it is not JSON."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return content


def _write(path: Path, content: dict[str, Any], *, durable: bool) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        json.dump(content, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)


def _text(record: Dispatch | Outcome) -> str:
    return base64.b64encode(wire.encode(record)).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
