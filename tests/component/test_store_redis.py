"""The store beyond one host where it is not like the others: URLs, access, failures, durability, its cache."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trustme

from streamer.settings import SettingsError, load
from streamer.store import (
    Clip,
    Position,
    PutOutcome,
    StoreError,
    StoreOptions,
    StoreUnavailableError,
    masked,
    open_existing,
    open_store,
    record_format,
)
from streamer.store.redis.address import Address, Buckets
from streamer.store.redis.cache import RecordCache
from streamer.store.redis.store import RedisStore
from tests.support.redis_servers import Cluster, Server, move_slot, node_id
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DIM = 8
FIRST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
IDS = [f"c{number}" for number in range(100)]


def clip(clip_id: str, version: int = 1, offset: int = 1) -> Clip:
    vectors = np.full((2, DIM), version, np.float32)
    at = FIRST + dt.timedelta(seconds=version)
    return Clip(clip_id, at, Position.of("log", offset), 1000, vectors, np.zeros(2, np.uint32))


def opened(url: str, *, read_only: bool = False, **options: Any) -> RedisStore:
    patient = StoreOptions(**{"timeout_s": 30.0, **options})
    store = open_store(url, model_id="m", dim=DIM, precision="float32", read_only=read_only, options=patient)
    assert isinstance(store, RedisStore)
    return store


def versions(store: RedisStore, ids: list[str]) -> list[int | None]:
    with store.read(ids) as found:
        return [None if each is None else int(each.matrix[0, 0]) for each in found]


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


# -- URLs and keys ----------------------------------------------------------------------------------------------


def test_a_url_says_where_the_store_is_and_how_it_is_laid_out() -> None:
    alone = Address.parse("redis://ann:s%3Acret@example.org/3?name=a.b&buckets=16")
    assert (alone.hosts, alone.user, alone.password, alone.db) == ((("example.org", 6379),), "ann", "s:cret", 3)
    assert (alone.name, alone.buckets, alone.is_cluster, alone.tls) == ("a.b", 16, False, False)
    cluster = Address.parse("rediss+cluster://a:1,[::1]:2,c")
    assert cluster.hosts == (("a", 1), ("::1", 2), ("c", 6379))
    assert (cluster.name, cluster.buckets, cluster.is_cluster, cluster.tls) == ("clips", None, True, True)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis:", "not of the form"),
        ("redis://", "not of the form"),
        ("redis://?name=a", "a host is missing"),
        ("redis+cluster://a,,b", "a host is missing"),
        ("redis://a,b", "several hosts need redis"),
        ("redis://a:port", "[Pp]ort"),
        ("redis://a/clips", "/DB takes a number"),
        ("redis+cluster://a/1", "one database"),
        ("redis://a?name={a}", "name="),
        ("redis://a?buckets=0", "from 1 to 16384"),
        ("redis://a?buckets=99999", "from 1 to 16384"),
        ("redis://a?bucket=1", "bucket= is unknown"),
        ("redis://a#b", "nothing may follow"),
        ("redis://u:se/cret@a:x", "[Pp]ort|DB"),
        ("cassandra://a", "unsupported store scheme"),
    ],
)
def test_a_wrong_url_is_refused_in_one_line_without_its_password(url: str, complaint: str) -> None:
    with pytest.raises(StoreError, match=complaint) as caught:
        opened(url)
    assert "\n" not in str(caught.value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:pa:ss@h:1/0", "redis://u:***@h:1/0"),
        ("redis+cluster://:pa@ss/@h,i", "redis+cluster://:***@h,i"),
        ("redis://h:1", "redis://h:1"),
        ("lmdb:./a:b@c", "lmdb:./a:b@c"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize("count", [1, 3, 16, 64, 1000])
def test_buckets_lie_evenly_among_the_slots_and_clips_among_the_buckets(count: int) -> None:
    buckets = Buckets("clips", count)
    assert [slot * count // 16_384 for slot in buckets.slots] == list(range(count))
    keys = record_format.keys(record_format.model_prefix("m"), [f"clip {number}" for number in range(20 * count)])
    found = [buckets.of(key) for key in keys]
    assert min(found.count(number) for number in range(count)) > 0
    assert [buckets.record_key(buckets.full(key)) for key in keys] == keys
    assert buckets.record_key(buckets.models(0)) is None


def test_a_store_keeps_its_number_of_buckets(valkey_cluster: Cluster) -> None:
    url = f"{valkey_cluster.url}?name=buckets"
    opened(f"{url}&buckets=5").put([clip("c")])
    assert versions(opened(url), ["c"]) == [1]
    with pytest.raises(StoreError, match="was created with 5 buckets"):
        opened(f"{url}&buckets=64")


def test_what_is_no_store_of_ours_is_refused(valkey: Server) -> None:
    valkey.command("SET", "foreign", "value")
    with pytest.raises(StoreError, match="is not a store"):
        opened(f"{valkey.url}?name=foreign")


def test_who_only_reads_creates_nothing(valkey: Server) -> None:
    url = f"{valkey.url}?name=absent"
    reader = opened(url, read_only=True)
    assert versions(reader, ["c"]) == [None]
    with pytest.raises(StoreError, match="no such store"):
        open_existing(url)
    assert not valkey.command("EXISTS", "absent")
    opened(f"{url}&buckets=7").put([clip("c")])
    assert versions(reader, ["c"]) == [1]


def test_stores_of_other_names_are_apart(valkey: Server) -> None:
    opened(f"{valkey.url}?name=one").put([clip("c", 1)])
    opened(f"{valkey.url}?name=one-").put([clip("d", 2)])
    assert versions(opened(f"{valkey.url}?name=one"), ["c", "d"]) == [1, None]
    assert list(opened(f"{valkey.url}?name=one").clip_ids()) == ["c"]
    assert opened(f"{valkey.url}?name=one").stats().models == {"m": 1}


# -- access -----------------------------------------------------------------------------------------------------


def test_a_cluster_and_a_lone_server_are_not_taken_for_each_other(valkey: Server, valkey_cluster: Cluster) -> None:
    with pytest.raises(StoreError, match="not enabled"):
        opened(f"redis+cluster://127.0.0.1:{valkey.port}")
    with pytest.raises(StoreError, match=r"use redis\+cluster"):
        opened(valkey_cluster.nodes[0].url)


def documented_commands() -> dict[str, list[str]]:
    """Return what a user who reads and one who writes may do, as the documentation has it."""
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    reads = page.partition("reranker: ")[2].partition("\n")[0].split()
    writes = page.partition("embedder: these and ")[2].partition("\n")[0].split()
    assert reads
    assert writes
    return {"reader": reads, "writer": reads + writes}


@pytest.fixture(params=["valkey", "redis", "cluster"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Server]]:
    """A server that knows users only, or the one node of a cluster; and what its URL begins with."""
    if request.param == "cluster":
        with Cluster(tmp_path / "cluster", primaries=1, replicas=False) as cluster:
            cluster.nodes[0].command("CONFIG", "SET", "requirepass", "top")
            yield "redis+cluster", cluster.nodes[0]
    else:
        with Server(tmp_path / "server", request.param, requirepass="top") as server:
            yield "redis", server


def test_an_acl_user_needs_no_more_than_the_documented_commands(guarded: tuple[str, Server]) -> None:
    scheme, server = guarded
    with contextlib.closing(server.client(password="top")) as admin:  # noqa: S106 - a test's own
        for user, commands in documented_commands().items():
            setting = ("ACL", "SETUSER", user, "on", f">{user}-secret", "~clips*", *commands)
            admin.execute_command(*setting)  # type: ignore[no-untyped-call]  # so in redis-py
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(StoreError) as caught:
        opened(f"{scheme}://writer:wrong@{address}")
    assert "wrong" not in str(caught.value).partition(": ")[0]
    with pytest.raises(StoreError, match=r"[Aa]uthentication"):
        opened(f"{scheme}://{address}")
    writer = opened(f"{scheme}://{address}", user="writer", password="writer-secret")  # noqa: S106
    assert writer.put([clip("c"), clip("d")]) == [PutOutcome.WRITTEN] * 2
    assert writer.delete("d", FIRST, Position.of("log", 2))
    reader = opened(f"{scheme}://reader:reader-secret@{address}", read_only=True)
    for _ in range(2):  # the second time from the cache
        assert versions(reader, ["c", "d"]) == [1, None]
    assert list(reader.clip_ids()) == ["c"]
    assert reader.stats().models == {"m": 1}
    reader.ping()


def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    authority = trustme.CA()
    ours, theirs = authority.issue_cert("streamer"), authority.issue_cert("127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "server_cert", "server_key")}
    authority.cert_pem.write_to_path(paths["ca"])
    for issued, cert, key in ((ours, "cert", "key"), (theirs, "server_cert", "server_key")):
        issued.cert_chain_pems[0].write_to_path(paths[cert])
        issued.private_key_pem.write_to_path(paths[key])
    with Server(tmp_path / "plain", "redis") as probe:
        tls_port = probe.port
    options = {"tls-port": tls_port, "tls-cert-file": paths["server_cert"], "tls-key-file": paths["server_key"]}
    with Server(tmp_path / "server", "redis", **options, **{"tls-ca-cert-file": paths["ca"]}):
        url = f"rediss://127.0.0.1:{tls_port}"
        store = opened(url, ca=paths["ca"], cert=paths["cert"], key=paths["key"])
        store.put([clip("c")])
        assert versions(store, ["c"]) == [1]
        lacking: list[dict[str, Any]] = [{}, {"ca": paths["ca"]}]
        for incomplete in lacking:
            with pytest.raises(StoreUnavailableError, match=r"(?i)ssl|certificate"):
                opened(url, **incomplete).put([clip("c")])


def test_the_password_comes_from_a_file_and_is_in_no_representation(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    settings = load({"store": "redis://u:s3cret@h", "store_password_file": str(tmp_path / "password")})
    options = StoreOptions.of(settings)
    assert options.password == "s3cret"  # noqa: S105
    assert "s3cret" not in f"{settings!r} {options!r} {Address.parse(settings.store)!r}"
    assert StoreOptions.of(load({"store_password": "other"})).password == "other"  # noqa: S105
    for name in ("store_password_file", "store_ca"):
        with pytest.raises(SettingsError, match=name):
            StoreOptions.of(load({name: str(tmp_path / "absent")}))
    with pytest.raises(SettingsError) as caught:
        load({"store": "REDIS://u:s3cret@h"})
    assert "s3cret" not in str(caught.value)


# -- failures ---------------------------------------------------------------------------------------------------


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

    readers = [threading.Thread(target=read) for _ in range(2)]
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


# -- tombstones and the cache -----------------------------------------------------------------------------------


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
    key = Buckets("expiring", 64).full(record_format.key(record_format.model_prefix("m"), "c"))
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


def test_a_record_that_heals_under_the_same_checksum_is_seen(valkey: Server) -> None:
    url = f"{valkey.url}?name=healing"
    store = opened(url)
    store.put([clip("c")])
    full = Buckets("healing", 64).full(record_format.key(record_format.model_prefix("m"), "c"))
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
