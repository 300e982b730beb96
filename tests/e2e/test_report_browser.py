"""The published report in a real browser: from disk, with every request but to its own folder refused."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, Route, expect, sync_playwright

from screentest_reporter import contact_sheet, document, page
from screentest_reporter.case_study import CaseStudy
from screentest_reporter.model_table import Pictures
from tests import made_case_study
from tests.made_clips import write_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Of each expectation; Playwright's own 5 s are too short for a browser on a busy machine.
expect.set_options(timeout=30_000)

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
AXE = "axe-core@4.14.1"
HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">"
SCREENS = [(1280, 900, "light"), (390, 844, "dark")]
# Of the three clips: frames and frames a second; of different lengths and paces, as lanes are.
CLIPS = ((128, 16), (192, 24), (80, 8))
LOUD = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright: Playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with its files, as it is fetched; the title is hostile, and so is an added note."""
    made = made_case_study.sweep(title=f"The Architect's Stillness {HOSTILE}", prompts=(f"A cathedral. {HOSTILE}",))
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, made_case_study.study(made, with_scores=True))


def write_report(folder: Path, study: CaseStudy) -> Path:
    """Puts the study's clips and pictures beside its page."""
    for name in ("clips", "sheets", "posters", "strips"):
        (folder / name).mkdir(exist_ok=True)
    rows = []
    completed = [row for row in study.rows if row.clip is not None]
    for row, (frames, fps) in zip(completed, CLIPS, strict=True):
        assert row.clip is not None and row.clip_facts is not None
        clip = folder / row.clip.file
        write_clip(clip, frames, width_px=320, height_px=192, fps=fps)
        job_id = row.row.job_id
        made = Pictures(sheet=f"sheets/{job_id}.jpg", poster=f"posters/{job_id}.jpg", strip=f"strips/{job_id}.jpg")
        request = {kind: str(folder / name) for kind, name in made.names.items()}
        contact_sheet.make({**request, "clip": str(clip), "title": row.row.model, "badge": ""})
        rows.append(
            replace(
                row, pictures=made, clip_facts=replace(row.clip_facts, fps=fps, frames=frames, duration_s=frames / fps)
            )
        )
    Image.new("RGB", (640, 360), "#334155").save(folder / "keyframe.jpg")
    failed = [row for row in study.rows if row.clip is None]
    shown = replace(study, rows=(*rows, *failed), keyframe=Pictures(sheet="keyframe.jpg"))
    (folder / "index.html").write_text(page.render_html(shown), encoding="utf-8")
    (folder / "report.md").write_text(page.render_markdown(shown), encoding="utf-8")
    (folder / "report.json").write_text(document.json_text(document.to_json(shown, [])), encoding="utf-8")
    return folder


@contextmanager
def opened(
    browser: Browser, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what went wrong on it: errors, refusals of its policy, requests for anything outside its folder."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    shown, troubles = context.new_page(), []
    own = url.rpartition("/")[0]

    def only_own(route: Route) -> None:
        if route.request.url.startswith((own, "data:")):
            route.continue_()
        else:
            troubles.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", only_own)
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
    shown.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    shown.goto(url)
    expect(shown.locator("#plot-timeline .main-svg").first).to_be_attached()
    yield shown, troubles
    context.close()


def from_disk(folder: Path) -> str:
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The folder behind HTTP on loopback, for the policy's other half ('self')."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            """Nothing: a test's output is for what failed."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/index.html"
        running.shutdown()


@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_page_opens_from_disk_fits_and_breaks_no_rule_of_axe(
    browser: Browser, folder: Path, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    with opened(browser, from_disk(folder), width=width, height=height, scheme=scheme) as (shown, troubles):
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        shown.wait_for_timeout(500)  # posters and plots
        shown.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
        shown.evaluate(axe_source())
        found = shown.evaluate("axe.run(document, {resultTypes: ['violations']})")
        loud = [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"] if v["impact"] in LOUD]
        assert loud == []
        assert troubles == []


def axe_source() -> str:
    """axe-core from the package that carries it, else fetched once by npm into .tools; skips where neither is there."""
    if importlib.util.find_spec("axe_playwright_python") is not None:
        return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    cache = ROOT / ".tools" / "axe-core"
    script = cache / "package" / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            pytest.skip("neither axe-playwright-python nor npm is on this machine")
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--json", AXE]
        packed = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
        if packed.returncode != 0:
            pytest.skip(f"npm does not give {AXE}: {packed.stderr[-300:]}")
        with tarfile.open(cache / json.loads(packed.stdout)[0]["filename"]) as archive:
            archive.extract("package/axe.min.js", cache, filter="data")
    return script.read_text(encoding="utf-8")


def test_the_same_page_works_from_a_server(browser: Browser, server: str) -> None:
    with opened(browser, server) as (shown, troubles):
        expect(shown.locator("#stage video")).to_have_count(3)
        wait_until(shown, "[...document.querySelectorAll('#stage video')].every(v => v.readyState >= 2)")
        assert [trouble for trouble in troubles if "favicon" not in trouble] == []


def test_text_of_a_person_stays_text(browser: Browser, folder: Path) -> None:
    with opened(browser, from_disk(folder)) as (shown, troubles):
        expect(shown.locator("h1")).to_contain_text("<script>document.title = 'run'</script>")
        expect(shown.locator("blockquote")).to_contain_text("onerror=")
        assert shown.title() != "run"
        assert shown.locator("img[src=x]").count() == 0
        assert troubles == []


def wait_until(shown: Page, holds: str, timeout: float = 10_000) -> None:
    """Polls from outside: the page's policy forbids what Playwright's own wait_for_function does inside."""
    deadline = time.monotonic() + timeout / 1000
    while not shown.evaluate(holds):
        assert time.monotonic() < deadline, f"not within {timeout:.0f} ms: {holds}"
        shown.wait_for_timeout(30)


def choose_two(shown: Page) -> None:
    """The first two clips, ready to play."""
    boxes = shown.locator("[data-pick]")
    boxes.nth(2).uncheck()
    expect(shown.locator("#stage video")).to_have_count(2)
    wait_until(shown, "[...document.querySelectorAll('#stage video')].every(v => v.readyState >= 3)")


POSITIONS = "[...document.querySelectorAll('#stage video')].map(v => v.currentTime)"


def test_two_clips_play_within_one_frame_after_five_seconds(browser: Browser, folder: Path) -> None:
    with opened(browser, from_disk(folder)) as (shown, troubles):
        choose_two(shown)
        shown.locator("[data-do=play]").click()
        wait_until(shown, f"{POSITIONS}[0] >= 0.5")
        shown.evaluate("document.querySelectorAll('#stage video')[1].currentTime -= 0.09")  # less than a jump: paced
        wait_until(shown, f"{POSITIONS}[0] >= 5", timeout=20_000)
        first, second = shown.evaluate(POSITIONS)
        assert abs(first - second) < 1 / 24
        assert troubles == []


def test_a_clip_that_was_pushed_away_comes_back(browser: Browser, folder: Path) -> None:
    with opened(browser, from_disk(folder)) as (shown, _):
        choose_two(shown)
        shown.locator("[data-do=play]").click()
        wait_until(shown, f"{POSITIONS}[0] >= 1")
        shown.evaluate("document.querySelectorAll('#stage video')[1].currentTime += 2")
        # Before the loop begins anew, which would bring it back too.
        wait_until(shown, f"Math.abs({POSITIONS}[0] - {POSITIONS}[1]) < 1 / 24", timeout=4_000)


def test_scrub_step_and_flip_move_all_clips(browser: Browser, folder: Path) -> None:
    with opened(browser, from_disk(folder)) as (shown, _):
        choose_two(shown)
        shown.locator("#scrub").fill("500")  # of 8 s
        wait_until(shown, f"{POSITIONS}.every(at => Math.abs(at - 4) < 0.05)")
        shown.locator("#stage").focus()
        shown.keyboard.press(".")
        wait_until(shown, f"{POSITIONS}.every(at => Math.abs(at - 4 - 1.5 / 16) < 0.01)")
        expect(shown.locator("#stage .frame").nth(0)).to_have_text("frame 66")
        expect(shown.locator("#stage .frame").nth(1)).to_have_text("frame 99")
        shown.keyboard.press("f")
        expect(shown.locator("#stage figure.front")).to_have_count(1)
        before = shown.locator("#stage figure.front video").get_attribute("aria-label")
        shown.keyboard.press("x")
        assert shown.locator("#stage figure.front video").get_attribute("aria-label") != before
        shown.keyboard.press("s")
        assert shown.evaluate("document.querySelector('#stage video').playbackRate") == pytest.approx(0.25)


def test_table_sorts_by_what_a_cell_means(browser: Browser, folder: Path) -> None:
    with opened(browser, from_disk(folder)) as (shown, _):
        latency = shown.get_by_role("button", name="Latency", exact=True)
        first = shown.locator("#table tbody tr th").first
        latency.click()
        expect(first).to_contain_text("SkyReels V1 Hunyuan I2V")  # 5.75s
        latency.click()
        expect(first).to_contain_text("SkyReels V2 DF 14B 540P")  # 7200.01s
        match = shown.get_by_role("button", name="Prompt match", exact=True)
        match.click()
        match.click()
        expect(first).to_contain_text("CogVideoX 5B")
        expect(shown.locator("#table th[aria-sort]")).to_have_text("Prompt match")


def test_every_plot_is_drawn_and_a_link_leads_to_its_proof(browser: Browser, folder: Path) -> None:
    with opened(browser, from_disk(folder)) as (shown, _):
        for place in ("timeline", "energy", "pareto-s", "pareto-wh"):
            assert shown.locator(f"#plot-{place} .trace, #plot-{place} .trace.bars").count() > 0, place
        shown.locator("#read a[href='#row-job-2']").first.click()
        expect(shown.locator("#row-job-2")).to_be_in_viewport()
