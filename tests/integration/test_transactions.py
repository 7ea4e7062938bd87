"""Which faults of a real broker abort a transaction, which cost the producer, and which end the process."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from streamer.events import now
from streamer.kafka import InFlightRecord, Output
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.commit.outcomes import AbortedError, Batch, FencedError, OutcomeUnknownError, RestartError
from streamer.kafka.commit.transactions import Transactions
from streamer.kafka.records import Record
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from streamer.topology import RERANK
from tests.support.loops import read
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

GROUP, INPUT, OUTPUT = RERANK.group, RERANK.input, RERANK.output
ID_EXPIRES_MS = 3_000


@pytest.fixture(scope="module")
def forgetful_kafka() -> Iterator[LocalKafka]:
    """A broker that forgets idle transactional ids within seconds, not days, and heeds access rules."""
    properties = {
        "transactional.id.expiration.ms": str(ID_EXPIRES_MS),
        "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
        "producer.id.expiration.ms": str(ID_EXPIRES_MS),
        "producer.id.expiration.check.interval.ms": "500",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with LocalKafka(properties=properties) as broker:
        yield broker


@pytest.fixture
def settings(forgetful_kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load(
        {
            "bootstrap_servers": forgetful_kafka.bootstrap_servers,
            "topic_prefix": topic_prefix,
            "instance_id": "one",
        }
    )
    apply(made, load_specs())
    return made


def init(transactions: Transactions) -> None:
    """Initialise, however long a coordinator takes to load or to hear of changed access rules."""

    def is_done() -> bool:
        try:
            transactions.init()
        except OutcomeUnknownError:
            return False
        except RestartError:
            transactions.restart()
            return False
        return True

    wait_until(is_done, transactions.transactional_id, pause=0.2)


@pytest.fixture
def transactions(settings: Settings) -> Transactions:
    made = Transactions.of_service(settings, RERANK, {})
    init(made)
    return made


@contextmanager
def member(settings: Settings, protocol: str = "consumer") -> Iterator[Consumer]:
    """Join the group and own all partitions."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": settings.topic(GROUP),
            "group.protocol": protocol,
        }
    )
    consumer.subscribe([settings.topic(INPUT)])

    def has_joined() -> bool:
        consumer.poll(0.1)
        return bool(consumer.assignment())

    wait_until(has_joined, "an assignment", pause=0)
    try:
        yield consumer
    finally:
        consumer.close()


def batch(settings: Settings, offset: int) -> Batch:
    in_flight = InFlightRecord(Record(settings.topic(INPUT), 0, offset, b"k", b"{}", (), now()), lambda: None)
    in_flight.complete([Output(settings.topic(OUTPUT), b"k", str(offset).encode(), ())])
    return Batch([in_flight], [TopicPartition(settings.topic(INPUT), 0, offset + 1)])


def outputs(settings: Settings) -> list[bytes | None]:
    return [record.value for record in read(settings, OUTPUT)]


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_offsets_of_a_member_that_is_gone_abort_the_transaction_and_the_outputs_are_sent_again(
    settings: Settings, transactions: Transactions, protocol: str
) -> None:
    with member(settings, protocol) as consumer:
        passed: Any = consumer.consumer_group_metadata()
    with pytest.raises(AbortedError) as caught:
        transactions.run(batch(settings, 0), passed)
    assert not caught.value.rejected
    assert outputs(settings) == []
    with member(settings, protocol) as consumer:
        transactions.run(batch(settings, 0), consumer.consumer_group_metadata())
    assert outputs(settings) == [b"0"]


def test_a_transactional_id_that_the_broker_has_forgotten_is_taken_up_again(
    settings: Settings, transactions: Transactions
) -> None:
    with member(settings) as consumer:
        transactions.run(batch(settings, 0), consumer.consumer_group_metadata())
        time.sleep(ID_EXPIRES_MS / 1000 + 2)
        transactions.poll()
        with pytest.raises(RestartError):
            transactions.run(batch(settings, 1), consumer.consumer_group_metadata())
        transactions.restart()
        init(transactions)
        transactions.run(batch(settings, 1), consumer.consumer_group_metadata())
    assert outputs(settings) == [b"0", b"1"]


def test_a_second_producer_of_the_same_id_ends_the_first_for_good(
    settings: Settings, transactions: Transactions
) -> None:
    with member(settings) as consumer:
        second = Transactions.of_service(settings, RERANK, {})
        init(second)
        with pytest.raises(FencedError):
            transactions.run(batch(settings, 0), consumer.consumer_group_metadata())
        second.run(batch(settings, 0), consumer.consumer_group_metadata())
    assert outputs(settings) == [b"0"]


def test_a_fatal_error_costs_the_producer_and_a_new_one_goes_on(settings: Settings, transactions: Transactions) -> None:
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    denial = (
        ResourceType.TRANSACTIONAL_ID, transactions.transactional_id, ResourcePatternType.LITERAL,
        "User:ANONYMOUS", "*", AclOperation.ALL, AclPermissionType.DENY,
    )  # fmt: skip
    with member(settings) as consumer:
        [denied] = admin.create_acls([AclBinding(*denial)]).values()
        denied.result(10)
        with pytest.raises(RestartError, match="lacks Write on the transactional-id"):
            transactions.run(batch(settings, 0), consumer.consumer_group_metadata())
        transactions.restart()
        with pytest.raises(RestartError, match="lacks Write on the transactional-id"):
            transactions.init()
        [allowed] = admin.delete_acls([AclBindingFilter(*denial)]).values()
        allowed.result(10)
        transactions.restart()
        init(transactions)
        transactions.run(batch(settings, 0), consumer.consumer_group_metadata())
    assert outputs(settings) == [b"0"]
