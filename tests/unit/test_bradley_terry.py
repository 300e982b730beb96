"""Strengths and errors against closed forms, the equations that they must satisfy, and another implementation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screentest_reporter.bradley_terry import PRIOR, strengths

# Row beats column; the last has never been met.
WINS = [[0, 7, 3, 0], [2, 0, 4.5, 1], [1, 3.5, 0, 2], [0, 0, 0, 0]]


def test_strengths_and_errors_are_those_of_choix() -> None:
    """choix 0.4.1, opt_pairwise with alpha=0.1 over each vote as two halves; the errors from its Hessian."""
    found, errors = strengths(WINS)
    assert found == pytest.approx([1.51443701, 0.41631134, 0.27856654, -2.20931489], abs=1e-7)
    assert errors == pytest.approx([0.67195277, 0.58577063, 0.59836078, 1.42590252], abs=1e-7)


def test_nobody_ever_preferred_leaves_what_the_prior_knows() -> None:
    found, errors = strengths([[0, 0], [0, 0]])
    assert found == [0, 0]
    assert errors == pytest.approx([math.sqrt(0.5 / PRIOR)] * 2)


def test_a_million_wins_to_none_are_finite() -> None:
    found, errors = strengths([[0, 1e6], [1, 0]])
    assert found[0] == pytest.approx(-found[1])
    assert 5 < found[0] < 7
    assert 0 < errors[0] < 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 9).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 40), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_everybody_is_expected_to_win_what_they_won_but_for_the_prior(wins: list[list[int]]) -> None:
    """The gradient of the posterior is zero, written down a second time."""
    found, errors = strengths(wins)
    for i, row in enumerate(wins):
        others = [j for j in range(len(wins)) if j != i]
        expected = sum((row[j] + wins[j][i]) / (1 + math.exp(found[j] - found[i])) for j in others)
        assert sum(row[j] for j in others) - expected == pytest.approx(PRIOR * found[i], abs=1e-6)
    assert sum(found) == pytest.approx(0, abs=1e-6)
    assert all(0 < error <= math.sqrt(1 / PRIOR) for error in errors)
