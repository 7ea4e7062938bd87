"""The measurement of the negation rule: its topics' truth, the gains it finds, and the page's tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.cases import method, negation
from streamer.evaluation.trec import Ranking, Run
from streamer.synthetic.clips import DemoClip, DemoQuery, DemoScene
from streamer.synthetic.probes import KINDS
from streamer.synthetic.scenes import Item, Scene, draw_scene

ROOT = Path(__file__).parents[2]
CAR, BALL, TREE = Item("car", "red"), Item("ball", "blue"), Item("tree", "green", size="small")


def clip(name: str, *scenes: tuple[Item, ...]) -> DemoClip:
    shown = tuple(DemoScene(0, 1, Scene(items, "snow"), "") for items in scenes)
    return DemoClip(name, Path(), shown)


def test_a_clip_is_relevant_if_one_of_its_scenes_shows_the_one_without_the_other() -> None:
    clips = [
        clip("alone", (CAR,)), clip("beside", (CAR, BALL)), clip("both", (CAR, BALL), (CAR, TREE)),
        clip("none", (BALL,), (TREE,)), clip("two", (Item("car", "red", 2),)),
    ]  # fmt: skip
    assert negation.judge(clips, CAR, "ball") == (["alone", "both"], ["beside"])
    assert negation.judge(clips, Item("tree", "green"), "ball") == (["both", "none"], [])


@pytest.mark.parametrize("which", negation.SETS)
def test_topics_exclude_something_or_nothing_as_their_set_says(which: str) -> None:
    rng = np.random.default_rng(4)
    clips = [
        DemoClip(f"c{number}", Path(), tuple(DemoScene(0, 1, draw_scene(rng, two_items=0.6), "") for _ in range(4)))
        for number in range(120)
    ]
    topics = negation.draw_topics(clips, which, count=10, seed=1)
    assert len({topic.text for topic in topics}) == 10
    assert topics == negation.draw_topics(clips, which, count=10, seed=1)
    for topic in topics:
        (wanted,) = topic.wanted.items
        relevant, excluded = negation.judge(clips, wanted, topic.text.split()[-1])
        assert set(relevant) == topic.relevant != set()
        assert bool(excluded) == (which == "contested")


def world(seed: int, *, ruled: float) -> method.World:
    """Make topics for which each way but the first adds ``ruled`` to the relevant clips' frame scores."""
    rng = np.random.default_rng(seed)
    ids = [f"c{number:03d}" for number in range(80)]
    relevant = np.arange(len(ids)) < 10
    topics = [
        DemoQuery(str(number), "", Scene((), None), {ids[each]: () for each in np.flatnonzero(relevant)})
        for number in range(25)
    ]
    frame = {}
    seen = {topic.query_id: rng.standard_normal(len(ids)) + relevant for topic in topics}
    for way in negation.ways():
        more = ruled if way != negation.AS_IT_IS else 0.0
        frame[way] = {topic: each + more * relevant for topic, each in seen.items()}
    run = {topic.query_id: Ranking(tuple(ids), rng.standard_normal(len(ids)) + relevant).ranked() for topic in topics}
    return method.World(topics, {"C": Run(run, "C")}, ids, frame)


def test_known_gains_and_losses_are_found() -> None:
    figures = negation.measure({1: {"contested": world(1, ruled=2.0), "vacuous": world(2, ruled=-2.0)}})
    assert len(figures["cells"]) == len(negation.SETS) * (len(negation.ways()) - 1)
    for cell in figures["cells"]:
        assert cell["than"] == negation.AS_IT_IS
        assert (cell["gain"] > 0) == cell["value"].startswith("contested: ")
        assert cell["bonferroni_p"] == min(1.0, len(figures["cells"]) * cell["p"]) < 0.05


def test_the_pages_tables_have_every_cell() -> None:
    results = json.loads((ROOT / "docs/bench/negation.json").read_bytes())
    cells = [(cell["engine"], cell["seed"], cell["value"]) for cell in results["figures"]["cells"]]
    seeds = {int(seed) for seed in results["figures"]["clips"]}
    assert seeds
    assert seeds <= set(negation.SEEDS)
    assert sorted(cells) == sorted(
        (engine, seed, f"{which}: {way}")
        for engine in "ABCDE" for seed in seeds for which in negation.SETS for way in negation.ways()[1:]
    )  # fmt: skip
    assert {each["probe"] for each in results["probes"]["probes"]} == set(KINDS)
