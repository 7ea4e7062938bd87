"""The embedded store: LMDB, shared by the processes of one host, read without copying.

One process writes and any number read, each from its own snapshot. A write is on disk before the call returns; a
process that dies during a write leaves the store as it was before.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.pooling import MAX
from streamer.store import record_format
from streamer.store.corrupt import CorruptRecordLog
from streamer.store.lmdb.environment import (
    DATA_FILE,
    DEFAULT_MAP_BYTES,
    Environment,
    acquire,
    bytes_on_disk,
    models,
    register,
    release,
)
from streamer.store.protocol import PutOutcome, StoreError, StoreStats
from streamer.store.read_batch import Records

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from streamer.scoring import ClipScores
    from streamer.settings import Precision
    from streamer.store.lmdb.environment import Transaction
    from streamer.store.protocol import Clip, Position, StoreServer


class LmdbStore:
    """:class:`~streamer.store.Store` in the folder ``path``.

    Stores of one process on one path share an environment; the first one's ``map_bytes`` is the initial size of its
    map, which grows automatically. Open a store after a fork, not before it. :meth:`clip_ids` and :meth:`stats` read
    all keys, about a second per million, in short transactions: concurrent writes may be seen or not.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model_id: str,
        dim: int | None,
        precision: Precision = "float16",
        read_only: bool = False,
        map_bytes: int = DEFAULT_MAP_BYTES,
    ) -> None:
        if not str(path):
            raise StoreError("lmdb: needs a path")
        self._path = Path(path)
        self._model_id = model_id
        self._prefix = record_format.model_prefix(model_id)
        self._dim = dim
        self._precision = precision
        self._read_only = read_only
        self._closing = threading.Lock()
        self._corrupt = CorruptRecordLog(str(path))
        self._environment: Environment | None = acquire(self._path, map_bytes)
        try:
            self._register()
        except BaseException:
            self.close()
            raise

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips in one durable transaction; ValueError if one is not as :class:`Clip` says."""
        environment = self._writable()
        rows = []
        for clip in clips:
            if clip.vectors.shape[-1:] != (self._dim,):
                raise ValueError(f"vectors of shape {clip.vectors.shape} in a store of vectors of length {self._dim}")
            at = record_format.key(self._prefix, clip.clip_id)
            uploaded_us = record_format.microseconds(clip.uploaded_at)
            rows.append((at, uploaded_us, clip.position, record_format.encode(clip, self._precision)))

        def work(transaction: Transaction) -> list[PutOutcome]:
            # Again, because an operator may have dropped the model meanwhile, and records without a registered model
            # are lost.
            register(transaction, self._path, self._prefix, self._model_id)
            outcomes = []
            for at, uploaded_us, position, value in rows:
                if record_format.admits(record_format.version(transaction.get(at)), uploaded_us, position):
                    transaction.put(at, value)
                    outcomes.append(PutOutcome.WRITTEN)
                else:
                    outcomes.append(PutOutcome.SUPERSEDED)
            return outcomes

        return environment.write(work)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        """Replace every model's record that is not later by a tombstone; for this model also an absent one."""
        deleted_us = record_format.microseconds(deleted_at)
        own = record_format.key(self._prefix, clip_id)

        def work(transaction: Transaction) -> bool:
            removed = False
            register(transaction, self._path, self._prefix, self._model_id)
            for prefix in models(transaction):
                at = record_format.key(prefix, clip_id)
                stored = transaction.get(at)
                if stored is None and at != own:
                    continue
                there = record_format.version(stored)
                tombstone = record_format.tombstone(there, deleted_us, position)
                if tombstone is not None:
                    removed |= at == own and there is not None and there.live
                    transaction.put(at, record_format.encode_tombstone(clip_id, tombstone))
            return removed

        return self._writable().write(work)

    @contextmanager
    def read(self, clip_ids: Sequence[str]) -> Iterator[Records]:
        """Read records from one snapshot; None for an absent, deleted or corrupt one."""
        keys = record_format.keys(self._prefix, clip_ids)

        def corrupt(position: int, error: Exception) -> None:
            self._corrupt.note(keys[position], clip_ids[position], error)

        with self._opened().reading() as transaction:
            records = Records(transaction.get, keys, clip_ids, self._dim, corrupt)
            try:
                yield records
            finally:
                records.end()

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str = MAX
    ) -> ClipScores:
        """Score clips of one snapshot; no clip is unavailable alone, and no deadline is needed."""
        del deadline
        with self.read(clip_ids) as records:
            return records.scores(vector, pooling)

    def clip_ids(self) -> Iterator[str]:
        """Yield the ids of this model's live clips; the store may be written meanwhile."""

        def look(at: bytes, value: memoryview) -> str | None:
            try:
                return record_format.clip_id(at, value) if record_format.is_live(value) else None
            except record_format.CorruptRecordError:
                # The id of a damaged record with a long id is lost; :meth:`read` reports the damage.
                return None

        return (found for found in self._opened().scan(self._prefix, look) if found is not None)

    def stats(self) -> StoreStats:
        """Count the records of all models."""
        environment = self._opened()
        with environment.reading() as transaction:
            known = models(transaction)
        clips = {}
        tombstones = 0
        for prefix, model_id in known.items():
            count = Counter(environment.scan(prefix, lambda _, value: record_format.is_live(value)))
            clips[model_id] = count[True]
            tombstones += count[False]
        return StoreStats(clips, tombstones, bytes_on_disk(self._path))

    def ping(self) -> None:
        """Raise :class:`StoreUnavailableError` if the store cannot be read or its files were replaced."""
        self._opened().check()

    def servers(self) -> Sequence[StoreServer]:
        """Return no server: there is none."""
        return ()

    def close(self) -> None:
        """Release the environment; its last user closes it, once all reads of this process have ended."""
        with self._closing:
            if self._environment is not None:
                release(self._environment)
                self._environment = None

    def _opened(self) -> Environment:
        environment = self._environment
        if environment is None:
            raise StoreError(f"{self._path}: the store is closed")
        return environment

    def _writable(self) -> Environment:
        if self._read_only:
            raise StoreError(f"{self._path}: the store was opened read-only")
        return self._opened()

    def _register(self) -> None:
        environment = self._opened()
        with environment.reading() as transaction:
            known = models(transaction).get(self._prefix)
        if known != self._model_id and not (known is None and self._read_only):
            environment.write(lambda transaction: register(transaction, self._path, self._prefix, self._model_id))


def is_store(path: str | Path) -> bool:
    """Return whether the folder contains LMDB's data file."""
    return (Path(path) / DATA_FILE).is_file()
