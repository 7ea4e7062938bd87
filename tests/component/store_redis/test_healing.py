"""A store whose servers change under it: slots without a server, new addresses, roles that change, Sentinels."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from streamer.store import PutOutcome, StoreUnavailableError
from tests.support.redis_servers import SLOTS, Cluster, Sentinel, Server, node_id
from tests.support.redis_stores import IDS, clip, opened, versions
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.redis.store import RedisStore


def reads(store: RedisStore, ids: list[str], expected: list[int | None]) -> bool:
    with contextlib.suppress(StoreUnavailableError):
        return versions(store, ids) == expected
    return False


def writes(store: RedisStore, version: int) -> bool:
    with contextlib.suppress(StoreUnavailableError):
        return store.put([clip(each, version, version) for each in IDS]) == [PutOutcome.WRITTEN] * len(IDS)
    return False


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Names, and the ports of this machine that they lead to at the moment."""
    found: dict[str, int] = {}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        target = found.get(host)
        return real(host, port, *more, **options) if target is None else real("127.0.0.1", target, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return found


def test_slots_that_nobody_served_are_used_again_when_another_server_takes_them(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", primaries=2, replicas=False) as cluster:
        kept, lost = cluster.nodes
        kept.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        writer, reader = opened(cluster.url, timeout_s=2), opened(cluster.url, read_only=True, timeout_s=2)
        assert writes(writer, 1)
        assert reads(reader, IDS, [1] * len(IDS))
        lost_id = node_id(lost)
        lost.kill()
        kept.command("CLUSTER", "FORGET", lost_id)
        for work in (lambda: versions(reader, IDS), reader.ping, writer.ping):
            with pytest.raises(StoreUnavailableError):
                work()

        def has_noticed() -> bool:
            try:
                reader.ping()
            except StoreUnavailableError as error:
                return "no server is known for 8192 slots" in str(error)
            return False

        wait_until(has_noticed, "the hole is in the reader's map")
        with pytest.raises(StoreUnavailableError, match="no server is known for slot"):
            versions(reader, IDS)
        kept.command("CLUSTER", "ADDSLOTSRANGE", SLOTS // 2, SLOTS - 1)
        wait_until(lambda: writes(writer, 2), "the writer writes to the new server")
        wait_until(lambda: reads(reader, IDS, [2] * len(IDS)), "the reader reads from the new server")
        reader.ping()
        writer.ping()


def test_all_servers_are_found_again_at_other_addresses_of_the_same_names(
    tmp_path: Path, names: dict[str, int]
) -> None:
    with Cluster(tmp_path / "first", primaries=1, replicas=False) as first:
        names["store.test"] = first.nodes[0].port
        writer = opened("redis+cluster://store.test", timeout_s=2)
        reader = opened("redis+cluster://store.test", read_only=True, timeout_s=2)
        assert writes(writer, 1)
        assert reads(reader, IDS, [1] * len(IDS))
    with pytest.raises(StoreUnavailableError):
        versions(reader, IDS)
    with Cluster(tmp_path / "second", primaries=1, replicas=False) as second:
        names["store.test"] = second.nodes[0].port
        wait_until(lambda: writes(writer, 2), "the writer writes")
        wait_until(lambda: reads(reader, IDS, [2] * len(IDS)), "the reader reads")
        reader.ping()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with Server(tmp_path / "primary") as primary, Server(tmp_path / "replica") as replica:
        replica.command("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: is_in_step(replica), "the replica is in step")
        yield primary, replica


def is_in_step(replica: Server) -> bool:
    return bool(replica.command("INFO", "replication").get("master_link_status") == "up")


def swap(primary: Server, replica: Server) -> None:
    """Fail over as planned: both servers live on, and keep their connections."""
    replica.command("REPLICAOF", "NO", "ONE")
    primary.command("REPLICAOF", "127.0.0.1", replica.port)
    wait_until(lambda: is_in_step(primary), "the old primary follows the new one")


def test_a_name_that_leads_to_the_promoted_server_is_asked_again_after_a_planned_failover(
    pair: tuple[Server, Server], names: dict[str, int]
) -> None:
    primary, replica = pair
    names["store.test"] = primary.port
    writer, reader = opened("redis://store.test"), opened("redis://store.test", read_only=True)
    assert writes(writer, 1)
    assert reads(reader, IDS, [1] * len(IDS))
    swap(primary, replica)
    names["store.test"] = replica.port
    assert writes(writer, 2)
    writer.ping()
    before = served(replica)
    reader.ping()
    assert reads(reader, IDS, [2] * len(IDS))
    assert served(replica) > before


def served(server: Server) -> int:
    """Return how many reads of records a server has answered."""
    stats = server.command("INFO", "commandstats")
    return sum(int(stats[name]["calls"]) for name in ("cmdstat_mget", "cmdstat_eval_ro") if name in stats)


def test_a_name_that_leads_to_a_replica_is_no_place_to_write_and_one_to_read_while_it_is_fresh(
    pair: tuple[Server, Server],
) -> None:
    primary, replica = pair
    opened(primary.url).put([clip("c")])
    wait_until(lambda: replica.command("EXISTS", "clips"), "the replica has the store")
    writer, reader = opened(replica.url, timeout_s=1), opened(replica.url, read_only=True)
    with pytest.raises(StoreUnavailableError, match=r"READONLY|is a replica"):
        writer.put([clip("d")])
    with pytest.raises(StoreUnavailableError, match=r"READONLY|is a replica"):
        writer.ping()
    assert versions(reader, ["c"]) == [1]
    reader.ping()
    with pytest.raises(StoreUnavailableError, match="is a replica"):
        opened(replica.url, read_only=True, staleness_s=-1).ping()


def test_a_primary_that_sentinels_name_is_followed(pair: tuple[Server, Server], tmp_path: Path) -> None:
    primary, replica = pair
    with Sentinel(tmp_path / "sentinel") as sentinel:
        sentinel.command("SENTINEL", "MONITOR", "clips", "127.0.0.1", primary.port, 1)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/clips"
        writer, reader = opened(url, timeout_s=5), opened(url, read_only=True, timeout_s=5)
        assert writes(writer, 1)
        assert reads(reader, IDS, [1] * len(IDS))
        swap(primary, replica)
        sentinel.command("SENTINEL", "REMOVE", "clips")
        sentinel.command("SENTINEL", "MONITOR", "clips", "127.0.0.1", replica.port, 1)
        wait_until(lambda: writes(writer, 2), "the writer has found the new primary")
        wait_until(lambda: reads(reader, IDS, [2] * len(IDS)), "the reader reads what it has written")
        reader.ping()
        with pytest.raises(StoreUnavailableError, match="do not know"):
            opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", timeout_s=1).ping()


def test_a_cluster_behind_address_translation_is_reached_through_the_map(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", primaries=2, replicas=False) as cluster:
        announced = {}
        for node in cluster.nodes:
            elsewhere = free_port()
            node.command("CONFIG", "SET", "cluster-announce-bus-port", node.port + 10_000)
            node.command("CONFIG", "SET", "cluster-announce-port", elsewhere)
            announced[f"127.0.0.1:{elsewhere}"] = f"127.0.0.1:{node.port}"
        wait_until(lambda: all(announce(node, announced) for node in cluster.nodes), "both know the other addresses")
        store = opened(cluster.url, timeout_s=5, address_map=announced)
        assert writes(store, 1)
        assert reads(store, IDS, [1] * len(IDS))
        with pytest.raises(StoreUnavailableError):
            opened(cluster.url, timeout_s=0.5).put([clip(each) for each in IDS])


def announce(node: Server, addresses: dict[str, str]) -> bool:
    nodes = node.command("CLUSTER", "NODES").decode()
    return all(f"{address}@" in nodes for address in addresses)
