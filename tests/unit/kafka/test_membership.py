"""The consumer as a member of its group: protocols, commits that are asked for, and leaving."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.inflight.offsets import Progress, read_commit
from streamer.kafka.inflight.partitions import AssignedPartition
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import TIMED_OUT, error
from tests.support.fake_kafka import GROUP, INPUT, OUTPUT

if TYPE_CHECKING:
    from tests.support.fake_consumer import FakeConsumer
    from tests.support.fake_kafka import FakeKafka

FATAL = error(KafkaError._FATAL)


class Case:
    """A membership that notes what its listeners are told."""

    def __init__(self, fake: FakeKafka, **kafka: str) -> None:
        self.fake = fake
        self.membership = GroupMembership(load({"instance_id": "one", "kafka": kafka}), RERANK, {})
        self.told: list[tuple[str, list[int]]] = []

    @property
    def consumer(self) -> FakeConsumer:
        return cast("FakeConsumer", self.membership.consumer)

    def join(self) -> None:
        def listener(kind: str) -> object:
            return lambda _, places: self.told.append((kind, [each.partition for each in places]))

        self.membership.join(
            on_assign=listener("assigned"),  # type: ignore[arg-type]
            on_revoke=listener("revoked"),  # type: ignore[arg-type]
            on_lost=listener("lost"),  # type: ignore[arg-type]
        )
        self.poll()

    def poll(self) -> None:
        for _ in range(4):
            self.consumer.poll(0.2)


@pytest.fixture
def case(fake_pair: FakeKafka) -> Case:
    return Case(fake_pair)


def partition(number: int) -> AssignedPartition:
    return AssignedPartition(INPUT, number, f"log-{number}")


def test_the_newest_protocol_is_tried_first(case: Case) -> None:
    assert (case.membership.protocol, case.consumer.properties["group.protocol"]) == ("consumer", "consumer")


def test_a_member_that_has_joined_is_assigned_its_partitions(case: Case) -> None:
    case.join()
    assert case.told == [("assigned", [0, 1])]


def test_a_protocol_that_is_refused_is_followed_by_the_next_with_a_new_client(case: Case) -> None:
    case.fake.cluster.protocols = {"classic"}
    case.join()
    first = case.consumer
    assert case.membership.fall_back(FATAL)
    case.poll()
    assert first.is_closed
    assert case.membership.protocol == "classic"
    assert case.told == [("assigned", [0, 1])]


def test_no_protocol_is_tried_twice(case: Case) -> None:
    case.join()
    assert case.membership.fall_back(FATAL)
    assert not case.membership.fall_back(FATAL)
    assert not case.consumer.is_closed


def test_a_protocol_that_the_user_has_chosen_is_the_only_one(fake: FakeKafka) -> None:
    case = Case(fake, **{"group.protocol": "consumer"})
    case.join()
    assert not case.membership.fall_back(FATAL)


def test_a_missing_privilege_is_no_reason_for_another_protocol(case: Case) -> None:
    case.join()
    why = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED).str()
    assert not case.membership.fall_back(KafkaError(KafkaError._FATAL, why))
    assert case.membership.protocol == "consumer"


def test_rejoining_leaves_the_group_first(case: Case) -> None:
    case.join()
    case.membership.rejoin()
    assert case.fake.cluster.group(GROUP).members == {}
    case.poll()
    assert case.told == [("assigned", [0, 1]), ("revoked", [0, 1]), ("assigned", [0, 1])]


def test_two_members_share_the_partitions_and_one_that_leaves_gives_them_back(case: Case) -> None:
    case.join()
    other = Case(case.fake)
    other.join()
    for _ in range(3):
        case.poll()
        other.poll()
    assert case.told[1:] == [("revoked", [1])]
    assert other.told == [("assigned", [1])]
    other.membership.close()
    case.poll()
    assert case.told[2:] == [("assigned", [1])]


def test_what_the_group_has_committed_comes_with_its_metadata(case: Case) -> None:
    progress = Progress(3, frozenset({5, 9}))
    case.fake.cluster.commit(GROUP, (INPUT, 0), progress.offset, progress.metadata("log-0"))
    found = case.membership.committed([partition(0), partition(1)])
    assert [read_commit(each, "log-0").progress for each in found] == [progress, None]


def test_nothing_is_requested_without_partitions(case: Case) -> None:
    assert case.membership.committed([]) == []
    assert case.fake.count("committed") == 0


def test_a_failed_request_for_committed_offsets_raises(case: Case) -> None:
    case.fake.fail("committed", TIMED_OUT)
    with pytest.raises(KafkaException):
        case.membership.committed([partition(0)])


def test_an_error_of_a_single_partition_is_an_error(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        error = error(KafkaError.UNKNOWN_TOPIC_OR_PART)

    monkeypatch.setattr(case.consumer, "committed", lambda *_, **__: [TopicPartition(INPUT, 1, 3), Answer()])
    with pytest.raises(KafkaException) as raised:
        case.membership.committed([partition(0), partition(1)])
    assert raised.value.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_offsets_that_an_open_transaction_holds_are_waited_for(case: Case) -> None:
    producer = case.fake.producer()
    producer.begin_transaction()
    outside = case.fake.member()
    producer.send_offsets_to_transaction([TopicPartition(INPUT, 0, 4)], outside.consumer_group_metadata(), 1)
    began = case.fake.clock.now
    with pytest.raises(KafkaException) as raised:
        case.membership.committed([partition(0)])
    assert raised.value.args[0].code() == KafkaError._TIMED_OUT
    assert case.fake.clock.now - began >= 2
    producer.commit_transaction(1)
    assert [each.offset for each in case.membership.committed([partition(0)])] == [4]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (KafkaError.GROUP_AUTHORIZATION_FAILED, f"lacks Read on the group {GROUP}"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, f"lacks Read on the topic {INPUT}"),
        (KafkaError._TIMED_OUT, "Timed out"),
    ],
)
def test_an_error_is_described_by_the_privilege_that_is_missing(case: Case, code: int, words: str) -> None:
    described = case.membership.describe(error(code))
    assert words in described
    assert OUTPUT not in described


def test_closing_the_membership_leaves_the_group(case: Case) -> None:
    case.join()
    case.membership.close()
    assert case.fake.cluster.group(GROUP).members == {}
    assert case.told[-1] == ("revoked", [0, 1])
