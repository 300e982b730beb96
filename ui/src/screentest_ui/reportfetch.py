"""Fetches a sweep's report and clips into one folder that plays offline; every file is checked by its sha256."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from screentest import artifacts
from screentest import table as model_table
from screentest.artifacts import NotWhatWasListed
from screentest.client import ArtifactUrl, Client
from screentest.errors import Conflict, NotFound, ScreentestError, Unavailable
from screentest.records import ArtifactKind

PARALLEL = 4

# The reporter draws a contact sheet per clip: half a second each on a small machine.
FINAL_WITHIN_S = 120.0
POLL_S = 0.3
REVISION_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """``archive``: the same folder as one zip. ``problems``: clips that could not be fetched, as sentences; the rest
    is there all the same.
    """

    index: Path
    archive: Path
    files: tuple[str, ...]
    clips: tuple[str, ...]
    final: bool
    problems: tuple[str, ...]


def fetch(client: Client, sweep_id: str, out: Path, *, wait_for_final: bool) -> Fetched:
    """Into ``out/<sweep>/``: index.html, report.md, report.json, sheets/, strips/, posters/, clips/; and all of it
    into ``out/<sweep>.zip``.

    ``wait_for_final``: of a sweep that is over, waits for the report that says so. Raises NotFound when there is no
    report yet, Unavailable when the final one does not come.
    """
    folder = out / sweep_id
    for tried in range(REVISION_TRIES):
        listed = document(client, sweep_id, wait_for_final=wait_for_final)
        try:
            return _fetch_revision(client, sweep_id, folder, listed)
        except (NotWhatWasListed, NotFound):  # a newer revision was published meanwhile
            if tried + 1 == REVISION_TRIES:
                raise
            time.sleep(POLL_S)
    raise AssertionError("unreachable")


def document(client: Client, sweep_id: str, *, wait_for_final: bool) -> Mapping[str, Any]:
    """report.json; waits and fails as ``fetch`` does."""
    over = client.get_sweep(sweep_id).over
    wanted = _rows(client, sweep_id) if over and wait_for_final else None
    deadline = time.monotonic() + FINAL_WITHIN_S
    while True:
        try:
            found = _report_json(client, sweep_id)
        except NotFound:
            found = {}
            if wanted is None:
                raise
        if wanted is None or (found.get("final") and _rows_of(found) == wanted):
            return found
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the final report of {sweep_id} did not come within {FINAL_WITHIN_S:.0f} s; look at the reporter's "
                f"log, or fetch what there is with `screentest report {sweep_id} --no-final`"
            )
        time.sleep(POLL_S)


def matches(client: Client, sweep_id: str) -> dict[str, str]:
    """How well each clip matches its prompt, by job id, as the newest report prints it; empty where there is none.

    The report is the only place that has rubric and judgements together; without it nothing is scored.
    """
    try:
        found = _report_json(client, sweep_id)
    except ScreentestError:
        return {}
    scores = {row["job_id"]: row["score"] for row in found["rows"] if row.get("score")}
    return {
        job_id: f"{score['text']}, greyed" if score["greyed"] and score["score10"] is not None else score["text"]
        for job_id, score in scores.items()
    }


def _rows(client: Client, sweep_id: str) -> dict[str, str]:
    """Job id to status of every cell: a report of the time before a retry has other ones."""
    return {row.job_id: row.status for row in model_table.rows(client.list_jobs(sweep_id))}


def _rows_of(document: Mapping[str, Any]) -> dict[str, str]:
    return {row["job_id"]: row["status"] for row in document["rows"]}


def _fetch_revision(client: Client, sweep_id: str, folder: Path, document: Mapping[str, Any]) -> Fetched:
    files = {entry["name"]: entry["sha256"] for entry in document["files"]}
    clips = [row["clip"] for row in document["rows"] if row["clip"]]

    def save_file(name: str) -> None:
        url = _report_url(client, sweep_id, name)
        artifacts.save(url.url, url.artifact.key, files[name], _inside(folder, name))

    def save_clip(clip: Mapping[str, Any]) -> str | None:
        """None, or what went wrong: one missing clip must not cost the report."""
        try:
            url = client.get_artifact(kind=ArtifactKind.CLIP, job_id=clip["job_id"])
            artifacts.save(url.url, url.artifact.key, clip["sha256"], _inside(folder, clip["file"]))
        except ScreentestError as error:
            return f"{clip['file']}: {error}"
        return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(save_file, files))
        problems = list(pool.map(save_clip, clips))
    artifacts.write(_inside(folder, "report.json"), json.dumps(document, indent=1, ensure_ascii=False).encode())
    fetched = tuple(clip["file"] for clip, problem in zip(clips, problems, strict=True) if problem is None)
    return Fetched(
        index=folder / "index.html",
        archive=_pack(folder, (*files, "report.json", *fetched)),
        files=(*files, "report.json"),
        clips=fetched,
        final=bool(document["final"]),
        problems=tuple(problem for problem in problems if problem is not None),
    )


def _pack(folder: Path, names: Iterable[str]) -> Path:
    """A zip beside the folder that unpacks into one of its name; the same files give the same bytes."""
    archive = folder.with_name(f"{folder.name}.zip")
    temporary = archive.with_name(f".{archive.name}.part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:  # pictures and clips are compressed already
        for name in sorted(set(names)):
            entry = zipfile.ZipInfo(f"{folder.name}/{name}")  # with zip's first date: a fetch again changes nothing
            entry.external_attr = 0o644 << 16
            with _inside(folder, name).open("rb") as content, packed.open(entry, "w") as place:
                shutil.copyfileobj(content, place)
    temporary.replace(archive)
    return archive


def _report_json(client: Client, sweep_id: str) -> dict[str, Any]:
    url = _report_url(client, sweep_id, "report.json")
    found: dict[str, Any] = json.loads(artifacts.read(url.url, url.artifact.key))
    return found


def _report_url(client: Client, sweep_id: str, name: str) -> ArtifactUrl:
    return client.get_artifact(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name=name)


def _inside(folder: Path, name: str) -> Path:
    """The file's place; a name that would leave the folder is refused, whoever wrote it."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise Conflict(f"the report lists a file {name!r} outside its folder; it was not fetched")
    return folder.joinpath(*parts)
