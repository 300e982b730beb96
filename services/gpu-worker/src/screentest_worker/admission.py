"""At which rung a job fits this device's memory; pure arithmetic on what was measured and what is free."""

from __future__ import annotations

from dataclasses import dataclass

from screentest import lanes, memory
from screentest.lanes import Lane
from screentest.measured import Measured, Shape
from screentest.records import JobSpec
from screentest_worker.device_memory import DeviceMemory, gib
from screentest_worker.findings import Check, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """``rung``: where the job may begin, None = it fits at none, or nothing is known of the memory. ``fixed``: why
    that is lower than asked. ``available_bytes``: what the job may use once no runner of ours holds any.
    """

    rung: int | None = None
    fixed: str = ""
    problem: Problem | None = None
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """An attempt that cannot fit now. ``has_lower_rung``: one below it may."""

    reason: str
    fix: str
    has_lower_rung: bool


def admit(lane: Lane, spec: JobSpec, device: DeviceMemory, measured: Measured) -> Admission:
    """For a job that is not admitted yet: our own runners on the device will be gone when its turn comes."""
    free = _available(device.ceiling_bytes, spec)
    if free is None:
        return Admission()
    rung = memory.first_rung(
        lane,
        _shape(spec),
        free,
        measured,
        unified=device.unified,
        memory_cap_gib=spec.memory_cap_gib,
    )
    usable = _usable_bytes(free, spec)
    if rung is None:
        return Admission(problem=_too_small(lane, spec, device, measured, free), available_bytes=usable)
    begin = max(rung, spec.first_rung)
    fixed = _lower(lane, spec, begin, device, measured, usable) if begin > spec.first_rung else ""
    return Admission(rung=begin, fixed=fixed, available_bytes=usable)


def shortage(lane: Lane, spec: JobSpec, rung: int, device: DeviceMemory, measured: Measured) -> Shortage | None:
    """Why this rung cannot run with what is free at this moment; None when it can, or nobody knows.

    Only what tensors alone need is held against it: an estimate a little too high must not cost a rung.
    """
    free = _available(device.free_bytes, spec)
    found = memory.peak(lane, rung, _shape(spec), measured, unified=device.unified)
    if free is None or found is None or found.tensor_bytes <= memory.torch_may_hold(free, spec.memory_cap_gib):
        return None
    needed = gib(found.tensor_bytes + memory.CONTEXT_BYTES)
    reason = f"rung {lane.ladder[rung].name!r} needs {needed}, {_said(device, _usable_bytes(free, spec), spec)}"
    return Shortage(
        reason=f"preflight: {reason}",
        fix=_fix(lane, spec, device, measured, free),
        has_lower_rung=any(lower > rung for lower in lanes.usable_rungs(lane, device.unified)),
    )


def _shape(spec: JobSpec) -> Shape:
    return Shape(width_px=spec.width_px, height_px=spec.height_px, num_frames=spec.num_frames)


def _available(device_bytes: int | None, spec: JobSpec) -> int | None:
    """Before the load; a cap says something even of a device that says nothing."""
    if device_bytes is None and spec.memory_cap_gib is not None:
        return int(spec.memory_cap_gib * memory.GIB) + memory.CONTEXT_BYTES
    return device_bytes


def _usable_bytes(free: int, spec: JobSpec) -> int:
    return memory.torch_may_hold(free, spec.memory_cap_gib) + memory.CONTEXT_BYTES


def _lower(lane: Lane, spec: JobSpec, begin: int, device: DeviceMemory, measured: Measured, usable: int) -> str:
    """What begins at another rung than asked, and what that changes."""
    need, name = _need(lane, spec, spec.first_rung, device, measured), lane.ladder[spec.first_rung].name
    why = f", {gib(need)} needed for {name!r}" if need is not None else f", less than the weights alone at {name!r}"
    text = f"begins at rung {lane.ladder[begin].name!r}: {_said(device, usable, spec)}{why}"
    made = memory.at_rung(lane, begin, _shape(spec))
    if made == _shape(spec):
        return text
    return f"{text}; makes {made.num_frames} frames of {made.width_px}x{made.height_px}"


def _too_small(lane: Lane, spec: JobSpec, device: DeviceMemory, measured: Measured, free: int) -> Problem:
    needs = {
        rung: need
        for rung in lanes.usable_rungs(lane, device.unified)
        if (need := _need(lane, spec, rung, device, measured)) is not None
    }
    if needs:
        least = min(needs, key=lambda rung: needs[rung])
        needed = f"{lane.title} needs {gib(needs[least])} even at rung {lane.ladder[least].name!r}"
    else:
        needed = f"the weights alone of {lane.title} do not fit, at no rung"
    reason = f"{needed}, {_said(device, _usable_bytes(free, spec), spec)}"
    return Problem(check=Check.MEMORY, reason=reason, fix=_fix(lane, spec, device, measured, free))


def _need(lane: Lane, spec: JobSpec, rung: int, device: DeviceMemory, measured: Measured) -> int | None:
    """Of the device, CUDA's own included; None where nobody has measured the lane."""
    peak = memory.peak_bytes(lane, rung, _shape(spec), measured, unified=device.unified)
    return None if peak is None else peak + memory.CONTEXT_BYTES


def _fix(lane: Lane, spec: JobSpec, device: DeviceMemory, measured: Measured, free: int) -> str:
    """The nearest shape that fits; else whom to stop, or which card it takes."""
    nearest = memory.nearest_shape_that_fits(
        lane, _shape(spec), free, measured, unified=device.unified, memory_cap_gib=spec.memory_cap_gib
    )
    if nearest is not None and nearest != _shape(spec):
        return f"ask for {nearest.num_frames} frames of {nearest.width_px}x{nearest.height_px}"
    if device.foreign:
        return "stop what else holds the device's memory, then submit again"
    card = memory.smallest_card_gib(lane, _shape(spec), measured)
    return f"use a card of {card} GiB or more" if card is not None else "use a card with more memory"


def _said(device: DeviceMemory, usable: int, spec: JobSpec) -> str:
    """`20.1 GiB are free (capped at 16 GiB; ollama (pid 12) holds 5.2 GiB)`."""
    notes = [f"capped at {spec.memory_cap_gib:g} GiB"] if spec.memory_cap_gib is not None else []
    notes += device.foreign
    remark = f" ({'; '.join(notes)})" if notes else ""
    return f"{gib(usable)} are free{remark}"
