"""Stores of LMDB whose clips say whether they are whole, written and read by several processes."""

from __future__ import annotations

import datetime as dt
import multiprocessing
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.store import (
    Clip,
    Position,
)
from streamer.store.lmdb.store import LmdbStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIM = 512
TINY = 1 << 16
"""Bytes of a map that most writes outgrow."""
WAIT_S = 120
spawn = multiprocessing.get_context("spawn")


def open_lmdb(path: Path, **changes: Any) -> LmdbStore:
    options = {"model_id": "m", "dim": DIM, "precision": "float32", **changes}
    return LmdbStore(path, **options)


def clip(number: int) -> Clip:
    vectors, times = np.full((64, DIM), number, np.float32), np.arange(64, dtype=np.uint32)
    return Clip(f"c{number}", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), Position.of("log", number), 0, vectors, times)


def is_whole(store: LmdbStore, number: int) -> bool:
    """Tell whether a clip is there; what is there must be what :func:`clip` made."""
    with store.read([f"c{number}"]) as (embedding,):
        if embedding is None:
            return False
        np.testing.assert_array_equal(embedding.matrix, clip(number).vectors)
        return True


def in_a_process(target: Callable[..., None], *arguments: object) -> None:
    process = spawn.Process(target=target, args=arguments)
    process.start()
    process.join(WAIT_S)
    process.kill()
    assert process.exitcode == 0


def put_clips(folder: Path, first: int, last: int) -> None:
    store = open_lmdb(folder)
    store.put([clip(number) for number in range(first, last + 1)])
    store.close()
