"""Whether this worker can judge, from facts that somebody else gathered. Pure.

Every check runs: a person mends everything at once, not one thing per try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from screentest import memory
from screentest.judges import JudgeLane
from screentest.records import JobSpec, JudgePurpose, Verdict
from screentest_worker import weights_layout
from screentest_worker.admission import Shortage
from screentest_worker.device_memory import DeviceMemory, gib
from screentest_worker.findings import Check, Problem
from screentest_worker.preflight import Decision
from screentest_worker.weights_folder import WeightsFolder

# By adapter, what a judge's file may set: what the classes of screentest_runner.judging read.
SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    "pixels": frozenset(),
    "embedding": frozenset({"dtype", "mu", "tau"}),
    "vlm": frozenset({"dtype", "mode", "longest_side_px"}),
    "endpoint": frozenset({"concurrency", "tries", "timeout_s", "pause_s", "mode", "longest_side_px"}),
}
DTYPES: Final = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The server that a remote judge asks. key_file: path of its API key, None where it wants none."""

    base_url: str
    model: str
    key_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true on this machine now; None = not looked at, because the judge does not need it.

    missing_env: the env's interpreter when it is not there. weights: what is in their folder. endpoint: None = no
    server is named. missing_key: the key's file when it is not there. memory: None also where telemetry did not answer.
    """

    judge: JudgeLane
    missing_env: str | None = None
    weights: WeightsFolder | None = None
    endpoint: Endpoint | None = None
    missing_key: str | None = None
    memory: DeviceMemory | None = None


def decide(facts: Facts, spec: JobSpec) -> Decision:
    foreign = _of_another_lane(facts.judge, spec)
    if foreign is not None:
        return Decision(verdict=Verdict.REFUSED, problems=(foreign,))
    problems = (
        *_subject(spec),
        *_env(facts),
        *_settings(facts.judge),
        *_weights(facts),
        *_endpoint(facts),
        *_memory(facts),
    )
    if problems:
        return Decision(verdict=Verdict.REFUSED, problems=problems)
    return Decision(verdict=Verdict.OK, first_rung=0)


def shortage(judge: JudgeLane, found: DeviceMemory) -> Shortage | None:
    """Why the judge cannot be loaded into what is free at this moment; None when it can, or nobody knows."""
    short = _short(judge, found.free_bytes, found)
    return (
        None if short is None else Shortage(reason=f"preflight: {short}", fix=_memory_fix(found), has_lower_rung=False)
    )


def _of_another_lane(judge: JudgeLane, spec: JobSpec) -> Problem | None:
    if spec.lane_id != judge.id:
        reason = f"this worker runs the judge {judge.id!r}, the job wants {spec.lane_id!r}"
        return Problem(check=Check.LANE, reason=reason, fix="report this defect")
    if spec.lane_digest != judge.digest:
        reason = f"the judge {spec.lane_id!r} has changed since judging was planned"
        fix = "restart this judge's worker if its file is older, otherwise judge the sweep again"
        return Problem(check=Check.LANE, reason=reason, fix=fix)
    return None


def _subject(spec: JobSpec) -> Iterator[Problem]:
    if spec.judged is None:
        yield Problem(check=Check.LANE, reason="the job names nothing to judge", fix="report this defect")
    elif spec.judged.purpose is JudgePurpose.CONTROLS and spec.judged.other_rubric is None:
        reason = "the job asks for controls and names no rubric of another prompt"
        yield Problem(check=Check.LANE, reason=reason, fix="report this defect")


def _env(facts: Facts) -> Iterator[Problem]:
    if facts.missing_env is not None:
        reason = f"the judges' env is not there: {facts.missing_env}"
        yield Problem(check=Check.ENV, reason=reason, fix="run `make envs`")


def _settings(judge: JudgeLane) -> Iterator[Problem]:
    legal = SETTINGS[judge.adapter]
    for name in sorted(judge.settings.keys() - legal):
        known = f"it has {', '.join(sorted(legal))}" if legal else "it has none"
        reason = f"judge {judge.id!r}: the adapter {judge.adapter!r} has no setting {name!r}; {known}"
        yield Problem(check=Check.SIGNATURE, reason=reason, fix=f"correct [settings] in {judge.id}.toml")
    dtype = judge.settings.get("dtype")
    if "dtype" in legal and dtype is not None and dtype not in DTYPES:
        reason = f"judge {judge.id!r}: settings.dtype {dtype!r} is none of {', '.join(DTYPES)}"
        yield Problem(check=Check.DTYPE, reason=reason, fix=f"correct [settings] in {judge.id}.toml")


def _weights(facts: Facts) -> Iterator[Problem]:
    if facts.judge.model is not None and facts.weights is not None:
        fetch = f"run `screentest models pull {facts.judge.id}`"
        yield from weights_layout.checkpoint_problems(facts.weights, fetch)


def _endpoint(facts: Facts) -> Iterator[Problem]:
    if facts.judge.adapter != "endpoint":
        return
    if facts.endpoint is None:
        fix = "set SCREENTEST_JUDGE_URL and SCREENTEST_JUDGE_MODEL for its worker, then restart it"
        yield Problem(check=Check.SERVER, reason=f"judge {facts.judge.id!r} is told of no server", fix=fix)
    elif not facts.endpoint.model:
        reason = f"judge {facts.judge.id!r} is not told which model of its server to ask"
        yield Problem(check=Check.SERVER, reason=reason, fix="set SCREENTEST_JUDGE_MODEL for its worker")
    if facts.missing_key is not None:
        reason = f"the server's key is not there: {facts.missing_key}"
        yield Problem(
            check=Check.SERVER, reason=reason, fix="write the key to that file, or unset SCREENTEST_JUDGE_KEY_FILE"
        )


def _memory(facts: Facts) -> Iterator[Problem]:
    if facts.memory is None:
        return
    short = _short(facts.judge, facts.memory.ceiling_bytes, facts.memory)
    if short is not None:
        yield Problem(check=Check.MEMORY, reason=short, fix=_memory_fix(facts.memory))


def _short(judge: JudgeLane, free_bytes: int | None, found: DeviceMemory) -> str | None:
    if judge.needs_memory_gib is None or free_bytes is None:
        return None
    needed = int(judge.needs_memory_gib * memory.GIB)
    if needed <= free_bytes:
        return None
    others = f" ({'; '.join(found.foreign)})" if found.foreign else ""
    return f"{judge.title} needs {gib(needed)}, {gib(free_bytes)} are free{others}"


def _memory_fix(found: DeviceMemory) -> str:
    if found.foreign:
        return "stop what else holds the device's memory, then judge again"
    return "judge with a smaller judge, or on a card with more memory"
