"""The files of a partition, cut as a crash cuts them that loses what had not reached the disk.

A segment (``<base offset>.log``) is a row of record batches. Each begins with its base offset (int64) and the number
of bytes that follow those twelve (int32), both big-endian: the format of Kafka's record batches, version 2. Its
attributes (int16 at 21) say whether it belongs to a transaction, and whether it is a transaction's marker; the producer
(int64 at 43) says of which.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_HEAD = struct.Struct(">qi")
_ATTRIBUTES, _PRODUCER = struct.Struct(">h"), struct.Struct(">q")
_ATTRIBUTES_AT, _PRODUCER_AT = 21, 43
_TRANSACTIONAL, _CONTROL = 1 << 4, 1 << 5


class _Batch(NamedTuple):
    base: int
    position: int
    attributes: int
    producer: int


def last_batches(folder: Path, count: int) -> int:
    """Return the base offset of the last batch but ``count - 1`` of the newest segment. Raises ValueError.

    It is an earlier one where a transaction would lose its marker and keep a record: nobody would ever end it, and
    nothing behind it could be read until an operator aborts it.
    """
    batches = list(_batches(_segments(folder)[-1]))
    if len(batches) < count:
        raise ValueError(f"{folder.name} has {len(batches)} batches, fewer than {count}")
    kept = len(batches) - count
    while (first := _first_open(batches[:kept])) is not None:
        kept = first
    return batches[kept].base


def _first_open(batches: Sequence[_Batch]) -> int | None:
    """Return the index of the first batch of a transaction that has no marker among these."""
    begun: dict[int, int] = {}
    for index, each in enumerate(batches):
        if each.attributes & _CONTROL:
            begun.pop(each.producer, None)
        elif each.attributes & _TRANSACTIONAL:
            begun.setdefault(each.producer, index)
    return min(begun.values(), default=None)


def cut(folder: Path, offset: int) -> None:
    """Lose all batches from ``offset`` on, and whatever describes the segments, which brokers write again."""
    for segment in _segments(folder):
        position = next((each.position for each in _batches(segment) if each.base >= offset), None)
        if position is not None:
            with segment.open("r+b") as file:
                file.truncate(position)
    for pattern in ("*.index", "*.timeindex", "*.txnindex", "*.snapshot"):
        for each in folder.glob(pattern):
            each.unlink()


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def _batches(segment: Path) -> Iterator[_Batch]:
    content = segment.read_bytes()
    position = 0
    while position + _HEAD.size <= len(content):
        base, length = _HEAD.unpack_from(content, position)
        if length <= 0:  # space that was allocated in advance
            return
        (attributes,) = _ATTRIBUTES.unpack_from(content, position + _ATTRIBUTES_AT)
        (producer,) = _PRODUCER.unpack_from(content, position + _PRODUCER_AT)
        yield _Batch(base, position, attributes, producer)
        position += _HEAD.size + length
