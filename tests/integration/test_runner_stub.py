"""The runner and the encoder as real processes, with the stub lane: every ending that needs no model."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from screentest.lanes import Lane, from_json
from screentest_runner.protocol import (
    Cancel,
    Decoded,
    Encode,
    Encoded,
    EncodeFailed,
    Failed,
    FailureClass,
    Loaded,
    LockBusy,
    Locked,
    Phase,
    PhaseChanged,
    Prepared,
    StepDone,
    Stop,
    Stopped,
)

from .runner_process import ChildProcess, RunnerProcess, lane_of

WORK_S = 0.4
RANDOM_WEIGHTS = "random weights"


def stub(lane_id: str = "stub", **call: Any) -> Lane:
    """The stub lane with other fixed keywords: quick, or broken."""
    content = lane_of(lane_id).content
    return from_json({**content, "call": {"work_s": WORK_S, **call}}, "test")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RunnerProcess]:
    """A runner of the quick stub that holds its lock and has loaded."""
    with RunnerProcess(stub(), tmp_path) as process:
        process.prepare()
        process.open()
        process.load()
        process.until(Loaded)
        yield process


@pytest.fixture
def encoder(tmp_path: Path) -> Iterator[ChildProcess]:
    with ChildProcess("screentest_runner.encode", "stub", tmp_path / "encoder.log") as process:
        yield process


def is_locked(path: Path) -> bool:
    """Whether some process holds the flock of this file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait_until_free(path: Path) -> None:
    deadline = time.monotonic() + 10
    while is_locked(path):
        assert time.monotonic() < deadline, f"{path} is still locked"
        time.sleep(0.01)


# --- a clip


def test_one_clip_reports_phases_steps_and_frames(runner: RunnerProcess) -> None:
    frames_path = runner.generate("a")
    decoded = runner.until(Decoded)
    assert (decoded.frames, decoded.height_px, decoded.width_px) == (25, 64, 96)
    assert frames_path.stat().st_size == 25 * 64 * 96 * 3
    assert [(step.step, step.steps) for step in runner.of(StepDone)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    of_a_clip = [phase for phase in Phase if phase is not Phase.JUDGING]
    assert [change.phase for change in runner.of(PhaseChanged)] == of_a_clip
    times = [change.at_boottime_ns for change in runner.of(PhaseChanged)]
    assert times == sorted(times)
    assert decoded.timings_s["denoising"] == pytest.approx(WORK_S, abs=0.2)
    assert decoded.peak_device_bytes is None  # a cpu has no device memory, so no number is invented


def test_same_seed_and_prompt_give_the_same_pixels(runner: RunnerProcess) -> None:
    pixels = []
    for attempt_id, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = runner.generate(attempt_id, seed=seed)
        runner.until(Decoded)
        pixels.append(path.read_bytes())
    assert pixels[0] == pixels[1] != pixels[2]


def test_warm_runner_loads_once(runner: RunnerProcess) -> None:
    for attempt_id in ("a", "b"):
        runner.generate(attempt_id)
        assert runner.until(Decoded).loads == 1
    assert len(runner.of(Loaded)) == 1


def test_keyframe_reaches_the_clip_as_rgb_of_its_size(tmp_path: Path) -> None:
    keyframe = tmp_path / "key.png"
    Image.new("RGBA", (400, 100), (250, 10, 20, 128)).save(keyframe)
    with RunnerProcess(stub("stub-i2v"), tmp_path) as runner:
        runner.open()
        runner.load()
        path = runner.generate("a", keyframe=keyframe)
        runner.until(Decoded)
    first = np.fromfile(path, np.uint8).reshape(25, 64, 96, 3)[0]
    assert tuple(first[0, 95]) == (250, 10, 20)


# --- cancel and stop


def test_cancel_ends_the_attempt_within_one_step_and_keeps_the_runner_warm(runner: RunnerProcess) -> None:
    runner.generate("a", work_s=20.0, steps=40)
    runner.until(StepDone)
    runner.send(Cancel(attempt_id="a"))
    failed = runner.until(Failed, fails=True)
    assert len(runner.of(StepDone)) <= 2  # the one before the Cancel, and the one that it ended in
    assert (failed.attempt_id, failed.failure_class) == ("a", FailureClass.CANCELLED)
    runner.generate("b")
    assert runner.until(Decoded).loads == 1


def test_cancel_that_overtakes_its_generate_counts(runner: RunnerProcess) -> None:
    runner.generate("a", work_s=1.0)
    runner.generate("b", work_s=60.0)
    runner.send(Cancel(attempt_id="b"))
    assert runner.until(Decoded).attempt_id == "a"
    assert runner.until(Failed, fails=True).failure_class is FailureClass.CANCELLED
    assert [step.attempt_id for step in runner.of(StepDone)] == ["a"] * 4


def test_cancel_of_another_attempt_changes_nothing(runner: RunnerProcess) -> None:
    runner.generate("a")
    runner.send(Cancel(attempt_id="b"))
    assert runner.until(Decoded).attempt_id == "a"


def test_stop_cancels_what_runs_and_exits_0(runner: RunnerProcess) -> None:
    runner.generate("a", work_s=60.0, steps=600)
    runner.until(StepDone)
    runner.send(Stop())
    assert runner.until(Failed, fails=True).failure_class is FailureClass.CANCELLED
    runner.until(Stopped)
    assert runner.process.wait(10) == 0


def test_end_of_stdin_ends_the_runner_in_mid_step(runner: RunnerProcess) -> None:
    runner.generate("a", work_s=60.0, steps=1)
    runner.until(PhaseChanged)
    assert runner.process.stdin is not None
    runner.process.stdin.close()
    assert runner.process.wait(10) == 0


def test_sigusr1_dumps_every_stack_to_the_log(runner: RunnerProcess, tmp_path: Path) -> None:
    runner.generate("a", work_s=60.0, steps=1)
    while runner.until(PhaseChanged).phase is not Phase.DENOISING:
        pass
    runner.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while "in generate" not in (log := (tmp_path / "runner.log").read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.02)
    assert runner.process.poll() is None


# --- the lock


def test_second_runner_on_one_device_gets_lock_busy_and_then_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "gpu.lock"
    first_folder, second_folder = tmp_path / "first", tmp_path / "second"
    first_folder.mkdir()
    second_folder.mkdir()
    with RunnerProcess(stub(), first_folder, lock) as first, RunnerProcess(stub(), second_folder, lock) as second:
        first.open()
        first.until(Locked)
        second.open()
        second.until(LockBusy)
        first.process.kill()
        first.process.wait()
        second.open()
        second.until(Locked)


def test_the_kernel_names_the_runner_as_holder_and_frees_the_lock_at_its_death(
    runner: RunnerProcess, tmp_path: Path
) -> None:
    inode = (tmp_path / "gpu.lock").stat().st_ino
    holders = [line.split()[4] for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
    assert holders == [str(runner.process.pid)]
    runner.process.kill()
    runner.process.wait()
    assert not is_locked(tmp_path / "gpu.lock")


def test_load_before_open_is_refused(tmp_path: Path) -> None:
    with RunnerProcess(stub(), tmp_path) as runner:
        runner.load()
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.INFRASTRUCTURE
    assert "not locked" in failed.message


# --- faults


@pytest.mark.parametrize(
    ("fault", "failure_class", "phase"),
    [
        ("denoise", FailureClass.UNCLASSIFIED, Phase.DENOISING),
        ("oom", FailureClass.OOM_DENOISE, Phase.DENOISING),
        ("nan", FailureClass.NAN, Phase.DENOISING),
        ("decode", FailureClass.UNCLASSIFIED, Phase.DECODING),
        ("oom_decode", FailureClass.OOM_DECODE, Phase.DECODING),
        ("truncated", FailureClass.TRUNCATED, Phase.DECODING),
        ("misspelt", FailureClass.BAD_KWARGS, Phase.DENOISING),
    ],
)
def test_fault_ends_the_attempt_with_its_class_and_phase(
    runner: RunnerProcess, fault: str, failure_class: FailureClass, phase: Phase
) -> None:
    path = runner.generate("a", fault=fault)
    failed = runner.until(Failed, fails=True)
    assert (failed.attempt_id, failed.failure_class, failed.phase) == ("a", failure_class, phase)
    assert not path.exists()


@pytest.mark.parametrize(
    ("fault", "failure_class"), [("load", FailureClass.UNCLASSIFIED), ("oom_load", FailureClass.OOM_LOAD)]
)
def test_fault_of_the_load_ends_the_load(tmp_path: Path, fault: str, failure_class: FailureClass) -> None:
    with RunnerProcess(stub(fault=fault), tmp_path) as runner:
        runner.open()
        runner.load(attempt_id="a")
        failed = runner.until(Failed, fails=True)
    assert (failed.attempt_id, failed.failure_class, failed.phase) == ("a", failure_class, Phase.LOADING)


def test_unknown_exception_is_unclassified_with_its_own_text_and_traceback(runner: RunnerProcess) -> None:
    runner.generate("a", fault="denoise")
    failed = runner.until(Failed, fails=True)
    assert failed.message == "RuntimeError: the stub was asked to fail in denoising"
    assert "Traceback" in failed.traceback


def test_fault_once_strikes_only_the_first_attempt(runner: RunnerProcess, tmp_path: Path) -> None:
    once = {"fault": "oom", "fault_once": str(tmp_path / "struck")}
    runner.generate("a", **once)
    runner.until(Failed, fails=True)
    runner.generate("b", **once)
    assert runner.until(Decoded).attempt_id == "b"


def test_crash_ends_the_process_and_its_pipe(runner: RunnerProcess, tmp_path: Path) -> None:
    runner.generate("a", fault="crash")
    while runner.next() is not None:
        pass
    assert runner.process.wait(10) == -signal.SIGSEGV
    assert "Segmentation fault" in (tmp_path / "runner.log").read_text()
    assert not is_locked(tmp_path / "gpu.lock")


def test_hang_is_deaf_to_cancel_and_sigterm(runner: RunnerProcess) -> None:
    runner.generate("a", fault="hang")
    while runner.until(PhaseChanged).phase is not Phase.DENOISING:
        pass
    time.sleep(0.2)
    runner.send(Cancel(attempt_id="a"))
    runner.process.terminate()
    time.sleep(0.5)
    assert runner.process.poll() is None
    runner.process.kill()
    assert runner.process.wait(10) == -signal.SIGKILL


def test_escaped_grandchild_keeps_the_lock_when_the_runner_dies(runner: RunnerProcess, tmp_path: Path) -> None:
    """A process that may still use the device must hold it: this is why the lock is never given back by hand."""
    runner.generate("a", fault="fork_escape", steps=1)
    runner.until(Decoded)
    escaped = [pid for pid in children_by_log(tmp_path / "runner.log") if pid != runner.process.pid]
    assert len(escaped) == 1
    runner.process.kill()
    runner.process.wait()
    try:
        assert is_locked(tmp_path / "gpu.lock")
    finally:
        os.kill(escaped[0], signal.SIGKILL)
    wait_until_free(tmp_path / "gpu.lock")


def children_by_log(log: Path) -> list[int]:
    """Processes whose stdout is this log file: the runner and everything it forked, whatever session they are in."""
    inode = log.stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "fd" / "1").stat().st_ino == inode:
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


def test_full_disk_is_said_with_the_size_that_was_needed(runner: RunnerProcess) -> None:
    """/dev/full answers every write with ENOSPC."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.fail("this test needs /dev/full; run it on Linux")
    (runner.folder / "a.raw").symlink_to(full)
    runner.generate("a")
    failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.INFRASTRUCTURE
    assert "no space left for" in failed.message


# --- other lanes and requests


def test_runner_serves_one_lane_only(runner: RunnerProcess) -> None:
    runner.lane = replace(stub("stub-i2v"))
    runner.prepare()
    failed = runner.until(Failed, fails=True)
    assert "serves lane 'stub', not 'stub-i2v'" in failed.message


def test_second_load_is_refused(runner: RunnerProcess) -> None:
    runner.load()
    assert "loaded already" in runner.until(Failed, fails=True).message


def test_unknown_adapter_names_the_known_ones(tmp_path: Path) -> None:
    content = lane_of("stub").content
    lane = from_json({**content, "pipeline": {**content["pipeline"], "adapter": "stab"}}, "test")
    with RunnerProcess(lane, tmp_path) as runner:
        runner.prepare()
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.LAYOUT
    assert "'stab'; there are" in failed.message
    assert failed.phase is Phase.PREPARING


def test_prepare_opens_no_lock(tmp_path: Path) -> None:
    with RunnerProcess(stub(), tmp_path) as runner:
        runner.prepare()
        assert runner.until(Prepared).versions["numpy"]
        assert not is_locked(tmp_path / "gpu.lock")


def test_line_that_is_no_message_ends_the_runner_loudly(tmp_path: Path) -> None:
    with RunnerProcess(stub(), tmp_path) as runner:
        assert runner.process.stdin is not None
        runner.process.stdin.write(b"hello\n")
        runner.process.stdin.flush()
        assert runner.process.wait(10) == 2
    assert "protocol error: not a JSON line" in (tmp_path / "runner.log").read_text()


# --- the encoder


def encode_request(folder: Path, **changes: Any) -> Encode:
    """25 frames of a red-to-blue ramp, 96x64 at 24 fps."""
    ramp = np.linspace(0, 255, 25).astype(np.uint8)
    frames = np.zeros((25, 64, 96, 3), np.uint8)
    frames[..., 0], frames[..., 2] = ramp[::-1, None, None], ramp[:, None, None]
    path = folder / "frames.raw"
    frames.tofile(path)
    request = Encode(
        frames_path=str(path),
        clip_path=str(folder / "clip.mp4"),
        frames=25,
        height_px=64,
        width_px=96,
        fps=24.0,
        title="A cathedral",
        comment={"sweep": "s", "job": "j", "model": "m", "seed": 7},
        random_weights=False,
    )
    return replace(request, **changes)


@pytest.mark.parametrize(("fps", "rate"), [(24.0, Fraction(24)), (7.0, Fraction(7)), (12.5, Fraction(25, 2))])
def test_clip_is_h264_with_exact_frames_size_and_rate(
    encoder: ChildProcess, tmp_path: Path, fps: float, rate: Fraction
) -> None:
    encoder.send(encode_request(tmp_path, fps=fps))
    encoded = encoder.until(Encoded)
    assert encoder.process.wait(10) == 0
    clip = Path(encoded.clip_path)
    assert encoded.bytes == clip.stat().st_size
    with av.open(clip) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (96, 64, rate)
        assert stream.duration * stream.time_base == 25 / rate
        assert sum(1 for _ in container.decode(stream)) == 25
        assert container.metadata["title"] == "A cathedral"
        assert json.loads(container.metadata["comment"])["seed"] == 7
    content = clip.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart: a browser plays it while it loads


def test_colours_survive_the_clip(encoder: ChildProcess, tmp_path: Path) -> None:
    """BT.709 is tagged: a reader that honours the tag gets the pixels back."""
    encoder.send(encode_request(tmp_path))
    with av.open(encoder.until(Encoded).clip_path) as container:
        first = next(container.decode(video=0))
        assert int(first.colorspace) == 1
        pixel = first.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()[32, 48]
    assert np.abs(pixel.astype(int) - (255, 0, 0)).max() <= 6


def test_comment_of_random_weights_begins_with_these_words(encoder: ChildProcess, tmp_path: Path) -> None:
    encoder.send(encode_request(tmp_path, random_weights=True))
    with av.open(encoder.until(Encoded).clip_path) as container:
        assert container.metadata["comment"].startswith(RANDOM_WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width_px": 95, "frames": 25}, "95x64 is odd"),
        ({"frames": 24}, "but 24 frames of 96x64 are"),
        ({"frames": 0}, "but 0 frames"),
        ({"frames_path": "nowhere.raw"}, "nowhere.raw"),
    ],
)
def test_what_is_no_clip_is_refused_and_leaves_no_file(
    encoder: ChildProcess, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    encoder.send(encode_request(tmp_path, **changes))
    assert says in encoder.until(EncodeFailed).message
    assert encoder.process.wait(10) == 1
    assert not list(tmp_path.glob("clip.mp4*"))


def test_encoder_without_a_request_ends_with_its_stdin(encoder: ChildProcess) -> None:
    assert encoder.process.stdin is not None
    encoder.process.stdin.close()
    assert encoder.process.wait(10) == 0
