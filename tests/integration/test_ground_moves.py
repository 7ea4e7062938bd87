"""What is done to groups and logs from outside while a service runs, or before it reads: on a real broker."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from streamer.kafka import Output
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.readers.publish import publish
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from streamer.topology import EMBED
from tests.support.loops import INPUT, OUTPUT, echo, feed, read, running, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streamer.health import Health


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix, "instance_id": "one"})
    apply(made, load_specs())
    return made


def is_ready(health: Health) -> bool:
    """Say whether nothing is waited for but the start, which a loop by itself does not have."""
    return health.readiness_problems() == ["start: starting"]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_offsets_of_a_group_with_members_cannot_be_set(settings: Settings, protocol: str) -> None:
    settings = settings.model_copy(update={"kafka": {"group.protocol": protocol}})
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    target = TopicPartition(settings.topic(INPUT), 0, 0)
    reset = ConsumerGroupTopicPartitions(settings.group("streamer-rerank"), [target])
    with running(settings, echo(settings)) as (metrics, health, _, ended):
        wait_until(lambda: is_ready(health))
        feed(settings, 50)
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 50)
        assert _refusal(admin, reset) in {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP}
        feed(settings, 20, start=50)
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 70)
    assert ended == [True]
    expected = Counter(f"q{number}".encode() for number in range(70))
    assert Counter(record.key for record in read(settings, OUTPUT)) == expected


def _refusal(admin: AdminClient, reset: ConsumerGroupTopicPartitions) -> int | None:
    """Try to set a group's offset; return the code of the error, None where there is none."""
    try:
        [done] = admin.alter_consumer_group_offsets([reset])[reset.group_id].result(10).topic_partitions
    except KafkaException as error:
        return int(error.args[0].code())
    return int(done.error.code()) if done.error is not None else None


def test_compaction_before_a_slow_reader_leaves_the_newest_upload_of_each_clip(topic_prefix: str) -> None:
    properties = {"log.cleaner.backoff.ms": "200"}
    with LocalKafka(properties=properties) as kafka:
        settings = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix})
        apply(settings, load_specs())
        topic = settings.topic(EMBED.input)
        _configure(settings, topic, {"min.cleanable.dirty.ratio": "0.01", "segment.ms": "500"})

        def upload(clip: int, version: int) -> Output:
            return Output(topic, f"c{clip}".encode(), b"version %d" % version, ())

        publish(settings, (upload(clip, version) for version in range(5) for clip in range(40)))
        # A segment is closed by the first record that comes when its time is over, and only closed ones are compacted.
        markers = (Output(topic, b"marker %d" % number, b"", ()) for number in range(400))

        def is_compacted() -> bool:
            publish(settings, [next(markers)])
            left = Counter(record.key for record in read(settings, EMBED.input, patience=0.5))
            return sum(count for key, count in left.items() if key and key.startswith(b"c")) < 60

        wait_until(is_compacted, seconds=60, pause=0.3)
        seen: list[tuple[bytes | None, bytes | None]] = []

        def work(record: object) -> list[Output]:
            seen.append((record.key, record.value))  # type: ignore[attr-defined]
            return []

        with running(settings, work, service=EMBED) as (_, health, _, ended):
            wait_until(lambda: is_ready(health))
            wait_until(lambda: {(f"c{clip}".encode(), b"version 4") for clip in range(40)} <= set(seen))
        assert ended == [True]
        uploads = [each for each in seen if each[0] and each[0].startswith(b"c")]
        assert len(uploads) < 60
        assert len(uploads) == len(set(uploads))


def _configure(settings: Settings, topic: str, values: dict[str, str]) -> None:
    entries = [ConfigEntry(name, text, incremental_operation=AlterConfigOpType.SET) for name, text in values.items()]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(10)
