"""The panel as a place to work in: each page in each state, and what a person does on it, without a browser."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from screentest.records import Counts, Estimate, JobState, JudgeCost, Scoring, Task, Weights
from screentest_ui import panel_access
from tests.integration.panel_scheduler import World, job, lane, progress, serve, sweep_spec, vitals
from tests.integration.test_panel import PANEL, PNG, filled, healthy, opened, table, words
from tests.made_clips import write_clip
from tests.made_sweeps import plan

PROMPT = (
    "A porcelain doll sits in a gothic cathedral, then a soldier walks in, then the camera pushes in. "
    "Cinematic lighting, no text."
)
PAGES = ("submit", "queue", "sweeps", "vitals", "lanes", "report")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A scheduler with two lanes, two judges and nothing to do."""
    monkeypatch.setenv(panel_access.BIND, "127.0.0.1")
    judges = [lane("pixels", "Pixels", Task.JUDGE, tier="a"), lane("qwen", "Qwen3-VL", Task.JUDGE, tier="c")]
    world = World(lanes=[lane("wan", "Wan 2.1"), lane("svd", "SVD", Task.I2V), *judges])
    for address in serve(world):
        monkeypatch.setenv("SCREENTEST_GRPC_ADDRESS", address)
        yield world


def judgeable(world: World) -> None:
    """A sweep with two clips that an opinion may be had of, and one failure. Nobody can fetch the clips."""
    jobs = [
        job(name, JobState.COMPLETED, ordinal=number, lane_title=name.title(), prompt=PROMPT, weights=Weights.HUB)
        for number, name in enumerate(("ape", "yak"))
    ]
    failed = job("bad", JobState.FAILED, ordinal=2, prompt=PROMPT, weights=Weights.HUB)
    world.add(*jobs, failed, settled=True, spec=sweep_spec(weights=Weights.HUB, prompts=(PROMPT,)))
    world.artifacts = {name: f"http://127.0.0.1:1/{name}.mp4" for name in ("ape", "yak")}


def playable(world: World, depot: Path) -> None:
    """The same with clips in a folder, under keys that name their lanes as the depot's do."""
    judgeable(world)
    for frames, name in enumerate(("ape", "yak"), start=8):
        clip = depot / f"{name}-{name}-1-abcdef.mp4"
        write_clip(clip, frames, title=f"{name.title()} in {depot}")
        world.artifacts[name] = clip.as_uri()
        world.hashes[name] = hashlib.sha256(clip.read_bytes()).hexdigest()


def shown(app: AppTest) -> str:
    """All that the view's parts and their keys tell the browser. No lane's name here is one that a hash could spell."""
    parts = [*app.get("bidi_component"), *app.select_slider, *app.toggle, *app.checkbox, *app.warning, *app.caption]
    return "\n".join(str(part.proto) for part in parts)


# ---- every page in every state


def _running(world: World) -> None:
    now = job("now", JobState.RUNNING)
    world.add(replace(now, progress=progress(now.spec, "denoising", 12, 50)), job("next", JobState.QUEUED, ordinal=1))
    world.batches = [vitals(second, gpu=True) for second in range(-30, 0)]


def _failed(world: World) -> None:
    world.add(job("bad", JobState.FAILED), settled=True)


STATES = {
    "running": (_running, ("", "denoising · step 12 of 50", "denoising", "Attempts", "lanes, ", "No report")),
    "failed": (_failed, ("", "No job runs", "no step for 120 s", "Attempts", "lanes, ", "No report")),
    "done": (judgeable, ("", "No job runs", "2 clips", "Attempts", "2 judges", "No report")),
}


@pytest.mark.parametrize("state", STATES)
def test_every_page_shows_a_sweep_that_is(state: str, world: World) -> None:
    make, says = STATES[state]
    make(world)
    for page, part in zip(PAGES, says, strict=True):
        app = opened(page, **({"sweep": "night-tram"} if page != "submit" else {}))
        assert part in words(app), page


# ---- submit


def test_a_rubric_is_drafted_read_and_approved_where_the_prompt_stands(world: World) -> None:
    app = filled(opened("submit"), "wan", prompt=PROMPT)
    assert "8 elements, 2 beats, draft" in app.expander[-1].label.replace("\\", "")
    app.text_input(key="person").input("Ann").run()
    (approve,) = [button for button in app.button if button.label == "Approve it"]
    healthy(approve.click().run())
    assert "Approved by Ann" in words(app)
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    (asked,) = world.rubrics
    assert asked.approved_by == "Ann"
    assert [(ref.approved_by, ref.rubric_sha256) for ref in spec.rubrics] == [("Ann", asked.sha256)]


def test_a_draft_that_nobody_touched_is_left_to_the_scheduler(world: World) -> None:
    app = filled(opened("submit"), "wan", prompt=PROMPT)
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    assert spec.rubrics == ()
    assert world.rubrics == []


def test_the_sums_stand_above_the_button_and_warn_over_the_budget(world: World) -> None:
    known = Estimate(rung=0, rung_name="resident", load_s=40, clip_s=100, energy_wh=5)
    world.plans["wan"] = replace(plan("wan", "Wan 2.1"), estimates=(known,))
    app = filled(opened("submit"), "wan")
    app.text_input(key="seeds").input("1, 2, 3").run()
    assert [metric.value for metric in app.metric] == ["about 5 min 40 s", "about 15.0 Wh"]
    assert "Over the budget" not in words(app)
    healthy(app.number_input(key="budget_wh").set_value(10.0).run())
    assert "Over the budget: about 15.0 Wh, the budget is 10 Wh" in words(app)
    assert not app.button(key="submit").disabled


def test_a_chosen_judge_travels_with_the_sweep_and_shows_its_cost_first(world: World) -> None:
    judgeable(world)
    world.costs = (JudgeCost(lane_id="qwen", tier="c", jobs=4, calls=96, seconds=200),)
    app = filled(opened("submit"), "wan", prompt=PROMPT)
    app.selectbox(key="weights").set_value(Weights.HUB)
    healthy(app.checkbox(key="judge-qwen").check().run())
    (cost,) = table(app, "Questions")
    assert (cost["Judge"], cost["Clips"], cost["Time"]) == ("Qwen3-VL", "1", "50 s")
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    assert spec.judge_lane_ids == ("qwen",)


def test_each_lanes_part_of_the_keyframe_is_shown(world: World) -> None:
    world.plans["svd"] = replace(plan("svd", "SVD"), task=Task.I2V, width_px=832, height_px=480)
    app = opened("submit")
    app.file_uploader(key="keyframe").upload("tram.png", PNG, "image/png").run()
    app = filled(app, "svd")
    assert "SVD: 832x480, 58% of the picture" in words(app)


def test_a_half_written_form_outlives_a_refresh(world: World) -> None:
    app = opened("submit")
    app.file_uploader(key="keyframe").upload("tram.png", PNG, "image/png").run()
    app = filled(app, "wan", prompt=PROMPT)
    again = AppTest.from_file(str(PANEL), default_timeout=30)
    again.query_params["draft"] = "".join(app.query_params["draft"])
    healthy(again.run())
    assert again.text_input(key="title").value == "Night tram"
    assert again.text_area(key="prompts").value == PROMPT
    assert again.checkbox(key="lane-wan").value
    healthy(again.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    assert spec.keyframe is not None


# ---- queue


def test_a_sweep_is_paused_resumed_and_put_first(world: World) -> None:
    world.add(job("next", JobState.QUEUED))
    app = opened("queue")
    healthy(app.button(key="pause-night-tram").click().run())
    assert world.sweeps["night-tram"].paused
    assert "paused" in words(app)
    app.button(key="up-night-tram").click().run()
    assert world.sweeps["night-tram"].priority == 1
    assert "priority 1" in words(healthy(app))
    assert app.button(key="pause-night-tram").label == "Resume"
    app.button(key="pause-night-tram").click().run()
    assert not world.sweeps["night-tram"].paused


def test_a_failed_job_is_tried_again_from_the_queue(world: World) -> None:
    world.add(job("bad", JobState.FAILED), job("next", JobState.QUEUED, ordinal=1))
    healthy(opened("queue").button(key="retry-night-tram").click().run())
    assert world.retried == ["bad"]


def judging(world: World, *lane_ids: str) -> None:
    """The sweep is over, and each of these judges has one clip to judge still."""
    judgeable(world)
    jobs = [job(f"judge-{lane_id}", JobState.QUEUED, lane_id=lane_id, lane_title=lane_id) for lane_id in lane_ids]
    world.judging["night-tram"] = tuple(replace(item, waits_for=f"no worker for {item.spec.lane_id}") for item in jobs)
    scoring = Scoring(counts=Counts(queued=len(jobs)))
    world.sweeps["night-tram"] = replace(world.sweeps["night-tram"], scoring=scoring)


def test_a_sweep_that_waits_for_a_judge_without_worker_alone_is_not_open(world: World) -> None:
    world.lanes.append(lane("siglip", "SigLIP", Task.JUDGE, alive=False, tier="b"))
    judging(world, "siglip")
    app = opened("queue")
    assert "Night tram: over; judging waits for a worker of siglip" in words(app)
    assert "open sweep" not in words(app)
    assert "1 job: no worker for siglip" in words(app)
    judging(world, "siglip", "qwen")
    app = opened("queue")
    assert "1 open sweep" in words(app)
    assert "judging waits" not in words(app)


# ---- people


def test_a_clip_is_rated_without_its_name_and_ticked_by_element(world: World, tmp_path: Path) -> None:
    playable(world, tmp_path)
    app = opened("sweeps", sweep="night-tram", view="Rate blind")
    assert "0 clips of 2 rated" in words(app)
    assert app.button(key="rate").disabled
    (score,) = app.select_slider
    score.set_value("6.5").run()
    (ticking,) = [toggle for toggle in app.toggle if toggle.label == "Tick what is there"]
    ticking.set_value(True).run()
    app.checkbox[0].check().run()
    healthy(app.button(key="rate").click().run())
    (rating,) = world.votes.ratings
    assert rating.score10 == 6.5
    assert [tick.present for tick in rating.ticks] == [True] + [False] * 7
    assert len(rating.rubric_sha256) == 64
    assert "1 clip of 2 rated" in words(app)
    app.button(key="pass").click().run()
    assert "All but 1 clip passed over" in app.success[0].value


def test_nothing_of_random_weights_is_put_before_a_person(world: World) -> None:
    world.add(job("good", JobState.COMPLETED), settled=True)
    for view in ("Rate blind", "Blind pairs"):
        app = opened("sweeps", sweep="night-tram", view=view)
        assert "random weights" in app.info[0].value
        assert app.get("bidi_component") == []


def test_a_pair_hides_the_names_of_its_lanes(world: World, tmp_path: Path) -> None:
    playable(world, tmp_path)
    app = opened("sweeps", sweep="night-tram", view="Blind pairs")
    (player,) = app.get("bidi_component")
    assert '"label": "Left"' in str(player.proto).replace('\\"', '"')
    assert not re.search("ape|yak", shown(app), re.IGNORECASE)
    assert "0 votes so far" in words(app)


def test_the_address_of_a_clip_to_rate_does_not_name_its_lane(world: World, tmp_path: Path) -> None:
    playable(world, tmp_path)
    app = opened("sweeps", sweep="night-tram", view="Rate blind")
    (ticking,) = [toggle for toggle in app.toggle if toggle.label == "Tick what is there"]
    ticking.set_value(True).run()
    assert len(app.get("bidi_component")) == 1
    assert len(app.checkbox) == 8
    assert not re.search("ape|yak", shown(healthy(app)), re.IGNORECASE)


def test_a_clip_that_the_depot_does_not_give_can_be_passed_over_unnamed(world: World, tmp_path: Path) -> None:
    playable(world, tmp_path)
    for clip in tmp_path.iterdir():
        clip.unlink()
    app = opened("sweeps", sweep="night-tram", view="Rate blind")
    assert "the depot does not give this clip now" in app.warning[0].value
    assert app.select_slider == []
    assert not re.search("ape|yak", shown(app), re.IGNORECASE)
    app.button(key="pass").click().run()
    healthy(app.button(key="pass").click().run())
    assert "All but 2 clips passed over" in app.success[0].value


def test_a_finding_is_put_into_a_persons_words_and_back(world: World) -> None:
    judgeable(world)
    app = opened("sweeps", sweep="night-tram", view="Findings")
    composed = app.text_area[0].value
    app.text_area[0].input("The doll is there, the soldier is not.").run()
    healthy(app.button(key="save-ape").click().run())
    assert world.votes.findings[-1].text == "The doll is there, the soldier is not."
    assert f"As composed: {composed}" in words(app)
    assert "edited by a person" in words(app)
    healthy(app.button(key="undo-ape").click().run())
    assert world.votes.findings[-1].text == ""


def test_judging_again_shows_its_cost_before_it_can_begin(world: World) -> None:
    judgeable(world)
    world.costs = (JudgeCost(lane_id="qwen", tier="c", jobs=3, calls=960, seconds=320, basis="3 judgements here"),)
    app = opened("sweeps", sweep="night-tram", view="Judge again")
    assert [button.key for button in app.button if button.key == "judge"] == []
    app.multiselect(key="judges-night-tram").set_value(["qwen"]).run()
    healthy(app.button(key="judge-cost").click().run())
    assert table(app, "Judgements")[0]["Time"] == "5 min 20 s"
    assert world.judged == []
    healthy(app.button(key="judge").click().run())
    assert world.judged == [("qwen",)]


def test_clips_side_by_side_stand_in_the_address(world: World) -> None:
    judgeable(world)
    app = opened("sweeps", sweep="night-tram", view="Side by side", clips="yak")
    assert app.multiselect(key="side-night-tram").value == ["yak"]
    app.multiselect(key="side-night-tram").set_value(["yak", "ape"]).run()
    assert healthy(app).query_params["clips"] in ("yak,ape", ["yak,ape"])
    assert len(app.get("bidi_component")) == 1


# ---- lanes, vitals


def test_stub_lanes_are_hidden_until_asked_for(world: World) -> None:
    world.lanes.append(lane("disc", "Disc", env="stub"))
    app = opened("lanes")
    assert "disc" not in [row["Lane"] for row in table(app, "Lane")]
    app.toggle(key="stubs").set_value(True).run()
    assert "disc" in [row["Lane"] for row in table(healthy(app), "Lane")]
    assert [row["Judge"] for row in table(app, "Judge")] == ["pixels", "qwen"]


def test_weights_are_unknown_to_a_panel_that_was_not_told_where_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert {row["Weights here"] for row in table(opened("lanes"), "Lane")} == {"unknown"}
    monkeypatch.setenv("SCREENTEST_MODELS_DIR", str(tmp_path))
    assert "absent" in {row["Weights here"] for row in table(opened("lanes"), "Lane")}


def test_vitals_of_a_sweep_stand_below_its_attempts(world: World) -> None:
    judgeable(world)
    world.batches = [vitals(second, gpu=True) for second in range(0, 12)]
    app = opened("vitals", sweep="night-tram")
    assert len(app.get("vega_lite_chart")) == 6
    assert "Attempts" in words(app)


# ---- the door


def test_a_panel_beyond_loopback_shows_nothing_without_a_login(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(panel_access.BIND, "0.0.0.0")
    judgeable(world)
    app = AppTest.from_file(str(PANEL), default_timeout=30).run()
    assert "nobody would have to log in" in app.error[0].value
    assert app.title == []
    assert app.button == []


LOGIN = """
[auth]
redirect_uri = "https://screentest.studio.example/oauth2callback"
cookie_secret = "not a secret"
client_id = "screentest"
client_secret = "not one either"
server_metadata_url = "https://login.studio.example/.well-known/openid-configuration"
"""
PEOPLE = """
[people]
allowed = ["@studio.example"]
"""


def started(address: str, folder: Path, login: str = "") -> tuple[int, str]:
    """Exit status and what it says; a panel that did start is killed after its first line, with status 0."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop(panel_access.BIND, None)
    if login:
        (folder / "login.toml").write_text(login)
        environment["SCREENTEST_PANEL_LOGIN_FILE"] = str(folder / "login.toml")
    command = [sys.executable, "-m", "screentest_ui.panel_server", f"--address={address}", "--port=0"]
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as panel:
        assert panel.stdout is not None
        assert panel.stderr is not None
        said = next((line for line in panel.stdout if line.strip()), "")
        if said:
            panel.kill()
            return 0, said
        return panel.wait(60), panel.stderr.read()


def test_panel_does_not_start_beyond_loopback_where_nobody_has_to_log_in(tmp_path: Path) -> None:
    status, said = started("0.0.0.0", tmp_path)
    assert status == 2
    assert "nobody would have to log in" in said
    assert "docs/operations.md" in said
    status, said = started("0.0.0.0", tmp_path, LOGIN)
    assert status == 2
    assert "Name the people" in said
    status, said = started("0.0.0.0", tmp_path, LOGIN + PEOPLE)
    assert (status, "view your Streamlit app" in said) == (0, True)
