"""What passes between the consume loop and the pipelines: records in, outputs out, dead letters."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import structlog

from streamer.events import Reason, now

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confluent_kafka import Message

log = structlog.get_logger()

Headers = tuple[tuple[str, bytes | None], ...]

DLQ_SUFFIX = ".dlq"
_MAX_ERROR_CHARS = 1_000
_TRUNCATED = "dlq.truncated_from"
_TRUNCATED_BYTES = 100_000
_TRUNCATED_HEADER_BYTES = 1_000
_TRUNCATED_HEADERS = 100

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

    @property
    def size(self) -> int:
        """Bytes that the record holds in memory, near enough for a budget."""
        return _size(self.key, self.value, self.headers)


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    return 200 + len(key or b"") + len(value or b"") + sum(len(name) + len(data or b"") for name, data in headers)


def carried(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Return the headers that go on to whatever a record causes: W3C trace context and CloudEvents."""
    return tuple((name, value) for name, value in headers if name == "traceparent" or name.startswith("ce_"))


def dead_letter(record: Record, reason: Reason, error: str, *, attempts: int = 1) -> Output:
    """Wrap a record that cannot be processed: its key, value and headers, and the reason."""
    why: Sequence[tuple[str, str]] = (
        ("dlq.reason", reason.value),
        ("dlq.error", error[:_MAX_ERROR_CHARS]),
        ("dlq.topic", record.topic),
        ("dlq.partition", str(record.partition)),
        ("dlq.offset", str(record.offset)),
        ("dlq.attempts", str(attempts)),
        ("dlq.at", now().isoformat().replace("+00:00", "Z")),
    )
    # A redriven record that fails again carries the newest reason only.
    kept = tuple((name, value) for name, value in record.headers if not name.startswith("dlq."))
    headers = kept + tuple((name, text.encode(errors="replace")) for name, text in why)
    return Output(record.topic + DLQ_SUFFIX, record.key, record.value, headers)


def dead_letter_reason(output: Output) -> str | None:
    """Return the reason of a dead letter, None for any other output."""
    if not output.topic.endswith(DLQ_SUFFIX):
        return None
    return next((value.decode() for name, value in output.headers if name == "dlq.reason" and value), None)


def truncated(dead: Output) -> Output:
    """Return a dead letter that fits anywhere: what is large is cut, and a header says how long the value was.

    A dead letter that was cut already keeps nothing but the reason and its place.
    """
    ours = tuple((name, value) for name, value in dead.headers if name.startswith("dlq."))
    if any(name == _TRUNCATED for name, _ in ours):
        return Output(dead.topic, None, None, ours)
    small = tuple(
        (name, value)
        for name, value in dead.headers
        if not name.startswith("dlq.") and len(name) + len(value or b"") <= _TRUNCATED_HEADER_BYTES
    )
    value = dead.value or b""
    headers = (*small[:_TRUNCATED_HEADERS], *ours, (_TRUNCATED, str(len(value)).encode()))
    return Output(dead.topic, (dead.key or b"")[:_TRUNCATED_BYTES], value[:_TRUNCATED_BYTES], headers)


def _present(value: T | None) -> T:
    """Narrow what librdkafka's types leave open but every consumed record has."""
    if value is None:
        raise TypeError("a consumed record lacks its place")
    return value


def record_of(message: Message, log: str = "") -> Record:
    """Take over what a consumed message says; ``log`` is the name of its partition's log where it matters."""
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
    )


def _headers(message: Message) -> Headers:
    try:
        return tuple(cast("list[tuple[str, bytes | None]]", message.headers() or []))
    except UnicodeDecodeError as error:
        # confluent_kafka gives no other access to them; the record itself is as good as any.
        place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        log.warning("headers dropped, a name is not UTF-8", **place, error=str(error))
        return ()


def log_dead_letter(record: Record, headers: Sequence[tuple[str, bytes | None]]) -> None:
    """Log the one line of a failed record."""
    told = {name.removeprefix("dlq."): value.decode(errors="replace") for name, value in headers if value}
    log.warning(
        "dead letter",
        reason=told.get("reason"),
        error=told.get("error"),
        attempts=told.get("attempts"),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"").decode(errors="replace")[:100],
    )
