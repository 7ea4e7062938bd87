"""Accuracy against chance: intervals and p-values against their definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation.accuracy import accuracy, change, says


def probability(right: int, of: int) -> float:
    return math.comb(of, right) / 2.0**of


@st.composite
def choices(draw: st.DrawFn) -> tuple[int, int]:
    of = draw(st.integers(1, 40))
    return draw(st.integers(0, of)), of


@given(choices())
def test_p_is_the_probability_of_what_is_no_more_probable_by_guessing(made: tuple[int, int]) -> None:
    right, of = made
    found = accuracy(right, of, 0.5)
    own = probability(right, of)
    expected = sum(each for n in range(of + 1) if (each := probability(n, of)) <= own * (1 + 1e-9))
    assert found.p == pytest.approx(min(1.0, expected))
    assert found.accuracy == right / of
    assert 0 <= found.low <= found.accuracy <= found.high <= 1


@given(choices())
def test_the_interval_has_the_shares_from_which_so_many_are_not_improbable(made: tuple[int, int]) -> None:
    right, of = made
    found = accuracy(right, of, 0.5)

    def tail(share: float, counts: range) -> float:
        return sum(math.comb(of, n) * share**n * (1 - share) ** (of - n) for n in counts)

    if right:
        assert tail(found.low, range(right, of + 1)) == pytest.approx(0.025, rel=1e-6)
    if right < of:
        assert tail(found.high, range(right + 1)) == pytest.approx(0.025, rel=1e-6)


def test_what_is_said_depends_on_the_corrected_p_and_the_side() -> None:
    assert says(accuracy(30, 40, 0.5), 0.01) == "above chance"
    assert says(accuracy(10, 40, 0.5), 0.01) == "below chance"
    assert says(accuracy(30, 40, 0.5), 0.05) == "not told from chance"


def test_a_change_is_judged_by_the_choices_that_differ() -> None:
    assert change(0, 0).p == 1
    assert change(6, 0).p == pytest.approx(2 / 2**6)
    assert change(3, 3).p == pytest.approx(1)
