"""The files of a partition, cut as a crash cuts them that loses what had not reached the disk.

A segment (``<base offset>.log``) is a row of record batches. Each begins with its base offset (int64) and the number
of bytes that follow those twelve (int32), both big-endian: the format of Kafka's record batches, version 2.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEAD = struct.Struct(">qi")


def last_batches(folder: Path, count: int) -> int:
    """Return the base offset of the last batch but ``count - 1`` of the newest segment. Raises ValueError."""
    offsets = [offset for offset, _ in _batches(_segments(folder)[-1])]
    if len(offsets) < count:
        raise ValueError(f"{folder.name} has {len(offsets)} batches, fewer than {count}")
    return offsets[-count]


def cut(folder: Path, offset: int) -> None:
    """Lose all batches from ``offset`` on, and whatever describes the segments, which brokers write again."""
    for segment in _segments(folder):
        position = next((position for base, position in _batches(segment) if base >= offset), None)
        if position is not None:
            with segment.open("r+b") as file:
                file.truncate(position)
    for pattern in ("*.index", "*.timeindex", "*.txnindex", "*.snapshot"):
        for each in folder.glob(pattern):
            each.unlink()


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def _batches(segment: Path) -> Iterator[tuple[int, int]]:
    """Go through the base offsets and positions of a segment's batches."""
    content = segment.read_bytes()
    position = 0
    while position + _HEAD.size <= len(content):
        base, length = _HEAD.unpack_from(content, position)
        if length <= 0:  # space that was allocated in advance
            return
        yield base, position
        position += _HEAD.size + length
