"""Vitals as curves and figures: batches of the contract to rows of a chart. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise

from screentest.folding import status
from screentest.records import GpuSample, HostSample, Job, JobState, VitalsBatch
from screentest_ui.panel_text import shortened

GIB = 2**30
MOST_TITLE = 28  # characters of a lane's title beside its bars: the seed behind it must stay readable
GAP_S = 5.0  # telemetry publishes each second: a longer silence is a gap in the curve, not a line across it


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One quantity of the page. ``source``: "gpu" or "host"; ``ceiling``: the axis's end where the unit has one."""

    name: str
    unit: str
    source: str
    ceiling: float | None = None


UTILISATION = Curve(name="GPU utilisation", unit="%", source="gpu", ceiling=100)
MEMORY = Curve(name="GPU memory", unit="GiB", source="gpu")
TEMPERATURE = Curve(name="Temperature", unit="°C", source="gpu")
POWER = Curve(name="Power", unit="W", source="gpu")
CPU = Curve(name="Host CPU", unit="%", source="host", ceiling=100)
HOST_MEMORY = Curve(name="Host memory", unit="GiB", source="host")

GPU_CURVES = (UTILISATION, POWER, TEMPERATURE, MEMORY)
HOST_CURVES = (CPU, HOST_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One reading on a curve; ``value`` None = the driver did not give it, or nothing was measured there."""

    at: datetime
    series: str
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The figures above a curve; None = nothing was measured."""

    last: float | None
    p95: float | None
    peak: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One attempt on the time axis; ``ended_at`` is now for one that runs."""

    job: str
    attempt: int
    status: str
    started_at: datetime
    ended_at: datetime


def spans(jobs: Iterable[Job], now: datetime) -> tuple[Span, ...]:
    """Every started attempt, in the order in which they began."""
    listed = tuple(jobs)
    with_prompt = len({job.spec.prompt_index for job in listed}) > 1
    found = [
        Span(
            job=_cell_words(job, with_prompt=with_prompt),
            attempt=attempt.attempt,
            status=status(job.state) if attempt is job.attempts[-1] else "tried again",
            started_at=attempt.started.at,
            ended_at=attempt.ended.at if attempt.ended is not None else now,
        )
        for job in listed
        for attempt in job.attempts
        if attempt.started is not None and (attempt.ended is not None or job.state is JobState.RUNNING)
    ]
    return tuple(sorted(found, key=lambda span: span.started_at))


def _cell_words(job: Job, *, with_prompt: bool) -> str:
    """``Wan 2.1 T2V 1.3B, seed 42``; only the title gives way where it is long. Cells that differ read differently."""
    prompt = f", prompt {job.spec.prompt_index + 1}" if with_prompt else ""
    return f"{shortened(job.spec.lane_title, MOST_TITLE)}, seed {job.spec.seed}{prompt}"


def within(batches: Iterable[VitalsBatch], from_at: datetime, to_at: datetime) -> tuple[VitalsBatch, ...]:
    """The batches of a stretch of time, both ends included."""
    return tuple(batch for batch in batches if from_at <= batch.stamp.at <= to_at)


def merge(known: Sequence[VitalsBatch], fresh: Iterable[VitalsBatch], last_s: float) -> tuple[VitalsBatch, ...]:
    """Both in the order of their boot clocks, each second once, without what is older than ``last_s``."""
    batches = {(batch.host, batch.stamp.boot_id, batch.stamp.boottime_ns): batch for batch in (*known, *fresh)}
    ordered = sorted(batches.values(), key=lambda batch: batch.stamp.at)
    if not ordered:
        return ()
    oldest = ordered[-1].stamp.at - timedelta(seconds=last_s)
    return tuple(batch for batch in ordered if batch.stamp.at >= oldest)


def curves(batches: Sequence[VitalsBatch]) -> tuple[Curve, ...]:
    """The curves this machine can show: those of its GPUs, then those of the host."""
    return (*(GPU_CURVES if any(batch.gpu_samples for batch in batches) else ()), *HOST_CURVES)


def readings(batches: Sequence[VitalsBatch], curve: Curve) -> tuple[Point, ...]:
    """All of one curve, one series after the other, each oldest first."""
    by_series: dict[str, list[Point]] = {}
    for batch in batches:
        for point in _readings(batch, curve):
            by_series.setdefault(point.series, []).append(point)
    return tuple(point for series in by_series.values() for point in series)


def points(found: Sequence[Point], most: int = 600) -> tuple[Point, ...]:
    """What is drawn of these readings, at most about ``most`` per series; a silence becomes a point of None.

    Thinning keeps the highest reading of each stretch: a peak must not vanish from the picture. A percentile of what is
    left would be too high, see ``figure``.
    """
    by_series = groupby(found, key=lambda point: point.series)
    return tuple(point for _, series in by_series for point in _with_gaps(_thinned(list(series), most)))


def figure(found: Sequence[Point]) -> Figure:
    """Last, 95th percentile (nearest rank) and highest of all that was measured, not of what is drawn."""
    values = [point.value for point in found if point.value is not None]
    if not values:
        return Figure(last=None, p95=None, peak=None)
    ranked = sorted(values)
    last = max((point for point in found if point.value is not None), key=lambda point: point.at).value
    return Figure(last=last, p95=ranked[math.ceil(0.95 * len(ranked)) - 1], peak=ranked[-1])


def shown(value: float | None, unit: str) -> str:
    """A figure with its unit; "unknown" where nothing was measured."""
    if value is None:
        return "unknown"
    return f"{value:.1f} {unit}" if unit in {"GiB", "W"} else f"{value:.0f} {unit}"


def source_line(batch: VitalsBatch) -> str:
    """What these numbers come from, in one sentence."""
    if batch.source != "nvml":
        reason = f" ({batch.nvml_error})" if batch.nvml_error else ""
        return f"No GPU is visible on host {batch.host}{reason}: these are readings of the host itself."
    names = ", ".join(gpu.name or gpu.uuid for gpu in batch.gpus) or "no GPU"
    driver = f", driver {batch.driver_version}" if batch.driver_version else ""
    stub = "; the driver names itself a stub: its numbers are not measurements" if batch.driver_is_stub else ""
    return f"{names} on host {batch.host}{driver}, {batch.rate_hz:g} Hz{stub}."


def refused_fields(batches: Sequence[VitalsBatch]) -> tuple[str, ...]:
    """What the driver of the newest sample does not give: ``memory=not_supported``."""
    newest = next((batch for batch in reversed(batches) if batch.gpu_samples), None)
    if newest is None:
        return ()
    return tuple(sorted({field for sample in newest.gpu_samples for field in sample.unavailable}))


def _readings(batch: VitalsBatch, curve: Curve) -> Iterable[Point]:
    if curve.source == "host":
        for reading in batch.host_samples:
            yield Point(at=_at(batch, reading.boottime_ns), series=batch.host, value=_host_value(reading, curve))
    else:
        names = {gpu.uuid: f"GPU {gpu.index}" for gpu in batch.gpus}
        for sample in batch.gpu_samples:
            series = names.get(sample.gpu_uuid, sample.gpu_uuid)
            yield Point(at=_at(batch, sample.boottime_ns), series=series, value=_gpu_value(sample, curve))


def _at(batch: VitalsBatch, boottime_ns: int) -> datetime:
    """Wall time of a reading, by its distance from the batch's stamp on the boot clock."""
    return batch.stamp.at + timedelta(microseconds=(boottime_ns - batch.stamp.boottime_ns) / 1000)


def _gpu_value(sample: GpuSample, curve: Curve) -> float | None:
    if curve is MEMORY:
        return None if sample.memory_used_bytes is None else sample.memory_used_bytes / GIB
    values = {
        UTILISATION.name: sample.utilisation_percent,
        TEMPERATURE.name: sample.temperature_c,
        POWER.name: sample.power_w,
    }
    return values[curve.name]


def _host_value(sample: HostSample, curve: Curve) -> float | None:
    if curve is CPU:
        return sample.cpu_percent
    return None if sample.memory_used_bytes is None else sample.memory_used_bytes / GIB


def _thinned(series: Sequence[Point], most: int) -> list[Point]:
    stretch = math.ceil(len(series) / most)
    if stretch <= 1:
        return list(series)
    groups = (series[start : start + stretch] for start in range(0, len(series), stretch))
    return [max(group, key=lambda point: -math.inf if point.value is None else point.value) for group in groups]


def _with_gaps(series: Sequence[Point]) -> Iterable[Point]:
    spacing_s = max(GAP_S, 2 * _median_spacing_s(series))
    for before, after in pairwise(series):
        yield before
        if (after.at - before.at).total_seconds() > spacing_s:
            yield Point(at=before.at + timedelta(seconds=GAP_S / 2), series=before.series, value=None)
    yield from series[-1:]


def _median_spacing_s(series: Sequence[Point]) -> float:
    gaps = sorted((after.at - before.at).total_seconds() for before, after in pairwise(series))
    return gaps[len(gaps) // 2] if gaps else 0.0
