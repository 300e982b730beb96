"""Gathers what preflight decides on and where the weights lie; reads folders, decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from screentest.lanes import Lane, lane_digest
from screentest_worker.preflight import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFolders:
    """Where the hub weights of a lane belong.

    ``main`` is ``<models>/<lane>``. A lane that is assembled from two repositories has ``<models>/<lane>/model`` and
    ``<models>/<lane>/base``, and ``base`` is None for every other lane.
    """

    main: Path
    base: Path | None

    def missing(self) -> str | None:
        """The first index file that is not there, None when both are."""
        wanted = [self.main / "model_index.json"]
        if self.base is not None:
            wanted = [self.main / "config.json", self.base / "model_index.json"]
        return next((str(path) for path in wanted if not path.is_file()), None)


def weights_folders(lane: Lane, models_dir: Path) -> WeightsFolders:
    folder = models_dir / lane.id
    if lane.model is not None and lane.model.base_repo is not None:
        return WeightsFolders(main=folder / "model", base=folder / "base")
    return WeightsFolders(main=folder, base=None)


def gather(lane: Lane, models_dir: Path, env_python: Path) -> Facts:
    """The facts of this moment: weights may have arrived since the worker started."""
    return Facts(
        lane_id=lane.id,
        lane_digest=lane_digest(lane),
        rungs=tuple(rung.name for rung in lane.ladder),
        # A lane without published weights (the stub) lacks none.
        missing_weights=weights_folders(lane, models_dir).missing() if lane.model is not None else None,
        missing_env=None if env_python.exists() else str(env_python),
    )
