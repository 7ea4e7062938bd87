"""The consume loop: poll records, hand them to the pipeline, commit completed ones; one thread owns both Kafka clients.

Records are processed in the threads of a :class:`~streamer.kafka.pipeline.Pipeline`. The loop's thread never waits for
slow processing, so polling, heartbeats and rebalances go on while a clip takes a minute; a partition whose queue is
full is paused. Completed records are committed in transactions (:mod:`streamer.kafka.commit.transactions`), also out
of order (:mod:`streamer.kafka.inflight.offsets`).
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import refused
from streamer.kafka.commit.committer import Committer
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.commit.outcomes import FencedError, LostCommitError, RestartError
from streamer.kafka.commit.rotation import Rotation
from streamer.kafka.inflight.partitions import Assignment
from streamer.kafka.outputs import retime
from streamer.kafka.pipeline import FatalError
from streamer.kafka.records import InFlightRecord, record_of, redriven_for
from streamer.kafka.watch.monitor import Monitor
from streamer.kafka.watch.resets import Resets
from streamer.kafka.watch.topics import TopicWatch
from streamer.kafka.watch.unreadable import UnreadableWatch
from streamer.machine import MachineError
from streamer.shortages import Shortages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Consumer, Message

    from streamer.health import Health
    from streamer.kafka.inflight.partitions import AssignedPartition
    from streamer.kafka.pipeline import Pipeline, Stop
    from streamer.kafka.records import Record
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings
    from streamer.topology import Service
    from streamer.tracing import Tracing

log = structlog.get_logger()

_IDLE_POLL_S = 0.1
_BUSY_WAIT_S = 0.005
_LINGER_WAIT_S = 0.002
_FETCH_RECORDS = 32
"""Records taken from the client's queue at a time: the budget may be exceeded by so many before the pause."""
_DROPPED_REQUEST = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""Errors of an OffsetFetch request after which the client neither retries nor reads the partitions that it was just
assigned (librdkafka 2.16, its issue 5586)."""
_TOPIC_CHECK_S = 2.0
"""How long reading newly assigned partitions may be delayed until the topic's id was checked again."""
_REFUSED_WAIT_S = 2.0
"""How long a member without the privilege for its group waits before it rejoins: until an ACL is added, each attempt
is refused."""


class Loop:
    """Processes one input topic exactly once: outputs and offsets are committed together."""

    def __init__(
        self,
        settings: ServiceSettings,
        service: Service,
        *,
        max_records: int,
        metrics: Metrics,
        health: Health,
        tracing: Tracing | None = None,
    ) -> None:
        """``max_records`` bounds the records in flight over all partitions; ``settings.queue_bytes`` their bytes."""
        self._settings = settings
        self._service = service
        self._topic = settings.topic(service.input)
        self._group = settings.group(service.group)
        self._dead_letters = settings.topic(service.dead_letters)
        self._metrics = metrics
        self._health = health
        self._tracing = tracing
        self._shortages = Shortages(metrics, health)
        self._wake = threading.Event()
        self._assignment = Assignment(max_records=max_records, max_bytes=settings.queue_bytes)
        self._stopping = False
        self._rejoin_at: float | None = None
        self._hold_until = self._next_fetch = 0.0
        self._unreadable = UnreadableWatch(
            settings,
            service,
            self._assignment,
            metrics=metrics,
            health=health,
            consumer=lambda: self._consumer,
            begin=self._begin,
        )
        self._monitor = Monitor(
            settings,
            self._assignment,
            service=service,
            metrics=metrics,
            health=health,
            on_partitions=self._unreadable.on_statistics,
            generation=lambda: self._membership.generation,
        )
        self._resets = Resets(settings, service, self._assignment, metrics=metrics, consumer=lambda: self._consumer)
        self._topics = TopicWatch(settings, service, metrics=metrics, health=health)
        self._topic_id: str | None = None
        on_error, on_statistics = self._on_client_error, self._monitor.on_statistics
        callbacks: dict[str, Callable[..., None]] = {"error_cb": on_error, "throttle_cb": self._monitor.on_throttle}
        self._transactions = Rotation(settings, service, callbacks)
        self._membership = GroupMembership(settings, service, {**callbacks, "stats_cb": on_statistics})
        self._committer = Committer(
            self._transactions,
            self._membership,
            self._assignment,
            metrics=metrics,
            health=health,
            topic_refused=self._topics.invalidate,
            retime=self._retime,
        )

    def _retime(self, in_flight: InFlightRecord) -> None:
        if retime(in_flight, self._topics.configs.kept):
            self._topics.configs.tell(in_flight)

    def _on_client_error(self, error: KafkaError) -> None:
        if refused(error) is Resource.TOPIC:
            # When the client learns this from metadata, it drops the partitions and reports it only here. Only a flag
            # is set, since a producer may call from another thread.
            self._topics.found = False
        self._monitor.on_error(error)

    @property
    def _is_created_again(self) -> bool:
        return self._topics.topic_id != self._topic_id

    @property
    def _consumer(self) -> Consumer:
        return self._membership.consumer

    # -- from start to stop --------------------------------------------------------------------------------

    def run(self, pipeline: Pipeline, stop: Stop) -> bool:
        """Run until ``stop``; return whether all records in flight were completed. Raises :class:`FatalError`."""
        try:
            self._start(stop)
            while not stop.is_set():
                self._turn(pipeline)
            return self._drain(stop.at + self._settings.drain_timeout)
        except FencedError as error:
            self._metrics.transactions.labels("fenced").inc()
            raise FatalError(error.explanation(self._transactions.transactional_id)) from None
        except LostCommitError as error:
            raise FatalError(error.explanation()) from None
        finally:
            # Leaving the group revokes all partitions; nothing more can be committed.
            self._stopping = True
            self._membership.close()
            self._unreadable.close()
            self._monitor.close()

    def _start(self, stop: Stop) -> None:
        self._init_transactions(stop)
        self._await_topics(stop)
        if not stop.is_set():
            self._membership.join(on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _turn(self, pipeline: Pipeline) -> None:
        self._health.beat()
        try:
            self._poll(pipeline)
        except MachineError as lack:  # there is no thread for the client that has to take the consumer's place
            self._shortages.tell(lack)
            self._wake.wait(_IDLE_POLL_S)
        self._fetch_committed(pipeline)
        self._unreadable.serve(partial(self._submit, pipeline=pipeline))
        self._commit()
        self._monitor.tick()

    def _init_transactions(self, stop: Stop) -> None:
        """Fence the previous process of this instance and end its transaction before any offset is fetched."""
        try:
            while not stop.is_set() and not self._committer.start():
                self._health.beat()
                stop.wait(_IDLE_POLL_S)
        except RestartError as error:
            raise FatalError(f"transactions cannot start: {error}") from None

    def _await_topics(self, stop: Stop) -> None:
        """Read nothing before the topic's id is known: offsets of a deleted topic mean nothing in its successor."""
        while not stop.is_set() and not self._topics.is_complete:
            self._health.beat()
            self._topics.check()
            self._receive_nothing(_IDLE_POLL_S)
            self._committer.serve()
        self._topic_id = self._topics.topic_id

    def _poll(self, pipeline: Pipeline) -> None:
        """Hand newly received records to the pipeline; wait for the first one only while nothing is in flight."""
        self._topics.check()
        # In a topic that was created again, all that is in flight and remembered is void, the client's positions too.
        if self._is_created_again or (self._rejoin_at is not None and time.monotonic() >= self._rejoin_at):
            self._membership.rejoin()
            self._rejoin_at = None
            if self._assignment:
                # A broken client does not revoke them when it is closed. A commit for partitions that no member owns
                # would be accepted while the group is empty, and others may have processed the same records by then.
                self._on_lost(self._consumer, [TopicPartition(each.topic, each.partition) for each in self._assignment])
            self._topic_id = self._topics.topic_id
        if not self._topics.found and time.monotonic() < self._hold_until:
            self._wake.wait(_BUSY_WAIT_S)
            return
        busy = self._assignment.records > 0
        if self._committer.lingers:
            # Do not wake up for each completed record: this thread would only compete with the others for the CPU.
            time.sleep(_LINGER_WAIT_S)
        elif busy:
            self._wake.wait(_BUSY_WAIT_S)
        self._wake.clear()
        first = self._consumer.poll(0.0 if busy else _IDLE_POLL_S)
        self._committer.serve()
        if first is None:
            return
        self._hand_over([first], pipeline)
        # consume() waits for n records or its whole timeout, so with a timeout of 0 it takes what is already there.
        while not self._assignment.is_full and (messages := self._consumer.consume(_FETCH_RECORDS, 0)):
            self._hand_over(messages, pipeline)

    def _hand_over(self, messages: Sequence[Message], pipeline: Pipeline) -> None:
        records = [in_flight for message in messages if (in_flight := self._receive(message))]
        self._control_flow()
        self._submit(records, pipeline)

    def _submit(self, records: Sequence[InFlightRecord], pipeline: Pipeline) -> None:
        if not records:
            return
        self._metrics.consumed.labels(self._topic).inc(len(records))
        if ours := [each for each in records if not self._pass_over(each)]:
            pipeline.submit(ours)

    def _pass_over(self, in_flight: InFlightRecord) -> bool:
        """Complete a record that was redriven for another group, and return True; False for any other record.

        In a compacted topic the redriven record may have replaced the original, which a group that starts later has
        never read. There every group processes it; the embedder's store write is idempotent.
        """
        group = redriven_for(in_flight.record)
        if group is None or group == self._group or self._service.input_is_compacted:
            return False
        log.info("redriven record passed over", place=in_flight.record.place, redriven_for=group, group=self._group)
        self._metrics.passed_over.labels(self._topic).inc()
        in_flight.complete()
        return True

    def _receive(self, message: Message) -> InFlightRecord | None:
        error = message.error()
        if error is not None:
            self._on_message_error(message, error)
            return None
        partition = self._assignment.get(message.partition())
        # Revoked while it waited in the client's queue, or what comes after a batch that the client cannot decode.
        if partition is None or partition.stalled:
            return None
        if partition.goes_back(message.offset() or 0):
            partition = self._rewind(partition, message.offset() or 0)
        record = record_of(message, log=partition.log, group=self._group, dead_letters=self._dead_letters)
        return self._begin(partition, record)

    def _begin(self, partition: AssignedPartition, record: Record) -> InFlightRecord | None:
        in_flight = InFlightRecord(record, self._wake.set)
        if partition.is_replaced(record):
            self._resets.void_ahead(partition, record)
        if not partition.add(in_flight):
            return None
        if self._tracing is not None:
            in_flight.trace = self._tracing.begin(record.topic, record.partition, record.offset, record.headers)
        return in_flight if partition.known else None

    def _fetch_committed(self, pipeline: Pipeline) -> None:
        """Fetch the committed offsets of new partitions, and process the records that were received meanwhile."""
        new = [each for each in self._assignment if not each.known]
        if not new or time.monotonic() < self._next_fetch:
            return
        try:
            committed = self._membership.committed(new)
        except KafkaException as error:
            self._next_fetch = time.monotonic() + _IDLE_POLL_S
            self._health.not_ready("offsets", self._membership.describe(error.args[0]))
            return
        self._health.ready("offsets")
        for each in committed:
            partition = self._assignment.get(each.partition)
            if partition is not None:
                records = self._resets.begin(partition, each)
                if records is None:
                    self._next_fetch = time.monotonic() + _IDLE_POLL_S
                    continue
                self._submit(records, pipeline)
                self._control_flow()

    def _rewind(self, partition: AssignedPartition, offset: int) -> AssignedPartition:
        """Start over with a partition whose position has gone back to ``offset``.

        Its log may also be another one: then the topic has another id, and nothing is committed before that was
        looked up.
        """
        renewed = self._resets.rewind(partition, offset)
        self._confirm_topic()
        self._control_flow()
        return renewed

    def _confirm_topic(self) -> None:
        self._topics.invalidate()
        self._hold_until = time.monotonic() + _TOPIC_CHECK_S

    def _commit(self) -> None:
        self._topics.check()
        if self._is_created_again or not self._topics.may_commit:
            return  # a commit under the old topic's name would land in the new one's offsets
        if self._topics.take_changed():
            self._committer.renew()
        if self._committer.commit_completed():
            self._control_flow()

    def _drain(self, deadline: float) -> bool:
        """Wait for the records in flight and commit them, until ``deadline``; nothing new is fetched."""
        self._stopping = True
        self._committer.hurry()
        self._pause_all()
        self._assignment.drop_unknown([each.partition for each in self._assignment])
        while self._assignment.records and time.monotonic() < deadline:
            self._health.beat()
            self._receive_nothing()
            self._commit()
            self._wake.wait(_BUSY_WAIT_S)
            self._wake.clear()
        left = self._assignment.records
        if left:
            log.warning("records in flight abandoned; they will be processed again", records=left)
        return not left

    # -- flow control --------------------------------------------------------------------------------------

    def _control_flow(self) -> None:
        """Pause partitions whose queues are full, and resume those that have room again."""
        to_pause, to_resume = self._assignment.flow_changes()
        if to_pause:
            self._consumer.pause([TopicPartition(each.topic, each.partition) for each in to_pause])
        flowing = [each for each in to_resume if not each.stalled]
        if flowing and not self._stopping:
            self._consumer.resume([TopicPartition(each.topic, each.partition) for each in flowing])

    def _pause_all(self) -> None:
        if self._assignment:
            self._consumer.pause([TopicPartition(each.topic, each.partition) for each in self._assignment])

    def _receive_nothing(self, timeout: float = 0.0) -> None:
        """Serve the consumer before it has joined and while draining; records that still arrive are dropped."""
        message = self._consumer.poll(timeout)
        error = message.error() if message is not None else None
        if message is not None and error is not None:
            self._on_message_error(message, error)

    # -- the group -----------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        # A reassignment may also mean that the topic was deleted and created again.
        self._confirm_topic()
        for each in partitions:
            self._assignment.add(each.topic, each.partition, f"{self._topic_id}-{each.partition}")
        if not self._stopping:
            # The client keeps the paused state of a partition across rebalances.
            consumer.resume(partitions)
        log.info(
            "partitions assigned",
            topic=self._topic,
            partitions=sorted(each.partition for each in partitions),
            protocol=self._membership.protocol,
        )
        self._health.ready("assignment")
        self._health.ready("broker")
        self._monitor.measure()

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit the completed records of the revoked partitions; wait for the others for a limited time."""
        self._metrics.rebalances.labels("revoked").inc()
        wait = 0.0 if self._stopping or self._is_created_again else self._settings.drain_timeout / 2
        deadline = time.monotonic() + wait
        revoked = [each.partition for each in partitions]
        self._assignment.drop_unknown(revoked)
        while time.monotonic() < deadline and any(self._assignment.get(partition) for partition in revoked):
            self._commit()
            self._wake.wait(_BUSY_WAIT_S)
            self._wake.clear()
        self._forget(revoked, "revoked")

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drop all records of partitions that another member may own by now; a commit would be refused."""
        self._metrics.rebalances.labels("lost").inc()
        self._health.not_ready("assignment", "the partitions were lost; rejoining the group")
        self._forget([each.partition for each in partitions], "lost")

    def _forget(self, partitions: Sequence[int], why: str) -> None:
        dropped = 0
        for partition in partitions:
            dropped += self._assignment.remove(partition)
            self._monitor.forget(partition)
        self._unreadable.forget(partitions)
        self._health.ready("offsets")  # the next fetch reports it again for partitions that remain
        log.info(
            "partitions released", why=why, topic=self._topic, partitions=sorted(partitions), dropped_records=dropped
        )
        self._monitor.measure()

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            partition = self._assignment.get(message.partition())
            if partition is not None:
                if partition.goes_back(message.offset() or 0):
                    partition = self._rewind(partition, message.offset() or 0)
                partition.reached_end(message.offset() or 0)
        elif self._topics.on_error(error) or self._unreadable.on_error(message.partition(), message.offset(), error):
            return
        elif refused(error):
            self._health.not_ready("assignment", self._membership.describe(error))
            if error.code() == KafkaError._FATAL and self._rejoin_at is None:
                # A member of the newer protocol does not retry by itself, and reports the error at each poll.
                self._rejoin_at = time.monotonic() + _REFUSED_WAIT_S
        elif error.fatal() or error.code() == KafkaError._FATAL:  # the flag is not set on a consumer's _FATAL
            if self._assignment or not self._membership.fall_back(error):
                raise FatalError(f"consumer: {error.str()}")
        else:
            rejoining = error.code() in _DROPPED_REQUEST
            if rejoining:
                self._rejoin_at = time.monotonic()
            log.warning("consumer error", error=error.str(), code=error.name(), rejoining=rejoining)
