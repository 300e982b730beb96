"""Whether a device is clean, decided from what was seen. Pure: unknown is never clean."""

from __future__ import annotations

from dataclasses import dataclass

from screentest.records import Process, ProofKind, ProofRequest
from screentest_telemetry.processes import describe, is_same


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """``lock_held`` None = could not be read. ``processes``: on the device by NVML, plus registered runners alive.

    ``problem`` is what could not be seen; anything there makes the device not clean.
    """

    lock_held: bool | None
    lock_holders: tuple[Process, ...]
    runners: tuple[Process, ...]
    processes: tuple[Process, ...]
    problem: str = ""


def verdict(request: ProofRequest, seen: Observation) -> tuple[bool, str]:
    """(clean, reason); the reason names the processes in the way, or what the proof rests on."""
    if seen.problem:
        return False, seen.problem
    if seen.lock_held is None:
        return False, "the lock of this device could not be read"
    match request.kind:
        case ProofKind.HANDOVER:
            return _handover(seen)
        case ProofKind.CONTINUE:
            return _continue(request.runner, seen)


def _handover(seen: Observation) -> tuple[bool, str]:
    if seen.lock_held:
        return False, f"the lock is held by {describe(seen.lock_holders) or 'a process that cannot be seen'}"
    if seen.runners:
        return False, f"a registered runner is still alive: {describe(seen.runners)}"
    ours = _ours(seen)
    if ours:
        return False, _intruders(ours)
    return True, "lock free, no registered runner alive, no process of ours on the device"


def _continue(runner: Process | None, seen: Observation) -> tuple[bool, str]:
    if runner is None:
        return False, "a CONTINUE proof needs the runner that should hold the lock; ask with its pid and start time"
    if not seen.lock_held:
        return False, f"nobody holds the lock; runner pid {runner.pid} has let go of it or is gone"
    if len(seen.lock_holders) != 1 or not is_same(seen.lock_holders[0], runner):
        return False, f"the lock is held by {describe(seen.lock_holders)}, not by runner pid {runner.pid}"
    others = tuple(process for process in seen.runners if not is_same(process, runner))
    if others:
        return False, f"another registered runner is alive: {describe(others)}"
    intruders = tuple(process for process in _ours(seen) if not is_same(process, runner))
    if intruders:
        return False, _intruders(intruders)
    return True, f"lock held by runner pid {runner.pid} alone, nothing else of ours on the device"


def _ours(seen: Observation) -> tuple[Process, ...]:
    """Whatever is not known to be foreign counts as ours."""
    return tuple(process for process in seen.processes if not process.foreign)


def _intruders(processes: tuple[Process, ...]) -> str:
    return (
        f"on the device: {describe(processes)}; end it, or name it in SCREENTEST_TENANTS if it belongs to somebody else"
    )
