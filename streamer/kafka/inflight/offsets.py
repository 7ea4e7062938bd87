"""The progress of a partition as a group commits it: an offset, and metadata that lists later completed records.

Records complete out of order. The committed offset is that of the first record that is not completed; the commit's
metadata lists the completed records after it. So a slow record (a clip that hangs its decoder) neither delays the
outputs of the others in its partition nor causes them to be processed again after a restart.
confluentinc/parallel-consumer encodes its out-of-order commits in the same way.

Offset and metadata are written in one commit, so exactly once covers both. A reader that ignores the metadata (another
tool, a reset of the group's offsets) begins at the offset and processes the completed records after it again.

An offset means nothing without the log that it belongs to, and Kafka keeps commits by the topic's name. So the metadata
also names the log (:attr:`~streamer.kafka.records.Record.log`) and repeats the offset, and :func:`read_commit` compares
both with what it finds: a topic may have been deleted and created again, MirrorMaker 2 copies metadata unchanged beside
an offset that it has translated, and an operator sets offsets by hand. Whatever does not match is processed again.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition

WINDOW = 8_192
"""How many offsets after the first incomplete record others may be committed. The bitmap takes 1.4 kB; brokers accept
4 kB of metadata (offset.metadata.max.bytes)."""

_MARK = "done2:"
"""Prefix of our metadata; the number is the version of its format. The rest is LOG:OFFSET:BITMAP, the offset in
hexadecimal digits, the bitmap in base 85. Metadata of version 1 named no log, so it is ignored."""


class Origin(Enum):
    """What a commit's metadata says about where the commit comes from."""

    NONE = "none"
    """The group has committed nothing."""
    OWN = "own"
    """Our commit, of this log."""
    UNMARKED = "unmarked"
    """The metadata is not ours, or is of an older format, or could not be read: only the offset counts."""
    MOVED = "moved"
    """Our metadata of this log beside another offset: somebody has set the offset. Only that counts."""
    TRANSLATED = "translated"
    """Our metadata of another log beside another offset, as MirrorMaker 2 writes it: only the offset counts."""
    FOREIGN = "foreign"
    """Our commit of another log: it was in flight when the topic was created again. Not even the offset counts."""


class Commit(NamedTuple):
    """A group's commit as far as it may be believed; ``progress`` is None where nothing of it may."""

    progress: Progress | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class Progress:
    """All records before ``offset`` are completed, and of the later ones those in ``ahead``."""

    offset: int
    ahead: frozenset[int] = frozenset()

    def metadata(self, log: str) -> str:
        """Return the commit's metadata: the log, the offset, and a bitmap of the offsets in ``ahead`` from there on."""
        bits = 0
        for offset in self.ahead:
            bits |= 1 << (offset - self.offset)
        bitmap = base64.b85encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()
        return f"{_MARK}{log}:{self.offset:x}:{bitmap}"

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


def read_commit(committed: TopicPartition, log: str) -> Commit:
    """Read a group's commit for the partition that ``log`` identifies now."""
    if committed.offset < 0:
        return Commit(None, Origin.NONE)
    believed = Progress(committed.offset)
    # Any client may write its own metadata into a commit; that is ignored.
    metadata = committed.metadata or ""
    if not metadata.startswith(_MARK) or len(metadata) > WINDOW:
        return Commit(believed, Origin.UNMARKED)
    try:
        its_log, digits, bitmap = metadata.removeprefix(_MARK).split(":", 2)
        its_offset = int(digits, 16)
        bits = int.from_bytes(base64.b85decode(bitmap), "little")
    except (ValueError, binascii.Error):
        return Commit(believed, Origin.UNMARKED)
    is_same_offset = its_offset == committed.offset
    if its_log != log:
        return Commit(None, Origin.FOREIGN) if is_same_offset else Commit(believed, Origin.TRANSLATED)
    if not is_same_offset:
        return Commit(believed, Origin.MOVED)
    ahead = frozenset(its_offset + n for n in range(bits.bit_length()) if bits >> n & 1)
    return Commit(Progress(its_offset, ahead), Origin.OWN)
