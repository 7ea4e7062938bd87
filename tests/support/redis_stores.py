"""Stores on servers of the Redis protocol, and clips whose vectors say their version."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.store import Clip, Position, StoreOptions, open_store
from streamer.store.redis.store import RedisStore

if TYPE_CHECKING:
    from streamer.store.redis.address import Buckets

DIM = 8
FIRST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
IDS = [f"c{number}" for number in range(100)]


def clip(clip_id: str, version: int = 1, offset: int = 1) -> Clip:
    """Make a clip of two vectors that hold its version, uploaded so many seconds after the first."""
    vectors = np.full((2, DIM), version, np.float32)
    at = FIRST + dt.timedelta(seconds=version)
    return Clip(clip_id, at, Position.of("log", offset), 1000, vectors, np.zeros(2, np.uint32))


def opened(url: str, *, read_only: bool = False, **options: Any) -> RedisStore:
    """Open a store that is patient unless an option says otherwise."""
    patient = StoreOptions(**{"timeout_s": 30.0, **options})
    store = open_store(url, model_id="m", dim=DIM, precision="float32", read_only=read_only, options=patient)
    assert isinstance(store, RedisStore)
    return store


def versions(store: RedisStore, ids: list[str]) -> list[int | None]:
    """Return the versions of clips that :func:`clip` made, None where there is none."""
    with store.read(ids) as found:
        return [None if each is None else int(each.matrix[0, 0]) for each in found]


def buckets(store: RedisStore) -> Buckets:
    """Return where a store's clips are."""
    space = store._opened()
    assert space is not None
    return space.buckets
