"""A folder for a store, and a store whose map is tiny."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.lmdb_stores import (
    TINY,
    open_lmdb,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.lmdb.store import LmdbStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def tiny(folder: Path) -> Iterator[LmdbStore]:
    store = open_lmdb(folder, map_bytes=TINY)
    yield store
    store.close()
