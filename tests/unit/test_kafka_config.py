from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer

from streamer.kafka.client import config
from streamer.settings import SettingsError, load
from streamer.topology import EMBED, TOP
from tests.support.murmur2 import murmur2


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max.poll.interval.ms": "10000"},
        {"max.poll.interval.ms": "10000", "group.protocol": "consumer"},
        {"session.timeout.ms": "400000", "max.poll.interval.ms": "500000"},
    ],
    ids=str,
)
def test_whoever_joins_no_group_can_be_made_of_any_services_settings(given: dict[str, str]) -> None:
    settings = load({"kafka": given})
    for properties in (config.peeker(settings, EMBED), config.reader(settings, TOP.group)):
        config.make_client(Consumer, properties).close()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"receive.message.max.bytes": "2000000000"},
        {"fetch.max.bytes": "1500000000"},
        {"message.max.bytes": "900000000"},
        {"message.max.bytes": "1000000000", "fetch.max.bytes": "2147483135"},
        {"fetch.message.max.bytes": "7000000", "max.partition.fetch.bytes": "7000000"},
    ],
    ids=str,
)
def test_a_consumer_of_larger_buffers_can_be_made_beside_any_limits_of_the_services_own(given: dict[str, str]) -> None:
    properties = config.recoverer(load({"kafka": given}), EMBED)
    config.make_client(Consumer, properties).close()
    assert properties["fetch.message.max.bytes"] == 1
    assert properties["receive.message.max.bytes"] >= max(
        int(given.get("receive.message.max.bytes", 0)), 3 * (128 << 20)
    )


def test_the_check_that_makes_the_client_lose_its_position_cannot_be_switched_on() -> None:
    with pytest.raises(SettingsError, match=r"check\.crcs cannot be set"):
        config.recoverer(load({"kafka": {"check.crcs": "true"}}), EMBED)


@pytest.mark.parametrize(
    ("key", "partition"),
    # Of Kafka's own UtilsTest.testMurmur2: 21 is -973932308, foobar -790332482, and so on.
    [(b"21", -973_932_308), (b"foobar", -790_332_482), (b"a-little-bit-long-string", -985_981_536)],
)
def test_the_tests_murmur2_is_kafkas(key: bytes, partition: int) -> None:
    assert murmur2(key) == partition % 2**32


def test_every_producer_of_ours_takes_javas_partitioner_and_makes_no_topics() -> None:
    settings = load({})
    for properties in (config.producer(settings, "id"), config.publisher(settings)):
        assert properties["partitioner"] == "murmur2_random"
        assert properties["allow.auto.create.topics"] is False
        config.make_client(Producer, properties)


def test_a_users_own_partitioner_wins() -> None:
    settings = load({"kafka": {"partitioner": "consistent_random"}})
    assert config.producer(settings, "id")["partitioner"] == "consistent_random"
    assert config.publisher(settings)["partitioner"] == "consistent_random"
