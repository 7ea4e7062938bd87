"""Copies of a store to a real cluster and back: killed, and while the cluster loses a server or moves slots."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from streamer.store import StoreError, record_format
from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.opening import open_admin
from streamer.store.redis.admin import RedisAdmin
from streamer.store.redis.topology import Topology
from streamer.store.transfer import copy
from streamer.store.upkeep import compare, drop, survey, verify
from tests.support.redis_servers import Cluster, Server, move_slot
from tests.support.store_records import (
    PREFIX,
    copy_and_die,
    damaged,
    digest,
    everything,
    fill,
    many,
    put_unchecked,
    upload,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.admin import Page
    from streamer.store.redis.nodes import Node

RECORDS = 5_000
WAIT_S = 120
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def lmdb(tmp_path: Path) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(tmp_path / "store", create=True)
    fill(opened, many(RECORDS))
    yield opened
    opened.close()


def test_a_copy_to_a_cluster_and_back_killed_twice_on_either_way_is_the_same_to_the_byte(
    tmp_path: Path, lmdb: LmdbAdmin, valkey_cluster: Cluster
) -> None:
    expected = digest(lmdb)
    urls = f"lmdb:{tmp_path / 'store'}", f"{valkey_cluster.url}?name=there-and-back", f"lmdb:{tmp_path / 'back'}"
    for source, target in itertools.pairwise(urls):
        for stage in ("copy", "verify"):
            process = spawn.Process(target=copy_and_die, args=(source, target, 4, stage))
            process.start()
            process.join(WAIT_S)
            process.kill()
            assert process.exitcode == -signal.SIGKILL
        with contextlib.closing(open_admin(source)) as opened, contextlib.closing(open_admin(target)) as to:
            report = copy(opened, to)
            assert (report.resumed, report.written, report.mended) == (2, RECORDS, 0)
            assert min(report.read, report.compared) >= RECORDS  # a server's cursor stands still within its own batch
            assert digest(to) == expected
            assert to.models() == opened.models()
            assert to.note() is None
            assert compare(opened, to).same == RECORDS


def test_damage_in_a_server_is_found_and_healed_by_a_copy(lmdb: LmdbAdmin, valkey: Server) -> None:
    with contextlib.closing(open_admin(f"{valkey.url}?name=damaged", create=True)) as target:
        copy(lmdb, target)
        some = list(many(40))
        for raw in some[10:13]:
            put_unchecked(target, damaged(raw))
        put_unchecked(target, upload(1, clip_id="z" * 505)._replace(key=some[20].key))
        assert verify(target).damage.count == 4
        assert compare(lmdb, target).damaged == 4
        assert copy(lmdb, target).written == 4
        assert digest(target) == digest(lmdb)


def test_a_model_is_dropped_from_a_cluster_and_the_others_stay(lmdb: LmdbAdmin, valkey_cluster: Cluster) -> None:
    other = record_format.model_prefix("model-b")
    with contextlib.closing(open_admin(f"{valkey_cluster.url}?name=dropped", create=True)) as cluster:
        copy(lmdb, cluster)
        stays = upload(7, clip_id="stays", prefix=other)
        cluster.register({other: "model-b"})
        cluster.put([stays])
        found = survey(cluster, PREFIX)
        assert (found.clips, found.tombstones) == (RECORDS * 9 // 10, RECORDS // 10)
        assert drop(cluster, PREFIX) == (RECORDS, True)
        assert everything(cluster) == {stays.key: stays.value}
        assert cluster.models() == {other: "model-b"}
        with pytest.raises(StoreError, match="by themselves"):
            cluster.compact(None)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as cluster:
        yield cluster


def test_a_copy_lives_through_the_loss_of_a_server_of_its_target_and_of_its_source(
    tmp_path: Path, lmdb: LmdbAdmin, own_cluster: Cluster
) -> None:
    expected = digest(lmdb)
    killed: list[Server] = []

    def killing(at: tuple[str, int], server: Server) -> Any:
        def advance(stage: str, done: int, _: int) -> None:
            if stage == at[0] and done >= at[1] and server not in killed:
                killed.append(server)
                server.kill()

        return advance

    with contextlib.closing(open_admin(own_cluster.url, create=True)) as cluster:
        copy(lmdb, cluster, advance=killing(("copy", RECORDS // 2), own_cluster.nodes[0]))
        assert digest(cluster) == expected
        own_cluster.nodes[0].start()
        wait_until(own_cluster.is_whole, "the cluster is whole again")
        with contextlib.closing(LmdbAdmin(tmp_path / "back", create=True)) as back:
            copy(cluster, back, advance=killing(("verify", RECORDS // 2), own_cluster.nodes[1]))
            assert digest(back) == expected
    assert len(killed) == 2


def test_slots_that_move_while_they_are_scanned_take_no_record_with_them(
    lmdb: LmdbAdmin, own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.store.redis.admin._ROUND_PAUSE_S", 0)
    primaries = own_cluster.nodes[:3]
    for node in own_cluster.nodes:
        node.command("CONFIG", "SET", "cluster-node-timeout", 15_000)  # a busy machine makes no replica take over
    with contextlib.closing(RedisAdmin(own_cluster.url, create=True)) as cluster:
        copy(lmdb, cluster)
        slots = cluster._opened().buckets.slots
        anew: list[int] = []

        def moving(pages: Iterator[Page]) -> Iterator[Page]:
            """Move a third of the slots in each direction once one server has been scanned in part."""
            for number, page in enumerate(pages):
                if number == 3:
                    for slot in slots[::3]:
                        source = owner(own_cluster, slot)
                        move_slot(slot, source, primaries[(primaries.index(source) + 1) % 3], keys_at_once=100)
                    wait_until(own_cluster.agrees, "all nodes to know who serves the slots")
                if page.restarted:
                    anew.append(number)
                yield page

        scan = cluster.scan
        monkeypatch.setattr(cluster, "scan", lambda *args, **named: moving(scan(*args, **named)))
        met = everything(cluster)
        assert len(anew) == 1
        assert met == everything(lmdb)
        monkeypatch.undo()

        # A cursor that was made before slots moved begins anew, too.
        first = next(cluster.scan())
        slot = slots[1]
        source = owner(own_cluster, slot)
        move_slot(slot, source, primaries[(primaries.index(source) + 1) % 3], keys_at_once=100)
        pages = list(cluster.scan(first.cursor))
        assert [page.restarted for page in pages] == [True] + [False] * (len(pages) - 1)
        assert {raw.key for page in pages for raw in page.records} == set(met)


def test_a_slot_that_moves_while_the_topology_is_read_again_is_followed(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(RedisAdmin(own_cluster.url, create=True)) as cluster:
        slot = cluster._opened().buckets.slots[0]
        source = owner(own_cluster, slot)
        move_slot(slot, source, next(node for node in own_cluster.nodes[:3] if node is not source), keys_at_once=100)
        routing = cluster._opened().link._routing
        noted = routing.moved

        def moved(slot: int, to: Node) -> None:
            """Let a topology that was read before the slot moved arrive first."""
            old = routing.topology
            assert old is not None
            routing.topology = Topology([old.shard(each) for each in range(SLOTS)])
            noted(slot, to)

        monkeypatch.setattr(routing, "moved", moved)
        monkeypatch.setattr(routing, "refresh", lambda: None)
        key = next(key for key in (f"key-{number}" for number in itertools.count()) if key_slot(key.encode()) == slot)
        assert cluster._opened().link.one("GET", key) is None


def owner(cluster: Cluster, slot: int) -> Server:
    """Return the server that serves a slot."""
    for begin, end, (_, port, *_), *_ in cluster.nodes[0].command("CLUSTER", "SLOTS"):
        if begin <= slot <= end:
            return next(node for node in cluster.nodes if node.port == port)
    raise AssertionError(slot)
