"""Users, passwords and certificates."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from streamer.settings import SettingsError, load
from streamer.store import Position, PutOutcome, StoreError, StoreOptions, StoreUnavailableError
from streamer.store.redis.address import Address
from tests.support.redis_servers import Cluster, Server
from tests.support.redis_stores import FIRST, IDS, clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.store.redis.store import RedisStore


def test_a_cluster_and_a_lone_server_are_not_taken_for_each_other(valkey: Server, valkey_cluster: Cluster) -> None:
    with pytest.raises(StoreError, match="cluster support disabled"):
        opened(f"redis+cluster://127.0.0.1:{valkey.port}")
    with pytest.raises(StoreError, match=r"use redis\+cluster"):
        opened(valkey_cluster.nodes[0].url)


def documented_commands() -> dict[str, list[str]]:
    """Return what a user who reads and one who writes may do, as the documentation has it."""
    page = (Path(__file__).parents[3] / "docs" / "store.md").read_text(encoding="utf-8")
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


def test_a_new_password_is_read_from_its_file_when_a_connection_is_made(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old\n")
    server.command("ACL", "SETUSER", "streamer", "on", ">old", "~clips*", "+@all")
    url = server.url.replace("redis://", "redis://streamer@")
    writer, reader = (opened(url, read_only=each, password_file=file) for each in (False, True))
    writer.put([clip("c")])
    assert versions(reader, ["c"]) == [1]
    server.command("ACL", "SETUSER", "streamer", ">new", "<old")
    server.command("CLIENT", "KILL", "USER", "streamer")
    with pytest.raises(StoreUnavailableError, match="WRONGPASS"):
        writer.put([clip("c", 2, 2)])
    file.unlink()
    with pytest.raises(StoreUnavailableError, match="store_password_file"):
        writer.put([clip("c", 2, 2)])
    file.write_text("new\n")
    assert writer.put([clip("c", 2, 2)]) == [PutOutcome.WRITTEN]
    wait_until(lambda: read_or_nothing(reader) == [2], "the reader reads again")
    reader.ping()


def test_a_password_that_is_refused_for_a_while_leaves_the_cache_as_it_is(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    file.write_text("old")
    server.command("ACL", "SETUSER", "streamer", "on", ">old", "~clips*", "+@all")
    url = server.url.replace("redis://", "redis://streamer@")
    opened(url, password_file=file).put([clip("c")])
    reader = opened(url, read_only=True, password_file=file)
    assert [versions(reader, ["c"]) for _ in range(2)] == [[1]] * 2
    server.command("ACL", "SETUSER", "streamer", ">new", "<old")
    server.command("CLIENT", "KILL", "USER", "streamer")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="WRONGPASS"):
            versions(reader, ["c"])
    file.write_text("new")
    wait_until(lambda: read_or_nothing(reader) == [1], "the reader reads again")
    with reader.read(["c"]) as found:
        assert (found.cache_hits, found.cache_misses) == (1, 0)
    assert "EVAL_RO" not in caplog.text + capsys.readouterr().out


def read_or_nothing(reader: RedisStore) -> list[int | None]:
    with contextlib.suppress(StoreUnavailableError):
        return versions(reader, ["c"])
    return []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, with users of its own."""
    with Server(tmp_path / "server") as server:
        yield server


def test_without_eval_ro_a_query_sends_one_command_for_each_bucket_and_says_so_once(
    server: Server, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    opened(f"{server.url}?buckets=8").put([clip(each) for each in IDS])
    server.command("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "-eval_ro")
    reader = opened(server.url, read_only=True, user="u", password="p")  # noqa: S106 - a test's own
    before = processed(server)
    for _ in range(10):
        assert versions(reader, IDS) == [1] * len(IDS)
    assert processed(server) - before <= 10 * 8 + 10  # and what comes with a connection
    logged = capsys.readouterr().out + caplog.text
    assert logged.count("do not run EVAL_RO") == 1


def processed(server: Server) -> int:
    return int(server.command("INFO", "stats")["total_commands_processed"])


def test_before_the_first_embedder_a_query_makes_no_connection(server: Server) -> None:
    reader = opened(server.url, read_only=True)
    assert versions(reader, ["c"]) == [None]
    before = int(server.command("INFO", "stats")["total_connections_received"])
    for _ in range(20):
        assert versions(reader, ["c"]) == [None]
    after = int(server.command("INFO", "stats")["total_connections_received"])
    assert after - before == 1  # that of the question


def test_the_password_comes_from_a_file_and_is_in_no_representation(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    settings = load({"store": "redis://u:s3cret@h", "store_password_file": str(tmp_path / "password")})
    options = StoreOptions.of(settings)
    assert options.read_password() == "s3cret"
    assert "s3cret" not in f"{settings!r} {options!r} {Address.parse(settings.store)!r}"
    assert StoreOptions.of(load({"store_password": "other"})).password == "other"  # noqa: S105
    for name in ("store_password_file", "store_ca"):
        with pytest.raises(SettingsError, match=name):
            StoreOptions.of(load({name: str(tmp_path / "absent")}))
    with pytest.raises(SettingsError) as caught:
        load({"store": "REDIS://u:s3cret@h"})
    assert "s3cret" not in str(caught.value)
