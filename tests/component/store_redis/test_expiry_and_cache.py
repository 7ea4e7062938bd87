"""Tombstones that expire, and the records that a reader keeps in its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.store import Position, PutOutcome, record_format
from streamer.store.redis.cache import RecordCache
from tests.support.redis_stores import FIRST, IDS, buckets, clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streamer.store.redis.store import RedisStore
    from tests.support.redis_servers import Cluster, Server


def test_a_tombstone_expires_and_a_live_record_does_not(valkey: Server) -> None:
    url = f"{valkey.url}?name=expiring"
    store = opened(url, tombstone_s=0.2)
    store.put([clip("c", 1, 1)])
    store.delete("c", FIRST, Position.of("log", 2))
    assert store.stats().tombstones == 1
    wait_until(lambda: store.stats().tombstones == 0, "the tombstone has expired")
    assert store.put([clip("c", 1, 1)]) == [PutOutcome.WRITTEN]
    store.delete("c", FIRST, Position.of("log", 2))
    assert store.put([clip("c", 2, 3)]) == [PutOutcome.WRITTEN]
    key = buckets(store).full(record_format.key(record_format.model_prefix("m"), "c"))
    assert valkey.command("PTTL", key) == -1
    for_ever = opened(url, tombstone_s=0)
    for_ever.delete("c", FIRST, Position.of("log", 4))
    assert valkey.command("PTTL", key) == -1


def cached(store: RedisStore) -> tuple[int, int]:
    """Read all clips; return how many came from this process's memory, and how many were transferred."""
    with store.read(IDS) as records:
        return records.cache_hits, records.cache_misses


def test_a_record_is_transferred_again_only_where_it_has_changed(valkey_cluster: Cluster) -> None:
    url = f"{valkey_cluster.url}?name=hot"
    writer, reader = opened(url), opened(url, read_only=True)
    writer.put([clip(clip_id) for clip_id in IDS])
    assert cached(reader) == (0, 100)
    assert cached(reader) == (100, 0)
    assert versions(reader, IDS) == [1] * len(IDS)
    writer.put([clip(clip_id, 2) for clip_id in IDS[:10]])
    writer.delete("c10", FIRST, Position.of("log", 2))
    assert cached(reader) == (89, 11)
    assert versions(reader, IDS) == [2] * 10 + [None] + [1] * 89
    uncached = opened(url, read_only=True, cache_bytes=0)
    assert cached(uncached) == cached(uncached) == (0, 100)
    assert versions(uncached, IDS) == versions(reader, IDS)


def test_a_record_that_is_repaired_with_the_same_checksum_is_noticed(valkey: Server) -> None:
    url = f"{valkey.url}?name=healing"
    store = opened(url)
    store.put([clip("c")])
    full = buckets(store).full(record_format.key(record_format.model_prefix("m"), "c"))
    whole = valkey.command("GET", full)
    valkey.command("SET", full, whole[:-1] + b"\1")
    for _ in range(2):
        with store.read(["c"]) as records:
            assert list(records) == [None]
            assert records.corrupt == 1
    valkey.command("SET", full, whole)
    assert versions(store, ["c"]) == [1]


def test_the_cache_is_bounded_in_bytes_and_keeps_what_was_used_last() -> None:
    hot = RecordCache(10_000)
    for number in range(100):
        hot.keep({b"%d" % number: bytes(800)})
        hot.held([b"0"])
    assert len(hot) == 9
    assert {*hot.held([b"0", b"99", b"50"])} == {b"0", b"99"}
    hot.keep({b"large": bytes(20_000)})
    assert len(hot) == 0
    hot.keep({b"same": bytes(800)})
    hot.keep({b"same": bytes(900)})
    assert hot.held([b"same"]) == {b"same": bytes(900)}
    hot.drop(b"same")
    assert len(hot) == 0
