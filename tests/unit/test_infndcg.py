"""Inferred NDCG against hand-made cases, and against a second implementation that goes from shot to shot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation.infndcg import InferredNDCG
from streamer.evaluation.measures import evaluate
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run
from tests.support.brute_infndcg import brute_infndcg

if TYPE_CHECKING:
    from collections.abc import Mapping

Pool = dict[str, tuple[str, int]]


def judgments(pool: Pool) -> Judgments:
    strata, rels = zip(*pool.values(), strict=True)
    return Judgments.of(list(pool), strata, rels)


def infndcg(scores: Mapping[str, float], pool: Pool) -> float:
    run = Run({"1": Ranking(tuple(scores), np.array(list(scores.values()), np.float64))})
    return evaluate(run, Qrels({"1": judgments(pool)}), ["infNDCG"]).topics["1"]["infNDCG"]


def best_first(*shots: str) -> dict[str, float]:
    return {shot: float(-position) for position, shot in enumerate(shots)}


def discount(rank: float) -> float:
    return 1 / math.log2(rank + 1)


def test_fully_judged_it_is_ndcg() -> None:
    pool = {"a": ("1", 1), "b": ("2", 0), "c": ("1", 2), "d": ("2", 1)}
    expected = (1 * discount(1) + 2 * discount(3)) / (2 * discount(1) + discount(2) + discount(3))
    assert infndcg(best_first("a", "b", "c"), pool) == pytest.approx(expected, rel=1e-15)
    run = Run({"1": Ranking(("a", "b", "c"), np.array([3.0, 2.0, 1.0]))})
    found = evaluate(run, Qrels({"1": judgments(pool)}), ["infNDCG", "nDCG"]).mean
    assert found["infNDCG"] == pytest.approx(found["nDCG"], rel=1e-12)


def test_infndcg_of_two_strata_equals_a_calculation_by_hand() -> None:
    # Stratum 1: 4 pooled, 2 judged, 1 relevant -> 2 expected. Stratum 2: 6 pooled, 3 judged, 2 relevant -> 4 expected.
    pool = {"a": ("1", 1), "b": ("1", 0), "c": ("1", -1), "d": ("1", -1)}
    pool |= {"e": ("2", 1), "f": ("2", 1), "g": ("2", 0), "h": ("2", -1), "i": ("2", -1), "j": ("2", -1)}
    # The list has c and a of stratum 1, of which a is judged; and e, h and g of stratum 2, of which two are judged.
    dcg = 2 * discount(4) / 1 + 3 * (discount(3) + 0) / 2
    expected = dcg / sum(discount(rank) for rank in range(1, 7))
    assert infndcg(best_first("not pooled", "c", "e", "a", "h", "g"), pool) == pytest.approx(expected, rel=1e-15)


def test_what_is_relevant_but_in_a_stratum_of_which_the_list_has_nothing_judged_adds_nothing() -> None:
    pool = {"a": ("1", 1), "b": ("2", 1), "c": ("2", -1)}
    # Two expected of stratum 2, none of its judged shots listed.
    expected = discount(2) / sum(discount(rank) for rank in (1, 2, 3))
    assert infndcg(best_first("c", "a"), pool) == pytest.approx(expected, rel=1e-15)


def test_the_ideal_list_has_whole_shots_only() -> None:
    # 2 of 3 judged of 4 pooled: 2.67 relevant shots to expect, of which the ideal list has 2.
    pool = {"a": ("1", 1), "b": ("1", 1), "c": ("1", 0), "d": ("1", -1)}
    dcg = 3 * (discount(1) + discount(2)) / 3
    assert infndcg(best_first("a", "b", "c"), pool) == pytest.approx(dcg / (discount(1) + discount(2)), rel=1e-15)


def test_lower_relevance_follows_the_expected_number_of_the_higher() -> None:
    # Of 4 pooled 3 are judged, so one of relevance 2 stands for 4/3 shots, and so does the one of relevance 1.
    pool = {"a": ("1", 2), "b": ("1", 1), "c": ("1", 0), "d": ("1", -1)}
    ideal = 2 * discount(1) + 1 * discount(1 + 4 / 3)
    assert infndcg(best_first("b"), pool) == pytest.approx(discount(1) / ideal, rel=1e-15)


def test_the_ideal_list_ends_at_rank_1000_but_each_relevance_has_a_shot() -> None:
    pool = {f"s{number:04}": ("1", 2 if number < 1100 else 1) for number in range(1200)}
    # The block of the lower relevance begins at rank 1101.
    ideal = 2 * sum(discount(rank) for rank in range(1, 1001)) + discount(1101)
    found = infndcg(best_first("s0000"), pool)
    assert found == pytest.approx(2 * discount(1) / ideal, rel=1e-12)


def test_only_the_best_thousand_count_for_infndcg() -> None:
    pool = {"x0500": ("1", 1), "x0499": ("1", 1)}
    scores = {f"x{number:04}": float(number) for number in range(1500)}
    expected = discount(1000) / (discount(1) + discount(2))
    assert infndcg(scores, pool) == pytest.approx(expected, rel=1e-15)


def test_infndcg_is_0_if_no_shot_is_relevant() -> None:
    assert infndcg(best_first("a", "b"), {"a": ("1", 0), "b": ("1", -1)}) == 0.0
    assert infndcg(best_first("a"), {"b": ("1", 1)}) == 0.0


def test_relevance_is_ordered_as_a_number() -> None:
    pool = {"a": ("1", 10), "b": ("1", 2)}
    assert infndcg(best_first("a", "b"), pool) == 1.0


SHOTS = [f"shot{number}_{number % 7}" for number in range(40)]
POOLS = st.dictionaries(
    st.sampled_from(SHOTS),
    st.tuples(st.sampled_from("abcde"), st.sampled_from([-1, -1, 0, 0, 1, 2, 3])),
    min_size=1,
)
RUNS = st.dictionaries(st.sampled_from(SHOTS), st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-40, 7.0]), min_size=1)


@given(RUNS, POOLS)
def test_infndcg_equals_the_second_implementation(scores: dict[str, float], pool: Pool) -> None:
    assert infndcg(scores, pool) == pytest.approx(brute_infndcg(scores, pool), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_infndcg_equals_the_second_implementation_on_large_pools(seed: int) -> None:
    random = np.random.default_rng(seed)
    pool = {}
    for number in range(3000):
        stratum = int(random.integers(1, 6))
        judged = random.random() < (1.0, 0.6, 0.2, 0.05, 0.0)[stratum - 1]
        rel = int(random.integers(1, 3)) if random.random() < (0.4 + 0.5 * (seed == 3)) else 0
        pool[f"shot{number}"] = (str(stratum), rel if judged else -1)
    shots = random.choice(4000, 1200, replace=False).tolist()
    scores = {f"shot{shot}": float(random.integers(0, 300)) for shot in shots}
    expected = brute_infndcg(scores, pool)
    assert expected > 0
    assert infndcg(scores, pool) == pytest.approx(expected, rel=1e-12)


def test_over_samples_of_a_judged_pool_the_mean_is_near_the_true_ndcg() -> None:
    random = np.random.default_rng(8)
    size = 800
    relevant = random.random(size) < 0.5 * np.exp(-np.arange(size) / 200)
    strata = np.searchsorted([60, 250], np.arange(size), side="right")
    shots = [f"shot{number}" for number in range(size)]
    order = np.argsort(np.arange(size) + random.normal(0, 150, size))
    ranked = [shots[each] for each in order]
    truth = InferredNDCG(Judgments.of(shots, ["1"] * size, relevant)).of(ranked)
    estimates = []
    for _ in range(200):
        rels = np.full(size, -1)
        for stratum, rate in enumerate((1.0, 0.5, 0.25)):
            (members,) = np.nonzero(strata == stratum)
            judged = random.choice(members, round(rate * len(members)), replace=False)
            rels[judged] = relevant[judged]
        estimates.append(InferredNDCG(Judgments.of(shots, strata.astype(str).tolist(), rels)).of(ranked))
    assert 0.1 < truth < 0.95
    assert np.mean(estimates) == pytest.approx(truth, abs=0.02)
    assert np.std(estimates) > 0.001
