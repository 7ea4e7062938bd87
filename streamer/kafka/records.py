"""Records as the consume loop and the pipelines exchange them: consumed records in, in flight, and outputs out."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import structlog
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME

from streamer.tracing import exemplar

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from confluent_kafka import KafkaError, Message, Producer

    from streamer.tracing import Trace

log = structlog.get_logger()

_BEFORE_KAFKA_MS = dt.datetime(2011, 1, 1, tzinfo=dt.UTC).timestamp() * 1000
_DAY_MS = 86_400_000

Headers = tuple[tuple[str, bytes | None], ...]

REDRIVEN_FOR = "dlq.redriven_for"
"""Header of a redriven record: the group that could not process the original; other groups skip the copy."""
REASON_HEADER = "dlq.reason"
"""Header of a dead letter: why its record could not be processed."""


T = TypeVar("T")

Retimed = Literal["refused", "retention"]
"""Why an output has the current time instead of its input's: its topic has refused that (by
``message.timestamp.before.max.ms`` or ``after``), or would delete such a record too soon."""


@dataclass(frozen=True, slots=True)
class Record:
    """One consumed record. ``topic`` is its full name; ``timestamp`` the record's own, by producer or broker.

    ``log`` identifies the partition to which ``offset`` belongs: the topic's id and the partition's number. A topic
    that was deleted and created again has another id, and offsets of the two cannot be compared.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: dt.datetime
    log: str = ""
    group: str = ""
    """Full name of the consumer group as whose member we read it; empty outside a group."""
    dead_letters: str = ""
    """Full name of the topic for its dead letter; empty: its own topic's name and the suffix."""
    timestamp_ms: int = -1
    """The record's own time as it is in the log, in milliseconds since 1970; -1 where it has none."""
    timestamp_type: str = ""
    """Whose time that is: ``CreateTime`` the producer's, ``LogAppendTime`` the broker's, empty where it has none."""
    leader_epoch: int | None = None
    """The epoch of the partition's leader when it was written; None if the broker does not state it.

    A log that lost its end gives the same offsets again, under a leader of a later epoch.
    """

    @property
    def latest_write(self) -> dt.datetime:
        """The latest time at which it can have been written, for comparisons with times in its event.

        That is its own time, which does not depend on when it is read. A time that nobody can have meant is replaced:
        one from before Kafka (none at all, or in seconds instead of milliseconds) by the current time, and one far in
        the future by the current time and a day, because no clock that others trust is slow by more.
        """
        current_ms = time.time() * 1000
        own_ms = self.timestamp_ms if self.timestamp_type else self.timestamp.timestamp() * 1000
        if own_ms < _BEFORE_KAFKA_MS:
            own_ms = current_ms
        return dt.datetime.fromtimestamp(min(own_ms, current_ms + _DAY_MS) / 1000, dt.UTC)

    @property
    def size(self) -> int:
        """Approximate size in memory, in bytes, for the in-flight budget."""
        return _size(self.key, self.value, self.headers)

    @property
    def place(self) -> str:
        """``topic[partition]@offset``, for logs."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Output:
    """One record to produce. ``topic`` is its full name."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = -1
    """Where it goes; -1 leaves that to the key."""
    timestamp: int | None = None
    """Its time in milliseconds since 1970; None is the time at which it is produced."""
    retimed: Retimed | None = None
    """Why it does not have the time that it had before."""

    @property
    def size(self) -> int:
        """Approximate size in memory, in bytes, for the in-flight budget."""
        return _size(self.key, self.value, self.headers)


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    return 200 + len(key or b"") + len(value or b"") + sum(len(name) + len(data or b"") for name, data in headers)


_TIMESTAMP_TYPES = {TIMESTAMP_CREATE_TIME: "CreateTime", TIMESTAMP_LOG_APPEND_TIME: "LogAppendTime"}


def redriven_for(record: Record) -> str | None:
    """Return the group for which a record was redriven; None for any other record."""
    if not record.headers:  # the usual case; this is called for every record
        return None
    return text_of(record.headers, REDRIVEN_FOR) or None


def text_of(headers: Headers, name: str) -> str:
    """Return a header's value as text; empty where there is none."""
    return next((value.decode(errors="replace") for key, value in headers if key == name and value), "")


def dead_letter_reason(output: Output) -> str | None:
    """Return the reason of a dead letter, None for any other output."""
    # No other output has such a header: it is not among those that are carried over.
    return next((value.decode() for name, value in output.headers if name == REASON_HEADER and value), None)


class InFlightRecord:
    """One record that was received and is not committed yet.

    A pipeline calls :meth:`complete` exactly once, from any thread; the committer calls it again to replace an output.
    """

    __slots__ = ("_wake", "completed", "outputs", "record", "revoked", "since", "size", "trace")

    def __init__(self, record: Record, wake: Callable[[], None]) -> None:
        self.record = record
        self.outputs: Sequence[Output] | None = None
        self.since: dt.datetime | None = None
        self.size = record.size
        """Bytes held until the record is committed: its own and those of its outputs."""
        self.completed: deque[InFlightRecord] | None = None
        """The partition's queue of completed records, to which :meth:`complete` appends this one."""
        self.revoked = False
        """True once its partition was revoked or lost: its outputs are dropped, so it need not be processed."""
        self.trace: Trace | None = None
        """The record's trace, None where tracing is off."""
        self._wake = wake

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The trace that it belongs to, for a histogram's exemplar: its own span, or that of its ``traceparent``."""
        if self.trace is not None:
            return exemplar(self.trace.propagated(()))
        return exemplar(self.record.headers) if self.record.headers else None

    def trace_stage(self, name: str, began_ns: int, **attributes: Any) -> None:
        """Tell the record's trace, where it has one, of a stage that has just ended; ``began_ns`` since 1970."""
        if self.trace is not None:
            self.trace.stage(name, began_ns, **attributes)

    def complete(self, outputs: Sequence[Output] = (), *, since: dt.datetime | None = None) -> None:
        """Set the outputs and mark the record as completed; its latency is measured from ``since``."""
        self.since = since
        self.size = self.record.size + sum(output.size for output in outputs)
        self.outputs = outputs
        if self.completed is not None:
            self.completed.append(self)
        self._wake()


def _present(value: T | None) -> T:
    """Narrow a field that is optional in the client's types but set on every consumed record."""
    if value is None:
        raise TypeError("a consumed record has no topic, partition or offset")
    return value


def record_of(message: Message, *, log: str = "", group: str = "", dead_letters: str = "") -> Record:
    """Convert a consumed message; ``log``, ``group`` and ``dead_letters`` are given by members of a group."""
    kind, milliseconds = message.timestamp()
    # A producer that stamps in microseconds must not date its records into the far future.
    timestamp = dt.datetime.fromtimestamp(min(max(0.0, milliseconds / 1000), time.time()), dt.UTC)
    return Record(
        topic=_present(message.topic()),
        partition=_present(message.partition()),
        offset=_present(message.offset()),
        key=message.key(),
        value=message.value(),
        headers=_headers(message),
        timestamp=timestamp,
        log=log,
        group=group,
        dead_letters=dead_letters,
        timestamp_ms=milliseconds if kind in _TIMESTAMP_TYPES else -1,
        timestamp_type=_TIMESTAMP_TYPES.get(kind, ""),
        leader_epoch=message.leader_epoch(),
    )


def _headers(message: Message) -> Headers:
    try:
        return tuple(cast("list[tuple[str, bytes | None]]", message.headers() or []))
    except UnicodeDecodeError as error:
        # confluent_kafka offers no other access to the headers; the record itself is valid.
        place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        log.warning("headers dropped, a name is not UTF-8", **place, error=str(error))
        return ()


_NOW = 0
"""The timestamp by which the client takes the current time."""


def enqueue(producer: Producer, output: Output, delivered: Callable[[KafkaError | None, Message], None]) -> None:
    """Give one record to a producer, waiting while its queue is full.

    ``delivered`` is its delivery report. Raises :class:`KafkaException` where the client itself refuses it.
    """
    while True:
        try:
            producer.produce(
                output.topic,
                value=output.value,
                key=output.key,
                partition=output.partition,
                headers=list(output.headers),
                timestamp=output.timestamp or _NOW,
                on_delivery=delivered,
            )
        except BufferError:
            producer.poll(0.1)
        else:
            return
