"""A sweep of clips whose true order is known, through the whole stack: made, judged, scored and published.

The judge is the tiny SigLIP of the tests, which knows coloured shapes; every number it gives carries its badge.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from screentest import rubric, table
from screentest.client import Client
from screentest.records import JobState, RubricRef, SweepSpec, Weights
from screentest.rubric import prompt_sha256
from screentest_ui.home import Home
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneStack(Stack):
    """Scene lanes, pixels and the test judge with its weights."""

    def environment(self) -> dict[str, str]:
        folders = {
            "SCREENTEST_LANES_DIR": str(REPOSITORY / "tests" / "lanes"),
            "SCREENTEST_JUDGES_DIR": str(self.folder / "judges"),
        }
        return {**Stack.environment(self), **folders}

    def up(self) -> str:
        judges, models = self.folder / "judges", self.folder / "models"
        judges.mkdir()
        shutil.copy(REPOSITORY / "deploy" / "judges" / "pixels.toml", judges)
        (judges / f"{JUDGE}.toml").write_text(JUDGE_FILE)
        shutil.copytree(TINY_SIGLIP, models / JUDGE)
        lanes, wanted = ",".join(CHAIN), f"pixels,{JUDGE}"
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
