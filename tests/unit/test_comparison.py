"""Two evaluations compared: wins and losses by hand, p-values against the tests' own definitions."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer.evaluation import comparison
from streamer.evaluation.comparison import Comparison, compare, compare_all, holm
from streamer.evaluation.measures import Evaluation
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def evaluation(values: Mapping[str, float]) -> Evaluation:
    topics = {topic: {"infAP": value} for topic, value in values.items()}
    return Evaluation(topics, {"infAP": math.fsum(values.values()) / len(values)}, (), ())


def compared(before: Sequence[float], after: Sequence[float]) -> Comparison:
    sides = (evaluation({str(topic): value for topic, value in enumerate(values)}) for values in (before, after))
    return compare(*sides)["infAP"]


def test_gains_wins_and_losses_are_those_of_the_topics_that_both_have() -> None:
    before = evaluation({"1": 0.5, "2": 0.25, "3": 0.0, "only before": 1.0})
    after = evaluation({"3": 0.0, "2": 0.0, "1": 1.0, "only after": 1.0})
    found = compare(before, after)["infAP"]
    assert (found.topics, found.wins, found.losses, found.ties) == (3, 1, 1, 1)
    assert (found.before, found.after, found.gain) == pytest.approx((0.25, 1 / 3, 1 / 12))


def test_a_difference_by_rounding_is_a_tie() -> None:
    found = compared([0.3, 0.3], [0.1 + 0.2, 0.3])
    assert (found.wins, found.ties, found.gain, found.randomization_p) == (0, 2, 0.0, 1.0)


def test_the_randomisation_test_counts_all_signs_of_few_topics() -> None:
    gains = np.array([0.05, 0.2, -0.1, 0.3, 0.01, 0.12, -0.02, 0.07])
    signed = np.array([gains * signs for signs in itertools.product([1, -1], repeat=len(gains))]).sum(axis=1)
    expected = np.mean(np.abs(signed) >= abs(gains.sum()) - 1e-12)
    assert compared(np.zeros(8).tolist(), gains.tolist()).randomization_p == pytest.approx(expected)


def test_the_randomisation_test_draws_signs_of_many_topics_and_gives_the_same_again() -> None:
    random = np.random.default_rng(5)
    gains = random.normal(0.02, 0.1, 60)
    first, again = (compared(np.zeros(60).tolist(), gains.tolist()) for _ in range(2))
    assert first == again
    assert first.randomization_p == pytest.approx(first.t_p, abs=0.02)


def test_the_t_test_and_its_interval_by_hand() -> None:
    found = compared([0.1, 0.2, 0.3], [0.2, 0.5, 0.5])
    mean, error = 0.2, 0.1 / math.sqrt(3)
    # Student's t for 2 degrees of freedom: its quantile of 97.5 % is 4.302653; p = 1 - t / sqrt(2 + t^2).
    assert (found.gain_low, found.gain_high) == pytest.approx((mean - 4.302653 * error, mean + 4.302653 * error))
    t = mean / error
    assert found.t_p == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_comparisons_of_one_topic_or_of_equal_gains_give_no_warning() -> None:
    one = compared([0.5], [1.0])
    assert (one.randomization_p, one.t_p, one.gain_low) == (None, None, None)
    none, same = compared([0.25] * 4, [0.25] * 4), compared([0.25] * 4, [0.5] * 4)
    assert (none.t_p, none.gain_low, none.gain_high) == (1.0, 0.0, 0.0)
    assert (same.t_p, same.gain_low, same.randomization_p) == (0.0, 0.25, 2 / 16)


def of_ranks(measure: str, ranks: Sequence[float]) -> Evaluation:
    topics = {str(topic): {measure: float(rank)} for topic, rank in enumerate(ranks)}
    mean = float(np.median(ranks) if measure == "MdR" else np.mean(ranks))
    return Evaluation(topics, {measure: mean}, (), ())


def test_ranks_gain_where_they_fall_and_lose_where_they_rise() -> None:
    before, after = [10, 4, 7, 1], [2, 6, 7, 1]
    found = compare(of_ranks("MnR", before), of_ranks("MnR", after))["MnR"]
    assert (found.wins, found.losses, found.ties) == (1, 1, 2)
    assert (found.before, found.after, found.gain) == (5.5, 4.0, 1.5)


def test_the_median_rank_is_tested_by_all_exchanges_of_before_and_after() -> None:
    before, after = np.array([12.0, 9, 30, 5, 8, 2]), np.array([3.0, 4, 20, 6, 1, 2])
    found = compare(of_ranks("MdR", before.tolist()), of_ranks("MdR", after.tolist()))["MdR"]
    assert (found.before, found.after, found.gain) == (8.5, 3.5, 5.0)
    pairs = np.array(list(itertools.product([False, True], repeat=6)))
    gains = np.median(np.where(pairs, after, before), axis=1) - np.median(np.where(pairs, before, after), axis=1)
    # Two-sided: twice the smaller side, and both sides are equally large.
    assert found.randomization_p == pytest.approx(min(1.0, 2 * np.mean(gains >= 5.0)))
    assert (found.t_p, found.gain_low, found.bootstrap_low) == (None, None, None)


def test_the_interval_of_the_median_gain_covers_it_and_is_the_same_again() -> None:
    random = np.random.default_rng(4)
    before = random.integers(1, 200, 120)
    after = np.maximum(1, before - random.integers(20, 60, 120))
    first, again = (compare(of_ranks("MdR", before.tolist()), of_ranks("MdR", after.tolist()))["MdR"] for _ in range(2))
    assert first == again
    assert first.gain_low is not None
    assert first.gain_high is not None
    assert 0 < first.gain_low <= first.gain <= first.gain_high
    assert first.randomization_p is not None
    assert first.randomization_p < 0.05
    same = compare(of_ranks("MdR", [3.0] * 9), of_ranks("MdR", [3.0] * 9))["MdR"]
    assert (same.gain, same.gain_low, same.gain_high, same.randomization_p) == (0.0, 0.0, 0.0, 1.0)


def test_the_memory_that_resamples_may_take_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    before = random.integers(1, 1000, 40).astype(float).tolist()
    after = random.integers(1, 1000, 40).astype(float).tolist()
    found = [compare(of_ranks(name, before), of_ranks(name, after)) for name in ("MdR", "MnR")]
    monkeypatch.setattr(comparison, "_VALUES", 40 * 700)
    assert [compare(of_ranks(name, before), of_ranks(name, after)) for name in ("MdR", "MnR")] == found


def test_several_runs_are_compared_with_the_first_and_corrected_together() -> None:
    random = np.random.default_rng(7)
    base = random.random(30)
    names = {"one": 0.05, "two": 0.02, "three": 0.0}

    def several(values: np.ndarray[Any, Any]) -> Evaluation:
        topics = {str(topic): {"infAP": value, "AP": value**2} for topic, value in enumerate(values.tolist())}
        return Evaluation(topics, {"infAP": float(values.mean()), "AP": float((values**2).mean())}, (), ())

    others = {name: several(base + shift + random.normal(0, 0.1, 30)) for name, shift in names.items()}
    found = compare_all(several(base), others)
    assert {name: list(each) for name, each in found.items()} == {name: ["infAP", "AP"] for name in names}
    every = {(name, measure): found[name][measure] for name in names for measure in ("infAP", "AP")}
    p_values = {key: each.randomization_p for key, each in every.items() if each.randomization_p is not None}
    assert len(p_values) == 6
    assert {key: each.holm_p for key, each in every.items()} == holm(p_values)
    smallest = min(p_values, key=p_values.__getitem__)
    assert every[smallest].holm_p == pytest.approx(6 * p_values[smallest])
    for name, other in others.items():
        alone = compare(several(base), other)
        assert alone["infAP"].randomization_p == found[name]["infAP"].randomization_p
        assert alone["infAP"].gain_low == found[name]["infAP"].gain_low
    with pytest.raises(TrecError, match=r"in both runs and in the qrels, found none \(other\)"):
        compare_all(several(base), {"one": others["one"], "other": evaluation({"x": 1.0})})


def test_topics_are_grouped_by_how_strong_the_base_is() -> None:
    before = [0.9, 0.1, 0.5, 0.3, 0.2, 0.6, 0.4, 0.8]
    found = compared(before, [value + (0.1 if value < 0.5 else -0.1) for value in before]).by_strength
    assert [(group.low, group.high, group.topics) for group in found] == [
        (0.1, 0.2, 2),
        (0.3, 0.4, 2),
        (0.5, 0.6, 2),
        (0.8, 0.9, 2),
    ]
    assert [(round(group.gain, 9), group.wins, group.losses) for group in found] == [
        (0.1, 2, 0),
        (0.1, 2, 0),
        (-0.1, 0, 2),
        (-0.1, 0, 2),
    ]


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(TrecError, match="in both runs"):
        compare(evaluation({"1": 0.5}), evaluation({"2": 0.5}))


def test_p_values_of_several_measures_are_corrected() -> None:
    # The smallest counts three times, the next twice, and none less than a smaller one.
    assert holm({"a": 0.03, "b": 0.01, "c": 0.04}) == pytest.approx({"b": 0.03, "a": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    one = compared([0.1, 0.2, 0.3], [0.2, 0.5, 0.5])
    assert one.holm_p == one.randomization_p


def test_skewed_gains_of_few_topics_are_doubtful_and_have_a_bootstrap_interval() -> None:
    random = np.random.default_rng(3)
    skewed = random.lognormal(0, 1.5, 30) / 100
    few = compared(np.zeros(30).tolist(), skewed.tolist())
    assert few.is_doubtful
    assert few.skewness is not None
    assert few.skewness > 1
    assert few.bootstrap_low is not None
    assert few.bootstrap_high is not None
    assert few.gain_low is not None
    # It lies further to the right than Student's, which is symmetric.
    assert few.gain_low < few.bootstrap_low < few.gain < few.bootstrap_high
    assert few.bootstrap_high - few.gain > few.gain - few.bootstrap_low
    many = compared(np.zeros(90).tolist(), np.tile(skewed, 3).tolist())
    symmetric = compared(np.zeros(30).tolist(), np.linspace(-0.1, 0.3, 30).tolist())
    assert not many.is_doubtful
    assert not symmetric.is_doubtful
    assert compared([0.1, 0.2], [0.2, 0.5]).skewness is None
