"""Rules for alpha and corrections of hubs: they find what is there, from what they may see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.cases import alpha_and_hubs, alpha_and_hubs_tables, alpha_rules, hubs, method
from bench.cases.held_out import FOLDS, compared, folds_of, held_out
from streamer.evaluation.comparison import compare
from streamer.evaluation.measures import INFERRED_AP, Evaluation
from streamer.evaluation.trec import Ranking, Run
from streamer.pooling import MAX
from streamer.synthetic.clips import DemoQuery
from streamer.synthetic.scenes import OBJECTS, Item, Scene

FloatArray = npt.NDArray[np.float64]

OUT = Path(__file__).parents[2] / "docs/bench/alpha-and-hubs.json"
TOPICS, ALPHAS = 60, len(alpha_rules.ALPHAS)

scores = st.integers(2, 40).flatmap(
    lambda count: st.tuples(*[arrays(float, count, elements=st.integers(-1000, 1000).map(float), unique=True)] * 2)
)


@given(scores, st.sampled_from([0.25, 3.0, 50.0]), st.sampled_from([-7.0, 0.0, 100.0]))
def test_features_are_shares_and_do_not_depend_on_the_scale_of_a_score(
    sides: tuple[FloatArray, FloatArray], scale: float, shift: float
) -> None:
    own, frame = sides
    found = dict(zip(alpha_rules.FEATURES, alpha_rules.features(own, frame), strict=True))
    assert -1 - 1e-9 <= found["agreement"] <= 1 + 1e-9
    assert 0 <= found["overlap"] <= 1
    assert np.allclose(alpha_rules.features(own * scale + shift, frame), list(found.values()))
    assert np.allclose(alpha_rules.features(own, frame * scale + shift), list(found.values()))


@given(scores)
def test_a_list_agrees_with_itself_and_disagrees_with_its_reverse(sides: tuple[FloatArray, FloatArray]) -> None:
    own, _ = sides
    same, reverse = alpha_rules.features(own, own), alpha_rules.features(own, -own)
    assert same[:2] == pytest.approx([1, 1])
    assert same[2] == pytest.approx(0)
    assert reverse[0] == pytest.approx(-1)


@given(arrays(float, (12, ALPHAS), elements=st.floats(0, 1)), arrays(float, 12, elements=st.floats(-1, 1)))
def test_a_learned_line_is_at_least_as_good_where_it_learned_as_a_fixed_alpha(
    values: FloatArray, feature: FloatArray
) -> None:
    line = alpha_rules.learn_line(feature, values)
    taken = line.of(feature)
    assert values[np.arange(12), taken].mean() >= values.mean(axis=0)[::2].max() - 1e-12
    assert min(line.first, line.last) <= taken.min() <= taken.max() <= max(line.first, line.last)


def engine(seed: int, *, told: float) -> alpha_rules.Lists:
    """Draw topics whose best alpha the agreement tells (``told`` 1) or not (0)."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (TOPICS, len(alpha_rules.FEATURES)))
    best = 0.5 + 0.4 * (told * features[:, 0] + (1 - told) * rng.uniform(-1, 1, TOPICS))
    values = 0.8 - np.abs(np.array(alpha_rules.ALPHAS) - best[:, None])
    return alpha_rules.Lists(values, features)


def test_rules_learn_on_other_engines_what_a_feature_tells_and_nothing_where_it_tells_nothing() -> None:
    telling = {str(seed): engine(seed, told=1) for seed in range(3)}
    found = alpha_rules.unseen_values(telling, "0")
    assert {*found} == {*alpha_rules.RULES, alpha_rules.ENGINE, alpha_rules.ALL}
    for rule in ("by agreement, a query", "by regression, other engines", alpha_rules.SAME_ENGINE):
        assert found[rule].mean() > found[alpha_rules.ENGINE].mean() + 0.1
    silent = {str(seed): engine(seed, told=0) for seed in range(3)}
    found = alpha_rules.unseen_values(silent, "0")
    for rule in alpha_rules.RULES:
        assert found[rule].mean() < found[alpha_rules.ENGINE].mean() + 0.02


def test_nothing_is_chosen_by_the_judgments_of_the_topics_it_is_measured_on() -> None:
    engines = {str(seed): engine(seed, told=0.5) for seed in range(3)}
    train = folds_of(TOPICS) != 0
    before = alpha_rules.chosen(engines, "0", train)
    for lists in engines.values():
        lists.values[~train] = np.random.default_rng(9).random((np.count_nonzero(~train), ALPHAS))
    after = alpha_rules.chosen(engines, "0", train)
    assert all((before[name] == after[name]).all() for name in before)
    # The other engines' rules do not use the engine's own judgments at all.
    engines["0"].values[:] = np.random.default_rng(9).random((TOPICS, ALPHAS))
    without = alpha_rules.chosen(engines, "0", train)
    differing = {name for name in before if (before[name] != without[name]).any()}
    assert differing <= {alpha_rules.ENGINE, alpha_rules.ALL, alpha_rules.SAME_ENGINE}
    assert alpha_rules.SAME_ENGINE in differing


def test_a_topic_is_measured_with_what_is_best_on_the_other_folds() -> None:
    fold_of = folds_of(TOPICS)
    assert np.bincount(fold_of).tolist() == [TOPICS // FOLDS] * FOLDS
    # The second point is better on all topics of the first fold only, and these must not choose it.
    values = np.zeros((TOPICS, 2))
    values[fold_of == 0, 1] = 1
    values[fold_of != 0, 0] = 0.1
    assert held_out(values)[fold_of == 0].tolist() == [0.0] * (TOPICS // FOLDS)


def test_many_ways_are_compared_at_once_as_the_product_compares_two_runs() -> None:
    rng = np.random.default_rng(1)
    before = rng.random((40, 3))
    after = before + 0.1 * rng.standard_normal((40, 3)) + [0.0, 0.03, -0.08]
    for column, found in enumerate(compared(before, after)):
        sides = [
            Evaluation(
                {str(topic): {INFERRED_AP: value} for topic, value in enumerate(side.tolist())},
                {INFERRED_AP: 0.0},
                (),
                (),
            )
            for side in (before[:, column], after[:, column])
        ]
        expected = compare(*sides)[INFERRED_AP]
        assert (found["wins"], found["losses"]) == (expected.wins, expected.losses)
        for name, value in (
            ("before", expected.before),
            ("gain", expected.gain),
            ("low", expected.gain_low),
            ("high", expected.gain_high),
        ):
            assert found[name] == pytest.approx(value)
        assert found["p"] == pytest.approx(expected.randomization_p, abs=0.01)


banks = arrays(float, (7, 12), elements=st.floats(-1, 1))


@given(arrays(float, 12, elements=st.floats(-1, 1)), banks, st.sampled_from([1.0, 5.0, 20.0]))
def test_corrections_are_those_of_their_formulas(frame: FloatArray, bank: FloatArray, beta: float) -> None:
    every = np.ones(12, np.bool_)
    number = hubs.statistic("inverted softmax", beta, bank)
    by_hand = np.exp(beta * frame) / np.exp(beta * bank).sum(axis=0)
    found = hubs.corrected("inverted softmax", beta, frame, number, every)
    assert np.allclose(np.exp(beta * found), by_hand)
    ratio = hubs.corrected("ratio", beta, frame, number, every)
    assert np.allclose(ratio, by_hand / by_hand.max())
    assert np.array_equal(hubs.corrected("dynamic", beta, frame, number, ~every), frame)
    assert np.array_equal(hubs.corrected("dynamic", beta, frame, number, every), found)


def test_the_nearest_queries_of_a_bank_are_averaged() -> None:
    bank = np.arange(40.0)[:, None] * [1, -1]
    assert hubs.statistic("nearest", 0.5, bank).tolist() == [0.5 * np.arange(24, 40).mean(), -0.5 * 7.5]
    assert hubs.statistic("nearest", 0.5, bank[:3]).tolist() == [0.5, -0.5]


def world(seed: int, *, hub: float) -> tuple[method.World, FloatArray]:
    """Make topics whose frames know something, and 10 clips whose frame scores are ``hub`` higher for any query."""
    rng = np.random.default_rng(seed)
    ids = [f"c{number:03d}" for number in range(120)]
    extra = np.where(np.arange(120) < 10, hub, 0.0)
    topics, frame = [], {}
    rankings: dict[str, dict[str, Ranking]] = {"C": {}, "D": {}}
    for number in range(30):
        relevant = np.isin(np.arange(120), rng.permutation(120)[:8])
        wanted = Scene((Item("car", "red", 1 + number),), None)
        topics.append(DemoQuery(str(number), "", wanted, {ids[each]: () for each in np.flatnonzero(relevant)}))
        frame[str(number)] = 0.1 * rng.standard_normal(120) + 0.3 * relevant + extra
        for strength, found in enumerate(rankings.values(), 1):
            found[str(number)] = Ranking(tuple(ids), rng.standard_normal(120) + strength * relevant).ranked()
    runs = {name: Run(found, name) for name, found in rankings.items()}
    return method.World(topics, runs, ids, {MAX: frame}), 0.1 * rng.standard_normal((50, 120)) + extra


def test_known_hubs_are_found_and_corrected_and_the_tables_say_so() -> None:
    made, bank = world(1, hub=0.4)
    none, calm = world(1, hub=0.0)
    assert hubs.skewness(bank) > 2
    assert hubs.skewness(calm) < 1
    assert hubs.best_clips(bank)[:10].sum() >= 5
    assert not hubs.best_clips(bank)[10:].any()
    found = alpha_and_hubs.measure({1: made, 2: none}, {1: bank, 2: calm})
    cells = found["hubs"]["cells"]
    assert len(cells) == 2 * 2 * 2 * 2 * len(hubs.WAYS)
    for cell in cells:
        assert cell["bonferroni_p"] == min(1.0, len(cells) * cell["p"])
        if cell["seed"] == 1 and cell["way"] in ("inverted softmax", "dynamic", "nearest"):
            assert cell["gain"] > 0.02
            assert cell["bonferroni_p"] < 0.05
        if cell["seed"] == 2 and cell["way"] in ("inverted softmax", "dynamic", "nearest"):
            assert cell["gain"] < 0.02
    rules = found["rules"]["cells"]
    assert len(rules) == 2 * 2 * 2 * (2 * len(alpha_rules.RULES) - 1)
    assert len(found["rules"]["hindsight"]) == 8
    assert all(each["gain"] > 0 for each in found["rules"]["hindsight"])
    results = {"figures": found, "date": "2026-01-02T03", "commit": "abc"}
    written = alpha_and_hubs_tables.hubs_table(results)
    assert f"corrected for {len(cells)} cells" in written
    row = next(line for line in written.splitlines() if line.startswith("| nearest | the best alpha | 100 |"))
    assert row.count("\\*") >= 2
    assert "| in hindsight" in alpha_and_hubs_tables.rules_table(results)


def test_a_bank_asks_for_nothing_that_a_topic_asks_for() -> None:
    red = [DemoQuery(name, "", Scene((Item(name, "red"),), None), {}) for name in OBJECTS]
    assert any("a red " in text for text in hubs.draw_bank((), count=300, seed=1))
    texts = hubs.draw_bank(red, count=300, seed=1)
    assert len(texts) == 300
    assert not any("a red " in text for text in texts)
    assert hubs.draw_bank(red, count=20, seed=1) == texts[:20]
    assert hubs.draw_bank(red, count=20, seed=2) != texts[:20]


def test_the_pages_tables_have_every_cell() -> None:
    figures = json.loads(OUT.read_bytes())["figures"]
    for part, ways in (("rules", alpha_rules.RULES), ("hubs", tuple(hubs.WAYS))):
        cells = figures[part]["cells"]
        thans = {"rules": (alpha_rules.ENGINE, alpha_rules.ALL), "hubs": (hubs.USUAL, hubs.BEST)}[part]
        expected = {
            (way, than, engine, seed, depth)
            for way in ways for than in thans for engine in "ABCDE" for seed in method.SEEDS
            for depth in (100, method.WHOLE_LIST)
            if (way, than) != (alpha_rules.SAME_ENGINE, alpha_rules.ALL)
        }  # fmt: skip
        assert len(cells) == len(expected)
        assert {(cell["way"], cell["than"], cell["engine"], cell["seed"], cell["depth"]) for cell in cells} == expected
