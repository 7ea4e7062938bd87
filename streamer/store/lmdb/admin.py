"""Operations on a whole LMDB store."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.store import record_format
from streamer.store.admin import PAGE_BYTES, PAGE_RECORDS, Merged, Page, Raw
from streamer.store.lmdb.compact import compact_in_place, compact_to
from streamer.store.lmdb.environment import (
    DATA_FILE,
    DEFAULT_MAP_BYTES,
    RESERVED,
    Environment,
    acquire,
    bytes_on_disk,
    models,
    register,
    release,
)
from streamer.store.protocol import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streamer.store.lmdb.environment import Transaction

_NOTE = RESERVED + b"note"


class LmdbAdmin:
    """:class:`~streamer.store.admin.StoreAdmin` of the store in the folder ``path``."""

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = False,
        map_bytes: int = DEFAULT_MAP_BYTES,
        page_records: int = PAGE_RECORDS,
    ) -> None:
        if not str(path):
            raise StoreError("lmdb: needs a path")
        self._path = Path(path)
        if not (create or (self._path / DATA_FILE).is_file()):
            raise StoreError(f"{path}: no such store")
        self._page_records = page_records
        self._environment: Environment | None = acquire(self._path, map_bytes)

    @property
    def identity(self) -> str:
        """As :attr:`StoreAdmin.identity <streamer.store.admin.StoreAdmin.identity>`."""
        device, inode = self._opened().identity
        return f"lmdb:{socket.gethostname()}:{device}:{inode}"

    def models(self) -> dict[bytes, str]:
        """Return the models' ids by the prefix of their keys."""
        with self._opened().reading() as transaction:
            return models(transaction)

    def register(self, models: Mapping[bytes, str]) -> None:
        """Register models. Raises :class:`StoreError` if a prefix belongs to another model."""

        def work(transaction: Transaction) -> None:
            for prefix, model_id in models.items():
                register(transaction, self._path, prefix, model_id)

        self._opened().write(work)

    def forget(self, prefix: bytes) -> bool:
        """Unregister a model; returns False, changing nothing, if it still has records."""

        def work(transaction: Transaction) -> bool:
            if next(_behind(transaction, b"", prefix), None) is not None:
                return False
            transaction.delete(RESERVED + prefix)
            return True

        return self._opened().write(work)

    def count(self) -> int:
        """Return the number of keys: records, tombstones and a few others."""
        with self._opened().reading() as transaction:
            return int(transaction.stat()["entries"])

    def scan(self, cursor: str = "", *, prefix: bytes = b"", heads: bool = False) -> Iterator[Page]:
        """Yield the records in key order, each once. A cursor is a key in hexadecimal.

        Each page is a separate transaction, as in :meth:`Environment.scan`.
        """
        try:
            last = bytes.fromhex(cursor)
        except ValueError:
            raise StoreError(f"{self._path}: {cursor[:100]!r} is not a cursor of an LMDB store") from None
        while True:
            records: list[Raw] = []
            size = 0
            with self._opened().reading() as transaction:
                for at, value in _behind(transaction, last, prefix):
                    records.append(Raw(at, bytes(value[: record_format.HEADER_BYTES] if heads else value)))
                    size += len(records[-1].value)
                    if len(records) == self._page_records or size >= PAGE_BYTES:
                        break
            if not records:
                return
            last = records[-1].key
            yield Page(records, last.hex())

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the records under ``keys`` unchanged, None for an absent one."""
        with self._opened().reading() as transaction:
            values = (transaction.get(at) for at in keys)
            return [None if value is None else bytes(value) for value in values]

    def put(self, records: Sequence[Raw], note: Callable[[list[Merged]], bytes] | None = None) -> list[Merged]:
        """As :meth:`StoreAdmin.put <streamer.store.admin.StoreAdmin.put>`, in one transaction, the note included."""
        arriving = [(at, value, record_format.checked(at, memoryview(value))) for at, value in records]

        def work(transaction: Transaction) -> list[Merged]:
            outcomes = []
            for at, value, version in arriving:
                there = transaction.get(at)
                if there is not None and bytes(there) == value:
                    outcomes.append(Merged.PRESENT)
                elif record_format.outranks(version, record_format.version_at(at, there)):
                    transaction.put(at, value)
                    outcomes.append(Merged.WRITTEN)
                else:
                    outcomes.append(Merged.KEPT)
            if note is not None:
                transaction.put(_NOTE, note(outcomes))
            return outcomes

        return self._opened().write(work)

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove records durably, whatever their versions, without tombstones."""

        def work(transaction: Transaction) -> None:
            for at in keys:
                transaction.delete(at)

        self._opened().write(work)

    def note(self) -> bytes | None:
        """Return the progress note of an unfinished copy, None if there is none."""
        with self._opened().reading() as transaction:
            found = transaction.get(_NOTE)
            return None if found is None else bytes(found)

    def clear_note(self) -> None:
        """Remove :meth:`note`."""
        self._opened().write(lambda transaction: transaction.delete(_NOTE))

    def compact(self, to: Path | None) -> tuple[int, int]:
        """Write a copy without unused pages to the folder ``to``, or replace the store by it, which closes the store.

        Raises :class:`StoreError` if ``to`` already has a store, or if the store is open elsewhere.
        """
        environment = self._opened()
        before = bytes_on_disk(self._path)
        if to is not None:
            compact_to(environment, to)
            return before, bytes_on_disk(to)
        if environment.users > 1:
            raise StoreError(f"{self._path}: the store is open elsewhere in this process")
        self.close()
        compact_in_place(self._path)
        return before, bytes_on_disk(self._path)

    def close(self) -> None:
        """Release the environment."""
        if self._environment is not None:
            release(self._environment)
            self._environment = None

    def _opened(self) -> Environment:
        if self._environment is None:
            raise StoreError(f"{self._path}: the store is closed")
        return self._environment


def _behind(transaction: Transaction, last: bytes, prefix: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the records whose keys begin with ``prefix`` and come after ``last``."""
    cursor = transaction.cursor()
    for raw, value in cursor.iternext() if cursor.set_range(max(last, prefix)) else ():
        at = bytes(raw)
        if not at.startswith(prefix):
            return
        if at != last and not at.startswith(RESERVED):
            yield at, value
