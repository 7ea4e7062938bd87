"""Two LMDB stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streamer.store.lmdb.admin import LmdbAdmin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(tmp_path / "source", create=True)
    yield opened
    opened.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(tmp_path / "target", create=True)
    yield opened
    opened.close()
