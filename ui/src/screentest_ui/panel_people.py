"""What people say about clips: whose turn it is to be rated, which pair comes next, which words stand. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from screentest import table
from screentest.records import FindingEdited, Job, PairVoted, Rated

# The scale's anchors, for people as for the automatic score. Source: the scoring note's section on people.
ANCHORS = {
    0: "black, noise, nothing",
    2: "only palette or texture",
    4: "the place is right, subjects are missing",
    6: "main subjects; beats missing, or static",
    8: "most beats in order, some details wrong",
    10: "everything, in order",
}
PRELIMINARY_UNDER = 30  # votes: fewer of them order nothing
NO_NAME = "a person"  # what the scheduler calls who gives no name: all of them are one rater


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One clip that can be rated or compared."""

    job_id: str
    lane_id: str
    model: str
    prompt_index: int
    prompt: str
    seed: int
    fps: float

    @property
    def blind_name(self) -> str:
        """Names it in the page's source, where a job's id would lead to its lane."""
        return _lot("blind", self.job_id)[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """is_answered: this rater has voted on it, and on every other pair."""

    left: Contender
    right: Contender
    is_answered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One row's finding: as it was composed, and as a person edited it (None = nobody has)."""

    row: str
    model: str
    original: str
    edited: str | None
    by: str = ""


def contenders(jobs: Iterable[Job]) -> tuple[Contender, ...]:
    """The clips that people can judge: those that count, without random weights, in the order of the model table."""
    by_id = {job.spec.job_id: job for job in jobs}
    found = [(row, by_id[row.job_id]) for row in table.rows(by_id.values())]
    return tuple(
        Contender(
            job_id=row.job_id,
            lane_id=row.lane_id,
            model=row.model,
            prompt_index=row.prompt_index,
            prompt=job.spec.prompt,
            seed=row.seed,
            fps=job.spec.fps,
        )
        for row, job in found
        if job.clip is not None and not row.random_weights
    )


def queue(
    clips: Sequence[Contender],
    ratings: Iterable[Rated],
    salt: str,
    *,
    rater: str = "",
    conflicts: Container[str] = (),
) -> tuple[Contender, ...]:
    """The clips that this rater ("" = anybody) has not rated, in an order that says nothing of their lanes and stays
    the same for a salt. Clips about which judges disagree come first: there a person's word is worth most.
    """
    rated = {rating.job_id for rating in ratings if not rater or rating.rater == rater}
    waiting = [clip for clip in clips if clip.job_id not in rated]
    return tuple(sorted(waiting, key=lambda clip: (clip.job_id not in conflicts, _lot(salt, clip.job_id))))


def next_pair(clips: Sequence[Contender], votes: Sequence[PairVoted], salt: str, *, rater: str = "") -> Pair | None:
    """The pair of lanes with the fewest votes, on the prompt and seed where it has the fewest; sides by lot. What this
    rater has voted on comes after everything else.

    None where no prompt has clips of two lanes. The lot is drawn anew after each vote.
    """
    by_id = {clip.job_id: clip for clip in clips}
    lane_votes = Counter(
        frozenset((by_id[vote.left_job_id].lane_id, by_id[vote.right_job_id].lane_id))
        for vote in votes
        if vote.left_job_id in by_id and vote.right_job_id in by_id
    )
    pair_votes = Counter(frozenset((vote.left_job_id, vote.right_job_id)) for vote in votes)
    answered = {frozenset((vote.left_job_id, vote.right_job_id)) for vote in votes if vote.rater == rater}
    salt = f"{salt}-{len(votes)}"
    best = min(
        _pairs(clips),
        key=lambda pair: (
            frozenset(clip.job_id for clip in pair) in answered,
            lane_votes[frozenset(clip.lane_id for clip in pair)],
            pair_votes[frozenset(clip.job_id for clip in pair)],
            pair[0].seed != pair[1].seed,
            _lot(salt, *sorted(clip.job_id for clip in pair)),
        ),
        default=None,
    )
    if best is None:
        return None
    left, right = sorted(best, key=lambda clip: _lot(salt, "side", clip.job_id))
    return Pair(left=left, right=right, is_answered=frozenset((left.job_id, right.job_id)) in answered)


def findings(jobs: Iterable[Job], composed: Mapping[str, str], edits: Iterable[FindingEdited]) -> tuple[Words, ...]:
    """Every row of the model table, then the report's notes. ``composed``: the report's words by row, where it is out.

    An edit to nothing means the original again.
    """
    edited = {edit.row: edit for edit in edits}
    rows = [(row.job_id, row.model, composed.get(row.job_id, row.finding)) for row in table.rows(jobs)]
    known = {row for row, _, _ in rows}
    # An edited note of an older revision stays in sight, or nobody could take it back.
    notes = dict.fromkeys([row for row in (*composed, *edited) if row.startswith("note:") and row not in known])
    rows += [(row, f"note: {row.removeprefix('note:').replace('-', ' ')}", composed.get(row, "")) for row in notes]
    return tuple(_words(*row, edited.get(row[0])) for row in rows)


def _words(row: str, model: str, original: str, edit: FindingEdited | None) -> Words:
    if edit is None or not edit.text:
        return Words(row=row, model=model, original=original, edited=None)
    return Words(row=row, model=model, original=original, edited=edit.text, by=edit.by)


def _pairs(clips: Sequence[Contender]) -> Iterable[tuple[Contender, Contender]]:
    """Two lanes on one prompt. With many seeds only equal ones meet: the number of pairs must not explode."""
    by_prompt: dict[int, list[Contender]] = {}
    for clip in clips:
        by_prompt.setdefault(clip.prompt_index, []).append(clip)
    for group in by_prompt.values():
        shared = _seeds_of_all(group)
        for one, other in combinations(group, 2):
            if one.lane_id != other.lane_id and (not shared or one.seed == other.seed):
                yield one, other


def _seeds_of_all(group: Sequence[Contender]) -> bool:
    """Whether every lane has every seed of the group: then comparing equal seeds loses nothing."""
    lanes = {clip.lane_id for clip in group}
    seeds = {clip.seed for clip in group}
    return len({(clip.lane_id, clip.seed) for clip in group}) == len(lanes) * len(seeds)


def _lot(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
