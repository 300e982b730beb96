"""Every page of the panel against a real gRPC server: empty, running, failed, done, and the scheduler away."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import screentest_ui
from screentest.errors import Unavailable
from screentest.records import Estimate, JobState, SkippedLane, Task
from screentest_ui import panel_access, panel_link, ports, services, sweepfile
from tests.integration.panel_scheduler import (
    HOSTILE,
    World,
    device,
    job,
    lane,
    progress,
    proof,
    serve,
    stamp,
    sweep_spec,
    vitals,
)
from tests.made_sweeps import plan

PANEL = Path(screentest_ui.__file__).with_name("panel.py")
PNG = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde"
    b"\0\0\0\x0cIDATx\x9cc\xf8\xcf\xc0\0\0\x03\x01\x01\0\xc9\xfe\x92\xef\0\0\0\0IEND\xaeB`\x82"
)


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `screentest up` starts the panel: AppTest reads no .streamlit/config.toml, and an unknown door is closed."""
    monkeypatch.setenv(panel_access.BIND, "127.0.0.1")
    # A scheduler that is away is asked four times over seconds: what the panel then shows is the same at once.
    monkeypatch.setattr("screentest.client._SERVICE_CONFIG", "{}")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A scheduler with two lanes and nothing to do."""
    world = World(lanes=[lane("stub", "Stub"), lane("stub-i2v", "Stub I2V", Task.I2V, alive=False)])
    for address in serve(world):
        monkeypatch.setenv("SCREENTEST_GRPC_ADDRESS", address)
        yield world


def opened(page: str, **query: str) -> AppTest:
    """The page as a browser opens it, through the panel's navigation."""
    app = AppTest.from_file(str(PANEL), default_timeout=30).run()
    app.switch_page(f"panel_pages/{page}.py")
    for name, value in query.items():
        app.query_params[name] = value
    return healthy(app.run())


def healthy(app: AppTest) -> AppTest:
    assert [error.message for error in app.exception] == []
    return app


def words(app: AppTest) -> str:
    """All that the page says, without the escapes that keep a person's text from being Markdown."""
    kinds = (
        app.title,
        app.header,
        app.subheader,
        app.markdown,
        app.caption,
        app.info,
        app.warning,
        app.error,
        app.text,
    )
    said = [element.value for kind in kinds for element in kind]
    said += [item.text for item in app.get("progress")]
    return "\n".join(said).replace("\\", "").replace("\u2060", "")


def table(app: AppTest, column: str) -> list[dict[str, object]]:
    """The rows of the one table that has this column."""
    (found,) = [element.value for element in app.dataframe if column in element.value.columns]
    return found.to_dict("records")


# ---- empty


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("submit", "give the sweep a title"),
        ("queue", "No job runs"),
        ("sweeps", "No sweep yet"),
        ("vitals", "telemetry has published nothing"),
        ("lanes", "18 lanes, 1 live worker"),
        ("report", "No sweep yet"),
    ],
)
def test_page_of_an_idle_machine(world: World, page: str, says: str) -> None:
    assert says in words(opened(page))


# ---- the scheduler away


@pytest.mark.parametrize("page", ["submit", "queue", "sweeps", "vitals", "lanes", "report"])
def test_every_page_says_how_to_start_a_scheduler_that_is_away(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{ports.choose(1)[0]}"
    monkeypatch.setenv("SCREENTEST_GRPC_ADDRESS", address)
    app = opened(page)
    assert len(app.error) == 1
    assert address in words(app)
    assert "screentest up" in words(app)


def test_a_page_comes_back_with_its_scheduler(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_link, "PROBE_KEPT_S", 0.0)
    world.error = Unavailable("the scheduler stops")
    app = opened("queue")
    assert "the scheduler stops" in words(app)
    world.error = None
    assert healthy(app.run()).error == []
    assert "No job runs" in words(app)


def test_a_half_written_form_outlives_a_scheduler_restart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened("submit")
    app.text_input(key="title").input("Night tram")
    app.checkbox(key="lane-stub").check().run()
    monkeypatch.setattr(panel_link, "PROBE_KEPT_S", 0.0)
    world.error = Unavailable("the scheduler stops")
    app.run()
    world.error = None
    healthy(app.run())
    assert app.text_input(key="title").value == "Night tram"
    assert app.checkbox(key="lane-stub").value


# ---- submit


def filled(app: AppTest, *lane_ids: str, prompt: str = "A tram crosses a bridge.") -> AppTest:
    app.text_input(key="title").input("Night tram")
    app.text_area(key="prompts").input(prompt)
    for lane_id in lane_ids:
        app.checkbox(key=f"lane-{lane_id}").check()
    return healthy(app.run())


def test_submit_sends_the_form_and_opens_the_sweep(world: World) -> None:
    app = filled(opened("submit"), "stub")
    assert app.button(key="submit").label == "Submit 1 job"
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    assert (spec.title, spec.prompts, spec.lane_ids, spec.seeds) == (
        "Night tram",
        ("A tram crosses a bridge.",),
        ("stub",),
        (42,),
    )
    assert app.query_params["sweep"] in ("submitted", ["submitted"])
    assert "no worker for stub" in words(app)


def test_a_submit_that_failed_midway_is_repeated_with_the_same_request_id(world: World) -> None:
    app = filled(opened("submit"), "stub")
    app.button(key="submit").click().run()
    app = filled(opened("submit"), "stub")
    first = set(world.submitted)
    world.error = Unavailable("the broker does not answer; start it with `screentest up`")
    app.button(key="submit").click().run()
    world.error = None
    app.run()
    app.button(key="submit").click().run()
    assert len(world.submitted) == len(first) + 1


def test_verdict_of_each_lane_is_shown_before_the_submit(world: World) -> None:
    world.refused["stub-i2v"] = f"needs a keyframe {HOSTILE}"
    app = filled(opened("submit"), "stub", "stub-i2v")
    assert "needs a keyframe" in words(app)
    assert app.button(key="submit").label == "Submit 1 job"
    app.radio(key="skip_impossible").set_value(False).run()
    assert app.button(key="submit").disabled
    assert "Refused as it stands by Stub I2V" in words(app)


def test_what_a_lane_takes_is_shown_before_the_submit(world: World) -> None:
    lean = Estimate(
        rung=1,
        rung_name="lean",
        load_s=31,
        clip_s=344,
        low_s=250,
        high_s=420,
        peak_memory_bytes=14 << 30,
        basis="3 clips",
    )
    world.plans["stub"] = replace(plan("stub", "Stub"), rungs=("resident", "lean"), first_rung=1, estimates=(lean,))
    world.memory_free_bytes = 22 << 30
    world.refused["stub-i2v"] = "it does not fit"
    app = filled(opened("submit"), "stub", "stub-i2v")
    assert "it does not fit; Fix: ask for 17 frames" in words(app)
    shown, refused = table(app, "Rung")
    assert (shown["Rung"], shown["Memory"]) == ("lean", "needs 14.0 GiB of 22.0 GiB free")
    assert (shown["Clip"], shown["Energy"], shown["Basis"]) == (
        "5 min 44 s (4 min 10 s to 7 min 0 s)",
        "unknown",
        "3 clips",
    )
    assert (refused["Verdict"], refused["Memory"]) == ("refused", "")
    app.number_input(key="memory_cap_gib").set_value(16.0).run()
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    assert spec.memory_cap_gib == 16


def test_refused_fields_are_named(world: World) -> None:
    app = filled(opened("submit"), "stub", prompt="a forbidden prompt")
    healthy(app.button(key="submit").click().run())
    assert "spec.prompts[0]: not this" in words(app)
    assert HOSTILE in words(app)


def test_keyframe_is_uploaded_and_travels_with_the_sweep(world: World) -> None:
    app = opened("submit")
    app.file_uploader(key="keyframe").upload("tram.png", PNG, "image/png").run()
    app = filled(app, "stub")
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    assert spec.keyframe is not None
    assert spec.keyframe.size_bytes == len(PNG)


def test_a_keyframe_that_is_no_picture_is_refused_with_the_reason(world: World) -> None:
    app = opened("submit")
    app.file_uploader(key="keyframe").upload("tram.png", b"%!PS-Adobe EPSF", "image/png").run()
    assert "this file is no picture" in words(healthy(app))


def test_all_chooses_the_lanes_of_a_task_that_have_a_worker(world: World) -> None:
    world.lanes.append(lane("later", "Later", alive=False))
    app = opened("submit")
    app.button(key="all-t2v").click().run()
    chosen = {lane_id: app.checkbox(key=f"lane-{lane_id}").value for lane_id in ("stub", "later", "stub-i2v")}
    assert chosen == {"stub": True, "later": False, "stub-i2v": False}
    app.button(key="none-t2v").click().run()
    assert not app.checkbox(key="lane-stub").value


def test_lanes_without_a_worker_stand_apart_and_idle_stubs_are_not_offered(world: World) -> None:
    world.lanes += [lane("later", "Later", alive=False), lane("disc", "Disc", alive=False, env="stub")]
    app = opened("submit")
    assert [box.key for box in app.checkbox] == ["lane-stub", "lane-later", "lane-stub-i2v"]
    assert "1 lane without a worker.** Their jobs wait until one starts" in words(app)
    assert "screentest up --lanes later" in words(app)
    world.lanes[0] = lane("stub", "Stub", alive=False, env="stub")
    world.lanes[-1] = lane("disc", "Disc", env="stub")
    assert [box.key for box in healthy(app.run()).checkbox] == ["lane-disc", "lane-later", "lane-stub-i2v"]


def test_the_demos_scene_fills_the_form_ready_to_send(world: World) -> None:
    world.lanes += [lane("wan2-1-t2v-1-3b"), lane("mochi-1-preview", alive=False)]
    app = opened("submit")
    healthy(app.button(key="demo").click().run())
    assert app.checkbox(key="lane-wan2-1-t2v-1-3b").value
    assert not app.checkbox(key="lane-mochi-1-preview").value
    assert app.button(key="demo").disabled  # never over what is written
    healthy(app.button(key="submit").click().run())
    (spec,) = world.submitted.values()
    demo = sweepfile.load(services.installation(os.environ).demo_sweep)
    assert (spec.title, spec.prompts, spec.requested) == (demo.title, demo.prompts, demo.requested)
    assert spec.lane_ids == ("wan2-1-t2v-1-3b",)
    assert spec.keyframe is not None
    assert [asked.approved is not None for asked in world.rubrics] == [True]


# ---- queue


def test_queue_shows_the_running_job_and_why_others_wait(world: World) -> None:
    running = job("now", JobState.RUNNING, lane_title="Wan 2.1")
    running = replace(running, progress=progress(running.spec, "denoising", 12, 50))
    waits = job("next", JobState.QUEUED, ordinal=1, waits_for="Wan 2.1 holds cpu-0")
    world.add(running, replace(waits, expected_wait_s=720.0, expected_run_s=344.0))
    world.devices = [device(job_id="now")]
    app = opened("queue")
    assert "denoising · step 12 of 50, 0.5 s a step, about 19 s left" in words(app)
    assert "1 job: Wan 2.1 holds cpu-0" in words(app)
    assert "Wan 2.1 holds cpu-0; starts in about 12 min 0 s, takes about 5 min 44 s" in words(app)
    app.button(key="cancel-now").click().run()
    assert world.cancelled == ["now"]
    assert [toast.value.replace("\\", "") for toast in app.toast] == ["Cancel requested for Wan 2.1, seed 42"]


def test_a_second_click_cancels_no_job_that_took_the_place_of_the_first(world: World) -> None:
    world.add(job("now", JobState.RUNNING), job("next", JobState.QUEUED, ordinal=1))
    app = opened("queue")
    assert not app.button(key="cancel-next").disabled
    app.button(key="cancel-now").click().run()
    assert app.button(key="cancel-next").disabled
    app.session_state["cancelled_at"] -= 10  # as if so many seconds had passed
    app.run()
    assert not app.button(key="cancel-next").disabled


def test_a_drained_device_can_be_given_back(world: World) -> None:
    unclean = proof(clean=False, reason="runner 7 is alive")
    world.devices = [device(drained=True, drained_reason="not proven in 60 s", proof=unclean)]
    app = opened("queue")
    assert "Drained: not proven in 60 s" in words(app)
    app.button(key="undrain-local-cpu-0").click().run()
    assert world.undrained == ["cpu-0"]


def test_an_action_that_fails_says_why_and_stays_on_the_screen(world: World) -> None:
    world.add(job("now", JobState.RUNNING))
    world.too_late = {"now"}
    app = opened("queue")
    app.button(key="cancel-now").click().run()
    (toast,) = healthy(app).toast
    assert "job now cannot be cancelled any more" in toast.value.replace("\\", "")


def test_an_idle_queue_leads_to_a_submit_and_to_what_has_just_ended(world: World) -> None:
    later = job("later", JobState.COMPLETED, ordinal=1, lane_title=HOSTILE, ended=stamp(30))
    world.add(job("good", JobState.COMPLETED), later, job("bad", JobState.FAILED, ordinal=2), settled=True)
    world.artifacts["night-tram/posters/later.jpg"] = "http://127.0.0.1:1/poster.jpg"
    app = opened("queue")
    assert [link.proto.label for link in app.get("page_link")] == ["Submit a sweep", "Night tram", "Night tram"]
    said = words(app)
    assert said.index(HOSTILE) < said.index("Lane 0")  # the newest first
    assert "Its poster comes with the next revision" in said  # of the one without
    assert len(app.get("image")) == 1


def test_a_queue_with_work_asks_for_no_submit(world: World) -> None:
    world.add(job("next", JobState.ADMITTED))
    app = opened("queue")
    assert "No job runs." in words(app)
    assert "Submit a sweep" not in [link.proto.label for link in app.get("page_link")]
    assert "Latest clips" not in words(app)


# ---- sweeps


def test_a_running_sweep_shows_its_job_and_can_be_cancelled(world: World) -> None:
    running = job("now", JobState.RUNNING)
    world.add(replace(running, progress=progress(running.spec, "loading")), job("next", JobState.QUEUED, ordinal=1))
    app = opened("sweeps", sweep="night-tram")
    assert "loading the model" in words(app)
    assert "1 running, 1 queued" in words(app)
    app.button(key="cancel-sweep").click().run()
    assert world.cancelled == ["night-tram"]


def test_a_sweep_that_is_over_shows_clips_failures_and_the_final_proof(world: World) -> None:
    world.add(
        job("good", JobState.COMPLETED),
        job("bad", JobState.FAILED, ordinal=1),
        settled=True,
        skipped=(SkippedLane(lane_id="i2v", lane_title="I2V", reason="needs a keyframe"),),
    )
    world.artifacts = {"good": "http://127.0.0.1:1/clip.mp4", "bad": "http://127.0.0.1:1/log"}
    app = opened("sweeps", sweep="night-tram")
    said = words(app)
    for part in (
        "1 clip",
        "random weights",
        "no step for 120 s",
        "raise step_stall_s",
        "process table clean",
        "I2V skipped",
    ):
        assert part in said
    assert [video.proto.url for video in app.get("video")] == ["http://127.0.0.1:1/clip.mp4"]
    assert list(app.dataframe[0].value["Status"]) == ["completed", "failed"]
    app.button(key="retry").click().run()
    assert world.retried == ["bad"]


def test_the_end_of_a_failed_jobs_log_is_on_the_page(world: World, tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(1, 251))
    (tmp_path / "log").write_text(text)
    world.hashes = {"bad": hashlib.sha256(text.encode()).hexdigest()}
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as depot:
        threading.Thread(target=depot.serve_forever, daemon=True).start()
        world.add(job("bad", JobState.FAILED), settled=True)
        world.artifacts = {"bad": f"http://127.0.0.1:{depot.server_address[1]}/log"}
        app = opened("sweeps", sweep="night-tram")
        assert app.code == []
        app.toggle(key="log-bad").set_value(True).run()
        (shown,) = healthy(app).code
        depot.shutdown()
    assert shown.value.splitlines()[:2] == ["… 50 lines before these", "line 51"]
    assert shown.value.splitlines()[-1] == "line 250"


def test_a_clip_that_the_depot_does_not_give_is_said_in_its_place(world: World) -> None:
    world.add(job("good", JobState.COMPLETED), settled=True)
    assert "no artifact 'good'" in words(opened("sweeps", sweep="night-tram"))


def test_an_unknown_sweep_is_named(world: World) -> None:
    assert "no sweep 'gone'" in words(opened("sweeps", sweep="gone"))


def test_the_list_of_sweeps_opens_one(world: World) -> None:
    world.add(job("good", JobState.COMPLETED), settled=True)
    app = opened("sweeps")
    assert "1 completed" in words(app)
    healthy(app.button(key="open-night-tram").click().run())
    assert "1 clip" in words(app)


def test_hostile_text_stays_text(world: World) -> None:
    bad = job("bad", JobState.FAILED, prompt=HOSTILE, lane_title=HOSTILE, cause=HOSTILE, fix=HOSTILE)
    world.add(bad, job("wait", JobState.QUEUED, ordinal=1, waits_for=HOSTILE), spec=sweep_spec(title=HOSTILE))
    world.lanes = [lane("stub", HOSTILE)]
    for page, query in (("sweeps", {}), ("sweeps", {"sweep": "night-tram"}), ("queue", {}), ("submit", {})):
        app = opened(page, **query)
        for element in (*app.markdown, *app.caption, *app.title, *app.header, *app.error, *app.warning):
            live = re.sub(r"\\[!-/:-@\[-`{-~]", "", element.value)  # what Markdown still reads as marks
            assert "<" not in live
            assert "[link" not in live
            assert not getattr(element, "allow_html", False)


# ---- vitals


@pytest.mark.parametrize(("gpu", "charts"), [(True, 5), (False, 2)])
def test_vitals_draw_what_was_measured_and_name_what_was_not(world: World, gpu: bool, charts: int) -> None:
    world.batches = [vitals(second, gpu=gpu) for second in range(-30, 0)]
    app = opened("vitals")
    assert len(app.get("vega_lite_chart")) == charts
    assert ("The driver does not give: memory=not_supported" if gpu else "No GPU is visible") in words(app)
