"""Which of people's words count: the newest of a rater about the same clips. Older ones stay as events. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from screentest.records import PairVoted, Rated


def standing_ratings(ratings: Iterable[Rated]) -> tuple[Rated, ...]:
    """One per rater and clip. ``ratings``: oldest first; all who gave no name are one rater."""
    return tuple({(rated.rater, rated.job_id): rated for rated in ratings}.values())


def standing_votes(votes: Iterable[PairVoted]) -> tuple[PairVoted, ...]:
    """One per rater and pair, on whichever sides the two clips were shown. ``votes``: oldest first."""
    return tuple({(vote.rater, frozenset((vote.left_job_id, vote.right_job_id))): vote for vote in votes}.values())
