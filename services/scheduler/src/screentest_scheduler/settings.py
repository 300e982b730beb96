"""What varies per machine for the scheduler."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from screentest.kit.bus import VITALS_KEPT_S
from screentest.kit.config import ServiceSettings
from screentest.subjects import check_id
from screentest_scheduler.admission import DRAIN_AFTER_S


class SchedulerSettings(ServiceSettings):
    """``devices``: comma-separated devices of this host; ``grpc_token_file`` unset = no token asked (tests only).

    ``grpc_tls_cert_file``, ``grpc_tls_key_file``: PEM, as `make certs` writes them; without them only loopback is
    bound.
    ``grpc_reflection``: whether the server describes itself to grpcurl and the like; never beyond loopback.

    ``judges_dir``: of judge files; unset = the folder ``judges`` beside the lanes, where no folder holds no judge.
    ``drain_after_s``: how long a device may stay not proven clean before nothing starts there without a person.
    ``archive_after_s``: rest before a settled sweep, or a later vote or retry, is archived; the last vitals come along.
    ``archive_kept_s``: how long an archived sweep stays in EVENTS after its last event; then its verified archive in
    the depot is all there is of its jobs, and `screentest restore` brings them back. ``archive_every_s``: between two
    looks for what is due.
    ``clips_kept_s``: how long the clips of an archived sweep stay in the depot after its last event; unset = for ever.
    At most ``archive_kept_s``, because the sweep's history has to say it. ``vitals_kept_s``: how long the stream has
    them; longer than the longest sweep, as its archive and its report are made from them.
    """

    grpc_address: str = "127.0.0.1:50051"
    grpc_token_file: Path | None = None
    grpc_tls_cert_file: Path | None = None
    grpc_tls_key_file: Path | None = None
    grpc_reflection: bool = True
    lanes_dir: Path = Path("deploy/lanes")
    judges_dir: Path | None = None
    devices: str = "cpu-0"
    ack_wait_s: float = 30.0
    heartbeat_s: float = 10.0
    drain_after_s: float = Field(default=DRAIN_AFTER_S, gt=0)
    archive_after_s: float = Field(default=60.0, ge=0)
    archive_kept_s: float = Field(default=30 * 24 * 3600.0, ge=0)
    archive_every_s: float = Field(default=10.0, gt=0)
    clips_kept_s: float | None = Field(default=None, ge=0)
    vitals_kept_s: float = Field(default=VITALS_KEPT_S, gt=0)

    @field_validator("devices")
    @classmethod
    def _legal_devices(cls, value: str) -> str:
        for device in value.split(","):
            check_id(device.strip(), "device")
        return value

    @field_validator("clips_kept_s")
    @classmethod
    def _leaves_before_its_sweep(cls, value: float | None, info: ValidationInfo) -> float | None:
        archive_kept_s = info.data.get("archive_kept_s")
        if value is not None and archive_kept_s is not None and value > archive_kept_s:
            raise ValueError(f"is at most SCREENTEST_ARCHIVE_KEPT_S ({archive_kept_s:g}), raise that too")
        return value

    @field_validator("vitals_kept_s")
    @classmethod
    def _outlasts_the_archiving(cls, value: float, info: ValidationInfo) -> float:
        archive_after_s = info.data.get("archive_after_s", 0.0)
        if value <= archive_after_s:
            raise ValueError(f"must be more than SCREENTEST_ARCHIVE_AFTER_S ({archive_after_s:g})")
        return value

    @property
    def measured_dir(self) -> Path:
        """What clips took on GPUs lies beside the lanes; a folder that is not there holds nothing."""
        return self.lanes_dir.parent / "measured"

    @property
    def judge_files(self) -> Path:
        return self.judges_dir or self.lanes_dir.parent / "judges"

    def places(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.host, device.strip()) for device in self.devices.split(","))
