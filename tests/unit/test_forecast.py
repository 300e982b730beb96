"""How long a job waits follows from what stands before it, and from nothing that nobody knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screentest.records import JobSpec
from screentest_scheduler import admission, forecast, planning, transitions
from screentest_scheduler.admission import Candidate, Slot
from screentest_scheduler.forecast import Cost, Expectation
from tests.made_sweeps import plan, record, stamp

LANES = ("wan", "svd", "mochi")
[SPEC] = planning.jobs(record([plan("wan", "Wan")]))
COSTS = {"wan": Cost(load_s=10, clip_s=100), "svd": Cost(load_s=20, clip_s=30), "mochi": Cost(load_s=5, clip_s=None)}


def candidate(lane_id: str, number: int, *, priority: int = 0, is_paused: bool = False) -> Candidate:
    spec: JobSpec = replace(SPEC, job_id=f"{lane_id}-{number}", lane_id=lane_id)
    entry = transitions.submitted_entry(spec, stamp(0), 1)
    return Candidate(entry=entry, priority=priority, is_paused=is_paused, order=(0, number))


def expected(
    *candidates: Candidate, loaded_lane: str = "", busy_s: float | None = 0, alive: tuple[str, ...] = LANES
) -> dict[str, Expectation]:
    return forecast.expectations(
        candidates,
        lambda item: COSTS[item.entry.spec.lane_id],
        loaded_lane=loaded_lane,
        busy_s=busy_s,
        lanes_alive=alive,
    )


def test_a_job_waits_for_all_before_it_and_a_model_is_loaded_once() -> None:
    found = expected(candidate("wan", 1), candidate("wan", 2), candidate("svd", 3), busy_s=7)
    assert found["wan-1"] == Expectation(wait_s=7, run_s=110)
    assert found["wan-2"] == Expectation(wait_s=117, run_s=100)
    assert found["svd-3"] == Expectation(wait_s=217, run_s=50)


def test_the_loaded_lane_comes_first_and_pays_no_load() -> None:
    found = expected(candidate("wan", 1), candidate("svd", 2), loaded_lane="svd")
    assert found["svd-2"] == Expectation(wait_s=0, run_s=30)
    assert found["wan-1"] == Expectation(wait_s=30, run_s=110)


def test_behind_an_unknown_length_nothing_is_known() -> None:
    found = expected(candidate("mochi", 1), candidate("svd", 2))
    assert found["mochi-1"] == Expectation(wait_s=0, run_s=None)
    assert found["svd-2"] == Expectation(wait_s=None, run_s=50)
    assert expected(candidate("svd", 1), busy_s=None)["svd-1"].wait_s is None


def test_what_cannot_run_keeps_nobody_waiting() -> None:
    found = expected(candidate("wan", 1, is_paused=True), candidate("mochi", 2), candidate("svd", 3), alive=("svd",))
    assert found["svd-3"].wait_s == 0
    assert (found["wan-1"].wait_s, found["mochi-2"].wait_s) == (None, None)
    assert found["wan-1"].run_s == 110


def test_a_running_job_never_has_less_than_nothing_left() -> None:
    assert (forecast.left_s(100, 30), forecast.left_s(100, 170), forecast.left_s(None, 3)) == (70, 0, None)


@given(
    jobs=st.lists(st.tuples(st.sampled_from(LANES), st.integers(-1, 1)), min_size=1, max_size=12),
    loaded=st.sampled_from(("", *LANES)),
)
def test_the_order_is_the_one_of_admission(jobs: list[tuple[str, int]], loaded: str) -> None:
    waiting = [candidate(lane_id, number, priority=priority) for number, (lane_id, priority) in enumerate(jobs)]
    ordered = forecast.in_order(waiting, loaded)
    for item in ordered:
        slot = Slot(host="local", device="gpu-0", drained_reason="", holder="", loaded_lane=loaded)
        assert admission.choose(slot, waiting, LANES) == item
        waiting.remove(item)
        loaded = item.entry.spec.lane_id


@pytest.mark.parametrize(
    ("cost", "is_loaded", "run_s"),
    [
        (Cost(load_s=None, clip_s=5), True, 5),
        (Cost(load_s=None, clip_s=5), False, None),
        (Cost(load_s=2, clip_s=None), True, None),
    ],
)
def test_an_unknown_part_leaves_the_whole_unknown(cost: Cost, is_loaded: bool, run_s: float | None) -> None:
    assert cost.run_s(is_loaded=is_loaded) == run_s
