"""Gathers what preflight decides on and where the weights lie; reads folders, decides nothing."""

from __future__ import annotations

from pathlib import Path

from screentest.lanes import Lane, lane_digest
from screentest.records import DeviceFacts, Weights
from screentest_worker import memory, signature
from screentest_worker import weights_folder as layout
from screentest_worker.findings import Problem
from screentest_worker.preflight import Facts
from screentest_worker.signature import PipelineSignature


def weights_folder(lane: Lane, models_dir: Path) -> Path:
    """Where the hub weights of a lane belong."""
    return models_dir / lane.id


def gather(
    lane: Lane, weights: Weights, *, models_dir: Path, env_python: Path, device: DeviceFacts | None = None
) -> Facts:
    """The facts of this moment: weights may have arrived since the worker started. Milliseconds; reads files.

    ``device``: as telemetry has just read it, None where it did not answer.
    """
    has_model = lane.model is not None  # the stub has none: no weights, and no class of diffusers
    return Facts(
        lane=lane,
        lane_digest=lane_digest(lane),
        missing_env=None if env_python.exists() else str(env_python),
        signature=_signature(lane, env_python) if has_model else None,
        weights=layout.read(weights_folder(lane, models_dir)) if has_model and weights is Weights.HUB else None,
        memory=memory.read(device) if device is not None and weights is not Weights.MINIATURE else None,
    )


def _signature(lane: Lane, env_python: Path) -> PipelineSignature | Problem | None:
    """None where the env is not there: that is said already."""
    packages = signature.site_packages(env_python)
    return signature.read(packages, lane.pipeline.class_name) if packages is not None else None
