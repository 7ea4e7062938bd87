"""A real store, and clips of two colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streamer.store import open_store
from tests.support.embedding import DIM, clip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"lmdb:{tmp_path / 'store'}", model_id="colour", dim=DIM, precision="float32")
    yield opened
    opened.close()


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return clip(tmp_path / "red.mp4", (200, 30, 30))


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    return clip(tmp_path / "blue.mp4", (30, 30, 200), frames=10)
