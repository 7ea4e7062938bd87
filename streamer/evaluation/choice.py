"""Which point of a sweep to take: the best, the best that harms few, and what either promises on topics unseen.

``gains`` (t, p) are those of t topics at p points, to the engine's own list.
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
    """What a conservative setting may cost: at most ``share`` of the topics lose more than ``loss``."""

    loss: float = 0.01
    share: float = 0.1

    def losing(self, gains: FloatArray) -> FloatArray:
        """Return the share of topics that lose more than ``loss`` at each point."""
        return np.asarray((gains < -self.loss).mean(axis=0))


def best(gains: FloatArray) -> int:
    """Return the point of the largest mean gain, the first where several are."""
    return int(gains.mean(axis=0).argmax())


def conservative(gains: FloatArray, caution: Caution) -> int | None:
    """Return the point of the largest mean gain among those that keep to ``caution``; None where none does."""
    (allowed,) = np.nonzero(caution.losing(gains) <= caution.share)
    return int(allowed[gains[:, allowed].mean(axis=0).argmax()]) if len(allowed) else None


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What a rule's choice gains on topics that it has not seen: ``gain`` their mean, ``losing`` the share that loses.

    ``chosen``: the point of each fold. Where a rule finds none, the fold's topics keep the engine's list.
    """

    gain: float
    losing: float
    chosen: tuple[int | None, ...]


def cross_validate(gains: FloatArray, rule: Rule, caution: Caution, *, folds: int, seed: int = 0) -> CrossValidation:
    """Choose by all folds but one, measure on that one, for each; folds are drawn at random, the same every time."""
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
    """Tell which of n choices no other beats: none gains more for no more, and none gains as much for less."""
    order = np.lexsort((-gains, costs))
    reached = np.maximum.accumulate(gains[order])
    is_on = np.empty(len(costs), np.bool_)
    is_on[order] = np.append(True, reached[1:] > reached[:-1])
    return is_on
