"""Where a store is and how it is laid out: URLs, names, buckets."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streamer.store import PutOutcome, StoreError, StoreUnavailableError, masked, open_existing, record_format
from streamer.store.redis.address import BUCKETS_PER_NODE, DEFAULT_BUCKETS, UNSALTED, Address, Buckets
from tests.support.redis_stores import IDS, buckets, clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.redis_servers import Cluster, Server


def test_a_url_says_where_the_store_is_and_how_it_is_laid_out() -> None:
    alone = Address.parse("redis://ann:s%3Acret@example.org/3?name=a.b&buckets=16")
    assert (alone.hosts, alone.user, alone.password, alone.db) == ((("example.org", 6379),), "ann", "s:cret", 3)
    assert (alone.name, alone.buckets, alone.is_cluster, alone.tls) == ("a.b", 16, False, False)
    cluster = Address.parse("rediss+cluster://a:1,[::1]:2,c")
    assert cluster.hosts == (("a", 1), ("::1", 2), ("c", 6379))
    by_name = Address.parse("rediss+sentinel://:pw@a,b:27000/clips/2?name=x")
    assert (by_name.hosts, by_name.service, by_name.db, by_name.tls) == ((("a", 26379), ("b", 27000)), "clips", 2, True)
    assert alone.service is cluster.service is None
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
        ("redis://a/clips", "/DB must be a number from 0 to"),
        ("redis+cluster://a/1", "one database"),
        ("redis+sentinel://a", "name of the service"),
        ("redis://a?name={a}", "name="),
        ("redis://a?buckets=0", "from 1 to 16384"),
        ("redis://a?buckets=99999", "from 1 to 16384"),
        ("redis://a?bucket=1", "bucket= is unknown"),
        ("redis://a#b", "may follow the hosts"),
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
    made = Buckets("clips", count, salt=7)
    assert [slot * count // 16_384 for slot in made.slots] == list(range(count))
    keys = record_format.keys(record_format.model_prefix("m"), [f"clip {number}" for number in range(20 * count)])
    found = [made.of(key) for key in keys]
    assert min(found.count(number) for number in range(count)) > 0
    assert [made.record_key(made.full(key)) for key in keys] == keys
    assert made.record_key(made.models(0)) is None


def test_buckets_are_spread_over_few_and_many_nodes() -> None:
    """The nodes divide the 16,384 slots evenly, as ``redis-cli --cluster create`` has it; slots are real CRC16 ones."""
    fullest = {}
    for nodes in (3, 6, 40, 66):
        count = max(DEFAULT_BUCKETS, BUCKETS_PER_NODE * nodes)
        ends = [16_384 * (number + 1) // nodes for number in range(nodes)]
        shares = Counter(bisect_right(ends, slot) for slot in Buckets("clips", count, salt=7).slots)
        assert sum(shares.values()) == count
        assert min(shares[number] for number in range(nodes)) >= 0.93 * count / nodes
        fullest[nodes] = round(max(shares.values()) * nodes / count, 3)
    assert fullest == {3: 1.031, 6: 1.0, 40: 1.062, 66: 1.062}


def test_a_new_store_on_many_nodes_has_many_buckets(valkey_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.store.redis.keyspace.BUCKETS_PER_NODE", 100)
    assert buckets(opened(f"{valkey_cluster.url}?name=many")).count == 300
    monkeypatch.undo()
    assert buckets(opened(f"{valkey_cluster.url}?name=many")).count == 300
    assert buckets(opened(f"{valkey_cluster.url}?name=few")).count == 64


def test_who_names_clips_cannot_choose_their_bucket() -> None:
    """Ids that share a bucket under one salt are spread under another one."""
    known = Buckets("clips", 64, salt=1)
    keys = record_format.keys(record_format.model_prefix("m"), [f"clip {number}" for number in range(20_000)])
    chosen = [key for key in keys if known.of(key) == 0]
    assert len(chosen) > 200
    assert len({Buckets("clips", 64, salt=2).of(key) for key in chosen}) > 50


def test_each_store_has_a_salt_of_its_own_and_keeps_it(valkey: Server) -> None:
    urls = [f"{valkey.url}?name=salted-{number}" for number in range(2)]
    salts = [buckets(opened(url)).salt for url in urls]
    assert len({*salts, UNSALTED}) == 3
    assert [buckets(opened(url)).salt for url in urls] == salts
    assert buckets(opened(urls[0], read_only=True)).salt == salts[0]


@pytest.mark.parametrize("lost", [False, True])
def test_a_store_of_an_earlier_release_has_no_salt_and_keeps_its_clips(valkey: Server, lost: bool) -> None:
    url, name = f"{valkey.url}?name=unsalted-{lost}", f"unsalted-{lost}"
    valkey.command("SET", name, "clip embeddings 2 buckets 64")
    opened(url).put([clip(clip_id) for clip_id in IDS])
    key = record_format.key(record_format.model_prefix("m"), IDS[0])
    assert valkey.command("EXISTS", Buckets(name, 64).full(key))
    if lost:
        valkey.command("DEL", name)
    again = opened(url)
    assert buckets(again).salt == UNSALTED
    assert versions(again, IDS) == [1] * len(IDS)
    assert again.stats().models == {"m": len(IDS)}
    assert valkey.command("GET", name) == b"clip embeddings 2 buckets 64"


def test_a_salt_whose_key_is_lost_is_found_in_the_buckets(valkey: Server) -> None:
    url = f"{valkey.url}?name=half-lost"
    opened(url).put([clip(clip_id) for clip_id in IDS])
    valkey.command("DEL", "half-lost")
    again = opened(url)
    assert versions(again, IDS) == [1] * len(IDS)
    assert again.stats().models == {"m": len(IDS)}
    again.put([clip("more")])
    assert versions(opened(url), [*IDS, "more"]) == [1] * (len(IDS) + 1)


def test_processes_that_have_the_store_open_notice_that_it_was_created_anew(valkey: Server) -> None:
    url = f"{valkey.url}?name=anew"
    writer, reader = opened(url), opened(url, read_only=True)
    writer.put([clip("c")])
    assert versions(reader, ["c"]) == [1]
    for key in valkey.command("KEYS", "anew*"):
        valkey.command("DEL", key)
    opened(url).put([clip("c", 2)])
    with pytest.raises(StoreUnavailableError, match="created anew"):
        writer.put([clip("d", 2)])
    with pytest.raises(StoreUnavailableError, match="created anew"):
        reader.ping()
    assert writer.put([clip("d", 2)]) == [PutOutcome.WRITTEN]  # as a service tries again
    reader.ping()
    assert versions(reader, ["c", "d"]) == versions(opened(url), ["c", "d"]) == [2, 2]


def test_a_store_that_is_made_anew_with_other_buckets_is_a_fault_with_a_name_to_whoever_has_it_open(
    valkey: Server,
) -> None:
    url = f"{valkey.url}?name=rebucketed"
    writer, reader = opened(f"{url}&buckets=64"), opened(f"{url}&buckets=64", read_only=True)
    writer.put([clip("c")])
    assert versions(reader, ["c"]) == [1]
    for key in valkey.command("KEYS", "rebucketed*"):
        valkey.command("DEL", key)
    opened(f"{url}&buckets=256").put([clip("d")])
    with pytest.raises(StoreUnavailableError, match="buckets 256' instead of 'clip embeddings 3 buckets 64"):
        writer.put([clip("c")])
    with pytest.raises(StoreUnavailableError, match="buckets 256' instead of 'clip embeddings 3 buckets 64"):
        reader.ping()
    for work in (lambda: writer.put([clip("c")]), lambda: versions(reader, ["c"]), writer.ping, reader.ping):
        with pytest.raises(StoreUnavailableError, match="was created with 256 buckets"):
            work()
    assert opened(url).stats().models == {"m": 1}


def test_a_reader_compares_the_format_when_its_connection_is_new(valkey: Server) -> None:
    url = f"{valkey.url}?name=reconnected"
    opened(f"{url}&buckets=64").put([clip("c")])
    reader = opened(f"{url}&buckets=64", read_only=True)
    assert versions(reader, ["c"]) == [1]
    for key in valkey.command("KEYS", "reconnected*"):
        valkey.command("DEL", key)
    opened(f"{url}&buckets=256").put([clip("d")])
    valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    found: list[list[int | None]] = []

    def compares() -> bool:
        try:
            found.append(versions(reader, ["c"]))
        except StoreUnavailableError as error:
            return "256" in str(error)
        return False

    wait_until(compares, "the reader has compared the format")
    assert len(found) <= 1  # of the read that has made the connection


@pytest.mark.parametrize(
    "stored",
    [
        "clip embeddings 2 buckets 0",
        "clip embeddings 2 buckets 99999",
        "clip embeddings 2 buckets " + "9" * 5000,
        "clip embeddings 2 buckets 64 salt 12",
        "clip embeddings 2 buckets \u0666",
    ],
)
def test_a_format_that_no_release_writes_is_refused(valkey: Server, stored: str) -> None:
    valkey.command("SET", "odd-format", stored)
    with pytest.raises(StoreError):
        opened(f"{valkey.url}?name=odd-format")


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


def test_a_read_only_store_creates_nothing(valkey: Server) -> None:
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
