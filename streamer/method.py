"""The method for one query: read and score the candidates within the depth, blend, rank, and make the result event.

:class:`Method` holds the method's parameters, and a :class:`Policy` chooses the method for an event. The
store gives the candidates' frame scores, since it alone knows where their vectors are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np

from streamer.events import Degraded, QueryReranked, QueryResults, RerankedCandidate, Status, now
from streamer.pooling import MAX
from streamer.scoring import IMPUTE, FrameScorer, rerank

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamer.events import Candidate
    from streamer.match import Bank, Match
    from streamer.scoring import ClipScores, FrameScores, Missing, Normalization, Ranking
    from streamer.vectors import Blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The parameters of reranking; each result event repeats them.

    ``alpha`` (0 to 1) is the weight of the engine's score, ``depth`` (1 or more) the number of first candidates to
    rerank, ``normalization`` how both scores are normalized before blending. ``missing`` says what stands for the frame
    score of a candidate without a record (:func:`streamer.scoring.blend`), ``pooling`` how the cosines of a clip's
    frames become its frame score (:mod:`streamer.pooling`).
    """

    alpha: float
    depth: int
    normalization: Normalization
    missing: Missing = IMPUTE
    pooling: str = MAX

    def __str__(self) -> str:
        """Return the parameters as a summary shows them; the last two where they are not the defaults."""
        others = [self.pooling] * (self.pooling != MAX) + ["missing not imputed"] * (self.missing != IMPUTE)
        return ", ".join([f"alpha {self.alpha:g}", f"depth {self.depth}", self.normalization, *others])


class Policy(Protocol):
    """Chooses the method for an event."""

    def method_for(self, event: QueryResults) -> Method:
        """Return the method; it depends only on the event, so that a redelivered event gets the same result."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPolicy:
    """One method for every event."""

    method: Method

    def method_for(self, _event: QueryResults) -> Method:
        """Return the one method."""
        return self.method


class ClipScorer(Protocol):
    """Scores clips by their ids, such as a :class:`streamer.store.Store`."""

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str = MAX
    ) -> ClipScores:
        """Score clips against a query's vector (d,) by a moment of the monotonic clock."""
        ...


class Reranked(NamedTuple):
    """A reranked result list.

    ``within_depth``: the number of candidates within the depth; ``scored``: how many of these have a record;
    ``unavailable``: how many could not be looked up, ``why``: the store's first reason. ``scoring_s``: the seconds for
    pooling, normalization, blending, ranking and the match, without reading the records. ``match``: how well the best
    candidate matches, None without a bank or without scores.
    """

    results: list[RerankedCandidate]
    within_depth: int
    scored: int
    unavailable: int
    why: str
    scoring_s: float
    match: Match | None = None


def rerank_candidates(
    method: Method,
    candidates: Sequence[Candidate],
    vector: npt.NDArray[np.float32],
    store: ClipScorer,
    deadline: float | None = None,
    bank: Bank | None = None,
) -> Reranked:
    """Score the candidates within the depth against a query's vector (d,), blend and rank.

    ``deadline`` is for the store, as in :meth:`ClipScorer.score`. A candidate that it could not look up is treated like
    one without a record. ``bank`` says how well the best one matches, and changes nothing else. Raises
    :class:`~streamer.store.StoreUnavailableError` if the store could look up none.
    """
    clip_ids = [candidate.clip_id for candidate in candidates[: method.depth]]
    scores = store.score(clip_ids, vector, deadline, method.pooling)
    frame = scores.frame
    began = time.perf_counter()
    initial = np.array([candidate.score for candidate in candidates], dtype=np.float64)
    ranking = rerank(
        initial,
        frame.cosines,
        alpha=method.alpha,
        depth=method.depth,
        normalization=method.normalization,
        missing=method.missing,
    )
    scored = ~np.isnan(frame.cosines)
    results = _ranked(candidates, ranking, scores, scored)
    match = None if bank is None else bank.match(clip_ids, frame.cosines, vector, method.pooling)
    scoring_s = scores.seconds + time.perf_counter() - began
    count = int(np.count_nonzero(scored))
    return Reranked(results, len(scored), count, len(scores.unavailable), scores.why, scoring_s, match)


def score_clips(query: npt.NDArray[np.float32], clips: Blocks, pooling: str = MAX) -> FrameScores:
    """Pool clips against an L2-normalised query (d,); :class:`~streamer.scoring.FrameScorer` says how.

    Raises ValueError if the query is not finite.
    """
    scorer = FrameScorer(query, len(clips), pooling)
    for block in clips.blocks():
        scorer.add(block)
    return scorer.scores


def answer(
    method: Method,
    event: QueryResults,
    results: list[RerankedCandidate],
    model_id: str,
    degraded: Degraded | None = None,
    match: Match | None = None,
) -> QueryReranked:
    """Make the result event for ``event``; without a ``match`` it has none of its fields."""
    value, kind, bank = (msgspec.UNSET,) * 3 if match is None else match
    return QueryReranked(
        query_id=event.query_id,
        query=event.query,
        engine=event.engine,
        issued_at=event.issued_at,
        reranked_at=now(),
        model_id=model_id,
        alpha=method.alpha,
        depth=method.depth,
        normalization=method.normalization,
        missing=method.missing,
        pooling=method.pooling,
        match=value,
        match_kind=kind,
        match_bank=bank,
        degraded=degraded,
        results=results,
    )


def method_of(reranked: QueryReranked) -> Method:
    """Return the method that a result event states."""
    return Method(
        alpha=reranked.alpha,
        depth=reranked.depth,
        normalization=reranked.normalization,
        missing=reranked.missing,
        pooling=reranked.pooling,
    )


def _ranked(
    candidates: Sequence[Candidate], ranking: Ranking, scores: ClipScores, scored: npt.NDArray[np.bool_]
) -> list[RerankedCandidate]:
    """Make the result list; ``scores`` and ``scored`` (True if there is a record) end at the depth.

    It works by columns: one call for each of a hundred candidates took 77 microseconds, this takes 15.
    """
    within = len(scored)
    order = ranking.order[:within]  # candidates below the depth follow in their initial order
    positions = order.tolist()
    cosines, moments = scores.frame.cosines[order].tolist(), scores.frame.moments_ms[order].tolist()
    statuses = [Status.RERANKED] * within
    if not scored.all():
        unavailable = {*scores.unavailable}
        for rank in np.flatnonzero(~scored[order]).tolist():
            cosines[rank] = moments[rank] = None
            statuses[rank] = Status.UNAVAILABLE if positions[rank] in unavailable else Status.NOT_EMBEDDED
    top = [candidates[position] for position in positions]
    ranked = map(
        RerankedCandidate,
        [candidate.clip_id for candidate in top],
        range(1, within + 1),
        ranking.scores[order].tolist(),
        (order + 1).tolist(),
        [candidate.score for candidate in top],
        cosines,
        moments,
        statuses,
    )
    return [*ranked, *(unscored(candidates[rank - 1], rank) for rank in range(within + 1, len(candidates) + 1))]


def unscored(candidate: Candidate, rank: int) -> RerankedCandidate:
    """Make a candidate that keeps its initial rank."""
    return RerankedCandidate(candidate.clip_id, rank, None, rank, candidate.score, None, None, Status.BELOW_DEPTH)
