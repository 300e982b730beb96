"""What a judge found, schema `judgement/1`: the JSON that a judge job leaves in the depot, read strictly. Pure.

The runner writes what it found and the worker adds what it was asked; the reporter reads both here and scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from screentest.errors import BadRequest
from screentest.strict import read_table, require

SCHEMA: Final = "judgement/1"

Method = Literal["pixels", "embedding", "logprobs", "sampled"]
ControlName = Literal["wrong-prompt", "black", "frame-shuffled", "static-first-frame", "repeat"]
# By element id, P(yes) in 0..1 per window; None = an invalid answer. What was not asked is not there.
Answers = Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the judge answered in one control. rubric_sha256: of the rubric that it was asked. answers: see Answers."""

    control: ControlName
    rubric_sha256: str
    answers: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One judge's answers about one clip or keyframe.

    job_id, clip_lane_id: of the clip; empty for a keyframe. sha256: of what was looked at. judge_version: of the
    judge's file, weights and libraries in one text. windows: parts of equal time that the clip was cut into. pixels:
    what tier a measured (flags, thresholds_version, camera, cuts, ...); other tiers leave the key out. details: per
    element, what the answers were made of. controls: only where the purpose is controls; answers are then those of the
    clip asked again.
    """

    schema: str
    purpose: Literal["clip", "keyframe", "controls"]
    sweep_id: str
    job_id: str
    clip_lane_id: str
    sha256: str
    judge_id: str
    judge_version: str
    tier: Literal["a", "b", "c"]
    method: Method
    rubric_sha256: str
    windows: int
    answers: Mapping[str, Any]
    badges: tuple[str, ...] = ()
    calls: int = 0
    seconds: float | int = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    pixels: Mapping[str, Any] | None = None
    controls: tuple[Control, ...] = ()


def from_json(data: bytes | str, source: str) -> Judgement:
    """A judgement from its JSON. Raises BadRequest that names `source` and the key."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{source}: not JSON: {error}") from error
    require(isinstance(content, dict), source, "", "wants an object")
    require(content.get("schema") == SCHEMA, source, "schema", f"wants {SCHEMA!r}, got {content.get('schema')!r}")
    read = cast("Judgement", read_table(Judgement, content, source, ""))
    for answers in (read.answers, *(control.answers for control in read.controls)):
        _check(answers, source)
    return read


def answers_of(content: Mapping[str, Any]) -> Answers:
    """Checked answers as tuples."""
    return {element_id: tuple(row) for element_id, row in content.items()}


def to_json(content: Mapping[str, Any]) -> bytes:
    """Canonical bytes: the same finding is the same object in the depot."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _check(answers: Mapping[str, Any], source: str) -> None:
    for element_id, row in answers.items():
        require(isinstance(row, list), source, f"answers.{element_id}", "wants a list")
        for p in row:
            legal = p is None or (isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1)
            require(legal, source, f"answers.{element_id}", f"wants 0 to 1 or null, got {p!r}")
