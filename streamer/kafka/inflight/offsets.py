"""The progress of a partition as a group commits it: an offset, and metadata that lists later completed records.

Records complete out of order. The committed offset is that of the first record that is not completed; the commit's
metadata lists the completed records after it. So a slow record (a clip that hangs its decoder) neither delays the
outputs of the others in its partition nor causes them to be processed again after a restart.
confluentinc/parallel-consumer encodes its out-of-order commits in the same way.

Offset and metadata are written in one commit, so exactly once covers both. A reader that ignores the metadata (another
tool, a reset of the group's offsets) begins at the offset and processes the completed records after it again.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition

WINDOW = 8_192
"""How many offsets after the first incomplete record others may be committed. The bitmap takes 1.4 kB; brokers accept
4 kB of metadata (offset.metadata.max.bytes)."""

_MARK = "done1:"
"""Prefix of our metadata; the number is the version of its format."""


@dataclass(frozen=True, slots=True)
class Progress:
    """All records before ``offset`` are completed, and of the later ones those in ``ahead``."""

    offset: int
    ahead: frozenset[int] = frozenset()

    @classmethod
    def of(cls, committed: TopicPartition) -> Progress | None:
        """Read a group's commit; None where it has committed nothing."""
        if committed.offset < 0:
            return None
        return cls(committed.offset, _read(committed.metadata or "", committed.offset))

    @property
    def metadata(self) -> str:
        """The commit's metadata: a bitmap of the offsets from ``offset`` on; empty where ``ahead`` is."""
        if not self.ahead:
            return ""
        bits = 0
        for offset in self.ahead:
            bits |= 1 << (offset - self.offset)
        return _MARK + base64.b85encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()

    @property
    def last(self) -> int:
        """The offset after the last completed record."""
        return max(self.ahead, default=self.offset - 1) + 1

    def covers(self, other: Progress) -> bool:
        """Whether all records that are completed in ``other`` are completed here too."""
        return self.offset >= other.offset and all(self.includes(offset) for offset in other.ahead)

    def includes(self, offset: int) -> bool:
        """Whether the record at ``offset`` is completed."""
        return offset < self.offset or offset in self.ahead


def _read(metadata: str, first: int) -> frozenset[int]:
    # Any client may write its own metadata into a commit; that is ignored.
    if not metadata.startswith(_MARK) or len(metadata) > WINDOW:
        return frozenset()
    try:
        bitmap = base64.b85decode(metadata.removeprefix(_MARK))
    except (ValueError, binascii.Error):
        return frozenset()
    bits = int.from_bytes(bitmap, "little")
    return frozenset(first + n for n in range(bits.bit_length()) if bits >> n & 1)
