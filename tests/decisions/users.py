"""Users who examine first ranks more than deep ones, and whose sessions repeat a query: the clicks of a pilot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.evaluation.pilot.counterfactual import discount

if TYPE_CHECKING:
    from tests.decisions.world import BoolArray, Engine, FloatArray, IntArray

SESSION_QUERIES = 3
"""Mean number of queries of a session, which is geometric."""
ATTRACTION = (0.02, 0.9)
"""The probability that a user who examines a result clicks it: not relevant, relevant."""


@dataclass(frozen=True)
class Users:
    """How users examine: rank r with probability r to the power of -``bias``.

    With ``patience``, they go from rank to rank instead: on with this probability, and away after a click that
    satisfies them, which is every second one (a dynamic Bayesian network, Chapelle and Zhang, WWW 2009).
    """

    bias: float = 1.0
    patience: float | None = None

    def examination(self, ranks: int) -> FloatArray:
        """Return the probability (n,) that each rank is examined; for patient users without any click."""
        numbers = np.arange(ranks)
        if self.patience is None:
            return np.asarray((1.0 + numbers) ** -self.bias, np.float64)
        return np.asarray(self.patience**numbers, np.float64)


class Visits(NamedTuple):
    """For each of q queries the session, version and topic (q,), and which results of its list were clicked (q, n)."""

    session: IntArray
    version: IntArray
    topic: IntArray
    clicked: BoolArray


def visits(engine: Engine, users: Users, *, queries: int, rng: np.random.Generator) -> Visits:
    """Let users search: popular topics more often, a session's queries alike to the last click.

    So a session is worth one query, however many it has: the worst case for an interval that counts queries.
    """
    lengths = rng.geometric(1 / SESSION_QUERIES, queries)
    lengths = lengths[: int(np.searchsorted(lengths.cumsum(), queries)) + 1]
    sessions = len(lengths)
    _, topics, ranks = engine.relevant.shape
    topic = rng.choice(topics, sessions, p=_popularity(topics))
    version = rng.integers(0, len(engine.relevant), sessions)
    attracted = rng.random((sessions, ranks)) < attraction(engine.relevant[version, topic])
    examined = rng.random((sessions, ranks))
    if users.patience is None:
        clicked = attracted & (examined < users.examination(ranks))
    else:
        satisfied = attracted & (rng.random((sessions, ranks)) < 0.5)
        leaves = satisfied | (examined >= users.patience)
        before = np.maximum.accumulate(leaves, axis=1)
        clicked = attracted
        clicked[:, 1:] &= ~before[:, :-1]
    session = np.repeat(np.arange(sessions), lengths)
    return Visits(session, version[session], topic[session], clicked[session])


def attraction(relevant: BoolArray) -> FloatArray:
    """Return the probability of a click on each result that is examined."""
    return np.where(relevant, ATTRACTION[1], ATTRACTION[0])


def true_change(engine: Engine, order: str) -> float:
    """Return the change of the mean discount of the results that users would click, if they examined all."""
    weight = _popularity(engine.relevant.shape[1])[None, :, None] * attraction(engine.relevant)
    gains = discount(engine.ranks[order]) - discount(np.arange(1, engine.relevant.shape[-1] + 1))
    return float((weight * gains).sum() / weight.sum())


def _popularity(topics: int) -> FloatArray:
    """Zipf's law."""
    weights = 1 / np.arange(1, topics + 1)
    found: FloatArray = weights / weights.sum()
    return found
