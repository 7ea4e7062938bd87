"""What an operator does to a whole store: the protocol for it, apart from the services' :class:`Store`.

Here a record is its bytes, which are the same in every engine, under the key that
:func:`streamer.store.record_format.key` makes, whatever the engine itself calls it. All models' records and tombstones
are seen.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


PAGE_RECORDS = 512
"""Most records that are read, put or removed at once."""
PAGE_BYTES = 4 << 20
"""Bytes of values from which on a page takes no further record; one record alone may be larger."""


class Raw(NamedTuple):
    """One record or tombstone, unchecked: its ``key`` (:func:`streamer.store.record_format.key`) and its bytes."""

    key: bytes
    value: bytes


class Page(NamedTuple):
    """Some records, and the cursor that goes on behind them.

    ``anew``: with this page the scan begins anew, and what has come before comes again.
    """

    records: list[Raw]
    cursor: str
    anew: bool = False


class Merged(StrEnum):
    """What became of a record that was put as it was read elsewhere."""

    WRITTEN = "written"
    PRESENT = "present"
    """The same bytes were there already."""
    KEPT = "kept"
    """What was there is not older; it stays."""


class StoreAdmin(Protocol):
    """A whole store, of all models, while services may read and write it. For one thread."""

    @property
    def identity(self) -> str:
        """Tell this store from others, also from one that took its place later; it may change without need."""
        ...

    def models(self) -> dict[bytes, str]:
        """Return the models' ids by the prefix of their keys."""
        ...

    def register(self, models: Mapping[bytes, str]) -> None:
        """Make models known. Raises :class:`StoreError` where a prefix belongs to another model."""
        ...

    def forget(self, prefix: bytes) -> bool:
        """Take a model's name out; False, changing nothing, where there still are records of it."""
        ...

    def count(self) -> int:
        """Return about how many records and tombstones there are, at once."""
        ...

    def scan(self, cursor: str = "", *, prefix: bytes = b"", heads: bool = False) -> Iterator[Page]:
        """Go through the records whose keys begin with ``prefix``, from ``cursor`` on, in an order of the engine's.

        ``heads`` cuts values to their first :data:`~streamer.store.record_format.HEADER_BYTES`. Every record that is
        there from the beginning to the end comes at least once, however often the scan was ended and begun again
        with the cursor of a page; what is written or removed meanwhile comes or does not. Where servers have
        taken each other's place, the scan begins anew and says so.
        """
        ...

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the records under ``keys`` as they are, None where nothing is."""
        ...

    def put(self, records: Sequence[Raw], note: Callable[[list[Merged]], bytes] | None = None) -> list[Merged]:
        """Put records as they are, each where :func:`streamer.store.record_format.outranks` says so, durably.

        A record that cannot be read gives way to any; records that cannot be read must not be put. What ``note``
        makes of the outcomes takes the place of :meth:`note`, not before the records are durable; it may be
        called more than once.
        """
        ...

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove records durably, whatever their versions, without tombstones."""
        ...

    def note(self) -> bytes | None:
        """Return what a copy that is under way has left here."""
        ...

    def clear_note(self) -> None:
        """Remove :meth:`note`."""
        ...

    def compact(self, to: Path | None) -> tuple[int, int]:
        """Give space back, in place or as a copy at ``to``; returns the bytes on disk before and after.

        Raises :class:`StoreError` where the engine does so by itself or the store is in use.
        """
        ...

    def close(self) -> None:
        """Release the store. May be called twice."""
        ...
