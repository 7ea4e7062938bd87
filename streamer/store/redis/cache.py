"""This process's LRU cache of records, bounded in bytes.

A cached record is never used without validation: a read requests the record *unless* its checksum still equals that of
the cached copy, and the server decides (:data:`streamer.store.redis.scripts.READ_UNLESS`). So there is nothing to
invalidate, and a lost connection, a failover or a migrating slot cannot leave stale records; a hit saves the transfer,
not the request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ENTRY_BYTES = 200
"""Approximate memory overhead of a cached record."""


class RecordCache:
    """Records by their keys, at most ``limit`` bytes of them. May be used by several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._records: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def held(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the cached records of those keys, and mark them as used."""
        if not self._records:
            return {}
        with self._lock:
            records = self._records
            found = {key: records[key] for key in keys if key in records}
            for key in found:
                records.move_to_end(key)
            return found

    def keep(self, fresh: Mapping[bytes, bytes]) -> None:
        """Add records that have just been transferred."""
        if not self._limit:
            return
        with self._lock:
            for key, value in fresh.items():
                self._drop(key)
                self._records[key] = value
                self._size += _cost(key, value)
            while self._size > self._limit:
                self._drop(next(iter(self._records)))

    def drop(self, key: bytes) -> None:
        """Drop a damaged record: its replacement may have the same checksum in its header."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        value = self._records.pop(key, None)
        if value is not None:
            self._size -= _cost(key, value)


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_BYTES
