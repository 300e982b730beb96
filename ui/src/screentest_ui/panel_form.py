"""The Submit form: what a person typed, what is wrong with it, and the sweep it asks for. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from screentest.errors import BadRequest, FieldViolation
from screentest.records import Keyframe, LaneVerdict, LaneView, Requested, RubricRef, SweepSpec, Verdict, Weights
from screentest.wire import encode
from screentest_ui.sweepfile import SweepFile

MAX_SEED = 2**63 - 1  # JobSpec.seed is an int64
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The form as it stands. ``prompts_text``: one prompt per block, a blank line between blocks."""

    title: str
    prompts_text: str
    lane_ids: tuple[str, ...]
    seeds_text: str
    weights: Weights
    keyframe: Keyframe | None = None
    requested: Requested = field(default_factory=Requested)
    skip_impossible: bool = True
    memory_cap_gib: float | None = None
    judge_lane_ids: tuple[str, ...] = ()


def prompts(text: str) -> tuple[str, ...]:
    """One prompt per block of lines; the lines of a block are joined."""
    blocks = _BLANK_LINE.split(text.replace("\r\n", "\n"))
    return tuple(" ".join(block.split()) for block in blocks if block.strip())


def seeds(text: str) -> tuple[int, ...]:
    """Seeds separated by commas or blanks, each once. BadRequest names the one that is no seed."""
    found: dict[int, None] = {}
    for word in text.replace(",", " ").split():
        if not word.isascii() or not word.isdigit() or int(word) > MAX_SEED:
            raise _wrong("spec.seeds", f"{word!r} is no seed: use whole numbers from 0 on, for example 42, 43")
        found[int(word)] = None
    return tuple(found)


def problems(draft: Draft) -> tuple[FieldViolation, ...]:
    """What a person must still do before the sweep can be submitted; empty = ready."""
    wrong = []
    if not draft.title.strip():
        wrong.append(FieldViolation(field="spec.title", description="give the sweep a title"))
    if not prompts(draft.prompts_text):
        wrong.append(FieldViolation(field="spec.prompts", description="write at least one prompt"))
    if not draft.lane_ids:
        wrong.append(FieldViolation(field="spec.lane_ids", description="choose at least one lane"))
    try:
        if not seeds(draft.seeds_text):
            wrong.append(FieldViolation(field="spec.seeds", description="give at least one seed, for example 42"))
    except BadRequest as error:
        wrong.extend(error.violations)
    return tuple(wrong)


def spec(draft: Draft, rubrics: tuple[RubricRef, ...] = ()) -> SweepSpec:
    """The sweep a complete draft asks for; BadRequest lists the problems of an incomplete one.

    ``rubrics``: those that a person edited or approved; the scheduler drafts the others.
    """
    wrong = problems(draft)
    if wrong:
        raise BadRequest("the form is not complete: " + "; ".join(item.description for item in wrong), wrong)
    return SweepSpec(
        title=draft.title.strip(),
        prompts=prompts(draft.prompts_text),
        lane_ids=draft.lane_ids,
        seeds=seeds(draft.seeds_text),
        weights=draft.weights,
        keyframe=draft.keyframe,
        requested=draft.requested,
        skip_impossible=draft.skip_impossible,
        memory_cap_gib=draft.memory_cap_gib,
        judge_lane_ids=draft.judge_lane_ids,
        rubrics=rubrics,
    )


def content_of(sweep: SweepSpec) -> str:
    """16 hex of the sweep's content: equal forms have equal content."""
    return hashlib.sha256(encode(sweep)).hexdigest()[:16]


def request_id(nonce: str, sweep: SweepSpec) -> str:
    """The client request id of this content from this form.

    The same form sent twice (a double click, a timeout, a lost connection) is one sweep; a form changed in between
    is another one; and the ``nonce``, new after each accepted submit, lets a person submit the same sweep again.
    """
    return f"panel-{nonce}-{content_of(sweep)}"


def values(asked: SweepFile, live_lane_ids: Collection[str]) -> dict[str, object]:
    """A sweep file as the form's fields, by their names; of its lanes those that can start now.

    Its weights are left out: which ones can run is this machine's matter.
    """
    requested = asked.requested
    return {
        "title": asked.title,
        "prompts": "\n\n".join(asked.prompts),
        "seeds": ", ".join(map(str, asked.seeds)),
        "negative_prompt": requested.negative_prompt or "",
        "width_px": requested.width_px,
        "height_px": requested.height_px,
        "num_frames": requested.num_frames,
        "steps": requested.steps,
        "guidance": requested.guidance_scale,
        "fps": requested.fps,
        **{f"lane-{lane_id}": lane_id in live_lane_ids for lane_id in asked.lane_ids},
    }


def job_count(draft: Draft, verdicts: Mapping[str, LaneVerdict]) -> int:
    """Jobs the sweep will have: prompts x lanes x seeds, without the lanes that will be skipped."""
    return len(prompts(draft.prompts_text)) * len(taking_part(draft, verdicts)) * len(seeds(draft.seeds_text))


def taking_part(draft: Draft, verdicts: Mapping[str, LaneVerdict]) -> tuple[str, ...]:
    """The chosen lanes without those that will be skipped."""
    return tuple(lane_id for lane_id in draft.lane_ids if not (draft.skip_impossible and is_refused(verdicts, lane_id)))


def is_refused(verdicts: Mapping[str, LaneVerdict], lane_id: str) -> bool:
    return lane_id in verdicts and verdicts[lane_id].verdict is Verdict.REFUSED


def blocked_by(draft: Draft, verdicts: Mapping[str, LaneVerdict]) -> tuple[str, ...]:
    """Titles of the chosen lanes whose refusal would refuse the whole submit."""
    refused = [verdicts[lane_id].lane_title for lane_id in draft.lane_ids if is_refused(verdicts, lane_id)]
    return tuple(refused) if not draft.skip_impossible or len(refused) == len(draft.lane_ids) else ()


def usual_weights(lanes: Iterable[LaneView]) -> Weights:
    """What most people want first: the real checkpoint on a GPU, miniatures on a machine that has none."""
    return Weights.HUB if any(lane.device.startswith("gpu") for lane in lanes) else Weights.MINIATURE


def _wrong(field: str, description: str) -> BadRequest:
    return BadRequest(description, (FieldViolation(field=field, description=description),))
