"""The panel in a real browser: every page on two screens, the scheduler's restart, and a sweep from form to clip."""

from __future__ import annotations

import base64
import hashlib
import os
import re
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
from screentest.client import Votes
from screentest.records import FindingEdited, JobState, Rated, SkippedLane, Task, Weights
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
from tests.made_clips import write_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Of each expectation; Playwright's own 5 s are too short for a browser on a busy machine.
expect.set_options(timeout=30_000)

PANEL = Path(screentest_ui.__file__).with_name("panel.py")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Each page with the last thing it draws.
PAGES = {
    "": "[data-testid=stButton]:has-text('Submit')",
    "queue": "text=Lane 9",
    "sweeps": "[data-testid=stButton]:has-text('Open')",
    "sweeps?sweep=night-tram": "text=1 job without a clip",
    "sweeps?sweep=night-tram&view=Side+by+side": ".player video",
    "sweeps?sweep=night-tram&view=Rate+blind": "text=1 clip of 2 rated",
    "sweeps?sweep=night-tram&view=Blind+pairs": ".answers button >> nth=3",
    "sweeps?sweep=night-tram&view=Findings": "[data-testid=stButton]:has-text('Save') >> nth=-1",
    "sweeps?sweep=night-tram&view=Judge+again": "[data-testid=stButton]:has-text('Show what it costs')",
    "vitals": "canvas, svg.marks",
    "vitals?sweep=night-tram": "canvas, svg.marks",
    "lanes": "[data-testid=stDataFrame] canvas",
    "report": "[data-testid=stAlert]",
}
SETTLE_MS = 300  # the parts that are drawn side by side with the last one
# Tall: Streamlit scrolls inside the page, and a picture shows what stands in the window.
SCREENS = [(1280, 1600, "light"), (390, 1900, "dark")]
WORK_S = 8.0  # a job sleeps as long: time for a browser on a busy machine, and none of the processor's
# Kept after the test, in a folder that git ignores: somebody looks at them.
PICTURES = Path(__file__).parents[2] / "out" / "screenshots" / "panel"


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
def world(tmp_path: Path) -> World:
    """A night in the middle: jobs in every state, hostile text everywhere, a drained device."""
    judge = lane("qwen", HOSTILE, Task.JUDGE, tier="c")
    world = World(lanes=[lane("stub", "Stub"), lane("stub-i2v", HOSTILE, Task.I2V, alive=False), judge])
    running = job("now", JobState.RUNNING, ordinal=2, lane_title=HOSTILE)
    jobs = (
        job("good", JobState.COMPLETED, prompt=HOSTILE, weights=Weights.HUB, lane_title=HOSTILE),
        job("fine", JobState.COMPLETED, ordinal=10, prompt=HOSTILE, weights=Weights.HUB),
        job("bad", JobState.FAILED, ordinal=1, cause=HOSTILE, fix=HOSTILE),
        replace(running, progress=progress(running.spec, "denoising", 12, 50)),
        *(job(f"wait-{n}", JobState.QUEUED, ordinal=n, waits_for=HOSTILE) for n in range(3, 10)),
    )
    skipped = (SkippedLane(lane_id="stub-i2v", lane_title=HOSTILE, reason=HOSTILE),)
    world.add(*jobs, spec=sweep_spec(title=HOSTILE, prompts=(HOSTILE,)), skipped=skipped)
    write_clip(tmp_path / "clip.mp4")
    clip = (tmp_path / "clip.mp4").read_bytes()
    world.artifacts = dict.fromkeys(("good", "fine"), f"data:video/mp4;base64,{base64.b64encode(clip).decode()}")
    world.hashes = dict.fromkeys(("good", "fine"), hashlib.sha256(clip).hexdigest())
    rated = Rated(job_id="good", rater=HOSTILE, score10=6)
    world.votes = Votes(ratings=(rated,), pairs=(), findings=(FindingEdited(row="good", text=HOSTILE, by=HOSTILE),))
    world.devices = [
        device(job_id="now"),
        device(device="gpu-0", drained=True, drained_reason=HOSTILE, proof=proof(clean=False, reason=HOSTILE)),
    ]
    world.batches = [vitals(second, gpu=True) for second in range(-60, 0)]
    report = "data:text/html,<p>A report of " + HOSTILE.replace("<", "&lt;").replace("#", "%23")
    world.artifacts["night-tram/index.html"] = report
    return world


def open_page(page: Page, url: str, last: str = "h1, h2") -> list[str]:
    """Opens a page until what it draws last stands there; returns the hosts it asked anything of."""
    hosts: list[str] = []
    # A component's script comes as a blob: of the page itself.
    page.on("request", lambda request: hosts.append(urlsplit(request.url.removeprefix("blob:")).hostname or ""))
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
            page = context.new_page()
            dialogs: list[str] = []
            page.on("dialog", lambda dialog, seen=dialogs: (seen.append(dialog.message), dialog.dismiss()))
            for name, last in PAGES.items():
                hosts = open_page(page, f"{url}/{name}", last)
                keep_picture(page, f"{name or 'submit'}-{width}-{scheme}")
                assert page.get_by_test_id("stException").count() == 0, name
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                assert page.locator("main script, main a[href*='x.test']").count() == 0, name
                assert dialogs == []
                assert is_dark(page) == (scheme == "dark"), name
                assert set(hosts) == {"127.0.0.1"}, name
            context.close()


def keep_picture(page: Page, name: str) -> None:
    page.screenshot(path=PICTURES / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.png")


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
    """The URL of the panel of a whole local stack with the stub lane, slow enough to be watched and stopped."""
    home = Home(tmp_path / "home")
    catalogue = tmp_path / "deploy"
    deployed = services.installation(os.environ).lanes_dir
    shutil.copytree(deployed.parent / "measured", catalogue / "measured")
    (catalogue / "lanes").mkdir()
    stub = (deployed / "stub.toml").read_text().replace("work_s = 2.0", f"work_s = {WORK_S}")
    (catalogue / "lanes" / "stub.toml").write_text(stub)
    place = services.installation({**os.environ, "SCREENTEST_LANES_DIR": str(catalogue / "lanes")})
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


def test_a_person_works_a_sweep_from_the_form_to_the_published_finding(stub_stack: str, browser: Browser) -> None:
    """One walk: submit, watch, cancel one job, play two clips in step, rate one blind, edit a finding, publish."""
    queue = browser.new_page()
    open_page(queue, f"{stub_stack}/queue")
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    open_page(page, stub_stack)
    fill_form(page)
    page.get_by_role("button", name="Submit 3 jobs").click()
    # Paused, the queue holds still: what waits can be cancelled without haste.
    queue.get_by_role("button", name="Pause").click()
    expect(queue.get_by_role("button", name="Resume")).to_be_visible(timeout=20_000)
    waits = queue.get_by_test_id("stHorizontalBlock").filter(has_text="seed 3")
    waits.get_by_role("button", name="Cancel").last.click()
    expect(queue.get_by_text("Cancel requested")).to_be_visible(timeout=20_000)
    queue.get_by_role("button", name="Resume").click()
    expect(queue.get_by_role("button", name="Pause")).to_be_visible(timeout=20_000)
    page.wait_for_url("**/sweeps?*sweep=night-tram-*", timeout=20_000)
    expect(page.get_by_text("denoising", exact=False).first).to_be_visible(timeout=30_000)
    queue.close()

    page.reload()  # a refresh re-attaches to the sweep
    expect(page.get_by_text("2 completed, 1 cancelled")).to_be_visible(timeout=90_000)
    expect(page.get_by_text("process table clean")).to_be_visible(timeout=30_000)
    expect(page.locator("video")).to_have_count(2)
    keep_picture(page, "walk-1-over")

    play_in_step(page)
    rate_blind(page)
    edit_finding(page, "The disc moves; the tram is missing.")
    read_the_newest_report(page, "The disc moves; the tram is missing.")
    page.close()


def fill_form(page: Page) -> None:
    """Clips of 7 s of real weights as far as the stub lane knows: what people are asked for an opinion on."""
    page.get_by_role("textbox", name="Title").fill("Night tram")
    prompts = page.get_by_role("textbox", name="Prompts")
    prompts.fill("A red tram crosses an iron bridge in heavy rain.")
    prompts.press("Control+Enter")
    seeds = page.get_by_role("textbox", name="Seeds")
    seeds.fill("1, 2, 3")
    seeds.press("Enter")
    page.get_by_text("Negative prompt, size, frames").click()
    frames = page.get_by_role("spinbutton", name="Frames", exact=True)
    frames.fill("169")
    frames.press("Enter")
    page.get_by_role("combobox", name="Weights").click()
    page.get_by_text("hub: the published checkpoint").last.click()
    page.locator(".st-key-lane-stub label").click()
    keep_picture(page, "walk-0-form")


def look_at(page: Page, view: str) -> None:
    page.get_by_role("radio", name=view).or_(page.get_by_role("button", name=view, exact=True)).first.click()


def play_in_step(page: Page) -> None:
    """Two clips on one transport: within one frame of each other after five seconds."""
    look_at(page, "Side by side")
    videos = page.locator(".player video")
    expect(videos).to_have_count(2, timeout=30_000)
    page.wait_for_function(READY)
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(PLAYED_FOR_5_S, timeout=30_000)
    first, second = page.evaluate(PLACES)
    assert abs(first - second) <= 1 / 24
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="One frame on").click()
    stopped = page.evaluate(PLACES)
    assert stopped[0] == pytest.approx(stopped[1], abs=1e-3)
    keep_picture(page, "walk-2-side-by-side")
    page.reload()  # which clips stands in the address, the position in the browser
    expect(videos).to_have_count(2, timeout=30_000)
    page.wait_for_function(f"({PLACES})().every(at => Math.abs(at - {stopped[0]}) < 0.05)")


# The player stands in a shadow root: Playwright's locators see through it, a script has to look.
VIDEOS = """[...document.querySelectorAll('*')].filter(part => part.shadowRoot)
    .flatMap(part => [...part.shadowRoot.querySelectorAll('video')])"""
READY = f"() => {VIDEOS}.length === 2 && {VIDEOS}.every(video => video.readyState >= 3)"
# The panel itself serves it, in parts, under a name that is made of its content.
BLIND = f"""() => {VIDEOS}.length === 1 && {VIDEOS}[0].readyState >= 3
    && /^\\/media\\/[0-9a-f]+\\.mp4$/.test(new URL({VIDEOS}[0].src).pathname)"""
PLAYED_FOR_5_S = f"() => {VIDEOS}[0].currentTime > 5"
PLACES = f"() => {VIDEOS}.map(video => video.currentTime)"


def rate_blind(page: Page) -> None:
    look_at(page, "Rate blind")
    expect(page.get_by_text("0 clips of 2 rated")).to_be_visible()
    page.wait_for_function(BLIND)
    slider = page.get_by_role("slider", name="How well")
    for _ in range(6):
        slider.press("ArrowRight")
    keep_picture(page, "walk-3-rate")
    page.get_by_role("button", name="Save, next clip").click()
    expect(page.get_by_text("1 clip of 2 rated")).to_be_visible(timeout=15_000)


def edit_finding(page: Page, words: str) -> None:
    look_at(page, "Findings")
    finding = page.get_by_role("textbox", name="Finding").first
    finding.fill(words)
    finding.press("Control+Enter")
    page.get_by_role("button", name="Save", exact=True).first.click()
    expect(page.get_by_text("As composed:").first).to_be_visible(timeout=15_000)
    keep_picture(page, "walk-4-finding")


def read_the_newest_report(page: Page, words: str) -> None:
    """The edit is in the newest revision; the folder holds the same page with its clips."""
    page.get_by_role("link", name="Report").last.click()
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="Night tram")).to_be_visible(timeout=30_000)
    # The revision with the edit is out before the page is opened, or it is offered while an older one is read.
    newest = page.get_by_role("button", name="Read the newest revision")
    page.add_locator_handler(newest, lambda: newest.click())
    expect(report.get_by_text(words).first).to_be_visible(timeout=60_000)
    expect(report.locator("video[controls]")).to_have_count(2)
    assert report.locator("video[controls]").first.evaluate(PLAYED) > 0
    keep_picture(page, "walk-5-report")
    page.get_by_role("button", name="Pack it for offline reading").click()
    expect(page.get_by_role("button", name="Download")).to_be_visible(timeout=30_000)


PLAYED = """async clip => {
    clip.muted = true;
    await clip.play();
    await new Promise(done => setTimeout(done, 500));
    return clip.currentTime;
}"""
