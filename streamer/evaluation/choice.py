"""Choosing a point of a sweep: the best one, a conservative one, and the expected gain of either on unseen topics.

``gains`` (t, p): the gains of t topics at p points over the engine's own list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from streamer.scoring import FloatArray

    Rule = Callable[[FloatArray], int | None]


@dataclass(frozen=True, slots=True)
class Caution:
    """The bound of a conservative setting: at most ``share`` of the topics lose more than ``loss``."""

    loss: float = 0.01
    share: float = 0.1

    def losing(self, gains: FloatArray) -> FloatArray:
        """Return the share of topics that lose more than ``loss`` at each point."""
        return np.asarray((gains < -self.loss).mean(axis=0))


def best(gains: FloatArray) -> int:
    """Return the point of the largest mean gain; of ties the first."""
    return int(gains.mean(axis=0).argmax())


def conservative(gains: FloatArray, caution: Caution) -> int | None:
    """Return the point of the largest mean gain within the bound ``caution``; None if there is none."""
    (allowed,) = np.nonzero(caution.losing(gains) <= caution.share)
    return int(allowed[gains[:, allowed].mean(axis=0).argmax()]) if len(allowed) else None


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The gain of a rule's choice on unseen topics: ``gain`` is the mean, ``losing`` the share that gets worse.

    ``chosen``: the point of each fold. If a rule finds none, the fold's topics keep the engine's list.
    """

    gain: float
    losing: float
    chosen: tuple[int | None, ...]


def cross_validate(gains: FloatArray, rule: Rule, caution: Caution, *, folds: int, seed: int = 0) -> CrossValidation:
    """Cross-validate: choose on all folds but one and measure on that one; the random folds are always the same."""
    topics = len(gains)
    fold_of = np.random.default_rng(seed).permutation(np.arange(topics) % folds)
    held_out = np.zeros(topics)
    chosen: list[int | None] = []
    for fold in range(folds):
        unseen = fold_of == fold
        chosen.append(point := rule(gains[~unseen]))
        if point is not None:
            held_out[unseen] = gains[unseen, point]
    return CrossValidation(float(held_out.mean()), float(caution.losing(held_out[:, None])[0]), tuple(chosen))


def frontier(costs: FloatArray, gains: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which of n choices are Pareto-optimal: no other gains more at no higher cost, or as much at less cost."""
    order = np.lexsort((-gains, costs))
    reached = np.maximum.accumulate(gains[order])
    is_on = np.empty(len(costs), np.bool_)
    is_on[order] = np.append(True, reached[1:] > reached[:-1])
    return is_on
