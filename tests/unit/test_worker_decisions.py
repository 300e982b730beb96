"""What the worker decides, without any process, broker or clock: deliveries, fences, outcomes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screentest.records import (
    Admitted,
    Artifact,
    ArtifactKind,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    ClipFacts,
    Completed,
    FailureClass,
    JobEvent,
    JobSpec,
    JobState,
    Limits,
    Outcome,
    Process,
    Proof,
    ProofKind,
    Stamp,
    Started,
    Task,
    Weights,
)
from screentest.v1 import jobs_pb2
from screentest_runner import protocol
from screentest_worker import outcome
from screentest_worker.consume import Action, decide
from screentest_worker.ledger import AfterRefusal, StopReason, after_refusal, stop_reason
from screentest_worker.outcome import Exit, Limit

STAMP = Stamp(at=datetime(2026, 1, 1, tzinfo=UTC), boot_id="boot", boottime_ns=1)
PROOF = Proof(
    kind=ProofKind.HANDOVER,
    clean=True,
    reason="",
    lock_held=False,
    lock_holders=(),
    processes=(),
    stamp=STAMP,
    method="proc",
)
STARTED = Started(runner=Process(pid=7, start_ticks=1), proof=PROOF, warm=False)
ADMITTED = Admitted(rung=0, rung_name="resident")
ENDED = AttemptEnded(outcome=Outcome(failure_class=None))
CLIP = Artifact(kind=ArtifactKind.CLIP, key="k", sha256="0" * 64, size_bytes=1, content_type="video/mp4")


def event(body: object, state: JobState, attempt: int = 1) -> JobEvent:
    return JobEvent(
        event_id="e",
        sweep_id="s",
        lane_id="l",
        job_id="j",
        attempt=attempt,
        state=state,
        stamp=STAMP,
        body=body,  # type: ignore[arg-type]
    )


def spec(**changes: object) -> JobSpec:
    plain = JobSpec(
        job_id="j",
        sweep_id="s",
        lane_id="stub",
        lane_title="Stub",
        task=Task.T2V,
        ordinal=1,
        prompt_index=0,
        prompt="p",
        seed=1,
        weights=Weights.MINIATURE,
        keyframe=None,
        lane_digest="d" * 64,
        host="local",
        device="cpu-0",
        width_px=96,
        height_px=64,
        num_frames=25,
        steps=2,
        fps=24.0,
        call=(),
        marks=(),
        limits=Limits(load_s=1, step_stall_s=1, attempt_s=1),
        rungs=("resident",),
        weights_repo="org/model",
        weights_revision="main",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


EVENTS = [
    event(ADMITTED, JobState.ADMITTED),
    event(STARTED, JobState.RUNNING),
    event(CancelRequested(by="me", started=True), JobState.RUNNING),
    event(CancelRequested(by="me", started=False), JobState.ADMITTED),
    event(ENDED, JobState.ENDED),
    event(Completed(clip=CLIP), JobState.COMPLETED),
    event(Cancelled(by="me"), JobState.CANCELLED),
    None,
]


class TestDeliveries:
    @pytest.mark.parametrize(
        ("last", "in_hand", "spooled", "action"),
        [
            (event(ADMITTED, JobState.ADMITTED), False, False, Action.START),
            (event(STARTED, JobState.RUNNING), False, False, Action.END_LOST),
            (event(STARTED, JobState.RUNNING), False, True, Action.DELIVER),
            (event(STARTED, JobState.RUNNING), True, False, Action.ADOPT),
            (event(CancelRequested(by="me", started=True), JobState.RUNNING), False, False, Action.END_CANCELLED),
            (event(CancelRequested(by="me", started=True), JobState.RUNNING), True, False, Action.ADOPT),
            (event(CancelRequested(by="me", started=False), JobState.ADMITTED), False, False, Action.ACKNOWLEDGE),
            (event(ENDED, JobState.ENDED), False, False, Action.ACKNOWLEDGE),
            (event(Completed(clip=CLIP), JobState.COMPLETED), False, True, Action.ACKNOWLEDGE),
            (None, False, False, Action.ACKNOWLEDGE),
        ],
    )
    def test_last_event_decides(self, last: JobEvent | None, in_hand: bool, spooled: bool, action: Action) -> None:
        assert decide(last, 1, in_hand=in_hand, spooled=spooled) is action

    def test_message_of_an_older_attempt_is_only_acknowledged(self) -> None:
        newer = event(ADMITTED, JobState.ADMITTED, attempt=2)
        assert decide(newer, 1, in_hand=False, spooled=False) is Action.ACKNOWLEDGE

    def test_message_ahead_of_its_history_is_left_alone(self) -> None:
        older = event(ENDED, JobState.ENDED, attempt=1)
        assert decide(older, 2, in_hand=False, spooled=False) is Action.LEAVE

    @given(st.sampled_from(EVENTS), st.integers(1, 3), st.booleans(), st.booleans())
    def test_nothing_starts_but_its_own_fresh_admission(
        self, last: JobEvent | None, attempt: int, in_hand: bool, spooled: bool
    ) -> None:
        if decide(last, attempt, in_hand=in_hand, spooled=spooled) is Action.START:
            assert last is not None
            assert (last.attempt, last.state, in_hand) == (attempt, JobState.ADMITTED, False)


class TestFences:
    def test_cancel_of_this_attempt_still_wants_its_end(self) -> None:
        asked = event(CancelRequested(by="me", started=True), JobState.RUNNING)
        assert after_refusal(asked, 1) is AfterRefusal.END_CANCELLED

    @pytest.mark.parametrize(
        "last",
        [
            None,
            event(ENDED, JobState.ENDED),
            event(ADMITTED, JobState.ADMITTED, attempt=2),
            event(Cancelled(by="me"), JobState.CANCELLED),
            event(CancelRequested(by="me", started=True), JobState.RUNNING, attempt=2),
            event(CancelRequested(by="me", started=False), JobState.ADMITTED),
        ],
    )
    def test_anything_newer_discards_our_result(self, last: JobEvent | None) -> None:
        assert after_refusal(last, 1) is AfterRefusal.DISCARD

    def test_started_attempt_goes_on_while_its_history_says_started(self) -> None:
        assert stop_reason(event(STARTED, JobState.RUNNING), 1) is None

    def test_started_attempt_stops_for_a_person(self) -> None:
        asked = event(CancelRequested(by="me", started=True), JobState.RUNNING)
        assert stop_reason(asked, 1) is StopReason.CANCELLED

    @pytest.mark.parametrize("last", [None, EVENTS[4], EVENTS[5], event(ADMITTED, JobState.ADMITTED, attempt=2)])
    def test_started_attempt_is_abandoned_when_somebody_else_ended_it(self, last: JobEvent | None) -> None:
        assert stop_reason(last, 1) is StopReason.ABANDONED


def test_supervisor_imports_no_heavy_or_privileged_library() -> None:
    heavy = ("torch", "grpc", "minio", "av", "numpy", "diffusers")
    code = f"import sys, screentest_worker.main; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


class TestOutcomes:
    @pytest.mark.parametrize("failure_class", list(protocol.FailureClass))
    def test_every_class_of_the_runner_is_one_of_the_contract(self, failure_class: protocol.FailureClass) -> None:
        found = outcome.from_reply(failure_class.value, "why", "denoising")
        assert found.failure_class == failure_class.value

    def test_every_failure_class_is_on_the_wire_and_has_a_fix(self) -> None:
        named = {item.value for item in FailureClass}
        wire_names = jobs_pb2.FailureClass.DESCRIPTOR.values_by_name
        on_the_wire = {name.removeprefix("FAILURE_CLASS_").lower() for name in wire_names}
        assert on_the_wire - {"unspecified"} == named == {item.value for item in protocol.FailureClass}
        # A cancel wants no fix; a refusal says its own, from what it was refused for.
        for failure_class in set(FailureClass) - {FailureClass.CANCELLED, FailureClass.PREFLIGHT_REFUSED}:
            found = outcome.failed(failure_class, "why", "denoising")
            assert found.fix and "\n" not in found.fix, failure_class

    def test_unknown_class_is_unclassified(self) -> None:
        assert outcome.from_reply("solar_flare", "why", "denoising").failure_class is FailureClass.UNCLASSIFIED

    def test_cause_is_one_line(self) -> None:
        found = outcome.from_reply("nan", "first\nsecond\t" + "x" * 1000, "denoising")
        assert "\n" not in found.cause
        assert len(found.cause) <= 400

    @pytest.mark.parametrize(
        ("exit_", "failure_class"),
        [
            (Exit(returncode=-9, oom_kills=1), FailureClass.HOST_OOM),
            (Exit(returncode=-9, oom_kills=0), FailureClass.CRASHED),
            (Exit(returncode=-9, oom_kills=None), FailureClass.CRASHED),
            (Exit(returncode=-11, oom_kills=1), FailureClass.CRASHED),
            (Exit(returncode=0, oom_kills=0), FailureClass.CRASHED),
        ],
    )
    def test_exit_is_host_oom_only_when_the_kernel_counted_one(self, exit_: Exit, failure_class: FailureClass) -> None:
        assert outcome.from_exit(exit_, "denoising").failure_class is failure_class

    @pytest.mark.parametrize(
        ("limit", "failure_class"),
        [
            (Limit.LOAD, FailureClass.TIMEOUT),
            (Limit.ATTEMPT, FailureClass.TIMEOUT),
            (Limit.STEP_STALL, FailureClass.STALLED),
        ],
    )
    def test_silence_is_a_stall_and_length_a_timeout(self, limit: Limit, failure_class: FailureClass) -> None:
        assert outcome.from_breach(limit, 5, "denoising").failure_class is failure_class

    @pytest.mark.parametrize("failure_class", [None, *FailureClass])
    def test_only_a_bad_request_leaves_the_runner_warm(self, failure_class: FailureClass | None) -> None:
        warm = {None, FailureClass.BAD_KWARGS, FailureClass.PREFLIGHT_REFUSED, FailureClass.CONDITIONING}
        assert outcome.keeps_runner(failure_class) is (failure_class in warm)

    def test_lost_attempt_blames_the_machine_and_names_the_phase(self) -> None:
        found = outcome.lost("denoising")
        assert found.infrastructure
        assert found.cause == "worker died during denoising"

    def test_unproven_device_says_who_holds_it(self) -> None:
        found = outcome.not_proven("gpu-0", 60, "lock held by pid 12 (ollama)")
        assert found.infrastructure
        assert "pid 12 (ollama)" in found.cause

    def test_cancelled_clip_does_not_count(self) -> None:
        facts = ClipFacts(codec="h264", pixel_format="yuv420p", frames=1, width_px=2, height_px=2, fps=1, duration_s=1)
        log = replace(CLIP, kind=ArtifactKind.LOG)
        found = outcome.as_cancelled(Outcome(failure_class=None, clip=facts, artifacts=(CLIP, log), phase="uploading"))
        assert (found.failure_class, found.clip, found.artifacts) == (FailureClass.CANCELLED, None, (log,))


class TestProbedClips:
    FACTS = ClipFacts(
        codec="h264", pixel_format="yuv420p", frames=25, width_px=96, height_px=64, fps=24.0, duration_s=1.04
    )

    def test_clip_as_asked_is_no_failure(self) -> None:
        assert outcome.from_probe(spec(), self.FACTS) is None

    def test_flags_are_no_failure(self) -> None:
        assert outcome.from_probe(spec(), replace(self.FACTS, flags=("black",))) is None

    @pytest.mark.parametrize(
        ("changes", "failure_class"),
        [
            ({"frames": 24}, FailureClass.TRUNCATED),
            ({"codec": "vp9"}, FailureClass.ENCODE),
            ({"pixel_format": "yuv444p"}, FailureClass.ENCODE),
            ({"width_px": 64}, FailureClass.ENCODE),
            ({"fps": 25.0}, FailureClass.ENCODE),
        ],
    )
    def test_clip_unlike_the_job_is_a_failure(self, changes: dict[str, object], failure_class: FailureClass) -> None:
        found = outcome.from_probe(spec(), replace(self.FACTS, **changes))  # type: ignore[arg-type]
        assert found is not None
        assert found.failure_class is failure_class
