"""Has clips judged: writes the judge jobs that follow, and takes a person's wish for more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from screentest import folding
from screentest.judges import JudgeLane
from screentest.records import (
    Artifact,
    ArtifactKind,
    JobSpec,
    JobState,
    JudgeCost,
    JudgePlan,
    JudgingRequested,
    LanePlan,
    RubricRef,
    Scoring,
    SweepSpec,
)
from screentest_scheduler import followups, judge_costs, judge_planning
from screentest_scheduler.followups import Judging, Scene
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger, SweepState
from screentest_scheduler.presence import Place, Presence
from screentest_scheduler.rubrics import Rubrics
from screentest_scheduler.transitions import Entry

# Stands for the clip of a job that has not made one yet, where only costs are counted.
_NO_CLIP = Artifact(kind=ArtifactKind.CLIP, key="", sha256="", size_bytes=0, content_type="")


class JudgeJobs:
    """Owns no truth: what is written follows from the ledger, so a restart finds the same jobs due."""

    def __init__(self, ledger: Ledger, journal: Journal, stranger: RubricRef) -> None:
        self._ledger = ledger
        self._journal = journal
        self._stranger = stranger

    def due(self) -> list[str]:
        """The sweeps in which something has happened that judge jobs may follow from."""
        return [sweep_id for sweep_id, sweep in self._ledger.sweeps.items() if sweep.has_judge_news]

    async def write(self, sweep_id: str) -> None:
        """The judge jobs that are due now. What fails stays due."""
        sweep = self._ledger.sweep(sweep_id)
        specs = self.wanted(sweep)
        unjudged, sweep.unjudged, sweep.has_judge_news = sweep.unjudged, {}, False
        if not specs:
            return
        try:
            await self._journal.write_judge_jobs(sweep_id, specs)
        except BaseException:
            sweep.unjudged, sweep.has_judge_news = {**unjudged, **sweep.unjudged}, True
            raise

    def wanted(self, sweep: SweepState) -> tuple[JobSpec, ...]:
        made = (self._ledger.jobs[job_id] for job_id in sweep.unjudged)
        return followups.judge_jobs(self.scene(sweep, sweep.judgings), made)

    def scene(self, sweep: SweepState, judgings: Sequence[Judging]) -> Scene:
        return Scene(
            record=sweep.record,
            judgings=tuple(judgings),
            known=self._ledger.jobs,
            judge_ids=sweep.judge_ids,
            open_clips=sweep.open_clips,
            stranger=self._stranger,
            is_settled=sweep.is_settled,
        )

    def scoring(self, sweep: SweepState) -> Scoring | None:
        """How far judging is, with the jobs that are due and not written yet; None when nothing is or was judged."""
        states = [self._ledger.jobs[job_id].state for job_id in sweep.judge_ids]
        if sweep.has_judge_news:
            states += [JobState.QUEUED] * len(self.wanted(sweep))
        return Scoring(counts=folding.count(states)) if states else None


class Judges:
    """Who judges a sweep by which rubrics: chosen at its submit, and again whenever a person asks."""

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        jobs: JudgeJobs,
        rubrics: Rubrics,
        presence: Presence,
        catalogue: Mapping[str, JudgeLane],
        places: Callable[[], tuple[Place, ...]],
        cancel: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        """``places``: every device that is known now. ``cancel``: of one job, by whom."""
        self._ledger = ledger
        self._journal = journal
        self._jobs = jobs
        self._rubrics = rubrics
        self._presence = presence
        self._catalogue = catalogue
        self._places = places
        self._cancel = cancel
        self._asking: dict[str, asyncio.Lock] = {}

    async def check(self, spec: SweepSpec, lanes: Sequence[LanePlan]) -> tuple[JudgePlan, ...]:
        """The judges of a sweep that somebody wants to submit. BadRequest names a wrong judge or rubric."""
        judges = self._choose(spec.judge_lane_ids, lanes, "spec.judge_lane_ids")
        await self._rubrics.check(spec.prompts, spec.rubrics, "spec.rubrics")
        return judges

    async def rubrics(self, spec: SweepSpec) -> tuple[RubricRef, ...]:
        """One per prompt, in the depot."""
        return await self._rubrics.for_prompts(spec.prompts, spec.rubrics, "spec.rubrics")

    async def ask(
        self, sweep_id: str, judge_lane_ids: Sequence[str], rubrics: Sequence[RubricRef], by: str, *, only_cost: bool
    ) -> tuple[JudgeCost, ...]:
        """What is still to do for it, judge by judge; it is begun unless only its cost is asked for.

        Raises BadRequest naming a wrong judge or rubric, NotFound and NotPossibleNow for the sweep.
        """
        self._ledger.sweep(sweep_id)  # an unknown one leaves no lock behind
        # One after the other: who asks while another wish is written must see what that one has queued.
        async with self._asking.setdefault(sweep_id, asyncio.Lock()):
            return await self._ask(sweep_id, judge_lane_ids, rubrics, by, only_cost=only_cost)

    async def _ask(
        self, sweep_id: str, judge_lane_ids: Sequence[str], rubrics: Sequence[RubricRef], by: str, *, only_cost: bool
    ) -> tuple[JudgeCost, ...]:
        sweep = self._ledger.sweep(sweep_id)
        wish = await self._wish(sweep, judge_lane_ids, rubrics)
        scene = self._jobs.scene(sweep, (*sweep.judgings, wish))
        costs = await self._costs(scene, self._clips(sweep_id), wish.judges)
        if only_cost:
            return costs
        if any(cost.jobs for cost in costs) or wish.rubrics != sweep.judgings[-1].rubrics:
            await self._journal.say(sweep_id, JudgingRequested(judges=wish.judges, rubrics=wish.rubrics, by=by))
        await self._jobs.write(sweep_id)
        await self._call_off_old(sweep_id)
        return costs

    async def _wish(self, sweep: SweepState, judge_lane_ids: Sequence[str], rubrics: Sequence[RubricRef]) -> Judging:
        record, latest = sweep.record, sweep.judgings[-1]
        asked = judge_lane_ids or [
            judge.lane_id
            for judge in record.judges
            if judge.lane_id in self._catalogue  # its file may be gone
        ]
        judges = self._choose(asked, record.lanes, "judge_lane_ids")
        await self._rubrics.check(record.spec.prompts, rubrics, "rubrics")
        given = {ref.prompt_index: ref for ref in (*latest.rubrics, *rubrics)}
        complete = await self._rubrics.for_prompts(record.spec.prompts, tuple(given.values()), "rubrics")
        return Judging(judges=judges, rubrics=complete, sequence=self._ledger.sequence + 1)

    def _choose(self, asked: Sequence[str], lanes: Sequence[LanePlan], field: str) -> tuple[JudgePlan, ...]:
        known = self._places()
        sweep_place = (lanes[0].host, lanes[0].device) if lanes else known[0]
        places = {
            judge.id: judge_planning.place(judge, self._presence.place_of(judge.id), sweep_place, known)
            for judge in self._catalogue.values()
        }
        return judge_planning.choose(asked, self._catalogue, places, field)

    def _clips(self, sweep_id: str) -> list[Entry]:
        """What there is to judge, and what open jobs are going to make."""
        return [
            entry if entry.clip is not None else replace(entry, clip=_NO_CLIP)
            for entry in self._ledger.sweep_jobs(sweep_id)
            if entry.state is JobState.COMPLETED or not entry.state.is_terminal
        ]

    async def _costs(self, scene: Scene, clips: Iterable[Entry], judges: Sequence[JudgePlan]) -> tuple[JudgeCost, ...]:
        due = followups.judge_jobs(scene, clips)
        has_controls = {(job.lane_id, job.prompt_index) for job in due if job.judged and job.judged.other_rubric}
        more = [
            job
            for job in followups.expected_controls(scene, due)
            if (job.lane_id, job.prompt_index) not in has_controls
        ]
        jobs = (*due, *more)
        refs = [ref for job in jobs if job.judged for ref in (job.judged.rubric, job.judged.other_rubric) if ref]
        rubrics = await self._rubrics.by_hash(refs)
        return tuple(
            judge_costs.cost(
                judge,
                judge_costs.work((job for job in jobs if job.lane_id == judge.lane_id), judge.tier, rubrics),
                self._ledger.judge_times,
            )
            for judge in judges
        )

    async def _call_off_old(self, sweep_id: str) -> None:
        """What still waits to be asked an older rubric: nobody would look at the answers."""
        judgings = self._ledger.sweep(sweep_id).judgings
        for entry in self._ledger.judge_jobs(sweep_id):
            current = followups.current_rubric(judgings, entry.spec.prompt_index)
            is_old = entry.spec.judged is not None and (
                current is None or entry.spec.judged.rubric.rubric_sha256 != current.rubric_sha256
            )
            if is_old and not entry.state.is_terminal:
                await self._cancel(entry.spec.job_id, "a newer rubric")
