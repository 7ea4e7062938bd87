"""The method for one query: score the candidates within the depth, blend, rank, and make the event that answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.events import Degraded, QueryReranked, QueryResults, RerankedCandidate, Status, now
from streamer.scoring import rerank, score_clips

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamer.events import Candidate
    from streamer.scoring import FrameScores, Ranking
    from streamer.settings import MethodSettings
    from streamer.store import Store


class Reranked(NamedTuple):
    """A reranked result list, and how many of its candidates are within the depth, and have a record of these."""

    results: list[RerankedCandidate]
    within_depth: int
    scored: int


def rerank_candidates(
    settings: MethodSettings, candidates: Sequence[Candidate], vector: npt.NDArray[np.float32], store: Store
) -> Reranked:
    """Score the candidates within the depth, blend and rank: the method itself, for a query's vector (d,).

    Raises :class:`StoreUnavailableError`.
    """
    with store.read([candidate.clip_id for candidate in candidates[: settings.depth]]) as embeddings:
        frame = score_clips(vector, embeddings)
    initial = np.array([candidate.score for candidate in candidates], dtype=np.float64)
    ranking = rerank(
        initial, frame.cosines, alpha=settings.alpha, depth=settings.depth, normalization=settings.normalization
    )
    scored = ~np.isnan(frame.cosines)
    return Reranked(_ranked(candidates, ranking, frame, scored), len(scored), int(np.count_nonzero(scored)))


def answer(
    settings: MethodSettings,
    event: QueryResults,
    results: list[RerankedCandidate],
    model_id: str,
    degraded: Degraded | None = None,
) -> QueryReranked:
    """Make the event that answers ``event``."""
    return QueryReranked(
        query_id=event.query_id,
        query=event.query,
        engine=event.engine,
        issued_at=event.issued_at,
        reranked_at=now(),
        model_id=model_id,
        alpha=settings.alpha,
        depth=settings.depth,
        normalization=settings.normalization,
        degraded=degraded,
        results=results,
    )


def _ranked(
    candidates: Sequence[Candidate], ranking: Ranking, frame: FrameScores, scored: npt.NDArray[np.bool_]
) -> list[RerankedCandidate]:
    """Make the answer; ``frame`` and ``scored`` (True where there is a record) end at the depth.

    By columns: a call for each of a hundred candidates took 77 microseconds, this takes 15.
    """
    within = len(scored)
    order = ranking.order[:within]  # what is below the depth keeps its place behind them
    positions = order.tolist()
    cosines, moments = frame.cosines[order].tolist(), frame.moments_ms[order].tolist()
    statuses = [Status.RERANKED] * within
    if not scored.all():
        for rank in np.flatnonzero(~scored[order]).tolist():
            cosines[rank] = moments[rank] = None
            statuses[rank] = Status.NOT_EMBEDDED
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
    """Make a candidate that keeps the place that the engine gave it."""
    return RerankedCandidate(candidate.clip_id, rank, None, rank, candidate.score, None, None, Status.BELOW_DEPTH)
