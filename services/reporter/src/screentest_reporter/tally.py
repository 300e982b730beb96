"""From judgements, ratings and votes to the scores of a sweep. Pure.

Only judgements of a prompt's present rubric count; older ones stay in the depot. Of one tier one judge counts for all
clips of a prompt: scores of two judges do not stand beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

from screentest import opinions, table
from screentest.judgement import Judgement, answers_of
from screentest.records import Job, JudgePurpose, RubricRef
from screentest.rubric import CameraMove, Rubric
from screentest_reporter import controls, finding, ranking, scoring, votes
from screentest_reporter.controls import Control, ControlRun, Verdict
from screentest_reporter.ranking import LaneScores, Ranked
from screentest_reporter.scores import ClipScore, JudgeVerdict, KeyframeScore, Scores
from screentest_reporter.scoring import Pixels, Score, Tier
from screentest_reporter.sweeps import SweepState
from screentest_reporter.votes import Preferred

# Of the probe that looks at every clip as it is written: it proves a dead clip, and knows nothing of motion.
PROBE: Final = "probe"
OTHER_VERSION = "another version of this judge answered; `screentest judge` asks the present one"
# What scores need of the many things that pixels say.
MEASURED: Final = ("flags", "thresholds_version", "camera", "file")
NOT_MEASURED: Final = "its pixels were not measured"
LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was read from the depot. judgements: by judge job. rubrics: by their own hash. broken: why a judgement or a
    rubric could not be read, by judge job or rubric hash.
    """

    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    rubrics: Mapping[str, Rubric] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)


def current_rubrics(state: SweepState) -> dict[int, RubricRef]:
    """By prompt: those of the last wish to have the sweep judged, else those that it was submitted with."""
    asked = next((request.rubrics for request in reversed(state.judging_requests) if request.rubrics), None)
    record = state.record
    refs = asked if asked is not None else (record.rubrics if record else ())
    return {ref.prompt_index: ref for ref in refs}


def current_judging(state: SweepState) -> list[Job]:
    """The judge jobs that ask what is asked now, in the order in which they ended; open ones last."""
    refs = current_rubrics(state)

    def is_current(job: Job) -> bool:
        ref = refs.get(job.spec.prompt_index)
        judged = job.spec.judged
        return ref is not None and judged is not None and judged.rubric.rubric_sha256 == ref.rubric_sha256

    ended = [job for job in state.judging.values() if is_current(job)]
    return sorted(ended, key=lambda job: (not job.state.is_terminal, job.ended.at if job.ended else LONG_AGO))


# By job id: what a score was made of, and the score.
Memo = dict[str, tuple[object, ClipScore]]


def scores(state: SweepState, found: Findings, memo: Memo | None = None) -> Scores:
    """Of the clips that count, one per cell. memo: kept between revisions, so that a clip is scored once."""
    tally = _Tally(state, found, {} if memo is None else memo)
    clips = {job.spec.job_id: score for job in tally.made if (score := tally.clip(job)) is not None}
    return Scores(
        clips=clips,
        ranked=tally.ranked(clips),
        judges=tuple(tally.verdicts()),
        keyframe=tuple(tally.keyframes()),
        people=tally.preferred(),
        pending=sum(not job.state.is_terminal for job in tally.judging),
        ratings=len(tally.ratings) + len(tally.votes),
        not_scored=tally.not_scored(),
    )


class _Tally:
    """One sweep; reads its judge jobs once into what the scores ask for."""

    def __init__(self, state: SweepState, found: Findings, memo: Memo) -> None:
        self._state = state
        self._found = found
        self._memo = memo
        self._refs = current_rubrics(state)
        self.judging = current_judging(state)
        self.made = [job for job in table.latest(state.jobs.values()) if job.clip is not None]
        self.ratings = opinions.standing_ratings(state.ratings)
        self.votes = opinions.standing_votes(state.votes)
        self._rated: dict[str, list[float]] = {}
        for rated in self.ratings:
            if rated.score10 is not None:
                self._rated.setdefault(rated.job_id, []).append(rated.score10)
        self._of_clip: dict[str, list[Job]] = {}
        for job in self.judging:
            judged = job.spec.judged
            if judged is not None and judged.purpose is JudgePurpose.CLIP:
                self._of_clip.setdefault(judged.job_id, []).append(job)
        self._judges = {prompt_index: self._chosen(prompt_index) for prompt_index in self._refs}
        self._verdicts = dict(self._judged())

    def rubric(self, prompt_index: int) -> Rubric | None:
        ref = self._refs.get(prompt_index)
        return self._found.rubrics.get(ref.rubric_sha256) if ref else None

    # ---- clips

    def clip(self, job: Job) -> ClipScore | None:
        """None where the prompt has no rubric that can be read."""
        rubric = self.rubric(job.spec.prompt_index)
        if rubric is None:
            return None
        asked = self._of_clip.get(job.spec.job_id, [])
        judgements = [found for judge_job in asked if (found := self._counted(judge_job)) is not None]
        pixels = self._pixels(job, asked)
        ratings = self._rated.get(job.spec.job_id, [])
        pending = sum(not judge_job.state.is_terminal for judge_job in asked)
        failed = "" if pixels is not None else self._why_unmeasured(asked)
        made_of = (rubric, judgements, pixels, ratings, pending, failed)
        known = self._memo.get(job.spec.job_id)
        if known is None or known[0] != made_of:
            is_random = job.spec.weights.is_random
            made = scoring.score(rubric, judgements, pixels, ratings, has_random_weights=is_random)
            said = _while_pending(_unmeasured(made, failed) if pixels is None else made, pending)
            known = (
                made_of,
                ClipScore(rubric=rubric, score=said, finding=_line(rubric, said, self._decode_error(asked), pending)),
            )
            self._memo[job.spec.job_id] = known
        return replace(known[1], controls=self._controls_of(known[1].score, job.spec.prompt_index))

    def _controls_of(self, made: Score, prompt_index: int) -> Verdict | None:
        """Of tier c before tier b: where both answered, c's answers are taken."""
        judges = [tier.judge_id for tier in made.tiers if tier.tier != "d"]
        return self._verdicts.get((prompt_index, judges[-1])) if judges else None

    def _counted(self, job: Job) -> scoring.Judgement | None:
        """What the judge that counts in its tier said of a clip; None while it has not ended, and for pixels.

        Answers of another version of that judge's file are left out, and say so: one column is one judge.
        """
        judged = self._judgement(job)
        chosen = self._judges[job.spec.prompt_index].get(judged.tier) if judged is not None else None
        if judged is None or chosen is None or chosen[0] != job.spec.lane_id:
            return None
        return judged if chosen[1] == job.spec.lane_digest else replace(judged, answers={}, error=OTHER_VERSION)

    def _judgement(self, job: Job) -> scoring.Judgement | None:
        tier = self._tier(job)
        if tier == "a" or not job.state.is_terminal:
            return None
        read = self._found.judgements.get(job.spec.job_id)
        if read is not None:
            return _scored(read, read.answers)
        assert job.spec.judged is not None
        return scoring.Judgement(
            tier=tier,
            judge_id=job.spec.lane_id,
            judge_version="",
            method="embedding" if tier == "b" else "logprobs",
            rubric_sha256=job.spec.judged.rubric.rubric_sha256,
            answers={},
            error=self._found.broken.get(job.spec.job_id) or job.cause or job.state.value,
        )

    def _tier(self, job: Job) -> Literal["a", "b", "c"]:
        read = self._found.judgements.get(job.spec.job_id)
        if read is not None:
            return read.tier
        plans = [judge for request in reversed(self._state.judging_requests) for judge in request.judges]
        plans += self._state.record.judges if self._state.record else ()
        tier = next((judge.tier for judge in plans if judge.lane_id == job.spec.lane_id), "c")
        return cast("Literal['a', 'b', 'c']", tier)

    def _chosen(self, prompt_index: int) -> dict[Tier, tuple[str, str]]:
        """Of each tier the judge, and the digest of its file, that has answered about most clips of the prompt; of two
        equal ones the later.
        """
        answered: dict[tuple[Tier, tuple[str, str]], int] = {}
        last: dict[tuple[Tier, tuple[str, str]], int] = {}
        for position, job in enumerate(self.judging):
            judgement = self._judgement(job) if job.spec.prompt_index == prompt_index else None
            if judgement is None or not self._is_of_clip(job):
                continue
            key = (judgement.tier, (job.spec.lane_id, job.spec.lane_digest))
            answered[key] = answered.get(key, 0) + (not judgement.error)
            last[key] = position
        ordered = sorted(answered, key=lambda key: (answered[key], last[key]))
        return dict(ordered)  # of one tier the last one stays

    def _is_of_clip(self, job: Job) -> bool:
        return job.spec.judged is not None and job.spec.judged.purpose is JudgePurpose.CLIP

    def _pixels(self, job: Job, asked: Sequence[Job]) -> Pixels | None:
        measured = [read.pixels for item in asked if (read := self._read(item)) and read.pixels is not None]
        if measured:
            return _pixels_of(measured[-1])
        outcome = job.attempts[-1].outcome if job.attempts else None
        flags = outcome.clip.flags if outcome and outcome.clip else ()
        dead = tuple(flag for flag in flags if flag in scoring.DEAD_FLAGS)
        return Pixels(flags=dead, thresholds_version=PROBE, camera={}) if dead else None

    def _why_unmeasured(self, asked: Sequence[Job]) -> str:
        """What the last judge of pixels ended with instead of a measurement; empty where none has ended."""
        ended = [job for job in asked if job.state.is_terminal and self._tier(job) == "a"]
        if not ended:
            return ""
        return self._found.broken.get(ended[-1].spec.job_id) or ended[-1].cause or ended[-1].state.value

    def _decode_error(self, asked: Sequence[Job]) -> str:
        for item in reversed(asked):
            read = self._read(item)
            if read is not None and read.pixels is not None and "no-frames" in read.pixels.get("flags", ()):
                return str(read.pixels.get("file", {}).get("error") or "")
        return ""

    def _read(self, job: Job) -> Judgement | None:
        return self._found.judgements.get(job.spec.job_id)

    # ---- judges

    def verdicts(self) -> Iterable[JudgeVerdict]:
        """One per judge that counts and prompt."""
        titles = {job.spec.lane_id: job.spec.lane_title for job in self.judging}
        for (prompt_index, judge_id), verdict in self._verdicts.items():
            where = f", prompt {prompt_index + 1}" if len(self._refs) > 1 else ""
            yield JudgeVerdict(judge_id=judge_id, judge_title=titles[judge_id] + where, verdict=verdict)

    def _judged(self) -> Iterable[tuple[tuple[int, str], Verdict]]:
        for prompt_index, by_tier in sorted(self._judges.items()):
            rubric = self.rubric(prompt_index)
            for judge_id, digest in by_tier.values() if rubric is not None else ():
                assert rubric is not None
                found = (job for job in self.judging if job.spec.prompt_index == prompt_index)
                jobs = [job for job in found if (job.spec.lane_id, job.spec.lane_digest) == (judge_id, digest)]
                yield (prompt_index, judge_id), self._verdict(rubric, judge_id, jobs)

    def _verdict(self, rubric: Rubric, judge_id: str, jobs: Sequence[Job]) -> Verdict:
        found = [job for job in jobs if job.spec.judged and job.spec.judged.purpose is JudgePurpose.CONTROLS]
        last = found[-1] if found else None
        read = self._read(last) if last is not None else None
        if last is None or read is None or last.spec.judged is None:
            why = "the controls have not been judged yet"
            if last is not None and last.state.is_terminal:
                told = self._found.broken.get(last.spec.job_id) or last.cause or last.state.value
                why = f"the controls failed: {told}"
            elif last is None and self._state.is_at_rest:
                why = "there were no controls: no clip could be judged"
            return replace(controls.verdict(rubric, _nothing(judge_id, rubric), ()), why_greyed=why)
        reference = self._reference(last, judge_id, read)
        runs = tuple(self._runs(rubric, read))
        return controls.verdict(rubric, reference, runs)

    def _reference(self, last: Job, judge_id: str, read: Judgement) -> scoring.Judgement:
        """What the judge said of the clip before; what it said when it was asked again, where that is gone."""
        assert last.spec.judged is not None
        before = [
            judgement
            for job in self._of_clip.get(last.spec.judged.job_id, [])
            if job.spec.lane_id == judge_id and (judgement := self._judgement(job)) is not None and not judgement.error
        ]
        return before[-1] if before else _scored(read, read.answers)

    def _runs(self, rubric: Rubric, read: Judgement) -> Iterable[ControlRun]:
        for run in read.controls:
            asked = rubric if run.rubric_sha256 == rubric.sha256 else self._found.rubrics.get(run.rubric_sha256)
            if asked is not None:
                judgement = replace(_scored(read, run.answers), rubric_sha256=run.rubric_sha256)
                yield ControlRun(control=Control(run.control), rubric=asked, judgement=judgement)

    # ---- the keyframe, ranks, people

    def keyframes(self) -> Iterable[KeyframeScore]:
        """By the last judgement of the best tier that has answered, in the order of prompts."""
        for prompt_index in sorted(self._refs):
            rubric = self.rubric(prompt_index)
            reads = [
                read
                for job in self.judging
                if job.spec.prompt_index == prompt_index
                and job.spec.judged is not None
                and job.spec.judged.purpose is JudgePurpose.KEYFRAME
                and (read := self._read(job)) is not None
            ]
            if rubric is not None and reads:
                best = max(reversed(reads), key=lambda read: read.tier)  # of one tier the last one
                presences = {element_id: _most(row) for element_id, row in answers_of(best.answers).items()}
                yield KeyframeScore(prompt_index=prompt_index, rubric=rubric, presences=presences)

    def ranked(self, clips: Mapping[str, ClipScore]) -> dict[int, tuple[Ranked, ...]]:
        """Of every prompt of which a clip has a number."""
        found = {}
        for prompt_index in sorted(self._refs):
            lanes: dict[str, list[Job]] = {}
            for job in self.made:
                if job.spec.prompt_index == prompt_index and job.spec.job_id in clips:
                    lanes.setdefault(job.spec.lane_id, []).append(job)
            rows = ranking.ranked([_lane_scores(lane_id, jobs, clips) for lane_id, jobs in lanes.items()])
            if any(row.rank is not None for row in rows):
                found[prompt_index] = rows
        return found

    def preferred(self) -> dict[int, tuple[Preferred, ...]]:
        found = {}
        prompts = len(self._state.record.spec.prompts) if self._state.record else 0
        for prompt_index in range(prompts):
            jobs = [job.spec for job in self._state.jobs.values() if job.spec.prompt_index == prompt_index]
            if rows := votes.preferred(self.votes, {spec.job_id: spec.lane_id for spec in jobs}):
                found[prompt_index] = rows
        return found

    def not_scored(self) -> str:
        """Why a page without any score has none."""
        if not self._refs:
            return "no prompt has a rubric"
        broken = self._found.broken
        why = [broken[ref.rubric_sha256] for ref in self._refs.values() if ref.rubric_sha256 in broken]
        if why:
            return why[0]
        return "no clip was judged" if self.judging else "no judge was asked"


def _line(rubric: Rubric, made: Score, decode_error: str, pending: int) -> str:
    """Empty where the judges have nothing to say (yet) that the table does not know: its own finding stands then."""
    is_unjudged = not pending and (made.left_out or made.not_scored.startswith(NOT_MEASURED))
    is_said = made.score10 is not None or decode_error or is_unjudged
    return finding.line(rubric, made, decode_error) if is_said else ""


def _unmeasured(made: Score, failed: str) -> Score:
    is_final = made.score10 is not None or "random weights" in made.badges
    return made if is_final or not failed else replace(made, not_scored=f"{NOT_MEASURED}: {failed}")


def _while_pending(made: Score, pending: int) -> Score:
    """Who looks before a judge has answered must not read that none ran."""
    if made.score10 is not None or "random weights" in made.badges or not pending:
        return made
    return replace(made, not_scored=f"{pending} judgement{'' if pending == 1 else 's'} pending")


def _scored(read: Judgement, answers: Mapping[str, Any]) -> scoring.Judgement:
    return scoring.Judgement(
        tier=cast("Tier", read.tier),
        judge_id=read.judge_id,
        judge_version=read.judge_version,
        method=cast("scoring.Method", read.method),
        rubric_sha256=read.rubric_sha256,
        answers=answers_of(answers),
        badges=read.badges,
    )


def _nothing(judge_id: str, rubric: Rubric) -> scoring.Judgement:
    return scoring.Judgement(
        tier="b", judge_id=judge_id, judge_version="", method="embedding", rubric_sha256=rubric.sha256, answers={}
    )


def _pixels_of(measured: Mapping[str, Any]) -> Pixels:
    shares = measured.get("camera", {}).items()
    camera = {cast("CameraMove", move): share for move, share in shares if share is not None}
    return Pixels(
        flags=tuple(measured.get("flags", ())),
        thresholds_version=str(measured.get("thresholds_version", "")),
        camera=camera,
    )


def _most(row: Sequence[float | None]) -> float | None:
    return max((p for p in row if p is not None), default=None)


def _lane_scores(lane_id: str, jobs: Sequence[Job], clips: Mapping[str, ClipScore]) -> LaneScores:
    marks = (mark for job in jobs for mark in (*job.spec.marks, *_rung_marks(job)))
    changes = dict.fromkeys(table.mark_text(mark) for mark in marks if mark.is_change)
    return LaneScores(
        lane_id=lane_id, scores=tuple(clips[job.spec.job_id].score for job in jobs), changes=tuple(changes)
    )


def _rung_marks(job: Job) -> tuple[Any, ...]:
    outcome = job.attempts[-1].outcome if job.attempts else None
    return outcome.marks if outcome else ()
