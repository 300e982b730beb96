"""Which judges take part, where they work, and how a wrong choice is told."""

from __future__ import annotations

import pytest

from screentest.errors import BadRequest
from screentest.judges import load_judges
from screentest_scheduler import judge_planning
from tests.played import ROOT

CATALOGUE = load_judges(ROOT / "deploy" / "judges")
CPU, GPU = ("local", "cpu-0"), ("local", "gpu-0")
ALL_ON_CPU = {judge_id: None if judge.device == "gpu" else CPU for judge_id, judge in CATALOGUE.items()}


@pytest.mark.parametrize(
    ("judge_id", "sweep_place", "known", "place"),
    [
        ("pixels", CPU, (CPU,), CPU),
        ("pixels", GPU, (GPU, CPU), CPU),
        ("pixels", GPU, (GPU,), None),
        ("endpoint", GPU, (GPU, CPU), CPU),
        ("qwen3-vl-8b", GPU, (GPU, CPU), GPU),
        ("qwen3-vl-8b", CPU, (CPU,), None),
    ],
)
def test_a_judge_works_beside_the_gpu_unless_it_takes_it(
    judge_id: str, sweep_place: tuple[str, str], known: tuple[tuple[str, str], ...], place: tuple[str, str] | None
) -> None:
    assert judge_planning.place(CATALOGUE[judge_id], None, sweep_place, known) == place


def test_a_judge_works_where_its_worker_is() -> None:
    assert judge_planning.place(CATALOGUE["qwen3-vl-8b"], ("other", "gpu-1"), CPU, (CPU,)) == ("other", "gpu-1")


def test_pixels_take_part_whoever_is_asked() -> None:
    plans = judge_planning.choose(("siglip2-base",), CATALOGUE, ALL_ON_CPU, "f")
    assert [(plan.lane_id, plan.tier, plan.device) for plan in plans] == [
        ("pixels", "a", "cpu-0"),
        ("siglip2-base", "b", "cpu-0"),
    ]
    assert plans[1].lane_digest == CATALOGUE["siglip2-base"].digest
    assert [plan.lane_id for plan in judge_planning.choose((), CATALOGUE, ALL_ON_CPU, "f")] == ["pixels"]


def test_a_stack_without_the_place_of_a_judge_goes_without_it_unless_it_was_asked_for() -> None:
    nowhere = dict.fromkeys(CATALOGUE)
    assert judge_planning.choose((), CATALOGUE, nowhere, "f") == ()
    with pytest.raises(BadRequest, match="add it to SCREENTEST_DEVICES") as refused:
        judge_planning.choose(("pixels",), CATALOGUE, nowhere, "spec.judge_lane_ids")
    assert refused.value.violations[0].field == "spec.judge_lane_ids[0]"


def test_every_wrong_judge_is_named_at_once() -> None:
    with pytest.raises(BadRequest) as refused:
        judge_planning.choose(("siglip", "qwen3-vl-8b", "pixels", "pixels"), CATALOGUE, ALL_ON_CPU, "f")
    assert [violation.field for violation in refused.value.violations] == ["f[0]", "f[1]", "f[3]"]
