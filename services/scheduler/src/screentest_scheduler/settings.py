"""What varies per machine for the scheduler."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from screentest.kit.config import ServiceSettings
from screentest.subjects import check_id


class SchedulerSettings(ServiceSettings):
    """``devices``: comma-separated devices of this host; ``grpc_token_file`` unset = no token asked (tests only)."""

    grpc_address: str = "127.0.0.1:50051"
    grpc_token_file: Path | None = None
    grpc_reflection: bool = True
    lanes_dir: Path = Path("deploy/lanes")
    devices: str = "cpu-0"
    ack_wait_s: float = 30.0
    heartbeat_s: float = 10.0

    @field_validator("devices")
    @classmethod
    def _legal_devices(cls, value: str) -> str:
        for device in value.split(","):
            check_id(device.strip(), "device")
        return value

    def places(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.host, device.strip()) for device in self.devices.split(","))
