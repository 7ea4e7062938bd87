"""What is measured of a store, whatever its engine: the time of its calls, whether it is there, what it holds."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from streamer.store.protocol import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from prometheus_client import Counter, Histogram

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.store.protocol import Clip, Embedding, Position, PutOutcome, Store, StoreStats

T = TypeVar("T")

OPERATIONS = ("read", "put", "delete")
_PING_EVERY_S = 5.0
_COUNT_EVERY_S = 60.0
_SHARE_OF_COUNTING = 0.01
"""Of a store so large that counting takes long, it is counted less often."""


class MeasuredStore:
    """A :class:`~streamer.store.Store` whose calls are timed, and counted where they find it unavailable.

    A read takes until its block ends, scoring included: an engine may look records up while they are scored.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._seconds = {name: metrics.store.labels(name) for name in OPERATIONS}
        self._errors = {name: metrics.store_errors.labels(name) for name in OPERATIONS}

    @property
    def corrupt_reads(self) -> int:
        """As the store has it."""
        return self._store.corrupt_reads

    @property
    def cache_hits(self) -> int:
        """As the store has it."""
        return self._store.cache_hits

    @property
    def cache_misses(self) -> int:
        """As the store has it."""
        return self._store.cache_misses

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips in one durable transaction."""
        with self._measured("put"):
            return self._store.put(clips)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        """Remove a clip durably."""
        with self._measured("delete"):
            return self._store.delete(clip_id, deleted_at, position)

    def read(self, clip_ids: Sequence[str]) -> AbstractContextManager[Sequence[Embedding | None]]:
        """Read records, as the store does."""
        return _Measured(self._store.read(clip_ids), self._seconds["read"], self._errors["read"])

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

    def _measured(self, operation: str) -> AbstractContextManager[None]:
        return _Measured(nullcontext(), self._seconds[operation], self._errors[operation])


class _Measured(AbstractContextManager[T]):
    """Another context, timed; no generator, since a query opens one."""

    __slots__ = ("_began", "_errors", "_inner", "_seconds")

    def __init__(self, inner: AbstractContextManager[T], seconds: Histogram, errors: Counter) -> None:
        self._inner = inner
        self._seconds = seconds
        self._errors = errors
        self._began = time.perf_counter()

    def __enter__(self) -> T:
        try:
            return self._inner.__enter__()
        except BaseException as error:
            self._end(type(error))
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self._inner.__exit__(kind, error, trace)
        except BaseException as translated:
            kind = type(translated)
            raise
        finally:
            self._end(kind)

    def _end(self, kind: type[BaseException] | None) -> None:
        if kind is not None and issubclass(kind, StoreUnavailableError):
            self._errors.inc()
        self._seconds.observe(time.perf_counter() - self._began)


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
