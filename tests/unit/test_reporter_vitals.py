"""Vitals and energy of a sweep: only what was measured, joined by the boot clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from screentest.records import FailureClass, GpuInfo, GpuSample, HostSample, VitalsBatch
from screentest.windows import Window
from screentest_reporter import energy, energy_ledger, vitals
from screentest_reporter.energy import Meter, Method
from screentest_reporter.energy_ledger import Meters
from screentest_reporter.vitals import Reading, Recording
from tests import made_case_study
from tests.made_sweeps import BOOT_ID, History, failure, plan, record, specs, stamp

WINDOW = Window(boot_id=BOOT_ID, begin_ns=1000_000_000_000, end_ns=1010_000_000_000)
GPU = GpuInfo(uuid="GPU-a", index=0, name="card", memory_total_bytes=24, memory_kind="device")


def gpu_sample(second: float, **values: object) -> GpuSample:
    return GpuSample(boottime_ns=int((1000 + second) * 1e9), gpu_uuid="GPU-a", **values)  # type: ignore[arg-type]


def host_sample(second: float, cpu_percent: float) -> HostSample:
    return HostSample(boottime_ns=int((1000 + second) * 1e9), cpu_percent=cpu_percent, memory_used_bytes=2**30)


def batch(second: float, *gpu: GpuSample, host: tuple[HostSample, ...] = (), **changes: object) -> VitalsBatch:
    made = VitalsBatch(
        host="local",
        stamp=stamp(second),
        source="nvml" if gpu else "host",
        nvml_error=None if gpu else "NVML Shared Library Not Found",
        driver_version="580" if gpu else None,
        driver_is_stub=False,
        gpus=(GPU,) if gpu else (),
        gpu_samples=gpu,
        host_samples=host,
        rate_hz=1,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def recording(*batches: VitalsBatch) -> Recording:
    made = Recording(host="local")
    for one in batches:
        made.add(one)
    return made


def test_headline_has_the_words_of_the_case_study() -> None:
    samples = [
        gpu_sample(second, utilisation_percent=96.0, temperature_c=83.0, power_w=93.66) for second in range(0, 10)
    ]
    summary = vitals.summarise(recording(batch(9, *samples)), [WINDOW], ["gpu-0"])
    assert vitals.headline(summary) == (
        "10 vitals samples, 96% p95 utilization, 83C peak temperature, 93.66W peak power."
    )


def test_only_samples_within_the_attempts_count_and_of_their_boot() -> None:
    inside, outside = gpu_sample(5, power_w=50.0), gpu_sample(50, power_w=500.0)
    other_boot = batch(6, gpu_sample(6, power_w=900.0), stamp=stamp(6, boot_id="boot-b"))
    summary = vitals.summarise(recording(batch(50, inside, outside), other_boot), [WINDOW], ["gpu-0"])
    assert (summary.samples, summary.peak_power_w) == (1, 50.0)


def test_a_field_that_nobody_measured_is_unknown() -> None:
    summary = vitals.summarise(recording(batch(1, gpu_sample(1, utilisation_percent=50.0))), [WINDOW], ["gpu-0"])
    assert summary.peak_temperature_c is None
    assert "unknown peak temperature" in vitals.headline(summary)


def test_host_without_gpu_says_so_and_invents_nothing() -> None:
    samples = tuple(host_sample(second, cpu_percent=float(second)) for second in range(1, 10))
    summary = vitals.summarise(recording(batch(9, host=samples)), [WINDOW], ["gpu-0"])
    assert vitals.headline(summary) == (
        "9 vitals samples (no GPU sample: NVML Shared Library Not Found), host CPU p95 9%, "
        "temperature unknown, power unknown."
    )
    on_cpu = vitals.summarise(recording(batch(9, host=samples)), [WINDOW], ["cpu-0"])
    assert "(no GPU: the sweep ran on the CPU)" in vitals.headline(on_cpu)


def test_no_vitals_at_all_is_said() -> None:
    assert vitals.headline(vitals.summarise(recording(), [WINDOW], ["cpu-0"])).startswith("No vitals:")


def test_numbers_of_a_stub_driver_are_not_shown() -> None:
    fake = batch(1, gpu_sample(1, power_w=1.0, energy_mj=1), driver_is_stub=True)
    summary = vitals.summarise(recording(fake), [WINDOW], ["gpu-0"])
    assert (summary.samples, summary.peak_power_w) == (0, None)
    assert "stub" in vitals.headline(summary)


@pytest.mark.parametrize(("values", "expected"), [([], None), ([None], None), ([7.0], 7.0), (range(1, 101), 95)])
def test_p95_is_the_nearest_rank(values: list[float | None], expected: float | None) -> None:
    assert vitals.p95(values) == expected


def test_chart_breaks_where_samples_are_missing() -> None:
    (spec,) = specs(record([replace(plan("a", "A"), device="gpu-0")]))
    job = History(spec).start().wait(200).end(failure(FailureClass.CRASHED)).give_up(FailureClass.CRASHED).job
    samples = [gpu_sample(second, power_w=10.0) for second in [*range(0, 50), *range(150, 200)]]
    chart = vitals.chart(recording(batch(200, *samples)), [job], ["gpu-0"], ["failed"])
    assert chart is not None
    assert [curve.title for curve in chart.curves] == ["GPU 0 power"]  # no curve for what the driver lacks
    assert len(chart.curves[0].pieces) == 2
    assert [(span.begin_s, span.end_s, span.status) for span in chart.spans] == [(0, 200, "failed")]


def reading(second: float, energy_mj: int | None, power_w: float | None = None) -> Reading:
    return Reading(int((1000 + second) * 1e9), None, None, None, power_w, energy_mj)


def used_wh(readings: list[Reading]) -> float | None:
    found = Meter(readings).used(WINDOW)
    assert found is None or found.method is Method.COUNTER
    return found.wh if found else None


def test_energy_is_the_difference_of_the_counter_between_its_neighbours() -> None:
    readings = [reading(second, 1000 * second) for second in range(-1, 13)]
    assert used_wh(readings) == pytest.approx(10_000 / 3_600_000)
    between = [reading(second + 0.5, int(1000 * (second + 0.5))) for second in range(-1, 13)]
    assert used_wh(between) == pytest.approx(10_000 / 3_600_000)


@pytest.mark.parametrize(
    "readings",
    [
        [],
        [reading(second, None) for second in range(-1, 13)],
        [reading(second, 1000 * second) for second in range(2, 13)],
        [reading(second, 1000 * second) for second in (-60, 5, 12)],
        [reading(second, 1000 * (second if second < 5 else 0)) for second in range(-1, 13)],
        [reading(second, 9000 - 100 * second) for second in range(-1, 13)],
    ],
    ids=["no samples", "no counter", "begins too late", "hole at the edge", "driver reloaded", "runs backwards"],
)
def test_energy_is_unknown_rather_than_wrong(readings: list[Reading]) -> None:
    assert used_wh(readings) is None
    assert energy.wh_text(None) == "unknown"


def test_without_a_counter_the_power_samples_are_added_up_and_said_to_be() -> None:
    ramp = [reading(second, None, 10.0 * (second + 1)) for second in range(-1, 13)]
    found = Meter(ramp).used(WINDOW)
    assert found is not None and found.method is Method.POWER
    assert found.wh == pytest.approx(60.0 * 10 / 3600)  # 10 W at the beginning, 110 W at the end
    assert Meter([ramp[0], *ramp[7:]]).used(WINDOW) is None  # nobody knows what was in the hole
    assert Meter(ramp[:9]).used(WINDOW) is None


def test_an_attempt_pays_until_its_frames_are_decoded_and_failed_ones_pay_too() -> None:
    made = made_case_study.sweep()
    found = made_case_study.state(made)
    jobs = list(found.jobs.values())
    ledger = energy_ledger.of(jobs, {}, Meters({"local": made_case_study.recording(9600)}))
    wan, mochi = ledger.entries[0], ledger.entries[3]
    watts = 60.0
    assert wan.wh == pytest.approx(0.95 * 343.94 * watts / 3600, rel=1e-3)  # the last 5 % is encoding
    assert list(wan.by_phase) == ["loading", "encoding_prompt", "denoising", "decoding"]
    assert wan.by_phase["denoising"] == pytest.approx(0.75 * 343.94 * watts / 3600, rel=1e-3)
    assert (mochi.ended_as, mochi.made_a_clip) == ("oom_load", False)
    assert mochi.wh == pytest.approx(20.73 * watts / 3600, rel=1e-3)
    assert ledger.failed_wh is not None and ledger.measured_wh is not None
    assert 0 < ledger.failed_wh < ledger.measured_wh == ledger.total_wh
    assert ledger.lost_s == pytest.approx(sum(failed.seconds for failed in made_case_study.FAILED))
    assert ledger.waiting_wh is not None and ledger.waiting_wh > 0


def test_a_ledger_with_a_hole_has_no_total_and_says_what_it_knows() -> None:
    found = made_case_study.state(made_case_study.sweep())
    short = energy_ledger.of(list(found.jobs.values()), {}, Meters({"local": made_case_study.recording(600)}))
    assert short.unmeasured > 0
    assert (short.total_wh, short.waiting_wh) == (None, None)
    assert short.measured_wh is not None
