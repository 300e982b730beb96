"""What the services tell Prometheus, and that the dashboard asks for nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from screentest.errors import BadRequest, Unavailable
from screentest.kit import clock
from screentest.kit.metrics import Family, Metrics, Number
from screentest.records import Alive, GpuSample, Proof, ProofKind, VitalsBatch
from screentest_scheduler import metrics as scheduler_metrics
from screentest_scheduler.conducting import Conductor
from screentest_scheduler.ledger import Ledger
from screentest_telemetry import metrics as telemetry_metrics
from screentest_ui import ports
from screentest_worker import metrics as worker_metrics
from screentest_worker.spool import UNDELIVERED, Spool
from tests.contract.examples import VITALS
from tests.made_judgings import STRANGER
from tests.made_sweeps import BEGAN_AT
from tests.unit.test_ledger import busy_stream

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "screentest.json"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(metrics: Metrics) -> Samples:
    """Every sample by name and labels, as Prometheus reads the text."""
    text = (await asyncio.to_thread(generate_latest, metrics.registry)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def found(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def scheduler_samples(since_s: float = -1.0) -> Samples:
    metrics = Metrics()
    attempts = scheduler_metrics.AttemptNumbers(metrics, BEGAN_AT + timedelta(seconds=since_s), ["wan"])
    ledger = Ledger(attempt_ended=attempts.ended)
    for message in (*busy_stream().messages, *busy_stream().messages):  # heard twice: by our append and by the tail
        ledger.apply(message)
    places = (("local", "gpu-0"),)
    conductor = Conductor(None, None, ledger, None, places, stranger=STRANGER, ack_wait_s=30.0, drain_after_s=60.0)  # type: ignore[arg-type]
    metrics.at_scrape(lambda: scheduler_metrics.read(ledger, conductor, ["wan", "idle"]))
    return await scraped(metrics)


def vitals(**changes: object) -> VitalsBatch:
    """Of this moment, with one GPU."""
    [sample] = VITALS.gpu_samples[-1:]
    return replace(VITALS, stamp=clock.stamp(), gpu_samples=(replace(sample, **changes),))  # type: ignore[arg-type]


async def telemetry_samples(batch: VitalsBatch) -> Samples:
    metrics, newest = Metrics(), telemetry_metrics.Newest("local")
    proof = Proof(
        kind=ProofKind.HANDOVER,
        clean=False,
        reason="held",
        lock_held=True,
        lock_holders=(),
        processes=(),
        stamp=clock.stamp(),
        method="proc",
    )
    newest.take_proof("gpu-1", proof)
    newest.take_batch(batch)
    metrics.at_scrape(newest.read)
    return await scraped(metrics)


async def worker_samples(tmp_path: Path) -> Samples:
    (tmp_path / UNDELIVERED).mkdir()
    (tmp_path / UNDELIVERED / "job-1.mp4").write_bytes(b"clip")
    (tmp_path / "job-2").mkdir()
    (tmp_path / "job-2" / "clip.mp4").write_bytes(b"another")
    alive = Alive(
        host="local",
        device="cpu-0",
        lane_id="stub",
        lane_digest="d",
        worker_id="w",
        runner=clock.process_of(os.getpid()),
        finishing_job_ids=("job-2",),
        stamp=clock.stamp(),
    )
    metrics = Metrics()
    metrics.at_scrape(worker_metrics.reader(lambda: alive, Spool(tmp_path)))
    return await scraped(metrics)


async def test_scheduler_tells_queue_attempts_and_phases() -> None:
    samples = await scheduler_samples()
    assert found(samples, "screentest_jobs", lane="wan", status="queued") == 3  # two of the later sweep, one retry
    assert found(samples, "screentest_jobs", lane="wan", status="completed") == 1
    assert found(samples, "screentest_jobs", lane="idle", status="queued") == 0
    assert found(samples, "screentest_attempts_total", lane="wan", **{"class": "completed"}) == 1
    assert found(samples, "screentest_attempts_total", lane="wan", **{"class": "nan"}) == 1
    # From the start, or the first that stalls would be no increase.
    assert found(samples, "screentest_attempts_total", lane="wan", **{"class": "stalled"}) == 0
    assert found(samples, "screentest_device_drained", host="local", device="gpu-0") == 1
    assert found(samples, "screentest_lane_worker_alive", lane="wan", host="local", device="gpu-0") == 0
    counts = {labels: value for (name, labels), value in samples.items() if name == "screentest_phase_seconds_count"}
    assert counts
    assert set(counts.values()) == {1.0}


async def test_attempts_of_an_earlier_scheduler_are_not_counted_again() -> None:
    samples = await scheduler_samples(since_s=10_000.0)
    attempts = [value for (name, _), value in samples.items() if name == "screentest_attempts_total"]
    assert attempts
    assert not any(attempts)
    assert not any(name.startswith("screentest_phase") for name, _ in samples)


async def test_telemetry_tells_what_the_driver_gives_and_leaves_out_the_rest() -> None:
    gpu = {"host": "local", "device": "gpu-1", "uuid": "GPU-1"}
    samples = await telemetry_samples(vitals(energy_mj=5_000, power_w=None, utilisation_percent=50.0))
    assert found(samples, "screentest_gpu_energy_joules_total", **gpu) == 5.0
    assert found(samples, "screentest_gpu_utilisation_ratio", **gpu) == 0.5
    assert found(samples, "screentest_device_clean", host="local", device="gpu-1", proof="handover") == 0
    assert not any(name == "screentest_gpu_power_watts" for name, _ in samples)


async def test_stale_vitals_have_no_series() -> None:
    samples = await telemetry_samples(replace(vitals(), stamp=replace(clock.stamp(), boottime_ns=0)))
    assert not any(name.startswith(("screentest_gpu", "screentest_host")) for name, _ in samples)


async def test_worker_tells_its_spool_and_its_runner(tmp_path: Path) -> None:
    samples = await worker_samples(tmp_path)
    worker = {"lane": "stub", "host": "local", "device": "cpu-0"}
    assert found(samples, "screentest_spool_bytes", **worker) == len(b"clip" + b"another")
    assert found(samples, "screentest_spool_attempts", **worker) == 1
    assert found(samples, "screentest_undelivered_clips", **worker) == 1
    assert found(samples, "screentest_worker_finishing_attempts", **worker) == 1
    resident = found(samples, "screentest_runner_memory_bytes", **worker)
    assert resident is not None
    assert resident > 1 << 20


# ---- the dashboard


def queries() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


async def test_dashboard_asks_only_for_names_and_labels_that_are_exported(tmp_path: Path) -> None:
    complete = vitals(
        **{
            name: 1
            for name in GpuSample.__dataclass_fields__
            if name.endswith(("_percent", "_bytes", "_w", "_mj", "_c"))
        }
    )
    samples = {
        **await scheduler_samples(),
        **await telemetry_samples(complete),
        **await worker_samples(tmp_path),
    }
    names = {name for name, _ in samples}
    # Prometheus adds the last two, by our targets file.
    labels = {label for _, pairs in samples for label, _ in pairs} | {"service", "instance"}
    asked = list(queries())
    assert len(asked) > 20
    for query in asked:
        used = set(re.findall(r"\b(?:screentest|process)_[a-z_]+", query))
        assert used, query
        assert used <= names, (query, used - names)
        grouped = [name for group in re.findall(r"\bby \(([^)]*)\)", query) for name in group.split(", ")]
        matched = re.findall(r"[{,]\s*([a-z_]+)\s*[=!]~?", query)
        assert {*grouped, *matched} <= labels, query


async def test_every_family_is_on_the_dashboard(tmp_path: Path) -> None:
    families = {
        value.name
        for module in (scheduler_metrics, telemetry_metrics, worker_metrics)
        for value in vars(module).values()
        if isinstance(value, Family)
    }
    left_out = {family for family in families if not any(family in query for query in queries())}
    assert left_out == {
        "screentest_device_proof_timestamp_seconds",  # for alerts
        "screentest_spool_attempts",
        "screentest_runner_alive",
        "screentest_worker_on_device",
        "screentest_worker_finishing_attempts",
    }


# ---- over HTTP


async def test_served_numbers_are_read_in_the_service_s_own_loop() -> None:
    metrics, loop = Metrics(), asyncio.get_running_loop()
    family = Family(name="screentest_test", help="For this test.", labels=("kind",))

    def read() -> Iterator[Number]:
        is_here = asyncio.get_running_loop() is loop  # raises in any other thread
        yield Number(family=family, labels={"kind": "known"}, value=is_here)
        yield Number(family=family, labels={"kind": "unknown"}, value=None)

    metrics.at_scrape(read)
    address = f"127.0.0.1:{ports.choose(1)[0]}"
    with metrics.served(address):
        text = await asyncio.to_thread(fetch, address)
        with pytest.raises(Unavailable, match="SCREENTEST_METRICS_ADDRESS"), Metrics().served(address):
            pass
    assert 'screentest_test{kind="known"} 1.0' in text
    assert "unknown" not in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(fetch, address)


async def test_without_an_address_nothing_listens_and_a_wrong_one_is_told() -> None:
    with Metrics().served(""):
        pass
    with pytest.raises(BadRequest, match=r"127\.0\.0\.1:9464"), Metrics().served("9464"):
        pass


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        return str(response.read().decode())
