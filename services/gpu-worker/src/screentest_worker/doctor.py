"""Examines lane files without a GPU: each is read, held against its pipeline class, and its miniature is run.

`python -m screentest_worker.doctor --envs-dir .venvs deploy/lanes/*.toml` prints one JSON object per check. The command
`screentest lanes doctor` shows them to a person.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, Final

from screentest.errors import BadRequest
from screentest.lanes import Lane, load_lane, usable_rungs
from screentest.measured import Shape
from screentest.records import Weights
from screentest_worker import facts, preflight, trials
from screentest_worker.findings import Problem
from screentest_worker.model_env import ChildEnded, ModelEnv
from screentest_worker.signature import PipelineSignature
from screentest_worker.trials import Finding, Outcome, Trial, failed, passed

LIMIT_S: Final = 240.0  # a lane takes 10 s on an idle core
CHILD_FIX: Final = "run it again with --jobs 1; report a lane that does this alone"


class _Over(Exception):
    """This lane cannot be examined any further; what is wrong has been told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """How lanes are examined. miniatures: folders by lane id that stand in the place of miniatures to build.

    limit_s: for one lane. is_full: also counts at full size.
    """

    envs_dir: Path
    cache_dir: Path
    miniatures: Path | None
    limit_s: float
    is_full: bool


class Examination:
    """One lane file, check by check."""

    def __init__(self, file: Path, clinic: Clinic, child: Callable[[Path], ModelEnv]) -> None:
        self._file = file
        self._clinic = clinic
        self._child_of = child
        self._child: ModelEnv | None = None
        self._deadline = time.monotonic() + clinic.limit_s
        self._lane: Lane | None = None

    def findings(self) -> Iterator[Finding]:
        """Ends early where nothing after a fault could be true."""
        doing = "file"
        try:
            for check in (self._file_read, self._signature, self._miniature, self._runs, self._rungs, self._full):
                doing = check.__name__.strip("_").replace("_", " ")
                yield from check()
        except _Over:
            return
        except ChildEnded as end:
            yield failed(doing, str(end), CHILD_FIX)

    @property
    def lane(self) -> Lane:
        assert self._lane is not None
        return self._lane

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._child is not None
        return self._child.ask(do, deadline=self._deadline, **arguments)

    # --- without the model env

    def _file_read(self) -> Iterator[Finding]:
        try:
            self._lane = load_lane(self._file)
        except BadRequest as error:
            yield failed("file", str(error), "correct the lane file")
            raise _Over from None
        if self._lane.model is None:
            yield failed("file", f"lane {self._lane.id!r} has no model", "examine a lane that has one")
            raise _Over
        yield passed("file", str(self._file))
        idle = tuple(trials.idle_rungs(self._lane))
        yield from idle or (passed("ladder", ", ".join(rung.name for rung in self._lane.ladder)),)

    def _signature(self) -> Iterator[Finding]:
        """What the class takes, read with `ast`; then that `inspect` sees the same."""
        env_python = self._clinic.envs_dir / self.lane.env / "bin" / "python"
        found = facts.gather(
            self.lane, Weights.MINIATURE, facts.Place(models_dir=self._clinic.cache_dir, env_python=env_python)
        )
        problems = preflight.of_lane(found, self._call())
        yield from _problems("signature", problems)
        if problems:
            raise _Over
        assert isinstance(found.signature, PipelineSignature)
        self._child = self._child_of(env_python)
        seen = self._ask("signature", class_name=self.lane.pipeline.class_name)
        yield from self._failure("signature", seen)
        odd = tuple(trials.signatures({"init": found.signature.init, "call": found.signature.call}, seen))
        if odd:
            yield failed("signature", "; ".join(odd), "report this defect of screentest_worker.signature")
        else:
            kind = f"{found.signature.class_name} of {found.signature.library}"
            yield passed("signature", f"{kind} takes what the lane passes; read as inspect sees it")

    def _call(self) -> dict[str, Any]:
        return trials.call_of(self.lane, trials.own(self.lane))

    # --- the miniature

    def _miniature(self) -> Iterator[Finding]:
        """Built, or given; and held against preflight as a download would be."""
        given = self._clinic.miniatures / self.lane.id if self._clinic.miniatures is not None else None
        instead = str(given.absolute()) if given is not None and given.is_dir() else None
        built = self._ask("build", lane=self.lane.content, cache_dir=str(self._clinic.cache_dir), instead=instead)
        yield from self._failure("miniature", built, "correct [components] of the lane")
        env_python = self._clinic.envs_dir / self.lane.env / "bin" / "python"
        problems = facts.inspect_lane(self.lane, Path(instead or built["folder"]), env_python, miniature=True)
        yield from _problems("preflight", problems)
        if problems:
            raise _Over
        yield passed(
            "preflight", f"the miniature {'given' if instead else 'built from the file'} is what the lane says"
        )

    def _runs(self) -> Iterator[Finding]:
        """At the first rung, in one warm runner. The reference is a short clip; the others differ in one thing."""
        lane = self.lane
        yield from self._load(0)
        own, small = trials.own(lane), trials.small(lane)
        whole = self._run(own)
        yield trials.clip(lane, own, whole)
        if whole.failure is not None:
            raise _Over
        reference = self._run(small)
        rule = self._frames_rule(reference)
        yield rule
        if rule.status is trials.Status.FAILED:  # every other trial would only echo it
            raise _Over
        yield self._steps(own, whole)
        yield from self._parameters(reference)
        yield from self._size_rule()
        yield trials.cancel(self._run(trials.cancelled(lane)))
        yield trials.repeat(reference, self._run(small))

    def _steps(self, own: Trial, whole: Outcome) -> Finding:
        """Also of another number than the lane's own, where a job may choose it."""
        done = [(trials.asked_steps(self.lane, own), whole)]
        if self.lane.takes("steps"):
            other = trials.small(self.lane, steps=trials.OTHER_STEPS)
            done.append((trials.OTHER_STEPS, self._run(other)))
        return trials.steps(done)

    def _parameters(self, reference: Outcome) -> Iterator[Finding]:
        changed = trials.changed_parameters(self.lane)
        yield from trials.parameters(reference, {name: self._run(trial) for name, trial in changed.items()}, self.lane)

    def _frames_rule(self, reference: Outcome) -> Finding:
        legal = {trials.few_frames(self.lane): reference}
        for frames in trials.legal_frames(self.lane):
            legal[frames] = self._run(trials.small(self.lane, num_frames=frames))
        count = trials.illegal_frames(self.lane)
        illegal = (count, self._run(trials.small(self.lane, num_frames=count))) if count is not None else None
        return trials.frames_rule(self.lane, legal, illegal)

    def _size_rule(self) -> Iterator[Finding]:
        sizes = trials.other_sizes(self.lane)
        if sizes is None:
            yield passed("size rule", "the size follows the keyframe")
            return
        legal, illegal = sizes
        yield trials.size_rule(self.lane, (legal, self._run(legal)), (illegal, self._run(illegal)))

    # --- the ladder

    def _rungs(self) -> Iterator[Finding]:
        """Each rung in a runner of its own; on a cpu it saves nothing, but its hooks must fit."""
        for index in usable_rungs(self.lane, unified=False)[1:]:
            yield from self._rung(index, unified=False)
        releasing = next((i for i, rung in enumerate(self.lane.ladder) if rung.drop_text_encoders), None)
        if releasing is not None:  # there, encoders are dropped instead of moved
            yield from self._rung(releasing, unified=True)

    def _rung(self, index: int, *, unified: bool) -> Iterator[Finding]:
        trial = trials.rung_trial(self.lane, index)
        loaded = self._load_at(index, unified=unified)
        found = trials.outcome(loaded) if "failure" in loaded else self._run(trial)
        yield trials.rung(self.lane, trial, found, unified=unified)

    # --- at full size

    def _full(self) -> Iterator[Finding]:
        if not self._clinic.is_full:
            return
        found = self._ask("parameters", lane=self.lane.content)
        yield from self._failure("parameter counts", found)
        yield trials.counts(self.lane, found["params"])
        found = self._ask("forwards", lane=self.lane.content)
        yield from self._failure("cost", found)
        counted = ((_shape(forward), forward["tflop"]) for forward in found["forwards"])
        yield trials.cost_counted(self.lane, counted)

    # --- asking

    def _load(self, index: int) -> Iterator[Finding]:
        loaded = self._load_at(index, unified=False)
        yield from self._failure("load", loaded, "correct what this names in the lane file or the weights")
        yield passed("load", "tokenizers split as their files say, channels are as in [components], texts differ")

    def _load_at(self, index: int, *, unified: bool) -> dict[str, Any]:
        return self._ask(
            "load",
            lane=self.lane.content,
            rung=self.lane.content["ladder"][index],
            cache_dir=str(self._clinic.cache_dir),
            unified_memory=unified,
        )

    def _run(self, trial: Trial) -> Outcome:
        answer = self._ask(
            "generate",
            call=trials.call_of(self.lane, trial),
            seed=trial.seed,
            fps=float(trial.settings["fps"]),
            keyframe=trial.keyframe if self.lane.task == "i2v" else None,
            cancel_after_step=trial.cancel_after_step,
        )
        return trials.outcome(answer)

    def _failure(self, check: str, answer: dict[str, Any], fix: str = "report this defect") -> Iterator[Finding]:
        """Nothing, or the failure and the end of this lane's examination."""
        found = trials.outcome(answer).failure
        if found is not None:
            yield failed(check, found.line, fix)
            raise _Over


def _problems(check: str, problems: Sequence[Problem]) -> Iterator[Finding]:
    for problem in problems:
        yield failed(check, problem.reason, problem.fix)


def _shape(forward: dict[str, Any]) -> Shape:
    return Shape(width_px=forward["width_px"], height_px=forward["height_px"], num_frames=forward["num_frames"])


class _Slot:
    """Children of one thread: the next lane of the same env finds its libraries imported."""

    def __init__(self) -> None:
        self._env_python: Path | None = None
        self._child: ModelEnv | None = None

    def child(self, env_python: Path) -> ModelEnv:
        if self._child is None or self._env_python != env_python:
            self.stop()
            self._env_python, self._child = env_python, ModelEnv(env_python)
        return self._child

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()


def examine(files: Sequence[Path], clinic: Clinic, jobs: int, tell: Callable[[dict[str, Any]], None]) -> bool:
    """Whether every check of every file passed. tell: gets every check as it ends, of `jobs` lanes at a time."""
    slots: SimpleQueue[_Slot] = SimpleQueue()
    for _ in range(jobs):
        slots.put(_Slot())
    one_at_a_time = Lock()

    def examine_one(file: Path) -> bool:
        slot = slots.get()
        try:
            return _examine(file, clinic, slot, told)
        finally:
            slots.put(slot)

    def told(check: dict[str, Any]) -> None:
        with one_at_a_time:
            tell(check)

    try:
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            return all(list(pool.map(examine_one, files)))
    finally:
        while not slots.empty():
            slots.get().stop()


def _examine(file: Path, clinic: Clinic, slot: _Slot, tell: Callable[[dict[str, Any]], None]) -> bool:
    is_good = True
    before = time.monotonic()
    for finding in Examination(file, clinic, slot.child).findings():
        now = time.monotonic()
        is_good = is_good and finding.status is trials.Status.OK
        tell(
            {
                "lane": file.stem,
                "check": finding.check,
                "status": finding.status.value,
                "detail": finding.detail,
                "fix": finding.fix,
                "seconds": round(now - before, 2),
            }
        )
        before = now
    return is_good


def main() -> int:
    """Exit status: 0 every check passed, 1 one did not."""
    parser = argparse.ArgumentParser(prog="screentest_worker.doctor", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="lane files")
    parser.add_argument("--envs-dir", type=Path, required=True, help="where the model envs are")
    parser.add_argument("--miniatures", type=Path, help="folders by lane id to examine instead of new miniatures")
    parser.add_argument("--jobs", type=int, default=2, help="lanes at a time")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds for one lane")
    parser.add_argument("--full", action="store_true", help="also count parameters and operations at full size")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="screentest-doctor-") as cache:
        clinic = Clinic(
            envs_dir=asked.envs_dir.absolute(),
            cache_dir=Path(cache),
            miniatures=asked.miniatures,
            limit_s=asked.limit_s,
            is_full=asked.full,
        )
        is_good = examine(asked.files, clinic, asked.jobs, lambda check: print(json.dumps(check), flush=True))  # noqa: T201
    return 0 if is_good else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
