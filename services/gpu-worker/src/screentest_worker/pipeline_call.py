"""Whether a pipeline class takes what a lane passes: its components, and every keyword of a job's call. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Final

from screentest.lanes import Lane
from screentest_worker.findings import Check, Problem
from screentest_worker.signature import Method, PipelineSignature

# What the runner adds to every call; a callback only where the class takes one.
RUNNERS_OWN: Final = ("generator", "output_type")


def problems(lane: Lane, signature: PipelineSignature, keywords: Iterable[str]) -> Iterator[Problem]:
    """``keywords``: of the job's call, dotted ones (an attribute of a component) included."""
    kind = signature.class_name
    passed = set(keywords) | ({lane.parameters["keyframe"]} if lane.takes("keyframe") else set())
    for keyword in sorted(passed):
        owner, dot, _ = keyword.partition(".")
        if dot:
            if not signature.init.takes(owner):
                yield _unknown(f"{kind} has no component {owner!r} for {keyword}", owner, signature.init)
        elif not signature.call.takes(keyword):
            yield _unknown(f"{kind} takes no {keyword!r}", keyword, signature.call)
    for keyword in RUNNERS_OWN:
        if not signature.call.takes(keyword):
            yield _problem(f"{kind} takes no {keyword!r}, which every call passes", "this class needs an adapter")
    for parameter in signature.call.parameters:
        if parameter.required and parameter.name not in passed:
            reason = f"{kind} wants {parameter.name!r}, and the lane passes none"
            yield _problem(reason, "name a class of the lane's own task, or pass it in [parameters] or [call]")
    yield from _components(lane, signature)


def _components(lane: Lane, signature: PipelineSignature) -> Iterator[Problem]:
    kind = signature.class_name
    for name in (*lane.components, *lane.pipeline.init):
        if not signature.init.takes(name):
            where = f"components.{name}" if name in lane.components else f"pipeline.init.{name}"
            yield _unknown(f"{kind} has no part for {where}", name, signature.init)
    for parameter in signature.init.parameters:
        is_given = parameter.name in lane.components or parameter.name in lane.pipeline.init
        if parameter.required and not is_given and parameter.name not in signature.optional_components:
            yield _problem(f"{kind} wants the component {parameter.name!r}", f"add [components.{parameter.name}]")


def _unknown(reason: str, name: str, method: Method) -> Problem:
    near = difflib.get_close_matches(name, method.names, n=2, cutoff=0.6)
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it takes {', '.join(method.names)}"
    return _problem(reason, f"correct the lane file: {fix}")


def _problem(reason: str, fix: str) -> Problem:
    return Problem(check=Check.SIGNATURE, reason=reason, fix=fix)
