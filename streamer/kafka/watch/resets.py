"""Where a partition begins, and what becomes of it when its log is not what it was.

The group's offset and what this process remembers are about one log. Kafka keeps them when that log has lost its end
(a replica's disk replaced, an unclean election), was replaced by another of the same name, or was read in another
cluster; and an operator may set any offset. The rules, in the order in which they are checked:

1. A commit that names another log at its own offset was in flight when the topic was created again. It is void, and
   the log is read from its beginning.
2. A commit that names another log, or another offset, was translated by MirrorMaker 2 or set by an operator. Its offset
   counts, and its list of completed records does not.
3. A consumer that begins before the committed offset, or goes back later, was reset by the client. Either the log ends
   before its position (OFFSET_OUT_OF_RANGE), or it was cut off before it and filled again. The latter shows where the
   partition's leader is asked for the end of the committed leader epoch (KIP-320). The client asks when the leader
   changes, and at a seek, but not when it begins at a committed offset (librdkafka 2.16): so it is told to seek there.
   All that is remembered of the partition is void, and everything from the new position on is processed.
4. Where a record of the commit's list is of a later leader's epoch than the commit, the log was cut off between them.
   The list of completed records is void from there on.
5. A consumer that begins after the committed offset has lost records to retention. They are counted
   (:mod:`streamer.kafka.watch.lag`), and the rest of what is remembered counts.

So records may be processed again, but none is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.inflight.offsets import Origin, read_commit

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
    from streamer.kafka.records import InFlightRecord, Record
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

RESETS = {
    "beyond_end": "the log ends before the offset that was read or committed; it is processed again from the offset at "
    "which reading continues",
    "foreign": "the committed offset is that of a deleted topic of the same name; the new topic is processed from its "
    "beginning",
    "moved": "the group's offset was set by hand; records that were completed beyond it are processed again",
    "translated": "the committed offset was translated from another cluster's; records that were completed beyond it "
    "are processed again",
}
"""What is logged for each value of ``reason`` of ``streamer_log_resets_total``."""


class Resets:
    """Decides where partitions begin, and voids what is known of those whose log has changed; for the loop's thread."""

    def __init__(
        self,
        settings: ServiceSettings,
        service: Service,
        assignment: Assignment,
        *,
        metrics: Metrics,
        consumer: Callable[[], Consumer],
    ) -> None:
        self._topic = settings.topic(service.input)
        self._new_groups_begin_at_the_end = config.begins_at_the_end(settings)
        self._assignment = assignment
        self._metrics = metrics
        self._consumer = consumer
        for reason in RESETS:
            metrics.log_resets.labels(self._topic, reason)

    def begin(self, partition: AssignedPartition, committed: TopicPartition) -> list[InFlightRecord] | None:
        """Return the records in flight to be processed first, None where the consumer must be asked again later.

        The consumer has begun by itself, at the committed offset or, where that is not in the log or there is none, at
        the earliest. Where a group that has committed nothing begins is what ``auto.offset.reset`` says, and nothing
        else.
        """
        progress, origin = read_commit(committed, partition.log)
        place = self._place(committed, origin)
        if place is not None:
            try:
                self._consumer().seek(place)
            except KafkaException as error:  # it has not begun yet
                log.debug("seek refused, retrying", partition=partition.partition, error=str(error))
                return None
            partition = self._assignment.renew(partition)
            partition.stalled = False  # the consumer says it again of a batch that it still cannot read
            partition.rewound = origin is Origin.FOREIGN
        records = partition.start_from(progress, committed.leader_epoch)
        if origin is Origin.FOREIGN:
            self._tell(partition, "foreign", committed.offset)
        elif partition.rewound:
            self._tell(partition, "beyond_end", committed.offset)
        elif origin in (Origin.MOVED, Origin.TRANSLATED):
            self._tell(partition, origin.value, committed.offset)
        return records

    def void_ahead(self, partition: AssignedPartition, record: Record) -> None:
        """Take what was committed as completed from ``record`` on for not completed: other records are there now."""
        partition.void_ahead(record.offset)
        self._tell(partition, "beyond_end", record.offset)

    def _place(self, committed: TopicPartition, origin: Origin) -> TopicPartition | None:
        """Return where the consumer must be sent; None where it has begun at the right place by itself."""
        topic, number = committed.topic, committed.partition
        if origin is Origin.FOREIGN:
            return TopicPartition(topic, number, OFFSET_BEGINNING)
        if origin is Origin.NONE:
            return TopicPartition(topic, number, OFFSET_END) if self._new_groups_begin_at_the_end else None
        epoch = committed.leader_epoch
        if epoch is None or origin is Origin.TRANSLATED:  # an epoch of another cluster says nothing of this one
            return None
        return TopicPartition(topic, number, committed.offset, leader_epoch=epoch)

    def rewind(self, partition: AssignedPartition, offset: int) -> AssignedPartition:
        """Void what is known of a partition whose position has gone back to ``offset``; return its new object."""
        position = partition.position
        renewed = self._assignment.renew(partition)
        if renewed.known:
            self._tell(renewed, "beyond_end", position, goes_on_at=offset)
        return renewed

    def _tell(self, partition: AssignedPartition, reason: str, offset: int, **more: int) -> None:
        self._metrics.log_resets.labels(self._topic, reason).inc()
        log.error(
            RESETS[reason], topic=self._topic, partition=partition.partition, offset=offset, reason=reason, **more
        )
