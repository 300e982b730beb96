"""Gathers what preflight decides on and where the weights lie; reads folders, decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from screentest import lanes
from screentest.lanes import Lane, lane_digest
from screentest.measured import Measured
from screentest.records import DeviceFacts, Weights
from screentest_worker import device_memory, signature
from screentest_worker import weights_folder as layout
from screentest_worker.findings import Problem
from screentest_worker.preflight import Facts, of_lane
from screentest_worker.signature import PipelineSignature
from screentest_worker.weights_layout import Expectation


def weights_folder(lane_id: str, models_dir: Path) -> Path:
    """Where the hub weights of a lane belong."""
    return models_dir / lane_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this worker finds things, and what its house knows of clips. Does not change while it runs."""

    models_dir: Path
    env_python: Path
    measured: Measured = field(default_factory=Measured)


def gather(lane: Lane, weights: Weights, place: Place, device: DeviceFacts | None = None) -> Facts:
    """The facts of this moment: weights may have arrived since the worker started. Milliseconds; reads files.

    ``device``: as telemetry has just read it, None where it did not answer.
    """
    has_model = lane.model is not None  # the stub has none: no weights, and no class of diffusers
    is_hub = has_model and weights is Weights.HUB
    return Facts(
        lane=lane,
        lane_digest=lane_digest(lane),
        missing_env=None if place.env_python.exists() else str(place.env_python),
        signature=_signature(lane, place.env_python) if has_model else None,
        weights=layout.read(weights_folder(lane.id, place.models_dir)) if is_hub else None,
        expected=Expectation.of_lane(lane) if is_hub else None,
        memory=device_memory.read(device) if device is not None and weights is not Weights.MINIATURE else None,
        measured=place.measured,
    )


def inspect_lane(lane: Lane, folder: Path, env_python: Path, *, miniature: bool = False) -> tuple[Problem, ...]:
    """What is wrong with a lane file and a folder of its weights, without a job, a broker or a device.

    ``miniature``: the folder holds the lane's miniature, whose architecture is that of the `miniature` tables.
    """
    weights: lanes.Weights = "miniature" if miniature else "hub"
    found = Facts(
        lane=lane,
        lane_digest=lane_digest(lane),
        missing_env=None if env_python.exists() else str(env_python),
        signature=_signature(lane, env_python),
        weights=layout.read(folder),
        expected=Expectation.of_lane(lane, miniature=miniature),
    )
    call = lane.pipeline_call(weights, {**lane.defaults_for(weights), "prompt": ""})
    return of_lane(found, call)


def _signature(lane: Lane, env_python: Path) -> PipelineSignature | Problem | None:
    """Of the lane's pipeline class, or why there is none; None where the env is not there: that is said already."""
    packages = signature.site_packages(env_python)
    return signature.read(packages, lane.pipeline.class_name) if packages is not None else None
