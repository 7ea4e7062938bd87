"""What a transaction takes, and how it may end: the batch of records, and the errors of an attempt to commit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import TopicPartition

    from streamer.kafka.client.acls import Resource
    from streamer.kafka.inflight.offsets import Progress
    from streamer.kafka.inflight.partitions import AssignedPartition
    from streamer.kafka.records import InFlightRecord


class TransactionError(Exception):
    """Base of what :meth:`Transactions.run` raises.

    ``rejected`` are the records of which an output can never be produced, each with the reason; ``refused`` is of what
    kind the resource is for which a privilege is missing, where that is the cause; ``metadata_refused`` is whether the
    broker takes no commit metadata of this length (offset.metadata.max.bytes).
    """

    def __init__(
        self,
        message: str,
        rejected: Sequence[tuple[InFlightRecord, str]] = (),
        *,
        refused: Resource | None = None,
        metadata_refused: bool = False,
    ) -> None:
        super().__init__(message)
        self.rejected = rejected
        self.refused = refused
        self.metadata_refused = metadata_refused


class AbortedError(TransactionError):
    """The transaction was aborted; the batch may be tried again."""


class OutcomeUnknownError(TransactionError):
    """The coordinator has not acknowledged the commit or abort in time; call again with the same batch."""


class LostCommitError(Exception):
    """The group's committed offsets are lower than those of an acknowledged commit; a restart goes back there."""

    def explanation(self) -> str:
        """Return what it means for an operator."""
        return (
            f"the cluster has lost a commit that it had acknowledged ({self}). After the restart those records are "
            "processed again. Check that all topics, including Kafka's internal ones, are replicated"
        )


class RestartError(TransactionError):
    """The producer is unusable; the group's committed offsets show whether its last transaction was committed."""


class FencedError(TransactionError):
    """Another producer took over our transactional.id."""

    def explanation(self, transactional_id: str) -> str:
        """Return what it means for an operator."""
        return (
            f"the transactional id {transactional_id} is fenced: {self}. Either another process uses it (give each "
            "instance its own --instance-id), or this process was suspended during a transaction for longer than "
            "transaction.timeout.ms"
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Completed records, and the offsets to commit with their outputs: none for a reader outside any group.

    ``progress`` is what the offsets mean: of each partition, what is committed once they are.
    """

    records: Sequence[InFlightRecord]
    offsets: Sequence[TopicPartition] = ()
    progress: Sequence[tuple[AssignedPartition, Progress]] = ()


def is_fatal_to_producer(cause: KafkaError) -> bool:
    """Return whether a producer is of no use after an error."""
    # A coordinator forgets ids that are idle for days. librdkafka (2.16) asks for an abort and, where the offsets were
    # refused, uses the forgotten producer id again.
    return cause.fatal() or cause.code() == KafkaError.INVALID_PRODUCER_ID_MAPPING
