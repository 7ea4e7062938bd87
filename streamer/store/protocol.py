"""The store protocol, which every engine fulfils, and the choice of an engine by its URL."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from streamer.settings import Precision


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""From which versions are counted."""


_UNKNOWN_ENGINE = "{}: is no engine of this release; use lmdb:PATH"


class StoreError(Exception):
    """The store cannot be used as asked: wrong URL, not writable, not a store of ours. Not worth a retry."""


class StoreUnavailableError(Exception):
    """The store cannot be reached or written just now (disk full, locked, connection lost). Worth a retry."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip to be written.

    ``vectors``: (n, d) float32, L2-normalised rows, n >= 1; the store casts them to its precision.
    ``times_ms``: (n,) uint32, the time of each vector's frame from the clip's start, not decreasing.
    ``uploaded_at`` orders the versions of a clip (microseconds count); ``duration_ms`` is the clip's length.
    """

    clip_id: str
    uploaded_at: dt.datetime
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
    """The store holds a newer upload, or a delete that this upload does not come after."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Figures for ``streamer store stats`` and the metrics; ``bytes`` is what the engine occupies on disk."""

    models: dict[str, int]
    """Clips (without tombstones) by model id."""
    tombstones: int
    bytes: int


class Store(Protocol):
    """Embeddings of one model's clips. Methods may be called from several threads.

    Versions: a put wins unless the store holds a later ``uploaded_at`` for the clip, or a tombstone whose
    version is not earlier than the put's; an equal ``uploaded_at`` of a live record is written again
    (idempotent redelivery). A delete always wins over what is stored, since it comes later in the log; its
    tombstone takes the ``uploaded_at`` of what it removes as version (of the tombstone that stands there
    already, likewise), else ``deleted_at``. So a redelivery of the deleted upload stays dead and any newer
    upload lives, whatever the clocks of uploaders and brokers say. A delete reaches the records of all
    models.
    """

    @property
    def corrupt_reads(self) -> int:
        """How often this object has met a corrupt record, reported as absent; each clip is logged once."""
        ...

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips in one durable transaction, in their order; all of them or none."""
        ...

    def delete(self, clip_id: str, deleted_at: dt.datetime) -> bool:
        """Remove a clip durably and leave a tombstone; True where a live record of this model was removed."""
        ...

    def read(self, clip_ids: Sequence[str]) -> AbstractContextManager[list[Embedding | None]]:
        """Read records from one consistent snapshot; None for what is absent, deleted or corrupt.

        The arrays must not be used after the block ends.
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


def open_store(
    url: str, *, model_id: str, dim: int, precision: Precision = "float16", read_only: bool = False
) -> Store:
    """Open the store that ``url`` names for one model's vectors of length ``dim``; created where absent.

    ``read_only`` promises no writes to a store that exists (the engine may still keep reader bookkeeping).
    Raises :class:`StoreError`, or :class:`StoreUnavailableError` where a later attempt may succeed.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb":
        from streamer.store.lmdb import LmdbStore  # noqa: PLC0415 - only the engine in use is loaded

        return LmdbStore(rest, model_id=model_id, dim=dim, precision=precision, read_only=read_only)
    raise StoreError(_UNKNOWN_ENGINE.format(scheme))


def open_existing(url: str, *, model_id: str = "") -> Store:
    """Open a store that is there already, to look into it: nothing is created, vectors may have any length.

    ``model_id`` is whose records are read; without one :meth:`Store.stats` still tells of all models. Raises
    :class:`StoreError`.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb":
        from streamer.store.lmdb import LmdbStore, is_store  # noqa: PLC0415 - only the engine in use is loaded

        if not is_store(rest):
            raise StoreError(f"{rest}: there is no store")
        return LmdbStore(rest, model_id=model_id, dim=None, read_only=True)
    raise StoreError(_UNKNOWN_ENGINE.format(scheme))
