"""The building blocks of a pipeline: stages, which are threads with a bounded queue, and turns."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

from streamer.machine import machine_error, start
from streamer.tracing import since, stages

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.shortages import Shortages
    from streamer.tracing import Trace

log = structlog.get_logger()

T = TypeVar("T")


class Stage(Generic[T]):
    """Threads that process the waiting items of one queue in batches.

    A stage never waits for a batch to fill: under light load batches are small and quick, under a backlog they fill up
    to ``batch_limit`` (in units of ``weigh``; a single item may exceed it). :meth:`put` blocks while the waiting items
    reach ``capacity`` (in units of ``size``; 0 means no bound), so that a slow stage applies backpressure to the one
    before it. A stage keeps no reference to a finished batch.

    ``work`` processes a batch; its exceptions are passed to ``failed`` with each item, so that no record in flight is
    lost and no thread dies of a bad item. An exception that shows a shortage of this machine is no item's fault: the
    same batch is worked on again until there is enough (``shortages``), so ``work`` must pass over what an earlier
    attempt has finished. Threads are daemons: a stop never waits for a hung one, and a batch that takes too long fails
    the liveness probe. ``trace_of``, if records are traced, returns an item's trace.

    ``begin`` is called once in each of the threads, before any item is taken, and the constructor waits for it: a
    library that keeps threads of its own for each thread that calls it has them before the first item.

    Raises :class:`~streamer.machine.MachineError` if this machine has no thread for it, and what ``begin`` raises.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[T]], None],
        *,
        failed: Callable[[T, Exception], None],
        metrics: Metrics,
        health: Health,
        shortages: Shortages,
        threads: int = 1,
        capacity: int = 0,
        size: Callable[[T], int] = lambda _item: 1,
        batch_limit: int = 1,
        weigh: Callable[[T], int] = lambda _item: 1,
        trace_of: Callable[[T], Trace | None] | None = None,
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        self._name = name
        self._work = work
        self._failed = failed
        self._health = health
        self._shortages = shortages
        self._batch_limit = batch_limit
        self._weigh = weigh
        self._trace_of = trace_of
        self._capacity = capacity
        self._queue: _Queue[T] = _Queue(capacity, size)
        self._seconds = metrics.stage.labels(name)
        self._waited = metrics.queue_wait.labels(name)
        self._sizes = metrics.batch.labels(name)
        begun: list[Future[None]] = []
        for number in range(threads):
            begun.append(Future())
            thread = threading.Thread(target=self._run, args=(begin, begun[-1]), name=f"{name}-{number}", daemon=True)
            start(thread)
            health.watch(thread.name, thread.is_alive)
        for each in begun:
            each.result()

    def put(self, item: T) -> None:
        """Queue one item; blocks while the queue is full. The item that fills it may exceed the capacity."""
        if self._capacity:
            with self._health.idle():  # the caller that waits here is not stalled; this stage is
                self._queue.put(item, wait=True)
        else:
            self._queue.put(item, wait=False)

    def put_at_once(self, item: T) -> None:
        """Queue one item without blocking; the caller must bound the number of waiting items."""
        self._queue.put(item, wait=False)

    def put_all(self, items: Iterable[T]) -> None:
        """Queue several items in their order."""
        for item in items:
            self.put(item)

    def _run(self, begin: Callable[[], object], begun: Future[None]) -> None:
        try:
            begin()
        except Exception as error:  # noqa: BLE001 - raised where the stage is made
            begun.set_exception(error)
            return
        begun.set_result(None)
        while True:
            # Not kept in a variable of this frame, which would keep the last batch alive while waiting for the next
            # one.
            self._process(self._take())

    def _process(self, batch: list[T]) -> None:
        began = time.monotonic()
        with self._health.busy():
            try:
                self._work_through(batch)
            except Exception as error:  # noqa: BLE001 - reported with every item of the batch
                for item in batch:
                    self._failed(item, error)
        took = time.monotonic() - began
        self._seconds.observe(took)
        if self._trace_of is not None:
            stages(map(self._trace_of, batch), self._name, since(took), batch=len(batch))

    def _work_through(self, batch: list[T]) -> None:
        try:
            self._work(batch)
        except Exception as error:
            lack = machine_error(error)
            if lack is None:
                raise
        else:
            return
        self._shortages.wait_out(partial(self._work, batch), lack)

    def _take(self) -> list[T]:
        batch: list[T] = []
        weight = 0
        while weight < self._batch_limit:
            entry = self._queue.get(wait=not batch)
            if entry is None:
                break
            queued_at, item = entry
            self._waited.observe(time.monotonic() - queued_at)
            batch.append(item)
            weight += self._weigh(item)
        self._sizes.observe(weight)
        return batch


class _Queue(Generic[T]):
    """A queue of items with the times at which they were queued, bounded by their total size."""

    def __init__(self, capacity: int, size: Callable[[T], int]) -> None:
        self._capacity = capacity
        self._size = size
        self._entries: deque[tuple[float, int, T]] = deque()
        self._held = 0
        lock = threading.Lock()
        self._not_empty = threading.Condition(lock)
        self._not_full = threading.Condition(lock)

    def put(self, item: T, *, wait: bool) -> None:
        """Append an item; with ``wait`` block until there is room, else exceed the capacity."""
        came_at = time.monotonic()
        size = self._size(item)
        with self._not_full:
            if wait and self._capacity:
                self._not_full.wait_for(lambda: self._held < self._capacity)
            self._entries.append((came_at, size, item))
            self._held += size
            self._not_empty.notify()

    def get(self, *, wait: bool) -> tuple[float, T] | None:
        """Take the first item and the time at which it was queued; None if there is none and ``wait`` is False."""
        with self._not_empty:
            if wait:
                self._not_empty.wait_for(lambda: self._entries)
            if not self._entries:
                return None
            came_at, size, item = self._entries.popleft()
            self._held -= size
            # Removing a large item may make room for several small ones.
            self._not_full.notify_all()
        return came_at, item


class Turns(Generic[T]):
    """Limits the items of one key that are processed at the same time to ``limit``; the others wait in order.

    Items with a key of None never wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._under_way: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[T]] = {}

    def take(self, key: Hashable | None, item: T) -> bool:
        """Return True if the item can start now; otherwise it waits until :meth:`end` returns it."""
        if key is None:
            return True
        with self._lock:
            if self._under_way[key] < self._limit:
                self._under_way[key] += 1
                return True
            self._waiting.setdefault(key, deque()).append(item)
            return False

    def end(self, key: Hashable | None) -> T | None:
        """End one of the key's items; return the next one, if any."""
        if key is None:
            return None
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                self._under_way[key] -= 1
                if not self._under_way[key]:
                    del self._under_way[key]
                return None
            following = waiting.popleft()
            if not waiting:
                del self._waiting[key]
            return following
