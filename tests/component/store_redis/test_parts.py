"""Records in two parts, on servers whose allocator has coarse size classes."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer.store import Clip, Position, PutOutcome, StoreError, open_existing, record_format
from streamer.store.opening import open_admin
from streamer.store.redis import parts
from tests.support.redis_servers import Cluster, Server, move_slot, node_id
from tests.support.redis_stores import DIM, FIRST, IDS, buckets, clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.redis.store import RedisStore

VECTORS = 120
"""Vectors of a clip whose record of 4,384 bytes is worth two parts: 4,090 bytes and the rest."""
PREFIX = record_format.model_prefix("m")


def sizable(clip_id: str, version: int = 1, offset: int = 1, vectors: int = VECTORS) -> Clip:
    matrix = np.full((vectors, DIM), version, np.float32)
    return replace(clip(clip_id, version, offset), vectors=matrix, times_ms=np.zeros(vectors, np.uint32))


def stored_parts(store: RedisStore, server: Server, clip_id: str) -> list[int | None]:
    """Return the lengths of the two strings that a clip has on the server."""
    key = record_format.key(PREFIX, clip_id)
    layout = buckets(store)
    values = server.command("MGET", layout.full(key), layout.rest(layout.of(key), key))
    return [None if value is None else len(value) for value in values]


def test_a_record_is_split_where_both_parts_take_less_memory_and_joined_to_the_same_bytes() -> None:
    sizes = [*range(1, 4_200, 7), 8_384, 16_512, 16_378, 33_344, 65_529, 65_530, 65_856, 196_928]
    in_two = 0
    for size in sizes:
        value = random.Random(size).randbytes(size)  # noqa: S311 - bytes, no secret
        first, rest = parts.split(value)
        assert first + rest == value
        if not rest:
            continue
        in_two += 1
        assert len(first) >= record_format.HEADER_BYTES + record_format.MAX_ID_BYTES
        assert parts.string_bytes(len(first)) + parts.string_bytes(len(rest)) < 0.97 * parts.string_bytes(size)
        # It fills its class, but for the bytes by which headers of strings differ.
        assert parts.string_bytes(len(first) + 5) > parts.string_bytes(len(first))
    assert 100 < in_two < len(sizes)


def test_a_record_of_any_number_of_vectors_takes_little_more_than_its_bytes() -> None:
    for dim in (512, 768):
        for count in range(8, 65):
            size = record_format.matrix_at(0, count, 2) + 2 * count * dim
            assert sum(map(parts.string_bytes, map(len, filter(None, parts.split(bytes(size)))))) < 1.05 * size


def test_the_size_classes_are_those_of_the_server(redis: Server) -> None:
    """What MEMORY USAGE says of two strings differs by the difference of their classes."""
    assert parts.is_rounded(redis.command("INFO", "memory")["mem_allocator"])
    taken = {}
    for size in (300, 2_041, 2_042, 2_043, 8_186, 8_187, 16_378, 16_379, 16_512, 65_526, 65_530, 65_856):
        redis.command("EVAL", "redis.call('SET', KEYS[1], ARGV[1])", 1, "sized", bytes(size))  # as records are set
        taken[size] = redis.command("MEMORY", "USAGE", "sized")
    redis.command("DEL", "sized")
    around = taken[300] - parts.string_bytes(300)
    assert {size: used - around for size, used in taken.items()} == {size: parts.string_bytes(size) for size in taken}


def test_a_store_has_parts_if_its_servers_round_sizes_and_keeps_that(valkey: Server, redis: Server) -> None:
    for server, allocator, in_parts in ((valkey, "libc", False), (redis, "jemalloc", True)):
        assert server.command("INFO", "memory")["mem_allocator"].startswith(allocator)
        url = f"{server.url}?name=kind"
        opened(url).put([sizable("c")])
        assert server.command("GET", "kind").endswith(b" parts") is in_parts
        assert buckets(opened(url, read_only=True)).in_parts is in_parts
    # A store of an earlier release stays as it is, whatever server it is on.
    redis.command("SET", "earlier", "clip embeddings 2 buckets 64 salt 0123456789abcdef")
    earlier = opened(f"{redis.url}?name=earlier")
    earlier.put([sizable("c")])
    assert stored_parts(earlier, redis, "c") == [len(encoded(1)), None]
    assert versions(earlier, ["c"]) == [1]
    assert redis.command("GET", "earlier") == b"clip embeddings 2 buckets 64 salt 0123456789abcdef"


def encoded(version: int, vectors: int = VECTORS) -> bytes:
    return record_format.encode(sizable("c", version, version, vectors), "float32")


def test_parts_are_written_replaced_deleted_and_removed_together(redis: Server) -> None:
    url = f"{redis.url}?name=together"
    store, reader = opened(url), opened(url, read_only=True)
    assert store.put([sizable("c"), clip("small")]) == [PutOutcome.WRITTEN] * 2
    first, rest = map(len, parts.split(encoded(1)))
    assert rest
    assert stored_parts(store, redis, "c") == [first, rest]
    for _ in range(2):  # the second time from the cache
        assert versions(reader, ["c", "small", "none"]) == [1, 1, None]
    assert store.put([sizable("c", 2, 2), sizable("c", 1, 3)]) == [PutOutcome.WRITTEN, PutOutcome.SUPERSEDED]
    assert versions(reader, ["c"]) == [2]
    assert store.put([clip("c", 3, 3)]) == [PutOutcome.WRITTEN]
    assert stored_parts(store, redis, "c")[1] is None
    assert store.put([sizable("c", 4, 4)]) == [PutOutcome.WRITTEN]
    assert versions(reader, ["c"]) == [4]
    assert store.delete("c", FIRST, Position.of("log", 5))
    assert stored_parts(store, redis, "c") == [record_format.HEADER_BYTES, None]
    assert store.put([sizable("c", 4, 4)]) == [PutOutcome.SUPERSEDED]
    assert versions(reader, ["c"]) == [None]
    assert store.put([sizable("c", 5, 6)]) == [PutOutcome.WRITTEN]
    assert sorted(store.clip_ids()) == ["c", "small"]
    assert store.stats().models == {"m": 2}
    admin = open_admin(url)
    key = record_format.key(PREFIX, "c")
    assert admin.get([key]) == [record_format.encode(sizable("c", 5, 6), "float32")]
    assert [raw.value for page in admin.scan() for raw in page.records if raw.key == key] == admin.get([key])
    admin.remove([key])
    assert stored_parts(store, redis, "c") == [None, None]


def test_a_part_that_is_lost_is_damage_and_the_next_upload_repairs_it(redis: Server) -> None:
    store = opened(f"{redis.url}?name=halved")
    store.put([sizable("c")])
    layout, key = buckets(store), record_format.key(PREFIX, "c")
    redis.command("DEL", layout.rest(layout.of(key), key))
    with store.read(["c"]) as records:
        assert list(records) == [None]
        assert records.corrupt == 1
    assert store.put([sizable("c")]) == [PutOutcome.WRITTEN]
    assert versions(store, ["c"]) == [1]


@pytest.mark.parametrize("count", [1, 3, 64, 1_056])
def test_a_format_that_is_lost_is_found_in_the_buckets_whatever_their_number_is(redis: Server, count: int) -> None:
    name = f"lost-{count}"
    opened(f"{redis.url}?name={name}&buckets={count}").put([sizable(clip_id) for clip_id in IDS])
    was = redis.command("GET", name)
    assert was.endswith(b" parts")
    redis.command("DEL", name)
    assert versions(opened(f"{redis.url}?name={name}"), IDS) == [1] * len(IDS)
    assert redis.command("GET", name) == was
    redis.command("DEL", name)
    with pytest.raises(StoreError, match=f"was created with {count} buckets"):
        opened(f"{redis.url}?name={name}&buckets=7")


def test_a_full_server_buries_a_record_with_both_its_parts(tmp_path: Path) -> None:
    with Server(tmp_path / "server", "redis") as server:
        store = opened(server.url)
        store.put([sizable(clip_id) for clip_id in IDS])
        server.command("CONFIG", "SET", "maxmemory", server.command("INFO", "memory")["used_memory"] - 1)
        assert store.delete("c1", FIRST, Position.of("log", 2))
        assert stored_parts(store, server, "c1") == [record_format.HEADER_BYTES, None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of Redis, between which slots move."""
    with Cluster(tmp_path_factory.mktemp("pair"), "redis", primaries=2, replicas=False) as cluster:
        yield cluster


def test_while_slots_move_no_reader_sees_half_a_record(pair: Cluster) -> None:
    url = f"{pair.url.split(',')[0]}?name=moving&buckets=2"
    store = opened(url)
    assert buckets(store).in_parts
    ids = IDS[:30]
    store.put([sizable(clip_id) for clip_id in ids])
    over = threading.Event()
    faults: list[object] = []

    def read() -> None:
        reader = opened(url, read_only=True, cache_bytes=0)
        while not over.is_set():
            with reader.read(ids[1:]) as records:
                seen = list(records)
                if None in seen or records.corrupt:
                    faults.append(records.corrupt)

    thread = threading.Thread(target=read)
    thread.start()
    version = 1
    try:
        for number, slot in enumerate(buckets(store).slots):
            source = pair.primary_of(buckets(store).heads[number])
            target = next(node for node in pair.nodes if node is not source)
            target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
            source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
            while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 7):
                version += 1
                wanted = [sizable(clip_id, version, version) for clip_id in [*ids, f"new {version}"]]
                assert store.put(wanted) == [PutOutcome.WRITTEN] * len(wanted)
                assert store.put([sizable(ids[1], 1, version + 1)]) == [PutOutcome.SUPERSEDED]
                assert store.delete(ids[0], FIRST, Position.of("log", version))
                source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)
            move_slot(slot, source, target)
    finally:
        over.set()
        thread.join()
    assert not faults
    news = [f"new {each}" for each in range(2, version + 1)]
    assert len(news) > 4
    assert versions(store, [*ids, *news]) == [None, *[version] * (len(ids) - 1), *range(2, version + 1)]
    assert sorted(set(store.clip_ids())) == sorted([*ids[1:], *news])


def test_an_earlier_release_does_not_open_a_store_with_parts(redis: Server) -> None:
    """It knows only this form of the format, and would take first parts for damaged records."""
    opened(f"{redis.url}?name=later")
    assert re.fullmatch(b"clip embeddings 3 buckets 64 salt [0-9a-f]{16} parts", redis.command("GET", "later"))
    for unknown in ("clip embeddings 4 buckets 64", "clip embeddings 2 buckets 64 parts"):
        redis.command("SET", "later", unknown)
        with pytest.raises(StoreError, match="is not a store of this release"):
            open_existing(f"{redis.url}?name=later")


def test_copies_between_stores_with_and_without_parts_are_the_same_records(valkey: Server, redis: Server) -> None:
    urls = [f"{server.url}?name=copied" for server in (valkey, redis)]
    stores = [opened(url) for url in urls]
    stores[0].put([sizable(clip_id, number + 1, number) for number, clip_id in enumerate(IDS)])
    stores[0].delete(IDS[0], FIRST, Position.of("log", 1_000))
    with contextlib.ExitStack() as stack:
        plain, split = (stack.enter_context(contextlib.closing(open_admin(url))) for url in urls)
        records = [raw for page in plain.scan() for raw in page.records]
        split.put(records)
        assert split.get([raw.key for raw in records]) == [raw.value for raw in records]
        assert sum(parts.split(raw.value)[1] != b"" for raw in records) == len(IDS) - 1
    wait_until(lambda: versions(stores[1], IDS) == versions(stores[0], IDS), "the same versions")
