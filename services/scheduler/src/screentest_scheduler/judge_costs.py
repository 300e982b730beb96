"""What judging costs: questions by what a rubric asks, seconds by what the judge took before on this stack. Pure.

It learns from the end of every attempt: a fold of the events, and of what archived sweeps have told in their farewells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from screentest.records import JobSpec, JudgeCost, JudgePlan, JudgePurpose, JudgeTime, Outcome, Stamp
from screentest.rubric import WHOLE_CLIP_KINDS, Kind, Rubric
from screentest_scheduler.transitions import Entry, elapsed_s

# Asked straight and negated.
PHRASINGS: Final = 2
# The clip again, and what is made of it: another prompt's questions, black, its windows reversed, its first frame.
CONTROL_CLIPS: Final = 5
# An image-text model does not know who does what to whom, nor what is absent, nor what a camera does.
_NOT_OF_PICTURES: Final[frozenset[Kind]] = frozenset({"relation", "negative", "camera"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one judge would do: how many jobs of each purpose, and the questions in all of them."""

    jobs: Mapping[JudgePurpose, int]
    calls: int


class JudgeTimes:
    """Seconds that finished judge jobs took from Started to AttemptEnded, by judge and purpose."""

    def __init__(self) -> None:
        self._took: dict[tuple[str, JudgePurpose], tuple[int, float]] = {}

    def learn(self, entry: Entry, outcome: Outcome, ended: Stamp) -> None:
        """From the end of an attempt. ``entry``: as it was before that."""
        judged = entry.spec.judged
        if judged is None or outcome.failure_class is not None or entry.began is None:
            return
        key = (entry.spec.lane_id, judged.purpose)
        jobs, seconds = self._took.get(key, (0, 0.0))
        self._took[key] = (jobs + 1, seconds + elapsed_s(entry.began, ended))

    def told(self) -> tuple[JudgeTime, ...]:
        """Everything that is known, to be recalled another day."""
        return tuple(
            JudgeTime(lane_id=lane_id, purpose=purpose, jobs=jobs, seconds=seconds)
            for (lane_id, purpose), (jobs, seconds) in self._took.items()
        )

    def recall(self, times: Iterable[JudgeTime]) -> None:
        """What was told before, added to what is known."""
        for item in times:
            jobs, seconds = self._took.get((item.lane_id, item.purpose), (0, 0.0))
            self._took[item.lane_id, item.purpose] = (jobs + item.jobs, seconds + item.seconds)

    def clips(self, judge_lane_id: str) -> int:
        """Clips that this judge has finished here."""
        return self._took.get((judge_lane_id, JudgePurpose.CLIP), (0, 0.0))[0]

    def job_s(self, judge_lane_id: str, purpose: JudgePurpose) -> float | None:
        """Mean seconds of one job; None where no clip has been judged by this judge here.

        A purpose that it has not met yet: controls are five clips, and a picture is no more than a clip.
        """
        jobs, seconds = self._took.get((judge_lane_id, purpose), (0, 0.0))
        if jobs:
            return seconds / jobs
        if purpose is JudgePurpose.CLIP:
            return None
        clip_s = self.job_s(judge_lane_id, JudgePurpose.CLIP)
        clips = CONTROL_CLIPS if purpose is JudgePurpose.CONTROLS else 1
        return None if clip_s is None else clips * clip_s


def calls(tier: str, purpose: JudgePurpose, rubric: Rubric, other: Rubric | None = None) -> int:
    """Questions of one job at most: elements x windows, for a language model asked straight and negated.

    ``other``: of the wrong prompt, for controls. A cheap mode asks fewer.
    """
    match purpose:
        case JudgePurpose.KEYFRAME:
            return _questions(tier, rubric, 1)
        case JudgePurpose.CLIP:
            return _questions(tier, rubric, rubric.window_count)
        case JudgePurpose.CONTROLS:
            again = (CONTROL_CLIPS - 1) * _questions(tier, rubric, rubric.window_count)
            wrong = rubric if other is None else other
            return again + _questions(tier, wrong, wrong.window_count)


def _questions(tier: str, rubric: Rubric, windows: int) -> int:
    kinds = [element.kind for element in rubric.elements]
    match tier:
        case "a":
            return 0
        case "b":
            return windows * sum(kind not in _NOT_OF_PICTURES for kind in kinds)
        case _:
            whole = sum(kind in WHOLE_CLIP_KINDS for kind in kinds)
            return PHRASINGS * (whole + windows * (len(kinds) - whole))


def work(specs: Iterable[JobSpec], tier: str, rubrics: Mapping[str, Rubric]) -> Work:
    """Of jobs of one judge. ``rubrics``: by their own sha256."""
    jobs: dict[JudgePurpose, int] = {}
    total = 0
    for spec in specs:
        judged = spec.judged
        assert judged is not None
        jobs[judged.purpose] = jobs.get(judged.purpose, 0) + 1
        other = rubrics.get(judged.other_rubric.rubric_sha256) if judged.other_rubric else None
        total += calls(tier, judged.purpose, rubrics[judged.rubric.rubric_sha256], other)
    return Work(jobs=jobs, calls=total)


def cost(judge: JudgePlan, wanted: Work, times: JudgeTimes) -> JudgeCost:
    known = [
        None if (job_s := times.job_s(judge.lane_id, purpose)) is None else jobs * job_s
        for purpose, jobs in wanted.jobs.items()
    ]
    each_s = times.job_s(judge.lane_id, JudgePurpose.CLIP)
    measured = f"{times.clips(judge.lane_id)} clips judged here took {each_s:.1f} s each" if each_s is not None else ""
    return JudgeCost(
        lane_id=judge.lane_id,
        tier=judge.tier,
        jobs=sum(wanted.jobs.values()),
        calls=wanted.calls,
        seconds=None if None in known else sum(seconds for seconds in known if seconds is not None),
        basis=measured or "this judge has not judged a clip here yet",
    )
