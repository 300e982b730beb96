"""A job as the rung of its attempt runs it, and the marks of what that takes from the picture. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from screentest.lanes import Lane, call_at, shape_at
from screentest.records import JobSpec, Mark, MarkKind, Parameter, ParameterType


def as_run(lane: Lane, spec: JobSpec, rung: int) -> JobSpec:
    """The job with the size, frames and keyword arguments of this rung; unchanged where the lane has no such rung."""
    if rung not in range(len(lane.ladder)):
        return spec
    width_px, height_px, num_frames = shape_at(lane, rung, spec.width_px, spec.height_px, spec.num_frames)
    call = call_at(lane, rung, call_of(spec))
    return replace(
        spec,
        width_px=width_px,
        height_px=height_px,
        num_frames=num_frames,
        call=tuple(Parameter(name=name, value=_recorded(value)) for name, value in call.items()),
    )


def marks(lane: Lane, spec: JobSpec, rung: int) -> tuple[Mark, ...]:
    """What this rung reduces; empty for one that leaves the picture as it was asked for."""
    ran = as_run(lane, spec, rung)
    names = ("num_frames", "width_px", "height_px")
    return tuple(
        Mark(
            kind=MarkKind.REDUCED,
            parameter=name,
            requested=str(getattr(spec, name)),
            effective=str(getattr(ran, name)),
            reason=f"rung {lane.ladder[rung].name}, to fit the device memory",
        )
        for name in names
        if getattr(ran, name) != getattr(spec, name)
    )


def call_of(spec: JobSpec) -> dict[str, Any]:
    """The pipeline's keyword arguments as the runner gets them; JSON knows lists, not tuples."""
    return {item.name: list(item.value) if isinstance(item.value, tuple) else item.value for item in spec.call}


def _recorded(value: Any) -> ParameterType:
    return tuple(value) if isinstance(value, list) else value
