"""The store protocol, which every engine fulfils."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from streamer.vectors import Blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""From which versions are counted."""


class StoreError(Exception):
    """The store cannot be used as asked: wrong URL, not writable, not a store of ours. Not worth a retry."""


class StoreUnavailableError(Exception):
    """The store cannot be reached or written just now (disk full, locked, connection lost). Worth a retry."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where an event stands: ``log`` is the hash of its log's name, ``offset`` (>= 0) counts within that log.

    Not to be sorted: positions of different logs have no order.
    """

    log: int
    offset: int

    @classmethod
    def of(cls, log_name: str, offset: int) -> Position:
        """Return the position ``offset`` of the log that is called ``log_name``."""
        return cls(xxh3_64_intdigest(log_name.encode()), offset)

    def precedes(self, other: Position) -> bool:
        """Tell whether this is earlier in the same log; False where the logs differ."""
        return self.log == other.log and self.offset < other.offset


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip to be written.

    ``vectors``: (n, d) float32, L2-normalised rows, n >= 1; the store casts them to its precision.
    ``times_ms``: (n,) uint32, the time of each vector's frame from the clip's start, not decreasing.
    ``uploaded_at`` orders the versions of a clip (microseconds count), ``position`` its events in the log that
    brought them; ``duration_ms`` is the clip's length.
    """

    clip_id: str
    uploaded_at: dt.datetime
    position: Position
    duration_ms: int
    vectors: npt.NDArray[np.float32]
    times_ms: npt.NDArray[np.uint32]


class Embedding(NamedTuple):
    """One clip as read: arrays that look into the store's own memory, valid only inside :meth:`Store.read`.

    ``matrix``: (n, d) float32, float16 or int8. ``scales``: (n,) float32 for int8 (vector = row * scale),
    else None. ``times_ms``: (n,) uint32. ``uploaded_us``: ``uploaded_at`` in microseconds since 1970 UTC. A
    tuple, since each query makes a hundred to a thousand of them.
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
    """What became of a write."""

    WRITTEN = "written"
    SUPERSEDED = "superseded"
    """The store holds a newer upload, the same one from later in the log, or a delete that outlasts this one."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Figures for ``streamer store stats`` and the metrics; ``bytes`` is what the engine occupies on disk."""

    models: dict[str, int]
    """Clips (without tombstones) by model id."""
    tombstones: int
    bytes: int


class StoredClips(Blocks, Protocol):
    """The records of one read, in the order of the ids that were given: as blocks, or one by one.

    A record that is absent, deleted or corrupt is in no block, and None one by one. An engine may look records up
    when they are asked for. The three counts are of what has been looked up so far.
    """

    def __getitem__(self, index: int) -> Embedding | None:
        """Return one record."""
        ...

    def __iter__(self) -> Iterator[Embedding | None]:
        """Go through the records."""
        ...

    @property
    def corrupt(self) -> int:
        """How often a corrupt record was met; each is logged once in the life of its store."""
        ...

    @property
    def cache_hits(self) -> int:
        """How many records were read whose bytes this process had already."""
        ...

    @property
    def cache_misses(self) -> int:
        """How many records were read whose bytes had to be transferred; an embedded store transfers none."""
        ...


class Store(Protocol):
    """Embeddings of one model's clips. Methods may be called from several threads.

    A clip's version is its ``uploaded_at``. A delete has none of its own: its tombstone takes that of what it
    removes (of the tombstone that stands there already, likewise), else ``deleted_at``. So a duplicate of the
    deleted upload stays dead and any newer upload lives, whatever the clocks of uploaders and brokers say.

    Events may come again, and late: after a crash everything since the last commit is replayed, and a paused
    process may wake and write what its partition's next owner has long gone past. Each record and tombstone
    therefore keeps the :class:`Position` of the event that wrote it, and what is *earlier* (in the same log,
    at a smaller offset) is told from what is news:

    - An upload meets a live record: the newer version wins. Of equal ones the upload wins unless it is earlier
      (a redelivery is written again, which heals the record).
    - An upload meets a tombstone: it wins if its version is newer than the tombstone's and it is not earlier.
    - A delete meets a live record or a tombstone: it is ignored where it is earlier, else it applies. A
      tombstone that is deleted again keeps its version and takes the later position, since what stands between
      the two deletes in the log must not come back.
    - What loses changes nothing, the stored position included. Where nothing readable is stored anything applies.

    Why this makes the store end as the log says: in the order of the log, the stored version never falls and
    the stored position never goes back. Let a log be applied up to some offset, and an event up to there come
    again. An upload is not newer than what is stored; an equally new live record was written by it or later; a
    tombstone admits only newer ones. A delete is earlier than a live record, which else it would have removed,
    and not later than a tombstone, which takes each delete's position. So nothing changes, whatever comes again
    and how often, as long as each event's *first* application is in the order of the log.

    What the rules cannot tell: events of different logs (a topic made anew, another cluster, a clip whose key
    went to another partition when some were added) have no order, so the order of their arrival counts, and a
    replayed or late delete of the old log removes an upload of the new one. An upload that one attempt could
    not embed (its source failed for good) and a later attempt of another process could is stored as that later
    attempt found it. And a delete leaves no tombstone for a model that has no record of the clip: a late write
    of a process of that other model stays.

    A delete reaches the records of all models, each by its own stored position.
    """

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips, in their order and durably; each whole, and in an embedded store all of them or none.

        Where it raises, some may be written, and the same call can be made again.
        """
        ...

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        """Remove a clip durably and leave a tombstone; True where a live record of this model was removed.

        ``position`` is the delete's own place in the log.
        """
        ...

    def read(self, clip_ids: Sequence[str]) -> AbstractContextManager[StoredClips]:
        """Read records, for the length of a context, after which neither they nor their arrays may be used.

        Each is whole as it was at one moment, which in an embedded store is the same for all of them.
        """
        ...

    def clip_ids(self) -> Iterator[str]:
        """Go through the ids of this model's live clips, in no particular order."""
        ...

    def stats(self) -> StoreStats:
        """Count what is stored."""
        ...

    def ping(self) -> None:
        """Raise :class:`StoreUnavailableError` where the store cannot be reached."""
        ...

    def close(self) -> None:
        """Release the store; views into it must be gone. May be called twice."""
        ...


def masked(url: str) -> str:
    """Return a store's URL without its password."""
    return re.sub(r"(?<=://)([^:@]*):.*@", r"\1:***@", url)
