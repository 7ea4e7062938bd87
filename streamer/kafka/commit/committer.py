"""Commits what is done: batches of completed works in transactions, and what to do where Kafka cannot just now.

The steps of one transaction, and what each fault of it means, are :mod:`streamer.kafka.commit.transactions`; this is
the policy around them. No fault loses a work: its outputs stay in memory until the group's offsets are known to be
behind it. A cluster that loses a commit after it has acknowledged it (a lone broker can) is beyond that: the works are
forgotten, and only their records, read again, can make up for it (:class:`LostCommitError`).
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
from confluent_kafka import KafkaException, TopicPartition

from streamer.events import Reason, now
from streamer.kafka.client.acls import Resource
from streamer.kafka.commit.transactions import AbortedError, Batch, OutcomeUnknownError, RestartError
from streamer.kafka.dead_letters import dead_letter, dead_letter_reason, log_dead_letter, truncated
from streamer.kafka.inflight.offsets import Progress
from streamer.tracing import since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streamer.health import Health
    from streamer.kafka.commit.group import GroupMembership
    from streamer.kafka.commit.rotation import Rotation
    from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
    from streamer.kafka.inflight.record import InFlightRecord
    from streamer.metrics import Metrics

log = structlog.get_logger()

_MAX_BATCH_RECORDS = 1_000
_LINGER_S = 0.05
"""How long what is done may wait for more, while more is under way: transactions have a price of their own."""
_BACKOFF_S = (0.05, 2.0)
_PASS_AFTER_S = 1.0
"""How long nothing may be in flight before offsets alone are committed, which mostly go along with records."""
_UNREADY_AFTER_FAILURES = 3
OUTCOMES = ("committed", "aborted", "unknown", "restarted", "fenced")
"""Of transactions, as they are counted; the last one is counted where the process ends of it."""


class LostCommitError(Exception):
    """The group's offsets are not, or no longer, where an acknowledged commit had put them.

    Whoever starts at the group's offsets processes again what was lost with them.
    """


class Committer:
    """Takes completed works of the assignment through transactions; used from the loop's thread.

    Every method may raise :class:`~streamer.kafka.commit.transactions.FencedError`, and :meth:`commit_ready`
    :class:`LostCommitError`.
    """

    def __init__(
        self,
        transactions: Rotation,
        membership: GroupMembership,
        assignment: Assignment,
        *,
        metrics: Metrics,
        health: Health,
        topic_refused: Callable[[], None],
    ) -> None:
        """``topic_refused`` is called where a transaction fails for want of a privilege on one of its topics."""
        self._topic_refused = topic_refused
        self._transactions = transactions
        self._membership = membership
        self._assignment = assignment
        self._metrics = metrics
        self._health = health
        self._pending: Batch | None = None
        self._producer_lost = False
        self._one_by_one = 0
        self._failures = 0
        self._last_error = ""
        self._not_before = 0.0
        self._hurried = False
        self._done_since: float | None = None
        self._idle_since: float | None = None
        for outcome in OUTCOMES:
            metrics.transactions.labels(outcome)
        self.lingers = False
        """Whether what is done waits for more to be done."""

    def start(self) -> bool:
        """Take over our transactional id; False where no coordinator answers yet (call again).

        Raises :class:`~streamer.kafka.commit.transactions.RestartError` where it cannot be had. That a privilege is
        missing is waited out: /readyz says which.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            self._transactions.init()
        except OutcomeUnknownError as error:
            self._transactions.poll()  # the producer's error callback knows more than a timeout
            self._backoff("waiting for the transaction coordinator", error)
            return False
        except RestartError as error:
            if error.refused is None:
                raise
            self._transactions.restart()
            self._backoff("waiting for a privilege", error)
            return False
        self._recovered()
        return True

    def hurry(self) -> None:
        """Wait less for answers from now on: a stop has its own deadline."""
        self._hurried = True
        self._transactions.hurry()

    def serve(self) -> None:
        """Serve the producer's callbacks."""
        try:
            self._transactions.poll()
        except RestartError as error:
            self._lose_producer(error)

    def commit_completed(self) -> bool:
        """Commit everything that is done, in one transaction; True where works were committed and are forgotten."""
        if time.monotonic() < self._not_before:
            return False
        if self._producer_lost:
            return self._recover()
        began = time.monotonic()
        self.lingers = self._pending is None and self._is_worth_waiting(began)
        if self.lingers:
            return False
        batch = self._pending or self._next_batch()
        if batch is None:
            return False
        self._done_since = None
        try:
            self._transactions.run(batch, self._membership.consumer.consumer_group_metadata())
        except OutcomeUnknownError as error:
            self._pending = batch
            self._metrics.transactions.labels("unknown").inc()
            self._backoff("the coordinator does not answer, asking again", error)
        except AbortedError as error:
            # The outputs are still here and no offset moved: the next round sends them again.
            self._pending = None
            self._metrics.transactions.labels("aborted").inc()
            self._handle_rejected(error.rejected)
            self._backoff("transaction aborted", error)
            if error.refused is Resource.TOPIC:
                self._topic_refused()
        except RestartError as error:
            self._lose_producer(error)
        else:
            self._pending = None
            self._recovered()
            self._metrics.transaction.observe(time.monotonic() - began)
            self._settle(batch, time.monotonic() - began)
            return True
        return False

    def _is_worth_waiting(self, at: float) -> bool:
        """Tell a backlog, of which most is still to be done, from what comes one by one and must not wait."""
        done = self._assignment.completed
        if not done or self._hurried:
            return False
        if self._done_since is None:
            self._done_since = at
        return 2 * done < self._assignment.records and at < self._done_since + _LINGER_S

    def _next_batch(self) -> Batch | None:
        most = 1 if self._one_by_one else _MAX_BATCH_RECORDS
        records: list[InFlightRecord] = []
        offsets: list[TopicPartition] = []
        for partition in self._assignment:
            own = list(itertools.islice(partition.committable(), most - len(records)))
            if own:
                records += own
                offsets.append(_offset(partition, own))
        if records or self._has_rested():
            offsets += [_offset(partition, ()) for partition in self._assignment if partition.has_skipped]
        return Batch(records, offsets) if offsets else None

    def _has_rested(self) -> bool:
        """Tell whether nothing has been in flight for a while.

        What lies at the end of a log without being a record for us (the markers of a transactional producer, what it
        aborted, what retention has deleted unread) is passed over then: until that is committed, the group would seem
        to be behind to everything that compares its offsets with the log's end, an autoscaler among them.
        """
        if self._assignment.records:
            self._idle_since = None
            return False
        now_s = time.monotonic()
        self._idle_since = self._idle_since or now_s
        return now_s - self._idle_since >= _PASS_AFTER_S

    def _settle(self, batch: Batch, took: float) -> None:
        """Account for a committed batch, whose transaction took so many seconds."""
        self._one_by_one = max(0, self._one_by_one - 1)
        self._metrics.transactions.labels("committed").inc()
        if batch.records:
            self._metrics.transaction_size.observe(len(batch.records))
        self._advance(batch.offsets)
        committed_at = now()
        produced: Counter[str] = Counter()
        latency = self._metrics.latency.labels(batch.offsets[0].topic)
        for in_flight in batch.records:
            if in_flight.trace is not None:
                in_flight.trace.stage("commit", since(took), batch=len(batch.records))
                in_flight.trace.end(
                    dead_letter=next(filter(None, map(dead_letter_reason, in_flight.outputs or ())), None)
                )
            for output in in_flight.outputs or ():
                reason = dead_letter_reason(output)
                if reason is None:
                    produced[output.topic] += 1
                else:
                    self._metrics.dead_lettered.labels(in_flight.record.topic, reason).inc()
                    log_dead_letter(in_flight.record, output.headers)
            if in_flight.since is not None:
                latency.observe(max(0.0, (committed_at - in_flight.since).total_seconds()))
        for topic, count in produced.items():
            self._metrics.produced.labels(topic).inc(count)

    def _advance(self, offsets: Iterable[TopicPartition]) -> None:
        """Forget what is committed."""
        for offset in offsets:
            assigned = self._assignment.get(offset.partition)
            progress = Progress.of(offset)
            if assigned is None or not assigned.known or progress is None:
                continue
            # A commit whose outcome was unknown may be answered when the partition has been to another member and
            # back: the group has more by now, which this process has read.
            if assigned.progress is None or progress.covers(assigned.progress):
                assigned.mark_committed(progress)

    def _handle_rejected(self, rejected: Sequence[tuple[InFlightRecord, str]]) -> None:
        """Replace the output that a broker refuses; among several suspects, find the guilty ones first."""
        if len(rejected) > 1:
            # A broker refuses the client's whole batch: the next transactions carry one record each.
            self._one_by_one = len(rejected)
            return
        for in_flight, why in rejected:
            self._replace_rejected(in_flight, why)

    def _replace_rejected(self, in_flight: InFlightRecord, why: str) -> None:
        """Dead-letter a record whose output the broker will never take; cut a dead letter that is itself too large."""
        outputs = in_flight.outputs or ()
        if any(dead_letter_reason(output) for output in outputs):
            instead = [truncated(output) for output in outputs]
        else:
            instead = [dead_letter(in_flight.record, Reason.TOO_LARGE, f"the output was refused: {why}")]
        in_flight.complete(instead, since=in_flight.since)

    def _lose_producer(self, error: RestartError) -> None:
        self._pending = None
        self._producer_lost = True
        self._metrics.transactions.labels("restarted").inc()
        self._backoff("producer is unusable and is replaced", error)
        self._transactions.restart()

    def _recover(self) -> bool:
        """Put the new producer to work, and learn from the group what came of the old one's last transaction.

        True where it works. Raises :class:`LostCommitError` where the group does not even know of earlier ones.
        """
        try:
            self._transactions.init()
            # Its init decided the open transaction, and a read_committed fetch waits for that decision.
            committed = self._membership.committed(self._assignment)
        except RestartError as error:
            self._lose_producer(error)
            return False
        except OutcomeUnknownError as error:
            self._backoff("the new producer cannot start yet", error)
            return False
        except KafkaException as error:
            self._backoff("the new producer cannot start yet", self._membership.describe(error.args[0]))
            return False
        self._check(committed)
        self._producer_lost = False
        self._advance(committed)
        return True

    def _check(self, committed: Iterable[TopicPartition]) -> None:
        """Compare what the group has, which may be nothing, with what this process knows to be committed."""
        lost = [
            f"{each.topic}-{each.partition}: {assigned.progress.last} was committed, "
            f"the group has {each.offset if each.offset >= 0 else 'nothing'}"
            for each in committed
            if (assigned := self._assignment.get(each.partition)) is not None
            and assigned.progress is not None
            and not (Progress.of(each) or Progress(0)).covers(assigned.progress)
        ]
        if lost:
            raise LostCommitError("; ".join(lost))

    def _backoff(self, what: str, error: object) -> None:
        first, most = _BACKOFF_S
        # By hand, since nothing waits here: the loop goes on polling. Half of it is chance, so that the instances
        # that one broker has failed do not all come back to it at once.
        delay = min(most, first * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1)  # noqa: S311
        self._failures += 1
        self._not_before = time.monotonic() + delay
        if str(error) != self._last_error:  # a repetition is no news
            self._last_error = str(error)
            log.warning(what, error=self._last_error, failures=self._failures, retry_in_s=round(delay, 2))
        if self._failures >= _UNREADY_AFTER_FAILURES:
            self._health.not_ready("transactions", str(error))

    def _recovered(self) -> None:
        self._failures = 0
        self._last_error = ""
        self._health.ready("transactions")


def _offset(partition: AssignedPartition, records: Iterable[InFlightRecord]) -> TopicPartition:
    """Say what to commit of a partition once ``works`` are done too."""
    progress = partition.progress_after(records)
    return TopicPartition(partition.topic, partition.partition, progress.offset, metadata=progress.metadata)
