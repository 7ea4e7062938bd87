"""Servers that evict keys, that are full, or whose replicas lag: what is refused, what passes, and what is reported."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer.health import Health
from streamer.metrics import Metrics
from streamer.store import (
    Clip,
    Position,
    PutOutcome,
    StoreError,
    StoreOptions,
    StoreUnavailableError,
    StoreWatch,
    open_existing,
    open_store,
)
from streamer.store.opening import open_admin
from streamer.store.protocol import EvictingStoreError
from tests.support.redis_servers import Cluster, Server
from tests.support.redis_stores import DIM, FIRST, IDS, clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store import Store
    from streamer.store.redis.store import RedisStore

POLICIES = ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random",
            "volatile-ttl"]  # fmt: skip
LARGE = 300
"""Vectors of a clip of 10 kB."""


@pytest.fixture(autouse=True)
def _no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a watch look when a test says so, and at no other time."""
    monkeypatch.setattr(StoreWatch, "_run", lambda _watch: None)


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, whose configuration may change."""
    with Server(tmp_path / "server", request.param) as server:
        yield server


def large(clip_id: str, version: int = 1, offset: int = 1) -> Clip:
    vectors = np.full((LARGE, DIM), version, np.float32)
    return replace(clip(clip_id, version, offset), vectors=vectors, times_ms=np.zeros(LARGE, np.uint32))


def set_policy(server: Server, policy: str) -> None:
    server.command("CONFIG", "SET", "maxmemory-policy", policy)


def fill(store: RedisStore, server: Server, room: int = 1 << 20) -> list[str]:
    """Lower the server's limit and put clips until it takes no more; return the ids of those that it took."""
    used = server.command("INFO", "memory")["used_memory"]
    server.command("CONFIG", "SET", "maxmemory", used + room)
    taken: list[str] = []

    def put_until_it_is_full() -> None:
        for number in itertools.count():
            store.put([large(f"large {number}")])
            taken.append(f"large {number}")

    with pytest.raises(StoreUnavailableError, match="command not allowed when used memory"):
        put_until_it_is_full()
    assert len(taken) > 10
    return taken


def watched(store: Store) -> tuple[StoreWatch, Metrics, Health]:
    metrics = Metrics()
    health = Health(metrics)
    health.ready("start")
    return StoreWatch(store, "m", metrics=metrics, health=health, counts=False), metrics, health


def value(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(name)
    assert found is not None
    return found


def test_a_server_that_may_evict_is_refused_with_the_name_of_its_policy(server: Server) -> None:
    set_policy(server, "volatile-lru")
    for read_only in (True, False):  # before there is a store
        with pytest.raises(StoreError, match="volatile-lru"):
            opened(server.url, read_only=read_only)
    assert server.command("DBSIZE") == 0
    set_policy(server, "noeviction")
    opened(server.url).put([clip("c")])
    for policy in POLICIES:
        set_policy(server, policy)
        for read_only in (False, True):
            with pytest.raises(StoreError, match=f"127.0.0.1:{server.port} has maxmemory-policy {policy}"):
                opened(server.url, read_only=read_only)
        with pytest.raises(StoreError, match=policy):
            open_admin(server.url, create=True)
    with contextlib.closing(open_existing(server.url)) as inspected:
        assert inspected.stats().models == {"m": 1}
    with contextlib.closing(open_admin(server.url)) as admin:
        assert admin.count() > 1
    set_policy(server, "noeviction")
    assert versions(opened(server.url, read_only=True), ["c"]) == [1]


def test_a_policy_that_changes_under_a_service_stops_its_writes_and_not_its_reads(server: Server) -> None:
    store, reader = opened(server.url), opened(server.url, read_only=True)
    store.put([clip("c")])
    set_policy(server, "volatile-lru")
    watch, metrics, health = watched(store)
    watch.look()
    assert [problem.partition(": ")[0] for problem in health.readiness_problems()] == ["eviction"]
    assert "has maxmemory-policy volatile-lru" in health.readiness_problems()[0]
    with pytest.raises(StoreUnavailableError, match="volatile-lru"):
        store.put([clip("d")])
    with pytest.raises(StoreUnavailableError, match="volatile-lru"):
        store.delete("c", FIRST, Position.of("log", 2))
    with pytest.raises(EvictingStoreError, match="volatile-lru"):
        reader.ping()
    assert versions(reader, ["c", "d"]) == [1, None]
    set_policy(server, "noeviction")
    assert store.put([clip("d")]) == [PutOutcome.WRITTEN]
    watch.look()
    reader.ping()
    assert health.readiness_problems() == []
    assert value(metrics, "streamer_store_evicted_keys_total") == 0


def test_a_user_who_may_not_read_the_configuration_notices_the_policy_all_the_same(server: Server) -> None:
    commands = ["+@all", "-config", "-@admin", "+info"]
    server.command("ACL", "SETUSER", "managed", "on", ">secret", "~clips*", *commands)
    url = server.url.replace("//", "//managed:secret@")
    opened(url).ping()
    set_policy(server, "volatile-ttl")
    with pytest.raises(StoreError, match="volatile-ttl"):
        opened(url)


def test_one_node_of_a_cluster_and_one_replica_are_enough(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        store = opened(cluster.url)
        store.put([clip(clip_id) for clip_id in IDS])
        # A node lists a replica only after it has heard how far the replica is.
        seen_by = cluster.nodes[0]
        wait_until(lambda: all(len(row) == 4 for row in seen_by.command("CLUSTER", "SLOTS")), "replicas are listed")
        for node, said in ((cluster.nodes[1], ""), (cluster.nodes[4], " (a replica)")):
            set_policy(node, "allkeys-lru")
            told = f"127.0.0.1:{node.port}{said} has maxmemory-policy allkeys-lru: "
            with pytest.raises(StoreError) as caught:
                opened(cluster.url)
            assert told in str(caught.value)
            with pytest.raises(EvictingStoreError) as caught_later:
                store.ping()
            assert told in str(caught_later.value)
            set_policy(node, "noeviction")
            store.ping()
        # A replica that is away tells nothing, and is no reason to wait.
        cluster.nodes[5].kill()
        store.ping()


def test_keys_that_are_evicted_are_counted_once_and_from_the_first_look_on(server: Server) -> None:
    store = opened(server.url)
    store.put([clip(clip_id) for clip_id in IDS])
    for number, clip_id in enumerate(IDS[:50]):
        store.delete(clip_id, FIRST, Position.of("log", 100 + number))

    def evict() -> int:
        before = int(server.command("INFO", "stats")["evicted_keys"])
        set_policy(server, "volatile-lru")
        server.command("CONFIG", "SET", "maxmemory", 1)
        with contextlib.suppress(Exception):  # what evicts is any command that may take memory
            server.command("SET", "stranger", "value")
        server.command("CONFIG", "SET", "maxmemory", 0)
        set_policy(server, "noeviction")
        return int(server.command("INFO", "stats")["evicted_keys"]) - before

    assert evict() > 0
    watch, metrics, _ = watched(store)
    watch.look()
    seen = value(metrics, "streamer_store_evicted_keys_total")
    assert seen == 0  # before this process
    for number, clip_id in enumerate(IDS[:50]):
        store.delete(clip_id, FIRST, Position.of("log", 200 + number))
    gone = evict()
    assert gone > 0
    for _ in range(2):
        watch.look()
        assert value(metrics, "streamer_store_evicted_keys_total") == gone
    server.command("CONFIG", "RESETSTAT")
    watch.look()
    assert value(metrics, "streamer_store_evicted_keys_total") == gone


def test_a_full_server_takes_deletes_and_reads_and_refuses_uploads_in_its_own_words(server: Server) -> None:
    store = opened(server.url)
    store.put([clip("small")])
    taken = fill(store, server)
    assert versions(opened(server.url, read_only=True), ["small", *taken[:3]]) == [1, 1, 1, 1]
    store.ping()
    assert not store.delete("never seen", FIRST, Position.of("log", 2))
    assert store.delete("small", FIRST, Position.of("log", 2))
    # An embedder of another model that starts now.
    newcomer = opened(server.url)
    assert newcomer.delete(taken[0], FIRST, Position.of("log", 2))
    with pytest.raises(StoreUnavailableError, match="command not allowed when used memory"):
        store.put([large("one more"), large("and another")])
    for clip_id in taken[1:]:
        assert store.delete(clip_id, FIRST, Position.of("log", 2))
    assert store.put([large("one more")]) == [PutOutcome.WRITTEN]
    # What was deleted while the server was full stays deleted.
    assert store.put([large(taken[0]), clip("small"), clip("never seen")]) == [PutOutcome.SUPERSEDED] * 3


def test_a_model_that_is_new_to_a_full_store_is_registered_and_its_tombstones_are_written(server: Server) -> None:
    store = opened(server.url)
    fill(store, server)
    options = StoreOptions(timeout_s=30)
    with contextlib.closing(
        open_store(server.url, model_id="new", dim=DIM, precision="float32", options=options)
    ) as new:
        assert not new.delete("c", FIRST, Position.of("log", 2))
        assert new.put([clip("c")]) == [PutOutcome.SUPERSEDED]
    assert store.stats().models == {"m": store.stats().models["m"], "new": 0}


def test_deletes_on_a_full_primary_reach_its_replica_and_do_not_expire_early(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", primaries=1) as cluster:
        primary, replica = cluster.nodes
        store = opened(cluster.url, replicas=1, tombstone_s=3600)
        taken = fill(store, primary)
        assert store.delete(taken[0], FIRST, Position.of("log", 2))
        [full] = [key for key in replica.command("KEYS", "*") if key.endswith(b"\x01" + taken[0].encode())]
        assert 0 < primary.command("PTTL", full) <= 3_600_000
        assert primary.command("STRLEN", full) < 1_000


def test_how_full_the_fullest_server_is(server: Server) -> None:
    store = opened(server.url)
    store.put([clip(clip_id) for clip_id in IDS])
    watch, metrics, health = watched(store)
    watch.look()
    assert 0 < value(metrics, "streamer_store_memory_ratio") < 0.5  # of the machine
    used = server.command("INFO", "memory")["used_memory"]
    server.command("CONFIG", "SET", "maxmemory", used * 2)
    watch.look()
    assert 0.3 < value(metrics, "streamer_store_memory_ratio") < 0.8
    server.command("CONFIG", "SET", "maxmemory", used // 2)  # lowered under use
    watch.look()
    assert value(metrics, "streamer_store_memory_ratio") > 1.5
    assert health.readiness_problems() == []  # queries can be answered


def test_a_replica_that_hangs_is_seen_to_lag(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", primaries=1) as cluster:
        store = opened(cluster.url, timeout_s=3)
        store.put([clip("c")])
        watch, metrics, health = watched(store)
        watch.look()
        assert value(metrics, "streamer_store_replica_lag_seconds") <= 2

        def lag() -> float:
            watch.look()
            return value(metrics, "streamer_store_replica_lag_seconds")

        cluster.nodes[1].freeze()
        wait_until(lambda: lag() >= 3, "a replica that lags")
        assert health.readiness_problems() == []
        cluster.nodes[1].thaw()
        wait_until(lambda: lag() <= 2, "a replica that follows")


def test_a_full_server_that_is_emptied_takes_deletes_and_uploads_again(server: Server) -> None:
    """Somebody flushes the database of a running service; strangers' keys take the memory that is left."""
    store = opened(server.url)
    fill(store, server)
    server.command("FLUSHALL", "SYNC")
    server.command("SET", "stranger", bytes(1 << 16))
    with contextlib.suppress(StoreUnavailableError):  # the store is created anew
        store.put([clip("c")])
    assert store.put([clip("c")]) == [PutOutcome.WRITTEN]
    assert store.delete("c", FIRST, Position.of("log", 2))
    assert store.stats().models == {"m": 0}
    server.command("CONFIG", "SET", "maxmemory", 1)
    assert not store.delete("d", FIRST, Position.of("log", 3))
    assert store.put([clip("d")]) == [PutOutcome.SUPERSEDED]
    assert server.command("STRLEN", "stranger") == 1 << 16


def test_a_store_that_is_lost_while_its_server_is_full_is_registered_again_by_a_delete(server: Server) -> None:
    store = opened(server.url)
    store.put([clip("c")])
    server.command("FLUSHALL", "SYNC")
    server.command("CONFIG", "SET", "maxmemory", 1)
    assert not store.delete("c", FIRST, Position.of("log", 2))
    assert versions(opened(server.url), ["c"]) == [None]
    assert store.put([clip("c")]) == [PutOutcome.SUPERSEDED]
    assert store.stats().tombstones == 1


def test_a_tombstone_keeps_its_lifetime_on_a_full_server(server: Server) -> None:
    store = opened(server.url, tombstone_s=0.5)
    store.put([clip("c")])
    server.command("CONFIG", "SET", "maxmemory", 1)
    assert store.delete("c", FIRST, Position.of("log", 2))
    assert store.delete("c", FIRST, Position.of("log", 3)) is False  # again, with the later position
    assert store.stats().tombstones == 1
    wait_until(lambda: store.stats().tombstones == 0, "the tombstone has expired")


def test_a_replica_with_a_lower_limit_takes_over_full_and_takes_deletes(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", primaries=1) as cluster:
        _, replica = cluster.nodes
        store = opened(cluster.url)
        store.put([clip("c"), large("d")])
        replica.command("CONFIG", "SET", "maxmemory", 1)
        watch, metrics, _ = watched(store)

        def fullest() -> float:
            watch.look()
            return value(metrics, "streamer_store_memory_ratio")

        wait_until(lambda: fullest() > 1, "the replica is seen")
        wait_until(cluster.is_whole, "the replica is in step")
        replica.command("CLUSTER", "FAILOVER")
        wait_until(lambda: replica.command("ROLE")[0] == b"master", "the replica has taken over")
        wait_until(cluster.is_whole, "the old primary follows")
        wait_until(lambda: deletes(store, "c"), "a delete")
        with pytest.raises(StoreUnavailableError, match="command not allowed when used memory"):
            store.put([large("e")])
        assert versions(store, ["c", "d"]) == [None, 1]


def deletes(store: RedisStore, clip_id: str) -> bool:
    with contextlib.suppress(StoreUnavailableError):
        return store.delete(clip_id, FIRST, Position.of("log", 2))
    return False
