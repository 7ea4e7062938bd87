"""Puts the inputs on the bus at their times, while brokers come and go."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, Message, Producer

from tests.support.driver import place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.clock import Clock
    from tests.chaos.inputs import Input

_SERVE_S = 0.05
_FLUSH_S = 60.0


class Publisher(threading.Thread):
    """Publishes all inputs once, in their order, each no earlier than its time on the clock of the faults.

    `clock` tells the time of the plan: events must be under way as long as something is broken.
    """

    def __init__(self, bootstrap_servers: str, prefix: str, inputs: Sequence[Input], clock: Clock) -> None:
        super().__init__(name="publisher", daemon=True)
        self._prefix = prefix
        self._inputs = inputs
        self._clock = clock
        self.ended_at = 0.0
        """When the last record was handed over, in true seconds."""
        self._placed: dict[int, Input] = {}
        self._errors: list[str] = []
        # Idempotent: a record is never doubled, nor overtaken by a later one of its partition.
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "linger.ms": 5})

    def run(self) -> None:
        """Publish; what goes wrong is told by :meth:`published`."""
        for number, each in enumerate(self._inputs):
            while self._clock.now() < each.at:
                self._producer.poll(_SERVE_S)
            record = each.record
            self._producer.produce(
                self._prefix + record.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                on_delivery=partial(self._delivered, number),
            )
            self._producer.poll(0)
        self.ended_at = self._clock.wall()
        self._producer.flush(_FLUSH_S)

    def published(self) -> list[Input]:
        """Return the inputs with their places in the log, once all are acknowledged."""
        self.join()
        assert not self._errors, f"{len(self._errors)} records were not taken: {self._errors[0]}"
        assert len(self._placed) == len(self._inputs), "some records were never acknowledged"
        return [self._placed[number] for number in range(len(self._inputs))]

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors.append(error.str())
        else:
            self._placed[number] = self._inputs[number].placed(*place_of(message)[1:])
