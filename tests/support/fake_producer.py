"""confluent_kafka's Producer over :mod:`tests.support.fake_cluster`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tests.support.fake_client import Client, FakeMessage, error
from tests.support.fake_cluster import Committed, Outcome, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message

    from tests.support.fake_cluster import Place, Produced
    from tests.support.fake_consumer import GroupMetadata
    from tests.support.fake_kafka import FakeKafka

T = TypeVar("T")

_REFRESH_S = 10.0
"""How often a producer looks up a topic's partitions by itself."""


class FakeProducer(Client):
    """A producer, transactional where it has a transactional.id."""

    def __init__(self, kafka: FakeKafka, properties: dict[str, Any]) -> None:
        super().__init__(kafka, properties)
        self._id = str(properties.get("transactional.id", ""))
        self._epoch = -1
        self._state = "new"
        self._transaction: Transaction | None = None
        self._fatal: KafkaError | None = None
        self._abortable: KafkaError | None = None
        self._queue: list[tuple[Place, Produced, Any]] = []
        self._partitions: dict[str, int] = {}
        """How many partitions it knows a topic to have, and when it looked that up."""
        self._looked_up: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def _expect(self, *states: str) -> None:
        if self._fatal is not None:
            raise KafkaException(self._fatal)
        if self._state not in states:
            raise KafkaException(KafkaError(KafkaError._STATE, f"not in state {self._state}"))

    def _transact(self, call: str, action: Callable[[], T], timeout: float) -> T:
        try:
            return self._request(call, action, timeout)
        except KafkaException as raised:
            cause: KafkaError = raised.args[0]
            if cause.fatal():
                self._fatal = cause
            elif cause.txn_requires_abort():
                self._abortable = cause
            raise

    def init_transactions(self, timeout: float) -> None:
        self._expect("new")

        def init() -> None:
            self._epoch = self.cluster.init_transactions(self._id)

        self._transact("init_transactions", init, timeout)
        self._state = "ready"

    def begin_transaction(self) -> None:
        self._live()
        self._expect("ready")
        self.kafka.calls.append((self.name, "begin_transaction"))
        self._state = "open"
        self._abortable = None
        self._transaction = None

    def _opened(self) -> Transaction:
        if self._transaction is None:
            self._transaction = self.cluster.begin(self._id, self._epoch)
        return self._transaction

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp: int = 0,
        on_delivery: Callable[[KafkaError | None, Message], None] | None = None,
    ) -> None:
        if self._id:
            self._expect("open")
        size = len(value or b"") + len(key or b"")
        if size > int(self.properties.get("message.max.bytes", 1_000_000)):
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "larger than message.max.bytes"))

        def enqueue() -> None:
            if self.cluster.clock.now - self._looked_up.get(topic, -math.inf) >= _REFRESH_S:
                self._look_up(topic)
            partitions = self._partitions.get(topic, 1)
            place = topic, partition if partition >= 0 else sum(key or b"") % partitions
            self._queue.append((place, (key, value, tuple(headers), timestamp / 1_000 or None), on_delivery))

        self._request("produce", enqueue, 0)

    def list_topics(self, topic: str, timeout: float) -> None:
        self._request("list_topics", lambda: self._look_up(topic), timeout)

    def _look_up(self, topic: str) -> None:
        if topic in self.cluster.topics:
            self._partitions[topic] = len(self.cluster.topics[topic].logs)
            self._looked_up[topic] = self.cluster.clock.now

    def poll(self, timeout: float) -> int:
        self._live()
        if any(fault.call == "poll" and fault.fired < fault.times for fault in self.kafka.faults):
            self._request("poll", lambda: None, timeout)
        self._serve_errors()
        served = self._transmit()
        if not served:
            self.cluster.clock.sleep(timeout)
        return served

    def _transmit(self) -> int:
        """Send what is queued, a batch for each partition, and report the deliveries; returns how many."""
        if self.cluster.down or not self._queue:
            return 0
        batches: dict[Place, list[tuple[Produced, Any]]] = {}
        for place, record, on_delivery in self._queue:
            batches.setdefault(place, []).append((record, on_delivery))
        count, self._queue = len(self._queue), []
        for place, batch in batches.items():
            problem = self._send(place, [record for record, _ in batch])
            for _, on_delivery in batch:
                if on_delivery is not None:
                    on_delivery(problem, cast("Message", FakeMessage(*place)))
        return count

    def _send(self, place: Place, records: list[Produced]) -> KafkaError | None:
        def append() -> None:
            self.cluster.append(self._opened() if self._id else None, place, records)

        try:
            self._transact("send", append, 0)
        except KafkaException as raised:
            cause: KafkaError = raised.args[0]
            if self._id and not cause.fatal():
                self._abortable = error(cause.code(), abortable=True)
            return cause
        return None

    def flush(self, timeout: float = 0) -> int:
        self.poll(timeout)
        return len(self)

    def send_offsets_to_transaction(
        self, offsets: list[TopicPartition], metadata: GroupMetadata, timeout: float
    ) -> None:
        self._expect("open")
        if self._abortable is not None:
            raise KafkaException(self._abortable)
        sent = {
            (each.topic, each.partition): Committed(
                each.offset,
                each.metadata or "",
                leader_epoch=None if each.leader_epoch in (None, -1) else each.leader_epoch,
            )
            for each in offsets
        }

        def send() -> None:
            self.cluster.add_offsets(self._opened(), metadata.group, (metadata.member, metadata.epoch), sent)

        self._transact("send_offsets", send, timeout)

    def commit_transaction(self, timeout: float) -> None:
        self._expect("open", "committing")
        if self._state == "open":
            self._transmit()
            if self._abortable is not None:
                raise KafkaException(self._abortable)
        self._state = "committing"
        self._end("commit_transaction", Outcome.COMMITTED, timeout)

    def abort_transaction(self, timeout: float) -> None:
        self._expect("open", "committing" if self._abortable else "open", "aborting")
        self._queue = []
        self._state = "aborting"
        self._end("abort_transaction", Outcome.ABORTED, timeout)

    def _end(self, call: str, outcome: Outcome, timeout: float) -> None:
        def end() -> None:
            if self._transaction is not None:
                self.cluster.end(self._transaction, outcome)
            else:
                self.cluster.check_epoch(self._id, self._epoch)

        self._transact(call, end, timeout)
        self._state = "ready"
