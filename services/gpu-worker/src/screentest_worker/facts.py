"""Gathers what preflight decides on and where the weights lie; reads folders, decides nothing."""

from __future__ import annotations

from pathlib import Path

from screentest.lanes import Lane, lane_digest
from screentest_worker.preflight import Facts


def weights_folder(lane: Lane, models_dir: Path) -> Path:
    """Where the hub weights of a lane belong."""
    return models_dir / lane.id


def gather(lane: Lane, models_dir: Path, env_python: Path) -> Facts:
    """The facts of this moment: weights may have arrived since the worker started."""
    return Facts(
        lane_id=lane.id,
        lane_digest=lane_digest(lane),
        rungs=tuple(rung.name for rung in lane.ladder),
        missing_weights=_missing_weights(lane, models_dir),
        missing_env=None if env_python.exists() else str(env_python),
    )


def _missing_weights(lane: Lane, models_dir: Path) -> str | None:
    """The index file that is not there; None when it is. A lane without published weights (the stub) lacks none."""
    index = weights_folder(lane, models_dir) / "model_index.json"
    return None if lane.model is None or index.is_file() else str(index)
