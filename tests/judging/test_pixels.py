"""Tier a on generated clips: what must be seen is seen, and what is only slow, dark or grainy is left in peace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from screentest_runner.judging import thresholds
from tests.integration.runner_process import ROOT, RUNNER_SOURCE, env_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MUST = {
    "black": {"black"},
    "flat": {"flat"},
    "noise": {"noise"},
    "frozen": {"frozen"},
    "frozen in the dark": {"frozen"},
    "frozen under grain": {"static-with-grain"},
    "freeze tail": {"freezes-midway"},
    "near static": {"near-static"},
    "flicker": {"flicker"},
    "blurred": {"blurred"},
    "doubled": {"duplicate-frames"},
    "cut short": {"truncated"},
}
# Said of a clip and held against none: a dark prompt is dark, and a damaged file may have no whole frame.
MAY = {"very-dark", "no-frames"}
LIVING = ("object", "pan", "zoom", "cut", "slow motion", "night", "street at night", "grain")
MUST_BE_FOUND = ("black", "frozen", "frozen in the dark", "cut short", "noise")
MUST_BE_LEFT = ("slow motion", "night", "street at night", "grain")
HALVES = ("tuned", "held out")

Flags = dict[str, dict[str, list[list[str]]]]


def child(folder: Path, *arguments: str) -> Any:
    result = subprocess.run(
        [env_python("judge"), "-m", "tests.judging.pixels_in_one_process", folder, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{RUNNER_SOURCE}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Flags:
    """Class -> half -> flags of each of its ten clips."""
    found: Flags = child(tmp_path_factory.mktemp("clips"), "classes", *LIVING, *MUST)
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = child(tmp_path_factory.mktemp("cases"), "cases")
    return found


def share(clips: list[list[str]], wanted: set[str]) -> float:
    return sum(wanted <= set(found) for found in clips) / len(clips)


# ---- many clips


def test_there_are_enough_clips(flags: Flags) -> None:
    assert len(flags) == 20
    assert all(len(flags[name][half]) == 10 for name in flags for half in HALVES)


@pytest.mark.parametrize("half", HALVES)
def test_nothing_dead_or_damaged_escapes(flags: Flags, half: str) -> None:
    for name in MUST_BE_FOUND:
        assert share(flags[name][half], MUST[name]) >= 0.99, (name, flags[name][half])


@pytest.mark.parametrize("half", HALVES)
def test_slow_dark_and_grainy_clips_are_left_in_peace(flags: Flags, half: str) -> None:
    alarms = [found for name in MUST_BE_LEFT for found in flags[name][half] if set(found) - MAY]
    assert len(alarms) < 0.01 * sum(len(flags[name][half]) for name in MUST_BE_LEFT), alarms


@pytest.mark.parametrize("name", MUST)
def test_class_gets_its_flag_and_no_other(flags: Flags, name: str) -> None:
    """At most one clip of twenty may be said something else of; the classes above allow none."""
    clips = [found for half in HALVES for found in flags[name][half]]
    right = [found for found in clips if MUST[name] <= set(found) <= MUST[name] | MAY]
    assert len(right) >= 19, clips


@pytest.mark.parametrize("name", LIVING)
def test_good_clip_gets_no_flag(flags: Flags, name: str) -> None:
    """Cuts count: the clips of class `cut` are asked for one, all others for none."""
    clips = [found for half in HALVES for found in flags[name][half]]
    assert sum(not set(found) - MAY for found in clips) >= 19, clips


# ---- the order of tests


def test_noise_is_not_motion(cases: dict[str, Any]) -> None:
    """Noise has the largest flow of all; whoever asks for motion first finds it lively."""
    assert cases["noise"]["flags"] == ["noise"]
    assert cases["noise"]["motion"] is None
    assert cases["noise"]["camera"] == {}


def test_black_is_said_once(cases: dict[str, Any]) -> None:
    """It is flat and frozen as well, which tells nothing more."""
    assert cases["black"]["flags"] == ["black"]


def test_lamp_in_the_dark_is_not_black(cases: dict[str, Any]) -> None:
    assert cases["lamp_in_the_dark"]["picture"]["black_frame_share"] == 1.0
    assert "black" not in cases["lamp_in_the_dark"]["flags"]


def test_grain_on_a_dark_wall_is_not_noise(cases: dict[str, Any]) -> None:
    """At full size it is: the wall shows in larger blocks."""
    picture = cases["grain_on_a_dark_wall"]["picture"]
    assert picture["flatness"] > 0.30
    assert picture["correlation"] < 0.5
    assert "noise" not in cases["grain_on_a_dark_wall"]["flags"]


def test_dark_clip_that_moves_is_not_frozen(cases: dict[str, Any]) -> None:
    """By pixel difference every pair of it is unchanged."""
    dim = cases["dark_but_moving"]
    assert dim["motion"]["unchanged_share"] == 1.0
    assert dim["flags"] == ["very-dark"]


def test_two_stills_with_a_cut_are_frozen(cases: dict[str, Any]) -> None:
    """The pair across the cut is no motion."""
    assert cases["slide_show"]["flags"] == ["frozen"]
    assert cases["slide_show"]["cuts"]["times_s"] == [pytest.approx(14 / 24, abs=0.001)]


def test_short_motion_in_a_still_scene_is_near_static(cases: dict[str, Any]) -> None:
    """It is back where it was at the end; still it is neither frozen nor grain."""
    assert cases["blink"]["flags"] == ["near-static"]


def test_dissolve_is_no_motion(cases: dict[str, Any]) -> None:
    assert cases["dissolve"]["flags"] == ["dissolve"]


def test_clip_that_ends_as_it_began_is_a_loop(cases: dict[str, Any]) -> None:
    assert cases["loop"]["flags"] == ["loop"]


# ---- camera


@pytest.mark.parametrize(
    ("clip", "move", "rate", "per_second"),
    [
        ("zoom_in", "zoom_in", "zoom", 0.10),
        ("zoom_out", "zoom_out", "zoom", -0.10),
        ("pan", "pan", "pan", 0.20),
        ("tilt", "tilt", "tilt", 0.20),
        ("roll", "roll", "roll_deg", 8.0),
        ("still", "still", None, None),
        ("zoom_in in the dark", "zoom_in", "zoom", 0.10),
    ],
)
def test_camera_move_is_seen_with_its_rate(
    cases: dict[str, Any], clip: str, move: str, rate: str | None, per_second: float | None
) -> None:
    """Still: an object crosses the picture and the camera does nothing."""
    found = cases["camera"][clip]
    others = {other: value for other, value in found["camera"].items() if other != move}
    assert found["camera"][move] >= 0.9
    assert max(others.values()) <= 0.1
    if rate is not None:
        assert found["camera_motion"]["rates"][rate] == pytest.approx(per_second, rel=0.08)


def test_camera_that_cannot_be_told_is_absent(cases: dict[str, Any]) -> None:
    """Every part of the picture goes its own way: no move is said not to be there."""
    assert cases["unclear_camera"]["camera"] == {}
    assert cases["unclear_camera"]["camera_motion"]["rates"] is None


# ---- what was asked


def test_clip_is_compared_with_what_was_asked(cases: dict[str, Any]) -> None:
    right, wrong, nothing = (cases["as_asked"][name] for name in ("right", "wrong", "nothing"))
    assert right["as_asked"] == {"frames": True, "fps": True, "size": True}
    assert right["flags"] == []
    assert wrong["as_asked"] == {"frames": False, "fps": False, "size": False}
    assert wrong["flags"] == ["cuts-missing", "wrong-frames", "wrong-fps", "wrong-size"]
    assert nothing["as_asked"] == {"frames": None, "fps": None, "size": None}
    assert nothing["flags"] == []


def test_first_frame_is_compared_with_the_keyframe(cases: dict[str, Any]) -> None:
    followed, ignored, held = (cases["keyframe"][name] for name in ("followed", "ignored", "held"))
    assert followed["fidelity"]["likeness"] > 0.97
    assert followed["fidelity"]["colour_difference"] < 3.0
    assert followed["flags"] == []
    assert ignored["flags"] == ["source-ignored"]
    assert held["flags"] == ["frozen", "still-of-source"]


# ---- files


def test_picture_has_no_motion(cases: dict[str, Any]) -> None:
    found = cases["picture"]
    assert found["flags"] == []
    assert found["file"]["is_image"] is True
    assert found["as_asked"]["size"] is True
    assert found["picture"]["sharpness"] > 0.1
    assert (found["motion"], found["camera_motion"], found["cuts"], found["fidelity"]) == (None, None, None, None)


def test_single_frame_is_not_frozen(cases: dict[str, Any]) -> None:
    assert cases["one_frame"]["flags"] == []
    assert cases["one_frame"]["motion"] is None


def test_clip_too_small_for_flow_is_looked_at_frame_by_frame(cases: dict[str, Any]) -> None:
    assert cases["tiny_clip"]["motion"] is None
    assert cases["tiny_clip"]["picture"]["deviation"] > 0


def test_file_without_video_is_a_result(cases: dict[str, Any]) -> None:
    found = cases["no_video"]
    assert found["flags"] == ["no-frames"]
    assert found["file"]["error"] == "Invalid data found when processing input"
    assert found["picture"] is None


def test_absent_file_is_no_bad_clip(cases: dict[str, Any]) -> None:
    """It would score 0 with certainty."""
    assert cases["absent"] == "FileNotFoundError"


def test_unknown_wish_is_an_error(cases: dict[str, Any]) -> None:
    assert "duration" in cases["unknown_wish"]


def test_every_result_says_its_thresholds(cases: dict[str, Any]) -> None:
    assert {cases[name]["thresholds_version"] for name in ("black", "picture", "no_video", "loop")} == {"vitals/1"}


def test_long_clip_is_thinned_evenly(cases: dict[str, Any]) -> None:
    found = cases["long_clip"]
    assert (found["kept"], found["stride"], found["decoded"]) == (9, 8, 70)
    assert found["times_s"] == pytest.approx([0.0, 0.8, 1.6])
    assert found["last"] == pytest.approx(69, abs=2)


def test_windows_are_parts_of_equal_time(cases: dict[str, Any]) -> None:
    """Twelve frames in a second: a frame is the one that is shown at the wanted time."""
    windows = cases["windows"]
    assert [window["frames"] for window in windows["thirds"]] == [[1, 2], [5, 6], [9, 10]]
    assert [window["begin_s"] for window in windows["thirds"]] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [window["frames"] for window in windows["edges"]] == [[0, 3], [4, 7], [8, 11]]
    assert [window["frames"] for window in windows["many"]] == [[n // 2] for n in range(24)]
    assert "no frame to look at" in windows["empty"]


# ---- thresholds


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[flat]", "[flat]\nwidth = 3.0", "flat.width: no such threshold"),
        ("deviation = 4.0", "", "flat.deviation: is missing"),
        ("deviation = 4.0", "deviation = 4", "flat.deviation: wants float, got 4"),
        ("frames = 8 ", "frames = 8.5 ", "noise.frames: wants int, got 8.5"),
        ("[flat]", "[flat", "not a TOML file"),
    ],
)
def test_thresholds_are_read_strictly(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "thresholds.toml"
    shutil.copy(thresholds.FILE, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=said) as caught:
        thresholds.load(path)
    assert str(path) in str(caught.value)
