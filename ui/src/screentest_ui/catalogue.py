"""The catalogue: what each lane is, whether its weights are here, which card it wants, and who serves it now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from screentest import memory, table
from screentest.judges import JudgeLane
from screentest.lanes import Lane
from screentest.measured import Measured, Shape
from screentest.records import LaneView, Task
from screentest_ui.panel_text import UNKNOWN
from screentest_ui.weights_folder import State

COLUMNS = (
    "Lane",
    "Task",
    "Repository",
    "Licence",
    "Gated",
    "B",
    "Weights",
    "Smallest card",
    "Rungs",
    "Worker",
    "Queued",
)

JUDGE_COLUMNS = ("Judge", "Tier", "Device", "Repository", "Licence", "Weights", "Worker", "Queued")
TIERS = {"a": "a, pixels", "b": "b, embeddings", "c": "c, language model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One lane. None = not known: without a stack nobody knows its workers, and a lane that only the scheduler has
    shows neither weights nor ladder. smallest_card_gib: makes the lane's own picture at some rung.
    """

    lane_id: str
    lane_title: str
    task: str
    env: str
    repo: str
    licence: str | None
    gated: bool
    parameters_b: float | None
    weights: State | None = None
    smallest_card_gib: int | None = None
    rungs: tuple[str, ...] = ()
    worker_alive: bool | None = None
    runner_warm: bool | None = None
    queued: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The text of each of ``COLUMNS``."""
        return (
            self.lane_id,
            self.task.upper(),
            self.repo,
            self.licence or UNKNOWN,
            "yes" if self.gated else "no",
            UNKNOWN if self.parameters_b is None else f"{self.parameters_b:g}",
            UNKNOWN if self.weights is None else self.weights.value,
            table.card_text(self.smallest_card_gib),
            ", ".join(self.rungs) or UNKNOWN,
            self._worker,
            UNKNOWN if self.queued is None else str(self.queued),
        )

    @property
    def _worker(self) -> str:
        if self.worker_alive is None:
            return UNKNOWN
        return ("warm" if self.runner_warm else "alive") if self.worker_alive else "none"


def rows(
    lanes: Mapping[str, Lane],
    weights: Mapping[str, State],
    measured: Measured,
    views: Iterable[LaneView] | None,
) -> tuple[Row, ...]:
    """Every lane that has a model, and what else a worker serves. views: of the scheduler, None without one."""
    seen = {view.lane_id: view for view in views or () if view.task is not Task.JUDGE}
    listed = [_row(lane, weights.get(lane.id), measured) for lane in lanes.values() if lane.model is not None]
    known = {row.lane_id for row in listed}
    listed += [
        _served(view) for view in seen.values() if view.lane_id not in known and (view.worker_alive or view.queued)
    ]
    return tuple(_with_view(row, seen.get(row.lane_id)) for row in listed)


def _row(lane: Lane, weights: State | None, measured: Measured) -> Row:
    assert lane.model is not None
    own = {name: int(lane.defaults[name]) for name in ("width_px", "height_px", "num_frames")}
    return Row(
        lane_id=lane.id,
        lane_title=lane.title,
        task=lane.task,
        env=lane.env,
        repo=lane.model.repo,
        licence=lane.model.licence,
        gated=lane.model.gated,
        parameters_b=lane.model.parameters_b,
        weights=weights,
        smallest_card_gib=memory.smallest_card_gib(lane, Shape(**own), measured),
        rungs=tuple(rung.name for rung in lane.ladder),
    )


def _served(view: LaneView) -> Row:
    return Row(
        lane_id=view.lane_id,
        lane_title=view.lane_title,
        task=view.task.value,
        env=view.env,
        repo=view.repo,
        licence=view.licence or None,
        gated=view.gated,
        parameters_b=view.parameters_b,
    )


def _with_view(row: Row, view: LaneView | None) -> Row:
    if view is None:
        return row
    return replace(row, worker_alive=view.worker_alive, runner_warm=view.runner_warm, queued=view.queued)


def judge_cells(judge: JudgeLane, weights: State, view: LaneView | None) -> tuple[str, ...]:
    """The text of each of ``JUDGE_COLUMNS``. view: of the scheduler, None without one."""
    model = judge.model
    worker = UNKNOWN if view is None else ("warm" if view.runner_warm else "alive") if view.worker_alive else "none"
    return (
        judge.id,
        TIERS[judge.tier],
        judge.device,
        model.repo if model else "none needed",
        (model.licence or UNKNOWN) if model else "",
        weights.value if model else "none needed",
        worker,
        UNKNOWN if view is None else str(view.queued),
    )
