"""The consume loop: poll, hand over, commit what is done; one thread owns both Kafka clients.

Work happens in the pipeline's threads (:class:`Pipeline`). This thread only moves records: it never waits for
slow work, so polling, heartbeats and rebalances go on while a clip takes a minute; a partition whose queue
is full is paused. What is done is committed in transactions (:mod:`streamer.kafka.transactions`), each
partition up to its first record that is not done.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.events import Reason, now
from streamer.kafka.membership import Membership
from streamer.kafka.monitor import Monitor
from streamer.kafka.partitions import Assignment, Work
from streamer.kafka.records import DLQ_SUFFIX, dead_letter, dead_letter_reason, log_dead_letter, record_of, truncated
from streamer.kafka.topic_watch import TopicWatch
from streamer.kafka.transactions import (
    CALL_TIMEOUT_S,
    AbortedError,
    Batch,
    FencedError,
    RestartError,
    Transactions,
    UndecidedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confluent_kafka import Consumer, Message

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.settings import Settings

log = structlog.get_logger()

_IDLE_POLL_S = 0.1
_BUSY_WAIT_S = 0.005
_FETCH_RECORDS = 32
"""Records taken from the client's queue at a time: by how many a budget may be overrun before the pause."""
_LOOK_S = 2.0
"""How long new partitions may wait for the topic's id to be looked up again."""
_MAX_BATCH_WORKS = 1_000
_BACKOFF_S = (0.05, 2.0)
_UNREADY_AFTER_FAILURES = 3


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

    def submit(self, works: Sequence[Work]) -> None:
        """Take records in flight, each partition's in offset order, and call each one's ``done`` later.

        Must not block.
        """
        ...


class Loop:
    """Exactly once from one input topic to the outputs of its records."""

    def __init__(
        self,
        settings: Settings,
        *,
        group: str,
        topic: str,
        output: str,
        max_records: int,
        metrics: Metrics,
        health: Health,
    ) -> None:
        """``max_records`` bounds the records in flight over all partitions; ``settings.queue_bytes`` their bytes."""
        self._settings = settings
        self._topic = settings.topic(topic)
        self._metrics = metrics
        self._health = health
        self._wake = threading.Event()
        self._assignment = Assignment(max_records=max_records, max_bytes=settings.queue_bytes)
        self._pending: Batch | None = None
        self._producer_lost = False
        self._one_by_one = 0
        self._failures = 0
        self._not_before = 0.0
        self._stopping = False
        self._hold_until = 0.0
        self._monitor = Monitor(settings, self._assignment, topic=self._topic, metrics=metrics, health=health)
        self._topics = TopicWatch(settings, [self._topic, settings.topic(output), self._topic + DLQ_SUFFIX], health)
        self._topic_id: str | None = None
        on_error, on_statistics = self._monitor.on_error, self._monitor.on_statistics
        self._transactions = Transactions(settings, group, {"error_cb": on_error})
        self._membership = Membership(settings, group, self._topic, {"error_cb": on_error, "stats_cb": on_statistics})

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
                self._commit_ready()
            return self._drain(stop.at + self._settings.drain_timeout)
        except FencedError as error:
            raise FatalError(
                f"the transactional id {self._transactions.transactional_id} is fenced: {error}. Either another "
                "process uses it (give each instance its own --instance-id), or this one stood still in the middle "
                "of a transaction for longer than transaction.timeout.ms"
            ) from None
        finally:
            # Leaving the group revokes what is left; nothing more can be committed of it.
            self._stopping = True
            self._membership.close()

    def _init_transactions(self, stop: Stop) -> None:
        """Take over our transactional id before any offset is fetched, so that nothing of a predecessor is open."""
        while not stop.is_set():
            self._health.beat()
            try:
                self._transactions.init()
            except UndecidedError as error:
                self._transactions.poll()  # the producer's error callback knows more than a timeout
                self._backoff("waiting for the transaction coordinator", error)
                stop.wait(self._not_before - time.monotonic())
            except RestartError as error:
                raise FatalError(f"transactions cannot start: {error}") from None
            else:
                self._recovered()
                return

    def _await_topics(self, stop: Stop) -> None:
        """Read nothing before it is known which topic it is: positions in a log count within that log alone."""
        while not stop.is_set() and self._topics.topic_id is None:
            self._health.beat()
            self._topics.look()
            self._consumer.poll(_IDLE_POLL_S)
            self._serve_producer()
        self._topic_id = self._topics.topic_id

    def _look_for_topics(self) -> None:
        self._topics.look()
        if self._topics.topic_id != self._topic_id:
            raise FatalError(f"{self._topic} was deleted and made anew; what is in flight belongs to the old one")

    def _poll(self, pipeline: Pipeline) -> None:
        """Hand over newly arrived records; wait a little for the first, less while work is in flight."""
        self._look_for_topics()
        if not self._topics.found and time.monotonic() < self._hold_until:
            self._wake.wait(_BUSY_WAIT_S)
            return
        busy = self._assignment.records > 0
        if busy:
            self._wake.wait(_BUSY_WAIT_S)
            self._wake.clear()
        first = self._consumer.poll(0.0 if busy else _IDLE_POLL_S)
        self._serve_producer()
        if first is None:
            return
        self._hand_over([first], pipeline)
        # consume() waits for all of n or its whole timeout, so it only collects what is there already.
        while not self._assignment.is_full and (messages := self._consumer.consume(_FETCH_RECORDS, 0)):
            self._hand_over(messages, pipeline)

    def _hand_over(self, messages: Sequence[Message], pipeline: Pipeline) -> None:
        works = [work for message in messages if (work := self._receive(message))]
        self._control_flow()
        if works:
            pipeline.submit(works)

    def _receive(self, message: Message) -> Work | None:
        error = message.error()
        if error is not None:
            self._on_message_error(message, error)
            return None
        partition = self._assignment.get(message.partition())
        if partition is None:  # revoked while it waited in the client's queue
            return None
        self._metrics.consumed.labels(self._topic).inc()
        work = Work(record_of(message, partition.log), self._wake.set)
        partition.add(work)
        return work

    def _serve_producer(self) -> None:
        try:
            self._transactions.poll()
        except RestartError as error:
            self._lose_producer(error)

    def _commit_ready(self) -> None:
        """Commit everything that is done, in one transaction; try again later where Kafka cannot just now."""
        if time.monotonic() < self._not_before:
            return
        if self._producer_lost and not self._recover():
            return
        batch = self._pending or self._next_batch()
        if batch is None:
            return
        began = time.monotonic()
        try:
            self._transactions.run(batch, self._consumer.consumer_group_metadata())
        except UndecidedError as error:
            self._pending = batch
            self._metrics.transactions.labels("undecided").inc()
            self._backoff("the coordinator does not answer, asking again", error)
        except AbortedError as error:
            # The outputs are still here and no offset moved: the next round sends them again.
            self._pending = None
            self._metrics.transactions.labels("aborted").inc()
            self._handle_unfit(error.unfit)
            self._backoff("transaction aborted", error)
        except RestartError as error:
            self._lose_producer(error)
        else:
            self._pending = None
            self._recovered()
            self._metrics.transaction.observe(time.monotonic() - began)
            self._settle(batch)

    def _drain(self, deadline: float) -> bool:
        """Let work in flight finish and commit it, until ``deadline``; nothing new is fetched."""
        self._stopping = True
        self._transactions.hurry()
        self._pause_all()
        while self._assignment.records and time.monotonic() < deadline:
            self._health.beat()
            self._receive_nothing()
            self._commit_ready()
            self._wake.wait(_BUSY_WAIT_S)
            self._wake.clear()
        left = self._assignment.records
        if left:
            log.warning("work in flight is abandoned; it will be processed again", records=left)
        return not left

    # -- batches -------------------------------------------------------------------------------------------

    def _next_batch(self) -> Batch | None:
        most = 1 if self._one_by_one else _MAX_BATCH_WORKS
        works: list[Work] = []
        offsets: list[TopicPartition] = []
        for partition in self._assignment:
            last: Work | None = None
            for work in partition.ready():
                if len(works) >= most:
                    break
                works.append(work)
                last = work
            if last is not None:
                offsets.append(TopicPartition(partition.topic, partition.partition, last.record.offset + 1))
        return Batch(works, offsets) if works else None

    def _settle(self, batch: Batch) -> None:
        """Account for a committed batch."""
        self._one_by_one = max(0, self._one_by_one - 1)
        self._metrics.transactions.labels("committed").inc()
        self._metrics.transaction_size.observe(len(batch.works))
        self._advance(batch.offsets)
        committed_at = now()
        for work in batch.works:
            for output in work.outputs or ():
                reason = dead_letter_reason(output)
                if reason is None:
                    self._metrics.produced.labels(output.topic).inc()
                else:
                    self._metrics.dead_lettered.labels(work.record.topic, reason).inc()
                    log_dead_letter(work.record, output.headers)
            if work.since is not None:
                self._metrics.latency.labels(work.record.topic).observe(
                    max(0.0, (committed_at - work.since).total_seconds())
                )

    def _advance(self, offsets: Iterable[TopicPartition]) -> None:
        """Forget what is committed; offsets below zero mean that nothing ever was."""
        for offset in offsets:
            assigned = self._assignment.get(offset.partition)
            if assigned is not None and offset.offset >= 0:
                assigned.committed(offset.offset)
        self._control_flow()

    def _handle_unfit(self, unfit: Sequence[tuple[Work, str]]) -> None:
        """Replace the output that a broker refuses; among several suspects, find the guilty ones first."""
        if len(unfit) > 1:
            # A broker refuses the client's whole batch: the next transactions carry one record each.
            self._one_by_one = len(unfit)
            return
        for work, why in unfit:
            self._replace_unfit(work, why)

    def _replace_unfit(self, work: Work, why: str) -> None:
        """Dead-letter a record whose output the broker will never take; cut a dead letter that is itself too large."""
        outputs = work.outputs or ()
        if any(dead_letter_reason(output) for output in outputs):
            work.outputs = [truncated(output) for output in outputs]
        else:
            work.outputs = [dead_letter(work.record, Reason.TOO_LARGE, f"the output was refused: {why}")]

    def _lose_producer(self, error: RestartError) -> None:
        self._pending = None
        self._producer_lost = True
        self._metrics.transactions.labels("restarted").inc()
        self._backoff("producer is unusable and is replaced", error)
        self._transactions.restart()

    def _recover(self) -> bool:
        """Put the new producer to work, and learn from the group what came of the old one's last transaction."""
        assigned = [TopicPartition(each.topic, each.partition) for each in self._assignment]
        try:
            self._transactions.init()
            # Its init decided the open transaction, and a read_committed fetch waits for that decision.
            committed = self._consumer.committed(assigned, timeout=CALL_TIMEOUT_S) if assigned else []
            for each in committed:
                if each.error is not None:
                    raise KafkaException(each.error)  # noqa: TRY301 - as good as no answer
        except RestartError as error:
            self._lose_producer(error)
            return False
        except (UndecidedError, KafkaException) as error:
            self._backoff("the new producer cannot start yet", error)
            return False
        self._producer_lost = False
        self._advance(committed)
        return True

    def _backoff(self, what: str, error: Exception) -> None:
        first, most = _BACKOFF_S
        delay = min(most, first * 2 ** min(self._failures, 10))
        self._failures += 1
        self._not_before = time.monotonic() + delay
        log.warning(what, error=str(error), failures=self._failures, retry_in_s=round(delay, 2))
        if self._failures >= _UNREADY_AFTER_FAILURES:
            self._health.wait_for("transactions", str(error))

    def _recovered(self) -> None:
        self._failures = 0
        self._health.holds("transactions")

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

    def _receive_nothing(self) -> None:
        """Keep the group membership alive while draining; what still arrives is left for the next owner."""
        message = self._consumer.poll(0)
        error = message.error() if message is not None else None
        if message is not None and error is not None:
            self._on_message_error(message, error)

    # -- the group -----------------------------------------------------------------------------------------

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        # Taking away partitions and giving others is also how the broker deletes a topic and makes it anew.
        self._topics.look_again()
        self._hold_until = time.monotonic() + _LOOK_S
        for each in partitions:
            self._assignment.add(each.topic, each.partition, f"{self._topic_id}-{each.partition}")
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
        while time.monotonic() < deadline and any(self._assignment.get(partition) for partition in revoked):
            self._commit_ready()
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
        log.info("partitions gone", why=why, topic=self._topic, partitions=sorted(partitions), dropped_records=dropped)
        self._monitor.measure()

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            partition = self._assignment.get(message.partition())
            if partition is not None:
                partition.end_seen = message.offset()
        elif self._topics.on_error(error):
            return
        elif error.fatal() or error.code() == KafkaError._FATAL:  # the latter does not say that it is
            if self._assignment or not self._membership.fall_back(error):
                raise FatalError(f"consumer: {error.str()}")
        else:
            log.warning("consumer error", error=error.str(), code=error.name())
