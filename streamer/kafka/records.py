"""What passes between the consume loop and the pipelines: records in, outputs out, dead letters."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Message

log = structlog.get_logger()

Headers = tuple[tuple[str, bytes | None], ...]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """One consumed record. ``topic`` is its full name; ``timestamp`` the record's own, by producer or broker.

    ``log`` names the log in which ``offset`` counts: the topic's id, which a topic made anew does not share, and
    the partition. Offsets of different logs say nothing about each other.
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

    @property
    def size(self) -> int:
        """Bytes that the record holds in memory, near enough for a budget."""
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

    @property
    def size(self) -> int:
        """Bytes that the record holds in memory, near enough for a budget."""
        return _size(self.key, self.value, self.headers)


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    return 200 + len(key or b"") + len(value or b"") + sum(len(name) + len(data or b"") for name, data in headers)


def carried(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Return the headers that go on to whatever a record causes: W3C trace context and CloudEvents."""
    return tuple((name, value) for name, value in headers if name == "traceparent" or name.startswith("ce_"))


def _present(value: T | None) -> T:
    """Narrow what librdkafka's types leave open but every consumed record has."""
    if value is None:
        raise TypeError("a consumed record lacks its place")
    return value


def record_of(message: Message, *, log: str = "", group: str = "") -> Record:
    """Take over what a consumed message says; ``log`` and ``group`` are said by those who read as a group's member."""
    _, milliseconds = message.timestamp()
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
    )


def _headers(message: Message) -> Headers:
    try:
        return tuple(cast("list[tuple[str, bytes | None]]", message.headers() or []))
    except UnicodeDecodeError as error:
        # confluent_kafka gives no other access to them; the record itself is as good as any.
        place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        log.warning("headers dropped, a name is not UTF-8", **place, error=str(error))
        return ()
