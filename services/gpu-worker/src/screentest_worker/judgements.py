"""The judgement that a judge job leaves: what its runner found, and what it was asked. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from screentest import judgement
from screentest.errors import BadRequest
from screentest.judges import JudgeLane
from screentest.records import JobSpec, Judged, JudgementFacts
from screentest.rubric import WHOLE_CLIP_KINDS, Element, Rubric
from screentest_runner import protocol

DIGEST_CHARS: Final = 12  # of the judge's file: as many as job ids carry
WRONG_PROMPT: Final = "wrong-prompt"


def questions(rubric: Rubric) -> list[dict[str, Any]]:
    """The elements as the runner reads them (screentest_runner.judging.questions)."""
    return [_question(element) for element in rubric.elements]


def _question(element: Element) -> dict[str, Any]:
    return {
        "id": element.id,
        "kind": element.kind,
        "text": element.text,
        "question": element.question,
        "counter_question": element.counter_question,
        "swaps": list(element.swaps),
        "whole_clip": element.kind in WHOLE_CLIP_KINDS,
        "beat": element.beat,
    }


def build(
    spec: JobSpec,
    judged: Judged,
    judge: JudgeLane,
    answer: protocol.Judged,
    found: bytes,
    asked_model: str | None = None,
) -> dict[str, Any]:
    """The content of the judgement, read back once by the rules of `screentest.judgement`.

    found: what the runner wrote. asked_model: of the server that was asked, None where none was. Raises BadRequest when
    found is no JSON object, or not what a judgement wants.
    """
    content = {
        **_read(found),
        "schema": judgement.SCHEMA,
        "purpose": judged.purpose.value,
        "sweep_id": spec.sweep_id,
        "job_id": judged.job_id,
        "clip_lane_id": judged.lane_id,
        "sha256": judged.sha256,
        "judge_id": judge.id,
        "judge_version": version(judge, spec.weights_revision, answer.versions, asked_model),
        "rubric_sha256": judged.rubric.rubric_sha256,
        "seconds": round(sum(answer.timings_s.values()), 3),
    }
    content["controls"] = [_control(control, judged) for control in content.get("controls") or ()]
    whole = {key: value for key, value in content.items() if value is not None}
    judgement.from_json(judgement.to_json(whole), "what the judge found")
    return whole


def version(
    judge: JudgeLane, weights_revision: str, versions: Mapping[str, str], asked_model: str | None = None
) -> str:
    """What two judgements must share to be of one judge: its file, its weights and the libraries, in one line.

    asked_model: of a server elsewhere, whose weights nobody here can see.
    """
    weights = [f"weights {weights_revision}"] if judge.model is not None else []
    weights += [f"model {asked_model}"] if asked_model is not None else []
    return ", ".join(
        [judge.digest[:DIGEST_CHARS], *weights, *(f"{name} {versions[name]}" for name in sorted(versions))]
    )


def facts(judge: JudgeLane, answer: protocol.Judged) -> JudgementFacts:
    return JudgementFacts(
        tier=judge.tier,
        method=answer.method,
        calls=answer.calls,
        presence=answer.presence,
        badges=tuple(answer.badges),
    )


def _read(found: bytes) -> dict[str, Any]:
    try:
        content = json.loads(found)
    except ValueError as error:
        raise BadRequest(f"what the judge found is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadRequest("what the judge found is no JSON object")
    return content


def _control(control: Mapping[str, Any], judged: Judged) -> dict[str, Any]:
    """With the rubric that it was asked: that of another prompt where this is the control."""
    other = judged.other_rubric if control.get("control") == WRONG_PROMPT else None
    return {**control, "rubric_sha256": (other or judged.rubric).rubric_sha256}
