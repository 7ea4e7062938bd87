"""An instance for which no partition is left is ready once its group is stable."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError

import streamer
from streamer.health import Health
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.watch.surplus import SurplusWatch
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import error

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka

ASKS_THE_COORDINATOR = {
    "describe_consumer_groups",
    "list_consumer_group_offsets",
    "alter_consumer_group_offsets",
    "delete_consumer_group_offsets",
    "delete_consumer_groups",
}
"""Calls of AdminClient in which librdkafka 2.16 aborts the process if the coordinator's connection fails."""


class Case:
    """An instance that waits for partitions, a member of its group since generation 3."""

    def __init__(self, fake: FakeKafka) -> None:
        self.fake = fake
        self.health = Health(Metrics())
        self.health.not_ready("assignment", "no partitions assigned yet")
        self.generation = 3
        settings = load({"instance_id": "me"})
        self.group = settings.group(RERANK.group)
        self.watch = SurplusWatch(settings, RERANK, self.health, lambda: self.generation)

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
    case.fake.group_states = {case.group: ConsumerGroupState.STABLE}
    assert not case.is_ready_after(1)
    assert case.is_ready_after(5)
    asked = case.fake.count("list_consumer_groups")
    assert case.is_ready_after(60)
    assert case.fake.count("list_consumer_groups") == asked


@pytest.mark.parametrize("state", [*ConsumerGroupState, None])
def test_an_instance_without_partitions_is_unready_while_it_may_still_get_one(
    case: Case, state: ConsumerGroupState | None
) -> None:
    case.fake.group_states = {"another group": ConsumerGroupState.STABLE}
    if state is not None:
        case.fake.group_states[case.group] = state
    assert case.is_ready_after(30) == (state is ConsumerGroupState.STABLE)


@pytest.mark.parametrize("generation", [-1, 0])
def test_a_stable_group_does_not_make_an_instance_ready_that_is_not_its_member(case: Case, generation: int) -> None:
    case.fake.group_states = {case.group: ConsumerGroupState.STABLE}
    case.generation = generation
    assert not case.is_ready_after(30)
    case.generation = 4
    assert case.is_ready_after(5)


def test_a_state_that_was_requested_before_it_joined_again_does_not_count(case: Case) -> None:
    case.fake.group_states = {case.group: ConsumerGroupState.STABLE}
    case.fake.held = []
    assert not case.is_ready_after(3)
    [answer] = case.fake.held
    case.fake.held = None
    answer()
    case.generation = 5
    case.fake.group_states = {case.group: ConsumerGroupState.PREPARING_REBALANCING}
    assert not case.is_ready_after(30)


def test_surplus_check_repeats_the_request_after_an_error(case: Case) -> None:
    case.fake.group_states = {case.group: ConsumerGroupState.STABLE}
    case.fake.fail("list_consumer_groups", error(KafkaError.CLUSTER_AUTHORIZATION_FAILED), times=3)
    assert not case.is_ready_after(6)
    assert case.is_ready_after(6)


def test_an_instance_with_partitions_requests_no_group_description(case: Case) -> None:
    case.is_ready_after(30, assigned=1)
    assert case.fake.count("list_consumer_groups") == 0


def test_the_generation_of_a_real_client_that_has_not_joined_is_that_of_no_member() -> None:
    membership = GroupMembership(load({"instance_id": "me", "bootstrap_servers": "127.0.0.1:1"}), RERANK, {})
    try:
        assert membership.consumer.consumer_group_metadata().startswith(b"CGMDv2:"), "another serialization: look anew"
        assert membership.generation == -1
    finally:
        membership.close()


def test_no_module_asks_a_coordinator_as_an_administrator() -> None:
    """All brokers at once away, and back: two of two embedders that described their group were aborted."""
    found = [
        f"{path}:{node.lineno}: {node.attr}"
        for path in Path(streamer.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ASKS_THE_COORDINATOR
    ]
    assert not found
