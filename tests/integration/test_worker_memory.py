"""A worker before a device that has too little memory: told beforehand, and ended before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from screentest.kit.bus import Bus
from screentest.records import FailureClass, Preflight, Process, Started, Verdict, Weights
from tests.conftest import RunningServer

from .worker_rig import Rig, rig

pytestmark = pytest.mark.slow

GIB = 2**30
LEAN = '\n[[ladder]]\nname = "lean"\ndrop_text_encoders = true\n'
OLLAMA = Process(pid=4242, start_ticks=1, command="/usr/bin/ollama serve", device_memory_bytes=5 * GIB, foreign=True)


def clip(rung: str, peak_gib: int) -> dict[str, Any]:
    """What deploy/measured holds of a completed clip; the worker's device is a cpu, which shares its memory."""
    held = {"denoising": peak_gib * GIB}
    return {
        "lane_id": "stub",
        "rung": rung,
        "shape": {"width_px": 96, "height_px": 64, "num_frames": 25},
        "gpu": "Test GPU",
        "steps": 4,
        "clips": 1,
        "step_s": [0.05],
        "held_bytes": held,
        "tensor_bytes": held,
        "is_unified": True,
    }


@pytest.fixture
async def measured(bus: Bus, nats_server: RunningServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """The stub needs 9 GiB, 6 GiB on its second rung."""
    folder = tmp_path / "measured"
    folder.mkdir()
    clips = [clip("resident", 9), clip("lean", 6)]
    (folder / "test.json").write_text(json.dumps({"gpu": "Test GPU", "sources": [], "clips": clips}))
    settings = {"SCREENTEST_MEASURED_DIR": str(folder)}
    async with rig(bus, nats_server.url, tmp_path, more_rungs=LEAN, **settings) as found:
        yield found


async def test_job_begins_at_the_first_rung_that_fits(measured: Rig) -> None:
    await measured.breathing()
    spec = measured.spec(weights=Weights.FULL_RANDOM, rungs=("resident", "lean"))
    measured.free_bytes = 8 * GIB
    reply = await measured.command(Preflight(spec=spec))
    assert (reply.verdict, reply.first_rung, reply.memory_free_bytes) == (Verdict.FIXED, 1, 8 * GIB)
    assert "begins at rung 'lean': 8.0 GiB are free, 9.6 GiB needed for 'resident'" in reply.detail
    measured.free_bytes = 10 * GIB
    reply = await measured.command(Preflight(spec=spec))
    assert (reply.verdict, reply.first_rung, reply.detail) == (Verdict.OK, 0, "")


async def test_job_that_fits_at_no_rung_is_refused_with_what_it_needs(measured: Rig) -> None:
    await measured.breathing()
    measured.free_bytes, measured.foreign = 3 * GIB, (OLLAMA,)
    reply = await measured.command(Preflight(spec=measured.spec(weights=Weights.HUB)))
    assert (reply.verdict, reply.first_rung, reply.memory_free_bytes) == (Verdict.REFUSED, None, 3 * GIB)
    assert "needs 6.6 GiB even at rung 'lean', 3.0 GiB are free (ollama (pid 4242) holds 5.0 GiB)" in reply.detail
    assert reply.fix


async def test_preflight_answers_without_telemetry(measured: Rig) -> None:
    await measured.breathing()
    measured.telemetry_up = False
    reply = await measured.command(Preflight(spec=measured.spec(weights=Weights.HUB)), timeout_s=2.0)
    assert (reply.verdict, reply.first_rung, reply.memory_free_bytes) == (Verdict.OK, None, None)


async def test_attempt_that_cannot_fit_now_ends_as_oom_before_anything_is_loaded(measured: Rig) -> None:
    """Another process has taken memory since the job was admitted: the scheduler steps down, the runner never opens."""
    spec = measured.spec(weights=Weights.FULL_RANDOM, rungs=("resident", "lean"))
    measured.free_bytes, measured.foreign = 8 * GIB, (OLLAMA,)
    await measured.admit(spec)
    outcome = await measured.outcome(spec)
    assert outcome.failure_class is FailureClass.OOM_LOAD
    assert "preflight: rung 'resident' needs 9.6 GiB, 8.0 GiB are free (ollama (pid 4242)" in outcome.cause
    assert outcome.model_loads == 0
    assert not any(isinstance(event.body, Started) for event in await measured.history(spec))
    assert measured.registered == []
    await measured.admit(spec, 2, rung=1)
    assert (await measured.outcome(spec, 2)).failure_class is None


async def test_attempt_at_the_last_rung_that_cannot_fit_is_refused(measured: Rig) -> None:
    spec = measured.spec(weights=Weights.FULL_RANDOM, rungs=("resident", "lean"))
    measured.free_bytes = 4 * GIB
    await measured.admit(spec, rung=1)
    outcome = await measured.outcome(spec)
    assert outcome.failure_class is FailureClass.PREFLIGHT_REFUSED
    assert "needs 6.6 GiB, 4.0 GiB are free" in outcome.cause


async def test_miniatures_need_no_memory(measured: Rig) -> None:
    measured.free_bytes = GIB
    spec = measured.spec()
    await measured.admit(spec)
    assert (await measured.outcome(spec)).failure_class is None
