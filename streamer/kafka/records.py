"""What passes between the consume loop and the pipelines: records in, outputs out, dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.events import Reason, now

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Sequence

Headers = tuple[tuple[str, bytes | None], ...]

DLQ_SUFFIX = ".dlq"
_MAX_ERROR_CHARS = 1_000
_TRUNCATED_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """One consumed record. ``topic`` is its full name; ``timestamp`` the record's own, by producer or broker."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: dt.datetime

    @property
    def size(self) -> int:
        """Bytes that the record holds in memory, near enough for a budget."""
        payload = len(self.key or b"") + len(self.value or b"")
        return 200 + payload + sum(len(name) + len(value or b"") for name, value in self.headers)

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
    """Return a dead letter that fits anywhere: the value is cut, and a header says how long it was."""
    value = dead.value or b""
    headers = (*dead.headers, ("dlq.truncated_from", str(len(value)).encode()))
    return Output(dead.topic, dead.key, value[:_TRUNCATED_BYTES], headers)
