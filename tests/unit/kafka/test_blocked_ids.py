"""What a transactional producer does where its coordinator, or a topic, does not let it go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.events import now
from streamer.kafka import Output
from streamer.kafka.client import config
from streamer.kafka.commit import transactions
from streamer.kafka.commit.outcomes import AbortedError, Batch, OutcomeUnknownError, RestartError
from streamer.kafka.commit.transactions import Transactions
from streamer.kafka.records import InFlightRecord, Record
from streamer.settings import load
from streamer.topology import RERANK

if TYPE_CHECKING:
    from collections.abc import Callable


class Cluster:
    """What the producers of a test meet."""

    def __init__(self) -> None:
        self.blocked: set[str] = set()
        self.inits: list[str] = []
        self.init_error = KafkaError.CONCURRENT_TRANSACTIONS
        self.refuses_timestamps = False
        self.commit_answers = True
        self.time = 0.0


class FakeProducer:
    """A producer whose calls take no time but for a second in which an answer is waited for in vain."""

    def __init__(self, cluster: Cluster, properties: dict[str, Any]) -> None:
        self._cluster = cluster
        self._id = properties["transactional.id"]
        self._reports: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._reports)

    def init_transactions(self, _timeout: float) -> None:
        self._cluster.inits.append(self._id)
        if self._id in self._cluster.blocked:
            self._cluster.time += 1
            raise KafkaException(KafkaError(self._cluster.init_error, "no", retriable=True))

    def begin_transaction(self) -> None: ...

    def produce(self, _topic: str, *, on_delivery: Callable[[KafkaError | None, object], None], **_: object) -> None:
        error = KafkaError(KafkaError.INVALID_TIMESTAMP) if self._cluster.refuses_timestamps else None
        self._reports.append(lambda: on_delivery(error, None))

    def poll(self, _timeout: float) -> int:
        while self._reports:
            self._reports.pop(0)()
        return 0

    def send_offsets_to_transaction(self, _offsets: object, _metadata: object, _timeout: float) -> None: ...

    def abort_transaction(self, _timeout: float) -> None: ...

    def commit_transaction(self, _timeout: float) -> None:
        if not self._cluster.commit_answers:
            self._cluster.time += 1
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer", retriable=True))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(config, "make_client", lambda _kind, properties: FakeProducer(made, properties))
    monkeypatch.setattr(time, "monotonic", lambda: 1_000 + made.time)
    return made


@pytest.fixture
def producer(cluster: Cluster) -> Transactions:
    assert not cluster.inits
    return Transactions.of_service(load({"instance_id": "one"}), RERANK, {})


def batch() -> Batch:
    record = Record("query.results", 0, 7, key=b"q", value=b"{}", headers=(), timestamp=now())
    in_flight = InFlightRecord(record, lambda: None)
    in_flight.complete([Output("query.reranked", b"q", b"{}", ())])
    return Batch([in_flight], [TopicPartition("query.results", 0, 8)])


def init_until_ready(producer: Transactions, tries: int = 100) -> int:
    """Return how often it had to be asked."""
    for number in range(1, tries + 1):
        try:
            producer.init()
        except OutcomeUnknownError:
            continue
        return number
    raise AssertionError("never ready")


def test_an_id_whose_last_transaction_cannot_be_ended_is_left_for_another_after_a_while(
    cluster: Cluster, producer: Transactions
) -> None:
    cluster.blocked = {"streamer-rerank-one"}
    assert init_until_ready(producer) > transactions._BLOCKED_S
    assert cluster.inits[-1].startswith("streamer-rerank-one~")
    assert producer.transactional_id == cluster.inits[-1]
    producer.run(batch(), None)


def test_replacement_transactional_ids_are_never_reused(cluster: Cluster, producer: Transactions) -> None:
    taken = set()
    for _ in range(20):
        cluster.blocked.add(producer.transactional_id)
        producer.restart()
        init_until_ready(producer)
        taken.add(producer.transactional_id)
    assert len(taken) == 20
    assert all(each.count("~") == 1 for each in taken)


def test_a_producer_without_a_group_keeps_the_id_that_keeps_others_away(cluster: Cluster) -> None:
    redrive = Transactions(load({}), "streamer-dlq-query.results", role="dlq-redrive")
    cluster.blocked = {"streamer-dlq-query.results"}
    for _ in range(100):
        with pytest.raises(OutcomeUnknownError):
            redrive.init()
    assert set(cluster.inits) == {"streamer-dlq-query.results"}


def test_a_coordinator_that_does_not_answer_at_all_is_waited_for_with_the_same_id(
    cluster: Cluster, producer: Transactions
) -> None:
    cluster.blocked = {"streamer-rerank-one"}
    cluster.init_error = KafkaError._TIMED_OUT
    for _ in range(100):
        with pytest.raises(OutcomeUnknownError):
            producer.init()
    assert set(cluster.inits) == {"streamer-rerank-one"}


def test_refused_timestamps_are_described_and_the_next_transaction_begins_with_a_new_producer(
    cluster: Cluster, producer: Transactions
) -> None:
    producer.init()
    cluster.refuses_timestamps = True
    with pytest.raises(AbortedError, match=r"^query\.reranked refuses the timestamps of our records: .* clock"):
        producer.run(batch(), None)
    cluster.refuses_timestamps = False
    producer.init()
    producer.run(batch(), None)
    assert cluster.inits == ["streamer-rerank-one"] * 2


def test_a_transaction_whose_end_stays_unknown_costs_the_producer_in_the_end(
    cluster: Cluster, producer: Transactions
) -> None:
    producer.init()
    cluster.commit_answers = False
    tried = batch()
    for _ in range(int(transactions._UNKNOWN_S)):
        with pytest.raises(OutcomeUnknownError):
            producer.run(tried, None)
    with pytest.raises(RestartError):
        producer.run(tried, None)
