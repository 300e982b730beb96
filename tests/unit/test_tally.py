"""From judgements to the scores of a sweep: what counts, what is said of what does not, and what is never mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from screentest import objects
from screentest.judgement import SCHEMA as JUDGEMENT
from screentest.judgement import Control, Judgement
from screentest.records import (
    Artifact,
    ArtifactKind,
    Job,
    JobState,
    Judged,
    JudgePlan,
    JudgePurpose,
    JudgingRequested,
    PairOutcome,
    PairVoted,
    Rated,
    RubricRef,
    Task,
    Weights,
)
from screentest.rubric import Rubric
from screentest_reporter import tally
from screentest_reporter.scores import ClipScore, Scores
from screentest_reporter.sweeps import SweepState
from screentest_reporter.tally import Findings
from tests.made_judgements import (
    FIRST_FRAME,
    IN_ORDER,
    NOTHING,
    OTHER,
    REVERSED,
    RUBRIC,
    WINDOWS,
    Clip,
    asked,
    seeing,
)
from tests.made_judgings import PIXELS, SIGLIP, VLM
from tests.made_sweeps import History, plan, record, specs, stamp

EDITED = replace(RUBRIC, elements=RUBRIC.elements[:-1])
FREEZING: dict[str, Any] = {"flags": ["frozen"], "thresholds_version": "1", "camera": {"zoom_in": None}}
MOVING: dict[str, Any] = {"flags": [], "thresholds_version": "1", "camera": {"zoom_in": 0.9}}


def ref(rubric: Rubric, prompt_index: int = 0) -> RubricRef:
    sha256 = rubric.sha256[::-1]
    return RubricRef(
        prompt_index=prompt_index,
        key=objects.rubric(sha256),
        sha256=sha256,
        size_bytes=1,
        rubric_sha256=rubric.sha256,
    )


class Sweep:
    """A settled sweep of lanes that made one clip each, judged step by step."""

    def __init__(
        self, *lane_ids: str, weights: Weights = Weights.HUB, flags: tuple[str, ...] = (), rubric: Rubric = RUBRIC
    ) -> None:
        made = record([plan(lane_id, lane_id.title()) for lane_id in lane_ids], weights=weights)
        made = replace(made, rubrics=(ref(rubric),), judges=(PIXELS, SIGLIP, VLM))
        self.jobs = {spec.lane_id: History(spec).complete(flags=flags).job for spec in specs(made)}
        jobs = {job.spec.job_id: job for job in self.jobs.values()}
        self.state = SweepState(sweep_id=made.sweep_id, record=made, jobs=jobs)
        self.judgements: dict[str, Judgement] = {}
        self.broken: dict[str, str] = {}
        self.rubrics = {item.sha256: item for item in (RUBRIC, OTHER, EDITED)}

    def judge(
        self,
        judge: JudgePlan,
        lane_id: str = "",
        *,
        purpose: JudgePurpose = JudgePurpose.CLIP,
        rubric: Rubric = RUBRIC,
        state: JobState = JobState.COMPLETED,
        cause: str = "",
        **found: Any,
    ) -> str:
        """One judge job and what it found; returns its id."""
        of = self.jobs[lane_id].spec if lane_id else next(iter(self.jobs.values())).spec
        number = len(self.state.judging)
        judged = Judged(
            purpose=purpose,
            job_id=of.job_id if lane_id else "",
            lane_id=lane_id,
            key="k",
            sha256="c",
            size_bytes=1,
            rubric=ref(rubric),
            other_rubric=ref(OTHER, 1) if purpose is JudgePurpose.CONTROLS else None,
        )
        job_id = f"judge-{number}"
        spec = replace(
            of,
            job_id=job_id,
            lane_id=judge.lane_id,
            lane_title=judge.lane_title,
            lane_digest=judge.lane_digest,
            task=Task.JUDGE,
            judged=judged,
        )
        artifact = Artifact(
            kind=ArtifactKind.JUDGEMENT, key=f"j/{job_id}", sha256=job_id, size_bytes=1, content_type="application/json"
        )
        ended = stamp(100 + number) if state.is_terminal else None
        is_done = state is JobState.COMPLETED
        self.state.judging[job_id] = Job(
            spec=spec,
            state=state,
            attempts=(),
            submitted=stamp(90),
            ended=ended,
            cause=cause,
            judgement=artifact if is_done else None,
        )
        if is_done:
            self.judgements[job_id] = Judgement(
                **{
                    "schema": JUDGEMENT,
                    "purpose": purpose.value,
                    "sweep_id": of.sweep_id,
                    "job_id": judged.job_id,
                    "clip_lane_id": lane_id,
                    "sha256": "c",
                    "judge_id": judge.lane_id,
                    "judge_version": "1",
                    "tier": judge.tier,
                    "method": {"a": "pixels", "b": "embedding", "c": "logprobs"}[judge.tier],
                    "rubric_sha256": rubric.sha256,
                    "windows": WINDOWS,
                    "answers": {},
                    **found,
                }
            )
        return job_id

    def see(self, judge: JudgePlan, lane_id: str, clip: Clip, rubric: Rubric = RUBRIC, **more: Any) -> str:
        return self.judge(judge, lane_id, rubric=rubric, answers=answers(clip, rubric), **more)

    def measure(self, lane_id: str, pixels: dict[str, Any] = MOVING, rubric: Rubric = RUBRIC) -> str:
        return self.judge(PIXELS, lane_id, rubric=rubric, pixels=pixels)

    def control(self, judge: JudgePlan, lane_id: str, **changed: Clip) -> str:
        clips: dict[str, Clip] = {
            "wrong-prompt": NOTHING,
            "black": NOTHING,
            "frame-shuffled": REVERSED,
            "static-first-frame": FIRST_FRAME,
            "repeat": IN_ORDER,
            **{name.replace("_", "-"): clip for name, clip in changed.items()},
        }
        runs = tuple(
            Control(
                control=name,  # type: ignore[arg-type]
                rubric_sha256=(OTHER if name == "wrong-prompt" else RUBRIC).sha256,
                answers=answers(clip, OTHER if name == "wrong-prompt" else RUBRIC),
            )
            for name, clip in clips.items()
        )
        return self.judge(judge, lane_id, purpose=JudgePurpose.CONTROLS, answers=answers(IN_ORDER), controls=runs)

    @property
    def scores(self) -> Scores:
        found = Findings(judgements=self.judgements, rubrics=self.rubrics, broken=self.broken)
        return tally.scores(self.state, found)

    def score(self, lane_id: str) -> ClipScore:
        return self.scores.clips[self.jobs[lane_id].spec.job_id]


def answers(clip: Clip, rubric: Rubric = RUBRIC) -> dict[str, list[float | None]]:
    return {element_id: list(row) for element_id, row in asked(seeing(), clip, rubric).answers.items()}


def test_a_clip_is_scored_by_pixels_and_judge_and_prints_its_controls() -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.see(SIGLIP, "wan", IN_ORDER)
    sweep.control(SIGLIP, "wan")
    found = sweep.score("wan")
    assert found.score.score10 is not None
    assert found.score.score10 > 8
    assert found.printed == f"{found.score.score10:.1f} ± 1.5, controls 5/5"
    assert found.why_greyed == ""
    assert found.finding.startswith("Valid MP4, ")
    assert [(tier.tier, tier.judge_id) for tier in found.score.tiers] == [("b", "siglip")]


def test_the_order_of_the_lanes_is_that_of_their_clips() -> None:
    sweep = Sweep("other", "full", "half")
    for lane_id, clip in (("other", NOTHING), ("full", IN_ORDER), ("half", (1, 1, 2, 2, 0, 0, 0, 0))):
        sweep.measure(lane_id)
        sweep.see(SIGLIP, lane_id, clip)
    ranked = sweep.scores.ranked[0]
    assert [row.lane_id for row in ranked] == ["full", "half", "other"]
    assert ranked[0].notes == ("1 seed: a rank needs 3",)


def test_scores_of_an_older_rubric_are_never_mixed_with_those_of_the_present_one() -> None:
    sweep = Sweep("wan", "ltx")
    for lane_id in ("wan", "ltx"):
        sweep.measure(lane_id)
        sweep.see(SIGLIP, lane_id, IN_ORDER)
    sweep.state.judging_requests = (JudgingRequested(judges=(PIXELS, SIGLIP), rubrics=(ref(EDITED),), by="ada"),)
    told = [(found.score.score10, found.score.not_scored) for found in sweep.scores.clips.values()]
    assert told == [(None, "the pixels of the clip were not checked")] * 2
    sweep.measure("wan", rubric=EDITED)
    sweep.see(SIGLIP, "wan", IN_ORDER, rubric=EDITED)
    assert sweep.score("wan").score.rubric_sha256 == EDITED.sha256
    assert sweep.score("wan").score.score10 is not None
    assert sweep.score("ltx").score.score10 is None
    # A wish for more judges without a rubric leaves the edited one.
    more = JudgingRequested(judges=(VLM,), rubrics=(), by="ada")
    sweep.state.judging_requests = (*sweep.state.judging_requests, more)
    assert sweep.score("wan").score.score10 is not None


def test_a_failed_judgement_is_told_in_its_row_and_the_others_are_scored() -> None:
    sweep = Sweep("wan", "ltx", "svd")
    for lane_id in ("wan", "ltx", "svd"):
        sweep.measure(lane_id)
    sweep.judge(SIGLIP, "wan", state=JobState.FAILED, cause="the clip is gone from the depot")
    sweep.see(SIGLIP, "ltx", IN_ORDER)
    sweep.broken[sweep.see(SIGLIP, "svd", IN_ORDER)] = "the judgement is gone from the depot"
    del sweep.judgements["judge-5"]
    assert sweep.score("ltx").score.score10 is not None
    assert "the clip is gone" in sweep.score("wan").score.not_scored
    assert sweep.score("wan").finding.endswith("judge siglip: failed: the clip is gone from the depot")
    assert "the judgement is gone" in sweep.score("svd").score.not_scored


def test_pixels_that_could_not_be_measured_say_why() -> None:
    sweep = Sweep("wan")
    sweep.judge(PIXELS, "wan", state=JobState.FAILED, cause="the clip is gone from the depot")
    sweep.see(SIGLIP, "wan", IN_ORDER)
    assert sweep.score("wan").score.not_scored == "its pixels were not measured: the clip is gone from the depot"


def test_a_judge_that_succeeded_on_its_second_try_counts() -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.judge(SIGLIP, "wan", state=JobState.FAILED, cause="no checkpoint")
    sweep.see(SIGLIP, "wan", IN_ORDER)
    found = sweep.score("wan").score
    assert (found.score10 is not None, found.left_out) == (True, ())


def test_two_versions_of_a_judge_never_stand_in_one_column() -> None:
    """Its file was changed, and only some clips were judged by the new one."""
    lanes = ("wan", "ltx", "svd")
    sweep, newer = Sweep(*lanes), replace(SIGLIP, lane_digest="e" * 64)
    for lane_id in lanes:
        sweep.measure(lane_id)
    for lane_id in ("wan", "ltx"):
        sweep.see(SIGLIP, lane_id, IN_ORDER)
    sweep.see(newer, "svd", IN_ORDER)
    assert [sweep.score(lane_id).score.score10 is not None for lane_id in lanes] == [True, True, False]
    assert "another version" in sweep.score("svd").score.not_scored
    for lane_id in ("wan", "ltx"):
        sweep.see(newer, lane_id, NOTHING)
    first, second, third = (sweep.score(lane_id).score.score10 or 0.0 for lane_id in lanes)
    assert (first < 3, second < 3, third > 8) == (True, True, True)


def test_of_one_tier_the_same_judge_counts_for_every_row() -> None:
    """so400m answered about two of three clips, siglip about all: no row has another judge than its neighbour."""
    other = replace(SIGLIP, lane_id="so400m", lane_title="So400m")
    sweep = Sweep("wan", "ltx", "svd")
    for lane_id in ("wan", "ltx", "svd"):
        sweep.measure(lane_id)
        sweep.see(SIGLIP, lane_id, IN_ORDER)
    for lane_id in ("wan", "ltx"):
        sweep.see(other, lane_id, NOTHING)
    judges = {tier.judge_id for found in sweep.scores.clips.values() for tier in found.score.tiers}
    assert judges == {"siglip"}


def test_random_weights_say_what_pixels_say_and_no_number() -> None:
    sweep = Sweep("wan", weights=Weights.MINIATURE)
    sweep.measure("wan", FREEZING)
    found = sweep.score("wan")
    assert (found.score.score10, found.score.flags) == (None, ("frozen",))
    assert "random weights" in found.score.not_scored
    assert found.finding == ""  # the table says already that the weights are random


def test_a_dead_clip_scores_nought_even_where_only_the_probe_has_looked() -> None:
    sweep = Sweep("wan", flags=("black",))
    found = sweep.score("wan")
    assert found.score.score10 == 0
    assert found.finding == "Valid MP4, but effectively black and missing all prompt elements"


def test_a_row_says_why_its_judge_failed_once_no_other_can_score_it() -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.judge(VLM, "wan", state=JobState.FAILED, cause="the server is down")
    siglip = sweep.judge(SIGLIP, "wan", state=JobState.QUEUED)
    assert sweep.score("wan").finding == ""
    del sweep.state.judging[siglip]
    assert sweep.score("wan").finding == f"Valid MP4; not scored: judge {VLM.lane_id}: failed: the server is down"
    sweep.see(SIGLIP, "wan", IN_ORDER)
    assert "not scored" not in sweep.score("wan").finding


def test_a_score_that_is_on_its_way_is_pending_and_not_missing() -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.judge(SIGLIP, "wan", state=JobState.RUNNING)
    assert sweep.score("wan").score.not_scored == "1 judgement pending"
    assert sweep.scores.pending == 1


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"wrong_prompt": IN_ORDER}, ""), ({"black": IN_ORDER}, "black failed"), ({"repeat": NOTHING}, "repeat failed")],
)
def test_a_judge_that_cannot_be_believed_greys_its_numbers(changed: dict[str, Clip], why: str) -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.see(VLM, "wan", IN_ORDER)
    sweep.control(VLM, "wan", **changed)
    found = sweep.score("wan")
    assert why in found.why_greyed
    [verdict] = sweep.scores.judges
    assert verdict.verdict.is_greyed is bool(why)


def test_controls_that_are_due_or_failed_grey_the_number() -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.see(SIGLIP, "wan", IN_ORDER)
    assert sweep.score("wan").why_greyed == "the controls have not been judged yet"
    sweep.judge(SIGLIP, "wan", purpose=JudgePurpose.CONTROLS, state=JobState.FAILED, cause="it broke")
    assert sweep.score("wan").why_greyed == "the controls failed: it broke"
    assert sweep.score("wan").printed.endswith("controls 0/5")


def test_the_keyframe_is_a_row_of_its_own() -> None:
    sweep = Sweep("wan")
    sweep.judge(SIGLIP, purpose=JudgePurpose.KEYFRAME, answers={"child": [0.9], "doll": [0.2], "soldier": [None]})
    [keyframe] = sweep.scores.keyframe
    assert keyframe.presences == {"child": 0.9, "doll": 0.2, "soldier": None}
    assert [element.id for element in keyframe.missing] == ["doll"]


def test_the_keyframe_is_told_by_its_last_judgement() -> None:
    sweep = Sweep("wan")
    for p in (0.9, 0.1):
        sweep.judge(SIGLIP, purpose=JudgePurpose.KEYFRAME, answers={"child": [p]})
    [keyframe] = sweep.scores.keyframe
    assert keyframe.presences == {"child": 0.1}


def test_the_last_rating_of_a_rater_counts_beside_the_judges() -> None:
    sweep = Sweep("wan", "ltx")
    sweep.measure("wan")
    [wan, ltx] = (job.spec.job_id for job in sweep.jobs.values())
    sweep.state.ratings = tuple(
        Rated(job_id=wan, rater=rater, score10=score10) for rater, score10 in (("ada", 1.0), ("bob", 6.0), ("ada", 8.0))
    )
    sweep.state.votes = (PairVoted(left_job_id=wan, right_job_id=ltx, outcome=PairOutcome.LEFT, rater="ada"),)
    found = sweep.scores
    assert found.clips[wan].score.score10 == 7.0
    assert found.clips[wan].controls is None
    assert [row.lane_id for row in found.people[0]] == ["wan", "ltx"]
    assert found.ratings == 3


def test_the_last_vote_of_a_rater_on_a_pair_counts_on_whichever_sides_it_stood() -> None:
    sweep = Sweep("wan", "ltx")
    [wan, ltx] = (job.spec.job_id for job in sweep.jobs.values())
    for_wan = PairVoted(left_job_id=wan, right_job_id=ltx, outcome=PairOutcome.LEFT, rater="ada")
    for_ltx = PairVoted(left_job_id=ltx, right_job_id=wan, outcome=PairOutcome.LEFT, rater="ada")
    sweep.state.votes = (
        for_wan,
        for_wan,
        for_wan,
        replace(for_wan, rater="bob"),
        for_ltx,
        replace(for_ltx, rater="cy"),
    )
    found = sweep.scores
    assert [(row.lane_id, row.votes) for row in found.people[0]] == [("ltx", 3), ("wan", 3)]
    assert found.ratings == 3


def test_a_prompt_without_a_rubric_and_a_broken_rubric_are_said() -> None:
    sweep = Sweep("wan")
    sweep.rubrics = {}
    sweep.broken[RUBRIC.sha256] = "the rubric is gone from the depot"
    assert (sweep.scores.clips, sweep.scores.not_scored) == ({}, "the rubric is gone from the depot")
    assert sweep.state.record is not None
    sweep.state.record = replace(sweep.state.record, rubrics=())
    assert sweep.scores.not_scored == "no prompt has a rubric"


def test_a_clip_is_scored_once_and_again_when_something_new_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep("wan")
    sweep.measure("wan")
    sweep.see(SIGLIP, "wan", IN_ORDER)
    calls = []
    real = tally.scoring.score
    monkeypatch.setattr(tally.scoring, "score", lambda *args, **more: calls.append(1) or real(*args, **more))
    memo: tally.Memo = {}
    found = Findings(judgements=sweep.judgements, rubrics=sweep.rubrics)
    first = tally.scores(sweep.state, found, memo)
    assert tally.scores(sweep.state, found, memo).clips == first.clips
    assert len(calls) == 1
    sweep.see(VLM, "wan", IN_ORDER)
    tally.scores(sweep.state, found, memo)
    assert len(calls) == 2
