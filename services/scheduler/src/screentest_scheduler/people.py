"""What people say and order about a sweep: each is one event on the sweep's subject, behind whatever came before."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from screentest import opinions
from screentest.errors import BadRequest, FieldViolation, NotPossibleNow
from screentest.records import FindingEdited, PairVoted, PrioritySet, Rated, RubricRef, SweepPaused
from screentest_scheduler.journal import Journal
from screentest_scheduler.ledger import Ledger
from screentest_scheduler.planning import MAX_PRIORITY
from screentest_scheduler.rubrics import Rubrics
from screentest_scheduler.transitions import Entry

MAX_FINDING_CHARACTERS = 1000
NOTE = re.compile(r"note:[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What counts of it. ``findings``: one per row, without those that were taken back; the rest: see `opinions`."""

    ratings: tuple[Rated, ...]
    pairs: tuple[PairVoted, ...]
    findings: tuple[FindingEdited, ...]


class People:
    def __init__(self, ledger: Ledger, journal: Journal, rubrics: Rubrics) -> None:
        self._ledger = ledger
        self._journal = journal
        self._rubrics = rubrics

    async def pause(self, sweep_id: str, paused: bool, by: str) -> None:
        """Nothing is written where the sweep is so already."""
        if self._ledger.sweep(sweep_id).is_paused != paused:
            await self._journal.say(sweep_id, SweepPaused(paused=paused, by=by))

    async def set_priority(self, sweep_id: str, priority: int, by: str) -> None:
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise _wrong("priority", f"priority {priority} is not between -{MAX_PRIORITY} and {MAX_PRIORITY}")
        if self._ledger.sweep(sweep_id).priority != priority:
            await self._journal.say(sweep_id, PrioritySet(priority=priority, by=by))

    async def edit_finding(self, sweep_id: str, edited: FindingEdited) -> None:
        rows = self._ledger.sweep(sweep_id).job_ids
        if edited.row not in rows and not NOTE.fullmatch(edited.row):
            raise _wrong("row", f"{edited.row!r} is no job of sweep {sweep_id} and no note:<slug>")
        if len(edited.text) > MAX_FINDING_CHARACTERS:
            raise _wrong("text", f"the finding has {len(edited.text)} characters; {MAX_FINDING_CHARACTERS} fit")
        await self._journal.say(sweep_id, edited)

    async def rate(self, rated: Rated) -> None:
        entry = self._with_clip(rated.job_id)
        if rated.score10 is None and not rated.ticks:
            raise _wrong("score10", "a rating has a score, ticks, or both")
        if rated.score10 is not None and not (math.isfinite(rated.score10) and 0 <= rated.score10 <= 10):
            raise _wrong("score10", f"score10 {rated.score10:g} is not between 0 and 10")
        if rated.ticks:
            await self._check_ticks(entry, rated)
        await self._journal.say(entry.spec.sweep_id, rated)

    async def vote(self, vote: PairVoted) -> None:
        left, right = self._with_clip(vote.left_job_id), self._with_clip(vote.right_job_id)
        if vote.left_job_id == vote.right_job_id:
            raise _wrong("right_job_id", "both sides are the same clip")
        if left.spec.sweep_id != right.spec.sweep_id or left.spec.prompt_index != right.spec.prompt_index:
            raise _wrong("right_job_id", "the two clips are not of one prompt of one sweep; nobody can compare them")
        await self._journal.say(left.spec.sweep_id, vote)

    async def said(self, sweep_id: str) -> Said:
        self._ledger.sweep(sweep_id)
        said = [event.body for event in await self._journal.sweep_history(sweep_id)]
        findings = {body.row: body for body in said if isinstance(body, FindingEdited)}
        return Said(
            ratings=opinions.standing_ratings(body for body in said if isinstance(body, Rated)),
            pairs=opinions.standing_votes(body for body in said if isinstance(body, PairVoted)),
            findings=tuple(edited for edited in findings.values() if edited.text.strip()),
        )

    def _with_clip(self, job_id: str) -> Entry:
        """NotFound, or NotPossibleNow for a job that left no clip."""
        entry = self._ledger.job(job_id)
        if entry.clip is None:
            raise NotPossibleNow(f"job {job_id} ({entry.state.value}) has no clip to look at")
        return entry

    async def _check_ticks(self, entry: Entry, rated: Rated) -> None:
        """Raises BadRequest for another sweep's rubric and for what is none of its elements."""
        ref = self._rubric(entry, rated.rubric_sha256)
        known = {element.id for element in (await self._rubrics.read(ref)).elements}
        ticked = [tick.element_id for tick in rated.ticks]
        for index, element_id in enumerate(ticked):
            if element_id not in known:
                raise _wrong(f"ticks[{index}]", f"{element_id!r} is no element of rubric {rated.rubric_sha256[:8]}")
            if ticked.index(element_id) != index:
                raise _wrong(f"ticks[{index}]", f"{element_id!r} is ticked twice")

    def _rubric(self, entry: Entry, rubric_sha256: str) -> RubricRef:
        judgings = self._ledger.sweep(entry.spec.sweep_id).judgings
        refs = (judging.rubric(entry.spec.prompt_index) for judging in judgings)
        found = next((ref for ref in refs if ref is not None and ref.rubric_sha256 == rubric_sha256), None)
        if found is None:
            raise _wrong("rubric_sha256", f"rubric {rubric_sha256[:8]!r} is none that this clip was judged by")
        return found


def _wrong(field: str, message: str) -> BadRequest:
    return BadRequest(message, (FieldViolation(field=field, description=message),))
