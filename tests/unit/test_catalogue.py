"""The catalogue of `screentest lanes`: the files without a stack, the workers with one; unknown stays unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from screentest.judges import load_judges
from screentest.lanes import load_lanes
from screentest.measured import Measured, load_measured
from screentest.records import LaneView, Task
from screentest_ui.catalogue import COLUMNS, JUDGE_COLUMNS, Row, judge_cells, rows
from screentest_ui.weights_folder import State

DEPLOY = Path(__file__).parents[2] / "deploy"
CATALOGUE = load_lanes(DEPLOY / "lanes")
MEASURED = load_measured(DEPLOY / "measured")
WAN = "wan2-1-t2v-1-3b"


def view(lane_id: str, *, alive: bool, queued: int = 0) -> LaneView:
    return LaneView(
        lane_id=lane_id,
        lane_title="Title",
        task=Task.T2V,
        env="stub",
        lane_digest="d" * 64,
        repo="",
        licence="",
        gated=False,
        parameters_b=None,
        worker_alive=alive,
        runner_warm=alive,
        host="local",
        device="cpu-0",
        queued=queued,
    )


def cells(row: Row) -> dict[str, str]:
    return dict(zip(COLUMNS, row.cells, strict=True))


def test_seventeen_lanes_are_shown_without_a_stack() -> None:
    listed = rows(CATALOGUE, {WAN: State.PRESENT}, MEASURED, None)
    assert len(listed) == 17
    wan = cells(next(row for row in listed if row.lane_id == WAN))
    assert (wan["Licence"], wan["Weights"], wan["Gated"]) == ("Apache-2.0", "present", "no")
    assert wan["Smallest card"].endswith(" GiB")
    assert wan["Rungs"].startswith("resident, lean")
    assert (wan["Worker"], wan["Queued"]) == ("unknown", "unknown")


def test_card_that_nobody_measured_is_unknown() -> None:
    listed = rows(CATALOGUE, {}, Measured(), None)
    assert {cells(row)["Smallest card"] for row in listed} == {"unknown"}
    assert {cells(row)["Weights"] for row in listed} == {"unknown"}


def test_worker_and_queue_come_from_the_scheduler() -> None:
    listed = rows(CATALOGUE, {}, MEASURED, [view(WAN, alive=True, queued=3)])
    wan = cells(next(row for row in listed if row.lane_id == WAN))
    assert (wan["Worker"], wan["Queued"]) == ("warm", "3")


def test_stub_is_shown_only_where_something_serves_it() -> None:
    assert "stub" in {row.lane_id for row in rows(CATALOGUE, {}, MEASURED, [view("stub", alive=True)])}
    assert "stub" not in {row.lane_id for row in rows(CATALOGUE, {}, MEASURED, [view("stub", alive=False)])}


def test_judges_are_listed_apart_from_the_lanes() -> None:
    serving = replace(view("pixels", alive=True, queued=2), task=Task.JUDGE, tier="a")
    assert "pixels" not in {row.lane_id for row in rows(CATALOGUE, {}, MEASURED, [serving])}
    judges = load_judges(DEPLOY / "judges")
    pixels = dict(zip(JUDGE_COLUMNS, judge_cells(judges["pixels"], State.ABSENT, serving), strict=True))
    assert (pixels["Tier"], pixels["Weights"], pixels["Worker"], pixels["Queued"]) == (
        "a, pixels",
        "none needed",
        "warm",
        "2",
    )
    model = dict(zip(JUDGE_COLUMNS, judge_cells(judges["qwen3-vl-8b"], State.ABSENT, None), strict=True))
    assert (model["Weights"], model["Worker"]) == (State.ABSENT.value, "unknown")
