"""Estimates from clicks: the position bias is found where ranks vary, and intervals count sessions."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.evaluation.pilot import position_bias
from streamer.evaluation.pilot.counterfactual import Clicked, discount, estimate, estimate_fitted
from streamer.evaluation.pilot.position_bias import DEEPEST, GROUPS, Shown, assumed, fit


def shown(exponent: float, *, sessions: int, varied: bool = True, seed: int = 1) -> Shown:
    """Let each session see one of 30 queries with 100 clips, in one of two orders, and click by the model itself."""
    rng = np.random.default_rng(seed)
    query, version = rng.integers(0, 30, sessions), rng.integers(0, 2, sessions) * varied
    orders = np.array([[rng.permutation(DEEPEST) for _ in range(2)] for _ in range(30)])
    attraction = rng.random((30, DEEPEST)) ** 3
    clips = orders[query, version]
    chance = attraction[query[:, None], clips] * assumed(exponent)
    clicked = rng.random(clips.shape) < chance
    rank = np.tile(np.arange(1, DEEPEST + 1), sessions)
    pair = (query[:, None] * DEEPEST + clips).ravel()
    return Shown(pair, rank, clicked.ravel(), np.repeat(np.arange(sessions), DEEPEST))


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_position_bias_is_found_where_queries_show_clips_at_different_ranks(exponent: float) -> None:
    fitted = fit(shown(exponent, sessions=3_000))
    assert fitted is not None
    curve, without = fitted
    first = [0, 1, 2, 4, 9, 29]
    assert curve[first] == pytest.approx(assumed(exponent)[first], rel=0.2)
    assert without.shape == (GROUPS, DEEPEST)
    assert np.abs(np.log(without[:, 9] / curve[9])).max() < 0.3
    assert (np.diff(curve) <= 0).all()


def test_no_position_bias_is_estimated_from_few_clicks_or_from_lists_that_never_vary() -> None:
    assert fit(shown(1.0, sessions=60)) is None
    assert fit(shown(1.0, sessions=3_000, varied=False)) is None


def clicks_of(queries: int, seed: int = 2) -> Clicked:
    rng = np.random.default_rng(seed)
    return Clicked(np.arange(queries), rng.integers(1, 20, queries), rng.integers(1, 20, queries))


def test_a_session_that_repeats_its_clicks_says_no_more_than_once() -> None:
    once = clicks_of(100)
    thrice = Clicked(*(np.tile(each, 3) for each in (once.session, once.before, once.after)))
    as_strangers = Clicked(np.arange(300), thrice.before, thrice.after)
    curve = assumed(1.0)
    first, repeated, strangers = (estimate(each, curve) for each in (once, thrice, as_strangers))
    assert first is not None
    assert repeated is not None
    assert strangers is not None
    assert [repeated.low, repeated.high] == pytest.approx([first.low, first.high])
    assert first.low is not None
    assert strangers.low is not None
    # Three times as many strangers would halve the interval, nearly.
    assert strangers.gain - strangers.low < 0.62 * (first.gain - first.low)


def test_clicks_below_the_deepest_rank_have_its_weight_and_one_session_has_no_interval() -> None:
    deep = Clicked(np.zeros(2, np.intp), np.array([1, 5_000]), np.array([2, 1]))
    found = estimate(deep, assumed(1.0))
    assert found is not None
    assert found.before == pytest.approx(np.average(discount(np.array([1, 5_000])), weights=[1, DEEPEST]))
    assert (found.low, found.high) == (None, None)
    assert estimate(Clicked(*(np.zeros(0, np.intp),) * 3), assumed(1.0)) is None


def test_the_uncertainty_of_an_estimated_curve_is_part_of_the_interval() -> None:
    clicks = clicks_of(300)
    curve = assumed(1.0)
    certain = estimate_fitted(clicks, curve, np.tile(curve, (GROUPS, 1)))
    uncertain = estimate_fitted(clicks, curve, np.array([assumed(0.7 + 0.6 * each / GROUPS) for each in range(GROUPS)]))
    assert certain is not None
    assert uncertain is not None
    assert certain.low is not None
    assert uncertain.low is not None
    assert certain.gain == uncertain.gain
    assert uncertain.gain - uncertain.low > certain.gain - certain.low


def test_an_assumed_curve_is_a_power_of_the_rank() -> None:
    assert {name: assumed(each)[[0, 3]].tolist() for name, each in position_bias.ASSUMED.items()} == {
        "1/rank": [1.0, 0.25],
        "1/sqrt(rank)": [1.0, 0.5],
    }
