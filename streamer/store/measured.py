"""Metrics of a store, independent of its engine: the duration of its calls, its availability and its size."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

import structlog

from streamer.machine import start
from streamer.pooling import MAX
from streamer.store.protocol import EvictingStoreError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.scoring import ClipScores
    from streamer.store.protocol import (
        Clip,
        Counted,
        Embedding,
        Position,
        PutOutcome,
        Store,
        StoredClips,
        StoreServer,
        StoreStats,
    )
    from streamer.vectors import Block

log = structlog.get_logger()

OPERATIONS = ("read", "put", "delete")
_PING_EVERY_S = 5.0
_COUNT_EVERY_S = 60.0
_SHARE_OF_COUNTING = 0.01
"""Counting takes at most this share of the time: large stores are counted less often."""


class _EndOfRead(Protocol):
    def __call__(self, seconds: float, clips: Counted | None, *, unavailable: bool) -> None: ...


class MeasuredStore:
    """A :class:`~streamer.store.Store` whose calls are timed, and whose errors of availability are counted.

    The duration of a read is the time spent in the store, block by block, without the processing of its blocks. Corrupt
    records and cache hits are counted when the read ends.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._seconds = {name: metrics.store.labels(name) for name in OPERATIONS}
        self._errors = {name: metrics.store_errors.labels(name) for name in OPERATIONS}
        self._corrupt = metrics.corrupt_records
        self._replica_reads = metrics.store_replica_reads
        self._cache_hits, self._cache_misses = (metrics.store_cache.labels(result) for result in ("hit", "miss"))

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips in one durable transaction."""
        with self._measured("put"):
            return self._store.put(clips)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        """Remove a clip durably."""
        with self._measured("delete"):
            return self._store.delete(clip_id, deleted_at, position)

    def read(self, clip_ids: Sequence[str]) -> _MeasuredRead:
        """Read records, as the store does."""
        return _MeasuredRead(self._store.read(clip_ids), self._end_of_read)

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str = MAX
    ) -> ClipScores:
        """Score clips, as the store does; a query of which some clips are unavailable counts as an error, too."""
        began = time.perf_counter()
        try:
            scores = self._store.score(clip_ids, vector, deadline, pooling)
        except BaseException as error:
            self._end_of_read(time.perf_counter() - began, None, unavailable=isinstance(error, StoreUnavailableError))
            raise
        seconds = time.perf_counter() - began - scores.seconds
        self._end_of_read(seconds, scores, unavailable=bool(scores.unavailable))
        if scores.replica_reads:
            self._replica_reads.inc(scores.replica_reads)
        return scores

    def _end_of_read(self, seconds: float, clips: Counted | None, *, unavailable: bool) -> None:
        self._seconds["read"].observe(seconds)
        if unavailable:
            self._errors["read"].inc()
        if clips is not None:
            # Most counts are 0, and each increment takes a lock.
            for counter, count in (
                (self._corrupt, clips.corrupt),
                (self._cache_hits, clips.cache_hits),
                (self._cache_misses, clips.cache_misses),
            ):
                if count:
                    counter.inc(count)

    def clip_ids(self) -> Iterator[str]:
        """Yield the ids of this model's live clips."""
        return self._store.clip_ids()

    def stats(self) -> StoreStats:
        """Count the records."""
        return self._store.stats()

    def ping(self) -> None:
        """Raise :class:`StoreUnavailableError` if the store is unreachable."""
        self._store.ping()

    def servers(self) -> Sequence[StoreServer]:
        """Return the servers as the last :meth:`ping` found them."""
        return self._store.servers()

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    @contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except StoreUnavailableError:
            self._errors[operation].inc()
            raise
        finally:
            self._seconds[operation].observe(time.perf_counter() - began)


class _MeasuredRead:
    """A timed read of another store and its result; a class because generators are slower and each query opens one.

    ``ended`` is called once with the seconds spent in the store, and with the clips if there were any.
    """

    __slots__ = ("_clips", "_ended", "_read", "_seconds")

    def __init__(self, read: AbstractContextManager[StoredClips], ended: _EndOfRead) -> None:
        self._read = read
        self._ended = ended
        self._clips: StoredClips | None = None
        self._seconds = 0.0

    def __enter__(self) -> Self:
        began = time.perf_counter()
        try:
            self._clips = self._read.__enter__()
        except BaseException as error:
            self._seconds = time.perf_counter() - began
            self._ended(self._seconds, None, unavailable=isinstance(error, StoreUnavailableError))
            raise
        self._seconds = time.perf_counter() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        began = time.perf_counter()
        try:
            return self._read.__exit__(kind, error, trace)
        except BaseException as translated:
            kind = type(translated)
            raise
        finally:
            self._seconds += time.perf_counter() - began
            unavailable = kind is not None and issubclass(kind, StoreUnavailableError)
            self._ended(self._seconds, self._clips, unavailable=unavailable)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks; the time between them does not count."""
        blocks = self._opened.blocks()
        while True:
            began = time.perf_counter()
            block = next(blocks, None)
            self._seconds += time.perf_counter() - began
            if block is None:
                return
            yield block

    def __len__(self) -> int:
        return len(self._opened)

    def __getitem__(self, index: int) -> Embedding | None:
        began = time.perf_counter()
        found = self._opened[index]
        self._seconds += time.perf_counter() - began
        return found

    def __iter__(self) -> Iterator[Embedding | None]:
        return (self[index] for index in range(len(self)))

    @property
    def corrupt(self) -> int:
        """As the store counts it."""
        return self._opened.corrupt

    @property
    def cache_hits(self) -> int:
        """As the store counts them."""
        return self._opened.cache_hits

    @property
    def cache_misses(self) -> int:
        """As the store counts them."""
        return self._opened.cache_misses

    @property
    def _opened(self) -> StoredClips:
        if self._clips is None:
            raise StoreError("the read has not been started")
        return self._clips


class StoreWatch:
    """Checks periodically, in a separate thread, whether the store is reachable, and counts its clips.

    Without it, an idle instance would not notice that its store is unreachable. Whether its servers may evict records
    is a condition of its own, because reads and writes that succeed say nothing about it.
    """

    def __init__(self, store: Store, model_id: str, *, metrics: Metrics, health: Health, counts: bool) -> None:
        """Start; with ``counts`` the clips are counted too, which reads all keys."""
        self._store = store
        self._model_id = model_id
        self._metrics = metrics
        self._health = health
        self._counts = counts
        self._is_unreachable = False
        self._next_count = 0.0
        self._evicted: dict[str, int] = {}
        """Evicted keys by server process, as last seen."""
        thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        start(thread)
        health.watch(thread.name, thread.is_alive)

    def _run(self) -> None:
        while True:
            self.look()
            time.sleep(_PING_EVERY_S)

    def look(self) -> None:
        """Check once."""
        try:
            self._ping()
            if self._counts and time.monotonic() >= self._next_count:
                self._count()
        except StoreUnavailableError as error:
            self._unreachable(error)
        except StoreError:  # the store was closed because the service stops
            return
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, this thread must go on asking
            self._unreachable(error)
        else:
            if self._is_unreachable:
                self._is_unreachable = False
                self._health.ready("store")

    def _ping(self) -> None:
        try:
            self._store.ping()
        except EvictingStoreError as error:
            self._health.not_ready("eviction", str(error))
        else:
            self._health.ready("eviction")
        self._measure(self._store.servers())

    def _measure(self, servers: Sequence[StoreServer]) -> None:
        fullest = max((each.memory_share for each in servers), default=0.0)
        self._metrics.store_memory.set(fullest)
        self._metrics.store_replica_lag.set(max((each.replica_lag_s for each in servers), default=0.0))
        for each in servers:
            # A server seen for the first time counts only if others were seen before: then it is new, or was restarted.
            before = self._evicted.get(each.process, 0 if self._evicted else each.evicted_keys)
            new = each.evicted_keys - before if each.evicted_keys >= before else each.evicted_keys  # CONFIG RESETSTAT
            if new:
                log.error("a server of the store has evicted keys", server=each.name, keys=new, policy=each.policy)
                self._metrics.store_evicted_keys.inc(new)
        self._evicted |= {each.process: each.evicted_keys for each in servers}

    def _unreachable(self, error: Exception) -> None:
        self._is_unreachable = True
        self._health.not_ready("store", str(error))

    def _count(self) -> None:
        began = time.monotonic()
        stats = self._store.stats()
        self._metrics.store_clips.set(stats.models.get(self._model_id, 0))
        self._metrics.store_bytes.set(stats.bytes)
        took = time.monotonic() - began
        self._next_count = time.monotonic() + max(_COUNT_EVERY_S, took / _SHARE_OF_COUNTING)
