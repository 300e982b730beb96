"""The panel in a real browser: every page on two screens, the scheduler's restart, and a sweep from form to clip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

import screentest_ui
from screentest.records import JobState, SkippedLane, Task
from screentest_ui import ports, services, stack
from screentest_ui.home import Home
from tests.integration.panel_scheduler import (
    HOSTILE,
    World,
    device,
    job,
    lane,
    progress,
    proof,
    serve,
    sweep_spec,
    vitals,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PANEL = Path(screentest_ui.__file__).with_name("panel.py")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Each page with the last thing it draws.
PAGES = {
    "": "[data-testid=stButton]:has-text('Submit')",
    "queue": "text=Lane 9",
    "sweeps": "[data-testid=stButton]:has-text('Open')",
    "sweeps?sweep=night-tram": "text=1 job without a clip",
    "vitals": "canvas, svg.marks",
    "lanes": "[data-testid=stDataFrame] canvas",
    "report": "[data-testid=stAlert]",
}
SETTLE_MS = 500  # the parts that are drawn side by side with the last one
SCREENS = [(1280, 900, "light"), (390, 844, "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright: Playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def panel_of(address: str, log: Path) -> Iterator[str]:
    """The URL of a panel process that talks to the scheduler at ``address``."""
    url = f"http://127.0.0.1:{ports.choose(1)[0]}"
    env = {**os.environ, "SCREENTEST_GRPC_ADDRESS": address}
    command = [sys.executable, "-m", "streamlit", "run", str(PANEL), f"--server.port={urlsplit(url).port}"]
    with log.open("wb") as output, subprocess.Popen(command, env=env, stdout=output, stderr=output) as process:
        try:
            _wait_for(f"{url}/_stcore/health")
            yield url
        finally:
            process.terminate()


def _wait_for(url: str, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture
def world() -> World:
    """A night in the middle: jobs in every state, hostile text everywhere, a drained device."""
    world = World(lanes=[lane("stub", "Stub"), lane("stub-i2v", HOSTILE, Task.I2V, alive=False)])
    running = job("now", JobState.RUNNING, ordinal=2, lane_title=HOSTILE)
    jobs = (
        job("good", JobState.COMPLETED, prompt=HOSTILE),
        job("bad", JobState.FAILED, ordinal=1, cause=HOSTILE, fix=HOSTILE),
        replace(running, progress=progress(running.spec, "denoising", 12, 50)),
        *(job(f"wait-{n}", JobState.QUEUED, ordinal=n, waits_for=HOSTILE) for n in range(3, 10)),
    )
    skipped = (SkippedLane(lane_id="stub-i2v", lane_title=HOSTILE, reason=HOSTILE),)
    world.add(*jobs, spec=sweep_spec(title=HOSTILE, prompts=(HOSTILE,)), skipped=skipped)
    world.devices = [
        device(job_id="now"),
        device(device="gpu-0", drained=True, drained_reason=HOSTILE, proof=proof(clean=False, reason=HOSTILE)),
    ]
    world.batches = [vitals(second, gpu=True) for second in range(-60, 0)]
    world.artifacts = {
        "night-tram/index.html": "data:text/html,<p>A report of " + HOSTILE.replace("<", "&lt;").replace("#", "%23")
    }
    return world


def open_page(page: Page, url: str, last: str = "h1, h2") -> list[str]:
    """Opens a page until what it draws last stands there; returns the hosts it asked anything of."""
    hosts: list[str] = []
    page.on("request", lambda request: hosts.append(urlsplit(request.url).hostname or ""))
    page.goto(url)
    expect(page.locator(last).last).to_be_visible(timeout=30_000)
    page.wait_for_timeout(SETTLE_MS)
    return hosts


@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_every_page_opens_fits_and_runs_no_text_of_a_person(
    world: World, browser: Browser, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    for address in serve(world):
        with panel_of(address, tmp_path / "panel.log") as url:
            screen = {"width": width, "height": height}
            context = browser.new_context(viewport=screen, color_scheme=scheme)  # type: ignore[arg-type]
            for name, last in PAGES.items():
                page = context.new_page()
                dialogs: list[str] = []
                page.on("dialog", lambda dialog, seen=dialogs: (seen.append(dialog.message), dialog.dismiss()))
                hosts = open_page(page, f"{url}/{name}", last)
                page.screenshot(path=tmp_path / f"{name.replace('?', '-') or 'submit'}-{width}.png")
                assert page.get_by_test_id("stException").count() == 0, name
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                assert page.locator("main script, main a[href*='x.test']").count() == 0, name
                assert dialogs == []
                assert is_dark(page) == (scheme == "dark"), name
                assert set(hosts) == {"127.0.0.1"}, name
                page.close()
            context.close()


def is_dark(page: Page) -> bool:
    """Whether the page's ground is dark, by its red part of 0..255."""
    ground = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor.match(/\\d+/)[0]"
    return int(page.evaluate(ground)) < 128


def test_an_open_page_names_a_dead_scheduler_and_comes_back_with_it(
    world: World, browser: Browser, tmp_path: Path
) -> None:
    port = ports.choose(1)[0]
    scheduler = serve(world, port)
    with panel_of(next(scheduler), tmp_path / "panel.log") as url:
        page = browser.new_page()
        open_page(page, f"{url}/queue")
        expect(page.get_by_text("1 job at work")).to_be_visible()
        scheduler.close()
        expect(page.get_by_text("is not reachable")).to_be_visible(timeout=20_000)
        restarted = serve(world, port)
        next(restarted)
        expect(page.get_by_text("1 job at work")).to_be_visible(timeout=20_000)
        expect(page.get_by_text("is not reachable")).to_have_count(0, timeout=20_000)
        page.close()
        restarted.close()


@pytest.fixture
def stub_stack(tmp_path: Path) -> Iterator[str]:
    """The URL of the panel of a whole local stack with the stub lane."""
    home = Home(tmp_path / "home")
    place = services.installation(os.environ)
    if not place.env_python("stub").exists():
        pytest.skip("the stub env is not installed; run `make envs`")
    lanes = services.choose_lanes(place, ["stub"], with_stub=True)
    wanted = services.Wanted(device="cpu-0", lanes=lanes, weights_dir=tmp_path / "weights")
    try:
        up = stack.up(home, place, wanted, os.environ, lambda _: None)
        assert up.panel_url is not None
        yield up.panel_url
    finally:
        stack.down(home, lambda _: None)


def test_a_person_submits_watches_cancels_one_job_plays_a_clip_and_reads_the_report(
    stub_stack: str, browser: Browser, tmp_path: Path
) -> None:
    queue = browser.new_page()
    open_page(queue, f"{stub_stack}/queue")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    open_page(page, stub_stack)
    fill_form(page)
    page.get_by_role("button", name="Submit 6 jobs").click()
    queue.get_by_role("button", name="Cancel").last.click()
    expect(queue.get_by_text("Cancel requested")).to_be_visible()
    queue.close()

    page.wait_for_url("**/sweeps?sweep=night-tram-*", timeout=20_000)
    expect(page.get_by_text("denoising", exact=False).first).to_be_visible(timeout=30_000)
    page.reload()  # a refresh re-attaches to the sweep
    expect(page.get_by_text("5 completed, 1 cancelled")).to_be_visible(timeout=90_000)
    expect(page.get_by_text("process table clean")).to_be_visible(timeout=30_000)
    expect(page.locator("video")).to_have_count(5)
    assert played_s(page) > 0
    page.screenshot(path=tmp_path / "sweep-done.png")

    page.get_by_role("link", name="Report").last.click()
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="Night tram")).to_be_visible(timeout=30_000)
    expect(report.locator("video")).to_have_count(5)
    sheet = report.locator("img").first
    sheet.scroll_into_view_if_needed()
    expect(sheet).to_have_js_property("complete", True, timeout=20_000)
    assert sheet.evaluate("image => image.naturalWidth") > 0
    page.get_by_role("button", name="Prepare the folder").click()
    expect(page.get_by_role("button", name="Download")).to_be_visible(timeout=30_000)
    page.close()


def fill_form(page: Page) -> None:
    page.get_by_role("textbox", name="Title").fill("Night tram")
    prompts = page.get_by_role("textbox", name="Prompts")
    prompts.fill("A red tram crosses an iron bridge in heavy rain.")
    prompts.press("Control+Enter")
    seeds = page.get_by_role("textbox", name="Seeds")
    seeds.fill("1, 2, 3, 4, 5, 6")
    seeds.press("Enter")
    page.locator(".st-key-lane-stub label").click()


def played_s(page: Page) -> float:
    """Seconds the first clip of the page has played after a moment."""
    play = """async () => {
        const clip = document.querySelector('video');
        clip.muted = true;
        await clip.play();
        await new Promise(done => setTimeout(done, 500));
        return clip.currentTime;
    }"""
    return float(page.evaluate(play))
