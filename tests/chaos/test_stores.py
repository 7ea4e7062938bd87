"""The cluster that a run breaks: what is done to it is really done, and what it holds outlives all but a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.store_faults import clips_of
from tests.chaos.stores import ClusterStore
from tests.support import cluster_faults
from tests.support.redis_servers import is_primary
from tests.support.redis_stores import clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.store.redis.store import RedisStore

IDS = [f"clip-{number:04}" for number in range(60)]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterStore]:
    with ClusterStore(tmp_path_factory.mktemp("chaos") / "store") as store:
        client = connected(store)
        client.put([clip(each) for each in IDS])
        client.close()
        yield store


@pytest.fixture(autouse=True)
def _whole(store: ClusterStore) -> None:
    wait_until(store.cluster.is_whole, "the cluster is whole")


def connected(store: ClusterStore) -> RedisStore:
    """Open the store as the services do."""
    return opened(store.url, user="streamer", password_file=store.password_file, replicas=1)


def holds_all(store: ClusterStore) -> bool:
    client = connected(store)
    try:
        return versions(client, IDS) == [1] * len(IDS)
    finally:
        client.close()


def test_other_addresses_are_found_by_the_same_names_with_all_that_was_there(store: ClusterStore) -> None:
    url = store.url
    assert store.move()
    assert store.url == url
    assert holds_all(store)


def test_another_password_is_taken_alone_and_outlives_a_restart(store: ClusterStore) -> None:
    before = store.password_file.read_text()
    assert store.rotate("second")
    assert store.password_file.read_text() == before
    store.tell_password()
    assert holds_all(store)
    assert store.move()
    assert not any(cluster_faults.takes_password(node, "streamer", before) for node in store.cluster.nodes)
    assert holds_all(store)


def test_a_primary_that_dies_is_replaced_and_comes_back_as_a_replica(store: ClusterStore) -> None:
    victim = store.cluster.primaries()[0]
    with cluster_faults.dead(store.cluster, victim) as other:
        assert is_primary(other)
    wait_until(store.cluster.is_whole, "the cluster is whole")
    assert not is_primary(victim)
    assert cluster_faults.promote(store.cluster, other) is victim
    wait_until(store.cluster.is_whole, "the cluster is whole")
    assert holds_all(store)


def test_slots_are_handed_over_with_their_keys(store: ClusterStore) -> None:
    source, target, _ = store.cluster.primaries()
    keys = len(cluster_faults.keys_of(source))
    moved = cluster_faults.move_slots(source, target, 3)
    assert len(moved) == 3
    assert all(moved.values())
    assert len(cluster_faults.keys_of(source)) == keys - sum(moved.values())
    assert holds_all(store)


def test_what_a_node_has_evicted_and_what_a_flush_removes_is_told_by_clips(store: ClusterStore) -> None:
    first, second, _ = store.cluster.primaries()
    before = cluster_faults.keys_of(first)
    with (
        cluster_faults.configured(first, maxmemory_policy="allkeys-random"),
        cluster_faults.configured(first, maxmemory=cluster_faults.memory_counted(first) - 1_000),
    ):
        wait_until(lambda: cluster_faults.evicted(first), "evictions")
    assert first.command("CONFIG", "GET", "maxmemory*")[b"maxmemory-policy"] == b"noeviction"
    lost = {*clips_of(before - cluster_faults.keys_of(first))}
    lost |= {*clips_of(cluster_faults.flush(second))}
    assert cluster_faults.keys_of(second) == set()
    client = connected(store)
    found = versions(client, IDS)
    client.close()
    assert {clip_id for clip_id, version in zip(IDS, found, strict=True) if version is None} == lost
    assert 0 < len(lost) < len(IDS)
