"""Our topics as applications beside us see them: joined by key, by event time, and made by nobody but an operator."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    NewTopic,
)

from streamer.codec import JSON
from streamer.events import QueryResults, now
from streamer.health import Health
from streamer.kafka import InFlightRecord, Loop, Output, Stop
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply, copartitioning_warnings
from streamer.kafka.commit.outcomes import AbortedError, Batch, OutcomeUnknownError
from streamer.kafka.commit.transactions import Transactions
from streamer.kafka.readers.publish import PublishError, publish
from streamer.local_kafka.broker import LocalKafka
from streamer.method import FixedPolicy
from streamer.metrics import Metrics
from streamer.reranker import QueryVectors, Reranker
from streamer.settings import Settings, load
from streamer.store import open_store
from streamer.topology import RERANK
from tests.support.configs import alter_config
from tests.support.encoders import AxisEncoder
from tests.support.kafka_streams import java_partitions, joined_pairs
from tests.support.loops import INPUT, OUTPUT, echo, feed, read, running, value
from tests.support.murmur2 import partition_of
from tests.support.outside import create_again
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import Record
    from streamer.store import Store

PARTITIONS = 12
FEWER = 8
KEYS = 60


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix, "instance_id": "one"})
    apply(made, load_specs())
    return made


def test_javas_own_partitioner_agrees_with_the_tests() -> None:
    keys = ["q", "query-1", "赤い自転車", "x" * 500, *(f"q{i}" for i in range(50))]
    assert java_partitions(keys, PARTITIONS) == [partition_of(key.encode(), PARTITIONS) for key in keys]


def test_outputs_and_published_records_lie_where_javas_partitioner_puts_their_key(settings: Settings) -> None:
    feed(settings, KEYS)
    with running(settings, echo(settings)):
        wait_until(lambda: len(read(settings, OUTPUT)) == KEYS)
    for topic in (INPUT, OUTPUT):
        records = read(settings, topic)
        assert [each.partition for each in records] == [partition_of(each.key or b"", PARTITIONS) for each in records]


def test_topics_of_different_partition_counts_are_warned_of(settings: Settings) -> None:
    assert copartitioning_warnings(settings) == []
    names = settings.topic(OUTPUT), settings.topic(INPUT)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    admin.delete_topics([names[0]])[names[0]].result()
    wait_until(lambda: names[0] not in admin.list_topics().topics)
    assert copartitioning_warnings(settings) == []
    admin.create_topics([NewTopic(names[0], 3, 1)])[names[0]].result()
    wait_until(lambda: copartitioning_warnings(settings) != [])
    [warning] = copartitioning_warnings(settings)
    assert f"{names[1]} has 12 partitions and {names[0]} 3" in warning


def test_a_streams_application_joins_every_answer_with_its_question_also_on_a_replay_an_hour_later(
    settings: Settings, tmp_path: Path
) -> None:
    hour_ago = round(time.time() * 1_000) - 3_600_000
    store = open_store(f"lmdb:{tmp_path}", model_id="axes", dim=4, precision="float32")
    with closing(store), answering(settings, store) as metrics:
        publish(settings, (question(settings, f"q{i}", hour_ago + i * 1_000) for i in range(KEYS)))
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == KEYS)
    asked, answered = ({each.key: each for each in read(settings, topic)} for topic in (INPUT, OUTPUT))
    assert len(asked) == len(answered) == KEYS
    for key, answer in answered.items():
        assert answer.partition == asked[key].partition
        assert answer.timestamp_ms == asked[key].timestamp_ms
        assert dict(answer.headers)["content-type"] == b"application/json"
    # No window of five seconds of event time holds what was asked an hour ago and anything of now.
    pairs = joined_pairs(
        settings.bootstrap_servers,
        f"{settings.topic('join')}",
        settings.topic(INPUT),
        settings.topic(OUTPUT),
        window_ms=5_000,
        wanted=KEYS,
    )
    assert pairs == KEYS


def question(settings: Settings, query_id: str, at_ms: int) -> Output:
    event = QueryResults(query_id=query_id, query="axis 0", engine="e", issued_at=now(), results=[])
    return Output(settings.topic(INPUT), query_id.encode(), JSON.encode(event), (), timestamp=at_ms)


@contextmanager
def answering(settings: Settings, store: Store) -> Iterator[Metrics]:
    """Run the reranker's own pipeline in a loop."""
    metrics = Metrics()
    health = Health(metrics)
    loop = Loop(settings, RERANK, max_records=500, metrics=metrics, health=health)
    pipeline = Reranker(
        settings,
        FixedPolicy(settings.method),
        codec=JSON,
        queries=QueryVectors(AxisEncoder(4, RuntimeError("poison")), 100),
        model_id="axes",
        store=store,
        metrics=metrics,
        health=health,
    )
    stop = Stop()
    thread = threading.Thread(target=loop.run, args=(pipeline, stop), daemon=True)
    thread.start()
    try:
        yield metrics
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("config", "limit_ms", "why"),
    [("message.timestamp.before.max.ms", 60_000, "refused"), ("retention.ms", 3_600_000, "retention")],
)
def test_a_time_that_a_topic_does_not_take_or_keep_becomes_the_current_one(
    settings: Settings, config: str, limit_ms: int, why: str
) -> None:
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    alter_config(admin, settings.topic(OUTPUT), config, str(limit_ms))
    old = round(time.time() * 1_000) - 3_600_000

    def work(record: Record) -> list[Output]:
        return [Output(settings.topic(OUTPUT), record.key, b"out", (), timestamp=old)]

    feed(settings, KEYS)
    with running(settings, work) as (metrics, *_):
        wait_until(
            lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == KEYS, seconds=60
        )
    answers = read(settings, OUTPUT)
    assert {answer.key for answer in answers} == {b"q%d" % i for i in range(KEYS)}
    assert len(answers) == KEYS
    assert all(answer.timestamp_ms > old + 3_000_000 for answer in answers)
    assert value(metrics, "streamer_outputs_retimed_total", topic=settings.topic(OUTPUT), reason=why) == KEYS


def commit_outputs(transactions: Transactions, records: Sequence[Record], settings: Settings) -> None:
    """Commit an output of each record, however often that takes."""
    batch = []
    for record in records:
        batch.append(InFlightRecord(record, lambda: None))
        batch[-1].complete(echo(settings)(record))

    def is_committed() -> bool:
        try:
            transactions.init()
            transactions.run(Batch(batch))
        except (AbortedError, OutcomeUnknownError):
            return False
        return True

    wait_until(is_committed)


def test_keys_are_divided_among_the_partitions_of_an_output_that_was_created_again(settings: Settings) -> None:
    feed(settings, KEYS)
    records = read(settings, INPUT)
    transactions = Transactions.of_service(settings, RERANK, {})
    commit_outputs(transactions, records, settings)
    create_again(settings, OUTPUT, FEWER)
    transactions.renew()
    commit_outputs(transactions, records, settings)
    placed = {each.key: each.partition for each in read(settings, OUTPUT)}
    assert placed == {each.key: partition_of(each.key or b"", FEWER) for each in records}


@pytest.fixture
def eager() -> Iterator[LocalKafka]:
    """Start a broker that makes each topic that a client asks for."""
    with LocalKafka(properties={"auto.create.topics.enable": "true"}) as broker:
        yield broker


def test_no_client_of_ours_makes_a_topic(eager: LocalKafka) -> None:
    settings = load({"bootstrap_servers": eager.bootstrap_servers, "kafka": {"message.timeout.ms": "3000"}})
    admin = AdminClient({"bootstrap.servers": eager.bootstrap_servers})
    with pytest.raises(PublishError):
        publish(settings, [Output(settings.topic(INPUT), b"k", b"{}", ())])
    with running(settings, echo(settings)):
        time.sleep(3)
    assert {INPUT, OUTPUT}.isdisjoint(admin.list_topics().topics)
    # The broker does make them for a client that asks.
    other = Producer({"bootstrap.servers": eager.bootstrap_servers})
    other.produce(INPUT, b"{}")
    assert other.flush(10) == 0
    assert INPUT in admin.list_topics().topics
