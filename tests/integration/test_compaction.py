"""Compaction on a real broker while a service reads slowly."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    NewTopic,
    ResourceType,
)

from streamer.kafka import Output
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.settings import Settings, load
from tests.support.configs import alter_config
from tests.support.loops import INPUT, OUTPUT, read, running, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamer.kafka import Record
    from streamer.local_kafka.broker import LocalKafka

KEYS, ROUNDS = 5, 8
_EAGER = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.01",
    "segment.ms": "100",
    "max.compaction.lag.ms": "1000",
}
"""Compact what is not in the open segment, soon, however little it is."""
_VALUE = b"{" + b" " * 20_000 + b"}"


@contextmanager
def eager_cleaner(kafka: LocalKafka) -> Iterator[None]:
    """Let the broker look for something to compact several times a second, and not every 15 s."""
    alter = partial(
        alter_config,
        AdminClient({"bootstrap.servers": kafka.bootstrap_servers}),
        "0",
        "log.cleaner.backoff.ms",
        kind=ResourceType.BROKER,
    )
    alter("200")
    try:
        yield
    finally:
        alter(None)


def settings_for(kafka: LocalKafka, prefix: str) -> Settings:
    """Return settings of a service with a compacted input of one partition, of which it fetches little in advance."""
    kafka_properties = {
        "queued.min.messages": "1",
        "queued.max.messages.kbytes": "1",
        "fetch.message.max.bytes": "1000",
    }
    made = load(
        {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": prefix,
            "instance_id": "one",
            "kafka": kafka_properties,
        }
    )
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    name = made.topic(INPUT)
    admin.create_topics([NewTopic(name, 1, 1, config=_EAGER)])[name].result(30)
    apply(made, [spec for spec in load_specs() if spec.name != INPUT])
    return made


def test_of_what_compaction_takes_before_it_is_read_the_newest_of_each_key_is_processed(
    kafka: LocalKafka, topic_prefix: str
) -> None:
    settings = settings_for(kafka, topic_prefix)
    topic = settings.topic(INPUT)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    newest: dict[bytes, int] = {}
    written = 0

    def write(key: bytes) -> None:
        """Write one record, in a batch of its own."""
        nonlocal written
        producer.produce(topic, _VALUE, key)
        assert producer.flush(30) == 0
        newest[key] = written
        written += 1

    def is_compacted() -> bool:
        write(b"last")  # which begins another segment, so that the one before it may be compacted
        return len(read(settings, INPUT)) < KEYS * ROUNDS // 2

    go_on = threading.Event()

    def slow(record: Record) -> Sequence[Output]:
        go_on.wait(120)
        return [Output(settings.topic(OUTPUT), record.key, b"%d" % record.offset, ())]

    def processed() -> list[int]:
        return sorted(int(record.value or b"") for record in read(settings, OUTPUT))

    for number in range(KEYS * ROUNDS):
        write(b"q%d" % (number % KEYS))
    with eager_cleaner(kafka), running(settings, slow, max_records=1) as (metrics, *_):
        wait_until(lambda: value(metrics, "streamer_in_flight_records") > 0)
        wait_until(is_compacted)
        go_on.set()
        wait_until(lambda: set(newest.values()) <= set(processed()), pause=0.5)
        wait_until(lambda: value(metrics, "streamer_consumer_lag_records", topic=topic, partition="0") == 0)
        assert value(metrics, "streamer_retention_lost_offsets_total", topic=topic) == 0
    offsets = processed()
    assert offsets == sorted(set(offsets))
    assert len(offsets) < written
