"""What a device is by its name and by what telemetry says of it. Pure: scheduler and worker must not differ in it."""

from __future__ import annotations

from screentest.records import DeviceFacts


def is_cpu(device: str) -> bool:
    """A device without GPU by its name (``cpu-0``); it is never inferred from a driver that does not answer."""
    return device.startswith("cpu")


def is_unified(device: str, facts: DeviceFacts | None) -> bool:
    """Whether host and device share their memory, so that nothing is gained by moving weights between them.

    Always so without a GPU; of a GPU that telemetry says nothing of, its own memory is assumed.
    """
    return is_cpu(device) or (facts is not None and facts.memory_kind == "unified")
