"""What a call sets as an attribute of a component is there during the call, and gone after it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from screentest_runner.adapters.diffusers import attributes_of, set_attributes
from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass


def pipeline() -> SimpleNamespace:
    return SimpleNamespace(guider=SimpleNamespace(guidance_scale=6.0, start=0.0))


def test_only_dotted_names_of_a_call_are_attributes() -> None:
    assert attributes_of({"guider.guidance_scale": 3.0, "num_frames": 25}) == {"guider.guidance_scale": 3.0}


def test_a_warm_pipeline_does_not_carry_an_attribute_to_its_next_call() -> None:
    pipe = pipeline()
    with set_attributes(pipe, {"guider.guidance_scale": 3.0}):
        assert pipe.guider.guidance_scale == 3.0
    assert pipe.guider.guidance_scale == 6.0


def test_a_failed_call_does_not_leave_its_attributes_behind() -> None:
    pipe = pipeline()
    with pytest.raises(RuntimeError, match="out of memory"), set_attributes(pipe, {"guider.guidance_scale": 3.0}):
        raise RuntimeError("out of memory")
    assert pipe.guider.guidance_scale == 6.0


def test_an_attribute_that_is_not_there_is_named_and_nothing_stays_set() -> None:
    pipe = pipeline()
    with (
        pytest.raises(AttemptFailure, match=r"SimpleNamespace has no guider\.strength") as caught,
        set_attributes(pipe, {"guider.start": 0.5, "guider.strength": 1.0}),
    ):
        pytest.fail("the call must not begin")
    assert caught.value.failure_class is FailureClass.BAD_KWARGS
    assert pipe.guider == pipeline().guider
