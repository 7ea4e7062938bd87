"""The store protocol, which every engine implements."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from streamer.pooling import MAX
from streamer.vectors import Blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from streamer.scoring import ClipScores


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""The time 0 of versions."""


class StoreError(Exception):
    """The store cannot be used: wrong URL, not writable, or not a store of this software. Retrying does not help."""


class StoreUnavailableError(Exception):
    """The store is unavailable at the moment (disk full, locked, connection lost). Retrying may succeed."""


class StoreRefusedError(StoreError, StoreUnavailableError):
    """The store can be reached but not used until an operator has changed something: a password, a number of buckets.

    It ends a service that starts. A running service waits for it as it does for an unreachable store, because no event
    is at fault.
    """


class TruncatedStoreError(StoreRefusedError):
    """A file of the store has lost its end, and has to be restored."""


class EvictingStoreError(StoreRefusedError):
    """A server of the store may evict keys, so that deleted clips would come back and others would vanish.

    A running service waits with its writes, because each write may cause an eviction.
    """


_OFFSET_BITS = 40
_OFFSET = (1 << _OFFSET_BITS) - 1


@dataclass(frozen=True, slots=True)
class Position:
    """The position of an event: ``log`` is the hash of its partition's name, ``order`` its place there.

    The lower 40 bits of ``order`` are its offset, a trillion records in a partition. The 23 bits above are the epoch of
    the partition's leader when it was written, plus 1; 0 where that is not known. A log that lost its end gives the
    same offsets again, under a leader of a later epoch.

    Not sortable: positions in different partitions have no order.
    """

    log: int
    order: int

    @classmethod
    def of(cls, log_name: str, offset: int, leader_epoch: int | None = None) -> Position:
        """Return the position of an offset in the partition with the unique name ``log_name``."""
        era = 0 if leader_epoch is None else leader_epoch + 1
        return cls(xxh3_64_intdigest(log_name.encode()), era << _OFFSET_BITS | offset)

    def precedes(self, other: Position) -> bool:
        """Return whether this is earlier in the same partition; False if the partitions differ.

        Where the leader's epoch of one of them is not known, the offsets decide.
        """
        if self.log != other.log:
            return False
        if self.order > _OFFSET and other.order > _OFFSET:
            return self.order < other.order
        return self.order & _OFFSET < other.order & _OFFSET


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip to be written.

    ``vectors``: (n, d) float32, L2-normalised rows, n >= 1; the store casts them to its precision.
    ``times_ms``: (n,) uint32, the time of each vector's frame from the clip's start, not decreasing.
    ``uploaded_at`` orders the versions of a clip (with microseconds), ``position`` its events within a partition;
    ``duration_ms`` is the clip's length.
    """

    clip_id: str
    uploaded_at: dt.datetime
    position: Position
    duration_ms: int
    vectors: npt.NDArray[np.float32]
    times_ms: npt.NDArray[np.uint32]


class Embedding(NamedTuple):
    """One clip as read: arrays that are views of the store's memory, valid only inside :meth:`Store.read`.

    ``matrix``: (n, d) float32, float16 or int8. ``scales``: (n,) float32 for int8 (vector = row * scale),
    else None. ``times_ms``: (n,) uint32. ``uploaded_us``: ``uploaded_at`` in microseconds since 1970 UTC. A tuple,
    because each query creates a hundred to a thousand of them.
    """

    matrix: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None
    times_ms: npt.NDArray[np.uint32]
    uploaded_us: int
    duration_ms: int

    @property
    def uploaded_at(self) -> dt.datetime:
        """When the clip was uploaded, in UTC."""
        return EPOCH + dt.timedelta(microseconds=self.uploaded_us)


class PutOutcome(StrEnum):
    """The outcome of a write."""

    WRITTEN = "written"
    SUPERSEDED = "superseded"
    """The store has a newer upload, the same upload from a later offset, or a delete that applies to this one."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Figures for ``streamer store stats`` and the metrics; ``bytes`` is what the engine occupies on disk."""

    models: dict[str, int]
    """Clips (without tombstones) by model id."""
    tombstones: int
    bytes: int


NO_EVICTION = "noeviction"
"""The one policy by which a server refuses writes when its memory is used up, instead of removing keys."""


class StoreServer(NamedTuple):
    """The state of one server of a remote store."""

    name: str
    process: str
    """Identifies the server's process: a restarted server counts from 0 again."""
    is_primary: bool
    policy: str | None
    """What it does when its memory is used up; None if it does not tell."""
    evicted_keys: int
    """Keys that it has removed for lack of memory since it was started."""
    memory_share: float
    """How much of its memory it uses, 0 to 1; above 1 if its limit was lowered below what is stored."""
    replica_lag_s: float
    """Seconds since it last heard of its primary, or of the slowest of its replicas."""

    @property
    def evicts(self) -> bool:
        """Whether it may remove records; one that does not tell its policy is taken not to."""
        return self.policy not in {None, NO_EVICTION}


class Counted(Protocol):
    """What a store has counted while it looked records up."""

    @property
    def corrupt(self) -> int:
        """Number of reads of corrupt records; each record is logged only once."""
        ...

    @property
    def cache_hits(self) -> int:
        """Number of records read from this process's cache."""
        ...

    @property
    def cache_misses(self) -> int:
        """Number of records transferred from a server; 0 for an embedded store."""
        ...


class StoredClips(Blocks, Counted, Protocol):
    """The records of one read, in the order of the requested ids: as blocks, or one by one.

    An absent, deleted or corrupt record is in no block, and None one by one. An engine may look records up lazily. The
    three counts cover the records looked up so far.
    """

    def __getitem__(self, index: int) -> Embedding | None:
        """Return one record."""
        ...

    def __iter__(self) -> Iterator[Embedding | None]:
        """Iterate over the records."""
        ...


class Store(Protocol):
    """Embeddings of one model's clips. Methods may be called from several threads.

    A clip's version is its ``uploaded_at``. A delete has no version of its own: its tombstone takes the version of the
    record or tombstone that it replaces, else ``deleted_at``. So a duplicate of the deleted upload stays deleted and
    any newer upload is stored, regardless of the clocks of uploaders and brokers.

    Events may be repeated and late: after a crash everything since the last commit is processed again, and a paused
    process may wake up and write events that its partition's next owner processed long ago. Each record and tombstone
    therefore stores the :class:`Position` of the event that wrote it, by which an *earlier* event (in the same
    partition, at a smaller offset) is recognized:

    - An upload and a live record: the newer version wins. Of equal ones the upload wins unless it is earlier (a
      redelivery is written again, which repairs a damaged record).
    - An upload and a tombstone: the upload wins if its version is newer than the tombstone's and it is not earlier.
    - A delete and a live record or a tombstone: the delete is ignored if it is earlier, else it applies. A tombstone
      that is deleted again keeps its version and takes the later position, because events between the two deletes must
      not be restored.
    - The losing event changes nothing, not even the stored position. If nothing readable is stored, any event applies.

    Why the store converges to the state that the partition defines: in offset order, the stored version and the stored
    position never decrease. Suppose that a partition was applied up to some offset, and an event up to there is
    repeated. An upload is not newer than the stored record; a live record of the same version was written by it or by a
    later event; a tombstone admits only newer uploads. A delete is earlier than a live record, which it would otherwise
    have removed, and not later than a tombstone, which takes each delete's position. So repeated events change nothing,
    as long as each event's *first* application is in offset order.

    Limits of the rules: events of different partitions (a recreated topic, another cluster, a clip whose key moved to
    another partition when partitions were added) have no order, so the order of their arrival counts, and a replayed or
    late delete of the old partition removes an upload of the new one. An upload that one attempt could not embed (its
    source failed permanently), but a later attempt of another process could, is stored as the later attempt found it.
    And a delete leaves no tombstone for a model without a record of the clip: a late write by a process of that model
    is kept.

    A delete applies to the records of all models, each by its own stored position.
    """

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips, in their order and durably; each whole, and in an embedded store all of them or none.

        If it raises, some may have been written; the call can be repeated.
        """
        ...

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        """Remove a clip durably and leave a tombstone; True where a live record of this model was removed.

        ``position`` is the delete's own position.
        """
        ...

    def read(self, clip_ids: Sequence[str]) -> AbstractContextManager[StoredClips]:
        """Read records inside a context, after which neither they nor their arrays may be used.

        Each record is read atomically; in an embedded store all are from one snapshot.
        """
        ...

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str = MAX
    ) -> ClipScores:
        """Score clips against an L2-normalised query (d,), in the order of ``clip_ids``.

        ``pooling``: one of :mod:`streamer.pooling`, which makes a clip's score from the cosines of its vectors.
        ``deadline``: the moment of the monotonic clock by which a remote store has to answer; None: by its own time
        limit. Clips that it could not look up until then are ``unavailable``. Raises :class:`StoreUnavailableError` if
        the whole store is, and ValueError if the query is not finite.
        """
        ...

    def clip_ids(self) -> Iterator[str]:
        """Yield the ids of this model's live clips, in no particular order."""
        ...

    def stats(self) -> StoreStats:
        """Count the records of all models."""
        ...

    def ping(self) -> None:
        """Raise :class:`StoreUnavailableError` if the store is unreachable, or may evict records."""
        ...

    def servers(self) -> Sequence[StoreServer]:
        """Return the servers as the last :meth:`ping` found them; none for an embedded store."""
        ...

    def close(self) -> None:
        """Release the store; no views into it may exist. May be called twice."""
        ...


def masked(url: str) -> str:
    """Return a store's URL without its password."""
    return re.sub(r"(?<=://)([^:@]*):.*@", r"\1:***@", url)
