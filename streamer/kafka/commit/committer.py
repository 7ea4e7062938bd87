"""Commits completed records in batches, one transaction each, and retries while Kafka cannot commit.

The steps of one transaction, and the meaning of each fault, are in :mod:`streamer.kafka.commit.transactions`; this is
the retry policy around them. No fault loses a record: its outputs stay in memory until the group's committed offsets
are known to include it. The exception is a cluster that loses a commit after acknowledging it, as a single broker can:
the records are forgotten by then and must be read again (:class:`LostCommitError`).
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaException, TopicPartition

from streamer.events import Reason, now
from streamer.kafka.client.acls import Resource
from streamer.kafka.commit.outcomes import (
    AbortedError,
    Batch,
    LostCommitError,
    OutcomeUnknownError,
    RestartError,
)
from streamer.kafka.dead_letters import dead_letter, log_dead_letter, truncated
from streamer.kafka.inflight.offsets import Progress, read_commit
from streamer.kafka.records import dead_letter_reason
from streamer.tracing import since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streamer.health import Health
    from streamer.kafka.commit.group import GroupMembership
    from streamer.kafka.commit.rotation import Rotation
    from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
    from streamer.kafka.records import InFlightRecord, Output
    from streamer.metrics import Metrics

log = structlog.get_logger()

_LINGER_S = 0.05
"""How long completed records may wait for others that are being processed: each transaction has a fixed cost."""
_BACKOFF_S = (0.05, 2.0)
_IDLE_BEFORE_COMMIT_S = 1.0
"""How long nothing must be in flight before offsets are committed without records; usually they go with records."""
_LEADER_WAIT_S = 3.0
"""How long such a commit waits for the statistics, which come once a second and have the epoch of the leader."""
_UNREADY_AFTER_FAILURES = 3
_TOLD_S = 300.0
"""How long /readyz tells of the last dead letter, and of the last output that did not get its input's time."""
_METADATA = ("all", "the log's name", "nothing")
"""What commit metadata contains, from the most to the least; less where the brokers refuse its length."""
OUTCOMES = ("committed", "aborted", "unknown", "restarted", "fenced")
"""Outcomes of transactions as they are counted; the last one is counted by the loop, which it ends."""
_MAX_BATCH_RECORDS = 1_000
_REMEMBERED_S = 60.0


class BatchSizing:
    """The number of records in the next transaction, and the outputs that need not be tried.

    A broker refuses a client's whole batch and does not say which record is to blame: it may be one that is larger than
    the topic's ``max.message.bytes``, or all of them together. So the transactions are halved until they pass or one
    record is left. What was learned (this size is too large, so many are too many) is remembered for a minute and then
    tried again, since the limit may have been raised.
    """

    def __init__(self) -> None:
        self.records = _MAX_BATCH_RECORDS
        """How many records the next transaction takes at most."""
        self._most = _MAX_BATCH_RECORDS
        self._most_until = 0.0
        self._refused: dict[str, tuple[int, float]] = {}

    def passed(self) -> None:
        """Note that a transaction was committed: the next one may be larger again."""
        if time.monotonic() >= self._most_until:
            self._most = _MAX_BATCH_RECORDS
        self.records = min(self._most, 2 * self.records)

    def refused(self, records: int) -> None:
        """Note that outputs of a transaction of several records were refused."""
        self.records = self._most = max(1, records // 2)
        self._most_until = time.monotonic() + _REMEMBERED_S

    def found(self, output: Output) -> None:
        """Note that an output was refused by itself, so that its neighbours are no longer suspect."""
        self.records = self._most = _MAX_BATCH_RECORDS
        size, until = self._refused.get(output.topic, (output.size, 0.0))
        least = min(size, output.size) if time.monotonic() < until else output.size
        self._refused[output.topic] = least, time.monotonic() + _REMEMBERED_S

    def is_too_large(self, output: Output) -> bool:
        """Tell whether one that is not larger was refused by the same topic within the last minute."""
        size, until = self._refused.get(output.topic, (0, 0.0))
        return time.monotonic() < until and output.size >= size


class Committer:
    """Commits the completed records of the assignment in transactions; used from the loop's thread.

    Every method may raise :class:`~streamer.kafka.commit.outcomes.FencedError`, and :meth:`commit_completed`
    :class:`~streamer.kafka.commit.outcomes.LostCommitError`.
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
        retime: Callable[[InFlightRecord], None],
    ) -> None:
        """``topic_refused`` is called when a transaction fails because a privilege on one of its topics is missing.

        ``retime`` corrects the times of a record's outputs before they are produced.
        """
        self._topic_refused = topic_refused
        self._retime = retime
        self._transactions = transactions
        self._membership = membership
        self._assignment = assignment
        self._metrics = metrics
        self._health = health
        self._pending: Batch | None = None
        self._producer_lost = False
        self._sizing = BatchSizing()
        self._failures = 0
        self._last_error = ""
        self._not_before = 0.0
        self._hurried = False
        self._done_since: float | None = None
        self._idle_since: float | None = None
        for outcome in OUTCOMES:
            metrics.transactions.labels(outcome)
        self._metadata: tuple[str, ...] = _METADATA
        self.lingers = False
        """Whether completed records wait for others to complete."""

    def start(self) -> bool:
        """Initialise the transactional producers; False where no coordinator answers yet (call again).

        Raises :class:`~streamer.kafka.commit.outcomes.RestartError` where that is impossible. A missing privilege
        is retried, and /readyz names it.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            self._transactions.init()
        except OutcomeUnknownError as error:
            self._transactions.poll()  # the error callback gives the reason, which a timeout does not
            self._backoff("transaction coordinator not reachable, retrying", error)
            return False
        except RestartError as error:
            if error.refused is None:
                raise
            self._transactions.restart()
            self._backoff("privilege for transactions missing, retrying", error)
            return False
        self._recovered()
        return True

    def hurry(self) -> None:
        """Use short timeouts from now on: a stop has its own deadline."""
        self._hurried = True
        self._transactions.hurry()

    def serve(self) -> None:
        """Serve the producer's callbacks."""
        try:
            self._transactions.poll()
        except RestartError as error:
            self._lose_producer(error)

    def renew(self) -> None:
        """Use new producers from the next transaction on: an output topic was created again."""
        self._transactions.renew()

    def commit_completed(self) -> bool:
        """Commit all completed records in one transaction; True where a batch was committed."""
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
            self._backoff("commit outcome unknown, retrying", error)
        except AbortedError as error:
            # The outputs are still in memory and no offset was committed: the next iteration sends them again.
            self._pending = None
            self._metrics.transactions.labels("aborted").inc()
            self._handle_aborted(error, batch)
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
        """Distinguish a backlog, most of which is still being processed, from single records, which must not wait."""
        done = self._assignment.completed
        if not done or self._hurried:
            return False
        if self._done_since is None:
            self._done_since = at
        return 2 * done < self._assignment.records and at < self._done_since + _LINGER_S

    def _next_batch(self) -> Batch | None:
        most = self._sizing.records
        records: list[InFlightRecord] = []
        progress: list[tuple[AssignedPartition, Progress]] = []
        for partition in self._assignment:
            own = list(itertools.islice(partition.committable(), most - len(records)))
            for in_flight in own:
                self._recognise_too_large(in_flight)
                self._retime(in_flight)
            if own:
                records += own
                progress.append((partition, partition.progress_after(own)))
        idle_s = self._idle_seconds()
        if records or idle_s >= _IDLE_BEFORE_COMMIT_S:
            skipped = [
                partition
                for partition in self._assignment
                if partition.has_skipped and (idle_s >= _LEADER_WAIT_S or not partition.awaits_leader)
            ]
            progress += [(partition, partition.progress_after(())) for partition in skipped]
        return Batch(records, [self._offset(*each) for each in progress], progress) if progress else None

    def _offset(self, partition: AssignedPartition, progress: Progress) -> TopicPartition:
        options: dict[str, Any] = {}
        # Not even "" where nothing is to be sent: the client (2.16) sends the zero byte at a text's end, too.
        if self._metadata[0] != "nothing":
            options["metadata"] = self._said(progress).metadata(partition.log)
        if (epoch := partition.epoch_for(progress.offset)) is not None:
            options["leader_epoch"] = epoch
        return TopicPartition(partition.topic, partition.partition, progress.offset, **options)

    def _idle_seconds(self) -> float:
        """Return for how long nothing has been in flight.

        After a while of that the committed offset may advance over what is not a record at the end of a partition:
        transaction markers, aborted records, records that retention deleted unread. Otherwise the group would seem to
        lag to everything that compares its offsets with the end offset, such as an autoscaler.
        """
        if self._assignment.records:
            self._idle_since = None
            return 0.0
        now_s = time.monotonic()
        self._idle_since = self._idle_since or now_s
        return now_s - self._idle_since

    def _settle(self, batch: Batch, took: float) -> None:
        """Update metrics, traces and offsets for a committed batch; ``took`` is the transaction's time in seconds."""
        self._sizing.passed()
        self._metrics.transactions.labels("committed").inc()
        if batch.records:
            self._metrics.transaction_size.observe(len(batch.records))
        self._mark_committed(batch)
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
                if output.retimed:
                    self._metrics.retimed.labels(output.topic, output.retimed).inc()
                    self._health.note(f"{output.topic} not by its input's time", output.retimed, seconds=_TOLD_S)
                if reason is None:
                    produced[output.topic] += 1
                else:
                    self._metrics.dead_lettered.labels(in_flight.record.topic, reason).inc()
                    log_dead_letter(in_flight.record, output.headers)
                    self._health.note("last dead letter", f"{in_flight.record.place}: {reason}", seconds=_TOLD_S)
            if in_flight.since is not None:
                latency.observe(max(0.0, (committed_at - in_flight.since).total_seconds()), in_flight.exemplar)
        for topic, count in produced.items():
            self._metrics.produced.labels(topic).inc(count)

    def _mark_committed(self, batch: Batch) -> None:
        for partition, progress in batch.progress:
            # An acknowledgement that comes late may concern a partition that has been to another member and back, or
            # was renewed: then it says nothing of the object that stands for it now.
            if self._assignment.get(partition.partition) is partition:
                partition.mark_committed(progress)
        if self._metadata[0] != "all":
            self._metrics.commits_shortened.inc()

    def _shorten_metadata(self, error: AbortedError) -> None:
        """Say less in commits from now on, since the brokers take no more.

        Without the bitmap a restart processes the records after the committed offset again, and without the log's
        name a commit that was in flight when the topic was created again is believed.
        """
        if len(self._metadata) > 1:
            refused_part, self._metadata = self._metadata[0], self._metadata[1:]
            log.error(
                "commit metadata refused; completed records beyond the committed offset will be processed again by the "
                "next owner of their partition. Raise the brokers' offset.metadata.max.bytes to its default, 4096",
                refused=refused_part,
                using=self._metadata[0],
                error=str(error),
            )

    def _advance(self, committed: Iterable[TopicPartition]) -> None:
        """Forget the records that the group's commits cover."""
        for each in committed:
            assigned = self._assignment.get(each.partition)
            if assigned is None or not assigned.known or assigned.rewound:
                continue  # a rewound one: what the group has may be what is void; its records are sent again
            progress = read_commit(each, assigned.log).progress
            if progress is not None and (assigned.progress is None or progress.covers(assigned.progress)):
                assigned.mark_committed(progress)

    def _handle_aborted(self, error: AbortedError, batch: Batch) -> None:
        if error.metadata_refused:
            self._shorten_metadata(error)
        if not self._handle_rejected(error.rejected, len(batch.records)):
            self._backoff("transaction aborted", error)
        if error.refused is Resource.TOPIC:
            self._topic_refused()

    def _handle_rejected(self, rejected: Sequence[tuple[InFlightRecord, str]], count: int) -> bool:
        """Replace an output that the broker rejects; where several were, first find out which one causes it.

        ``count`` is how many records the transaction had. True where smaller transactions will find out, which need
        not wait: each refusal halves them.
        """
        if len(rejected) > 1 and count > 1:
            log.info("outputs refused for their size, trying fewer at a time", records=count, refused=len(rejected))
            self._sizing.refused(count)
            return True
        for in_flight, why in rejected[:1]:  # one record, of which several outputs may be refused
            for output in in_flight.outputs or ():
                if dead_letter_reason(output) is None:
                    self._sizing.found(output)
            self._replace_rejected(in_flight, why)
        return False

    def _recognise_too_large(self, in_flight: InFlightRecord) -> None:
        """Dead-letter a record of whose output it is known that its topic takes none of this size."""
        for output in in_flight.outputs or ():
            if dead_letter_reason(output) is None and self._sizing.is_too_large(output):
                self._replace_rejected(in_flight, f"{output.topic} has just refused a smaller record")
                return

    def _replace_rejected(self, in_flight: InFlightRecord, why: str) -> None:
        """Dead-letter a record whose output the broker rejects; truncate a dead letter that is itself too large."""
        outputs = in_flight.outputs or ()
        if any(dead_letter_reason(output) for output in outputs):
            instead = [truncated(output) for output in outputs]
        else:
            instead = [dead_letter(in_flight.record, Reason.TOO_LARGE, f"the output was rejected: {why}")]
        in_flight.complete(instead, since=in_flight.since)

    def _lose_producer(self, error: RestartError) -> None:
        self._pending = None
        self._producer_lost = True
        self._metrics.transactions.labels("restarted").inc()
        self._backoff("producer is unusable, replacing it", error)
        self._transactions.restart()

    def _recover(self) -> bool:
        """Initialise the new producer, and learn from the committed offsets how the last transaction ended.

        True on success. Raises :class:`LostCommitError` where even earlier commits are missing.
        """
        try:
            self._transactions.init()
            # Its init ended the open transaction, and the fetch of the offsets waits for that.
            committed = self._membership.committed(self._assignment)
        except RestartError as error:
            self._lose_producer(error)
            return False
        except OutcomeUnknownError as error:
            self._backoff("new producer not initialised, retrying", error)
            return False
        except KafkaException as error:
            self._backoff("new producer not initialised, retrying", self._membership.describe(error.args[0]))
            return False
        self._check(committed)
        self._producer_lost = False
        self._advance(committed)
        return True

    def _check(self, committed: Iterable[TopicPartition]) -> None:
        """Compare the group's committed offsets, if any, with those that this process knows to be committed."""
        lost = [
            f"{each.topic}-{each.partition}: {assigned.progress.last} was committed, "
            f"the group has {each.offset if each.offset >= 0 else 'nothing'}"
            for each in committed
            if (assigned := self._assignment.get(each.partition)) is not None
            and assigned.progress is not None
            and not (read_commit(each, assigned.log).progress or Progress(0)).covers(self._said(assigned.progress))
        ]
        if lost:
            raise LostCommitError("; ".join(lost))

    def _said(self, progress: Progress) -> Progress:
        """Return that part of a progress which commits contain."""
        return progress if self._metadata[0] == "all" else Progress(progress.offset)

    def _backoff(self, what: str, error: object) -> None:
        first, most = _BACKOFF_S
        # Nothing sleeps here, since the loop must go on polling. The jitter keeps the instances from all returning at
        # once to a broker that failed.
        delay = min(most, first * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1)  # noqa: S311
        self._failures += 1
        self._not_before = time.monotonic() + delay
        if str(error) != self._last_error:  # a repetition is not logged
            self._last_error = str(error)
            log.warning(what, error=self._last_error, failures=self._failures, retry_in_s=round(delay, 2))
        if self._failures >= _UNREADY_AFTER_FAILURES:
            self._health.not_ready("transactions", str(error))

    def _recovered(self) -> None:
        self._failures = 0
        self._last_error = ""
        self._health.ready("transactions")
