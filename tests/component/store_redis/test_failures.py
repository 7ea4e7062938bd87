"""Servers that are absent, silent, restarted, killed or hand over their slots; and what counts as durable."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest

from streamer.store import Position, PutOutcome, StoreUnavailableError, open_existing
from streamer.store.redis.address import Buckets
from tests.support.redis_servers import Cluster, Server, move_slot, node_id
from tests.support.redis_stores import FIRST, IDS, clip, opened, versions
from tests.support.threads import no_threads
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.redis.store import RedisStore


def eventually(store: RedisStore, ids: list[str]) -> list[int | None]:
    """Read as soon as that can be done again."""
    found: list[list[int | None]] = []

    def can_be_read() -> bool:
        with contextlib.suppress(StoreUnavailableError):
            found.append(versions(store, ids))
        return bool(found)

    wait_until(can_be_read, "a read")
    return found[-1]


def answers(store: RedisStore) -> bool:
    with contextlib.suppress(StoreUnavailableError):
        store.ping()
        return True
    return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, that may be stopped."""
    with Server(tmp_path / "server") as server:
        yield server


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one's own, whose nodes may be killed and whose slots move."""
    with Cluster(tmp_path_factory.mktemp("frail")) as cluster:
        yield cluster


def test_a_store_is_used_as_soon_as_it_exists(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    writer, reader = opened(server.url), opened(server.url, read_only=True)
    with pytest.raises(StoreUnavailableError):
        writer.put([clip("c")])
    with pytest.raises(StoreUnavailableError):
        versions(reader, ["c"])
    with pytest.raises(StoreUnavailableError):
        open_existing(server.url)
    with server:
        assert writer.put([clip("c")]) == [PutOutcome.WRITTEN]
        assert eventually(reader, ["c"]) == [1]


def test_after_a_restart_of_the_server_it_reconnects_and_recreates_a_lost_store(server: Server) -> None:
    url = f"{server.url}?buckets=3"
    store = opened(url)
    store.put([clip("c")])
    server.kill()
    server.start()
    assert eventually(store, ["c"]) == [None]
    store.put([clip("d")])
    assert versions(store, ["d"]) == [1]
    assert open_existing(server.url).stats().models == {"m": 1}


@contextlib.contextmanager
def unconnected(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close a store's idle connections, and let there be no thread for another one meanwhile."""
    with no_threads(monkeypatch, lambda thread: thread.name == "store-connect") as refused:
        for node in store._link._routing._nodes:
            node.drop()
        yield
        assert refused


@pytest.mark.parametrize("read_only", [True, False], ids=["reader", "writer"])
@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_without_a_thread_for_a_connection_the_store_is_unavailable_and_then_used_again(
    server: Server, frail: Cluster, monkeypatch: pytest.MonkeyPatch, kind: str, *, read_only: bool
) -> None:
    url = server.url if kind == "server" else f"{frail.url}?name=threads{read_only}"
    writer = opened(url)
    writer.put([clip(each) for each in IDS])
    store = opened(url, read_only=read_only)
    assert versions(store, IDS) == [1] * len(IDS)
    with unconnected(store, monkeypatch):
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="can't start new thread"):
                versions(store, IDS)
            with pytest.raises(StoreUnavailableError):
                store.ping()
            if not read_only:
                with pytest.raises(StoreUnavailableError):
                    store.put([clip(IDS[0], 2)])
    assert eventually(store, IDS) == [1] * len(IDS)
    wait_until(lambda: answers(store), "the server to answer")
    assert [node.name for node in store._link._routing._nodes if node.resting] == []
    if not read_only:
        assert store.put([clip(IDS[0], 2)]) == [PutOutcome.WRITTEN]


def test_a_silent_server_is_waited_for_once_and_then_left_alone_for_as_long(server: Server) -> None:
    store = opened(server.url, timeout_s=0.5)
    store.put([clip("c")])
    server.freeze()
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"(?i)time"):
        versions(store, ["c"])
    waited = time.monotonic() - began
    assert waited >= 0.5
    again = 0
    while time.monotonic() < began + 1.5 * waited:
        with pytest.raises(StoreUnavailableError):
            versions(store, ["c"])
        again += 1
    assert again > 10
    server.thaw()
    assert eventually(store, ["c"]) == [1]


def test_without_enough_replicas_a_write_is_not_taken_for_durable(valkey: Server) -> None:
    store = opened(f"{valkey.url}?name=alone", replicas=1, timeout_s=0.5)
    with pytest.raises(StoreUnavailableError, match="0 of 1 required replicas"):
        store.put([clip("c")])
    with pytest.raises(StoreUnavailableError, match="0 of 1 required replicas"):
        store.delete("c", FIRST, Position.of("log", 2))


def test_what_a_replica_has_acknowledged_outlives_its_primary(frail: Cluster) -> None:
    store = opened(f"{frail.url}?name=replicated", replicas=1)
    assert store.put([clip(clip_id, 3) for clip_id in IDS]) == [PutOutcome.WRITTEN] * len(IDS)
    assert store.delete("c0", FIRST, Position.of("log", 2))
    idle = opened(f"{frail.url}?name=replicated", read_only=True)
    idle.ping()
    victim = frail.primary_of(b"replicated{0}")
    victim.kill()
    with pytest.raises(StoreUnavailableError):
        idle.ping()
    with pytest.raises(StoreUnavailableError):
        store.put([clip(clip_id, 4) for clip_id in IDS])
    assert eventually(store, IDS)[0] is None
    wait_until(lambda: answers(idle), "a store that is not used has noticed the failover")
    assert {*versions(store, IDS[1:])} <= {3, 4}
    victim.start()
    wait_until(frail.is_whole, "the old primary has come back as a replica")
    assert store.put([clip(clip_id, 5, 3) for clip_id in IDS]) == [PutOutcome.WRITTEN] * len(IDS)
    assert versions(store, IDS) == [5] * len(IDS)


def test_while_slots_move_every_clip_is_read_written_and_deleted(frail: Cluster) -> None:
    url = f"{frail.url}?name=moving&buckets=6"
    store, buckets = opened(url), Buckets("moving", 6)
    store.put([clip(clip_id) for clip_id in IDS])
    over = threading.Event()
    seen: list[list[int | None]] = []
    faults: list[Exception] = []

    def read() -> None:
        reader = opened(url, read_only=True)
        while not over.is_set():
            try:
                seen.append(versions(reader, IDS))
            except Exception as error:  # noqa: BLE001 - what it was is shown
                faults.append(error)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    primaries = [node for node in frail.nodes if node.command("ROLE")[0] == b"master"]
    version = 1
    for number, slot in enumerate(buckets.slots):
        source = frail.primary_of(buckets.heads[number])
        target = next(node for node in primaries if node is not source)
        for stage in _moved_slowly(slot, source, target):
            version += 1
            outcomes = store.put([clip(clip_id, version, version) for clip_id in IDS])
            assert outcomes == [PutOutcome.WRITTEN] * len(IDS), stage
            assert store.delete("c0", FIRST, Position.of("log", version))
    over.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert seen
    for before, after in itertools.pairwise(seen):
        assert None not in after[1:], before
    assert versions(store, IDS) == [None] + [version] * (len(IDS) - 1)
    assert sorted(set(store.clip_ids())) == sorted(IDS[1:])


def _moved_slowly(slot: int, source: Server, target: Server) -> Iterator[str]:
    """Hand a slot over, and come up for air before it, in the middle and behind it."""
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
    yield "begun"
    keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 8)
    source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)
    yield "halfway"
    move_slot(slot, source, target)
    yield "done"
