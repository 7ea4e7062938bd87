"""How far a partition is done, in the words of a group's commit: an offset and the metadata beside it.

Records are done in any order. The offset that is committed is that of the first record that is not done; the
commit's metadata lists those behind it that are. So a record that takes its time (a clip that hangs its decoder)
holds up neither the outputs of the others in its partition nor, after a restart, has them processed again.
confluentinc/parallel-consumer commits so, too.

Offset and metadata are one commit, so they are exactly once together. What knows nothing of the metadata, an older
release or a reset of the group's offsets, begins at the offset and processes again what was done behind it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition

WINDOW = 8_192
"""How far behind the first record that is not done others may be committed. As a bitmap this takes 1.4 kB; brokers
take 4 kB of metadata (offset.metadata.max.bytes)."""

_MARK = "done1:"
"""Begins our metadata; the number is that of its format."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Every record before ``offset`` is done, and of those from there on the ones in ``ahead``."""

    offset: int
    ahead: frozenset[int] = frozenset()

    @classmethod
    def of(cls, committed: TopicPartition) -> Progress | None:
        """Read what a group has committed; None where that is nothing."""
        if committed.offset < 0:
            return None
        return cls(committed.offset, _read(committed.metadata or "", committed.offset))

    @property
    def metadata(self) -> str:
        """The commit's metadata: empty where nothing is ahead, else a bitmap of the offsets from ``offset`` on."""
        if not self.ahead:
            return ""
        bits = 0
        for offset in self.ahead:
            bits |= 1 << (offset - self.offset)
        return _MARK + base64.b85encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()

    @property
    def last(self) -> int:
        """The offset behind the last record that is done."""
        return max(self.ahead, default=self.offset - 1) + 1

    def covers(self, other: Progress) -> bool:
        """Whether everything is done that is done in ``other``."""
        return self.offset >= other.offset and all(self.includes(offset) for offset in other.ahead)

    def includes(self, offset: int) -> bool:
        """Whether the record at ``offset`` is done."""
        return offset < self.offset or offset in self.ahead


def _read(metadata: str, first: int) -> frozenset[int]:
    # Somebody else's metadata, which is allowed, says nothing to us.
    if not metadata.startswith(_MARK) or len(metadata) > WINDOW:
        return frozenset()
    try:
        bitmap = base64.b85decode(metadata.removeprefix(_MARK))
    except (ValueError, binascii.Error):
        return frozenset()
    bits = int.from_bytes(bitmap, "little")
    return frozenset(first + n for n in range(bits.bit_length()) if bits >> n & 1)
