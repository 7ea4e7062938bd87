"""Extended inferred AP against hand-made cases, and against a second implementation in exact fractions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation.infap import InferredAP
from streamer.evaluation.measures import evaluate
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run, read_qrels, read_run
from streamer.evaluation.trec_rows import TrecError
from tests.support.brute_infap import brute_infap

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Pool = dict[str, tuple[str, int]]


def judgments(pool: Pool) -> Judgments:
    strata, rels = zip(*pool.values(), strict=True)
    return Judgments.of(list(pool), strata, rels)


def ranking(scores: Mapping[str, float]) -> Ranking:
    return Ranking(tuple(scores), np.array(list(scores.values()), np.float64))


def infap(scores: Mapping[str, float], pool: Pool) -> float:
    return InferredAP(judgments(pool)).of(ranking(scores))


def best_first(*shots: str) -> dict[str, float]:
    return {shot: float(-position) for position, shot in enumerate(shots)}


def test_fully_judged_it_is_average_precision_up_to_the_prior() -> None:
    pool = {"a": ("1", 1), "b": ("1", 0), "c": ("1", 2), "d": ("1", 1)}
    assert infap(best_first("a", "b", "c"), pool) == pytest.approx((1 + 2 / 3) / 3, abs=2e-5)


def test_infap_of_two_strata_equals_a_calculation_by_hand() -> None:
    # Stratum 1: 4 pooled, 2 judged, 1 relevant -> R_1 = 2. Stratum 2: 6 pooled, 3 judged, 2 relevant -> R_2 = 4.
    pool = {"a": ("1", 1), "b": ("1", 0), "c": ("1", -1), "d": ("1", -1)}
    pool |= {"e": ("2", 1), "f": ("2", 1), "g": ("2", 0), "h": ("2", -1), "i": ("2", -1), "j": ("2", -1)}
    # e at rank 3 has the pooled c above it (stratum 1, not judged); a at 4 has c and e.
    at_e = 1 / 3 + 1 / 3 * (1 * 1e-5 / 3e-5)
    at_a = 1 / 4 + 2 / 4 * (1 / 2 * 1e-5 / 3e-5 + 1 / 2 * (1 + 1e-5) / (1 + 3e-5))
    expected = 2 / 6 * at_a / 1 + 4 / 6 * at_e / 2
    assert infap(best_first("not pooled", "c", "e", "a", "b"), pool) == pytest.approx(expected, abs=1e-15)


def test_the_first_term_stands_alone_where_nothing_pooled_is_above() -> None:
    assert infap(best_first("x", "y", "a"), {"a": ("1", 1)}) == pytest.approx(1 / 3, abs=1e-15)


def test_ties_go_by_shot_id_bytewise_descending() -> None:
    pool = {"shot9": ("1", 1), "shot10": ("1", 0), "Shot9": ("1", 0), "\U0001f600": ("1", 0), "\uffee": ("1", 0)}
    tied = dict.fromkeys(pool, 1.0)
    # By bytes the emoji comes before U+FFEE, which UTF-16's units would put the other way round.
    assert ranking(tied).ranked().shots == ("\U0001f600", "\uffee", "shot9", "shot10", "Shot9")
    assert infap(tied, pool) == pytest.approx(1 / 3, abs=1e-4)


def test_scores_that_float32_cannot_distinguish_are_distinguished() -> None:
    low, high = 0.123456789012, 0.123456789013
    assert np.float32(low) == np.float32(high)
    assert infap({"a": high, "z": low}, {"a": ("1", 1), "z": ("1", 0)}) == 1.0


def test_plus_and_minus_zero_are_ties_in_infap() -> None:
    assert ranking({"a": 0.0, "b": -0.0, "c": 0.0}).ranked().shots == ("c", "b", "a")


def test_rank_column_and_order_of_the_file_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("7 Q0 b 1 1e-1 t\n7 Q0 c 1 0.05 t\n7 Q0 a 99 20e-2 t\n7 Q0 d zero -3 t\n")
    (tmp_path / "qrels").write_text("7 0 a 1 1\n7 0 b 1 0\n7 0 c 1 1\n7 0 d 1 0\n")
    found = evaluate(read_run(tmp_path / "run"), read_qrels(tmp_path / "qrels"))
    expected = brute_infap({"a": 0.2, "b": 0.1, "c": 0.05, "d": -3}, {"a": ("1", 1), "b": ("1", 0), "c": ("1", 1)})
    assert found.topics["7"]["infAP"] == pytest.approx(expected, abs=1e-4)
    assert found.topics["7"]["infAP"] == pytest.approx(5 / 6, abs=1e-4)


def test_only_the_best_thousand_count_after_sorting() -> None:
    scores = {f"x{number:04}": float(number) for number in range(1500)}
    pool = {"x0500": ("1", 1), "x0499": ("1", 1), "x1499": ("1", 1)}
    # x1499 is first, x0500 the thousandth, x0499 cut off.
    assert infap(scores, pool) == pytest.approx((1 + 1 / 1000 * (1 + (1 + 1e-5) / (1 + 3e-5))) / 3, abs=1e-15)


def test_more_than_a_thousand_expected_relevant_shots_raise_infap_beyond_1() -> None:
    pool = {f"s{number:04}": ("1", 1 if number < 50 else -1) for number in range(2000)}
    found = infap(best_first(*(f"s{number:04}" for number in range(2000))), pool)
    assert InferredAP(judgments(pool)).relevant == 2000
    assert found == pytest.approx(2.0, abs=1e-4)


def test_a_thousand_expected_relevant_shots_do_not_raise_infap_beyond_1() -> None:
    pool = {f"s{number:04}": ("1", 1) for number in range(1000)}
    assert infap(best_first(*pool), pool) == pytest.approx(1.0, abs=1e-4)


def test_infap_is_0_if_no_shot_is_relevant() -> None:
    assert infap(best_first("a", "b"), {"a": ("1", 0), "b": ("1", -1)}) == 0.0
    assert infap(best_first("a"), {"b": ("1", -1)}) == 0.0


def test_a_stratum_never_judged_adds_nothing_expected_but_counts_above() -> None:
    pool = {"a": ("1", 1), "b": ("1", 0), "n1": ("2", -1), "n2": ("2", -1)}
    assert InferredAP(judgments(pool)).relevant == 1
    assert infap(best_first("n1", "n2", "a"), pool) == pytest.approx(1 / 3 + 2 / 3 * (1 / 3), abs=1e-15)


@pytest.mark.parametrize("missing_as_zero", [False, True])
def test_topics_missing_on_either_side(missing_as_zero: bool) -> None:
    run = Run({"1": ranking({"a": 1.0}), "3": ranking({"a": 1.0}), "4": ranking({"b": 1.0})})
    qrels = Qrels(dict.fromkeys(("1", "2", "4"), judgments({"a": ("1", 1)})))
    found = evaluate(run, qrels, missing_as_zero=missing_as_zero)
    assert (found.missing, found.not_judged) == (("2",), ("3",))
    values = {topic: each["infAP"] for topic, each in found.topics.items()}
    assert values == ({"1": 1.0, "2": 0.0, "4": 0.0} if missing_as_zero else {"1": 1.0, "4": 0.0})
    assert found.mean == {"infAP": pytest.approx(1 / 3 if missing_as_zero else 1 / 2)}


@pytest.mark.parametrize("missing_as_zero", [False, True])
def test_no_common_topic_is_an_error(missing_as_zero: bool) -> None:
    run, qrels = Run({"1": ranking({"a": 1.0})}), Qrels({"01": judgments({"a": ("1", 1)})})
    with pytest.raises(TrecError, match=r"none .the first are '1' of the run, '01' of the qrels"):
        evaluate(run, qrels, missing_as_zero=missing_as_zero)


SHOTS = [f"shot{number}_{number % 7}" for number in range(40)]
POOLS = st.dictionaries(
    st.sampled_from(SHOTS),
    st.tuples(st.sampled_from("abcde"), st.sampled_from([-1, -1, 0, 0, 1, 2])),
    min_size=1,
)
RUNS = st.dictionaries(
    st.sampled_from(SHOTS),
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-40, -5.5]), st.floats(-1e300, 1e300)),
    min_size=1,
)


@given(RUNS, POOLS)
def test_infap_equals_the_second_implementation(scores: dict[str, float], pool: Pool) -> None:
    assert infap(scores, pool) == pytest.approx(brute_infap(scores, pool), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_infap_equals_the_second_implementation_on_large_pools_of_five_strata(seed: int) -> None:
    random = np.random.default_rng(seed)
    pool = {}
    for number in range(3000):
        stratum = int(random.integers(1, 6))
        judged = random.random() < (1.0, 0.6, 0.2, 0.05, 0.0)[stratum - 1]
        pool[f"shot{number}"] = (str(stratum), int(random.random() < 0.6 / stratum) if judged else -1)
    shots = random.choice(4000, 1200, replace=False).tolist()
    scores = {f"shot{shot}": float(random.integers(0, 300)) for shot in shots}
    expected = brute_infap(scores, pool)
    assert expected > 0
    assert infap(scores, pool) == pytest.approx(expected, rel=1e-12)


def test_counted_rankings_give_what_their_codes_give() -> None:
    # What a sweep does: the ranks and the counts above of a topic's relevant results, for several rankings at once.
    pool = {f"s{number}": (str(number % 3), number % 4 - 1) for number in range(30)}
    measure = InferredAP(judgments(pool))
    shots = [*pool, "outside", "beyond"]
    codes = measure.codes(shots)
    strata, said = codes // 3, codes % 3
    relevant = np.flatnonzero(said == 0)
    orders = [np.random.default_rng(seed).permutation(len(shots)) for seed in range(5)]
    ranks = np.array([np.argsort(order) for order in orders])
    above = ranks[:, None, :] < ranks[:, relevant][:, :, None]
    columns = np.arange(3) == strata[:, None]
    counts = [(above @ (columns & which[:, None]).astype(int)) for which in (said < 3, said < 2, said == 0)]
    together = measure.of_counts(strata[relevant], ranks[:, relevant] + 1, *counts)
    assert together.tolist() == pytest.approx([measure.of_codes(codes[order]) for order in orders], rel=1e-13)


def test_over_samples_of_a_judged_pool_the_mean_is_the_true_average_precision() -> None:
    random = np.random.default_rng(8)
    size = 2500
    # The better a pooled shot's place in some run, the likelier it is relevant; strata are depths of the pool.
    relevant = random.random(size) < 0.5 * np.exp(-np.arange(size) / 600)
    strata = np.searchsorted([150, 600, 1500], np.arange(size), side="right")
    rates = np.array([1.0, 0.4, 0.2, 0.1])
    shots = [f"shot{number}" for number in range(size)]
    noisy = -np.arange(size) + random.normal(0, 500, size)
    run = Ranking((*shots, *(f"outside{number}" for number in range(200))), np.append(noisy, random.choice(noisy, 200)))
    full = {shot: int(rel) for shot, rel in zip(shots, relevant, strict=True)}
    found, total = 0, 0.0
    for rank, shot in enumerate(run.ranked().shots[:1000], start=1):
        if full.get(shot):
            found += 1
            total += found / rank
    truth = total / relevant.sum()
    estimates = []
    for _ in range(200):
        rels = np.full(size, -1)
        for stratum, rate in enumerate(rates):
            (members,) = np.nonzero(strata == stratum)
            judged = random.choice(members, round(rate * len(members)), replace=False)
            rels[judged] = relevant[judged]
        estimates.append(InferredAP(Judgments.of(shots, strata.astype(str).tolist(), rels)).of(run))
    assert 0.1 < truth < 0.9
    assert np.mean(estimates) == pytest.approx(truth, abs=0.01)
    assert np.std(estimates) > 0.001
