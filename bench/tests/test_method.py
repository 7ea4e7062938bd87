"""The measurement behind the tables on other ways of scoring: it finds known gains, and the page has its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cases import method, method_tables
from streamer.evaluation.sweep import Grid
from streamer.evaluation.trec import Ranking, Run
from streamer.pooling import MAX
from streamer.synthetic.clips import DemoQuery
from streamer.synthetic.scenes import Scene

ROOT = Path(__file__).parents[2]


def world(seed: int, *, softer: float) -> method.World:
    """Make topics of which the engine knows something and the largest cosine more; ``softer`` is what softmax adds."""
    rng = np.random.default_rng(seed)
    ids = [f"c{number:03d}" for number in range(150)]
    topics, rankings = [], {}
    poolings = [MAX, *(f"softmax:{tau:g}" for tau in method.TEMPERATURES)]
    frame: dict[str, dict[str, Any]] = {pooling: {} for pooling in poolings}
    for number in range(40):
        relevant = np.arange(len(ids)) < 15
        topic = DemoQuery(str(number), "", Scene((), None), {ids[each]: () for each in np.flatnonzero(relevant)})
        topics.append(topic)
        scores = rng.standard_normal(len(ids)) + relevant
        rankings[topic.query_id] = Ranking(tuple(ids), scores).ranked()
        seen = rng.standard_normal(len(ids)) + 2 * relevant
        for pooling in poolings:
            frame[pooling][topic.query_id] = seen + (pooling != MAX) * softer * relevant
    return method.World(topics, {"C": Run(rankings, "C")}, ids, frame)


def test_known_gains_are_found_and_marked_as_significant() -> None:
    figures = method.measure({1: world(1, softer=1.0), 2: world(2, softer=-1.0)})
    cells = figures["cells"]
    assert len(cells) == 2 * (len(method.WITHOUT_RECORD) + len(method.TEMPERATURES)) * 2
    assert {cell["depth"] for cell in cells} == {100, method.WHOLE_LIST}
    for cell in cells:
        assert cell["bonferroni_p"] == min(1.0, 12 * cell["p"])
        if cell["parameter"] == "pooling":
            assert cell["than"] == MAX
            assert (cell["gain"] > 0) == (cell["seed"] == 1)
            assert cell["bonferroni_p"] < 0.05
        else:
            assert (cell["value"], cell["than"]) == ("impute", "own")
            assert abs(cell["gain"]) > 0
    pooled = [cell for cell in cells if cell["parameter"] == "pooling"]
    assert method_tables.counts(pooled) == "6 / 6"
    assert (
        method_tables.counts([pooled[0] | {"gain": -0.1, "p": 0.01, "bonferroni_p": 0.12}]) == "0 / 0 (1 uncorrected)"
    )


def test_clips_without_a_record_are_scored_as_a_store_without_them_would() -> None:
    made = world(3, softer=0.0)
    grid = Grid((0.0,), (150,), ("minmax",))
    asked = method.asked_of(made, made.runs["C"])
    with_all = method.values_of(made, asked, grid)
    without = method.values_of(made, asked, grid, np.arange(0, 150, 2))
    assert with_all.shape == without.shape == (40, 1)
    assert without.mean() < with_all.mean() - 0.05
    assert np.isfinite(made.frame[MAX]["0"]).all()  # the world itself is unchanged


@pytest.mark.parametrize("parameter", ["missing", "pooling"])
def test_the_pages_tables_have_every_cell(parameter: str) -> None:
    figures = json.loads((ROOT / "docs/bench/method.json").read_bytes())["figures"]
    cells = [
        (cell["engine"], cell["seed"], cell.get("share"), cell["value"], cell["depth"])
        for cell in figures["cells"]
        if cell["parameter"] == parameter
    ]
    ways: list[tuple[float | None, str]] = [(None, f"softmax:{tau:g}") for tau in method.TEMPERATURES]
    if parameter == "missing":
        ways = [(share, "impute") for share in method.WITHOUT_RECORD]
    assert sorted(cells, key=str) == sorted(
        ((engine, seed, *way, depth) for engine in "ABCDE" for seed in method.SEEDS for way in ways
         for depth in (100, method.WHOLE_LIST)),
        key=str,
    )  # fmt: skip
