"""What reranking would change for a platform's own users: figures of reranked queries and, if given, of clicks.

Order: rank-biased overlap of both lists (Webber, Moffat, Zobel, "A Similarity Measure for Indefinite Rankings", TOIS
2010, RBO_EXT with p = 0.9, which gives the first ten ranks 86 % of the weight), and Kendall's tau. Clicks: a query's
reciprocal rank is that of its highest ranked clicked clip, its hit@k whether a clicked clip is among the first k.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from streamer.evaluation.comparison import compare
from streamer.evaluation.measures import Evaluation, missing_extra
from streamer.evaluation.questions import ReplayError
from streamer.events import Id, QueryReranked, Status, Time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from streamer.events import RerankedCandidate

PERSISTENCE = 0.9
FIRST = 10
"""Number of ranks that most users look at."""
HITS = (1, 5, 10)
EARLY_MS = 1_000
"""A moment up to this time adds nothing for users, because the clip begins with it."""
MAX_CLICKS = 20_000_000
_MAX_LINE_BYTES = 65_536


class Click(msgspec.Struct, frozen=True):
    """One click on a result, as a JSON line or a record of a topic; unknown fields are ignored."""

    query_id: Id
    clip_id: Id
    clicked_at: Time


class Clicks:
    """The clicked clips by query."""

    def __init__(self) -> None:
        self.of: dict[str, set[str]] = {}
        self.count = 0
        self.unknown = 0
        """Clicks on clips that were not among the query's results."""
        self._decoder = msgspec.json.Decoder(Click)

    def add(self, value: bytes, place: str) -> None:
        """Add one click. Raises :class:`ReplayError` if it is invalid."""
        try:
            click = self._decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            expected = "expected a click (query_id, clip_id, clicked_at with an offset)"
            raise ReplayError(f"{place}: {expected}, found {error}") from None
        self.count += 1
        if self.count > MAX_CLICKS:
            raise ReplayError(f"{place}: more than {MAX_CLICKS:,} clicks")
        self.of.setdefault(click.query_id, set()).add(click.clip_id)

    def read(self, path: Path) -> None:
        """Add the clicks of a file, one per line."""
        try:
            with path.open("rb") as file:
                number = 0
                while line := file.readline(_MAX_LINE_BYTES):
                    number += 1
                    if line.strip():
                        self.add(line, f"{path}:{number}")
        except OSError as error:
            raise ReplayError(f"{path}: {error.strerror or error}") from error


@dataclass(slots=True)
class Pilot:
    """The counts over the reranked queries so far; lists have one number per query that was reranked."""

    top: int
    clicks: Clicks
    queries: int = 0
    degraded: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    not_embedded: int = 0
    latency_ms: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    tau: list[float] = field(default_factory=list)
    new_in_first: list[float] = field(default_factory=list)
    moved_in_first: list[float] = field(default_factory=list)
    later_moments: list[float] = field(default_factory=list)
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, answer: QueryReranked, *, served: bool) -> None:
        """Add a reranked query; ``served`` by a running service, whose latency and degradation count too."""
        self.queries += 1
        if served:
            self.latency_ms.append((answer.reranked_at - answer.issued_at).total_seconds() * 1000)
        if answer.degraded is not None:
            self.degraded[answer.degraded] = self.degraded.get(answer.degraded, 0) + 1
            return
        results = answer.results
        self.candidates += sum(result.status is not Status.BELOW_DEPTH for result in results)
        self.not_embedded += sum(result.status is Status.NOT_EMBEDDED for result in results)
        if results:
            self._compare(results[: self.top])
        self._add_clicks(answer)

    def _compare(self, results: Sequence[RerankedCandidate]) -> None:
        ranks = np.array([result.initial_rank for result in results])
        first = results[:FIRST]
        self.overlap.append(rank_biased_overlap(ranks))
        if len(ranks) > 1:
            self.tau.append(_kendall(ranks))
        self.new_in_first.append(float((ranks[:FIRST] > FIRST).mean()))
        self.moved_in_first.append(float((ranks[:FIRST] != np.arange(1, len(first) + 1)).mean()))
        self.later_moments.append(float(np.mean([(result.moment_ms or 0) > EARLY_MS for result in first])))

    def _add_clicks(self, answer: QueryReranked) -> None:
        clicked = self.clicks.of.get(answer.query_id)
        if not clicked:
            return
        found = [result for result in answer.results if result.clip_id in clicked]
        self.clicks.unknown += len(clicked) - len(found)
        if found:
            self.before[answer.query_id] = _by_clicks(min(result.initial_rank for result in found))
            self.after[answer.query_id] = _by_clicks(min(result.rank for result in found))

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON, numbers unrounded; None for figures without data."""
        degraded = sum(self.degraded.values())
        return {
            "queries": self.queries,
            "top": self.top,
            "coverage": {
                "candidates": self.candidates,
                "not_embedded": self.not_embedded,
                "not_embedded_share": self.not_embedded / self.candidates if self.candidates else None,
            },
            "order": {
                "overlap": _mean(self.overlap),
                "tau": _mean(self.tau),
                "new_in_first": _mean(self.new_in_first),
                "moved_in_first": _mean(self.moved_in_first),
                "later_moments": _mean(self.later_moments),
            },
            "service": {
                "degraded_share": degraded / self.queries if self.latency_ms else None,
                "degraded": dict(self.degraded),
                **{f"p{each}_ms": _percentile(self.latency_ms, each) for each in (50, 95, 99)},
            },
            "clicks": self._clicks(),
        }

    def _clicks(self) -> dict[str, Any] | None:
        if not self.clicks.count:
            return None
        compared = compare(_evaluation(self.before), _evaluation(self.after)) if self.before else {}
        measures = {
            name: {
                "before": each.before,
                "after": each.after,
                "gain": each.gain,
                "gain_low": each.gain_low,
                "gain_high": each.gain_high,
                "p": each.randomization_p,
            }
            for name, each in compared.items()
        }
        unknown = self.clicks.unknown
        return {"clicks": self.clicks.count, "queries": len(self.before), "unknown": unknown, "measures": measures}


def rank_biased_overlap(initial_ranks: np.ndarray[Any, Any]) -> float:
    """Return RBO_EXT of two lists' first k results from the ranks (k,), from 1, of one's results in the other."""
    depths = np.arange(1, len(initial_ranks) + 1)
    # The overlap at depth d: results among the first d of one list with a rank up to d in the other.
    enters = np.maximum(initial_ranks, depths)
    shared = np.searchsorted(np.sort(enters), depths, side="right")
    agreement = shared / depths
    weights = PERSISTENCE ** (depths - 1)
    return float((1 - PERSISTENCE) * (agreement * weights).sum() + agreement[-1] * PERSISTENCE ** len(depths))


def _kendall(ranks: np.ndarray[Any, Any]) -> float:
    try:
        from scipy.stats import kendalltau  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    return float(kendalltau(np.arange(len(ranks)), ranks).statistic)


def _by_clicks(rank: int) -> dict[str, float]:
    return {"MRR": 1 / rank, **{f"hit@{k}": float(rank <= k) for k in HITS}}


def _evaluation(values: Mapping[str, Mapping[str, float]]) -> Evaluation:
    names = next(iter(values.values()))
    return Evaluation(values, {name: _mean([each[name] for each in values.values()]) or 0.0 for name in names}, (), ())


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return float(np.percentile(values, percent)) if values else None
