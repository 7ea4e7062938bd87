"""What is measured of a store, whatever its engine: the time of its calls, whether it is there, what it holds."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from streamer.store.protocol import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.store.protocol import Clip, Embedding, Position, PutOutcome, Store, StoredClips, StoreStats
    from streamer.vectors import Block

OPERATIONS = ("read", "put", "delete")
_PING_EVERY_S = 5.0
_COUNT_EVERY_S = 60.0
_SHARE_OF_COUNTING = 0.01
"""Of a store so large that counting takes long, it is counted less often."""


class _EndOfRead(Protocol):
    def __call__(self, seconds: float, clips: StoredClips | None, *, unavailable: bool) -> None: ...


class MeasuredStore:
    """A :class:`~streamer.store.Store` whose calls are timed, and counted where they find it unavailable.

    A read's time is what the store has taken for it, block by block: what is done with a block that it has given is
    not in it. Corrupt records and what came from the cache are counted when the read ends.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._seconds = {name: metrics.store.labels(name) for name in OPERATIONS}
        self._errors = {name: metrics.store_errors.labels(name) for name in OPERATIONS}
        self._corrupt = metrics.corrupt_records
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

    def _end_of_read(self, seconds: float, clips: StoredClips | None, *, unavailable: bool) -> None:
        self._seconds["read"].observe(seconds)
        if unavailable:
            self._errors["read"].inc()
        if clips is not None:
            # Most are 0, and each addition takes a lock.
            for counter, count in (
                (self._corrupt, clips.corrupt),
                (self._cache_hits, clips.cache_hits),
                (self._cache_misses, clips.cache_misses),
            ):
                if count:
                    counter.inc(count)

    def clip_ids(self) -> Iterator[str]:
        """Go through the ids of this model's live clips."""
        return self._store.clip_ids()

    def stats(self) -> StoreStats:
        """Count what is stored."""
        return self._store.stats()

    def ping(self) -> None:
        """Raise :class:`StoreUnavailableError` where the store cannot be reached."""
        self._store.ping()

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
    """A read of another store, timed, and what it gives: no generator, since each query opens one.

    ``ended`` is called once with the store's seconds, and with the clips where there were any.
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
        """Give the blocks; the time between them is not the store's."""
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
            raise StoreError("the read has not begun")
        return self._clips


class StoreWatch:
    """Asks now and then, in a thread of its own, whether the store is there, and what it holds.

    An instance without work would not notice otherwise that its store has gone.
    """

    def __init__(self, store: Store, model_id: str, *, metrics: Metrics, health: Health, counts: bool) -> None:
        """Begin; with ``counts`` the clips are counted too, for which all keys are walked over."""
        self._store = store
        self._model_id = model_id
        self._metrics = metrics
        self._health = health
        self._counts = counts
        self._is_away = False
        self._next_count = 0.0
        thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        thread.start()
        health.watch(thread.name, thread.is_alive)

    def _run(self) -> None:
        while True:
            self.look()
            time.sleep(_PING_EVERY_S)

    def look(self) -> None:
        """Ask once."""
        try:
            self._store.ping()
            if self._counts and time.monotonic() >= self._next_count:
                self._count()
        except StoreError:  # it was closed: the service stops
            return
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, this thread must go on asking
            self._is_away = True
            self._health.not_ready("store", str(error))
        else:
            if self._is_away:
                self._is_away = False
                self._health.ready("store")

    def _count(self) -> None:
        began = time.monotonic()
        stats = self._store.stats()
        self._metrics.store_clips.set(stats.models.get(self._model_id, 0))
        self._metrics.store_bytes.set(stats.bytes)
        took = time.monotonic() - began
        self._next_count = time.monotonic() + max(_COUNT_EVERY_S, took / _SHARE_OF_COUNTING)
