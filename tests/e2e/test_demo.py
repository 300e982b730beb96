"""``make demo`` as it is accepted: ten lanes, ten clips that play, a report, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import playwright.sync_api as playwright
import pytest

from screentest_ui import programs
from screentest_ui.home import Home

ROOT = Path(__file__).parents[2]
FRAMES = 25
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Every clip of the page, played to its end at four times the speed; what each came to.
PLAY_ALL = """async () => Promise.all(
  [...document.querySelectorAll('.card video')].map(video => new Promise(resolve => {
  video.muted = true;
  video.playbackRate = 4;
  video.addEventListener('ended', () => resolve('ended'));
  video.addEventListener('error', () => resolve('error ' + (video.error && video.error.message)));
  video.play().catch(error => resolve('refused ' + error));
  setTimeout(() => resolve('timeout'), 30000);
})))"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SCREENTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "screentest_ui.demo"],
        cwd=folder,
        env={**clean, "SCREENTEST_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    return folder, done


@pytest.fixture(scope="module")
def report(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    folder, done = demo
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("report: out/")
    return folder / Path(last.removeprefix("report: ")).parent


def test_ten_rows_are_completed(report: Path) -> None:
    document = json.loads((report / "report.json").read_text())
    assert [row["status"] for row in document["rows"]] == ["completed"] * 10
    assert document["final"] is True
    assert document["sweep"]["random_weights"] is True
    assert "10 of 10 jobs terminal, 10 clips under" in document["closing"]


def test_ten_clips_play_with_the_effective_frame_count(report: Path) -> None:
    clips = sorted((report / "clips").glob("*.mp4"))
    assert len(clips) == 10
    for clip in clips:
        with av.open(str(clip)) as container:
            assert sum(1 for _ in container.decode(video=0)) == FRAMES, clip.name


def test_report_is_whole(report: Path) -> None:
    document = json.loads((report / "report.json").read_text())
    assert all((report / entry["name"]).stat().st_size == entry["size_bytes"] for entry in document["files"])
    assert (report / "index.html").exists()
    assert (report / "report.md").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_ten_clips_play_to_their_end_in_a_browser_from_the_fetched_folder(report: Path) -> None:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page()
        page.goto((report / "index.html").as_uri())
        endings = page.evaluate(PLAY_ALL)
        browser.close()
    assert endings == ["ended"] * 10


def test_it_says_how_to_go_on(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert demo[1].stdout.splitlines()[-2] == "panel: make up"


def test_no_process_is_left(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    running = Home(demo[0] / "home").read()
    assert running is not None
    assert running.processes == {}
    assert programs.marked(running.marker) == ()
