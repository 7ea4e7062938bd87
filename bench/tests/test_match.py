"""The measurement of matches: its areas under the ROC, what it finds where the truth is known, and the page's table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.cases import match, match_tables, method
from streamer.evaluation.matching import area_under_roc
from streamer.evaluation.trec import Ranking, Run
from streamer.pooling import MAX
from streamer.synthetic.clips import DemoQuery
from streamer.synthetic.scenes import Scene

ROOT = Path(__file__).parents[2]


def world(seed: int, *, spread: float) -> tuple[method.World, match.Bank]:
    """Make topics whose relevant clips score higher; ``spread``: by how much the topics' usual scores differ."""
    rng = np.random.default_rng(seed)
    ids = [f"c{number:03d}" for number in range(100)]
    is_relevant = np.arange(len(ids)) < 8
    topics, run, frame, bank = [], {}, {}, {}
    for number in range(40):
        topic = str(number)
        usual = spread * rng.standard_normal()
        topics.append(DemoQuery(topic, "", Scene((), None), {ids[each]: () for each in np.flatnonzero(is_relevant)}))
        run[topic] = Ranking(tuple(ids), rng.standard_normal(len(ids))).ranked()
        frame[topic] = usual + rng.standard_normal(len(ids)) + 2.5 * is_relevant
        bank[topic] = usual + rng.standard_normal(150)
    none = {topic: np.zeros(150, np.bool_) for topic in bank}
    return method.World(topics, {"C": Run(run, "C")}, ids, {MAX: frame}), match.Bank(bank, none)


def test_the_mean_of_the_topics_shares_is_the_area_under_the_roc() -> None:
    rng = np.random.default_rng(0)
    there, gone = np.round(rng.normal([[0.5], [0.0]], size=(2, 30)), 1)
    scores, relevant = np.concatenate([there, gone]), np.arange(60) < 30
    assert match.Signals(there, gone).shares().mean() == pytest.approx(area_under_roc(scores, relevant))


def test_a_percentile_gains_where_queries_differ_and_nothing_where_they_do_not() -> None:
    worlds = {seed: world(seed, spread=spread) for seed, spread in ((1, 3.0), (2, 0.0))}
    figures = match.measure(
        {seed: each for seed, (each, _) in worlds.items()}, {seed: bank for seed, (_, bank) in worlds.items()}
    )
    cells = {(cell["seed"], cell["way"]): cell for cell in figures["cells"]}
    assert len(cells) == 2 * len(match.WAYS)
    for way in match.WAYS:
        assert cells[1, way]["gain"] > 0.15
        assert cells[1, way]["bonferroni_p"] == min(1.0, len(cells) * cells[1, way]["p"]) < 0.01
        assert cells[2, way]["gain"] < 0.05
    for each in figures["high"]:
        # The lists without relevant clips are like the bank's here, so that their percentile is uniform.
        assert each["gone"] < 0.25
        assert each["there"] > each["gone"] + 0.3
    assert figures["relevant_in_bank"] == {"1": 0.0, "2": 0.0}


def test_topics_of_which_nothing_is_listed_are_left_out_and_both_lists_are_of_the_same_length() -> None:
    made, bank = world(3, spread=0.0)
    listed = [topic for topic in made.topics if topic.relevant & set(made.runs["C"].topics[topic.query_id].shots[:5])]
    found = match.signals_of(made, "C", bank, 5)
    assert 0 < len(listed) < len(made.topics)
    assert {len(each.there) for each in found.values()} == {len(listed)}
    number_of = {clip_id: number for number, clip_id in enumerate(made.clip_ids)}
    for position, topic in enumerate(listed):
        shots = made.runs["C"].topics[topic.query_id].shots
        frame = made.frame[MAX][topic.query_id]
        there = frame[[number_of[shot] for shot in shots[:5]]]
        gone = frame[[number_of[shot] for shot in [each for each in shots if each not in topic.relevant][:5]]]
        plain, lead = found[match.PLAIN], found[match.LEAD]
        assert (plain.there[position], plain.gone[position]) == (there.max(), gone.max())
        assert (lead.there[position], lead.gone[position]) == (match.lead(there), match.lead(gone))


def test_the_pages_table_has_every_cell() -> None:
    results = json.loads((ROOT / "docs/bench/match.json").read_bytes())
    figures = results["figures"]
    seeds = [int(seed) for seed in figures["clips"]]
    assert seeds
    assert set(seeds) <= set(match.SEEDS)
    cells = sorted((cell["engine"], cell["seed"], cell["way"]) for cell in figures["cells"])
    assert cells == sorted((engine, seed, way) for engine in "ABCDE" for seed in seeds for way in match.WAYS)
    table = match_tables.match_table(results)
    assert all(f"| {way} | gain in area |" in table for way in match.WAYS)
