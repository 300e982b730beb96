"""Checkpoints of other kinds, and bad ones: which load, and what the ones that must not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from .asking import TINY_SIGLIP, ask_judges, made_clip, order_of, request_of, rubric_of, run_in_judge_env
from .scenes import drawn_story

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STORY = drawn_story(7)
FULL32 = {"dtype": "float32"}


@dataclass(frozen=True, slots=True)
class Found:
    """masses: of the vision-language model with and without its cache. by_name: what each order gave."""

    masses: Mapping[str, list[dict[str, float]]]
    by_name: Mapping[str, dict[str, Any]]

    def part(self, name: str) -> dict[str, Any]:
        assert self.by_name[name]["failed"] is None
        (part,) = self.by_name[name]["parts"]
        return part

    def failed(self, name: str) -> tuple[str, str]:
        kind, message = self.by_name[name]["failed"]
        return kind, message


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("checkpoints")
    masses = json.loads(run_in_judge_env("tests.judging.made_checkpoints", "", str(folder), str(TINY_SIGLIP)))
    (folder / "empty").mkdir()
    request = request_of(made_clip(folder, STORY, "all-beats"), rubric_of(STORY))
    orders = {
        "qwen": order_of("vlm", [request], FULL32, weights_dir=str(folder / "qwen")),
        "qwen cheap": order_of("vlm", [request], {**FULL32, "mode": "cheap"}, weights_dir=str(folder / "qwen")),
        "clip": order_of("embedding", [request], FULL32, weights_dir=str(folder / "clip")),
        "bfloat16": order_of("embedding", [request], {"dtype": "bfloat16"}, weights_dir=str(TINY_SIGLIP)),
        "not finite": order_of("embedding", [request], FULL32, weights_dir=str(folder / "not-finite")),
        "incomplete": order_of("embedding", [], FULL32, weights_dir=str(folder / "incomplete")),
        "bert": order_of("embedding", [], FULL32, weights_dir=str(folder / "bert")),
        "empty": order_of("embedding", [], FULL32, weights_dir=str(folder / "empty")),
        "none": order_of("vlm", [], FULL32, weights_dir=None),
        "base": order_of("vlm", [], FULL32, weights_dir=str(folder / "base")),
        "siglip as vlm": order_of("vlm", [], FULL32, weights_dir=str(folder / "bert")),
    }
    return Found(masses, dict(zip(orders, ask_judges(list(orders.values())), strict=True)))


def test_pictures_from_the_cache_give_the_same_answer(found: Found) -> None:
    for cached, plain in zip(found.masses["cached"], found.masses["uncached"], strict=True):
        assert cached == pytest.approx(plain, abs=1e-5)
    assert len({round(mass["yes"], 3) for mass in found.masses["cached"]}) == 3, "questions must matter"


def test_model_in_process_answers_every_element_in_every_window(found: Found) -> None:
    """For shape only: its weights are random."""
    part = found.part("qwen")
    assert (part["tier"], part["method"], part["badges"]) == ("c", "logprobs", [])
    assert {key: len(row) for key, row in part["answers"].items()} == {
        **{f"{name}-{n}": 8 for name in ("thing", "colour") for n in (1, 2, 3, 4)},
        "noise": 1,
    }
    assert all(0 <= p <= 1 for row in part["answers"].values() for p in row if p is not None)
    assert part["calls"] == 2 * (8 * 8 + 1)
    assert part["told"][-1] == [part["calls"], part["calls"]]


def test_clip_checkpoint_loads_through_the_same_door(found: Found) -> None:
    part = found.part("clip")
    assert all(len(row) == 8 for row in part["answers"].values())
    assert part["badges"] == []


def test_judge_in_bfloat16_sees_the_same_story(found: Found) -> None:
    row = found.part("bfloat16")["answers"]["thing-1"]
    assert min(row[:2]) > 0.7 > 0.3 > max(row[2:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("incomplete", "1 weights are missing, the first is 'text_model.final_layer_norm.weight'"),
        ("bert", "holds a 'bert' model; an embedding judge is one of siglip, siglip2, clip"),
        ("empty", "no file named config.json"),
        ("none", "has no weights: fetch them with `screentest models pull test-vlm`"),
        ("base", "has no chat template"),
        ("siglip as vlm", "holds a 'bert' model, which reads no pictures and text"),
    ],
)
def test_unfit_checkpoint_is_refused_with_what_to_do(found: Found, name: str, message: str) -> None:
    kind, said = found.failed(name)
    assert kind == "layout"
    assert message in said


def test_embeddings_that_are_no_numbers_end_the_judgement(found: Found) -> None:
    assert found.part("not finite")["failed"][0] == "nan"
