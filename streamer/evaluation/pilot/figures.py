"""What reranking would change for a platform's own users: figures of reranked queries and, if given, of clicks.

Order: rank-biased overlap of both lists (:mod:`streamer.evaluation.overlap`), and Kendall's tau. Clicks:
:mod:`streamer.evaluation.pilot.counterfactual`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from streamer.evaluation.first_results import MostChanged
from streamer.evaluation.measures import missing_extra
from streamer.evaluation.overlap import rank_biased_overlap
from streamer.evaluation.pilot import counterfactual, position_bias
from streamer.evaluation.pilot.counterfactual import Clicked
from streamer.evaluation.pilot.position_bias import DEEPEST, Shown
from streamer.evaluation.replay import is_replayed
from streamer.events import Status
from streamer.method import Method, method_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamer.evaluation.pilot.clicks import Clicks
    from streamer.events import QueryReranked, RerankedCandidate

FIRST = 10
"""Number of ranks that most users look at."""
EARLY_MS = 1_000
"""A moment up to this time adds nothing for users, because the clip begins with it."""
LIVE_MS = 60_000
"""An answer later than this was not awaited by anybody: it is from a backlog or an outage."""
MOST_SKEWED = 0.05
"""If more answers than this share are dated before their query, the clocks differ too much to know any latency."""
MAX_METHODS = 20
"""Most methods that are reported, those of most queries."""
MAX_SHOWN = 20_000_000
"""Most results from which the position bias is estimated: 340 MB of memory."""


@dataclass(slots=True)
class Pilot:
    """The counts over the reranked queries so far; lists have one number per query that was reranked."""

    top: int
    clicks: Clicks
    queries: int = 0
    served: int = 0
    replayed: int = 0
    repeated: int = 0
    unchangeable: int = 0
    degraded: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    not_embedded: int = 0
    late: int = 0
    skewed: int = 0
    latency_ms: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    tau: list[float] = field(default_factory=list)
    new_in_first: list[float] = field(default_factory=list)
    moved_in_first: list[float] = field(default_factory=list)
    later_moments: list[float] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _log: _ClickLog = field(init=False)
    _methods: Counter[tuple[str, Method]] = field(default_factory=Counter)
    _changed: MostChanged = field(default_factory=MostChanged)

    def __post_init__(self) -> None:
        self._log = _ClickLog()

    def add(self, answer: QueryReranked, *, served: bool) -> None:
        """Add a reranked query; ``served`` by a running service, whose latency and degradation count too.

        Queries of a replay, and ids that were added before, are only counted.
        """
        if is_replayed(answer.query_id):
            self.replayed += 1
            return
        if answer.query_id in self._seen:
            self.repeated += 1
            return
        self._seen.add(answer.query_id)
        self.queries += 1
        if served:
            self._add_latency((answer.reranked_at - answer.issued_at).total_seconds() * 1000)
        if answer.degraded is not None:
            self.degraded[answer.degraded] = self.degraded.get(answer.degraded, 0) + 1
            return
        results = answer.results
        self._methods[answer.model_id, method_of(answer)] += 1
        self.candidates += sum(result.status is not Status.BELOW_DEPTH for result in results)
        self.not_embedded += sum(result.status is Status.NOT_EMBEDDED for result in results)
        if len(results) > 1 and any(result.status is Status.RERANKED for result in results):
            self._compare(results[: self.top])
            engine = sorted(results, key=_initial_rank)
            self._changed.add(answer.query, [each.clip_id for each in engine], [each.clip_id for each in results])
        else:
            self.unchangeable += 1
        self._log.add(answer, self.clicks)

    def _add_latency(self, milliseconds: float) -> None:
        self.served += 1
        if milliseconds < 0:
            self.skewed += 1
        elif milliseconds > LIVE_MS:
            self.late += 1
        else:
            self.latency_ms.append(milliseconds)

    def _compare(self, results: Sequence[RerankedCandidate]) -> None:
        ranks = np.array([result.initial_rank for result in results])
        first = results[:FIRST]
        self.overlap.append(rank_biased_overlap(ranks))
        if len(ranks) > 1:
            self.tau.append(_kendall(ranks))
        self.new_in_first.append(float((ranks[:FIRST] > FIRST).mean()))
        self.moved_in_first.append(float((ranks[:FIRST] != np.arange(1, len(first) + 1)).mean()))
        self.later_moments.append(float(np.mean([(result.moment_ms or 0) > EARLY_MS for result in first])))

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON, numbers unrounded; None for figures without data."""
        degraded = sum(self.degraded.values())
        known = self.latency_ms if self.skewed <= MOST_SKEWED * (self.skewed + len(self.latency_ms)) else []
        return {
            "queries": self.queries,
            "left_out": {"replayed": self.replayed, "repeated": self.repeated},
            "top": self.top,
            "coverage": {
                "candidates": self.candidates,
                "not_embedded": self.not_embedded,
                "not_embedded_share": self.not_embedded / self.candidates if self.candidates else None,
            },
            "order": {
                "compared": len(self.overlap),
                "unchangeable": self.unchangeable,
                "overlap": _mean(self.overlap),
                "tau": _mean(self.tau),
                "new_in_first": _mean(self.new_in_first),
                "moved_in_first": _mean(self.moved_in_first),
                "later_moments": _mean(self.later_moments),
            },
            "service": {
                "degraded_share": degraded / self.queries if self.served else None,
                "degraded": dict(self.degraded),
                "live": len(self.latency_ms),
                "late": self.late,
                "negative": self.skewed,
                **{f"p{each}_ms": _percentile(known, each) for each in (50, 95, 99)},
            },
            "clicks": self._log.data(self.clicks) if self.clicks.count else None,
            "methods": [
                {"model_id": model_id, **asdict(method), "queries": queries}
                for (model_id, method), queries in self._methods.most_common(MAX_METHODS)
            ],
            "examples": self._changed.examples(),
        }


class _ClickLog:
    """The clicked results, and what was shown, in arrays."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[bool, str], int] = {}
        self._session, self._before, self._after = array("q"), array("q"), array("q")
        self._pairs: list[np.ndarray[Any, Any]] = []
        self._clicked: list[np.ndarray[Any, Any]] = []
        self._shown_session = array("q")
        self._shown = 0
        self._queries = self._in_sessions = self._unknown = 0

    def add(self, answer: QueryReranked, clicks: Clicks) -> None:
        if not clicks.count:
            return
        clicked = clicks.of.get(answer.query_id, set())
        session_id = clicks.session_of.get(answer.query_id)
        # Without a session, a query is one of its own; their names are kept apart.
        name = (session_id is not None, answer.query_id if session_id is None else session_id)
        session = self._sessions.setdefault(name, len(self._sessions))
        found = [result for result in answer.results if result.clip_id in clicked]
        self._unknown += len(clicked) - len(found)
        self._queries += bool(found)
        self._in_sessions += bool(found) and session_id is not None
        for result in found:
            self._session.append(session)
            self._before.append(result.initial_rank)
            self._after.append(result.rank)
        if self._shown < MAX_SHOWN:
            first = sorted((each for each in answer.results if each.initial_rank <= DEEPEST), key=_initial_rank)
            names = [f"{answer.query}\0{each.clip_id}".encode() for each in first]
            self._pairs.append(np.array([xxhash.xxh3_64_intdigest(name) for name in names], np.uint64))
            self._clicked.append(np.array([each.clip_id in clicked for each in first], np.bool_))
            self._shown_session.append(session)
            self._shown += len(first)

    def data(self, clicks: Clicks) -> dict[str, Any]:
        clicked = Clicked(
            *(np.array(each, np.intp) for each in (self._session, self._before, self._after)),
        )
        estimates = [
            {"bias": name, **asdict(found)}
            for name, exponent in position_bias.ASSUMED.items()
            if (found := counterfactual.estimate(clicked, position_bias.assumed(exponent))) is not None
        ]
        fitted = position_bias.fit(self._shown_results()) if estimates else None
        if fitted is not None and (found := counterfactual.estimate_fitted(clicked, *fitted)) is not None:
            estimates.append({"bias": position_bias.ESTIMATED, **asdict(found)})
        return {
            "clicks": clicks.count,
            "queries": self._queries,
            "queries_in_sessions": self._in_sessions,
            "sessions": len(np.unique(clicked.session)),
            "unknown": self._unknown,
            "estimates": estimates,
        }

    def _shown_results(self) -> Shown:
        lengths = [len(each) for each in self._pairs]
        return Shown(
            pair=np.unique(np.concatenate(self._pairs), return_inverse=True)[1],
            rank=np.concatenate([np.arange(1, length + 1) for length in lengths]),
            clicked=np.concatenate(self._clicked),
            session=np.repeat(np.array(self._shown_session, np.intp), lengths),
        )


def _initial_rank(result: RerankedCandidate) -> int:
    return result.initial_rank


def _kendall(ranks: np.ndarray[Any, Any]) -> float:
    try:
        from scipy.stats import kendalltau  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    return float(kendalltau(np.arange(len(ranks)), ranks).statistic)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return float(np.percentile(values, percent)) if values else None
