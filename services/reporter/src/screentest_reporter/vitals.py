"""Vitals of a sweep: which samples belong to it, and what they come to. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from screentest.records import Attempt, GpuSample, HostSample, Job, VitalsBatch
from screentest.table import number_text
from screentest.windows import Window, attempt_window, sweep_windows

GIB = 2**30
N = TypeVar("N", int, float)
STUB_NOTE = "the driver calls itself a stub: its numbers are no measurements and are not shown"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the report needs of one GPU sample; None = the driver does not give it."""

    boottime_ns: int
    utilisation_percent: float | None
    memory_used_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    energy_mj: int | None


@dataclass(slots=True, kw_only=True)
class Recording:
    """The vitals of one host, batch by batch. ``gpus``: (boot id, GPU index) to its readings in time order."""

    host: str
    gpus: dict[tuple[str, int], list[Reading]] = field(default_factory=dict)
    hosts: dict[str, list[HostSample]] = field(default_factory=dict)
    newest: VitalsBatch | None = None
    has_stub: bool = False

    def add(self, batch: VitalsBatch) -> None:
        self.newest = batch
        self.has_stub = self.has_stub or batch.driver_is_stub
        boot_id = batch.stamp.boot_id
        index_of = {gpu.uuid: gpu.index for gpu in batch.gpus}
        for sample in batch.gpu_samples:
            if sample.gpu_uuid in index_of:
                self.gpus.setdefault((boot_id, index_of[sample.gpu_uuid]), []).append(_reading(sample))
        self.hosts.setdefault(boot_id, []).extend(batch.host_samples)

    def readings(self, index: int, window: Window) -> Sequence[Reading]:
        return _inside(self.gpus.get((window.boot_id, index), []), window)

    def host_samples(self, window: Window) -> Sequence[HostSample]:
        return _inside(self.hosts.get(window.boot_id, []), window)


def _reading(sample: GpuSample) -> Reading:
    return Reading(
        sample.boottime_ns,
        sample.utilisation_percent,
        sample.memory_used_bytes,
        sample.temperature_c,
        sample.power_w,
        sample.energy_mj,
    )


S = TypeVar("S", Reading, HostSample)


def _inside(samples: Sequence[S], window: Window) -> Sequence[S]:
    begin = bisect_left(samples, window.begin_ns, key=lambda sample: sample.boottime_ns)
    end = bisect_right(samples, window.end_ns, key=lambda sample: sample.boottime_ns)
    return samples[begin:end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """``source`` "gpu", "host" or "none"; ``note`` says why it is not the GPU. A number that nobody measured is None.

    ``p95_utilisation_percent`` is of the GPU, or of the host's CPU (all cores together) where source is "host".
    """

    source: str
    samples: int
    p95_utilisation_percent: float | None = None
    peak_temperature_c: float | None = None
    peak_power_w: float | None = None
    peak_memory_bytes: int | None = None
    note: str = ""


def gpu_index(device: str) -> int | None:
    """``gpu-1`` is 1, by NVML's count; None for any other device."""
    kind, _, number = device.partition("-")
    return int(number) if kind == "gpu" and number.isdigit() else None


def summarise(recording: Recording, windows: Sequence[Window], devices: Iterable[str]) -> Summary:
    """Of the GPUs the sweep ran on; of the host where it ran on none, or where NVML gave nothing."""
    indices = sorted({index for device in devices if (index := gpu_index(device)) is not None})
    if recording.has_stub and indices:
        return Summary(source="none", samples=0, note=STUB_NOTE)
    readings = [r for window in windows for index in indices for r in recording.readings(index, window)]
    if readings:
        return _gpu_summary(readings)
    samples = [sample for window in windows for sample in recording.host_samples(window)]
    return _host_summary(samples, _why_no_gpu(recording, bool(indices)))


def _gpu_summary(readings: Sequence[Reading]) -> Summary:
    return Summary(
        source="gpu",
        samples=len(readings),
        p95_utilisation_percent=p95(r.utilisation_percent for r in readings),
        peak_temperature_c=_peak(r.temperature_c for r in readings),
        peak_power_w=_peak(r.power_w for r in readings),
        peak_memory_bytes=_peak(r.memory_used_bytes for r in readings),
    )


def _host_summary(samples: Sequence[HostSample], note: str) -> Summary:
    if not samples:
        return Summary(source="none", samples=0, note="no vitals were recorded while its attempts ran")
    return Summary(
        source="host",
        samples=len(samples),
        p95_utilisation_percent=p95(sample.cpu_percent for sample in samples),
        peak_memory_bytes=_peak(sample.memory_used_bytes for sample in samples),
        note=note,
    )


def _why_no_gpu(recording: Recording, wanted_gpu: bool) -> str:
    if not wanted_gpu:
        return "the sweep ran on the CPU"
    error = recording.newest.nvml_error if recording.newest else None
    return f"no GPU sample: {error}" if error else "no GPU sample of the sweep's device"


def p95(values: Iterable[float | None]) -> float | None:
    """The smallest value that at least 95 % of the known values do not exceed (nearest rank); None without any."""
    known = sorted(value for value in values if value is not None)
    return known[math.ceil(0.95 * len(known)) - 1] if known else None


def _peak(values: Iterable[N | None]) -> N | None:
    return max((value for value in values if value is not None), default=None)


def headline(summary: Summary) -> str:
    """``292 vitals samples, 96% p95 utilization, 83C peak temperature, 93.66W peak power.``"""
    if summary.source == "none":
        return f"No vitals: {summary.note}."
    known = f"{summary.samples} vitals samples"
    if summary.source == "host":
        note = summary.note if summary.note.startswith("no GPU") else f"no GPU: {summary.note}"
        cpu = _with_unit(summary.p95_utilisation_percent, "%", 0)
        return f"{known} ({note}), host CPU p95 {cpu}, temperature unknown, power unknown."
    utilisation = _with_unit(summary.p95_utilisation_percent, "%", 0)
    temperature = _with_unit(summary.peak_temperature_c, "C", 0)
    power = _with_unit(summary.peak_power_w, "W", 2)
    return f"{known}, {utilisation} p95 utilization, {temperature} peak temperature, {power} peak power."


def _with_unit(value: float | None, unit: str, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"


# ---- the chart

# Wide enough for a page, few enough to keep it small: a bucket shows its peak.
BUCKETS = 480


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """``pieces``: (seconds since the window began, value). A gap in the samples begins a new piece.

    ``quantity``: utilisation, memory, temperature or power; curves of one quantity share a scale.
    """

    title: str
    quantity: str
    unit: str
    pieces: tuple[tuple[tuple[float, float], ...], ...]
    peak_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One phase of an attempt on the time axis."""

    phase: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One attempt on the time axis. ``stretches``: its phases in order, empty where none was told."""

    job_id: str
    label: str
    device: str
    status: str
    begin_s: float
    end_s: float
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """The last sitting in which attempts ran; ``note`` says when there were others."""

    duration_s: float
    curves: tuple[Curve, ...]
    spans: tuple[Span, ...]
    note: str = ""


def chart(recording: Recording, jobs: Sequence[Job], devices: Iterable[str], statuses: Sequence[str]) -> Chart | None:
    """None when nothing was recorded. ``statuses``: of each job, for its spans."""
    windows = sweep_windows(jobs)
    indices = [index for device in sorted(set(devices)) if (index := gpu_index(device)) is not None]
    if not windows or (recording.has_stub and indices):
        return None
    window = windows[-1]
    curves = [curve for index in indices for curve in _gpu_curves(recording.readings(index, window), index, window)]
    curves = curves or _host_curves(recording.host_samples(window), window)
    if not curves:
        return None
    spans = [
        _span(job, attempt, status, found, window)
        for job, status in zip(jobs, statuses, strict=True)
        for attempt in job.attempts
        if (found := attempt_window(attempt)) is not None and window.covers(found)
    ]
    several = "The sweep ran in several sittings (a reboot, or a retry long after); the chart shows the last one."
    note = several if len(windows) > 1 else ""
    return Chart(
        duration_s=(window.end_ns - window.begin_ns) / 1e9, curves=tuple(curves), spans=tuple(spans), note=note
    )


def _span(job: Job, attempt: Attempt, status: str, found: Window, window: Window) -> Span:
    begin_s, end_s = _seconds_into(window, found.begin_ns), _seconds_into(window, found.end_ns)
    phases = attempt.outcome.phases if attempt.outcome else ()
    starts = [(phase.phase, _seconds_into(window, phase.started_boottime_ns), phase.seconds) for phase in phases]
    return Span(
        job_id=job.spec.job_id,
        label=job.spec.lane_title,
        device=job.spec.device,
        status=status,
        begin_s=begin_s,
        end_s=end_s,
        stretches=tuple(
            Stretch(phase=phase, begin_s=start_s, end_s=min(start_s + seconds, end_s))
            for phase, start_s, seconds in starts
            if begin_s <= start_s <= end_s
        ),
    )


def _seconds_into(window: Window, at_ns: int) -> float:
    return (at_ns - window.begin_ns) / 1e9


def _gpu_curves(readings: Sequence[Reading], index: int, window: Window) -> list[Curve]:
    memory = [None if r.memory_used_bytes is None else r.memory_used_bytes / GIB for r in readings]
    columns: tuple[tuple[str, str, Sequence[float | None]], ...] = (
        ("utilisation", "%", [r.utilisation_percent for r in readings]),
        ("memory", "GiB", memory),
        ("temperature", "°C", [r.temperature_c for r in readings]),
        ("power", "W", [r.power_w for r in readings]),
    )
    times = [r.boottime_ns for r in readings]
    found = [
        _curve(f"GPU {index} {quantity}", quantity, unit, list(zip(times, values, strict=True)), window)
        for quantity, unit, values in columns
    ]
    return [curve for curve in found if curve is not None]


def _host_curves(samples: Sequence[HostSample], window: Window) -> list[Curve]:
    cpu = [(s.boottime_ns, s.cpu_percent) for s in samples]
    memory = [(s.boottime_ns, None if s.memory_used_bytes is None else s.memory_used_bytes / GIB) for s in samples]
    found = [
        _curve("Host CPU", "utilisation", "%", cpu, window),
        _curve("Host memory", "memory", "GiB", memory, window),
    ]
    return [curve for curve in found if curve is not None]


def _curve(
    title: str, quantity: str, unit: str, values: Sequence[tuple[int, float | None]], window: Window
) -> Curve | None:
    """None where no value is known: a driver without that field has no curve, not one at zero."""
    width_ns = max((window.end_ns - window.begin_ns) / BUCKETS, 1.0)
    peaks: dict[int, float] = {}
    for at_ns, value in values:
        if value is not None:
            bucket = int((at_ns - window.begin_ns) / width_ns)
            peaks[bucket] = max(value, peaks.get(bucket, value))
    if not peaks:
        return None
    peak_text = f"{number_text(max(peaks.values()))} {unit}"
    return Curve(title=title, quantity=quantity, unit=unit, pieces=_pieces(peaks, width_ns), peak_text=peak_text)


def _pieces(peaks: Mapping[int, float], width_ns: float) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Sparse sampling leaves empty buckets between samples; only a hole of several usual distances is a gap."""
    buckets = sorted(peaks)
    distances = sorted(later - earlier for earlier, later in pairwise(buckets))
    usual = distances[len(distances) // 2] if distances else 1
    pieces: list[list[tuple[float, float]]] = [[]]
    for number, bucket in enumerate(buckets):
        if number and bucket - buckets[number - 1] > 4 * usual:
            pieces.append([])
        pieces[-1].append((bucket * width_ns / 1e9, peaks[bucket]))
    return tuple(tuple(piece) for piece in pieces)
