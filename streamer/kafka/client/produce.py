"""One record given to a producer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message, Producer

    from streamer.kafka.records import Output

_NOW = 0
"""The timestamp by which the client takes the current time."""


def enqueue(producer: Producer, output: Output, delivered: Callable[[KafkaError | None, Message], None]) -> None:
    """Give one record to a producer, waiting while its queue is full.

    ``delivered`` is its delivery report. Raises :class:`KafkaException` where the client itself refuses it.
    """
    while True:
        try:
            producer.produce(
                output.topic,
                value=output.value,
                key=output.key,
                partition=output.partition,
                headers=list(output.headers),
                timestamp=output.timestamp or _NOW,
                on_delivery=delivered,
            )
        except BufferError:
            producer.poll(0.1)
        else:
            return
