"""Writes revisions of a sweep's report to the depot.

Layout: the report is one folder. ``index.html`` links ``sheets/``, ``posters/`` and ``clips/`` beside itself. In the
depot its own files lie under ``<sweep>/report/`` and the clips under ``<sweep>/clips/``, each once; whoever fetches a
report puts both into one folder, by the names in ``report.json``. A page in the depot could not play its clips anyway:
every object there needs its own signed URL.

``report.json`` is written last: what it lists is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from screentest import objects, subjects, table
from screentest.errors import NotFound
from screentest.kit import expiry
from screentest.kit.bus import Bus
from screentest.kit.expiry import Expiry
from screentest.kit.store import Store
from screentest.records import Artifact, Job, Keyframe, Stamp
from screentest_reporter import case_study, document, page, tape
from screentest_reporter.case_study import CaseStudy, Material
from screentest_reporter.judgements import Judgements
from screentest_reporter.model_table import PICTURE_KINDS, Pictures
from screentest_reporter.narrative import RANDOM_WEIGHTS_BADGE
from screentest_reporter.pictures import PictureError, PictureMaker
from screentest_reporter.sweeps import SweepState
from screentest_reporter.tape import Tape

log = structlog.get_logger()

# A revision of a running sweep must not wait for the pictures of hundreds of clips; the final one does.
PICTURES_PER_REVISION = 25
# Vitals come once a second: the last second of the last attempt is worth waiting for.
VITALS_WAIT_S = 3.0
VITALS_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFile:
    """One published file, by its name in the report's folder."""

    name: str
    sha256: str
    size_bytes: int
    content_type: str


@dataclass(slots=True, kw_only=True)
class Draft:
    """What is known of a sweep's report between revisions. ``pictures`` by job id, each for one clip's sha256."""

    revision: int = 0
    final: bool = False
    renderer: str = ""
    cursor: Mapping[str, Any] = field(default_factory=dict)
    files: dict[str, ReportFile] = field(default_factory=dict)
    pictures: dict[str, tuple[str, Pictures]] = field(default_factory=dict)
    keyframe: Pictures | None = None
    tapes: dict[str, Tape] = field(default_factory=dict)


class Publisher:
    """Makes and writes revisions, one at a time."""

    def __init__(self, bus: Bus, store: Store, pictures: PictureMaker) -> None:
        self._bus = bus
        self._store = store
        self._pictures = pictures
        self._judgements = Judgements(store)
        self._drafts: dict[str, Draft] = {}

    async def publish(self, state: SweepState) -> None:
        """Writes the next revision of a snapshot, unless the depot has this very one.

        Raises Unavailable when broker or depot are away; trying again later is safe and repeats no finished picture.
        """
        draft = await self._draft(state.sweep_id)
        epoch = (await self._bus.stream_state(subjects.EVENTS_STREAM)).epoch
        if _is_current(draft, state, epoch):
            return
        await self._add_pictures(draft, state)
        await self._advance_tapes(draft, state)
        revision = draft.revision + 1
        files = await self._write(draft, state, revision, epoch)
        draft.revision, draft.final, draft.renderer = revision, state.is_final, document.RENDERER
        draft.cursor = {"epoch": epoch, "sequence": state.last_sequence}
        log.info(
            "report_published", sweep=state.sweep_id, revision=revision, final=state.is_final, files=len(files) + 1
        )

    async def rest(self) -> None:
        """Nothing to do for now: the decoder's child may go."""
        await self._pictures.close()

    def forget(self, sweep_id: str) -> None:
        """Frees the memory of a finished report; the depot remembers it."""
        self._drafts.pop(sweep_id, None)
        self._judgements.forget(sweep_id)

    # ---- what is there already

    async def _draft(self, sweep_id: str) -> Draft:
        if sweep_id not in self._drafts:
            self._drafts[sweep_id] = await self._read_draft(sweep_id)
        return self._drafts[sweep_id]

    async def _read_draft(self, sweep_id: str) -> Draft:
        try:
            content = json.loads(await self._store.get(objects.report_file(sweep_id, "report.json")))
            return draft_of(content)
        except NotFound:
            return Draft()
        except (ValueError, KeyError, TypeError) as error:
            log.warning("report_unreadable", sweep=sweep_id, error=str(error))
            return Draft()

    # ---- pictures

    async def _add_pictures(self, draft: Draft, state: SweepState) -> None:
        missing = (job for job in table.latest(state.jobs.values()) if _lacks_pictures(draft, job))
        for job in missing if state.is_final else islice(missing, PICTURES_PER_REVISION):
            assert job.clip is not None
            draft.pictures[job.spec.job_id] = (job.clip.sha256, await self._picture_clip(draft, job, job.clip))
        keyframe = state.record.spec.keyframe if state.record else None
        if keyframe is not None and draft.keyframe is None:
            draft.keyframe = await self._picture_keyframe(draft, state.sweep_id, keyframe)

    async def _picture_clip(self, draft: Draft, job: Job, clip: Artifact) -> Pictures:
        """Broken pictures are a value: one bad clip must not hold up the others."""
        spec = job.spec
        made = Pictures(
            sheet=f"sheets/{spec.job_id}.jpg", poster=f"posters/{spec.job_id}.jpg", strip=f"strips/{spec.job_id}.jpg"
        )
        with tempfile.TemporaryDirectory(prefix="screentest-sheet-") as name:
            folder = Path(name)
            request = {
                "clip": str(folder / "clip.mp4"),
                **{kind: str(folder / f"{kind}.jpg") for kind in made.names},
                "title": f"{spec.lane_title} · seed {spec.seed}",
                "badge": RANDOM_WEIGHTS_BADGE if spec.weights.is_random else "",
            }
            try:
                await self._download(clip.key, folder / "clip.mp4", clip.sha256)
                await self._pictures.make(request)
            except (PictureError, NotFound) as error:
                log.warning("clip_not_pictured", job=spec.job_id, key=clip.key, error=str(error))
                return Pictures(error=str(error))
            for kind, name in made.names.items():
                await self._put_file(draft, spec.sweep_id, name, folder / f"{kind}.jpg")
        return made

    async def _picture_keyframe(self, draft: Draft, sweep_id: str, keyframe: Keyframe) -> Pictures:
        with tempfile.TemporaryDirectory(prefix="screentest-keyframe-") as name:
            source, copy = Path(name) / "source", Path(name) / "copy.jpg"
            try:
                await self._download(keyframe.key, source, keyframe.sha256)
                await self._pictures.make({"picture": str(source), "copy": str(copy)})
            except (PictureError, NotFound) as error:
                log.warning("keyframe_not_pictured", sweep=sweep_id, key=keyframe.key, error=str(error))
                return Pictures(error=str(error))
            await self._put_file(draft, sweep_id, "keyframe.jpg", copy)
        return Pictures(sheet="keyframe.jpg")

    async def _download(self, key: str, path: Path, sha256: str) -> None:
        await self._store.download(key, path)
        found = hashlib.sha256(await asyncio.to_thread(path.read_bytes)).hexdigest()
        if found != sha256:
            raise PictureError(f"its content in the depot ({found[:12]}) is not what was recorded ({sha256[:12]})")

    # ---- vitals

    async def _advance_tapes(self, draft: Draft, state: SweepState) -> None:
        record = state.record
        assert record is not None
        for host in dict.fromkeys(lane.host for lane in record.lanes):
            if host not in draft.tapes:
                draft.tapes[host] = await tape.rewind(self._bus, host, state.sweep_id, record.submitted_at)
            await self._advance(draft.tapes[host], _last_end(state) if state.is_final else None)

    async def _advance(self, host_tape: Tape, until: Stamp | None) -> None:
        """To the present, and for a final report past ``until`` if telemetry gets there in time."""
        if until is not None and _is_past(host_tape, until):
            return  # what came later is of other sweeps, after a restore even of another machine
        deadline = asyncio.get_running_loop().time() + VITALS_WAIT_S
        await tape.advance(self._bus, host_tape)
        while until is not None and not _reaches(host_tape, until):
            if asyncio.get_running_loop().time() > deadline:
                log.warning("vitals_incomplete", host=host_tape.recording.host)
                return
            await asyncio.sleep(VITALS_POLL_S)
            await tape.advance(self._bus, host_tape)

    # ---- writing

    async def _write(self, draft: Draft, state: SweepState, revision: int, epoch: str) -> Sequence[ReportFile]:
        material = Material(
            recordings={host: found.recording for host, found in draft.tapes.items()},
            pictures=with_expired(
                {job_id: pictures for job_id, (_, pictures) in draft.pictures.items()},
                state.jobs.values(),
                await expiry.read(self._store, state.sweep_id),
            ),
            keyframe=draft.keyframe or Pictures(),
            scores=await self._judgements.scores(state),
        )
        study = await asyncio.to_thread(
            case_study.build, state, material, revision=revision, published_at=datetime.now(UTC), epoch=epoch
        )
        for name, text in (await asyncio.to_thread(_render, study)).items():
            await self._put(draft, state.sweep_id, name, text)
        files = [draft.files[name] for name in sorted(draft.files)]
        content = await asyncio.to_thread(_document, study, files)
        key = objects.report_file(state.sweep_id, "report.json")
        await self._store.put(key, content, objects.report_content_type("report.json"))
        return files

    async def _put_file(self, draft: Draft, sweep_id: str, name: str, path: Path) -> None:
        await self._put(draft, sweep_id, name, await asyncio.to_thread(path.read_bytes))

    async def _put(self, draft: Draft, sweep_id: str, name: str, content: bytes) -> None:
        content_type = objects.report_content_type(name)
        await self._store.put(objects.report_file(sweep_id, name), content, content_type)
        draft.files[name] = ReportFile(
            name=name,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            content_type=content_type,
        )


def with_expired(
    pictures: Mapping[str, Pictures], jobs: Iterable[Job], expired: Expiry | None
) -> Mapping[str, Pictures]:
    """Pictures by job id; those of a clip that has expired stay, and say so."""
    if expired is None:
        return pictures
    gone = {job.spec.job_id for job in jobs if job.clip is not None and job.clip.key in expired.keys}
    return {
        job_id: replace(found, error=expired.text) if job_id in gone else found for job_id, found in pictures.items()
    }


def _render(study: CaseStudy) -> dict[str, bytes]:
    return {
        "index.html": page.render_html(study).encode(),
        "report.md": page.render_markdown(study).encode(),
    }


def _document(study: CaseStudy, files: Sequence[ReportFile]) -> bytes:
    return document.json_text(document.to_json(study, [asdict(file) for file in files])).encode()


def draft_of(content: Mapping[str, Any]) -> Draft:
    """What an earlier revision left in the depot; ValueError for another schema, KeyError for a broken one."""
    if content["schema"] != document.SCHEMA:
        raise ValueError(f"schema {content['schema']!r} is not {document.SCHEMA!r}")
    files = {entry["name"]: ReportFile(**entry) for entry in content["files"]}
    draft = Draft(
        revision=int(content["revision"]),
        final=bool(content["final"]),
        renderer=str(content["renderer"]),
        cursor=content["cursor"],
        files={name: file for name, file in files.items() if "/" in name or name == "keyframe.jpg"},
        keyframe=Pictures(sheet="keyframe.jpg") if "keyframe.jpg" in files else None,
    )
    if draft.renderer != document.RENDERER:
        # Pictures of an older renderer are made anew as well.
        return Draft(revision=draft.revision)
    for row in content["rows"]:
        pictures = Pictures(sheet=row["sheet"], poster=row["poster"], strip=row["strip"])
        if row["clip"] and len(pictures.names) == len(PICTURE_KINDS) and set(pictures.names.values()) <= set(files):
            draft.pictures[row["job_id"]] = (row["clip"]["sha256"], pictures)
    return draft


def _is_current(draft: Draft, state: SweepState, epoch: str) -> bool:
    return (
        draft.renderer == document.RENDERER
        and draft.final == state.is_final
        and draft.cursor == {"epoch": epoch, "sequence": state.last_sequence}
    )


def _lacks_pictures(draft: Draft, job: Job) -> bool:
    """Also when the pictures are of another clip: a retry put a new one in this cell."""
    if job.clip is None:
        return False
    made = draft.pictures.get(job.spec.job_id)
    return made is None or made[0] != job.clip.sha256


def _last_end(state: SweepState) -> Stamp | None:
    """Of the last attempt that ran."""
    ends = [
        attempt.ended for job in state.jobs.values() for attempt in job.attempts if attempt.started and attempt.ended
    ]
    return max(ends, key=lambda stamp: stamp.at, default=None)


def _is_past(host_tape: Tape, until: Stamp) -> bool:
    """Whether it holds a batch of that boot that is later."""
    newest = host_tape.recording.newest
    return newest is not None and newest.stamp.boot_id == until.boot_id and _reaches(host_tape, until)


def _reaches(host_tape: Tape, until: Stamp) -> bool:
    """Whether the newest batch is past the moment, or of another boot. Without any batch nobody is sampling."""
    newest = host_tape.recording.newest
    if newest is None or newest.stamp.boot_id != until.boot_id:
        return True
    return newest.stamp.boottime_ns >= until.boottime_ns
