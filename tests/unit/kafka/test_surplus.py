"""An instance for which no partition is left is ready once its group is stable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError

from streamer.health import Health
from streamer.kafka.watch.surplus import SurplusWatch
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import error

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka

ME, OTHER = "streamer-rerank-me", "streamer-rerank-other"


class Case:
    """An instance that waits for partitions."""

    def __init__(self, fake: FakeKafka) -> None:
        self.fake = fake
        self.health = Health(Metrics())
        self.health.not_ready("assignment", "no partitions assigned yet")
        self.watch = SurplusWatch(load({"instance_id": "me"}), RERANK, self.health)

    def is_ready_after(self, seconds: float, *, assigned: int = 0) -> bool:
        end = self.fake.clock.now + seconds
        while self.fake.clock.now < end:
            self.watch.tick(assigned=assigned)
            self.fake.clock.sleep(0.1)
        return self.health.is_ready("assignment")


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    return Case(fake)


def test_a_member_of_a_stable_group_without_partitions_is_ready(case: Case) -> None:
    case.fake.described = {ME: (0, 0), OTHER: (3, 3)}
    assert not case.is_ready_after(1)
    assert case.is_ready_after(5)
    asked = case.fake.count("describe_consumer_groups")
    assert case.is_ready_after(60)
    assert case.fake.count("describe_consumer_groups") == asked


@pytest.mark.parametrize(
    ("described", "state"),
    [
        ({OTHER: (3, 3)}, ConsumerGroupState.STABLE),
        ({ME: (0, 1), OTHER: (3, 2)}, ConsumerGroupState.STABLE),
        ({ME: (1, 0), OTHER: (2, 0)}, ConsumerGroupState.STABLE),
        ({ME: (0, 0), OTHER: (0, 0)}, ConsumerGroupState.STABLE),
        ({ME: (0, 0), OTHER: (3, 3)}, ConsumerGroupState.PREPARING_REBALANCING),
        ({}, ConsumerGroupState.DEAD),
    ],
    ids=["no member", "will have one", "has one", "nobody has any", "rebalancing", "no group"],
)
def test_an_instance_without_partitions_is_unready_while_it_may_still_get_one(
    case: Case, described: dict[str, tuple[int, int]], state: ConsumerGroupState
) -> None:
    case.fake.described, case.fake.group_state = described, state
    assert not case.is_ready_after(30)


def test_surplus_check_repeats_the_request_after_an_error(case: Case) -> None:
    case.fake.described = {ME: (0, 0), OTHER: (3, 3)}
    case.fake.fail("describe_consumer_groups", error(KafkaError.GROUP_AUTHORIZATION_FAILED), times=3)
    assert not case.is_ready_after(6)
    assert case.is_ready_after(6)


def test_an_instance_with_partitions_requests_no_group_description(case: Case) -> None:
    case.is_ready_after(30, assigned=1)
    assert case.fake.count("describe_consumer_groups") == 0
