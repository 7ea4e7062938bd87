"""The two orders of each query's results: the engine's and the reranked one, from events or from two runs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from streamer.evaluation.replay import is_replayed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streamer.evaluation.trec import Run
    from streamer.events import QueryReranked, QueryResults

CLUSTERS = 4_096
"""Most clusters of queries; if there are more different texts, some share one, so that memory stays bounded."""


class Lists(NamedTuple):
    """One query's results (n,), best first, in the engine's order and after reranking; both hold the same clips.

    ``answer``: the event that they are from, None where they are from runs.
    """

    query: str
    before: Sequence[str]
    after: Sequence[str]
    answer: QueryReranked | None = None


class Asked:
    """The engine's results as ``query.results`` holds them, to compare the answers with: a hash for each query id."""

    def __init__(self, questions: Iterable[QueryResults]) -> None:
        """Read the questions; a query id that occurs again replaces the one before."""
        self._order: dict[str, int] = {
            each.query_id: _hash(candidate.clip_id for candidate in each.results)
            for each in questions
            if not is_replayed(each.query_id)
        }

    def __len__(self) -> int:
        return len(self._order)

    def is_other(self, query_id: str, before: Sequence[str]) -> bool:
        """Tell whether these are known not to be the engine's results of a query."""
        known = self._order.get(query_id)
        return known is not None and known != _hash(before)

    def unanswered(self, answered: Iterable[str]) -> int:
        """Return how many queries are not among the ids ``answered``."""
        return len(self._order.keys() - set(answered))


def lists_of(answer: QueryReranked) -> Lists | str:
    """Return the lists of an answer, or why it is left out: ``replayed``, ``degraded`` or ``empty``."""
    if is_replayed(answer.query_id):
        return "replayed"
    if answer.degraded is not None:
        return "degraded"
    if not answer.results:
        return "empty"
    ranked = sorted(answer.results, key=lambda result: result.initial_rank)
    before, after = ([each.clip_id for each in side] for side in (ranked, answer.results))
    return Lists(answer.query, before, after, answer)


class Answers:
    """The lists of reranked queries, and why others are left out.

    ``left_out`` counts queries: ``replayed`` (of ``streamer replay``), ``repeated`` (their id occurred before),
    ``degraded`` (passed on in the engine's order), ``empty``, ``different`` (the engine's order in the answer is not
    that of ``query.results``), and ``unanswered`` (in ``query.results`` alone).
    """

    def __init__(self, answers: Iterable[QueryReranked], asked: Asked | None = None) -> None:
        self._answers = answers
        self._asked = asked
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Lists]:
        """Go through the lists once; ``left_out`` is complete at the end."""
        seen: set[str] = set()
        for answer in self._answers:
            found = lists_of(answer)
            if answer.query_id in seen:
                self.left_out["repeated"] += 1
                continue
            if found != "replayed":
                seen.add(answer.query_id)
            if isinstance(found, str):
                self.left_out[found] += 1
            elif self._asked is not None and self._asked.is_other(answer.query_id, found.before):
                self.left_out["different"] += 1
            else:
                yield found
        if self._asked is not None:
            self.left_out["unanswered"] += self._asked.unanswered(seen)


class Runs:
    """The lists of two runs, joined by topic; ``left_out`` counts topics as :class:`Answers` does."""

    def __init__(self, engine: Run, reranked: Run) -> None:
        self._engine = engine
        self._reranked = reranked
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Lists]:
        """Go through the lists once; ``left_out`` is complete at the end."""
        for topic, ranking in self._engine.topics.items():
            if topic not in self._reranked.topics:
                self.left_out["unanswered"] += 1
                continue
            before, after = ranking.ranked().shots, self._reranked.topics[topic].ranked().shots
            if set(before) != set(after):
                self.left_out["different"] += 1
            else:
                yield Lists(topic, before, after)


class Clusters:
    """Numbers queries by their text: queries with the same text, but for case and blanks, are one cluster."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self.queries = np.zeros(CLUSTERS, np.int64)

    def __len__(self) -> int:
        """Return the number of different texts."""
        return len(self._number)

    def add(self, query: str) -> int:
        """Count a query and return the number of its cluster."""
        text = xxhash.xxh3_64_intdigest(" ".join(query.split()).casefold().encode(errors="replace"))
        cluster = self._number.setdefault(text, len(self._number) % CLUSTERS)
        self.queries[cluster] += 1
        return cluster


def _hash(clip_ids: Iterable[str]) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(clip_ids).encode())
