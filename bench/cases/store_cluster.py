"""Reading the records of 100 candidates from a cluster of three nodes, compared with LMDB.

    python bench/cases/store_cluster.py

Clips have 16 vectors of length 512 in int8. The Valkey nodes run on the same machine as the reader, so this measures
the work of client and servers for a query, without a network. Each method reads random samples of clips, from ids to
joined blocks with verified checksums; the methods take turns, query by query.

- *lmdb*: the embedded store.
- *buckets_3*, *_16*, *_64*, *_256*: the cluster's store with this number of buckets, without a cache.
- *cached*: with 64 buckets and the whole sample in the reader's cache; the servers confirm that it is current.
- *library_mget*: redis-py's own `mget_nonatomic` of the same keys, 64 buckets.
- *gets*: the obvious implementation: one GET per clip in a redis-py pipeline, 64 buckets.
"""

from __future__ import annotations

import datetime as dt
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from redis.cluster import RedisCluster

from bench.harness.report import print_figures, spread
from streamer.store import Clip, Position, StoreOptions, open_store, record_format
from streamer.store.read_batch import Records
from streamer.store.redis.address import DEFAULT_BUCKETS, Address, buckets_of
from tests.support.redis_servers import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamer.store import Store
    from streamer.store.redis.address import Buckets

NAME = "store_cluster"
MODEL = "model"
DIM, VECTORS, CANDIDATES = 512, 16, 100
PARTS = 5
A_PUT = 500
HOT = 1_000
"""Number of clips from which *cached* takes its samples; they take a small part of a cache of 64 MiB."""
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PATIENT = StoreOptions(timeout_s=30, cache_bytes=0)


def generated(ids: Sequence[str]) -> Iterator[list[Clip]]:
    """Generate clips of random vectors, in batches."""
    random = np.random.default_rng(9)
    times = np.arange(VECTORS, dtype=np.uint32) * 500
    for start in range(0, len(ids), A_PUT):
        some = ids[start : start + A_PUT]
        vectors = random.standard_normal((len(some), VECTORS, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        yield [
            Clip(clip_id, AT, Position.of("log", start), 8_000, matrix, times)
            for clip_id, matrix in zip(some, vectors, strict=True)
        ]


def through(store: Store) -> Callable[[Sequence[str]], None]:
    """Return the method that uses a store's own read."""

    def read(ids: Sequence[str]) -> None:
        with store.read(ids) as records:
            assert isinstance(records, Records)
            _use(records)

    return read


def by_hand(buckets: Buckets, client: Any) -> dict[str, Callable[[Sequence[str]], None]]:
    """Return the methods that use only redis-py, on the keys of a store."""
    prefix = record_format.model_prefix(MODEL)

    def joined(ids: Sequence[str], values: Sequence[Any]) -> None:
        found = {clip_id.encode(): memoryview(value) for clip_id, value in zip(ids, values, strict=True)}
        _use(Records(found.get, [clip_id.encode() for clip_id in ids], ids, DIM, _corrupt))

    def gets(ids: Sequence[str]) -> None:
        pipeline = client.pipeline()
        for key in record_format.keys(prefix, ids):
            pipeline.get(buckets.full(key))
        joined(ids, pipeline.execute())

    def library_mget(ids: Sequence[str]) -> None:
        joined(ids, client.mget_nonatomic([buckets.full(key) for key in record_format.keys(prefix, ids)]))

    return {"gets": gets, "library_mget": library_mget}


def _use(records: Records) -> None:
    assert sum(len(block.positions) for block in records.blocks()) == CANDIDATES


def _corrupt(position: int, error: Exception) -> None:
    raise AssertionError(position) from error


def _open(url: str, options: StoreOptions = PATIENT) -> Store:
    return open_store(url, model_id=MODEL, dim=DIM, precision="int8", options=options)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    clips, rounds = (300, 10) if quick else (10_000, 500)
    ids = [f"clip-{number:08}" for number in range(clips)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-")))
        cluster = stack.enter_context(Cluster(folder / "cluster", replicas=False))
        urls = {"lmdb": f"lmdb:{folder / 'store'}"}
        urls |= {f"buckets_{count}": f"{cluster.url}?name=b{count}&buckets={count}" for count in (3, 16, 64, 256)}
        stores = {name: _open(url) for name, url in urls.items()}
        for portion in generated(ids):
            for store in stores.values():
                store.put(portion)
        ways = {name: through(store) for name, store in stores.items()}
        url = urls[f"buckets_{DEFAULT_BUCKETS}"]
        ways["cached"] = through(_open(url, StoreOptions(timeout_s=30)))
        client = stack.enter_context(RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port))
        ways |= by_hand(buckets_of(client.get(f"b{DEFAULT_BUCKETS}"), Address.parse(url)), client)
        return _contest(ways, ids, rounds)


def _contest(ways: dict[str, Callable[[Sequence[str]], None]], ids: list[str], rounds: int) -> dict[str, Any]:
    random = np.random.default_rng(3)

    def sample(of: list[str]) -> list[str]:
        return [of[number] for number in random.choice(len(of), CANDIDATES, replace=False)]

    hot = ids[:HOT]
    for start in range(0, len(hot), CANDIDATES):
        for way in ways.values():
            way(hot[start : start + CANDIDATES])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        for name in order:
            wanted = sample(hot if name == "cached" else ids)
            began = time.perf_counter()
            ways[name](wanted)
            seconds[name].append(time.perf_counter() - began)
        order.append(order.pop(0))
    parts = {name: [statistics.median(each[part::PARTS]) for part in range(PARTS)] for name, each in seconds.items()}

    def ratio(name: str, to: str) -> dict[str, float]:
        return spread(a / b for a, b in zip(parts[name], parts[to], strict=True))

    return {
        "p50_ms": {name: spread(1e3 * each for each in medians) for name, medians in parts.items()},
        "p99_ms": {name: 1e3 * sorted(each)[int(0.99 * len(each))] for name, each in seconds.items()},
        "p50_to_lmdb": {name: ratio(name, "lmdb") for name in ways},
        "p50_to_gets": {name: ratio(name, "gets") for name in ways},
    }


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
