"""The judge that asks a server, over real HTTP, in the server's good moods and its bad ones."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from screentest_reporter import controls, scoring
from screentest_reporter.controls import Control, ControlRun, Result, Verdict

from .asking import (
    ALIVE,
    ROOT,
    TINY_SIGLIP,
    ask_judges,
    child_environment,
    env_python,
    judgement_of,
    made_clip,
    order_of,
    places_of,
    request_of,
    rubric_of,
)
from .scenes import drawn_story, other_story

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STORIES = tuple(drawn_story(seed) for seed in (2, 3, 5))
STORY = STORIES[0]
RUBRIC = rubric_of(STORY, is_short=True)
# With two elements of no beat, of which the clip shows one.
WIDE = replace(RUBRIC, elements=(*RUBRIC.elements, *places_of(STORY)))
OTHER = rubric_of(other_story(STORY), is_short=True)
MODEL = "tiny-siglip"
BAD_JUDGES = ("always-yes", "prompt-blind", "position-biased", "noisy")
# A test must not wait for what the judge waits for.
IMPATIENT = {"tries": 2, "pause_s": 0.01, "timeout_s": 30.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """What each order gave, by name."""

    by_name: Mapping[str, dict[str, Any]]

    def parts(self, name: str) -> list[dict[str, Any]]:
        assert self.by_name[name]["failed"] is None
        return list(self.by_name[name]["parts"])

    def failed(self, name: str) -> list[str]:
        return list(self.by_name[name]["failed"])


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """Its port."""
    process = subprocess.Popen(
        [env_python("judge"), "-m", "tests.judging.openai_server", "--folder", str(TINY_SIGLIP)],
        stdout=subprocess.PIPE,
        env=child_environment(),
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def asked(server: int, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tmp_path_factory.mktemp("clips")
    orders = {**good_orders(server, folder), **bad_orders(server, folder)}
    return Asked(dict(zip(orders, ask_judges(list(orders.values())), strict=True)))


def order(port: int, mood: str, requests: Sequence[Mapping[str, Any]], model: str = MODEL, **more: Any) -> Any:
    endpoint = {
        "base_url": f"http://127.0.0.1:{port}/{mood}/v1",
        "model": model,
        "key_file": more.pop("key_file", None),
    }
    return order_of("endpoint", requests, {**IMPATIENT, **more}, endpoint=endpoint)


def addressed(url: str) -> Any:
    return order_of("endpoint", [], IMPATIENT, endpoint={"base_url": url, "model": MODEL, "key_file": None})


def good_orders(port: int, folder: Path) -> dict[str, Any]:
    clips = [
        request_of(made_clip(folder, story, kind), rubric_of(story))
        for story in STORIES
        for kind in ("all-beats", "two-of-four", "other-prompt", "black")
    ]
    full = folder / f"{STORY.seed}-all-beats.mp4"
    short, judged = request_of(full, RUBRIC), request_of(full, RUBRIC, OTHER)
    key = folder / "key"
    key.write_text("sesame\n")
    return {
        "honest": order(port, "honest", clips),
        "controls": order(port, "honest", [short, judged]),
        "cheap": order(port, "honest", [request_of(full, WIDE)], mode="cheap"),
        "full": order(port, "honest", [request_of(full, WIDE)]),
        "cancelled": order(port, "honest", [{**short, "cancel_after": 16}]),
        "real": order(port, "real", [short]),
        "flaky": order(port, "flaky", [short]),
        "refuses-circles": order(port, "refuses-circles", [short]),
        "no-logprobs": order(port, "no-logprobs", [short]),
        "unlocked": order(port, "locked", [], key_file=str(key)),
        **{mood: order(port, mood, [short, judged]) for mood in BAD_JUDGES},
    }


def bad_orders(port: int, folder: Path) -> dict[str, Any]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    empty = folder / "empty"
    empty.touch()
    return {
        "thinking": order(port, "thinking", []),
        "blind": order(port, "blind", []),
        "down": order(port, "down", []),
        "slow": order(port, "slow", [], timeout_s=0.2),
        "garbled": order(port, "garbled", []),
        "endless": order(port, "endless", []),
        "locked": order(port, "locked", []),
        "empty key": order(port, "locked", [], key_file=str(empty)),
        "wrong model": order(port, "honest", [], model="gpt-5"),
        "closed": order(closed, "honest", []),
        "no port": addressed("http://ann:sesame@localhost:99999/v1"),
        "half a password": addressed("http://ann:sesame/2@localhost/v1"),
        "odd password": addressed("http://ann:sesame\u2100@localhost/v1"),  # urlsplit's own words repeat it
        "half an address": addressed("http://[::1/v1"),
        "no scheme": addressed("localhost:11434/v1"),
        "no address": order_of("endpoint", [], endpoint=None),
    }


# ---- good moods


def test_truer_clip_scores_higher_over_http(asked: Asked) -> None:
    parts = iter(asked.parts("honest"))
    for story in STORIES:
        full, half, other, black = (scored(next(parts), rubric_of(story)) for _ in range(4))
        assert full > half > other > black == 0
        assert full > 8 and other < 3


def scored(part: Mapping[str, Any], rubric: Any) -> float:
    if part["details"].get("not_asked"):
        assert part["calls"] == 0
        return 0.0
    score = scoring.score(rubric, [judgement_of(part, rubric)], ALIVE)
    assert score.score10 is not None, score.not_scored
    return score.score10


def test_every_element_is_asked_straight_and_negated(asked: Asked) -> None:
    part = asked.parts("honest")[0]
    assert part["calls"] == 2 * (8 * 8 + 1)
    assert (part["tier"], part["method"], part["badges"]) == ("c", "logprobs", ["test judge"])
    assert set(part["details"]["thing-1"]) == {"asked", "straight", "counter", "inconsistency"}
    assert max(part["details"]["thing-1"]["inconsistency"]) < 0.05
    assert len(part["answers"]["noise"]) == 1 and part["answers"]["noise"][0] < 0.1


def test_badge_comes_from_what_the_server_says_of_itself(asked: Asked) -> None:
    assert asked.parts("real")[0]["badges"] == []


def test_cheap_mode_asks_windows_only_of_beats_and_of_what_is_open(asked: Asked) -> None:
    (cheap,), (full,) = asked.parts("cheap"), asked.parts("full")
    assert full["calls"] == 2 * 8 * (4 + 2)
    assert cheap["calls"] == 2 * (8 * 4 + 2)
    assert cheap["details"]["place"]["asked"] == "clip"
    assert min(cheap["answers"]["place"]) > 0.9 and max(cheap["answers"]["elsewhere"]) < 0.1
    assert [len(cheap["answers"][name]) for name in ("place", "elsewhere")] == [8, 8]
    beats = [f"thing-{n}" for n in (1, 2, 3, 4)]
    assert [cheap["answers"][name] for name in beats] == [full["answers"][name] for name in beats]


def test_server_that_wakes_up_slowly_is_asked_again(asked: Asked) -> None:
    (flaky,), (real,) = asked.parts("flaky"), asked.parts("real")
    assert flaky["answers"] == real["answers"]


def test_answer_that_is_neither_yes_nor_no_is_none(asked: Asked) -> None:
    answers = asked.parts("refuses-circles")[0]["answers"]
    for n, thing in enumerate(STORY.things, start=1):
        is_refused = thing.shape == "circle"
        assert all((p is None) == is_refused for p in answers[f"thing-{n}"])
    assert any(thing.shape == "circle" for thing in STORY.things)


def test_server_without_log_probabilities_is_sampled_and_says_so(asked: Asked) -> None:
    (sampled,), (real,) = asked.parts("no-logprobs"), asked.parts("real")
    assert sampled["method"] == "sampled"
    seen = [row for row in sampled["answers"].values() if max(row) > 0.5]
    assert len(seen) == 4
    changes = [
        abs(p - q) for key, row in real["answers"].items() for p, q in zip(row, sampled["answers"][key], strict=True)
    ]
    assert mean(changes) < 0.1
    assert "sampled" in scoring.score(RUBRIC, [judgement_of(sampled, RUBRIC)], ALIVE).badges


def test_cancelled_judge_stops_asking(asked: Asked) -> None:
    assert asked.parts("cancelled")[0]["failed"] == ["cancelled", "cancelled while judging"]


def test_key_is_read_from_its_file(asked: Asked) -> None:
    assert asked.parts("unlocked") == []


# ---- bad servers


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("thinking", "layout", "begins with '<think>' where Yes or No was asked for; take an instruct model"),
        ("blind", "layout", "does not see the pictures; take a vision model"),
        ("down", "infrastructure", "gave no answer in 2 tries (status 500: CUDA out of memory); start the server"),
        ("slow", "infrastructure", "gave no answer in 2 tries (ReadTimeout"),
        ("closed", "infrastructure", "gave no answer in 2 tries (ConnectError"),
        ("garbled", "layout", "sent no chat completion; SCREENTEST_JUDGE_URL ends with /v1"),
        ("endless", "layout", "sent more than 8 MiB where a word was asked for"),
        ("no port", "layout", "SCREENTEST_JUDGE_URL is no address of a server (its port is no number up to 65535)"),
        ("half a password", "layout", "SCREENTEST_JUDGE_URL is no address of a server (its port is no number"),
        ("odd password", "layout", "SCREENTEST_JUDGE_URL is no address of a server (it holds what no address can)"),
        ("half an address", "layout", "SCREENTEST_JUDGE_URL is no address of a server (it holds what no address can)"),
        ("no scheme", "layout", "no address of a server (it begins with no http://<host>); write it like http://"),
        ("locked", "layout", "refused with status 401: no key; set SCREENTEST_JUDGE_KEY_FILE"),
        ("empty key", "layout", "SCREENTEST_JUDGE_KEY_FILE is empty"),
        ("wrong model", "layout", "has no model 'gpt-5', it has: tiny-siglip; set SCREENTEST_JUDGE_MODEL"),
        ("no address", "layout", "has no server: set SCREENTEST_JUDGE_URL"),
    ],
)
def test_bad_server_is_an_error_that_says_what_to_do(asked: Asked, name: str, kind: str, said: str) -> None:
    failed = asked.failed(name)
    assert failed[0] == kind
    assert said in failed[1]
    assert "sesame" not in failed[1]


# ---- bad judges


def verdict_of(reference: Mapping[str, Any], part: Mapping[str, Any]) -> Verdict:
    runs = []
    for item in part["controls"]:
        rubric = OTHER if item["control"] == "wrong-prompt" else RUBRIC
        judgement = judgement_of(part, rubric, item["answers"])
        runs.append(ControlRun(control=Control(item["control"]), rubric=rubric, judgement=judgement))
    return controls.verdict(RUBRIC, judgement_of(reference, RUBRIC), runs)


def failed_controls(verdict: Verdict) -> set[Control]:
    return {found.control for found in verdict.results if found.result is Result.FAILED}


def test_honest_judge_holds_its_controls_over_http(asked: Asked) -> None:
    verdict = verdict_of(*asked.parts("controls"))
    assert verdict.text == "controls 5/5", verdict.why_greyed


@pytest.mark.parametrize(
    ("judge", "caught"),
    [
        ("always-yes", {Control.WRONG_PROMPT, Control.BLACK}),
        ("prompt-blind", {Control.WRONG_PROMPT}),
        ("position-biased", {Control.FRAME_SHUFFLED, Control.STATIC_FIRST_FRAME}),
        ("noisy", {Control.REPEAT}),
    ],
)
def test_bad_judge_is_caught_by_its_controls(asked: Asked, judge: str, caught: set[Control]) -> None:
    verdict = verdict_of(*asked.parts(judge))
    assert verdict.is_greyed
    assert caught <= failed_controls(verdict), verdict.results
