"""Which judges take part and where each of them works. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from screentest.devices import is_cpu
from screentest.errors import BadRequest, FieldViolation
from screentest.judges import JudgeLane
from screentest.records import JudgePlan, Limits

Place = tuple[str, str]
# Judges that take no GPU work beside it, in the slot of the host's processor.
CPU = "cpu-0"


def choose(
    asked: Sequence[str], catalogue: Mapping[str, JudgeLane], places: Mapping[str, Place | None], field: str
) -> tuple[JudgePlan, ...]:
    """The judges asked for, and before them those that need no weights: without pixels nothing is scored.

    ``places``: where each judge of the catalogue would work, None = nowhere. Raises BadRequest naming ``field``.
    """
    violations = tuple(_violations(asked, catalogue, places, field))
    if violations:
        raise BadRequest("; ".join(violation.description for violation in violations), violations)
    always = [judge.id for judge in catalogue.values() if judge.tier == "a" and places[judge.id] is not None]
    chosen = dict.fromkeys((*always, *asked))
    return tuple(plan(catalogue[judge_id], place) for judge_id in chosen if (place := places[judge_id]) is not None)


def _violations(
    asked: Sequence[str], catalogue: Mapping[str, JudgeLane], places: Mapping[str, Place | None], field: str
) -> list[FieldViolation]:
    found = []
    for index, judge_id in enumerate(asked):
        why = ""
        if judge_id not in catalogue:
            near = difflib.get_close_matches(judge_id, catalogue, n=1, cutoff=0.4)
            known = ", ".join(catalogue) or "none; put judge files beside the lanes"
            why = f"there is no judge {judge_id!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {known}")
        elif asked.index(judge_id) != index:
            why = f"judge {judge_id!r} is chosen twice"
        elif places[judge_id] is None:
            why = _nowhere(catalogue[judge_id])
        if why:
            found.append(FieldViolation(field=f"{field}[{index}]", description=why))
    return found


def _nowhere(judge: JudgeLane) -> str:
    if judge.device == "gpu":
        return f"judge {judge.id!r} needs a GPU; start with `screentest up --device gpu-0`, or choose one for the CPU"
    return f"judge {judge.id!r} works on {CPU}, which is none of this stack's devices; add it to SCREENTEST_DEVICES"


def place(judge: JudgeLane, worker: Place | None, sweep_place: Place, known: Collection[Place]) -> Place | None:
    """Where the judge works: where its worker is, else on the sweep's GPU, or beside it on the host's processor.

    None where there is no such device.
    """
    if worker is not None:
        return worker
    if judge.device == "gpu":
        return None if is_cpu(sweep_place[1]) else sweep_place
    beside = (sweep_place[0], CPU)
    return beside if beside in known else None


def plan(judge: JudgeLane, where: Place) -> JudgePlan:
    limits = judge.limits
    return JudgePlan(
        lane_id=judge.id,
        lane_title=judge.title,
        lane_digest=judge.digest,
        tier=judge.tier,
        host=where[0],
        device=where[1],
        limits=Limits(
            load_s=float(limits.load_s), step_stall_s=float(limits.step_stall_s), attempt_s=float(limits.attempt_s)
        ),
        weights_repo=judge.model.repo if judge.model else "",
        weights_revision=judge.model.revision if judge.model else "",
    )
