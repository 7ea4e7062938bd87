"""The consume loop: poll, hand over, commit what is done; one thread owns both Kafka clients.

Work happens in the pipeline's threads (:class:`Pipeline`). This thread only moves records: it never waits for
slow work, so polling, heartbeats and rebalances go on while a clip takes a minute; a partition whose queue
is full is paused. What is done is committed in transactions (:mod:`streamer.kafka.commit.transactions`), in any order
(:mod:`streamer.kafka.inflight.offsets`).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import Refusals, refused, role_of
from streamer.kafka.commit.committer import Committer, LostCommitError
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.commit.rotation import Rotation
from streamer.kafka.commit.transactions import FencedError, RestartError
from streamer.kafka.inflight.offsets import Progress
from streamer.kafka.inflight.partitions import Assignment
from streamer.kafka.inflight.work import InFlightRecord
from streamer.kafka.records import record_of
from streamer.kafka.watch.monitor import Monitor
from streamer.kafka.watch.topics import TopicWatch
from streamer.topology import DLQ_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Consumer, Message

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings
    from streamer.tracing import Tracing

log = structlog.get_logger()

_IDLE_POLL_S = 0.1
_BUSY_WAIT_S = 0.005
_LINGER_WAIT_S = 0.002
_FETCH_RECORDS = 32
"""Records taken from the client's queue at a time: by how many a budget may be overrun before the pause."""
_LOST_QUESTION = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""The answers to its question for committed offsets that the client neither repeats nor acts upon (librdkafka 2.16,
its issue 5586): the partitions that it has just been assigned would never be read."""
_LOOK_S = 2.0
"""How long new partitions may wait for the topic's id to be looked up again."""


_REFUSED_WAIT_S = 2.0
"""How long a member that was refused waits before it joins anew: until an ACL is added it is refused each time."""


class FatalError(Exception):
    """The service cannot go on; the process ends with exit code 1 and its supervisor starts it again."""


class Stop(threading.Event):
    """The wish to stop, and when it was uttered: ``at`` on the monotonic clock, 0.0 before."""

    at = 0.0

    def set(self) -> None:
        """Utter the wish; only the first time counts."""
        self.at = self.at or time.monotonic()
        super().set()


class Pipeline(Protocol):
    """What turns records into outputs, in threads of its own."""

    def submit(self, works: Sequence[InFlightRecord]) -> None:
        """Take records in flight, each partition's in offset order, and call each one's ``done`` later.

        Must not block.
        """
        ...


class Loop:
    """Exactly once from one input topic to the outputs of its records."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        group: str,
        topic: str,
        output: str,
        max_records: int,
        metrics: Metrics,
        health: Health,
        producers: int = 1,
        tracing: Tracing | None = None,
    ) -> None:
        """``max_records`` bounds the records in flight over all partitions; ``settings.queue_bytes`` their bytes.

        ``producers`` take turns: several cost connections and bring down the latency of frequent transactions.
        """
        self._settings = settings
        self._topic = settings.topic(topic)
        self._metrics = metrics
        self._health = health
        self._tracing = tracing
        self._wake = threading.Event()
        self._assignment = Assignment(max_records=max_records, max_bytes=settings.queue_bytes)
        self._stopping = False
        self._rejoin_at: float | None = None
        self._hold_until = self._ask_at = 0.0
        self._monitor = Monitor(
            settings, self._assignment, group=group, topic=topic, output=output, metrics=metrics, health=health
        )
        self._topics = TopicWatch(
            settings,
            [self._topic, settings.topic(output), self._topic + DLQ_SUFFIX],
            health,
            Refusals(settings, role_of(group)),
        )
        self._topic_id: str | None = None
        on_error, on_statistics = self._on_client_error, self._monitor.on_statistics
        self._transactions = Rotation(settings, group, {"error_cb": on_error}, producers=producers)
        self._membership = GroupMembership(
            settings, group, self._topic, {"error_cb": on_error, "stats_cb": on_statistics}
        )
        self._committer = Committer(
            self._transactions,
            self._membership,
            self._assignment,
            metrics=metrics,
            health=health,
            topic_refused=self._topics.look_again,
        )

    def _on_client_error(self, error: KafkaError) -> None:
        if refused(error) is Resource.TOPIC:
            # Where the client learns of it from metadata, it lets go of the partitions and says so here alone. Only a
            # flag, since a producer may call from another thread.
            self._topics.found = False
        self._monitor.on_error(error)

    @property
    def _consumer(self) -> Consumer:
        return self._membership.consumer

    # -- the story -----------------------------------------------------------------------------------------

    def run(self, pipeline: Pipeline, stop: Stop) -> bool:
        """Serve until ``stop``; return whether all work in flight was finished. Raises :class:`FatalError`."""
        try:
            self._init_transactions(stop)
            self._await_topics(stop)
            if not stop.is_set():
                self._membership.join(on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
            while not stop.is_set():
                self._health.beat()
                self._poll(pipeline)
                self._learn(pipeline)
                self._commit()
                self._monitor.tick()
            return self._drain(stop.at + self._settings.drain_timeout)
        except FencedError as error:
            self._metrics.transactions.labels("fenced").inc()
            raise FatalError(
                f"the transactional id {self._transactions.transactional_id} is fenced: {error}. Either another "
                "process uses it (give each instance its own --instance-id), or this one stood still in the middle "
                "of a transaction for longer than transaction.timeout.ms"
            ) from None
        except LostCommitError as error:
            raise FatalError(
                f"the cluster has lost what it had acknowledged ({error}). The restart processes it again; are the "
                "topics, Kafka's own included, replicated?"
            ) from None
        finally:
            # Leaving the group revokes what is left; nothing more can be committed of it.
            self._stopping = True
            self._membership.close()
            self._monitor.close()

    def _init_transactions(self, stop: Stop) -> None:
        """Take over our transactional id before any offset is fetched, so that nothing of a predecessor is open."""
        try:
            while not stop.is_set() and not self._committer.start():
                self._health.beat()
                stop.wait(_IDLE_POLL_S)
        except RestartError as error:
            raise FatalError(f"transactions cannot start: {error}") from None

    def _await_topics(self, stop: Stop) -> None:
        """Read nothing before it is known which topic it is: positions in a log count within that log alone."""
        while not stop.is_set() and self._topics.topic_id is None:
            self._health.beat()
            self._topics.look()
            self._receive_nothing(_IDLE_POLL_S)
            self._committer.serve()
        self._topic_id = self._topics.topic_id

    def _look_for_topics(self) -> None:
        self._topics.look()
        if self._topics.topic_id != self._topic_id:
            raise FatalError(f"{self._topic} was deleted and made anew; what is in flight belongs to the old one")

    def _poll(self, pipeline: Pipeline) -> None:
        """Hand over newly arrived records; wait a little for the first, less while work is in flight."""
        self._look_for_topics()
        if self._rejoin_at is not None and time.monotonic() >= self._rejoin_at:
            self._rejoin_at = None
            self._membership.rejoin()
            if self._assignment:
                # A client that is broken says nothing of them when it is closed. A commit of what belongs to nobody
                # any more would be accepted while the group is empty, and others may have done the same work by then.
                self._on_lost(self._consumer, [TopicPartition(each.topic, each.partition) for each in self._assignment])
        if not self._topics.found and time.monotonic() < self._hold_until:
            self._wake.wait(_BUSY_WAIT_S)
            return
        busy = self._assignment.records > 0
        if self._committer.lingers:
            # Not woken by each record that is done: this thread would only take the processor from the others.
            time.sleep(_LINGER_WAIT_S)
        elif busy:
            self._wake.wait(_BUSY_WAIT_S)
        self._wake.clear()
        first = self._consumer.poll(0.0 if busy else _IDLE_POLL_S)
        self._committer.serve()
        if first is None:
            return
        self._hand_over([first], pipeline)
        # consume() waits for all of n or its whole timeout, so it only collects what is there already.
        while not self._assignment.is_full and (messages := self._consumer.consume(_FETCH_RECORDS, 0)):
            self._hand_over(messages, pipeline)

    def _hand_over(self, messages: Sequence[Message], pipeline: Pipeline) -> None:
        works = [work for message in messages if (work := self._receive(message))]
        self._control_flow()
        self._submit(works, pipeline)

    def _submit(self, works: Sequence[InFlightRecord], pipeline: Pipeline) -> None:
        if works:
            self._metrics.consumed.labels(self._topic).inc(len(works))
            pipeline.submit(works)

    def _receive(self, message: Message) -> InFlightRecord | None:
        error = message.error()
        if error is not None:
            self._on_message_error(message, error)
            return None
        partition = self._assignment.get(message.partition())
        if partition is None:  # revoked while it waited in the client's queue
            return None
        work = InFlightRecord(record_of(message, partition.log), self._wake.set)
        if not partition.add(work):
            return None
        if self._tracing is not None:
            record = work.record
            work.trace = self._tracing.begin(record.topic, record.partition, record.offset, record.headers)
        return work if partition.known else None

    def _learn(self, pipeline: Pipeline) -> None:
        """Ask what the group has committed of new partitions, and begin with what has come of them meanwhile."""
        new = [each for each in self._assignment if not each.known]
        if not new or time.monotonic() < self._ask_at:
            return
        try:
            committed = self._membership.committed(new)
        except KafkaException as error:
            self._ask_at = time.monotonic() + _IDLE_POLL_S
            self._health.wait_for("offsets", self._membership.told(error.args[0]))
            return
        self._health.holds("offsets")
        for each in committed:
            partition = self._assignment.get(each.partition)
            if partition is not None:
                self._submit(partition.learn(Progress.of(each)), pipeline)

    def _commit(self) -> None:
        if self._committer.commit_ready():
            self._control_flow()

    def _drain(self, deadline: float) -> bool:
        """Let work in flight finish and commit it, until ``deadline``; nothing new is fetched."""
        self._stopping = True
        self._committer.hurry()
        self._pause_all()
        self._assignment.drop_unbegun([each.partition for each in self._assignment])
        while self._assignment.records and time.monotonic() < deadline:
            self._health.beat()
            self._receive_nothing()
            self._commit()
            self._wake.wait(_BUSY_WAIT_S)
            self._wake.clear()
        left = self._assignment.records
        if left:
            log.warning("work in flight is abandoned; it will be processed again", records=left)
        return not left

    # -- flow control --------------------------------------------------------------------------------------

    def _control_flow(self) -> None:
        """Pause partitions whose queues are full, resume those that have room again."""
        to_pause, to_resume = self._assignment.changes_of_flow()
        if to_pause:
            self._consumer.pause([TopicPartition(each.topic, each.partition) for each in to_pause])
        if to_resume and not self._stopping:
            self._consumer.resume([TopicPartition(each.topic, each.partition) for each in to_resume])

    def _pause_all(self) -> None:
        if self._assignment:
            self._consumer.pause([TopicPartition(each.topic, each.partition) for each in self._assignment])

    def _receive_nothing(self, timeout: float = 0.0) -> None:
        """Serve the consumer before it has joined, and while draining; what still comes is left to the next owner."""
        message = self._consumer.poll(timeout)
        error = message.error() if message is not None else None
        if message is not None and error is not None:
            self._on_message_error(message, error)

    # -- the group -----------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        # Taking away partitions and giving others is also how the broker deletes a topic and makes it anew.
        self._topics.look_again()
        self._hold_until = time.monotonic() + _LOOK_S
        for each in partitions:
            self._assignment.add(each.topic, each.partition, f"{self._topic_id}-{each.partition}")
        if not self._stopping:
            # The client remembers across rebalances what was paused when it last owned a partition.
            consumer.resume(partitions)
        log.info(
            "partitions assigned",
            topic=self._topic,
            partitions=sorted(each.partition for each in partitions),
            protocol=self._membership.protocol,
        )
        self._health.holds("assignment")
        self._health.holds("broker")
        self._monitor.measure()

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what is done of the revoked partitions; wait for the rest a moment, no longer."""
        self._metrics.rebalances.labels("revoked").inc()
        wait = 0.0 if self._stopping else self._settings.drain_timeout / 2
        deadline = time.monotonic() + wait
        revoked = [each.partition for each in partitions]
        self._assignment.drop_unbegun(revoked)
        while time.monotonic() < deadline and any(self._assignment.get(partition) for partition in revoked):
            self._commit()
            self._wake.wait(_BUSY_WAIT_S)
            self._wake.clear()
        self._forget(revoked, "revoked")

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drop everything of partitions that another member may own by now; a commit would be refused."""
        self._metrics.rebalances.labels("lost").inc()
        self._health.wait_for("assignment", "lost the partitions, joining again")
        self._forget([each.partition for each in partitions], "lost")

    def _forget(self, partitions: Sequence[int], why: str) -> None:
        dropped = 0
        for partition in partitions:
            dropped += self._assignment.remove(partition)
            self._monitor.forget(partition)
        self._health.holds("offsets")  # nobody waits for those any more; for others the next question says so again
        log.info("partitions gone", why=why, topic=self._topic, partitions=sorted(partitions), dropped_records=dropped)
        self._monitor.measure()

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            partition = self._assignment.get(message.partition())
            if partition is not None:
                partition.reached(message.offset() or 0)
        elif self._topics.on_error(error):
            return
        elif refused(error):
            self._health.wait_for("assignment", self._membership.told(error))
            if error.code() == KafkaError._FATAL and self._rejoin_at is None:
                # A member of the newer protocol does not try again by itself, and says so at each poll.
                self._rejoin_at = time.monotonic() + _REFUSED_WAIT_S
        elif error.fatal() or error.code() == KafkaError._FATAL:  # the latter does not say that it is
            if self._assignment or not self._membership.fall_back(error):
                raise FatalError(f"consumer: {error.str()}")
        else:
            rejoining = error.code() in _LOST_QUESTION
            if rejoining:
                self._rejoin_at = time.monotonic()
            log.warning("consumer error", error=error.str(), code=error.name(), rejoining=rejoining)
