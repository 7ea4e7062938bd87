"""A consume loop in a thread, what it works with, and what the tests of it feed and read."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from confluent_kafka import IsolationLevel

from streamer.health import Health
from streamer.kafka import FatalError, InFlightRecord, Loop, Output, Stop
from streamer.kafka.readers.publish import publish
from streamer.kafka.readers.topic_reader import ReadError, TopicReader
from streamer.metrics import Metrics
from streamer.topology import READER, RERANK
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamer.kafka import Record
    from streamer.settings import Settings
    from streamer.topology import Service

INPUT, OUTPUT = RERANK.input, RERANK.output

Running = tuple[Metrics, Health, Stop, list[Any]]
"""What a test sees of a loop: its metrics, its health, the wish to stop it, and how it ended."""


class Threads:
    """A pipeline that gives each record to ``work`` in threads of its own; what it returns is the outputs."""

    def __init__(self, work: Callable[[Record], Sequence[Output]], *, threads: int = 8) -> None:
        self._work = work
        self._waiting: list[InFlightRecord] = []
        self._closed = False
        self._condition = threading.Condition()
        for _ in range(threads):
            threading.Thread(target=self._run, daemon=True).start()

    def submit(self, works: Sequence[InFlightRecord]) -> None:
        with self._condition:
            self._waiting += works
            self._condition.notify_all()

    def close(self) -> None:
        """End the threads: as long as they wait, whatever they can reach stays, with the clients of Kafka."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                work = self._waiting.pop(0)
            work.complete(self._work(work.record))


@contextmanager
def running(
    settings: Settings,
    work: Callable[[Record], Sequence[Output]],
    *,
    max_records: int = 500,
    service: Service = RERANK,
    health: Health | None = None,
    metrics: Metrics | None = None,
) -> Iterator[Running]:
    """Run a loop in a thread; on exit stop it and wait for its end. The list receives how it ended."""
    metrics = metrics or Metrics()
    health = health or Health(metrics)
    stop = Stop()
    ended: list[Any] = []
    loop = Loop(
        settings,
        service,
        max_records=max_records,
        metrics=metrics,
        health=health,
    )

    threads = Threads(work)

    def run() -> None:
        try:
            ended.append(loop.run(threads, stop))
        except FatalError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield metrics, health, stop, ended
    finally:
        stop.set()
        thread.join(60)
        threads.close()
        assert not thread.is_alive()


def feed(settings: Settings, count: int, *, start: int = 0, size: int = 2) -> None:
    value = b"{" + b" " * (size - 2) + b"}"
    publish(
        settings,
        (Output(settings.topic(INPUT), f"q{start + i}".encode(), value, (("ce_id", b"1"),)) for i in range(count)),
    )


def echo(settings: Settings, output: str = OUTPUT) -> Callable[[Record], Sequence[Output]]:
    return lambda record: [Output(settings.topic(output), record.key, b"out", ())]


def slowly(settings: Settings) -> Callable[[Record], Sequence[Output]]:
    def work(record: Record) -> Sequence[Output]:
        time.sleep(0.02)
        return echo(settings)(record)

    return work


def read(settings: Settings, *topics: str) -> list[Record]:
    """Read all that is committed in these topics; a transaction that is open now is waited for.

    Brokers that a test has stopped may still be on their way back.
    """
    records: list[Record] = []

    def is_read() -> bool:
        records.clear()
        with suppress(ReadError):
            for topic in topics:
                records.extend(_read(settings, settings.topic(topic)))
            return True
        return False

    wait_until(is_read, "the topics to be readable")
    return records


def _read(settings: Settings, name: str) -> Iterator[Record]:
    with closing(TopicReader(settings, name, READER)) as reader:
        for span in reader.spans(IsolationLevel.READ_UNCOMMITTED):
            yield from reader.records(span)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0
