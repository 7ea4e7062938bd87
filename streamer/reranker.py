"""Query results -> reranked results, one micro-batch at a time.

Events wait in one queue, and all waiting events are taken together, so that the distinct query texts of a backlog share
one call of the text encoder. Each event is reranked, degraded (passed on in its initial order, with the reason) or
dead-lettered. A shortage of this machine (no memory, descriptor or thread) degrades the event that meets it, as a store
or an encoder that fails does; where not even the degraded result can be made, the events wait until it can.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import structlog

from streamer import faults
from streamer.events import Degraded, InvalidEvent, QueryResults, Reason, Status, now
from streamer.kafka import InFlightRecord, Outputs, dead_letter
from streamer.machine import machine_error
from streamer.method import Reranked, answer, rerank_candidates, unscored
from streamer.shortages import Shortages
from streamer.stages import Stage
from streamer.store import StoreUnavailableError
from streamer.topology import RERANK
from streamer.tracing import stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from prometheus_client import Counter

    from streamer.codec import Codec
    from streamer.encoders import Encoder
    from streamer.events import RerankedCandidate
    from streamer.health import Health
    from streamer.match import Bank, Match
    from streamer.method import ClipScorer, Method, Policy
    from streamer.metrics import Metrics
    from streamer.settings import RerankSettings

log = structlog.get_logger()

MAX_RECORDS = 4_096
"""Most queries in flight, a few seconds of work; ``queue_bytes`` bounds them too. With a tenth of it, a backlog is
paused and fetched again so often that the reranker waits for the consumer."""
MAX_TEXT_BATCH = 64
"""Most queries in one call of the text encoder: a larger batch gains little and takes more memory."""


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
        store: ClipScorer,
        metrics: Metrics,
        health: Health,
        bank: Bank | None = None,
    ) -> None:
        """``bank``: what the answers' matches come from; without it they have none."""
        self._bank = bank
        self._settings = settings
        self._codec = codec
        self._outputs = Outputs(settings, RERANK, codec.content_type)
        self._policy = policy
        self._queries = queries
        self._model_id = model_id
        self._store = store
        self._metrics = metrics
        self._health = health
        self._shortages = Shortages(metrics, health)
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
            shortages=self._shortages,
            batch_limit=settings.query_batch,
            begin=queries.warm_up,
            trace_of=None if settings.tracing == "off" else lambda in_flight: in_flight.trace,
        )

    def submit(self, records: Sequence[InFlightRecord]) -> None:
        """Take records in flight; each one's ``complete`` is called from the stage's thread."""
        self._stage.put_all(records)

    def _process(self, records: list[InFlightRecord]) -> None:
        faults.reach(faults.FaultPoint.RERANKING)
        # An earlier attempt, which a shortage ended, has completed some.
        current = [in_flight for in_flight in records if not in_flight.revoked and in_flight.outputs is None]
        queries = [query for in_flight in current if (query := self._decode(in_flight))]
        in_time = [query for query in queries if not self._is_late(query)]
        began = time.time_ns()
        vectors = self._encode(in_time)
        if self._settings.tracing != "off":
            stages((query.in_flight.trace for query in in_time), "text", began, batch=len(in_time))
        for query, vector in zip(in_time, vectors, strict=True):
            if vector is None:
                self._degrade(query, Degraded.ENCODER_FAILED)
                continue
            began = time.time_ns()
            try:
                reranked = self._rerank(query, vector)
                query.in_flight.trace_stage("score", began, candidates=len(reranked.results))
                self._answer(query, reranked.results, match=reranked.match)
            except StoreUnavailableError as error:
                self._health.not_ready("store", str(error))
                self._degrade(query, Degraded.STORE_UNAVAILABLE)
            except Exception as error:  # noqa: BLE001 - reported with its record; the rest of the batch continues
                if self._is_shortage(error):
                    self._degrade(query, Degraded.STORE_UNAVAILABLE)
                else:
                    self._failed(query.in_flight, error)

    def _decode(self, in_flight: InFlightRecord) -> _Query | None:
        try:
            event = self._codec.decode(QueryResults, in_flight.record.value, in_flight.record.key)
        except InvalidEvent as invalid:
            in_flight.complete([dead_letter(in_flight.record, invalid.reason, invalid.detail)])
            return None
        return _Query(in_flight, event, self._policy.method_for(event))

    def _is_late(self, query: _Query) -> bool:
        limit = self._settings.deadline_ms
        if limit is None or now() - query.event.issued_at <= dt.timedelta(milliseconds=limit):
            return False
        self._degrade(query, Degraded.DEADLINE_EXCEEDED)
        return True

    def _encode(self, queries: Sequence[_Query]) -> Iterator[npt.NDArray[np.float32] | None]:
        """Return each query's vector (d,), or None if the encoder fails on it."""
        if not queries:
            return iter(())
        hits, misses = self._queries.hits, self._queries.misses
        try:
            with self._text.time():
                return iter(self._queries.get([query.event.query for query in queries]))
        except Exception as error:
            if self._is_shortage(error):
                log.warning("no memory or thread for the text encoder", queries=len(queries), error=str(error))
            else:
                log.exception("text encoder failed", queries=len(queries))
            if len(queries) == 1:
                return iter([None])
            # A text on which the encoder fails must not degrade the other queries of its batch.
            return (vector for each in queries for vector in self._encode([each]))
        finally:
            self._metrics.query_cache.labels("hit").inc(self._queries.hits - hits)
            self._metrics.query_cache.labels("miss").inc(self._queries.misses - misses)

    def _is_shortage(self, error: Exception) -> bool:
        """Tell whether an error shows a shortage of this machine, and report that if so."""
        lack = machine_error(error)
        if lack is not None:
            self._shortages.tell(lack)
        return lack is not None

    def _rerank(self, query: _Query, vector: npt.NDArray[np.float32]) -> Reranked:
        deadline = time.monotonic() + self._settings.store_timeout
        reranked = rerank_candidates(query.method, query.event.results, vector, self._store, deadline, self._bank)
        if reranked.unavailable > (1 - self._settings.least_scored) * reranked.within_depth:
            raise StoreUnavailableError(reranked.why)
        self._metrics.scoring.observe(reranked.scoring_s)
        self._count(len(reranked.results), reranked.within_depth, reranked.scored, reranked.unavailable)
        if not reranked.unavailable:
            self._health.ready("store")
        if reranked.match is not None:
            self._metrics.match.observe(reranked.match.value)
        return reranked

    def _count(self, candidates: int, within_depth: int, scored: int, unavailable: int) -> None:
        _add(self._candidates[Status.RERANKED], scored)
        _add(self._candidates[Status.NOT_EMBEDDED], within_depth - scored - unavailable)
        _add(self._candidates[Status.UNAVAILABLE], unavailable)
        _add(self._candidates[Status.BELOW_DEPTH], candidates - within_depth)

    def _degrade(self, query: _Query, why: Degraded) -> None:
        """Pass a valid event on in its initial order, unscored, as if all candidates were below the depth."""
        candidates = query.event.results
        self._count(len(candidates), 0, 0, 0)
        results = [unscored(candidate, rank) for rank, candidate in enumerate(candidates, start=1)]
        self._metrics.degraded.labels(why).inc()
        self._answer(query, results, why)

    def _answer(
        self,
        query: _Query,
        results: list[RerankedCandidate],
        degraded: Degraded | None = None,
        match: Match | None = None,
    ) -> None:
        in_flight, event, method = query
        reranked = answer(method, event, results, self._model_id, degraded, match)
        in_flight.complete(
            [self._outputs.of(in_flight, event.query_id, self._codec.encode(reranked))], since=event.issued_at
        )

    def _failed(self, in_flight: InFlightRecord, error: Exception) -> None:
        """Dead-letter a record on which our own code failed, so that nothing is lost and its partition continues."""
        if in_flight.outputs is None:
            log.error("reranking failed", place=in_flight.record.place, exc_info=error)
            in_flight.complete([dead_letter(in_flight.record, Reason.INTERNAL, f"{type(error).__name__}: {error}")])


class _Query(NamedTuple):
    """A query in work, and the method that the policy chose for it: chosen once, since the answer states it."""

    in_flight: InFlightRecord
    event: QueryResults
    method: Method


class QueryVectors:
    """Query vectors, encoded once: an LRU cache in front of an encoder's text tower.

    The ``size`` queries most recently asked for are kept; 0 keeps none. For one thread. ``hits`` and ``misses`` add up
    to the queries asked for; a miss is one that had to be encoded, so a query that comes twice in one call is at most
    one miss.
    """

    def __init__(self, encoder: Encoder, size: int) -> None:
        self.hits = 0
        self.misses = 0
        self._encoder = encoder
        self._size = size
        self._vectors: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def warm_up(self) -> None:
        """Let the encoder set up what it needs in the thread that calls this, which is to be the one that asks."""
        self._encoder.warm_up()

    def get(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of ``queries``: (n, dim) float32, L2-normalised, a copy.

        What the encoder raises passes through; what was encoded before that is kept.
        """
        distinct = dict.fromkeys(queries)
        found = {query: self._vectors[query] for query in distinct if query in self._vectors}
        missing = [query for query in distinct if query not in found]
        for query in found:
            self._vectors.move_to_end(query)
        for start in range(0, len(missing), MAX_TEXT_BATCH):
            chunk = missing[start : start + MAX_TEXT_BATCH]
            for query, vector in zip(chunk, self._encoder.encode_texts(chunk), strict=True):
                # A row of the batch would keep all of the batch in memory.
                found[query] = self._vectors[query] = vector.copy()
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
        self.misses += len(missing)
        self.hits += len(queries) - len(missing)
        if not queries:
            return np.empty((0, self._encoder.dim), np.float32)
        return np.stack([found[query] for query in queries])


def _add(counter: Counter, more: int) -> None:
    if more:  # each increment takes a lock, and most counts are 0
        counter.inc(more)
