"""Pulls a lane's weights: looks up the pinned commit, checks the disk, gathers checked files, puts the folder in place.

Everything is gathered in a staging folder, by content: `blobs/<oid>`, unfinished ones as `<oid>.part`. A blob gets its
name only after its hash was checked. The lane's folder appears by one rename when all of it is there, so whoever finds
the folder may load it, and an older one stays usable until then.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from screentest.errors import BadRequest, Exhausted, NotPossibleNow, ScreentestError, Unavailable
from screentest.judges import JudgeLane
from screentest.lanes import Lane, Model
from screentest_ui import weights_choice, weights_lock
from screentest_ui.weights_choice import CONFIG, INDEX, Repository, WantedFile
from screentest_ui.weights_folder import (
    PULLING,
    RECORD,
    Folder,
    Record,
    State,
    git_oid_of,
    recorded,
    sha256_of,
    write_record,
)
from screentest_ui.weights_hub import Hub
from screentest_ui.weights_lock import Pin
from screentest_ui.weights_progress import Shown, gib, showing

# One connection to a content network rarely fills a line; more than a few fill no faster.
CONNECTIONS = 4

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the folder of a lane will hold. index: written as model_index.json; None where the published one is used."""

    lane_id: str
    folder: Folder
    pins: tuple[Pin, ...]
    files: tuple[WantedFile, ...]
    index: Mapping[str, object] | None

    @property
    def size_bytes(self) -> int:
        return sum(file.published.size for file in self.contents.values())

    @property
    def contents(self) -> dict[str, WantedFile]:
        """By content: a file that occurs twice is fetched once."""
        return {file.published.oid: file for file in self.files}

    @property
    def is_done(self) -> bool:
        """Whether the folder is already there, complete by sizes, at these commits and with these files."""
        record = self.folder.record()
        if record is None or self.folder.state() is not State.PRESENT:
            return False
        wanted = {file.path for file in self.files} | {INDEX}
        return record.pins == self.pins and {file.path for file in record.files} == wanted


class Puller:
    """Pulls lanes into one models folder under one lock file. `is_update`: moves pins to the newest commit."""

    def __init__(self, hub: Hub, models_dir: Path, lock_file: Path, *, is_update: bool, say: Say) -> None:
        self._hub = hub
        self._models_dir = models_dir
        self._lock_file = lock_file
        self._is_update = is_update
        self._say = say

    def pull(self, lanes: Sequence[Lane | JudgeLane]) -> dict[str, ScreentestError]:
        """What failed, by lane id; the other lanes are there. Raises Exhausted before the first byte."""
        failed: dict[str, ScreentestError] = {}
        plans = []
        for lane in lanes:
            try:
                plans.append(self._plan(lane))
            except ScreentestError as error:
                failed[lane.id] = error
        self._require_disk(plans)
        for plan in plans:
            try:
                self._pull(plan)
            except ScreentestError as error:
                failed[plan.lane_id] = error
        return failed

    def _plan(self, lane: Lane | JudgeLane) -> Plan:
        model = _model(lane)
        folder = Folder(models_dir=self._models_dir, lane_id=lane.id)
        folder.record()  # one that cannot be read stops its own lane only
        main = self._look_up(model.repo, model.revision)
        pins = [Pin(repo=main.repo, revision=model.revision, commit=main.commit)]
        if isinstance(lane, JudgeLane):
            self._hub.read_json(main, CONFIG)  # as with a pipeline's index: a gated repository refuses here
            files = weights_choice.choose_checkpoint(lane, main)
            return Plan(lane_id=lane.id, folder=folder, pins=tuple(pins), files=files, index=None)
        base = None
        if model.base_repo is not None:
            revision = model.base_revision or "main"
            base = self._look_up(model.base_repo, revision)
            pins.append(Pin(repo=base.repo, revision=revision, commit=base.commit))
        pipeline = base or main
        weights_choice.require_pipeline(pipeline)
        # The first real file: a gated repository lists its files to everybody and refuses here.
        index = self._hub.read_json(pipeline, INDEX)
        return Plan(
            lane_id=lane.id,
            folder=folder,
            pins=tuple(pins),
            files=weights_choice.choose(lane, main, base, index),
            index=weights_choice.assembled_index(lane, index) if base is not None else None,
        )

    def _look_up(self, repo: str, revision: str) -> Repository:
        pinned = weights_lock.commit_of(weights_lock.read(self._lock_file), repo, revision)
        return self._hub.look_up(repo, revision if pinned is None or self._is_update else pinned)

    def _require_disk(self, plans: Sequence[Plan]) -> None:
        reusable = _Reusable(self._hub, self._models_dir)
        needed = sum(_missing_bytes(plan, reusable) for plan in plans)
        free = shutil.disk_usage(_existing(self._models_dir)).free
        if needed > free:
            raise Exhausted(
                f"{gib(needed)} are still to be fetched for {', '.join(plan.lane_id for plan in plans)}, and "
                f"{self._models_dir} has {gib(free)} free; free {gib(needed - free)}, pull fewer lanes, or choose "
                "another disk with --weights-dir; nothing was fetched"
            )

    def _pull(self, plan: Plan) -> None:
        with _alone(plan.folder):
            left = _settle_swap(plan.folder)
            self._tell_moves(plan)
            # Before the first byte: a pull that breaks off must go on with the same commit.
            weights_lock.record(self._lock_file, plan.pins)
            was_done = plan.is_done
            if not was_done:
                blobs = _Blobs(plan.folder.staging / "blobs")
                _gather(self._hub, plan, blobs, _Reusable(self._hub, self._models_dir))
                left = _put_in_place(plan, blobs) or left
            shutil.rmtree(plan.folder.staging, ignore_errors=True)
        what = "complete" if was_done else "pulled"
        self._say(f"{plan.lane_id}: {what}, {gib(plan.size_bytes)} at {_commits(plan.pins)}")
        if left is not None:
            self._say(f"{plan.lane_id}: files that are not ours were in its folder; they are in {left} now")

    def _tell_moves(self, plan: Plan) -> None:
        pinned = weights_lock.read(self._lock_file)
        record = plan.folder.record()
        for pin in plan.pins:
            there = weights_lock.commit_of(record.pins, pin.repo, pin.revision) if record is not None else None
            before = weights_lock.commit_of(pinned, pin.repo, pin.revision)
            previous = next((commit for commit in (there, before) if commit not in {None, pin.commit}), None)
            if previous is not None:
                self._say(f"{plan.lane_id}: {pin.repo} moves from {previous[:12]} to {pin.commit[:12]}")
            elif self._is_update:
                self._say(f"{plan.lane_id}: {pin.repo} {pin.revision} is still {pin.commit[:12]}")


class _Blobs:
    """Checked contents by oid, and unfinished ones beside them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file: WantedFile) -> Path:
        return self._folder / file.published.oid

    def part(self, file: WantedFile) -> Path:
        return self._folder / f"{file.published.oid}.part"

    def has(self, file: WantedFile) -> bool:
        return self.path(file).is_file()

    def there_bytes(self, file: WantedFile) -> int:
        """Of this file, what need not be fetched again."""
        if self.has(file):
            return file.published.size
        part = self.part(file)
        return part.stat().st_size if part.exists() else 0

    def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def accept(self, file: WantedFile) -> None:
        """The finished part becomes a blob once its hash is right. Raises Unavailable for other content."""
        part = self.part(file)
        if not _is_content(part, file):
            part.unlink()
            raise Unavailable(
                f"{file.published.path} of {file.source.repo} arrived altered (its hash is not the one that the hub "
                "lists) and was deleted; pull again, and look at your proxy if it happens again"
            )
        _sync(part)
        part.rename(self.path(file))

    def adopt(self, file: WantedFile, candidate: Path) -> bool:
        """Take the content from a file that is on this disk already, if it is the same."""
        if candidate.stat().st_size != file.published.size or not _is_content(candidate, file):
            return False
        _link(candidate, self.path(file))
        return True


class _Reusable:
    """Files on this disk that may have what is wanted: other lanes', the lane's own, the hub library's cache."""

    def __init__(self, hub: Hub, models_dir: Path) -> None:
        self._hub = hub
        self._by_sha256: dict[str, Path] = {}
        folders = (path.parent for path in models_dir.glob(f"*/{RECORD}"))
        for folder in (Folder(models_dir=models_dir, lane_id=path.name) for path in folders):
            self._learn(folder)

    def _learn(self, folder: Folder) -> None:
        try:
            record = folder.record()
        except BadRequest:  # that lane's own pull says so
            return
        for file in record.files if record is not None else ():
            self._by_sha256.setdefault(file.sha256, folder.path / file.path)

    def candidate(self, plan: Plan, file: WantedFile) -> Path | None:
        """By name and size only: the content is checked when it is taken."""
        known = self._by_sha256.get(file.published.sha256 or "")
        cached = self._hub.cached(file.source, file.published)
        for path in (known, plan.folder.path / file.path, cached):
            if path is not None and path.is_file() and path.stat().st_size == file.published.size:
                return path
        return None


def _missing_bytes(plan: Plan, reusable: _Reusable) -> int:
    if plan.is_done:
        return 0
    blobs = _Blobs(plan.folder.staging / "blobs")
    return sum(
        file.published.size - blobs.there_bytes(file)
        for file in plan.contents.values()
        if not _is_free(reusable.candidate(plan, file), plan.folder)
    )


def _is_free(candidate: Path | None, folder: Folder) -> bool:
    """Whether taking it over takes no space: a hard link within one file system."""
    if candidate is None:
        return False
    return candidate.stat().st_dev == _existing(folder.models_dir).stat().st_dev


def _gather(hub: Hub, plan: Plan, blobs: _Blobs, reusable: _Reusable) -> None:
    """All contents into the staging folder: from this disk where they are, from the hub otherwise."""
    blobs.prepare()
    there = sum(blobs.there_bytes(file) for file in plan.contents.values())
    with showing(plan.lane_id, total_bytes=plan.size_bytes, there_bytes=there) as shown:
        missing = [file for file in plan.contents.values() if not blobs.has(file)]
        for file in list(missing):
            candidate = reusable.candidate(plan, file)
            if candidate is not None and blobs.adopt(file, candidate):
                missing.remove(file)
                shown.advance(file.published.size)
        _fetch_all(hub, missing, blobs, shown)


def _fetch_all(hub: Hub, missing: Sequence[WantedFile], blobs: _Blobs, shown: Shown) -> None:
    """Small files first: what is wrong with a repository shows before the large ones. The first error ends all."""
    halt = threading.Event()
    waiting = deque(sorted(missing, key=lambda file: file.published.size))
    errors: list[BaseException] = []

    def advance(size_bytes: int) -> None:
        if halt.is_set():
            raise _Halted
        shown.advance(size_bytes)

    def work() -> None:
        try:
            while not halt.is_set() and (file := _next(waiting)) is not None:
                hub.fetch(file.source, file.published, blobs.part(file), advance)
                blobs.accept(file)
                shown.finish(file.path)
        except _Halted:
            return
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            errors.append(error)
            halt.set()

    # Daemons: a person who interrupts does not wait for a connection that is silent.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(CONNECTIONS, len(waiting)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        halt.set()
    if errors:
        raise errors[0]


def _next(waiting: deque[WantedFile]) -> WantedFile | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


class _Halted(Exception):
    """Another file failed, or a person interrupted."""


def _put_in_place(plan: Plan, blobs: _Blobs) -> Path | None:
    """The folder, in one rename. Returns where an older folder's files are that were not ours; None without any."""
    staging, folder = plan.folder.staging, plan.folder.path
    tree = staging / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    _build(tree, plan, blobs)
    if folder.exists():
        folder.rename(staging / "old")
    tree.rename(folder)
    return _settle_swap(plan.folder)


def _build(tree: Path, plan: Plan, blobs: _Blobs) -> None:
    files = []
    for file in plan.files:
        target = tree / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(blobs.path(file), target)
        files.append(recorded(tree, file.path, file.published.sha256))
    if plan.index is not None:
        (tree / INDEX).write_text(json.dumps(plan.index, indent=2) + "\n", encoding="utf-8")
        files.append(recorded(tree, INDEX))
    write_record(tree, Record(lane_id=plan.lane_id, pins=plan.pins, files=tuple(files)))


def _settle_swap(folder: Folder) -> Path | None:
    """What follows a swap, also one that was killed in the middle: an older folder is put back where nothing replaced
    it, and cleared away where something did. Returns where its foreign files are, None without any.
    """
    old = folder.staging / "old"
    if not old.exists():
        return None
    if not folder.path.exists():
        old.rename(folder.path)
        return None
    left = _keep_foreign(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    return left


def _keep_foreign(old: Path, folder: Folder) -> Path | None:
    """Delete of the replaced folder what was pulled or taken over, and move the rest aside."""
    record = Folder(models_dir=old.parent, lane_id=old.name).record()
    ours = {old / file.path for file in record.files} | {old / RECORD} if record is not None else set()
    foreign = [
        path for path in old.rglob("*") if path.is_file() and path not in ours and not _is_taken(path, old, folder)
    ]
    if not foreign:
        return None
    for path in old.rglob("*"):
        if path.is_file() and path not in foreign:
            path.unlink()
    number = 1
    while (aside := folder.path.with_name(f"{folder.lane_id}.before-pull-{number}")).exists():
        number += 1
    old.rename(aside)
    return aside


def _is_taken(path: Path, old: Path, folder: Folder) -> bool:
    new = folder.path / path.relative_to(old)
    return new.is_file() and new.samefile(path)


@contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """One pull of a lane at a time. NotPossibleNow when another is at work."""
    lock_file = folder.models_dir / PULLING / f"{folder.lane_id}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotPossibleNow(
                f"another `screentest models pull` is fetching {folder.lane_id} into {folder.models_dir}; wait for it"
            ) from None
        yield


def _model(lane: Lane | JudgeLane) -> Model:
    if lane.model is None:
        raise BadRequest(f"{lane.task} lane {lane.id!r} has no published weights; it needs none")
    return lane.model


def _commits(pins: Sequence[Pin]) -> str:
    return ", ".join(f"{pin.repo} {pin.commit[:12]}" for pin in pins)


def _is_content(path: Path, file: WantedFile) -> bool:
    if file.published.sha256 is not None:
        return sha256_of(path) == file.published.sha256
    return git_oid_of(path) == file.published.git_oid


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes; else (exFAT, another disk) a copy, which is named when it is whole."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        draft = target.with_name(f"{target.name}.copy")
        shutil.copyfile(source, draft)
        _sync(draft)
        draft.rename(target)


def _sync(path: Path) -> None:
    """To the disk before its name says that it is whole."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
