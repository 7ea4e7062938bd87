"""Whether a rule that chooses alpha for a query, or for an engine, gains over the best fixed alpha.

A rule sees a result list without judgments, by its features (:func:`features`). It is learned on judged topics, and
measured on topics of a fold on which nothing was chosen:

- *by agreement*, *by spread*, *by lead*: alpha lies on a straight line between two alphas, by one feature; the line
  with the largest mean AP is taken. It is learned on the other engines. ``a query`` goes by the feature of each list,
  ``an engine`` by its mean over an engine's lists, so that there is one alpha for each engine.
- *by regression*: ridge regression from all features to the AP at each alpha; the alpha with the largest prediction is
  taken. It is learned on the other engines, or on the same one.

The best fixed alpha is chosen on the same training topics, for the engine itself or for all engines together. The last
figures are those in hindsight, with each topic's best alpha, which no rule can exceed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.cases import method
from bench.cases.held_out import FOLDS, compared, correct, folds_of
from streamer.evaluation.sweep import Grid
from streamer.pooling import MAX
from streamer.scoring import normalize
from streamer.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.intp]
    BoolArray = npt.NDArray[np.bool_]

ALPHAS = tuple(round(0.05 * each, 2) for each in range(21))
FEATURES = ("agreement", "overlap", "spread", "lead", "frames' lead")
LINES = ("agreement", "spread", "lead")
"""The features that make a rule alone."""
SAME_ENGINE = "by regression, same engine"
RULES = (
    *(f"by {feature}, {level}" for feature in LINES for level in ("a query", "an engine")),
    "by regression, other engines",
    SAME_ENGINE,
)
ENGINE, ALL = "the engine", "all engines"
"""For what the best fixed alpha is chosen."""
_FIRST = 10
"""Overlap and leads are those of so many first candidates."""
_ENDS = range(0, len(ALPHAS), 2)
"""The numbers of the alphas at the ends of a line."""
_QUANTILES = (0.1, 0.9)
"""The ends lie at these quantiles of the feature; beyond, alpha stays the same."""
_RIDGE = 10.0


class Lists(NamedTuple):
    """One engine's topics: AP at each alpha (t, a), and the features of their lists (t, f)."""

    values: FloatArray
    features: FloatArray


def features(own: FloatArray, frame: FloatArray) -> FloatArray:
    """Return :data:`FEATURES` (f,) of a list: the candidates' scores ``own`` (n,) and ``frame`` (n,), without NaN.

    *Agreement* is the rank correlation of both, *overlap* the share of the first candidates by one that are also among
    the first by the other. *Spread* is the standard deviation of own scores, both sides being between 0 and 1, less
    that of frame scores. *Lead* is how many standard deviations the first own scores are above their mean. None depends
    on the scale of a score.
    """
    sides = [normalize(side, "zscore") for side in (own, frame)]
    orders = [np.argsort(-side, kind="stable") for side in sides]
    first = [order[:_FIRST] for order in orders]
    own_spread, frame_spread = (float(normalize(side, "minmax").std()) for side in (own, frame))
    ranks = [normalize(order.argsort().astype(float), "zscore") for order in orders]
    return np.array(
        [
            float((ranks[0] * ranks[1]).mean()),
            len(np.intersect1d(first[0], first[1])) / len(first[0]),
            own_spread - frame_spread,
            *(float(side[top].mean()) for side, top in zip(sides, first, strict=True)),
        ]
    )


class Line(NamedTuple):
    """The numbers of an alpha: ``first`` where a feature is at most ``low``, ``last`` where it is at least ``high``."""

    low: float
    high: float
    first: int
    last: int

    def of(self, feature: FloatArray) -> IntArray:
        """Return the number of the alpha for each value (t,) of the feature."""
        width = self.high - self.low
        share = np.clip((feature - self.low) / width, 0, 1) if width > 0 else np.zeros(len(feature))
        return np.rint(self.first + share * (self.last - self.first)).astype(np.intp)


def learn_line(feature: FloatArray, values: FloatArray) -> Line:
    """Choose the line with the largest mean of ``values`` (t, a), of ties the flattest; a fixed alpha is a line too."""
    low, high = (float(each) for each in np.quantile(feature, _QUANTILES))
    tried = sorted(
        (Line(low, high, one, other) for one in _ENDS for other in _ENDS), key=lambda each: abs(each.first - each.last)
    )
    every = np.arange(len(feature))
    return tried[int(np.argmax([values[every, each.of(feature)].mean() for each in tried]))]


class Regression:
    """Ridge regression from features (t, f) to the AP at each alpha (t, a), less the topic's mean over all alphas."""

    def __init__(self, seen: FloatArray, values: FloatArray) -> None:
        self._mean, deviation = seen.mean(axis=0), seen.std(axis=0)
        self._deviation = np.where(deviation > 0, deviation, 1)
        gains = values - values.mean(axis=1, keepdims=True)
        self._constant = gains.mean(axis=0)
        scaled = self._scaled(seen)
        self._weights = np.linalg.solve(
            scaled.T @ scaled + _RIDGE * np.eye(scaled.shape[1]), scaled.T @ (gains - self._constant)
        )

    def of(self, seen: FloatArray) -> IntArray:
        """Return the number of the alpha with the largest prediction for each list (t,)."""
        return np.asarray((self._constant + self._scaled(seen) @ self._weights).argmax(axis=1))

    def _scaled(self, seen: FloatArray) -> FloatArray:
        return np.asarray((seen - self._mean) / self._deviation)


def chosen(engines: Mapping[str, Lists], engine: str, train: BoolArray) -> dict[str, IntArray]:
    """Return the number of the alpha for each of an engine's topics (t,), by rule and by best fixed alpha.

    Judgments of the topics ``train`` (t,) alone are used; of the engine itself only for the best fixed alphas and by
    the rule for the same engine.
    """
    mine = engines[engine]
    topics = len(mine.values)
    others = [lists for name, lists in engines.items() if name != engine]
    values = np.concatenate([each.values[train] for each in others])
    seen = np.concatenate([each.features[train] for each in others])
    found = {
        ENGINE: np.full(topics, mine.values[train].mean(axis=0).argmax()),
        ALL: np.full(topics, np.mean([each.values[train] for each in engines.values()], axis=(0, 1)).argmax()),
        "by regression, other engines": Regression(seen, values).of(mine.features),
        SAME_ENGINE: Regression(mine.features[train], mine.values[train]).of(mine.features),
    }
    for name in LINES:
        column = FEATURES.index(name)
        found[f"by {name}, a query"] = learn_line(seen[:, column], values).of(mine.features[:, column])
        means = np.repeat([each.features[train, column].mean() for each in others], np.count_nonzero(train))
        mean = np.full(topics, mine.features[train, column].mean())
        found[f"by {name}, an engine"] = learn_line(means, values).of(mean)
    return found


def unseen_values(engines: Mapping[str, Lists], engine: str) -> dict[str, FloatArray]:
    """Return AP (t,) of an engine's topics by rule and by best fixed alpha, chosen without each topic's fold."""
    values = engines[engine].values
    fold_of = folds_of(len(values))
    found: dict[str, FloatArray] = {}
    for fold in range(FOLDS):
        unseen = fold_of == fold
        for name, numbers in chosen(engines, engine, ~unseen).items():
            found.setdefault(name, np.empty(len(values)))[unseen] = values[unseen, numbers[unseen]]
    return found


def lists_of(world: method.World, depth: int) -> dict[str, Lists]:
    """Measure each engine's topics at all alphas, and take the features of their candidates within a depth."""
    grid = Grid(ALPHAS, (depth,), (load({}).method.normalization,))
    found = {}
    for engine, run in world.runs.items():
        values, seen = [], []
        for topic, numbers, swept in method.asked_of(world, run):
            frame = world.frame[MAX][topic][numbers]
            values.append(swept.values({MAX: frame}, grid)[0])
            seen.append(features(run.topics[topic].ranked().scores[:depth], frame[:depth]))
        found[engine] = Lists(np.array(values), np.array(seen))
    return found


def measure(worlds: Mapping[int, method.World]) -> dict[str, Any]:
    """Compare all rules with both best fixed alphas in all worlds, by seed."""
    cells: list[dict[str, Any]] = []
    hindsight: list[dict[str, Any]] = []
    for seed, world in worlds.items():
        for depth in (load({}).method.depth, method.WHOLE_LIST):
            engines = lists_of(world, depth)
            for engine, lists in engines.items():
                where = {"engine": engine, "seed": seed, "depth": depth}
                found = unseen_values(engines, engine)
                cells += _cells(found, where)
                best = float(lists.values.max(axis=1).mean() - found[ENGINE].mean())
                hindsight.append({**where, "gain": best, "alpha": ALPHAS[lists.values.mean(axis=0).argmax()]})
    correct(cells)
    return {"cells": cells, "hindsight": hindsight}


def _cells(found: Mapping[str, FloatArray], where: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    # Who has judgments of the engine itself has its best alpha too.
    pairs = [(rule, than) for rule in RULES for than in (ENGINE, ALL) if (rule, than) != (SAME_ENGINE, ALL)]
    before, after = (np.column_stack([found[pair[side]] for pair in pairs]) for side in (1, 0))
    for (rule, than), figures in zip(pairs, compared(before, after), strict=True):
        yield {"way": rule, "than": than, **where, **figures}
