"""Engines of the store as the contract suite uses them, and clips in which everything follows from the version."""

from __future__ import annotations

import datetime as dt
import itertools
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.store import Clip, Position, Store, StoreOptions, open_store, record_format
from streamer.store.lmdb.store import LmdbStore
from streamer.store.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamer.store.lmdb.environment import Transaction

DIM = 8
FIRST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PATIENT: Any = {"options": StoreOptions(timeout_s=30)}
"""A busy machine is none that is away."""


class LmdbEngine:
    """Opens LMDB stores on one folder, and damages their records."""

    is_transactional = True
    """Whether a put is seen whole or not at all, and a read is one snapshot."""

    def __init__(self, folder: Path) -> None:
        self.url = f"lmdb:{folder / 'store'}"
        self.opened: list[Store] = []

    def open(self, **changes: Any) -> Store:
        """Open a store, which :meth:`close` closes; ``changes`` are other arguments of ``open_store``."""
        store = open_store(
            self.url, **{"model_id": "model-a", "dim": DIM, "precision": "float32", **PATIENT, **changes}
        )
        self.opened.append(store)
        return store

    def change(self, clip_id: str, how: Callable[[bytes], bytes], model_id: str = "model-a") -> None:
        """Rewrite the stored bytes of a clip's record; a store must have been opened before."""
        key = record_format.key(record_format.model_prefix(model_id), clip_id)
        (store,) = self.opened[:1]
        assert isinstance(store, LmdbStore)

        def rewrite(transaction: Transaction) -> None:
            value = transaction.get(key)
            assert value is not None
            transaction.put(key, how(bytes(value)))

        store._opened().write(rewrite)

    def close(self) -> None:
        """Close what was opened."""
        for store in self.opened:
            store.close()


class RedisEngine(LmdbEngine):
    """Opens stores of one name at a URL that tests share."""

    is_transactional = False

    def __init__(self, url: str) -> None:
        self.url = f"{url}?name=test-{secrets.token_hex(6)}"
        self.opened = []

    def change(self, clip_id: str, how: Callable[[bytes], bytes], model_id: str = "model-a") -> None:
        """Rewrite the stored bytes of a clip's record; a store must have been opened before."""
        key = record_format.key(record_format.model_prefix(model_id), clip_id)
        (store,) = self.opened[:1]
        assert isinstance(store, RedisStore)
        space = store._opened()
        assert space is not None
        full = space.buckets.full(key)
        space.link.one("SET", full, how(space.link.one("GET", full)))


Engine = LmdbEngine | RedisEngine


def at(version: int) -> dt.datetime:
    """Return the time of an upload of this version: so many microseconds after the first."""
    return FIRST + dt.timedelta(microseconds=version)


def place(offset: int, log: str = "log") -> Position:
    """Return a place in a log."""
    return Position.of(log, offset)


_offsets = itertools.count(1_000)


def following() -> Position:
    """Return a position after all those given before: an event that is news."""
    return place(next(_offsets))


def clip(clip_id: str = "c1", version: int = 1, position: Position | None = None, *, dim: int = DIM) -> Clip:
    """Make a clip in which everything follows from the version; it is news unless a position says otherwise."""
    n = 1 + version % 5
    vectors = np.full((n, dim), (1 + version % 1000) / 1000, np.float32)
    times = np.arange(n, dtype=np.uint32) * version
    return Clip(clip_id, at(version), position or following(), 1000 + version, vectors, times)


def corrupt(store: Store, clip_ids: list[str]) -> int:
    """Return how many of these clips' records are corrupt."""
    with store.read(clip_ids) as records:
        assert len(list(records)) == len(clip_ids)
        return records.corrupt


def versions(store: Store, clip_ids: list[str]) -> list[int | None]:
    """Read clips that :func:`clip` made, check that each is whole, and return their versions."""
    found: list[int | None] = []
    with store.read(clip_ids) as embeddings:
        for clip_id, embedding in zip(clip_ids, embeddings, strict=True):
            if embedding is None:
                found.append(None)
                continue
            version = (embedding.uploaded_at - FIRST) // dt.timedelta(microseconds=1)
            expected = clip(clip_id, version, dim=embedding.matrix.shape[1])
            np.testing.assert_array_equal(embedding.matrix, expected.vectors)
            np.testing.assert_array_equal(embedding.times_ms, expected.times_ms)
            assert embedding.duration_ms == expected.duration_ms
            found.append(version)
    return found
