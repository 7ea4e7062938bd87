"""Threads with bounded queues between them: what a pipeline is made of."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamer.health import Health
    from streamer.metrics import Metrics

log = structlog.get_logger()

T = TypeVar("T")


class Stage(Generic[T]):
    """Threads that take what waits in one queue, as a batch, and work on it.

    Nothing waits for a batch to fill: under light load batches are small and quick, under a backlog they
    fill up to ``batch_limit`` (in units of ``weigh``; one item may exceed it alone). :meth:`put` blocks while
    ``capacity`` items wait, which is how a slow stage holds back the one before it.

    ``work`` gets the batch; what it raises goes to ``failed`` with each item, so that no record in flight is
    ever forgotten and no thread dies of a bad item. Threads are daemons: a stop never waits for a hung one.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[T]], None],
        *,
        failed: Callable[[T, Exception], None],
        metrics: Metrics,
        health: Health,
        threads: int = 1,
        capacity: int = 0,
        batch_limit: int = 1,
        weigh: Callable[[T], int] = lambda _item: 1,
    ) -> None:
        self._name = name
        self._work = work
        self._failed = failed
        self._batch_limit = batch_limit
        self._weigh = weigh
        self._queue: queue.Queue[tuple[float, T]] = queue.Queue(capacity)
        self._seconds = metrics.stage.labels(name)
        self._waited = metrics.queue_wait.labels(name)
        self._sizes = metrics.batch.labels(name)
        for number in range(threads):
            thread = threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            thread.start()
            health.watch(thread.name, thread.is_alive)

    def put(self, item: T) -> None:
        """Queue one item; blocks while the queue is full."""
        self._queue.put((time.monotonic(), item))

    def put_all(self, items: Iterable[T]) -> None:
        """Queue several items in their order."""
        for item in items:
            self.put(item)

    def _run(self) -> None:
        while True:
            batch = self._take()
            began = time.monotonic()
            try:
                self._work(batch)
            except Exception as error:  # noqa: BLE001 - reported with every item of the batch
                for item in batch:
                    self._failed(item, error)
            self._seconds.observe(time.monotonic() - began)

    def _take(self) -> list[T]:
        batch = [self._taken(self._queue.get())]
        weight = self._weigh(batch[0])
        while weight < self._batch_limit:
            try:
                batch.append(self._taken(self._queue.get_nowait()))
            except queue.Empty:
                break
            weight += self._weigh(batch[-1])
        self._sizes.observe(weight)
        return batch

    def _taken(self, entry: tuple[float, T]) -> T:
        queued_at, item = entry
        self._waited.observe(time.monotonic() - queued_at)
        return item
