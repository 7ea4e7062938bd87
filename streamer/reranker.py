"""Query results -> reranked results, told as the story of one micro-batch.

Events wait in one queue; whatever is there is taken together, so that the distinct query texts of a backlog
share a run of the text encoder. Each event is answered: reranked, degraded (in its initial order, with the
reason), or dead-lettered.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

import structlog

from streamer import faults
from streamer.events import Degraded, InvalidEvent, QueryResults, Reason, RerankedCandidate, Status, now
from streamer.kafka import InFlightRecord, Outputs, dead_letter
from streamer.method import answer, rerank_candidates, unscored
from streamer.stages import Stage
from streamer.store import StoreUnavailableError
from streamer.topology import RERANK
from streamer.tracing import stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from prometheus_client import Counter

    from streamer.codec import Codec
    from streamer.encoders import QueryVectors
    from streamer.health import Health
    from streamer.method import Policy
    from streamer.metrics import Metrics
    from streamer.settings import RerankSettings
    from streamer.vectors import VectorReader

log = structlog.get_logger()

MAX_RECORDS = 4_096
"""Most queries in flight, some seconds' work; ``queue_bytes`` bounds them too. With a tenth of it a backlog is paused
and fetched anew so often that the work waits for it."""


class Reranker:
    """The pipeline of ``streamer rerank``."""

    def __init__(
        self,
        settings: RerankSettings,
        policy: Policy,
        *,
        codec: Codec,
        queries: QueryVectors,
        model_id: str,
        store: VectorReader,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._outputs = Outputs(settings, RERANK, codec.content_type)
        self._policy = policy
        self._queries = queries
        self._model_id = model_id
        self._store = store
        self._metrics = metrics
        self._health = health
        self._candidates = {status: metrics.candidates.labels(status) for status in Status}
        for why in Degraded:
            metrics.degraded.labels(why)
        self._text = metrics.stage.labels("text")
        self._stage: Stage[InFlightRecord] = Stage(
            "rerank",
            self._process,
            failed=self._failed,
            metrics=metrics,
            health=health,
            batch_limit=settings.query_batch,
            trace_of=None if settings.tracing == "off" else lambda work: work.trace,
        )

    def submit(self, works: Sequence[InFlightRecord]) -> None:
        """Take records in flight; each one's ``done`` is called from the stage's thread."""
        self._stage.put_all(works)

    def _process(self, works: list[InFlightRecord]) -> None:
        faults.reach(faults.FaultPoint.RERANKING)
        current = [work for work in works if not work.revoked]
        events = [(work, event) for work in current if (event := self._decode(work))]
        in_time = [(work, event) for work, event in events if not self._is_late(work, event)]
        began = time.time_ns()
        vectors = self._encode(in_time)
        if self._settings.tracing != "off":
            stages((work.trace for work, _ in in_time), "text", began, batch=len(in_time))
        for (work, event), vector in zip(in_time, vectors, strict=True):
            if vector is None:
                self._degrade(work, event, Degraded.ENCODER_FAILED)
                continue
            began = time.time_ns()
            try:
                results = self._rerank(event, vector)
                if work.trace is not None:
                    work.trace.stage("score", began, candidates=len(results))
                self._answer(work, event, results)
                self._health.ready("store")
            except StoreUnavailableError as error:
                self._health.not_ready("store", str(error))
                self._degrade(work, event, Degraded.STORE_UNAVAILABLE)
            except Exception as error:  # noqa: BLE001 - told with its record; the others of the batch go on
                self._failed(work, error)

    def _decode(self, work: InFlightRecord) -> QueryResults | None:
        try:
            return self._codec.decode(QueryResults, work.record.value, work.record.key)
        except InvalidEvent as invalid:
            work.complete([dead_letter(work.record, invalid.reason, invalid.detail)])
            return None

    def _is_late(self, work: InFlightRecord, event: QueryResults) -> bool:
        limit = self._settings.deadline_ms
        if limit is None or now() - event.issued_at <= dt.timedelta(milliseconds=limit):
            return False
        self._degrade(work, event, Degraded.DEADLINE_EXCEEDED)
        return True

    def _encode(
        self, events: Sequence[tuple[InFlightRecord, QueryResults]]
    ) -> Iterator[npt.NDArray[np.float32] | None]:
        """Give each event its query's vector (d,), or None where the encoder fails on it."""
        if not events:
            return iter(())
        hits, misses = self._queries.hits, self._queries.misses
        try:
            with self._text.time():
                return iter(self._queries.get([event.query for _, event in events]))
        except Exception:
            log.exception("the text encoder failed", queries=len(events))
            if len(events) == 1:
                return iter([None])
            # One text that breaks the encoder must not cost the others of its batch their reranking.
            return (vector for each in events for vector in self._encode([each]))
        finally:
            self._metrics.query_cache.labels("hit").inc(self._queries.hits - hits)
            self._metrics.query_cache.labels("miss").inc(self._queries.misses - misses)

    def _rerank(self, event: QueryResults, vector: npt.NDArray[np.float32]) -> list[RerankedCandidate]:
        method = self._policy.method_for(event)
        results, within_depth, scored, scoring_s = rerank_candidates(method, event.results, vector, self._store)
        self._metrics.scoring.observe(scoring_s)
        self._count(len(results), within_depth, scored)
        return results

    def _count(self, candidates: int, within_depth: int, scored: int) -> None:
        _add(self._candidates[Status.RERANKED], scored)
        _add(self._candidates[Status.NOT_EMBEDDED], within_depth - scored)
        _add(self._candidates[Status.BELOW_DEPTH], candidates - within_depth)

    def _degrade(self, work: InFlightRecord, event: QueryResults, why: Degraded) -> None:
        """Pass a valid event on in its initial order: nothing was scored, as if all were below the depth."""
        count = len(event.results)
        self._count(count, 0, 0)
        results = [unscored(candidate, rank) for rank, candidate in enumerate(event.results, start=1)]
        self._metrics.degraded.labels(why).inc()
        self._answer(work, event, results, why)

    def _answer(
        self,
        work: InFlightRecord,
        event: QueryResults,
        results: list[RerankedCandidate],
        degraded: Degraded | None = None,
    ) -> None:
        reranked = answer(self._policy.method_for(event), event, results, self._model_id, degraded)
        work.complete([self._outputs.of(work, event.query_id, self._codec.encode(reranked))], since=event.issued_at)

    def _failed(self, work: InFlightRecord, error: Exception) -> None:
        """Dead-letter a record on which our own code failed: nothing is lost, and its partition goes on."""
        if work.outputs is None:
            log.error("rerank failed", place=work.record.place, exc_info=error)
            work.complete([dead_letter(work.record, Reason.INTERNAL, f"{type(error).__name__}: {error}")])


def _add(counter: Counter, more: int) -> None:
    if more:  # each addition takes a lock, and most of them are of nothing
        counter.inc(more)
