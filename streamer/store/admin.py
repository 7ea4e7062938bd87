"""The protocol for operations on a whole store, separate from the services' :class:`Store`.

Here a record is its bytes, which are the same in every engine, under the key of
:func:`streamer.store.record_format.key`, whatever key the engine uses internally. It covers the records and tombstones
of all models.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


PAGE_RECORDS = 512
"""Most records that are read, put or removed in one call."""
PAGE_BYTES = 4 << 20
"""A page is complete when its values reach this many bytes; a single record may be larger."""


class Raw(NamedTuple):
    """One record or tombstone, unchecked: its ``key`` (:func:`streamer.store.record_format.key`) and its bytes."""

    key: bytes
    value: bytes


class Page(NamedTuple):
    """Some records, and the cursor after them.

    ``restarted``: the scan starts over with this page, so that earlier records are returned again.
    """

    records: list[Raw]
    cursor: str
    restarted: bool = False


class Merged(StrEnum):
    """The outcome of putting a record that was read elsewhere."""

    WRITTEN = "written"
    PRESENT = "present"
    """The target already had the same bytes."""
    KEPT = "kept"
    """The target's record is not older; it is kept."""


class StoreAdmin(Protocol):
    """A whole store, of all models, while services may read and write it. For one thread."""

    @property
    def identity(self) -> str:
        """An id of this store, different from that of a later one at the same place; it may change needlessly."""
        ...

    def models(self) -> dict[bytes, str]:
        """Return the models' ids by the prefix of their keys."""
        ...

    def register(self, models: Mapping[bytes, str]) -> None:
        """Register models. Raises :class:`StoreError` if a prefix belongs to another model."""
        ...

    def forget(self, prefix: bytes) -> bool:
        """Unregister a model; returns False, changing nothing, if it still has records."""
        ...

    def count(self) -> int:
        """Return an estimate of the number of records and tombstones, quickly."""
        ...

    def scan(self, cursor: str = "", *, prefix: bytes = b"", heads: bool = False) -> Iterator[Page]:
        """Yield the records whose keys begin with ``prefix``, from ``cursor`` on, in an engine-specific order.

        ``heads`` cuts values to their first :data:`~streamer.store.record_format.HEADER_BYTES`. Every record that
        exists during the whole scan is returned at least once, however often the scan is resumed with the cursor of a
        page; records written or removed meanwhile may be returned or not. If servers were replaced by others, the scan
        starts over and sets ``restarted``.
        """
        ...

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the records under ``keys`` unchanged, None for an absent one."""
        ...

    def put(self, records: Sequence[Raw], note: Callable[[list[Merged]], bytes] | None = None) -> list[Merged]:
        """Put records unchanged and durably, each if :func:`streamer.store.record_format.outranks` says so.

        Any record replaces an unreadable one; unreadable records must not be put. The value that ``note`` returns for
        the outcomes replaces :meth:`note`, after the records are durable; it may be called more than once.
        """
        ...

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove records durably, whatever their versions, without tombstones."""
        ...

    def note(self) -> bytes | None:
        """Return the progress note of an unfinished copy, None if there is none."""
        ...

    def clear_note(self) -> None:
        """Remove :meth:`note`."""
        ...

    def compact(self, to: Path | None) -> tuple[int, int]:
        """Free unused space, in place or as a copy at ``to``; returns the bytes on disk before and after.

        Raises :class:`StoreError` if the engine does so by itself or the store is in use.
        """
        ...

    def close(self) -> None:
        """Release the store. May be called twice."""
        ...
