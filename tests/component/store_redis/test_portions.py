"""Reads of more bytes than a server may keep for a client: they are asked for in portions."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.store import Clip, Position, StoreOptions, open_store, record_format
from streamer.store.redis.address import Buckets
from streamer.store.redis.exchange import WINDOW_BYTES
from streamer.store.redis.keyspace import by_bucket
from tests.support.redis_servers import Cluster, Server
from tests.support.waiting import wait_until
from tests.support.ways import Passage, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store import Store

DIM, FRAMES = 768, 64
CANDIDATES = 300
IDS = [f"clip {number}" for number in range(CANDIDATES)]
LIMIT_BYTES = 8_000_000
"""Of what a server keeps for a client, before it closes the connection."""
PATIENT = StoreOptions(timeout_s=60, cache_bytes=0)
VECTOR = np.full(DIM, DIM**-0.5, np.float32)
_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def opened(url: str, *, read_only: bool = True, options: StoreOptions = PATIENT) -> Store:
    return open_store(url, model_id="m", dim=DIM, precision="float32", read_only=read_only, options=options)


def clips(frames: int) -> list[Clip]:
    vectors = np.full((frames, DIM), DIM**-0.5, np.float32)
    return [Clip(each, _AT, Position.of("log", 1), 1_000, vectors, np.zeros(frames, np.uint32)) for each in IDS]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with clips of 197 kB, which closes connections for which it keeps too much."""
    with Server(tmp_path_factory.mktemp("large"), request.param) as server:
        opened(server.url, read_only=False).put(clips(FRAMES))
        server.command("CONFIG", "SET", "client-output-buffer-limit", f"normal {LIMIT_BYTES} 0 0")
        yield server


def is_whole(store: Store) -> bool:
    scores = store.score(IDS, VECTOR, None)
    return not scores.unavailable and not np.isnan(scores.frame.cosines).any()


class Watch:
    """The most that a server has kept for one client while it was watched, in bytes."""

    def __init__(self, server: Server) -> None:
        self.most = 0
        self._server = server
        self._end = threading.Event()

    def _run(self) -> None:
        with contextlib.closing(self._server.client()) as client:
            while not self._end.is_set():
                self.most = max(self.most, *(int(each["omem"]) for each in client.client_list()))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_a_read_of_many_large_clips_stays_within_what_a_server_keeps_for_a_client(server: Server) -> None:
    store = opened(server.url)
    with Watch(server) as watch:
        for _ in range(3):
            assert is_whole(store)
    assert watch.most < LIMIT_BYTES
    assert store.score(IDS[:1], VECTOR, None).cache_misses == 1


def test_a_read_that_the_server_compares_with_cached_clips_stays_within_it_too(server: Server) -> None:
    store = opened(server.url, options=StoreOptions(timeout_s=60))
    store.score(IDS[::20], VECTOR, None)
    scores = store.score(IDS, VECTOR, None)
    assert scores.cache_hits == len(IDS[::20])
    assert not scores.unavailable


def test_a_reader_that_takes_replies_slowly_does_not_make_a_server_keep_them_all(server: Server) -> None:
    with contextlib.closing(Way(server.port)) as way, ThreadPoolExecutor(1) as pool, Watch(server) as watch:
        store = opened(f"redis://127.0.0.1:{way.port}")
        assert not store.score(IDS[:1], VECTOR, None).unavailable
        before = sent(server)
        way.passage = Passage.TRICKLING
        reading = pool.submit(is_whole, store)
        wait_until(lambda: sent(server) > before + 100_000, "the server sends")
        time.sleep(0.5)
        way.passage = Passage.FREE
        assert reading.result()
    assert watch.most < LIMIT_BYTES


def sent(server: Server) -> int:
    stats: Any = server.command("INFO", "stats")
    return int(stats["total_net_output_bytes"])


def test_larger_clips_than_expected_are_read_once_and_then_asked_for_by_their_size(tmp_path: Path) -> None:
    """An embedder may be allowed more frames of a clip than a reader assumes."""
    with Cluster(tmp_path / "cluster", replicas=False) as cluster:
        few = clips(4 * FRAMES)[:60]
        opened(cluster.url, read_only=False).put(few)
        store = opened(cluster.url)
        ids = [clip.clip_id for clip in few]
        assert not store.score(ids, VECTOR, None).unavailable
        # Six of 787 kB are more than a window, and one command never asks for two.
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "client-output-buffer-limit", f"normal {LIMIT_BYTES} 0 0")
        for _ in range(3):
            assert not store.score(ids, VECTOR, None).unavailable


@given(st.lists(st.binary(min_size=10, max_size=20), unique=True), st.integers(1, 2 * WINDOW_BYTES))
def test_keys_are_grouped_by_bucket_and_no_command_asks_for_too_much(keys: list[bytes], record_bytes: int) -> None:
    buckets = Buckets("clips", 4)
    groups = by_bucket(buckets, keys, record_bytes)
    assert sorted(key for _, some in groups for key in some) == sorted(keys)
    for number, some in groups:
        assert {buckets.of(key) for key in some} == {number}
        assert len(some) == 1 or len(some) * record_bytes <= WINDOW_BYTES // 2


@given(st.integers(1, 2_048), st.integers(1, 100), st.sampled_from(["float32", "float16", "int8"]), st.integers(1, 512))
def test_no_record_is_larger_than_expected(dim: int, frames: int, precision: Any, id_length: int) -> None:
    vectors = np.ones((frames, dim), np.float32)
    clip = Clip("i" * id_length, _AT, Position.of("log", 1), 1_000, vectors, np.zeros(frames, np.uint32))
    assert len(record_format.encode(clip, precision)) <= record_format.largest(dim, frames, precision)
