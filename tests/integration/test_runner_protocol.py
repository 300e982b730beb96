"""Every message of the runner protocol survives its line, and a foreign line is refused."""

from __future__ import annotations

from typing import Any

import pytest

from screentest_runner import protocol
from screentest_runner.protocol import MESSAGES, FailureClass, Message, Phase, ProtocolError, parse, to_line

LANE: dict[str, Any] = {"id": "stub", "call": {"work_s": 2.0}}
EXAMPLES: dict[str, Message] = {
    "prepare": protocol.Prepare(lane=LANE),
    "open": protocol.Open(lock_fd=7, device="cuda:0"),
    "load": protocol.Load(lane=LANE, weights="miniature", rung={"name": "resident"}, cache_dir="cache"),
    "generate": protocol.Generate(attempt_id="a", call={"prompt": "é"}, seed=1, frames_path="f", fps=23.976),
    "judge": protocol.Judge(
        attempt_id="a",
        purpose="controls",
        media_path="clip.mp4",
        questions=[{"id": "child", "question": "Is a child visible?"}],
        windows=8,
        asked={"frames": 25, "keyframe_path": None},
        judgement_path="j",
        other_questions=[],
        other_windows=8,
    ),
    "cancel": protocol.Cancel(attempt_id="a"),
    "stop": protocol.Stop(),
    "prepared": protocol.Prepared(versions={"torch": "2.13.0"}, import_s=3.5),
    "locked": protocol.Locked(),
    "lock_busy": protocol.LockBusy(),
    "phase_changed": protocol.PhaseChanged(attempt_id=None, phase=Phase.LOADING, at_boottime_ns=1),
    "loaded": protocol.Loaded(load_s=1.0, loads=1, versions={}, rss_bytes=5),
    "step_done": protocol.StepDone(attempt_id="a", step=1, steps=2, step_s=0.5),
    "decoded": protocol.Decoded(
        attempt_id="a",
        frames=25,
        height_px=64,
        width_px=96,
        timings_s={"denoising": 1.5},
        versions={},
        finite_fraction=1.0,
        loads=1,
    ),
    "judged": protocol.Judged(
        attempt_id="a",
        judgement_path="j",
        method="embedding",
        calls=16,
        badges=["uncalibrated"],
        timings_s={"judging": 1.5},
        versions={},
        loads=1,
        presence=0.5,
    ),
    "failed": protocol.Failed(
        attempt_id=None, failure_class=FailureClass.OOM_LOAD, phase=Phase.LOADING, message="CUDA out of memory"
    ),
    "stopped": protocol.Stopped(),
    "encode": protocol.Encode(
        frames_path="f",
        clip_path="c",
        frames=25,
        height_px=64,
        width_px=96,
        fps=24.0,
        title="t",
        comment={"seed": 1},
        random_weights=True,
    ),
    "encode_progress": protocol.EncodeProgress(done=1, frames=25),
    "encoded": protocol.Encoded(clip_path="c", bytes=10, sha256="ab", encode_s=0.1),
    "encode_failed": protocol.EncodeFailed(message="odd"),
}


def test_there_is_an_example_of_every_message() -> None:
    assert EXAMPLES.keys() == MESSAGES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_message_survives_its_line(name: str) -> None:
    line = to_line(EXAMPLES[name])
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse(line) == EXAMPLES[name]


def test_lines_are_stable() -> None:
    """Both sides are of one commit, but a log must stay readable: this is what a line looks like."""
    assert to_line(EXAMPLES["step_done"]) == b'{"kind":"step_done","attempt_id":"a","step":1,"steps":2,"step_s":0.5}\n'
    assert to_line(EXAMPLES["failed"]) == (
        b'{"kind":"failed","attempt_id":null,"failure_class":"oom_load","phase":"loading",'
        b'"message":"CUDA out of memory","traceback":"","peak_device_bytes":null,"peak_memory_by_phase":null}\n'
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"Loading pipeline components...\n", "not a JSON line"),
        (b"[1]\n", "no message of this protocol"),
        (b'{"kind":"pause"}\n', "no message of this protocol"),
        (b'{"kind":"cancel"}\n', "cancel: .*attempt_id"),
        (b'{"kind":"cancel","attempt_id":5}\n', "cancel.attempt_id: wants str, got 5"),
        (b'{"kind":"cancel","attempt_id":"a","why":"x"}\n', "cancel: unknown field 'why'"),
        (b'{"kind":"open","lock_fd":true,"device":"cpu"}\n', "open.lock_fd: wants int"),
        (
            b'{"kind":"failed","attempt_id":null,"failure_class":"bad luck","phase":"loading","message":""}\n',
            "failed.failure_class: 'bad luck' is none of",
        ),
    ],
)
def test_foreign_line_is_refused(line: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        parse(line)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_line(protocol.StepDone(attempt_id="a", step=1, steps=1, step_s=float("nan")))
