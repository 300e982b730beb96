"""Strengths from blind pairs: what people prefer, how sure that is, and in which order it is told."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screentest.records import PairOutcome, PairVoted
from screentest_reporter import votes
from screentest_reporter.votes import Preferred

LANES = {"a1": "wan", "a2": "wan", "b1": "ltx", "c1": "svd"}


def vote(left: str, right: str, outcome: PairOutcome = PairOutcome.LEFT) -> PairVoted:
    return PairVoted(left_job_id=left, right_job_id=right, outcome=outcome, rater="ada")


def by_lane(*found: PairVoted) -> dict[str, Preferred]:
    return {row.lane_id: row for row in votes.preferred(found, LANES)}


def test_three_of_four_votes_are_odds_of_three_to_one() -> None:
    """Bradley-Terry by hand: P(wan beats ltx) = 3/4, so the strengths differ by ln 3."""
    rows = by_lane(*[vote("a1", "b1")] * 3, vote("b1", "a1"))
    assert rows["wan"].strength - rows["ltx"].strength == pytest.approx(math.log(3), abs=0.1)
    assert rows["wan"].strength == pytest.approx(-rows["ltx"].strength)
    assert (rows["wan"].rank, rows["ltx"].rank) == (1, 2)
    assert [rows["wan"].votes, rows["ltx"].votes] == [4, 4]


def test_strengths_of_three_lanes_come_from_pairs_that_never_met_too() -> None:
    """wan : ltx = 3 : 1 and ltx : svd = 3 : 1 give wan : svd = 9 : 1, without a vote between the two."""
    pairs = [*[vote("a1", "b1")] * 30, *[vote("b1", "a1")] * 10, *[vote("b1", "c1")] * 30, *[vote("c1", "b1")] * 10]
    rows = by_lane(*pairs)
    assert rows["wan"].strength - rows["svd"].strength == pytest.approx(math.log(9), abs=0.1)
    assert [row.lane_id for row in votes.preferred(pairs, LANES)] == ["wan", "ltx", "svd"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(permutations("abc", 2))), st.sampled_from(PairOutcome)), min_size=1))
def test_every_lane_is_expected_to_win_what_it_won_but_for_the_prior(
    pairs: list[tuple[tuple[str, str], PairOutcome]],
) -> None:
    """The slope of the posterior is zero, written down a second time; the interval rests on that same posterior."""
    rows = by_lane(*[vote(f"{left}1", f"{right}1", outcome) for (left, right), outcome in pairs])
    for name, row in rows.items():
        surplus = 0.0
        for (left, right), outcome in pairs:
            if name in (LANES[f"{left}1"], LANES[f"{right}1"]):
                is_left = name == LANES[f"{left}1"]
                other = rows[LANES[f"{right}1" if is_left else f"{left}1"]]
                won = {PairOutcome.LEFT: is_left, PairOutcome.RIGHT: not is_left}.get(outcome, 0.5)
                surplus += won - 1 / (1 + math.exp(other.strength - row.strength))
        assert surplus == pytest.approx(votes.REGULARISATION * row.strength, abs=1e-3)
    assert sum(row.strength for row in rows.values()) == pytest.approx(0, abs=1e-4)


def test_a_tie_is_half_a_win_for_both_and_so_are_two_bad_clips() -> None:
    for outcome in (PairOutcome.TIE, PairOutcome.BOTH_BAD):
        rows = by_lane(*[vote("a1", "b1", outcome)] * 5)
        assert rows["wan"].strength == pytest.approx(0, abs=1e-6)
    half = by_lane(
        vote("a1", "b1"), vote("a1", "b1"), vote("a1", "b1", PairOutcome.TIE), vote("a1", "b1", PairOutcome.TIE)
    )
    assert half["wan"].strength - half["ltx"].strength == pytest.approx(math.log(3), abs=0.1)


def test_more_votes_make_it_surer_and_one_vote_hardly_says_anything() -> None:
    few = by_lane(*[vote("a1", "b1")] * 3, vote("b1", "a1"))["wan"]
    many = by_lane(*[vote("a1", "b1")] * 30, *[vote("b1", "a1")] * 10)["wan"]
    assert many.high - many.low == pytest.approx((few.high - few.low) / math.sqrt(10), rel=0.1)
    assert (few.preliminary, many.preliminary) == (True, False)
    one = by_lane(vote("a1", "b1"))["wan"]
    assert one.low < 0 < one.high


def test_the_order_is_that_of_the_lower_bound() -> None:
    """One lucky vote is stronger than thirty-one of forty, and much less sure."""
    pairs = [vote("c1", "b1"), *[vote("a1", "b1")] * 31, *[vote("b1", "a1")] * 9]
    rows = by_lane(*pairs)
    assert rows["svd"].strength > rows["wan"].strength
    lows = [row.low for row in votes.preferred(pairs, LANES)]
    assert lows == sorted(lows, reverse=True)
    assert rows["wan"].rank == 1


def test_lanes_between_which_people_see_no_difference_share_a_rank() -> None:
    rows = by_lane(vote("a1", "b1", PairOutcome.TIE), vote("a1", "b1", PairOutcome.TIE))
    assert (rows["wan"].rank, rows["ltx"].rank) == (1, 1)
    third = by_lane(*[vote("a1", "c1")] * 9, *[vote("b1", "c1")] * 9, vote("a1", "b1", PairOutcome.TIE))
    assert (third["wan"].rank, third["ltx"].rank, third["svd"].rank) == (1, 1, 3)


def test_clips_of_one_lane_and_of_strangers_say_nothing() -> None:
    assert votes.preferred([vote("a1", "a2"), vote("a1", "stranger")], LANES) == ()
    assert votes.preferred([], LANES) == ()
