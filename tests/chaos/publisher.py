"""Puts the inputs on the bus at their times, while brokers come and go."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, Message, Producer

from tests.support.driver import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.clock import Clock
    from tests.chaos.inputs import Input
    from tests.chaos.ledger import Ledger

_SERVE_S = 0.05
_DELIVERY_S = 300
"""For a record to be acknowledged or refused: brokers are away, one after the other."""
_FLUSH_S = _DELIVERY_S + 30.0
_OFTEN = {"topic.metadata.refresh.interval.ms": 2_000}
"""New partitions get records soon."""


class Publisher(threading.Thread):
    """Publishes all inputs once, in their order, each no earlier than its time on the clock of the faults.

    `clock` tells the time of the plan: events must be under way as long as something is broken. `ledger` knows which
    log a partition has when a record is written to it.
    """

    def __init__(
        self, bootstrap_servers: str, prefix: str, inputs: Sequence[Input], clock: Clock, ledger: Ledger
    ) -> None:
        super().__init__(name="publisher", daemon=True)
        self._servers = bootstrap_servers
        self._prefix = prefix
        self._inputs = [*inputs]
        self._clock = clock
        self._ledger = ledger
        self.ended_at = 0.0
        """When the last record was handed over, in true seconds."""
        self._placed: dict[int, Input] = {}
        self._errors: list[str] = []
        self._turn = threading.Lock()
        """Held while records are handed over, and by whoever wants none to be."""
        self._producer = self._make()

    def _make(self) -> Producer:
        # Idempotent: a record is never doubled, nor overtaken by a later one of its partition.
        timeout = {"message.timeout.ms": 1_000 * _DELIVERY_S}
        return Producer(
            {"bootstrap.servers": self._servers, "enable.idempotence": True, "linger.ms": 5, **_OFTEN, **timeout}
        )

    def run(self) -> None:
        """Publish; what goes wrong is told by :meth:`published`."""
        for number, each in enumerate(tuple(self._inputs)):
            while self._clock.now() < each.at:
                time.sleep(_SERVE_S)
                with self._turn:
                    self._producer.poll(0)
            with self._turn:
                self._produce(number)
        self.ended_at = self._clock.wall()

    def add(self, each: Input) -> None:
        """Publish one more input now, unless nothing is to be published for the time being; then soon."""
        with self._turn:
            self._inputs.append(each)
            self._produce(len(self._inputs) - 1)

    def _produce(self, number: int) -> None:
        record = self._inputs[number].record
        self._producer.produce(
            self._prefix + record.topic,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
            on_delivery=partial(self._delivered, number),
        )
        self._producer.poll(0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Publish nothing, with all that was handed over acknowledged; go on with a new producer.

        What a producer knows of a log does not hold for the next one. Raises TimeoutError.
        """
        with self._turn:
            if self._producer.flush(_FLUSH_S):
                raise TimeoutError("some records are not acknowledged")
            try:
                yield
            finally:
                self._producer = self._make()

    def published(self) -> list[Input]:
        """Return the inputs with their places in the log, once all are acknowledged."""
        self.join()
        with self._turn:
            self._producer.flush(_FLUSH_S)
        assert not self._errors, f"{len(self._errors)} records were not taken: {self._errors[0]}"
        assert len(self._placed) == len(self._inputs), "some records were never acknowledged"
        return [self._placed[number] for number in range(len(self._inputs))]

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors.append(error.str())
            return
        if message.offset() is None:
            # A broker answered a repeated request that it has the batch already: where it has it, nobody says.
            self._errors.append("a record was acknowledged without its offset")
            return
        each = self._inputs[number]
        _, partition, offset = place_of(message)
        placed = each.placed(partition, offset, self._ledger.generation(each.record.topic, partition))
        self._placed[number] = replace(placed, published_at=message.timestamp()[1] / 1_000)
