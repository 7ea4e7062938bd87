"""The topics that a service needs: whether they are there, may be used, and are still the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from streamer.health import Health
from streamer.kafka.watch.topics import TopicWatch
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import TIMED_OUT, error
from tests.support.fake_cluster import Log
from tests.support.fake_kafka import DEAD, INPUT, OUTPUT

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka


class Case:
    """A watch of the reranker's three topics."""

    def __init__(self, fake: FakeKafka) -> None:
        self.fake = fake
        self.health = Health(Metrics())
        self.watch = TopicWatch(load({}), RERANK, self.health)

    def look(self, seconds: float = 0.0) -> None:
        """Let time pass, then ask and take the answers."""
        self.fake.clock.sleep(seconds)
        self.watch.check()
        self.watch.check()

    @property
    def waits_for(self) -> str | None:
        return next((each for each in self.health.readiness_problems() if each.startswith("topic: ")), None)


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    return Case(fake)


def test_it_is_unready_before_the_first_request(case: Case) -> None:
    assert (case.watch.found, case.watch.topic_id) == (False, None)
    assert case.waits_for is not None


def test_topics_that_are_there_are_found_and_the_input_has_an_id(case: Case) -> None:
    case.look()
    assert case.watch.found
    assert case.watch.topic_id == case.fake.cluster.topics[INPUT].topic_id
    assert case.waits_for is None


@pytest.mark.parametrize("missing", [INPUT, OUTPUT, DEAD])
def test_a_topic_that_is_missing_is_named_with_the_command_that_makes_it(case: Case, missing: str) -> None:
    del case.fake.cluster.topics[missing]
    case.look()
    assert not case.watch.found
    assert case.waits_for == f"topic: {missing} does not exist; streamer topics apply creates it"
    case.fake.cluster.create_topic(missing)
    case.look(1)
    assert case.watch.found
    assert case.waits_for is None


def test_missing_topics_are_requested_once_a_second(case: Case) -> None:
    del case.fake.cluster.topics[DEAD]
    for _ in range(40):
        case.look(0.1)
    assert 4 * 3 <= case.fake.count("describe_topics") <= 5 * 3


def test_topics_that_were_found_are_described_again_every_three_seconds(case: Case) -> None:
    for _ in range(60):
        case.look(0.5)
    assert 9 * 3 <= case.fake.count("describe_topics") <= 11 * 3


def test_a_topic_that_is_created_again_shows_another_id_within_three_seconds(case: Case) -> None:
    case.look()
    new = case.fake.cluster.recreate_topic(INPUT)
    case.look(3.1)
    assert case.watch.topic_id == new.topic_id


@pytest.mark.parametrize(("name", "changed"), [(OUTPUT, {OUTPUT}), (DEAD, {DEAD}), (INPUT, set())])
def test_an_output_topic_that_is_created_again_is_logged_once(case: Case, name: str, changed: set[str]) -> None:
    case.look()
    case.fake.cluster.recreate_topic(name)
    with capture_logs() as logs:
        case.look(3.1)
        case.look(3.1)
    assert [each["topic"] for each in logs if "created again" in each["event"]] == list(changed)
    assert case.watch.take_changed() == changed
    assert case.watch.take_changed() == set()


def test_an_output_topic_that_is_deleted_and_comes_back_with_fewer_partitions_is_logged(case: Case) -> None:
    case.fake.cluster.create_topic(OUTPUT, 6)
    case.look()
    del case.fake.cluster.topics[OUTPUT]
    case.look(3.1)
    assert case.waits_for is not None
    case.fake.cluster.create_topic(OUTPUT, 4)
    with capture_logs() as logs:
        case.look(1.1)
    [told] = [each for each in logs if "created again" in each["event"]]
    assert (told["partitions_before"], told["partitions"]) == (6, 4)
    assert case.watch.take_changed() == {OUTPUT}


def test_partitions_that_are_added_to_an_output_topic_are_logged(case: Case) -> None:
    case.look()
    topic = case.fake.cluster.topics[OUTPUT]
    topic.logs.append(Log())
    with capture_logs() as logs:
        case.look(3.1)
    assert [each["partitions"] for each in logs if each["log_level"] == "warning"] == [2]
    assert case.watch.take_changed() == {OUTPUT}


def test_commits_wait_for_a_description_of_the_topic_but_not_for_ever(case: Case) -> None:
    case.look()
    assert case.watch.may_commit
    case.fake.held = []
    case.look(9.9)
    assert case.watch.may_commit
    case.look(0.2)
    assert not case.watch.may_commit
    case.look(10)
    assert case.watch.may_commit


def test_brokers_that_do_not_answer_say_nothing_of_topics_that_were_found(case: Case) -> None:
    case.look()
    case.fake.fail("describe_topics", TIMED_OUT, times=3)
    case.look(3.1)
    assert case.watch.found
    assert case.waits_for is None


def test_pending_requests_are_not_waited_for(case: Case) -> None:
    case.fake.held = []
    case.look()
    case.look(10)
    assert not case.watch.found
    first, *others = case.fake.held
    first()
    case.look()
    assert not case.watch.found
    for answer in others:
        answer()
    case.look()
    assert case.watch.found
    assert case.fake.count("describe_topics") == 3


def test_nothing_is_read_before_it_is_known_how_long_outputs_are_kept(case: Case) -> None:
    assert not case.watch.is_complete
    case.watch.check()
    case.fake.held = []
    case.watch.check()
    assert case.watch.found
    case.watch.check()
    assert not case.watch.is_complete
    for answer in case.fake.held:
        answer()
    case.watch.check()
    assert case.watch.is_complete


def test_an_output_that_is_missing_keeps_nothing_from_being_read(case: Case) -> None:
    del case.fake.cluster.topics[OUTPUT]
    case.look()
    assert not case.watch.found
    assert case.watch.is_complete


def test_a_request_that_times_out_is_reported_and_repeated(case: Case) -> None:
    case.fake.fail("describe_topics", TIMED_OUT)
    case.look()
    assert case.waits_for is not None
    assert "Timed out" in case.waits_for
    case.look(1)
    assert case.watch.found


@pytest.mark.parametrize(
    ("denied", "words"),
    [
        (("topic-read", INPUT), f"lacks Read on the topic {INPUT}"),
        (("topic", OUTPUT), f"lacks Write on the topic {OUTPUT}"),
        (("topic", DEAD), f"lacks Write on the topic {DEAD}"),
    ],
)
def test_a_privilege_that_is_missing_is_named_before_anything_fails_for_it(
    case: Case, denied: tuple[str, str], words: str
) -> None:
    case.fake.cluster.denied.add(denied)
    case.look()
    assert case.waits_for is not None
    assert words in case.waits_for
    assert not case.watch.found


def test_the_input_need_not_be_writable_nor_the_outputs_readable(case: Case) -> None:
    case.fake.cluster.denied |= {("topic", INPUT), ("topic-read", OUTPUT), ("topic-read", DEAD)}
    case.look()
    assert case.watch.found


def test_a_broker_that_does_not_tell_privileges_is_taken_at_its_word(case: Case) -> None:
    case.fake.cluster.denied |= {("topic", OUTPUT), ("topic-read", OUTPUT)}
    case.look()
    assert case.watch.found


def test_a_topic_that_may_not_be_described_is_named(case: Case) -> None:
    case.fake.fail("describe_topics", error(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    case.look()
    assert case.waits_for is not None
    assert f"the topic {INPUT}" in case.waits_for


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.INCONSISTENT_TOPIC_ID,
    ],
)
def test_an_error_of_the_input_topic_has_it_looked_up_again(case: Case, code: int) -> None:
    case.look()
    before = case.watch.topic_id
    assert case.watch.on_error(error(code))
    case.fake.cluster.recreate_topic(INPUT)
    case.look(1)
    assert case.watch.topic_id not in (None, before)


def test_a_refusal_of_the_input_topic_is_named_at_once(case: Case) -> None:
    case.look()
    assert case.watch.on_error(error(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert case.waits_for is not None
    assert f"lacks Read on the topic {INPUT}" in case.waits_for
    case.look(1)
    assert case.waits_for is None


def test_the_topic_watch_ignores_other_errors_of_the_consumer(case: Case) -> None:
    case.look()
    assert not case.watch.on_error(error(KafkaError._TRANSPORT))
    assert case.watch.found


def test_a_response_to_a_request_from_before_an_invalidation_is_ignored(case: Case) -> None:
    case.fake.held = []
    case.look()
    stale, case.fake.held = case.fake.held, None
    old = case.fake.cluster.topics[INPUT].topic_id
    case.watch.invalidate()
    for answer in stale:
        answer()
    case.fake.cluster.recreate_topic(INPUT)
    case.look()
    assert case.watch.found
    assert case.watch.topic_id not in (None, old)
