"""Dead letters: records that could not be processed, with the reason in their headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from streamer.events import Reason, now
from streamer.kafka.records import REASON_HEADER, Output, Record
from streamer.topology import dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import TopicPartition

log = structlog.get_logger()


_MAX_ERROR_CHARS = 1_000


GROUP_HEADER = "dlq.group"
"""Header of a dead letter: the full name of the consumer group that could not process the record."""
TIMESTAMP_HEADER = "dlq.timestamp"
"""Header of a dead letter: the record's own time, in milliseconds since 1970. The dead letter's time is its own."""
TIMESTAMP_TYPE_HEADER = "dlq.timestamp_type"
"""Header of a dead letter: whose time that was, ``CreateTime`` or ``LogAppendTime``."""
LAST_OFFSET_HEADER = "dlq.last_offset"
"""Header of a dead letter that stands for a whole batch: the last of its offsets."""
REDRIVEN_FROM = "dlq.redriven_from"
"""Header of a redriven record: ``<dead-letter topic>/<partition>/<offset>``."""

_TRUNCATED = "dlq.truncated_from"
_TRUNCATED_BYTES = 100_000
_TRUNCATED_HEADER_BYTES = 1_000
_TRUNCATED_HEADERS = 100


def dead_letter(record: Record, reason: Reason, error: str, *, attempts: int = 1) -> Output:
    """Wrap a record that cannot be processed: its key, value and headers, and the reason."""
    why: Sequence[tuple[str, str]] = (
        (REASON_HEADER, reason.value),
        ("dlq.error", error[:_MAX_ERROR_CHARS]),
        ("dlq.topic", record.topic),
        ("dlq.partition", str(record.partition)),
        ("dlq.offset", str(record.offset)),
        *(((TIMESTAMP_HEADER, str(record.timestamp_ms)),) if record.timestamp_type else ()),
        *(((TIMESTAMP_TYPE_HEADER, record.timestamp_type),) if record.timestamp_type else ()),
        ("dlq.attempts", str(attempts)),
        *(((GROUP_HEADER, record.group),) if record.group else ()),
        ("dlq.at", now().isoformat().replace("+00:00", "Z")),
    )
    # A redriven record that fails again carries the newest reason only.
    kept = tuple((name, value) for name, value in record.headers if not name.startswith("dlq."))
    headers = kept + tuple((name, text.encode(errors="replace")) for name, text in why)
    return Output(record.dead_letters or dead_letter_topic(record.topic), record.key, record.value, headers)


def unreadable(
    partition: TopicPartition, last: int, error: str, *, log: str, group: str, dead_letters: str
) -> tuple[Record, Output]:
    """Return what stands for the offsets from ``partition``'s to ``last``, which nobody can read, and its dead letter.

    Neither has a key, a value or headers of its own: all that is known of the records is their place.
    """
    place = partition.topic, partition.partition, partition.offset
    record = Record(
        *place, key=None, value=None, headers=(), timestamp=now(), log=log, group=group, dead_letters=dead_letters
    )
    letter = dead_letter(record, Reason.UNREADABLE, error)
    headers = (*letter.headers, (LAST_OFFSET_HEADER, str(last).encode()))
    return record, Output(letter.topic, None, None, headers)


def truncated(dead: Output) -> Output:
    """Return a dead letter within any size limit: large parts are truncated, and a header gives the value's length.

    One that was truncated before keeps only its own ``dlq.`` headers.
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


def log_dead_letter(record: Record, headers: Sequence[tuple[str, bytes | None]]) -> None:
    """Log one line for a record that was dead-lettered."""
    fields = {name.removeprefix("dlq."): value.decode(errors="replace") for name, value in headers if value}
    log.warning(
        "dead letter",
        reason=fields.get("reason"),
        error=fields.get("error"),
        attempts=fields.get("attempts"),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        group=fields.get("group"),
        key=(record.key or b"").decode(errors="replace")[:100],
    )
