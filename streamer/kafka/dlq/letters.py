"""The dead letter topics as an operator sees them: what is there, why, since when, and what was redriven.

A dead letter topic holds two kinds of records. Dead letters are what :func:`~streamer.kafka.dead_letters.dead_letter`
made. *Markers* are written by :mod:`streamer.kafka.dlq.redrive` and list the offsets, of their own partition, of
dead letters that were put back. A marker stands behind all that it lists, and retention takes a partition's
oldest records first, so a marker is there as long as a dead letter that it speaks of. Other readers of these
topics tell a dead letter by its ``dlq.reason``; a marker has none.

Reading goes twice through each partition, for the markers and then for the dead letters, so that memory holds
the redriven offsets and one record, however long the topic is. Dead letters that retention has taken are gone
and no error.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from streamer.events import Time
from streamer.kafka.readers.topic_reader import TopicReader
from streamer.topology import DLQ_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from streamer.kafka.readers.topic_reader import Span
    from streamer.kafka.records import Headers, Record
    from streamer.settings import Connection

GROUP = "streamer-dlq"
MARKER_HEADER = "dlq.marker"
UNKNOWN_REASON = "unknown"
"""Reason shown for a record that somebody else wrote and that carries none."""

_RELATIVE = re.compile(r"([0-9]{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class DeadLetterError(Exception):
    """Dead letters cannot be read or put back; the message is one line."""


class State(StrEnum):
    """What can be done with a dead letter."""

    PENDING = "pending"
    REDRIVEN = "redriven"
    TRUNCATED = "truncated"
    """Its value was cut when it was written, so the original is lost here and it is never redriven."""
    FOREIGN = "foreign"
    """Not of this input topic, or not written by us; never redriven."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. ``record`` is it itself; ``partition`` is where the original stood in its topic."""

    record: Record
    state: State
    reason: str
    error: str
    partition: int
    attempts: int
    at: dt.datetime

    @property
    def original_headers(self) -> Headers:
        """The headers that the original came with."""
        return tuple((name, value) for name, value in self.record.headers if not name.startswith("dlq."))


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: all that fit each given part; ``since <= dlq.at < until``."""

    reasons: Collection[str] = ()
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    key: str | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Say whether ``letter`` is meant."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
            and (self.key is None or letter.record.key == self.key.encode(errors="surrogateescape"))
        )


def parse_time(text: str, now: dt.datetime) -> dt.datetime:
    """Read RFC 3339, or an age such as ``90s``, ``15m``, ``2h``, ``3d``, ``1w``. Raises ValueError."""
    try:
        if relative := _RELATIVE.fullmatch(text):
            return now - dt.timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        return msgspec.convert(text, Time).astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is before or after all time") from None
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
    """Return the offsets that a marker lists. One that cannot be read is an error: skipping it would double."""
    try:
        return msgspec.json.decode(record.value or b"", type=_Marker).redriven
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DeadLetterError(f"{record.place} is marked as ours and cannot be read: {error}") from None


def classify(record: Record, topic: str, redriven: Iterable[int] = ()) -> DeadLetter:
    """Read a record of the dead letter topic of ``topic`` (full name); ``redriven`` are the partition's offsets."""
    told = {
        name: value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith("dlq.") and value is not None
    }
    if told.get("dlq.topic") != topic or "dlq.reason" not in told:
        state = State.FOREIGN
    elif "dlq.truncated_from" in told:
        state = State.TRUNCATED
    else:
        state = State.REDRIVEN if record.offset in redriven else State.PENDING
    try:
        at = msgspec.convert(told.get("dlq.at"), Time).astimezone(dt.UTC)
    except (msgspec.ValidationError, OverflowError):
        at = record.timestamp
    return DeadLetter(
        record=record,
        state=state,
        reason=told.get("dlq.reason", UNKNOWN_REASON),
        error=told.get("dlq.error", ""),
        partition=_number(told.get("dlq.partition"), -1),
        attempts=_number(told.get("dlq.attempts"), 1),
        at=at,
    )


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else default  # noqa: PLR2004 - the digits of 2**31


class Summary:
    """Dead letters counted by reason and state."""

    def __init__(self, letters: Iterable[DeadLetter]) -> None:
        self.counts: dict[str, Counter[State]] = {}
        self.oldest: dict[str, dt.datetime] = {}
        self.newest: dict[str, dt.datetime] = {}
        for letter in letters:
            reason = letter.reason
            self.counts.setdefault(reason, Counter())[letter.state] += 1
            self.oldest[reason] = min(letter.at, self.oldest.get(reason, letter.at))
            self.newest[reason] = max(letter.at, self.newest.get(reason, letter.at))


class DeadLetterTopic(TopicReader):
    """Reads the dead letter topic of one input topic."""

    error = DeadLetterError

    def __init__(self, settings: Connection, topic: str, *, role: str = "dlq-show") -> None:
        """``topic`` is the input topic's name without prefix, ``role`` that of whoever reads it."""
        self.source = settings.topic(topic)
        super().__init__(settings, self.source + DLQ_SUFFIX, group=GROUP, role=role)

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


def _is_marker(record: Record) -> bool:
    return any(name == MARKER_HEADER for name, _ in record.headers)
