"""The engine's first results of a query beside the reranked ones: where a change applies, by example."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from streamer.evaluation.overlap import overlap_of
from streamer.evaluation.page import Table, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.evaluation.page import Shown

Data = dict[str, Any]

FIRST = 5
"""Results that are shown of each query."""
GAINING, LOSING = 3, 2
"""Topics that are shown, of those that gain most and of those that lose most."""
CHANGED = 5
"""Queries that are shown where nothing is judged: those whose order changes most."""
_COMPARED = 10
"""First results whose overlap says how much an order changes."""


def example(
    title: str, before: Sequence[str], after: Sequence[str], relevance: Mapping[str, int] | None = None
) -> Data:
    """Return the first results of both orders as JSON; ``relevance`` is the judgment of each judged result.

    ``title`` is the query as readers know it. ``was``: the rank of a reranked result in the engine's order.
    """
    rank_of = {each: rank for rank, each in enumerate(before, start=1)}
    rows = []
    for number in range(min(FIRST, max(len(before), len(after)))):
        engine = before[number] if number < len(before) else None
        reranked = after[number] if number < len(after) else None
        rows.append(
            {
                "rank": number + 1,
                "engine": engine,
                "engine_relevant": _relevant(engine, relevance),
                "reranked": reranked,
                "reranked_relevant": _relevant(reranked, relevance),
                "was": rank_of.get(reranked) if reranked is not None else None,
            }
        )
    return {"title": title, "judged": relevance is not None, "results": rows}


def _relevant(result: str | None, relevance: Mapping[str, int] | None) -> str | None:
    if relevance is None or result is None:
        return None
    rel = relevance.get(result, -1)
    return "not judged" if rel < 0 else "yes" if rel else "no"


class MostChanged:
    """The queries whose first results change most, by rank-biased overlap; the same text occurs once."""

    def __init__(self, count: int = CHANGED) -> None:
        self._count = count
        self._kept: list[tuple[float, int, str, list[str], list[str]]] = []
        self._texts: set[str] = set()
        self._number = 0

    def add(self, query: str, before: Sequence[str], after: Sequence[str]) -> None:
        """Add a query with both orders, best first."""
        first = list(before[:_COMPARED]), list(after[:_COMPARED])
        if first[0] == first[1] or query in self._texts:
            return
        self._number += 1
        # The heap's smallest is the one that changes least; of those that change alike the first ones stay.
        entry = (-overlap_of(*first), -self._number, query, list(before), list(after))
        if len(self._kept) < self._count:
            heapq.heappush(self._kept, entry)
        else:
            entry = heapq.heappushpop(self._kept, entry)
            self._texts.discard(entry[2])
            if entry[2] == query:
                return
        self._texts.add(query)

    def examples(self) -> list[Data]:
        """Return the examples, that which changes most first."""
        return [example(query, before, after) for _, _, query, before, after in sorted(self._kept, reverse=True)]


_COLUMNS = {
    "rank": "rank",
    "engine": "engine",
    "engine_relevant": "relevant",
    "reranked": "reranked",
    "reranked_relevant": "relevant",
    "was": "rank before",
}


def tables(found: Mapping[str, Any], *, names: Mapping[str, str] | None = None) -> list[Table]:
    """Make a table of each of a page's ``examples``; ``names`` are those of columns that are called otherwise."""
    made = []
    key, columns = "examples", _COLUMNS | dict(names or {})
    for number, each in enumerate(found[key]):
        shown = [name for name in _COLUMNS if each["judged"] or not name.endswith("_relevant")]
        rows: list[list[Shown | str]] = [
            [show(found, key, number, "results", row, name) for name in shown] for row in range(len(each["results"]))
        ]
        numeric = frozenset(place for place, name in enumerate(shown) if name in {"rank", "was"})
        made.append(Table(show(found, key, number, "title"), [columns[name] for name in shown], rows, numeric))
    return made
