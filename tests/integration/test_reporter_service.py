"""The reporter as a process, against a real broker and a real depot."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from screentest import objects, subjects, wire
from screentest.errors import NotFound, Unavailable
from screentest.kit.bus import Append, Bus
from screentest.kit.store import Store
from screentest.records import (
    Artifact,
    DeviceProof,
    FailureClass,
    FindingEdited,
    Job,
    JobEvent,
    JobSpec,
    ProofKind,
    RetryRequested,
    SweepEvent,
    SweepRecord,
)
from tests.conftest import Depot, RunningServer
from tests.made_clips import write_clip
from tests.made_sweeps import (
    RUNNER,
    SWEEP_ID,
    History,
    clip_of,
    plan,
    proof,
    record,
    retry_of,
    settled,
    specs,
    stamp,
    submitted,
)
from tests.unit.test_reporter_vitals import batch, gpu_sample

WAN = replace(plan("wan2-1-t2v-1-3b", "Wan 2.1 T2V 1.3B"), device="gpu-0")
MOCHI = replace(plan("mochi-1-preview", "Mochi 1 Preview"), device="gpu-0")
PROVEN = DeviceProof(
    host="local",
    device="gpu-0",
    proof=proof(ProofKind.CONTINUE, second=60, lock_held=True, lock_holders=(RUNNER,)),
)


class Reporter:
    """screentest-reporter as an operator starts it."""

    def __init__(self, nats_url: str, depot: Depot, folder: Path) -> None:
        secret = folder / "reporter.secret"
        secret.write_text(depot.reporter.secret_key)
        self._environment = {
            **os.environ,
            "SCREENTEST_NATS_URL": nats_url,
            "SCREENTEST_DEPOT_URL": depot.url,
            "SCREENTEST_DEPOT_BUCKET": depot.bucket,
            "SCREENTEST_DEPOT_ACCESS_KEY": depot.reporter.access_key,
            "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(secret),
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("screentest-reporter"))], env=self._environment
        )

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=15)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def reporter(nats_server: RunningServer, depot: Depot, tmp_path: Path) -> Iterator[Reporter]:
    running = Reporter(nats_server.url, depot, tmp_path)
    yield running
    if running.process.poll() is None:
        running.stop()


class Writer:
    """Appends what scheduler and workers would append."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._last: dict[str, int] = {}

    async def write(self, *events: SweepEvent | JobEvent) -> None:
        for event in events:
            subject = (
                subjects.sweep_events(event.sweep_id)
                if isinstance(event, SweepEvent)
                else subjects.job_events(event.sweep_id, event.lane_id, event.job_id)
            )
            append = Append(
                subject=subject,
                payload=wire.encode(event),
                expected_sequence=self._last.get(subject, 0),
                event_id=event.event_id,
            )
            self._last[subject] = await self._bus.append(append)


@pytest.fixture
def writer(bus: Bus) -> Writer:
    return Writer(bus)


async def upload_clip(store: Store, spec: JobSpec, tmp_path: Path, content: bytes | None = None) -> Artifact:
    """A real clip in the depot, or ``content`` in its place."""
    path = tmp_path / f"{spec.job_id}.mp4"
    await asyncio.to_thread(write_clip, path)
    data = await asyncio.to_thread(path.read_bytes) if content is None else content
    sha256 = hashlib.sha256(data).hexdigest()
    clip = replace(clip_of(spec, sha256), size_bytes=len(data))
    await store.put(clip.key, data, "video/mp4")
    return clip


async def report_json(store: Store, sweep_id: str = SWEEP_ID) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(await store.get(objects.report_file(sweep_id, "report.json")))
    except NotFound:
        return None
    return document


async def wait_report(
    store: Store, fits: Callable[[dict[str, Any]], bool], sweep_id: str = SWEEP_ID, within_s: float = 40
) -> dict[str, Any]:
    deadline = time.monotonic() + within_s
    while True:
        document = await report_json(store, sweep_id)
        if document is not None and fits(document):
            return document
        assert time.monotonic() < deadline, f"no such report within {within_s} s; the last one: {document}"
        await asyncio.sleep(0.2)


def is_final(document: dict[str, Any]) -> bool:
    return bool(document["final"])


async def play(writer: Writer, sweep: SweepRecord, histories: Sequence[History]) -> list[Job]:
    await writer.write(submitted(sweep))
    for history in histories:
        await writer.write(*history.events)
    return [history.job for history in histories]


async def finished_sweep(writer: Writer, store: Store, tmp_path: Path) -> SweepRecord:
    """One completed row and one failed one, settled."""
    sweep = record([WAN, MOCHI])
    wan, mochi = specs(sweep)
    histories = [
        History(wan, second=2).complete(10, clip=await upload_clip(store, wan, tmp_path)),
        History(mochi, second=20).fail(FailureClass.OOM_LOAD, "CUDA out of memory", "take a lower rung", 20.73),
    ]
    jobs = await play(writer, sweep, histories)
    await writer.write(settled(sweep, jobs, [PROVEN], 60))
    return sweep


async def test_settled_sweep_gets_its_case_study(
    bus: Bus, store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    for second in range(0, 70):
        sample = gpu_sample(
            second, utilisation_percent=96.0, temperature_c=83.0, power_w=93.66, energy_mj=90_000 * second
        )
        await bus.publish(subjects.vitals("local"), wire.encode(batch(second, sample)))
    await finished_sweep(writer, store, tmp_path)
    document = await wait_report(store, is_final)
    assert [row["status"] for row in document["rows"]] == ["completed", "failed"]
    assert document["rows"][1]["finding"] == "oom_load: CUDA out of memory. Fix: take a lower rung."
    assert document["closing"] == (
        f"2 of 2 jobs terminal, 1 clip under {SWEEP_ID}/clips/, process table clean at 2026-05-08T23:30:59Z "
        "but for the warm runner of Mochi 1 Preview"
    )
    assert document["vitals"]["text"] == (
        "39 vitals samples, 96% p95 utilization, 83C peak temperature, 93.66W peak power."
    )
    assert document["rows"][0]["gpu_energy_wh"] == pytest.approx(10 * 90 / 3600)
    await assert_files_are_there(store, document)


async def assert_files_are_there(store: Store, document: dict[str, Any]) -> None:
    names = {entry["name"] for entry in document["files"]}
    row = document["rows"][0]
    assert {"index.html", "report.md", row["sheet"], row["poster"], row["strip"]} <= names
    for entry in document["files"]:
        content = await store.get(objects.report_file(SWEEP_ID, entry["name"]))
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    page = (await store.get(objects.report_file(SWEEP_ID, "index.html"))).decode()
    assert row["clip"]["file"] in page and row["sheet"] in page
    assert "random weights: shows what runs, not how a picture looks" in page


async def test_running_sweep_is_reported_as_it_goes(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    sweep = record([WAN, MOCHI])
    wan, mochi = specs(sweep)
    await play(writer, sweep, [History(wan).complete(clip=await upload_clip(store, wan, tmp_path)), History(mochi)])
    document = await wait_report(store, lambda report: report["rows"][:1] and report["rows"][0]["sheet"])
    assert (document["final"], document["closing"]) == (False, None)
    assert [row["status"] for row in document["rows"]] == ["completed", "queued"]


async def test_missing_and_broken_clips_cost_only_their_own_row(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    lanes = [replace(WAN, lane_id=name, lane_title=name) for name in ("good", "gone", "broken", "other")]
    sweep = record(lanes)
    good, gone, broken, other = specs(sweep)
    clips = [
        await upload_clip(store, good, tmp_path),
        clip_of(gone),
        await upload_clip(store, broken, tmp_path, content=b"no mp4 at all"),
        replace(await upload_clip(store, other, tmp_path), sha256="d" * 64),
    ]
    histories = [
        History(spec).complete(clip=clip) for spec, clip in zip((good, gone, broken, other), clips, strict=True)
    ]
    jobs = await play(writer, sweep, histories)
    await writer.write(settled(sweep, jobs, [PROVEN], 60))
    rows = (await wait_report(store, is_final))["rows"]
    assert rows[0]["sheet"] and not rows[0]["picture_error"]
    assert "no object" in rows[1]["picture_error"]
    assert "InvalidData" in rows[2]["picture_error"]
    assert "not what was recorded" in rows[3]["picture_error"]


async def test_restart_writes_nothing_anew_and_leaves_no_child(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    await finished_sweep(writer, store, tmp_path)
    before = await wait_report(store, is_final)
    children = reporter.children()
    assert reporter.stop() == 0
    assert not psutil.wait_procs(children, timeout=30)[1]
    reporter.start()
    sweep = record([WAN], sweep_id="another-sweep")
    await play(writer, sweep, [History(spec) for spec in specs(sweep)])
    await wait_report(store, lambda _: True, "another-sweep")
    assert await report_json(store) == before


async def test_killed_reporter_leaves_no_child(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    await finished_sweep(writer, store, tmp_path)
    await wait_report(store, is_final)
    children = reporter.children()
    assert children
    reporter.process.kill()
    reporter.process.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]


async def test_retry_reopens_a_finished_report_and_lists_the_first_try(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    sweep = await finished_sweep(writer, store, tmp_path)
    first = await wait_report(store, is_final)
    wan, mochi = specs(sweep)
    second = retry_of(mochi)
    asked = SweepEvent(
        event_id="retry", sweep_id=sweep.sweep_id, stamp=stamp(70), body=RetryRequested(spec=second, by="ada")
    )
    await writer.write(
        asked, *History(second, second=70).complete(clip=await upload_clip(store, second, tmp_path)).events
    )
    jobs = [History(wan).complete().job, History(mochi).fail(FailureClass.OOM_LOAD).job, History(second).complete().job]
    done = replace(settled(sweep, jobs, [PROVEN], 90), event_id="settled again")
    await writer.write(done)
    document = await wait_report(store, lambda report: report["final"] and report["revision"] > first["revision"])
    row = document["rows"][1]
    assert (row["status"], row["earlier"][0]["status"]) == ("completed", "failed")
    assert row["finding"].endswith("2nd try; 1st: failed, oom_load.")
    assert document["closing"].startswith("3 of 3 jobs terminal, 2 clips")


async def test_an_edited_finding_and_an_added_note_make_a_new_revision_of_a_finished_report(
    store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    sweep = await finished_sweep(writer, store, tmp_path)
    first = await wait_report(store, is_final)
    wan, _ = specs(sweep)
    for row, text in ((wan.job_id, "It blinks."), ("note:cable", "Check the cable.")):
        body = FindingEdited(row=row, text=text, by="ada")
        await writer.write(SweepEvent(event_id=f"edit-{row}", sweep_id=sweep.sweep_id, stamp=stamp(100), body=body))
    document = await wait_report(
        store, lambda report: any(note["id"] == "note:cable" for note in report["operator_notes"])
    )
    assert document["revision"] > first["revision"] and document["final"]
    row = document["rows"][0]
    assert (row["finding"], row["finding_edit"]["by"]) == ("It blinks.", "ada")
    assert row["finding_original"] == first["rows"][0]["finding"]


async def test_report_comes_after_broker_and_depot_were_away(
    bus: Bus,
    store: Store,
    writer: Writer,
    reporter: Reporter,
    depot: Depot,
    nats_server: RunningServer,
    tmp_path: Path,
) -> None:
    await finished_sweep(writer, store, tmp_path)
    await wait_report(store, is_final)
    depot.server.kill()
    nats_server.kill()
    await asyncio.sleep(1)
    nats_server.start()
    async with asyncio.timeout(20):
        await bus.reconnected().wait()
    sweep = record([MOCHI], sweep_id="later-sweep")
    (spec,) = specs(sweep)
    jobs = await play(writer, sweep, [History(spec).fail(FailureClass.CRASHED, "it broke")])
    await writer.write(settled(sweep, jobs, [replace(PROVEN, proof=None)], 60))
    await asyncio.sleep(3)
    depot.server.start()
    document = await retry_unavailable(lambda: wait_report(store, is_final, "later-sweep"))
    assert document["closing"].endswith("process table unknown: telemetry did not answer")


async def retry_unavailable(call: Callable[[], Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 40
    while True:
        try:
            document: dict[str, Any] = await call()
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)
        else:
            return document


async def test_an_event_that_cannot_be_read_does_not_stop_the_reporter(
    bus: Bus, store: Store, writer: Writer, reporter: Reporter, tmp_path: Path
) -> None:
    garbage = Append(subject="events.strange.lane.job", payload=b"\xff\xff", expected_sequence=0, event_id="x")
    await bus.append(garbage)
    await finished_sweep(writer, store, tmp_path)
    assert (await wait_report(store, is_final))["final"]
