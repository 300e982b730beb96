"""`screentest rehearse` from the command to its table: real processes, stub lanes that pretend to need memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from screentest_ui.home import Home

SCREENTEST = str(Path(sys.executable).parent / "screentest")
STUB = Path(__file__).parents[2] / "deploy" / "lanes" / "stub.toml"
GIB = 2**30

pytestmark = [pytest.mark.timeout(240)]

# Peaks in GiB while loading, encoding the prompt, denoising and decoding.
LADDERS = {
    "stub": {"resident": [12, 12, 20, 14], "lean": [12, 9, 15, 10], "short": [5, 5, 6, 5]},
    "stub-tight": {"resident": [5, 5, 20, 5], "lean": [5, 5, 7, 17]},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SCREENTEST_")}
        home = {"SCREENTEST_HOME": str(self.folder / "home"), "SCREENTEST_LANES_DIR": str(self.folder / "lanes")}
        return subprocess.run(
            [SCREENTEST, *arguments],
            cwd=self.folder,
            env={**clean, **home},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        self.ok("up", "--lanes", "stub,stub-tight", "--no-panel")

    def rehearse(self, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """(exit status, what is said of each lane)."""
        done = self.run("rehearse", "--json", *arguments)
        assert done.stdout, done.stderr
        return done.returncode, {line["lane_id"]: line for line in json.loads(done.stdout)["lanes"]}


def lane_file(lane_id: str) -> str:
    """The stub with a ladder of its own; ``short`` halves the frames."""
    ladder = LADDERS[lane_id]
    text = STUB.read_text().replace('id = "stub"', f'id = "{lane_id}"').replace("work_s = 2.0", "work_s = 0.4")
    text = text.replace("[call]\n", f"[call]\nmemory_gib = {ladder['resident']}\n")
    for name, peaks_gib in list(ladder.items())[1:]:
        text += f'\n[[ladder]]\nname = "{name}"\ncall = {{ memory_gib = {peaks_gib} }}\n'
        text += "num_frames_ratio = 0.5\n" if name == "short" else ""
    return text


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("rehearse")
    (folder / "lanes").mkdir()
    for lane_id in LADDERS:
        (folder / "lanes" / f"{lane_id}.toml").write_text(lane_file(lane_id))
    stack = Stack(folder=folder)
    try:
        stack.up()
        yield stack
    finally:
        stack.run("down")
        running = Home(folder / "home").read()
        assert running is None or not running.processes


def test_each_lane_is_rehearsed_down_to_the_rung_that_fits(stack: Stack) -> None:
    status, lines = stack.rehearse("--lanes", "stub,stub-tight", "--memory-cap-gib", "16")
    assert status == 1  # one of the lanes has no clip
    fits, tight = lines["stub"], lines["stub-tight"]
    assert (fits["rung"], fits["note"]) == ("lean", "resident: oom_denoise")
    assert fits["peak_bytes_by_phase"] == {
        "loading": 12 * GIB,
        "encoding_prompt": 9 * GIB,
        "denoising": 15 * GIB,
        "decoding": 10 * GIB,
    }
    assert fits["step_s"] == pytest.approx(0.1, abs=0.08)
    assert fits["clip_s"] > 0.3
    assert (fits["energy_wh"], fits["is_extrapolated"]) == (None, False)
    assert fits["smallest_card_gib"] == 16
    assert (tight["rung"], tight["status"]) == (None, "failed")
    assert tight["note"].startswith("oom_decode: the stub pretends to need 17 GiB of 16 GiB")


def test_a_smaller_cap_ends_on_a_rung_that_changes_the_picture_and_says_so(stack: Stack) -> None:
    status, lines = stack.rehearse("--lanes", "stub", "--memory-cap-gib", "8")
    assert status == 0
    assert lines["stub"]["rung"] == "short"
    assert lines["stub"]["note"].startswith("num_frames reduced: 25 -> 12 (rung short, to fit the device memory)")
    assert lines["stub"]["smallest_card_gib"] is None


def test_the_rung_that_won_is_used_first_after_a_restart_too(stack: Stack) -> None:
    stack.rehearse("--lanes", "stub", "--memory-cap-gib", "15.5")
    again = stack.rehearse("--lanes", "stub", "--memory-cap-gib", "15.5")[1]["stub"]
    assert (again["rung"], again["note"]) == ("lean", "")
    stack.ok("down")
    stack.up()
    later = stack.rehearse("--lanes", "stub", "--memory-cap-gib", "15.5")[1]["stub"]
    assert (later["rung"], later["note"]) == ("lean", "")


def test_a_part_of_the_steps_is_extrapolated_when_asked(stack: Stack) -> None:
    _, lines = stack.rehearse("--lanes", "stub", "--weights", "miniature", "--steps", "3", "--extrapolate")
    line = lines["stub"]
    assert (line["steps"], line["full_steps"], line["is_extrapolated"]) == (3, 4, True)
    assert line["clip_s"] == pytest.approx(line["encode_s"] + line["denoise_s"] + line["step_s"] + line["decode_s"])


def test_a_person_reads_a_table_and_what_kind_of_weights_ran(stack: Stack) -> None:
    out = stack.ok("rehearse", "--lanes", "stub", "--weights", "miniature")
    assert "1 of 1 lanes made a clip\n" in out
    assert "miniature weights: tiny random copies; these numbers say nothing about the models themselves" in out
    assert "Smallest card" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--weights", "hub"), "a rehearsal has random weights"),
        (("--extrapolate",), "--extrapolate needs --steps of at least 2"),
        (("--extrapolate", "--steps", "1"), "--extrapolate needs --steps of at least 2"),
        (("--lanes", "nonsense"), "there is no lane 'nonsense'"),
        (("--lanes", "stub", "--keyframe", "nowhere.png"), "nowhere.png: no such picture"),
        (("--lanes", "stub", "--steps", "0"), "--steps"),
    ],
)
def test_what_cannot_be_rehearsed_is_said(stack: Stack, arguments: tuple[str, ...], told: str) -> None:
    done = stack.run("rehearse", *arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_without_a_models_worker_nothing_is_rehearsed(stack: Stack) -> None:
    done = stack.run("rehearse")
    assert done.returncode == 1
    assert "no lane has a worker" in done.stderr


def test_preflight_shows_what_it_knows_and_nothing_else(stack: Stack) -> None:
    sweep = stack.folder / "sweep.toml"
    sweep.write_text('title = "A"\nprompt = "a disc"\nlanes = ["stub"]\nweights = "miniature"\n')
    out = stack.ok("preflight", str(sweep))
    header, line, *rest = (part.split("\t") for part in out.splitlines())
    found = dict(zip(header, line, strict=True))
    assert (found["Lane"], found["Verdict"], found["Rung"], found["Frames"]) == ("stub", "ok", "resident", "25")
    assert {found[name] for name in ("Load", "Clip", "Energy")} == {"unknown"}
    assert rest == [["stub: miniature weights"]]
