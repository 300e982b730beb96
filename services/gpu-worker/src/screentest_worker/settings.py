"""What one worker is told by its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from screentest.kit.config import ServiceSettings
from screentest_worker.judge_preflight import Endpoint


class WorkerSettings(ServiceSettings):
    """One lane on one device: a model's, or a judge's.

    ``env_python`` is the interpreter of the lane's model environment; it stays a link when it is one, because a link
    is what tells Python which environment it is in. ``state_dir`` holds scratch, spool and logs. ``measured_dir`` holds
    what clips took on known GPUs; None = the folder `measured` beside the folder of the lane file.
    """

    lane_file: Path
    device: str = Field(default="cpu-0", pattern=r"^(cpu|gpu)-[0-9]{1,3}$")
    lock_dir: Path
    state_dir: Path
    env_python: Path
    models_dir: Path
    cache_dir: Path
    measured_dir: Path | None = None

    # Of a judge that asks an OpenAI-compatible server. Its key stays in a file: the runner alone reads it.
    judge_url: str = ""
    judge_model: str = ""
    judge_key_file: Path | None = None

    # A warm runner holds the device's memory: after this long without a job it goes.
    idle_s: float = Field(default=600.0, gt=0)
    # After this long without a clean proof the attempt ends as infrastructure. Whether the device is drained is the
    # scheduler's to decide, by proofs of its own.
    not_proven_s: float = Field(default=60.0, gt=0)
    # What a runner gets to give up its attempt after Cancel, at most one step: then it stays warm, otherwise it goes.
    cancel_grace_s: float = Field(default=10.0, ge=0)
    # What a runner gets to end by itself after Stop; a step of a big model takes longer and is cut short.
    stop_grace_s: float = Field(default=5.0, ge=0)
    renew_s: float = Field(default=10.0, gt=0)

    @property
    def measured_folder(self) -> Path:
        return self.measured_dir or self.lane_file.absolute().parent.parent / "measured"

    @property
    def endpoint(self) -> Endpoint | None:
        """None where no server is named."""
        if not self.judge_url:
            return None
        key_file = str(self.judge_key_file.absolute()) if self.judge_key_file is not None else None
        return Endpoint(base_url=self.judge_url, model=self.judge_model, key_file=key_file)
