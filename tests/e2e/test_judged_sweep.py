"""A sweep of clips whose true order is known, through the whole stack: made, judged, scored and published.

The judge is the tiny SigLIP of the tests, which knows coloured shapes; every number it gives carries its badge.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from screentest import rubric, table
from screentest.client import Client
from screentest.errors import NotFound
from screentest.records import ArtifactKind, JobState, RubricRef, SweepSpec, Weights
from screentest.rubric import prompt_sha256
from screentest_ui import ports
from screentest_ui.home import Home
from tests.integration.judge_rig import ChatServer
from tests.integration.test_stack import Stack, processes_of, wait_for
from tests.integration.worker_rig import REPOSITORY
from tests.judging.asking import TINY_SIGLIP, rubric_of
from tests.judging.scenes import Story, Thing

pytestmark = pytest.mark.slow

STORY = Story(
    things=(Thing("red", "square"), Thing("green", "circle"), Thing("blue", "ring"), Thing("white", "cross")),
    background="dark",
    seed=7,
)
PROMPT = f"{', then '.join(map(str, STORY.things))}, on a dark background"
RUBRIC = replace(rubric_of(STORY), prompt_sha256=prompt_sha256(PROMPT))
# From the best to the worst.
CHAIN = ("scene-all-beats", "scene-three-of-four", "scene-two-of-four", "scene-other-prompt", "scene-black")
JUDGE = "tiny-siglip"
JUDGE_FILE = f"""
id = "{JUDGE}"
title = "Tiny SigLIP"
task = "judge"
env = "judge"
device = "cpu"
adapter = "embedding"
[model]
repo = "screentest/tiny-siglip"
licence = "Apache-2.0"
parameters_b = 0.0002
weights_gib_16bit = 0.0004
[settings]
dtype = "float32"
[limits]
load_s = 120
step_stall_s = 60
attempt_s = 300
"""


# Asks the server of a test, and gives up soon where there is none.
ASKING = "asking"
ASKING_FILE = f"""
id = "{ASKING}"
title = "Somebody's server"
task = "judge"
env = "judge"
device = "remote"
adapter = "endpoint"
[settings]
tries = 1
[limits]
load_s = 60
step_stall_s = 60
attempt_s = 300
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneStack(Stack):
    """Scene lanes, pixels, the test judge with its weights, and one that asks a server on a port of this machine."""

    port: int = field(default_factory=lambda: ports.choose(1)[0])

    def environment(self) -> dict[str, str]:
        settings = {
            "SCREENTEST_LANES_DIR": str(REPOSITORY / "tests" / "lanes"),
            "SCREENTEST_JUDGES_DIR": str(self.folder / "judges"),
            "SCREENTEST_JUDGE_URL": f"http://127.0.0.1:{self.port}/v1",
            "SCREENTEST_JUDGE_MODEL": "seer",
        }
        return {**Stack.environment(self), **settings}

    def up(self) -> str:
        judges, models = self.folder / "judges", self.folder / "models"
        judges.mkdir()
        shutil.copy(REPOSITORY / "deploy" / "judges" / "pixels.toml", judges)
        (judges / f"{JUDGE}.toml").write_text(JUDGE_FILE)
        (judges / f"{ASKING}.toml").write_text(ASKING_FILE)
        shutil.copytree(TINY_SIGLIP, models / JUDGE)
        lanes, wanted = ",".join(CHAIN), f"pixels,{JUDGE},{ASKING}"
        return self.ok("up", "--lanes", lanes, "--judges", wanted, "--weights-dir", str(models), "--no-panel")

    def report(self, sweep_id: str) -> Mapping[str, Any]:
        self.ok("report", sweep_id)
        found: dict[str, Any] = json.loads((self.folder / "out" / sweep_id / "report.json").read_text())
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SceneStack]:
    folder = tmp_path_factory.mktemp("judged")
    found = SceneStack(folder=folder, home=Home(folder / "home"))
    try:
        found.up()
        yield found
    finally:
        found.run("down")
        assert processes_of(found.home) == []


def submitted(client: Client, **changes: Any) -> str:
    asked = SweepSpec(
        title="Shapes",
        prompts=(PROMPT,),
        lane_ids=CHAIN,
        seeds=(7,),
        weights=Weights.HUB,
        judge_lane_ids=(JUDGE,),
        rubrics=(upload(client),),
    )
    spec = replace(asked, **changes)
    return client.submit_sweep(spec, request_id=f"{spec.title}-{spec.weights}").sweep.record.sweep_id


def upload(client: Client) -> RubricRef:
    return client.upload_rubric(rubric.to_json(RUBRIC).encode(), file_name="shapes.json", prompt=PROMPT)


def wait_judged(client: Client, sweep_id: str) -> None:
    def is_judged() -> bool:
        sweep = client.get_sweep(sweep_id)
        counts = sweep.scoring.counts if sweep.scoring else None
        return bool(sweep.settled and counts and not counts.queued and not counts.running)

    wait_for(is_judged, 150)


@pytest.mark.timeout(300)
def test_the_table_is_in_the_true_order_with_intervals_controls_and_a_heat_map(stack: SceneStack) -> None:
    with stack.client() as client:
        sweep_id = submitted(client)
        wait_judged(client, sweep_id)
        jobs, judging = client.list_jobs(sweep_id), client.list_judge_jobs(sweep_id)
    assert [row.status for row in table.rows(jobs)] == ["completed"] * len(CHAIN)
    told = "\n".join(f"{job.spec.job_id} {job.spec.lane_id} {job.state.value} {job.cause}" for job in judging)
    assert {job.state for job in judging} == {JobState.COMPLETED}, told
    dead = [job for job in judging if job.spec.judged and job.spec.judged.lane_id == "scene-black"]
    assert [job.spec.lane_id for job in dead] == ["pixels"]

    def has_controls() -> bool:
        judges = stack.report(sweep_id)["scoring"]["judges"]
        return bool(judges) and stack.report(sweep_id)["scoring"]["pending"] == 0

    wait_for(has_controls, 60)
    document = stack.report(sweep_id)
    scores = {row["lane_id"]: row["score"] for row in document["rows"]}
    assert tuple(sorted(scores, key=lambda lane_id: -scores[lane_id]["score10"])) == CHAIN
    assert scores["scene-black"]["score10"] == 0
    for lane_id in CHAIN[:-1]:
        found = scores[lane_id]
        assert found["low"] < found["high"], lane_id
        assert {"test judge", "uncalibrated", "draft rubric"} <= set(found["badges"])
        assert found["elements"].keys() == {element.id for element in RUBRIC.elements}
        assert [len(beat["windows"]) for beat in found["beats"]] == [8] * 4
        assert [tier["judge_id"] for tier in found["tiers"]] == [JUDGE]
        assert found["rubric_sha256"] == RUBRIC.sha256
    [judge] = document["scoring"]["judges"]
    assert judge["controls"].keys() == {"wrong-prompt", "black", "frame-shuffled", "static-first-frame", "repeat"}
    assert (judge["why_greyed"], scores["scene-all-beats"]["greyed"]) == (None, None), judge
    assert scores["scene-all-beats"]["text"].endswith("controls 5/5")
    printed = stack.ok("status", sweep_id)  # the number of the report, where a person looks first
    assert scores["scene-all-beats"]["text"] in printed
    assert "test judge" in (stack.folder / "out" / sweep_id / "index.html").read_text()


@pytest.mark.timeout(200)
def test_random_weights_say_what_pixels_say_and_nothing_is_scored(stack: SceneStack) -> None:
    with stack.client() as client:
        sweep_id = submitted(client, title="Rehearsed", weights=Weights.MINIATURE, lane_ids=CHAIN[:2])
        wait_judged(client, sweep_id)
        judging = client.list_judge_jobs(sweep_id)
    assert {job.spec.lane_id for job in judging} == {"pixels"}
    wait_for(lambda: all(row["score"] for row in stack.report(sweep_id)["rows"]), 60)
    for row in stack.report(sweep_id)["rows"]:
        assert (row["prompt_match"], row["score"]["score10"]) == ("not scored", None)
        assert "random weights" in row["score"]["not_scored"]


def published(client: Client, sweep_id: str) -> dict[str, dict[str, Any]]:
    """The rows of the report by lane, as they are in the depot; none before its first revision."""
    try:
        link = client.get_artifact(kind=ArtifactKind.REPORT, sweep_id=sweep_id, name="report.json")
    except NotFound:
        return {}
    with urllib.request.urlopen(link.url, timeout=10) as reply:
        return {row["lane_id"]: row for row in json.load(reply)["rows"]}


@pytest.mark.timeout(300)
def test_a_server_that_is_down_or_tells_no_odds_is_said_in_the_report_and_spoils_nothing(stack: SceneStack) -> None:
    """Asked alone while it is down, then with another judge beside it, then when it is there and tells words only."""
    short = replace(
        RUBRIC, beats=RUBRIC.beats[:1], elements=tuple(item for item in RUBRIC.elements if item.id == "thing-1")
    )

    def wait_row(lane_id: str, wanted: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        found: dict[str, Any] = {}

        def is_out() -> bool:
            found.update(published(client, sweep_id).get(lane_id, {}))
            return bool(found.get("score")) and wanted(found["score"])

        wait_for(is_out, 60)
        return found

    with stack.client() as client:
        ref = client.upload_rubric(rubric.to_json(short).encode(), file_name="short.json", prompt=PROMPT)
        lanes = ("scene-all-beats", "scene-black")
        sweep_id = submitted(client, title="Asked", lane_ids=lanes, judge_lane_ids=(ASKING,), rubrics=(ref,))
        wait_judged(client, sweep_id)
        refused = f"http://127.0.0.1:{stack.port}/v1 gave no answer in 1 tries (ConnectError"
        row = wait_row(CHAIN[0], lambda score: refused in (score["not_scored"] or ""))
        assert (row["status"], row["prompt_match"], row["score"]["score10"]) == ("completed", "not scored", None)
        assert row["finding"].startswith(f"Valid MP4; not scored: judge {ASKING}: failed: ")
        assert wait_row(CHAIN[-1], lambda score: score["score10"] == 0)["score"]["caps"]
        sweep = client.get_sweep(sweep_id)
        assert sweep.over
        assert (sweep.counts.completed, sweep.counts.failed) == (2, 0)

        client.judge_sweep(sweep_id, judge_lane_ids=(JUDGE,))
        wait_judged(client, sweep_id)
        score = wait_row(CHAIN[0], lambda score: score["score10"] is not None)["score"]
        assert [tier["judge_id"] for tier in score["tiers"]] == [JUDGE]
        [left_out] = score["left_out"]
        assert refused in left_out

        server = ChatServer(tells_odds=False, port=stack.port)
        try:
            client.judge_sweep(sweep_id, judge_lane_ids=(ASKING,))
            wait_judged(client, sweep_id)
        finally:
            server.close()
        score = wait_row(CHAIN[0], lambda score: len(score["tiers"]) == 2)["score"]
    assert {tier["judge_id"] for tier in score["tiers"]} == {JUDGE, ASKING}
    assert "sampled" in score["badges"]
    assert score["left_out"] == []
