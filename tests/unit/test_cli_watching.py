"""What a watcher concludes from the messages of a sweep."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from screentest.client import Message
from screentest.records import (
    Admitted,
    Artifact,
    ArtifactKind,
    Completed,
    Failed,
    FailureClass,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    Judged,
    JudgePurpose,
    Limits,
    Progress,
    RetryRequested,
    RubricRef,
    Stamp,
    Submitted,
    SweepEvent,
    SweepSettled,
    Task,
    Waiting,
    Weights,
)
from screentest_ui.home import Home, Running, client_environment
from screentest_ui.printing import plain
from screentest_ui.watching import WatchedSweep, expects, seconds

STAMP = Stamp(at=datetime(2026, 5, 8, tzinfo=UTC), boot_id="b", boottime_ns=1)
CLIP = Artifact(kind=ArtifactKind.CLIP, key="k", sha256="0" * 64, size_bytes=1, content_type="video/mp4")
SPEC = JobSpec(
    job_id="j1",
    sweep_id="s",
    lane_id="stub",
    lane_title="Stub",
    task=Task.T2V,
    ordinal=0,
    prompt_index=0,
    prompt="p",
    seed=1,
    weights=Weights.MINIATURE,
    keyframe=None,
    lane_digest="d",
    host="local",
    device="cpu-0",
    width_px=96,
    height_px=64,
    num_frames=9,
    steps=4,
    fps=24,
    call=(),
    marks=(),
    limits=Limits(load_s=1, step_stall_s=1, attempt_s=1),
    rungs=("resident",),
    weights_repo="",
    weights_revision="",
)


def event(body: object, state: JobState, spec: JobSpec = SPEC, attempt: int = 0) -> Message:
    return Message(
        cursor="e:1",
        body=JobEvent(
            event_id="x",
            sweep_id="s",
            lane_id=spec.lane_id,
            job_id=spec.job_id,
            attempt=attempt,
            state=state,
            stamp=STAMP,
            body=body,  # type: ignore[arg-type]
        ),
    )


def sweep_event(body: object) -> Message:
    return Message(cursor="e:2", body=SweepEvent(event_id="x", sweep_id="s", stamp=STAMP, body=body))  # type: ignore[arg-type]


def progress(phase: str, step: int | None = None) -> Message:
    body = Progress(
        sweep_id="s", lane_id="stub", job_id="j1", attempt=1, phase=phase, step=step, steps=4, eta_s=2.0, stamp=STAMP
    )
    return Message(cursor="e:1", body=body)


@pytest.fixture
def watched() -> WatchedSweep:
    sweep = WatchedSweep()
    sweep.apply(event(Submitted(spec=SPEC), JobState.QUEUED))
    return sweep


def test_phase_is_told_once_and_steps_move_the_bar(watched: WatchedSweep) -> None:
    assert watched.apply(progress("denoising", 1)) == ("Stub: denoising (4 steps)",)
    assert watched.apply(progress("denoising", 2)) == ()
    assert watched.jobs["j1"].fraction == 0.5


def test_same_reason_of_many_jobs_is_told_once(watched: WatchedSweep) -> None:
    second = replace(SPEC, job_id="j2", seed=2)
    watched.apply(event(Submitted(spec=second), JobState.QUEUED, second))
    reason = "no worker for stub"
    lines = [watched.apply(Message(cursor="", body=Waiting(job_id=job, waits_for=reason))) for job in ("j1", "j2")]
    assert lines == [("Stub (seed 1): waits: no worker for stub",), ()]
    assert watched.jobs["j2"].waits_for == "no worker for stub"


def test_reason_that_comes_before_its_job_is_not_lost() -> None:
    sweep = WatchedSweep()
    sweep.apply(Message(cursor="", body=Waiting(job_id="j1", waits_for="paused")))
    assert sweep.apply(event(Submitted(spec=SPEC), JobState.QUEUED)) == ("Stub: waits: paused",)


def test_failure_is_told_with_its_class_and_fix(watched: WatchedSweep) -> None:
    body = Failed(failure_class=FailureClass.OOM_LOAD, cause="CUDA out of memory", fix="use a lower rung")
    assert watched.apply(event(body, JobState.FAILED)) == (
        "Stub: failed: oom_load: CUDA out of memory Fix: use a lower rung",
    )


def test_settlement_of_a_time_before_a_retry_does_not_count(watched: WatchedSweep) -> None:
    watched.apply(event(Completed(clip=CLIP), JobState.COMPLETED))
    watched.apply(sweep_event(SweepSettled(jobs=1, clips=1, proofs=())))
    assert watched.settled is not None
    again = replace(SPEC, job_id="j2", retry_of="j1", retry_index=1)
    watched.apply(sweep_event(RetryRequested(spec=again, by="ada")))
    assert watched.settled is None
    watched.apply(sweep_event(SweepSettled(jobs=1, clips=1, proofs=())))
    assert watched.settled is None
    watched.apply(sweep_event(SweepSettled(jobs=2, clips=2, proofs=())))
    assert watched.settled is not None


def test_event_of_an_unknown_job_is_ignored() -> None:
    assert WatchedSweep().apply(event(Admitted(rung=0, rung_name="r"), JobState.ADMITTED)) == ()


@pytest.mark.parametrize(("value", "text"), [(None, ""), (7.4, "7 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")])
def test_durations_read_like_speech(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_json_of_an_event_names_its_kind() -> None:
    shown = plain(event(Completed(clip=CLIP), JobState.COMPLETED).body)
    assert (shown["kind"], shown["state"]) == ("Completed", "completed")
    assert shown["stamp"]["at"] == "2026-05-08T00:00:00+00:00"


def test_own_settings_win_over_the_stack_and_are_never_mixed(tmp_path) -> None:
    home = Home(tmp_path)
    home.client_file.write_text("SCREENTEST_GRPC_ADDRESS=a:1\nSCREENTEST_GRPC_TOKEN_FILE=/t\n")
    assert client_environment(home, {}) == {"SCREENTEST_GRPC_ADDRESS": "a:1", "SCREENTEST_GRPC_TOKEN_FILE": "/t"}
    assert client_environment(home, {"SCREENTEST_GRPC_ADDRESS": "b:2"}) == {"SCREENTEST_GRPC_ADDRESS": "b:2"}


def test_record_of_the_stack_survives_the_round_trip(tmp_path) -> None:
    home = Home(tmp_path)
    running = Running(marker="m", device="cpu-0", lane_ids=("a",), ports={"nats": 1})
    home.write(running)
    assert home.read() == running


def waiting_job(job_id: str, wait_s: float | None, run_s: float | None) -> Job:
    spec = replace(SPEC, job_id=job_id)
    return Job(
        spec=spec,
        state=JobState.QUEUED,
        attempts=(),
        submitted=STAMP,
        expected_wait_s=wait_s,
        expected_run_s=run_s,
    )


def test_what_the_scheduler_expects_is_shown_as_far_as_it_is_known() -> None:
    watched = WatchedSweep()
    for job_id in ("j1", "j2"):
        spec = replace(SPEC, job_id=job_id)
        watched.apply(event(Submitted(spec=spec), JobState.QUEUED, spec))
    watched.expect([waiting_job("j1", 0, 60), waiting_job("j2", 60, 344), waiting_job("elsewhere", 1, 1)])
    assert expects(watched.jobs["j1"]) == "takes about 1 min 0 s"
    assert expects(watched.jobs["j2"]) == "starts in about 1 min 0 s, takes about 5 min 44 s"
    assert watched.left_s == 404
    watched.expect([waiting_job("j2", None, 344)])
    assert expects(watched.jobs["j2"]) == "takes about 5 min 44 s"
    assert watched.left_s is None


def test_a_judge_job_is_no_job_of_the_watched_sweep(watched: WatchedSweep) -> None:
    """A sweep is over without its judgements: its settlement counts the jobs that make clips."""
    rubric = RubricRef(prompt_index=0, key="k", sha256="a", size_bytes=1, rubric_sha256="a")
    judged = Judged(
        purpose=JudgePurpose.CLIP, job_id="j1", lane_id="stub", key="k", sha256="c", size_bytes=1, rubric=rubric
    )
    judge = replace(SPEC, job_id="judge-clip-1", lane_id="pixels", task=Task.JUDGE, judged=judged)
    assert watched.apply(event(Submitted(spec=judge), JobState.QUEUED, judge)) == ()
    assert watched.apply(event(Failed(failure_class=FailureClass.NAN, cause="c"), JobState.FAILED, judge)) == ()
    assert set(watched.jobs) == {"j1"}
    watched.apply(sweep_event(SweepSettled(jobs=1, clips=1, proofs=())))
    assert watched.settled is not None
