"""The case study once more: ten lanes, seven of them without the fix that mends them, one sweep, one report.

Real attempts on miniatures through scheduler, telemetry, workers and runners; the reporter is the real process too.
Three lanes complete, one of them black, as it was published; what the page says of it all comes from the events.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from screentest import objects
from screentest.errors import NotFound
from screentest.kit.bus import Bus
from screentest.records import Requested
from screentest_ui import ports, servers, sweepfile
from tests.conftest import Depot, RunningServer
from tests.faults import published
from tests.faults.machine import ROOT, Machine
from tests.integration.runner_process import env_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAN, COG_2B, COG_5B = "wan2-1-t2v-1-3b", "cogvideox-2b", "cogvideox-5b"
MOCHI, FORCING, LTX = "mochi-1-preview", "skyreels-v2-df-14b-540p", "ltx-video-13b-distilled"
HUNYUAN, V1, I2V = "hunyuanvideo-i2v", "skyreels-v1-hunyuan-i2v", "skyreels-v2-i2v-14b-540p"
SVD = "stable-video-diffusion-xt"
LANES = (WAN, COG_2B, COG_5B, MOCHI, FORCING, LTX, HUNYUAN, V1, I2V, SVD)

# Preflight refuses these two before an attempt, so what preflight would have stopped happens inside the runner.
BARE_TRANSFORMER = """
import pathlib, shutil, tempfile
from screentest_runner.adapters.diffusers import DiffusersAdapter
whole = DiffusersAdapter.from_folder
def changed(self, folder):
    bare = pathlib.Path(tempfile.mkdtemp()) / "repository"
    shutil.copytree(pathlib.Path(folder) / "transformer", bare)
    return whole(self, bare)
DiffusersAdapter.from_folder = changed
"""
UNMAPPED = """
from dataclasses import replace
from screentest_runner.loop import Runner
whole = Runner._decode
def changed(self, request, progress):
    names = {"max_guidance_scale": "guidance_scale"}
    call = {names.get(name, name): value for name, value in request.call.items()}
    return whole(self, replace(request, call=call), progress)
Runner._decode = changed
"""
# Text-to-video weights in the image-to-video lane: the first convolution takes 16 channels and gets 36.
SIXTEEN_CHANNELS = published.with_pipe("""
import torch
old = pipe.transformer.patch_embedding
new = torch.nn.Conv3d(16, old.out_channels, old.kernel_size, old.stride)
pipe.transformer.patch_embedding = new.to(old.weight.dtype)
""")

# Model, Task, Status as published, and the class that stands behind the published words.
PUBLISHED = (
    ("Wan 2.1 T2V 1.3B", "T2V", "completed", None),
    ("CogVideoX 2B", "T2V", "completed", None),
    ("CogVideoX 5B", "T2V", "completed", None),
    ("Mochi 1 Preview", "T2V", "failed", "oom_load"),
    ("SkyReels V2 DF 14B 540P", "T2V", "failed", "timeout"),
    ("LTX Video 13B Distilled", "I2V", "failed", "oom_denoise"),
    ("HunyuanVideo I2V", "I2V", "failed", "conditioning"),
    ("SkyReels V1 Hunyuan I2V", "I2V", "failed", "layout"),
    ("SkyReels V2 I2V 14B 540P", "I2V", "failed", "channels"),
    ("Stable Video Diffusion XT", "I2V", "failed", "bad_kwargs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The published report of the one sweep."""

    document: dict[str, Any]
    html: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.document["rows"]
        return found

    def row(self, model: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["model"] == model)

    def note(self, topic: str) -> dict[str, Any]:
        notes: list[dict[str, Any]] = self.document["operator_notes"]
        return next(note for note in notes if note["topic"] == topic)


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, depot_server: tuple[RunningServer, tuple[servers.DepotKey, ...]]
) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("case-study")
    nats = RunningServer(servers.configure_nats(folder / "nats", ports.choose(1)[0]))
    nats.start()
    server, (scheduler, reporter) = depot_server
    depot = Depot(url=server.url, bucket="case-study", scheduler=scheduler, reporter=reporter, server=server)
    try:
        yield asyncio.run(_published(folder, nats, depot))
    finally:
        nats.stop()


async def _published(folder: Path, nats: RunningServer, depot: Depot) -> Page:
    await depot.store().ensure_bucket()
    bus = await Bus.connect(nats.url, name="test")
    await bus.ensure_streams()
    host = Machine(folder=folder / "machine", nats=nats, depot=depot, bus=bus)
    _write_lanes(host, folder)
    reporter = _start_reporter(folder, nats, depot)
    try:
        await host.up(WAN)  # ten interpreters at once would keep a small machine from answering
        for lane_id in LANES[1:]:
            host.start(lane_id)
        asked = sweepfile.load(ROOT / "deploy" / "sweeps" / "architects-stillness.toml")
        keyframe = await host.ask(lambda client: client.upload_keyframe(asked.keyframe))
        sweep_id = await host.submit(
            *LANES,
            title=asked.title,
            prompts=asked.prompts,
            keyframe=keyframe,
            requested=Requested(guidance_scale=3.5),
        )
        await host.over(sweep_id, 400)
        store = depot.store()

        async def final() -> dict[str, Any] | None:
            try:
                found = json.loads(await store.get(objects.report_file(sweep_id, "report.json")))
            except NotFound:
                return None
            return found if found["final"] else None

        document = await host.until(final, 60, "final report")
        html = (await store.get(objects.report_file(sweep_id, "index.html"))).decode()
    finally:
        reporter.terminate()
        reporter.wait(30)
        await host.down()
        await bus.close()
    return Page(document=document, html=html)


def _write_lanes(host: Machine, folder: Path) -> None:
    """The catalogue's ten, seven with their fix switched off in file or runner."""
    content = {lane_id: published.shipped(lane_id) for lane_id in LANES}
    float32 = published.changed(content[MOCHI], MOCHI, {"pipeline": {"dtype": {"default": "float32"}}})
    content[MOCHI] = published.without_ladder(float32)
    content[LTX] = published.without_ladder(content[LTX])
    content[FORCING] = published.changed(content[FORCING], FORCING, {"limits": {"attempt_s": 8}})
    content[HUNYUAN] = published.without_index_class(content[HUNYUAN])
    changes = {
        WAN: published.DECODES_TO_BLACK,
        MOCHI: published.CARD_TOO_SMALL_TO_LOAD,
        FORCING: published.STUBBORN.format(pid_file=str(folder / "daemon.pid")),
        LTX: published.CARD_TOO_SMALL_TO_DENOISE,
        V1: BARE_TRANSFORMER,
        I2V: SIXTEEN_CHANNELS,
        SVD: UNMAPPED,
    }
    for lane_id in LANES:
        published.write_lane(host.lanes, content[lane_id])
        change = changes.get(lane_id)
        python = published.python_with(folder / "envs" / lane_id, change) if change else env_python("diffusers")
        host.environments[lane_id] = {"SCREENTEST_ENV_PYTHON": str(python), "OMP_NUM_THREADS": "1"}


def _start_reporter(folder: Path, nats: RunningServer, depot: Depot) -> subprocess.Popen[bytes]:
    secret = folder / "reporter-secret"
    secret.write_text(depot.reporter.secret_key)
    settings = {
        "PATH": os.environ["PATH"],
        "SCREENTEST_NATS_URL": nats.url,
        "SCREENTEST_DEPOT_URL": depot.url,
        "SCREENTEST_DEPOT_BUCKET": depot.bucket,
        "SCREENTEST_DEPOT_ACCESS_KEY": depot.reporter.access_key,
        "SCREENTEST_DEPOT_SECRET_KEY_FILE": str(secret),
        "SCREENTEST_LOG_FORMAT": "json",
    }
    with (folder / "reporter.log").open("ab") as log:
        program = Path(sys.executable).with_name("screentest-reporter")
        return subprocess.Popen([str(program)], env=settings, stdout=log, stderr=log)


# ---- the table


def test_table_has_the_published_rows_in_their_order(page: Page) -> None:
    told = [(row["model"], row["task"], row["status"], row["failure_class"]) for row in page.rows]
    assert told == list(PUBLISHED)


def test_every_failure_says_its_cause_and_what_to_do(page: Page) -> None:
    for row in page.rows:
        if row["status"] == "failed":
            assert row["cause"], row["model"]
            assert row["fix"], row["model"]
            assert "\n" not in row["cause"] + row["fix"]


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("Mochi 1 Preview", "CUDA out of memory"),
        ("SkyReels V2 DF 14B 540P", "more than 8 s"),
        ("LTX Video 13B Distilled", "CUDA out of memory"),
        ("HunyuanVideo I2V", "does not split text"),
        ("SkyReels V1 Hunyuan I2V", "model_index.json"),
        ("SkyReels V2 I2V 14B 540P", "to have 16 channels, but got 36 channels"),
        ("Stable Video Diffusion XT", "guidance_scale"),
    ],
)
def test_causes_carry_the_librarys_own_words(page: Page, model: str, cause: str) -> None:
    assert cause in page.row(model)["cause"]


def test_black_clip_is_completed_with_a_flag_and_random_weights_are_not_scored(page: Page) -> None:
    wan = page.row("Wan 2.1 T2V 1.3B")
    assert "black" in wan["clip_facts"]["flags"]
    assert {row["prompt_match"] for row in page.rows if row["status"] == "completed"} == {"not scored"}


def test_guidance_that_svd_knows_by_another_name_is_a_footnote(page: Page) -> None:
    marks = page.row("Stable Video Diffusion XT")["marks"]
    assert any("max_guidance_scale" in mark for mark in marks)


# ---- the notes


@pytest.mark.parametrize(
    ("topic", "models"),
    [
        ("oom_load", ["Mochi 1 Preview"]),
        ("oom_denoise", ["LTX Video 13B Distilled"]),
        ("timeout", ["SkyReels V2 DF 14B 540P"]),
        ("survivors killed", ["SkyReels V2 DF 14B 540P"]),
        ("conditioning", ["HunyuanVideo I2V"]),
        ("layout", ["SkyReels V1 Hunyuan I2V"]),
        ("channels", ["SkyReels V2 I2V 14B 540P"]),
        ("bad_kwargs", ["Stable Video Diffusion XT"]),
    ],
)
def test_notes_name_each_lesson_and_the_rows_it_is_about(page: Page, topic: str, models: list[str]) -> None:
    note = page.note(topic)
    assert note["models"] == models
    assert note["text"]


def test_survivors_are_counted(page: Page) -> None:
    assert "killed before the next job" in page.note("survivors killed")["text"]


def test_a_prompt_too_dense_for_one_short_clip_is_said(page: Page) -> None:
    text = page.note("prompt")["text"]
    assert "beats" in text
    assert "per beat" in text


def test_page_shows_every_row_and_note(page: Page) -> None:
    for model, *_ in PUBLISHED:
        assert model in page.html
    for note in page.document["operator_notes"]:
        assert note["id"] in page.html or note["topic"] in page.html
