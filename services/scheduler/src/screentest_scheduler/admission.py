"""Which job a device gets next, and why every other one waits. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from screentest.records import DeviceFault, Proof, ProofKind, Stamp
from screentest_scheduler.transitions import Entry, elapsed_s

# How long a device may stay unproven before a person must look: Slurm's unkillable-step timeout is the same.
DRAIN_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A job that may be admitted. ``order`` sorts: submitted earlier first, then the sweep's own order.

    ``behind``: what must be over before it may start, in words; empty = nothing.
    """

    entry: Entry
    priority: int
    is_paused: bool
    order: tuple[int, int]
    behind: str = ""

    @property
    def is_held(self) -> bool:
        return self.is_paused or bool(self.behind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One device as admission sees it.

    ``holder``: the job whose attempt still needs the device. ``loaded_lane``: whose runner holds it, warm or working.
    ``fault``: what it is drained for, None = not drained, or for another reason.
    """

    host: str
    device: str
    drained_reason: str
    holder: str
    loaded_lane: str
    fault: DeviceFault | None = None

    @property
    def has_failed(self) -> bool:
        """Whatever runs on the device has to end."""
        return self.fault is not None and self.fault.ends_attempts

    @property
    def name(self) -> str:
        return f"{self.host}/{self.device}"


def choose(slot: Slot, candidates: Iterable[Candidate], lanes_alive: Collection[str]) -> Candidate | None:
    """The next job of a device: priority, then the loaded lane, then order.

    Skips paused sweeps, judge jobs before their time and lanes without a live worker. Ignores the holder: the caller
    may ask for a successor.
    """
    if slot.drained_reason:
        return None
    ready = (item for item in candidates if not item.is_held and item.entry.spec.lane_id in lanes_alive)
    return min(ready, key=lambda item: _rank(item, slot), default=None)


def waits_for(slot: Slot, candidate: Candidate, lanes_alive: Collection[str], unproven: str = "") -> str:
    """Why a queued job waits, in the words a person reads. ``unproven``: why the device is not proven clean."""
    lane_id = candidate.entry.spec.lane_id
    if candidate.is_paused:
        return "paused"
    if slot.drained_reason:
        return f"GPU drained: {slot.drained_reason}"
    if lane_id not in lanes_alive:
        return f"no worker for {lane_id}"
    if candidate.behind:
        return candidate.behind
    if slot.holder:
        return f"{slot.name} runs {slot.loaded_lane or 'another job'}"
    if unproven:
        return f"{slot.name} is not proven clean: {unproven}"
    return f"waits its turn on {slot.name}"


def proof_kind(slot: Slot, candidate: Candidate) -> ProofKind:
    """CONTINUE when the lane's own runner holds the device already."""
    return ProofKind.CONTINUE if slot.loaded_lane == candidate.entry.spec.lane_id else ProofKind.HANDOVER


def is_news(fault: DeviceFault, drained_for: DeviceFault | None, undrained: Stamp | None) -> bool:
    """Whether to drain for this fault. Not when a person has looked since, nor again for what is no worse."""
    if undrained is not None and elapsed_s(undrained, fault.stamp) <= 0:
        return False
    return drained_for is None or (fault.ends_attempts and not drained_for.ends_attempts)


def drain_reason(proof: Proof, unproven_s: float, drain_after_s: float = DRAIN_AFTER_S) -> str:
    """Why the device must be drained now; empty while it is clean or may still become so."""
    if proof.clean or unproven_s < drain_after_s:
        return ""
    seen = (*proof.lock_holders, *proof.processes)
    untold = [f"pid {item.pid} {item.command}".strip() for item in seen if f"pid {item.pid}" not in proof.reason]
    also = f"; also seen: {', '.join(untold)}" if untold else ""
    return f"not clean for {unproven_s:.0f} s: {proof.reason}{also}"


def _rank(item: Candidate, slot: Slot) -> tuple[int, bool, tuple[int, int]]:
    return (-item.priority, item.entry.spec.lane_id != slot.loaded_lane, item.order)
