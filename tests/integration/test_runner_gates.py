"""Gates of the runner: what would end as a clip of something else fails early, with the right class and a hint."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from screentest_runner.protocol import Failed, FailureClass, Loaded, Phase, StepDone

from .runner_process import RUNNER_SOURCE, RunnerProcess, env_python, lane_of

pytestmark = pytest.mark.slow


def verdict(case: str) -> str:
    result = subprocess.run(
        [env_python("diffusers"), Path(__file__).with_name("gates_in_one_process.py"), case],
        env={**os.environ, "PYTHONPATH": str(RUNNER_SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("conv3d:sound", "passed"),
        ("conv3d:scaled", "infrastructure conv3d in bfloat16 is off by 1"),  # by 9 to 11 %
        ("conv3d:not-a-number", "infrastructure conv3d in bfloat16 is off by nan%"),
        ("conv3d:last-row-lost", "infrastructure conv3d in bfloat16 is off by"),
        ("embeddings:sound", "passed"),
        ("embeddings:zero", "conditioning the embeddings of text_encoder are all zero"),
        ("embeddings:zero-again", "conditioning the embeddings of text_encoder are all zero"),
        ("embeddings:same", "conditioning the embeddings of text_encoder are the same for two prompts"),
        ("embeddings:not-finite", "conditioning the embeddings of text_encoder are not finite"),
    ],
)
def test_gate(case: str, found: str) -> None:
    assert verdict(case).startswith(found), verdict(case)


@pytest.fixture
def diffusion_forcing(tmp_path: Path) -> RunnerProcess:
    return RunnerProcess(lane_of("skyreels-v2-df-14b-540p"), tmp_path)


def test_call_without_what_the_lane_always_passes_is_refused(diffusion_forcing: RunnerProcess) -> None:
    """huggingface/diffusers#13609: a warm pipeline keeps the block size of the call before, and frames of noise."""
    with diffusion_forcing as runner:
        runner.open()
        runner.load()
        runner.until(Loaded)
        runner.generate("a", leave_out=("causal_block_size",))
        failed = runner.until(Failed, fails=True)
    assert failed.failure_class is FailureClass.BAD_KWARGS
    assert "the call lacks causal_block_size" in failed.message


def test_attempt_that_cannot_end_in_time_ends_after_two_steps(tmp_path: Path) -> None:
    with RunnerProcess(lane_of("mochi-1-preview"), tmp_path) as runner:
        runner.open()
        runner.load()
        runner.until(Loaded)
        runner.generate("slow", limit_s=60.0, num_inference_steps=100_000)
        failed = runner.until(Failed, fails=True)
        steps = len(runner.of(StepDone))
        runner.generate("warm", limit_s=600.0)
        runner.until(StepDone)
    assert (failed.failure_class, failed.phase) == (FailureClass.TIMEOUT, Phase.DENOISING)
    assert steps == 2
    assert "the limit is 60 s: stopped after step 2; ask for fewer frames or steps" in failed.message
