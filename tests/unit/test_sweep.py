"""The sweep's arithmetic: each point's value is that of the run which a replay with these settings gives."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from streamer.cli import cli
from streamer.evaluation import choice
from streamer.evaluation.alternatives import alternatives
from streamer.evaluation.choice import Caution
from streamer.evaluation.infap import InferredAP
from streamer.evaluation.measures import evaluate
from streamer.evaluation.rank_measures import RankMeasure
from streamer.evaluation.sweep import Grid, TopicSweep
from streamer.evaluation.sweep_run import Column, Sweep
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run
from streamer.evaluation.variants import Costs, Variant, derive, frame_scores
from streamer.method import Method, score_clips
from streamer.pooling import MAX
from streamer.scoring import rerank
from streamer.store import Clip, Embedding, Position, open_store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streamer.settings import Precision
    from streamer.store import Store

TAU = "softmax:0.1"
GRID = Grid((0.0, 0.1, 0.4, 0.75, 1.0), (1, 3, 10, 40, 2000), ("minmax", "zscore", "none"), ("own", "impute"))


def reranked(initial: Any, frame: Mapping[str, Any], method: Method) -> Any:
    """Return the order of a replay."""
    parameters = asdict(method)
    pooled = frame[parameters.pop("pooling")]
    return rerank(initial, pooled[: method.depth], **parameters).order


def judged(rng: np.random.Generator, shots: list[str], strata: int) -> Judgments:
    """Judge some of the shots and a few that the run does not have."""
    pool = [shot for shot in [*shots, *(f"x{number}" for number in range(9))] if rng.random() < 0.7]
    names = [f"s{number}" for number in rng.integers(0, strata, len(pool))]
    return Judgments.of(pool, names, rng.choice([-1, 0, 0, 1], len(pool)).tolist())


@given(st.integers(0, 2**32 - 1), st.integers(0, 120), st.integers(1, 6), st.booleans())
def test_each_value_is_that_of_the_replayed_run_to_the_last_bit(seed: int, count: int, strata: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    shots = [f"c{number}" for number in range(count)]
    initial = np.sort(rng.integers(0, 6, count).astype(float) if tied else rng.standard_normal(count))[::-1]
    cosines = rng.integers(0, 4, count) / 4 if tied else rng.standard_normal(count)
    cosines[rng.random(count) < 0.1] = np.nan
    judgments = judged(rng, shots, strata)
    measure = InferredAP(judgments)
    codes = measure.codes(shots)
    frame = {MAX: cosines, TAU: cosines[::-1]}
    grid = replace(GRID, poolings=(MAX, TAU))
    (values,) = TopicSweep(measure, codes, initial).values(frame, grid)
    assert values.shape == (len(grid),) == (2 * len(GRID),)
    for value, point in zip(values.tolist(), grid.points(), strict=True):
        assert value == measure.of_codes(codes[reranked(initial, frame, point)]), point


def test_of_long_lists_what_is_beyond_rank_1000_adds_nothing() -> None:
    rng = np.random.default_rng(0)
    shots = [f"c{number}" for number in range(2_500)]
    initial, cosines = -np.arange(2_500.0), rng.standard_normal(2_500)
    measure = InferredAP(judged(rng, shots, 5))
    codes = measure.codes(shots)
    (values,) = TopicSweep(measure, codes, initial).values({MAX: cosines}, GRID)
    for value, point in zip(values.tolist(), GRID.points(), strict=True):
        order = reranked(initial, {MAX: cosines}, point)
        np.testing.assert_allclose(value, measure.of_codes(codes[order]), rtol=1e-13)


GAINS = np.array([[0.3, 0.1, 0.0], [0.3, 0.1, 0.0], [-0.2, 0.1, 0.0], [0.3, 0.05, 0.0]])


def test_other_measures_are_those_of_the_replayed_run() -> None:
    rng = np.random.default_rng(2)
    names = ["AP", "nDCG@5", "nDCG", "P@10", "R@20", "RR", "Success@1"]
    for relevant in (0, 1, 30):
        shots = [f"c{number:02d}" for number in range(60)]
        rels = np.where(np.arange(60) < relevant, rng.integers(1, 4, 60), rng.choice([0, -1], 60))[rng.permutation(60)]
        judgments = Judgments.of([*shots, "elsewhere"], ["1"] * 61, [*rels.tolist(), min(relevant, 1)])
        measure = InferredAP(judgments)
        initial, cosines = -np.arange(60.0), rng.standard_normal(60)
        others = [RankMeasure(name, judgments) for name in names]
        found = TopicSweep(measure, measure.codes(shots), initial, others, rels.astype(float)).values(
            {MAX: cosines}, GRID
        )
        assert found.shape == (1 + len(names), len(GRID))
        for number, point in enumerate(GRID.points()):
            order = reranked(initial, {MAX: cosines}, point)
            run = Run({"1": Ranking(tuple(shots[each] for each in order), -np.arange(60.0))})
            expected = evaluate(run, Qrels({"1": judgments}), names).topics["1"]
            assert dict(zip(names, found[1:, number].tolist(), strict=True)) == pytest.approx(expected, rel=1e-12)


def test_the_best_choice_has_the_largest_gain() -> None:
    assert choice.best(GAINS) == 0


CHAIN = [np.array([2, 1, 0])]


def test_the_conservative_choice_needs_enough_topics_to_confirm_its_promise() -> None:
    """GAINS are those of four topics; point 0 harms one in four, the others none."""
    for times, chosen in ((1, None), (7, None), (8, 1), (100, 1)):
        assert choice.conservative(np.tile(GAINS, (times, 1)), Caution(share=0.1), CHAIN) == chosen, times
    assert choice.conservative(np.tile(GAINS, (100, 1)), Caution(share=0.3), CHAIN) == 0
    # Of 32 topics that all keep the promise, the bound is 1 - 0.05 ** (1 / 32) = 0.089; twice the chains cost more.
    bound = float(Caution().upper(np.zeros(1), 32, 1)[0])
    assert bound == pytest.approx(1 - 0.05 ** (1 / 32))
    assert choice.conservative(np.tile(GAINS, (8, 1)), Caution(), CHAIN * 2) is None


def test_no_point_is_confirmed_after_the_first_of_its_chain_that_is_not() -> None:
    gains = np.tile(GAINS, (100, 1))
    assert choice.conservative(gains, Caution(share=0.1), [np.array([2, 0, 1])]) == 2


def test_cross_validation_measures_each_topic_with_a_choice_that_has_not_seen_it() -> None:
    seen: list[int] = []

    def rule(gains: Any) -> int:
        seen.append(len(gains))
        return choice.best(gains)

    # Each topic gains with its own point and with no other: what was chosen by others gains nothing.
    result = choice.cross_validate(np.eye(6), rule, Caution(), folds=6)
    assert seen == [5] * 6
    assert result.gain == 0.0
    always = choice.cross_validate(GAINS, lambda _: 0, Caution(), folds=2)
    assert always.gain == pytest.approx(0.175)
    assert (always.losing, always.chosen) == (0.25, (0, 0))
    # Student's quantile for 3 degrees of freedom; two folds triple the variance.
    half = 3.182446 * 0.25 / 2 * 3**0.5
    assert (always.low, always.high) == pytest.approx((0.175 - half, 0.175 + half))
    of_two = choice.cross_validate(GAINS, lambda _: 0, Caution(), folds=2, tests=2)
    assert of_two.confidence == pytest.approx(0.975)
    assert of_two.low < always.low


def test_another_way_is_recommended_only_where_it_gains_more_on_unseen_topics() -> None:
    rng = np.random.default_rng(4)
    grid = Grid((0.0, 0.4), (10,), ("minmax",), ("own", "impute"), (MAX, TAU))
    columns = tuple(Column("m", Variant(), method, 1.0, 1.0, 1.0) for method in grid.points())
    softer = np.array([column.method.pooling == TAU for column in columns])
    # The first alpha is better on every topic, so both ways choose it; softmax adds 0.1 on average, imputing nothing.
    values = np.where([column.method.alpha == 0 for column in columns], 0.5, 0.2) + np.zeros((40, 1))
    extra = 0.1 + 0.05 * rng.standard_normal(40)
    noise = 0.05 * rng.standard_normal(40)
    imputed = np.array([column.method.missing == "impute" for column in columns])
    values = values + softer * extra[:, None] + imputed * (noise - noise.mean() - 0.001)[:, None]

    def report(gains: Any, folds: int = 5) -> dict[str, Any]:
        topics = tuple(map(str, range(len(gains))))
        return alternatives(Sweep(("infAP",), topics, np.zeros((1, len(gains))), columns, gains[None]), folds)

    found = report(values)
    assert found["recommended"] == {"missing": "own", "pooling": TAU}
    impute, pooled = found["alternatives"]
    assert (impute["parameter"], impute["value"], impute["than"], impute["says"]) == (
        "missing", "impute", "own", choice.NOT_SHOWN,
    )  # fmt: skip
    assert (pooled["value"], pooled["than"], pooled["says"]) == (TAU, MAX, choice.GAIN)
    assert pooled["gain"] == pytest.approx(extra.mean(), abs=1e-3)
    assert pooled["confidence"] == pytest.approx(0.975)  # two comparisons
    worse = report(values - 2 * softer * extra[:, None])
    assert worse["recommended"] == {"missing": "own", "pooling": MAX}
    assert [each["says"] for each in worse["alternatives"]] == [choice.NOT_SHOWN, choice.LOSS]
    assert report(values, folds=0) == {"alternatives": [], "recommended": {}}


def test_more_topics_show_smaller_gains_and_allow_more_losing_topics() -> None:
    few, more, many = (choice.visible(topics, 0.2, Caution(), folds=5, chains=1) for topics in (20, 32, 1_000))
    assert few.gain > more.gain > many.gain > 0
    assert (few.losing, more.losing) == (None, 0)
    # Clopper and Pearson's bound is at most 0.1 as long as a share of 0.1 would give so few in at most 5 % of samples.
    assert many.losing is not None
    assert binom.cdf(many.losing, 1_000, 0.1) <= 0.05 < binom.cdf(many.losing + 1, 1_000, 0.1)


def test_cross_validation_keeps_the_engines_order_if_the_rule_chooses_nothing() -> None:
    result = choice.cross_validate(GAINS, lambda _: None, Caution(), folds=2)
    assert (result.gain, result.losing, result.chosen) == (0.0, 0.0, (None, None))


def test_the_frontier_has_the_points_that_no_cheaper_point_equals() -> None:
    costs, gains = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.1, 0.3, 0.2, 0.4])
    assert choice.frontier(costs, gains).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_variant_scores_as_if_it_had_been_stored_so(precision: Precision, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((9, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    times = (np.arange(9) * 500).astype(np.uint32)
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def store(name: str, rows: Any, stored_as: Precision) -> Store:
        opened = open_store(f"lmdb:{tmp_path / name}", model_id="m", dim=16, precision=stored_as)
        opened.put([Clip("c", at, Position(1, 1), 4500, vectors[rows], times[rows])])
        return opened

    fine, coarse = store("fine", np.arange(9), "float32"), store("coarse", [0, 3, 6], precision)
    variant, costs = Variant(1500, precision), Costs()
    with contextlib.closing(fine), contextlib.closing(coarse):
        derived = frame_scores(fine, ["c", "none"], vectors[4], [Variant(), variant], costs, (MAX, TAU))
        stored = frame_scores(coarse, ["c", "none"], vectors[4], [Variant()], Costs(), (TAU, MAX))
    for pooling in (MAX, TAU):
        np.testing.assert_array_equal(derived[variant][pooling], stored[Variant()][pooling])
    assert derived[Variant()][MAX][0] == pytest.approx(1)
    assert 0 < derived[Variant()][TAU][0] < 1
    assert costs.read_s.keys() == costs.of[variant].seconds.keys() == {MAX, TAU}
    cost = costs.of[variant]
    assert (cost.clips, cost.frames) == (1, 3)
    assert cost.bytes == 3 * (16 * np.dtype(precision).itemsize + 4 + 4 * (precision == "int8"))


def test_vectors_cannot_be_made_finer_than_they_are() -> None:
    record = Embedding(np.ones((1, 4), np.int8), np.ones(1, np.float32), np.zeros(1, np.uint32), 0, 0)
    with pytest.raises(ValueError, match="the store's vectors are int8, a lower precision than float16"):
        derive(record, Variant(None, "float16"))


def test_clips_of_mixed_precisions_and_none_at_all_score_as_they_are_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((2, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    at, times = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), np.zeros(1, np.uint32)
    precisions: list[Precision] = ["float32", "float16"]
    for number, stored_as in enumerate(precisions):
        with contextlib.closing(open_store(f"lmdb:{tmp_path}", model_id="m", dim=8, precision=stored_as)) as opened:
            opened.put([Clip(f"c{number}", at, Position(1, number), 1, vectors[number : number + 1], times)])
    ids, variants = ["c0", "none", "c1"], [Variant(), Variant(None, "int8")]
    with contextlib.closing(open_store(f"lmdb:{tmp_path}", model_id="m", dim=8, read_only=True)) as opened:
        found = frame_scores(opened, ids, vectors[0], variants, costs := Costs())
        with opened.read(ids) as records:
            expected = score_clips(vectors[0], records).cosines
    np.testing.assert_array_equal(found[variants[0]][MAX], expected)
    np.testing.assert_allclose(found[variants[1]][MAX], expected, atol=0.02)
    assert (costs.candidates, costs.scored, costs.of[variants[1]].clips) == (3, 2, 2)


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--alphas", "0,1.5", "'0,1.5': expected numbers from 0 to 1, comma-separated"),
        ("--alphas", "nan", "expected numbers from 0 to 1"),
        ("--depths", "10,0", "expected whole numbers from 1 to 5000"),
        ("--depths", "1.5", "expected whole numbers"),
        ("--normalizations", "minmax,mean", "expected minmax or zscore or none"),
        ("--precisions", "float64", "expected float32 or float16 or int8"),
        ("--intervals", "", "expected seconds"),
        ("--missing", "own,mean", "expected own or impute"),
        ("--poolings", "max,softmax:2", "expected max or softmax:TAU with TAU from 0.01 to 1"),
    ],
)
def test_lists_that_cannot_be_swept_are_refused(option: str, value: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    given_files = [each for name in ("--run", "--topics", "--qrels") for each in (name, str(file))]
    done = CliRunner().invoke(cli, ["sweep", *given_files, option, value])
    assert done.exit_code == 2
    assert problem in " ".join(done.output.split())
