"""On a real broker: logs that end before the group's offset, topics that are created again, mirrored commits."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streamer.kafka import FatalError
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.inflight.offsets import Progress
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from streamer.topology import RERANK
from tests.support.loops import INPUT, OUTPUT, echo, feed, read, running, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.kafka import Output, Record
    from streamer.metrics import Metrics


def settings_for(broker: LocalKafka, prefix: str = "", **kafka: str) -> Settings:
    """Return settings of an instance on a broker; its topics have one partition each."""
    made = load(
        {"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": prefix, "instance_id": "one", "kafka": kafka}
    )
    apply(made, load_specs())
    recreate(made)
    return made


def recreate(settings: Settings) -> None:
    """Delete the input topic and create it again, with one partition."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    name = settings.topic(INPUT)
    admin.delete_topics([name])[name].result(30)
    wait_until(lambda: name not in admin.list_topics(timeout=5).topics)
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    wait_until(lambda: name in admin.list_topics(timeout=5).topics)


def committed(settings: Settings) -> TopicPartition:
    """Return the group's commit; an invalid offset where a broker that has just started does not know it yet."""
    consumer = Consumer(_group(settings))
    place = TopicPartition(settings.topic(INPUT), 0)
    try:
        return consumer.committed([place], timeout=10)[0]
    except KafkaException:
        return place
    finally:
        consumer.close()


def is_committed(settings: Settings, offset: int, metadata: str = "") -> bool:
    """Commit from outside, as kafka-consumer-groups and other tools do; return whether the group takes it."""
    consumer = Consumer(_group(settings))
    place = TopicPartition(settings.topic(INPUT), 0, offset, metadata=metadata)
    try:
        consumer.commit(offsets=[place], asynchronous=False)
    except KafkaException:
        return False
    finally:
        consumer.close()
    return True


def commit(settings: Settings, offset: int, metadata: str = "") -> None:
    """Commit from outside; the group may still be emptying."""
    wait_until(lambda: is_committed(settings, offset, metadata))


def _group(settings: Settings) -> dict[str, str | bool]:
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "group.id": settings.group(RERANK.group),
        "enable.auto.commit": False,
    }


def answered(settings: Settings) -> list[str]:
    return sorted((record.key or b"").decode() for record in read(settings, OUTPUT))


def keys(*numbers: int) -> list[str]:
    return sorted(f"q{number}" for number in numbers)


def resets(settings: Settings, metrics: Metrics, reason: str) -> float:
    return value(metrics, "streamer_log_resets_total", topic=settings.topic(INPUT), reason=reason)


def lose_log(broker: LocalKafka, folder: Path, settings: Settings) -> None:
    """Restart a broker whose disk has lost the only replica of the input; ``folder`` is its data."""
    broker.stop()
    [partition] = folder.glob(f"**/{settings.topic(INPUT)}-0")
    shutil.rmtree(partition)
    broker.start()


def test_an_offset_beyond_the_end_skips_nothing(kafka: LocalKafka, topic_prefix: str) -> None:
    settings = settings_for(kafka, topic_prefix)
    commit(settings, 1_000)
    with running(settings, echo(settings)) as (metrics, *_):
        wait_until(lambda: resets(settings, metrics, "beyond_end") == 1)
        feed(settings, 20)
        wait_until(lambda: committed(settings).offset == 20)
    assert answered(settings) == keys(*range(20))


def test_a_log_whose_disk_was_lost_is_read_from_its_beginning(tmp_path: Path) -> None:
    with LocalKafka(data_dir=tmp_path) as broker:
        settings = settings_for(broker)
        feed(settings, 20)
        with running(settings, echo(settings)):
            wait_until(lambda: committed(settings).offset == 20)
        assert committed(settings).leader_epoch is not None
        lose_log(broker, tmp_path, settings)
        with running(settings, echo(settings)) as (metrics, *_):
            feed(settings, 10, start=200)
            wait_until(lambda: committed(settings).offset == 10)
            assert resets(settings, metrics, "beyond_end") == 1
        assert answered(settings) == keys(*range(20), *range(200, 210))


def test_a_log_that_was_lost_and_filled_beyond_the_offset_skips_nothing(tmp_path: Path) -> None:
    """While the service is down, and then while it runs and waits for the broker."""
    with LocalKafka(data_dir=tmp_path) as broker:
        # It reconnects later than the log is filled, so that it finds no end before its position.
        settings = settings_for(broker, **{"reconnect.backoff.ms": "2000"})
        feed(settings, 10)
        with running(settings, echo(settings)):
            wait_until(lambda: committed(settings).offset == 10)
        lose_log(broker, tmp_path, settings)
        feed(settings, 30, start=100)
        with running(settings, echo(settings)) as (metrics, *_):
            wait_until(lambda: committed(settings).offset == 30)
            assert resets(settings, metrics, "beyond_end") == 1
            lose_log(broker, tmp_path, settings)
            feed(settings, 50, start=200)
            wait_until(lambda: committed(settings).offset == 50)
            assert resets(settings, metrics, "beyond_end") == 2
        assert answered(settings) == keys(*range(10), *range(100, 130), *range(200, 250))


def test_offsets_are_set_only_while_the_group_is_empty_and_count_from_the_next_start_on(
    kafka: LocalKafka, topic_prefix: str
) -> None:
    settings = settings_for(kafka, topic_prefix)
    feed(settings, 20)
    with running(settings, echo(settings)):
        wait_until(lambda: committed(settings).offset == 20)
        assert not is_committed(settings, 5)
    commit(settings, 15)
    with running(settings, echo(settings)):
        wait_until(lambda: committed(settings).offset == 20)
    assert answered(settings) == keys(*range(20), *range(15, 20))
    feed(settings, 10, start=20)
    commit(settings, 25)
    with running(settings, echo(settings)) as (metrics, *_):
        wait_until(lambda: committed(settings).offset == 30)
        assert resets(settings, metrics, "beyond_end") == 0
    assert answered(settings) == keys(*range(20), *range(15, 20), *range(25, 30))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_topic_that_is_created_again_ends_the_service_and_its_restart_skips_nothing(
    kafka: LocalKafka, topic_prefix: str, protocol: str
) -> None:
    settings = settings_for(kafka, topic_prefix, **{"group.protocol": protocol})
    feed(settings, 20)
    with running(settings, echo(settings)) as (_, _, _, ended):
        wait_until(lambda: committed(settings).offset == 20)
        late = committed(settings)
        recreate(settings)
        feed(settings, 20, start=100)
        wait_until(lambda: bool(ended), seconds=20)
        assert isinstance(ended[0], FatalError)
    commit(settings, late.offset, late.metadata or "")  # one that was in flight lands in the new topic's offsets
    with running(settings, echo(settings)) as (metrics, *_):
        wait_until(lambda: set(keys(*range(100, 120))) <= set(answered(settings)))
        assert resets(settings, metrics, "foreign") == 1


def test_a_mirrored_commit_skips_nothing(kafka: LocalKafka, topic_prefix: str) -> None:
    settings = settings_for(kafka, topic_prefix)
    feed(settings, 20)
    commit(settings, 5, Progress(40, frozenset({42, 44})).metadata("AAAAAAAAAAAAAAAAAAAAAA-0"))
    with running(settings, echo(settings)) as (metrics, *_):
        wait_until(lambda: committed(settings).offset == 20)
        assert resets(settings, metrics, "translated") == 1
    assert answered(settings) == keys(*range(5, 20))


def test_brokers_that_take_no_metadata_hold_nothing_up() -> None:
    with LocalKafka(properties={"offset.metadata.max.bytes": "8"}) as broker:
        settings = settings_for(broker)
        feed(settings, 20)
        until = time.monotonic() + 20

        def first_is_slow(record: Record) -> Sequence[Output]:
            while record.offset == 0 and time.monotonic() < until:
                time.sleep(0.1)
            return echo(settings)(record)

        with running(settings, first_is_slow) as (metrics, *_):
            wait_until(lambda: len(answered(settings)) == 19, seconds=15)
            assert committed(settings).offset == 0
            wait_until(lambda: committed(settings).offset == 20)
            assert value(metrics, "streamer_commits_shortened_total") >= 1
        assert answered(settings) == keys(*range(20))
