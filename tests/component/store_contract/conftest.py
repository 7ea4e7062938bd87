"""Each engine of the store, and a store that it has opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.store_engines import Engine, LmdbEngine, RedisEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store import Store


@pytest.fixture(params=["lmdb", "valkey", "valkey_cluster", "redis"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    servers = None if request.param == "lmdb" else request.getfixturevalue(request.param)
    engine = LmdbEngine(tmp_path) if servers is None else RedisEngine(servers.url)
    yield engine
    engine.close()


@pytest.fixture
def store(engine: Engine) -> Store:
    return engine.open()
