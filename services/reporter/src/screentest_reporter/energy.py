"""Energy of a stretch of time on one GPU. Pure.

The driver's counter is the measurement: integrating power at 1 Hz was 12 % off on a bursty load (H200). A driver
without the counter leaves only the integral of its power samples, and every number says which of the two it is.
A counter that went back (the driver was reloaded) or a hole in the samples makes the energy unknown, never zero.
Source: NVML nvmlDeviceGetTotalEnergyConsumption, millijoules; nvmlDeviceGetPowerUsage, milliwatts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Final

from screentest.windows import Window
from screentest_reporter.vitals import Reading

# Between two samples the power is taken as even; over a longer hole nobody knows.
MAX_GAP_NS: Final = 5_000_000_000
MJ_PER_WH: Final = 3_600_000
NS_S_PER_H: Final = 3_600 * 1_000_000_000


class Method(StrEnum):
    """How a number of watt-hours was come by."""

    COUNTER = "counter"
    POWER = "power samples"

    @property
    def text(self) -> str:
        match self:
            case Method.COUNTER:
                return "difference of the GPU's energy counter (NVML)"
            case Method.POWER:
                return "integral of the GPU's power samples (NVML): this driver has no energy counter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    wh: float
    method: Method


class Meter:
    """Reads the energy of any window of one boot off the samples of one GPU; a question costs a search, not a scan.

    ``readings``: of one GPU and one boot, in time order.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        counter = [(r.boottime_ns, r.energy_mj) for r in readings if r.energy_mj is not None]
        self._counter = _Counter(counter)
        self._power = _Power([(r.boottime_ns, r.power_w) for r in readings if r.power_w is not None])

    def used(self, window: Window) -> Used | None:
        """None where neither the counter nor the power samples cover the window."""
        by_counter = self._counter.wh(window.begin_ns, window.end_ns)
        if by_counter is not None:
            return Used(wh=by_counter, method=Method.COUNTER)
        if self._counter.times:
            return None  # there is a counter, it just does not cover this: a guess beside it would not compare
        by_power = self._power.wh(window.begin_ns, window.end_ns)
        return None if by_power is None else Used(wh=by_power, method=Method.POWER)


class _Counter:
    def __init__(self, samples: Sequence[tuple[int, int]]) -> None:
        self.times = [at_ns for at_ns, _ in samples]
        self._values = [mj for _, mj in samples]
        self._falls = [0, *accumulate(int(later < earlier) for earlier, later in pairwise(self._values))]

    def wh(self, begin_ns: int, end_ns: int) -> float | None:
        begin, end = self._at(begin_ns), self._at(end_ns)
        if begin is None or end is None or self._fell(begin_ns, end_ns):
            return None
        return (end - begin) / MJ_PER_WH

    def _fell(self, begin_ns: int, end_ns: int) -> bool:
        """Whether it went back between the sample before the window and the one after it."""
        first = bisect_right(self.times, begin_ns) - 1
        last = min(bisect_left(self.times, end_ns), len(self.times) - 1)
        return self._falls[last] > self._falls[first]

    def _at(self, at_ns: int) -> float | None:
        """The counter between its two neighbours; None outside them or where they are far apart."""
        after = bisect_left(self.times, at_ns)
        if after < len(self.times) and self.times[after] == at_ns:
            return float(self._values[after])
        if after in (0, len(self.times)) or self.times[after] - self.times[after - 1] > MAX_GAP_NS:
            return None
        share = (at_ns - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        return self._values[after - 1] + (self._values[after] - self._values[after - 1]) * share


class _Power:
    """Trapezoids between neighbouring samples."""

    def __init__(self, samples: Sequence[tuple[int, float]]) -> None:
        self._times = [at_ns for at_ns, _ in samples]
        self._watts = [watts for _, watts in samples]
        steps = [(right[0] - left[0], left[1], right[1]) for left, right in pairwise(samples)]
        self._sums = [0.0, *accumulate(ns * (left + right) / 2 / NS_S_PER_H for ns, left, right in steps)]
        self._holes = [0, *accumulate(int(ns > MAX_GAP_NS) for ns, _, _ in steps)]

    def wh(self, begin_ns: int, end_ns: int) -> float | None:
        if not self._times or not self._times[0] <= begin_ns <= end_ns <= self._times[-1]:
            return None
        first = bisect_right(self._times, begin_ns) - 1
        last = min(bisect_left(self._times, end_ns), len(self._times) - 1)
        if self._holes[last] > self._holes[first]:
            return None
        return self._sum_to(end_ns) - self._sum_to(begin_ns)

    def _sum_to(self, at_ns: int) -> float:
        left = min(bisect_right(self._times, at_ns) - 1, len(self._times) - 1)
        passed_ns = at_ns - self._times[left]
        if passed_ns == 0:
            return self._sums[left]
        slope = (self._watts[left + 1] - self._watts[left]) / (self._times[left + 1] - self._times[left])
        return self._sums[left] + passed_ns * (self._watts[left] + slope * passed_ns / 2) / NS_S_PER_H


def wh_text(energy_wh: float | None) -> str:
    """``0.42 Wh``; small ones in mWh."""
    if energy_wh is None:
        return "unknown"
    return f"{energy_wh:.2f} Wh" if energy_wh >= 0.1 else f"{energy_wh * 1000:.1f} mWh"
