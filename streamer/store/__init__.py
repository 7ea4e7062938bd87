"""The store of frame embeddings: its protocol and its engines.

A record is one clip's matrix of vectors, each with its frame's time. Whole records are read by clip id, a hundred to a
thousand at a time. Vectors of different models are separate: ``model_id`` is part of the key.
"""

from __future__ import annotations

from streamer.store.measured import MeasuredStore, StoreWatch
from streamer.store.opening import open_existing, open_store
from streamer.store.options import StoreOptions
from streamer.store.protocol import (
    Clip,
    Embedding,
    Position,
    PutOutcome,
    Store,
    StoredClips,
    StoreError,
    StoreRefusedError,
    StoreStats,
    StoreUnavailableError,
    masked,
)

__all__ = [
    "Clip",
    "Embedding",
    "MeasuredStore",
    "Position",
    "PutOutcome",
    "Store",
    "StoreError",
    "StoreOptions",
    "StoreRefusedError",
    "StoreStats",
    "StoreUnavailableError",
    "StoreWatch",
    "StoredClips",
    "masked",
    "open_existing",
    "open_store",
]
