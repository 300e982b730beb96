"""What telemetry remembers of each device over its own restarts: runners that registered, and who was there first."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from screentest.records import Process

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """``foreign`` None = nobody has looked yet. ``gpu_uuid`` is the last one seen, for when the driver is away."""

    runners: tuple[Process, ...] = ()
    foreign: tuple[Process, ...] | None = None
    gpu_uuid: str | None = None


class Registry:
    """One small JSON file, replaced as a whole. What was written before this boot is forgotten: pids start anew."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        self._devices = _load(path, boot_id)

    def device(self, device: str) -> DeviceMemory:
        return self._devices.get(device, DeviceMemory())

    def add_runner(self, device: str, runner: Process) -> None:
        memory = self.device(device)
        if runner not in memory.runners:
            self._set(device, replace(memory, runners=(*memory.runners, runner)))

    def keep_runners(self, device: str, alive: Sequence[Process]) -> None:
        """Drops the runners that have ended."""
        memory = self.device(device)
        if memory.runners != tuple(alive):
            self._set(device, replace(memory, runners=tuple(alive)))

    def set_foreign(self, device: str, foreign: Sequence[Process]) -> None:
        self._set(device, replace(self.device(device), foreign=tuple(foreign)))

    def set_gpu(self, device: str, uuid: str) -> None:
        if self.device(device).gpu_uuid != uuid:
            self._set(device, replace(self.device(device), gpu_uuid=uuid))

    def _set(self, device: str, memory: DeviceMemory) -> None:
        self._devices[device] = memory
        content = {"boot_id": self._boot_id, "devices": {name: _to_json(m) for name, m in self._devices.items()}}
        _replace_file(self._path, json.dumps(content, indent=1))


def _replace_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _load(path: Path, boot_id: str) -> dict[str, DeviceMemory]:
    try:
        content = json.loads(path.read_text())
        if content["boot_id"] != boot_id:
            return {}
        return {name: _from_json(entry) for name, entry in content["devices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        # A runner we forgot is still found by its lock, and on a GPU by NVML: begin anew, and say so.
        log.error("registry_unreadable", path=str(path), error=str(error))
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + ".unreadable"))
        return {}


def _to_json(memory: DeviceMemory) -> dict[str, Any]:
    return {
        "runners": [_process_to_json(process) for process in memory.runners],
        "foreign": None if memory.foreign is None else [_process_to_json(process) for process in memory.foreign],
        "gpu_uuid": memory.gpu_uuid,
    }


def _from_json(entry: dict[str, Any]) -> DeviceMemory:
    foreign = entry["foreign"]
    return DeviceMemory(
        runners=tuple(Process(**process) for process in entry["runners"]),
        foreign=None if foreign is None else tuple(Process(**process) for process in foreign),
        gpu_uuid=entry["gpu_uuid"],
    )


def _process_to_json(process: Process) -> dict[str, Any]:
    return {"pid": process.pid, "start_ticks": process.start_ticks, "command": process.command}
