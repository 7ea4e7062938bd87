"""The dead-letter topics for operators: which dead letters there are, why, since when, and which were redriven.

A dead-letter topic holds two kinds of records. Dead letters are made by
:func:`~streamer.kafka.dead_letters.dead_letter`. *Markers* are written by :mod:`streamer.kafka.dlq.redrive` and list
the offsets, within their own partition, of dead letters that were redriven. A marker comes after everything that it
lists, and retention deletes the oldest records of a partition first, so a marker exists as long as the dead letters
that it lists. Other readers of these topics recognise a dead letter by its ``dlq.reason``; a marker has none.

Each partition is read twice, for the markers and then for the dead letters, so that memory holds the redriven offsets
and one record, however long the topic is. Dead letters that retention has deleted are skipped.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, TopicPartition

from streamer.events import Reason, Time
from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation
from streamer.kafka.dead_letters import GROUP_HEADER, TIMESTAMP_HEADER
from streamer.kafka.readers.topic_reader import TIMEOUT_S, TopicReader
from streamer.topology import DLQ_SHOW, Tool, dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from streamer.kafka.readers.topic_reader import Span
    from streamer.kafka.records import Headers, Record
    from streamer.settings import Connection

MARKER_HEADER = "dlq.marker"
_TIME_DIGITS = 15
"""Of a time in milliseconds: enough for the year 33,000."""
UNKNOWN_REASON = "unknown"
"""Reason shown for a record without one, which another client wrote."""

_WITHOUT_MEMBERS = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)

_RELATIVE = re.compile(r"([0-9]{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class DeadLetterError(Exception):
    """Dead letters cannot be read or redriven; the message is one line."""


class State(StrEnum):
    """What can be done with a dead letter."""

    PENDING = "pending"
    REDRIVEN = "redriven"
    TRUNCATED = "truncated"
    """Its value was truncated when it was written, or could not even be read, so it is never redriven."""
    FOREIGN = "foreign"
    """Not of this input topic, or not written by us; never redriven."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. ``record`` is the dead letter itself; ``partition`` is that of the original in its topic."""

    record: Record
    state: State
    reason: str
    error: str
    partition: int
    attempts: int
    at: dt.datetime
    group: str
    """Full name of the consumer group that wrote it, empty where it does not say."""
    timestamp: int | None = None
    """The original's time in milliseconds since 1970, None where it does not say."""

    @property
    def original_headers(self) -> Headers:
        """The headers of the original."""
        return tuple((name, value) for name, value in self.record.headers if not name.startswith("dlq."))


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects dead letters that match each given condition; ``since <= dlq.at < until``."""

    reasons: Collection[str] = ()
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    key: str | None = None
    group: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Tell whether ``letter`` is selected."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
            and (self.group is None or letter.group == self.group)
            and (self.key is None or letter.record.key == self.key.encode(errors="surrogateescape"))
        )


def parse_time(text: str, now: dt.datetime) -> dt.datetime:
    """Read RFC 3339, or an age such as ``90s``, ``15m``, ``2h``, ``3d``, ``1w``. Raises ValueError."""
    try:
        if relative := _RELATIVE.fullmatch(text):
            return now - dt.timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        return msgspec.convert(text, Time).astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is out of range") from None
    except msgspec.ValidationError:
        raise ValueError(
            f"{text!r} is neither RFC 3339 with an offset (2026-11-24T10:00:00Z) nor an age (90s, 15m, 2h, 3d, 1w)"
        ) from None


class _Marker(msgspec.Struct, frozen=True):
    redriven: list[int]
    at: Time


def encode_marker(offsets: Sequence[int], at: dt.datetime) -> bytes:
    """Return the value of the marker for dead letters at ``offsets`` of the marker's partition."""
    return msgspec.json.encode(_Marker(list(offsets), at))


def decode_marker(record: Record) -> list[int]:
    """Return the offsets that a marker lists. An unreadable one is an error: skipping it would redrive twice."""
    try:
        return msgspec.json.decode(record.value or b"", type=_Marker).redriven
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DeadLetterError(f"{record.place} is a redrive marker that cannot be read: {error}") from None


def classify(record: Record, topic: str, redriven: Iterable[int] = ()) -> DeadLetter:
    """Read a record of the dead-letter topic of ``topic`` (full name); ``redriven`` are the partition's offsets."""
    fields = {
        name: value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith("dlq.") and value is not None
    }
    if fields.get("dlq.topic") != topic or "dlq.reason" not in fields:
        state = State.FOREIGN
    elif "dlq.truncated_from" in fields or fields["dlq.reason"] == Reason.UNREADABLE:
        state = State.TRUNCATED
    else:
        state = State.REDRIVEN if record.offset in redriven else State.PENDING
    try:
        at = msgspec.convert(fields.get("dlq.at"), Time).astimezone(dt.UTC)
    except (msgspec.ValidationError, OverflowError):
        at = record.timestamp
    return DeadLetter(
        record=record,
        state=state,
        reason=fields.get("dlq.reason", UNKNOWN_REASON),
        error=fields.get("dlq.error", ""),
        partition=_number(fields.get("dlq.partition"), -1),
        attempts=_number(fields.get("dlq.attempts"), 1),
        at=at,
        group=fields.get(GROUP_HEADER, ""),
        timestamp=_time(fields.get(TIMESTAMP_HEADER)),
    )


def _time(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= _TIME_DIGITS else None


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else default  # noqa: PLR2004 - the digits of 2**31


class Summary:
    """Dead letters counted by the group that wrote them, by reason and by state."""

    def __init__(self, letters: Iterable[DeadLetter]) -> None:
        self.counts: dict[tuple[str, str], Counter[State]] = {}
        """By group and reason, as the times are."""
        self.oldest: dict[tuple[str, str], dt.datetime] = {}
        self.newest: dict[tuple[str, str], dt.datetime] = {}
        for letter in letters:
            kind = letter.group, letter.reason
            self.counts.setdefault(kind, Counter())[letter.state] += 1
            self.oldest[kind] = min(letter.at, self.oldest.get(kind, letter.at))
            self.newest[kind] = max(letter.at, self.newest.get(kind, letter.at))


class DeadLetterTopic(TopicReader):
    """Reads the dead-letter topic of one input topic."""

    error = DeadLetterError

    def __init__(self, settings: Connection, topic: str, tool: Tool = DLQ_SHOW) -> None:
        """``topic`` is the input topic's name without prefix, ``tool`` the command that reads it."""
        self.source = settings.topic(topic)
        self._settings = settings
        super().__init__(settings, settings.topic(dead_letter_topic(topic)), tool)

    def is_read_by(self, group: str) -> bool:
        """Tell whether a consumer group has members, or has committed offsets of the input topic.

        Raises :class:`DeadLetterError`.
        """
        places = [TopicPartition(self.source, partition) for partition in self.partitions_of(self.source)]
        try:
            # Administrative requests to a coordinator can abort the process (librdkafka 2.16).
            consumer: Consumer = config.make_client(Consumer, config.reader(self._settings, group))
            with contextlib.closing(consumer):
                committed = _committed(consumer, places)
            for each in committed:
                if each.error is not None:
                    raise self.failed(KafkaException(each.error), Operation.DESCRIBE, each.topic)
            if any(each.offset >= 0 for each in committed):
                return True
            groups = self._admin.list_consumer_groups(request_timeout=TIMEOUT_S).result(TIMEOUT_S + 1).valid
        except KafkaException as error:
            raise self.failed(error, Operation.DESCRIBE, group) from None
        except TimeoutError:
            raise self.unreachable(f"no response within {TIMEOUT_S:g} s") from None
        return any(each.group_id == group and each.state not in _WITHOUT_MEMBERS for each in groups)

    def letters(self, spans: Iterable[Span]) -> Iterator[DeadLetter]:
        """Go through the dead letters in order of partition and offset."""
        for span in spans:
            redriven: set[int] = set()
            for record in self.records(span):
                if _is_marker(record):
                    redriven.update(decode_marker(record))
            for record in self.records(span):
                if not _is_marker(record):
                    yield classify(record, self.source, redriven)


def _committed(consumer: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """Return the offsets that the consumer's group has committed."""
    try:
        return consumer.committed(places, timeout=TIMEOUT_S)
    except KafkaException:
        # The client looks for the coordinator until the time is over, and reports as an event why it was refused.
        event = consumer.poll(0)
        refusal = event.error() if event is not None else None
        if refusal is None:
            raise
        raise KafkaException(refusal) from None


def _is_marker(record: Record) -> bool:
    return any(name == MARKER_HEADER for name, _ in record.headers)
