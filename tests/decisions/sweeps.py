"""Sweeps over topics drawn from a known population: are their claims true of the topics that they have not seen?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.evaluation import choice, sweep_report
from streamer.evaluation.choice import Caution
from streamer.evaluation.infap import InferredAP
from streamer.evaluation.rank_measures import RankMeasure
from streamer.evaluation.sweep import Grid, TopicSweep
from streamer.evaluation.sweep_run import Column, Sweep
from streamer.evaluation.trec import Judgments
from streamer.evaluation.variants import Variant
from streamer.pooling import MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.decisions.world import FloatArray

GRID = Grid(tuple(round(0.1 * each, 1) for each in range(11)), (20, 100), ("minmax", "zscore"))
MEASURES = ("infAP", "nDCG@10", "P@10")
CANDIDATES = 100
WHOLE_CLIPS = 0.22
"""The standard deviation of an engine's cosines."""
TOPICS = (20, 50, 100)
FOLDS = 5
CAUTION = Caution()
MOST_FALSE, LEAST_KEPT = 0.05, 0.95


class Scenario(NamedTuple):
    """An engine's ``bonus`` for relevant clips, and how many standard deviations the frames see them apart.

    ``centred``: each setting's mean gain is taken from all topics' gains, so that none gains or loses: the hardest case
    for a claim.
    """

    name: str
    bonus: float
    knowledge: float
    centred: bool = False


SCENARIOS = (
    Scenario("engine B, frames that know nothing", 0.0, 0.0),
    Scenario("engine C, frames that know nothing", 0.1, 0.0),
    Scenario("engine E, frames that know nothing", 0.3, 0.0),
    Scenario("engine C, gains of mean 0", 0.1, 0.0, centred=True),
    Scenario("engine E, gains of mean 0", 0.3, 0.0, centred=True),
    Scenario("engine C, weak frames", 0.1, 0.5),
    Scenario("engine E, weak frames", 0.3, 0.7),
    Scenario("engine D, good frames", 0.2, 2.0),
)


class Population(NamedTuple):
    """All topics: ``base`` (m, t) and ``values`` (m, t, p) of m measures at p settings."""

    base: FloatArray
    values: FloatArray


def population(scenario: Scenario, *, topics: int, seed: int = 0) -> Population:
    """Draw the topics and measure every setting on each."""
    rng = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    values = np.empty((len(MEASURES), topics, len(GRID)))
    shots = [f"c{number}" for number in range(CANDIDATES)]
    for topic in range(topics):
        relevant = np.arange(CANDIDATES) < min(20, rng.geometric(1 / 9))
        scores = WHOLE_CLIPS * rng.standard_normal(CANDIDATES) + scenario.bonus * relevant
        order = np.argsort(-scores)
        rels = relevant[order].astype(int)
        judgments = Judgments.of(shots, ["1"] * CANDIDATES, rels.tolist())
        measure = InferredAP(judgments)
        others = [RankMeasure(name, judgments) for name in MEASURES[1:]]
        swept = TopicSweep(measure, measure.codes(shots), scores[order], others, rels.astype(float))
        values[:, topic] = swept.values({MAX: rng.standard_normal(CANDIDATES) + scenario.knowledge * rels}, GRID)
    base = values[:, :, GRID.alphas.index(1.0)].copy()
    if scenario.centred:
        values -= (values - base[:, :, None]).mean(axis=1, keepdims=True)
    return Population(base, values)


@dataclass
class Outcome:
    """The sweeps of one scenario with so many topics, and how many of their claims are false."""

    scenario: str
    topics: int
    runs: int = 0
    positive: int = 0
    claimed: int = 0
    false: int = 0
    promised: int = 0
    broken: int = 0
    unbounded: int = 0

    @property
    def problems(self) -> list[str]:
        """Return in sentences what must not be."""
        name = f"{self.scenario}, {self.topics} topics"
        said = []
        if self.false > MOST_FALSE * self.runs:
            said.append(f"{name}: {self.false} of {self.runs} sweeps claim a gain that is none")
        if self.broken > (1 - LEAST_KEPT) * self.runs:
            said.append(f"{name}: {self.broken} of {self.runs} conservative settings harm more topics than promised")
        return said


def simulate(scenario: Scenario, of: Population, *, topics: int, runs: int, seed: int = 0) -> Outcome:
    """Sweep ``runs`` samples of topics, and compare what the reports say with the whole population."""
    columns = tuple(Column("m", Variant(), method, 1.0, 1.0, 1.0) for method in GRID.points())
    number_of = {(method.alpha, method.depth, method.normalization): each for each, method in enumerate(GRID.points())}
    gains = of.values - of.base[:, :, None]
    outcome = Outcome(scenario.name, topics)
    for run in range(runs):
        drawn = np.random.default_rng([seed, run, topics]).integers(0, of.base.shape[1], topics)
        swept = Sweep(MEASURES, tuple(map(str, range(topics))), of.base[:, drawn], columns, of.values[:, drawn])
        found = sweep_report.data(swept, CAUTION, FOLDS)
        reports = [found, *(found["other_measures"][name] for name in MEASURES[1:])]
        outcome.runs += 1
        outcome.positive += found["cross_validation"]["best"]["gain"] > 0
        picked = {
            name: [
                gains[number][:, number_of[each[name]["alpha"], each[name]["depth"], each[name]["normalization"]]]
                for number, each in enumerate(reports)
                if each[name] is not None and (name != "best" or each["cross_validation"][name]["says"] == choice.GAIN)
            ]
            for name in ("best", "conservative")
        }
        # A sweep is wrong if any of its measures is: the claims are made at once.
        outcome.claimed += bool(picked["best"])
        outcome.false += any(each.mean() < 1e-12 for each in picked["best"])
        outcome.promised += bool(picked["conservative"])
        outcome.broken += any(CAUTION.losing(each[:, None])[0] > CAUTION.share for each in picked["conservative"])
        outcome.unbounded += _unbounded(gains[0], gains[0][drawn])
    return outcome


def _unbounded(gains: FloatArray, drawn: FloatArray) -> bool:
    """Return whether the promise is broken by the largest gain within the sample's own share, without a bound."""
    (allowed,) = np.nonzero(CAUTION.losing(drawn) <= CAUTION.share)
    if not len(allowed):
        return False
    point = allowed[drawn[:, allowed].mean(axis=0).argmax()]
    return bool((gains[:, point] < -CAUTION.loss).mean() > CAUTION.share)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return all outcomes as text."""
    lines = [
        "| population | topics | sweeps | positive | claim a gain | falsely | promise | break it | without the bound |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.scenario} | {each.topics} | {each.runs} | {each.positive} | {each.claimed} | {each.false} "
        f"| {each.promised} | {each.broken} | {each.unbounded} |"
        for each in outcomes
    ]
    return "\n".join(lines)
