"""Energy from the driver's counter. Pure.

The counter is the measurement: integrating power at 1 Hz was 12 % off on a bursty load (H200). A counter that went
back (the driver was reloaded) or a hole at the edge of the window makes the energy unknown, never zero.
Source: NVML nvmlDeviceGetTotalEnergyConsumption, millijoules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from screentest.windows import Window
from screentest_reporter.vitals import Reading

# Between two samples the power is taken as even; over a longer hole nobody knows.
MAX_GAP_NS = 5_000_000_000
MJ_PER_WH = 3_600_000


def used_wh(readings: Sequence[Reading], window: Window) -> float | None:
    """Watt-hours within the window. ``readings``: of one GPU and this boot, in time order, also from outside it."""
    known = [(r.boottime_ns, r.energy_mj) for r in readings if r.energy_mj is not None]
    begin, end = _counter_at(known, window.begin_ns), _counter_at(known, window.end_ns)
    if begin is None or end is None:
        return None
    inside = [mj for at_ns, mj in known if window.begin_ns <= at_ns <= window.end_ns]
    if any(later < earlier for earlier, later in pairwise([begin, *inside, end])):
        return None
    return (end - begin) / MJ_PER_WH


def _counter_at(known: Sequence[tuple[int, int]], at_ns: int) -> float | None:
    """The counter between its two neighbours; None outside them or where they are far apart."""
    after = bisect_left(known, at_ns, key=lambda sample: sample[0])
    if after < len(known) and known[after][0] == at_ns:
        return float(known[after][1])
    if after in (0, len(known)):
        return None
    (left_ns, left), (right_ns, right) = known[after - 1], known[after]
    if right_ns - left_ns > MAX_GAP_NS:
        return None
    return left + (right - left) * (at_ns - left_ns) / (right_ns - left_ns)


def wh_text(energy_wh: float | None) -> str:
    """``0.42 Wh``; small ones in mWh."""
    if energy_wh is None:
        return "unknown"
    return f"{energy_wh:.2f} Wh" if energy_wh >= 0.1 else f"{energy_wh * 1000:.1f} mWh"
