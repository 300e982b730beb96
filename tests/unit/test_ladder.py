"""What has won before is where the next job of the same kind begins."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from screentest.records import FailureClass, JobSpec, Outcome, Weights
from screentest_scheduler import planning
from screentest_scheduler.ladder import WinningRungs
from tests.made_sweeps import plan, record

SPEC = replace(
    planning.jobs(record([plan("wan", "Wan")]))[0], rungs=("resident", "lean", "fp8"), weights=Weights.FULL_RANDOM
)
AT = datetime(2026, 5, 8, 23, 29, 59, tzinfo=UTC)
CLIP = Outcome(failure_class=None, gpu_name="NVIDIA H200")


def after(outcome: Outcome, *, rung: int = 2) -> WinningRungs:
    winning = WinningRungs()
    winning.learn(SPEC, rung, outcome, AT)
    return winning


def begins(winning: WinningRungs, spec: JobSpec, gpu_name: str | None = "NVIDIA H200") -> int:
    return winning.first_rung(spec, gpu_name)


def test_the_rung_of_the_last_clip_is_used_first() -> None:
    assert begins(after(CLIP), replace(SPEC, job_id="another", seed=7)) == 2
    assert begins(after(CLIP), replace(SPEC, first_rung=1)) == 2


def test_a_clip_at_the_rung_of_its_plan_teaches_nothing() -> None:
    """The plan may have begun low because another process held memory: the next one may find it free."""
    winning = WinningRungs()
    winning.learn(replace(SPEC, first_rung=2), 2, CLIP, AT)
    assert begins(winning, SPEC) == 0


def test_a_plan_below_the_rung_that_won_stands() -> None:
    assert begins(after(CLIP, rung=1), replace(SPEC, first_rung=2)) == 2


def test_an_older_clip_that_is_told_later_changes_nothing() -> None:
    """A restored sweep is read after what was learned since."""
    winning = after(CLIP, rung=1)
    winning.learn(SPEC, 2, CLIP, AT - timedelta(days=1))
    assert begins(winning, SPEC) == 1


def test_published_weights_begin_where_random_ones_of_the_same_size_won() -> None:
    assert begins(after(CLIP), replace(SPEC, weights=Weights.HUB)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"lane_id": "svd"},
        {"rungs": ("resident", "fp8", "short")},
        {"width_px": 1280},
        {"num_frames": 9},
        {"weights": Weights.MINIATURE},
        {"memory_cap_gib": 16.0},
    ],
)
def test_another_circumstance_begins_with_its_plan(changes: dict[str, object]) -> None:
    assert begins(after(CLIP), replace(SPEC, **changes)) == 0  # type: ignore[arg-type]


def test_another_gpu_begins_with_its_plan() -> None:
    assert begins(after(CLIP), replace(SPEC, first_rung=1), "NVIDIA RTX 4090") == 1
    assert begins(after(CLIP), SPEC, None) == 0


def test_a_failure_teaches_nothing() -> None:
    assert begins(after(replace(CLIP, failure_class=FailureClass.OOM_LOAD)), SPEC) == 0
