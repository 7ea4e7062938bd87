"""What the answers of servers mean to a service: which end it at its start, which it waits for, and that none ends up
in an event's dead letter.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamer.store import StoreError, StoreRefusedError, StoreUnavailableError
from streamer.store.redis.answers import ANSWERS, Meaning, meaning, words
from tests.support.redis_servers import Server
from tests.support.redis_stores import clip, opened, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.store.redis.store import RedisStore

SAID = {
    "MOVED 42 127.0.0.1:7001": Meaning.FOLLOW,
    "ASK 42 127.0.0.1:7001": Meaning.ASK,
    "TRYAGAIN Multiple keys request during rehashing of slot": Meaning.AGAIN,
    "READONLY You can't write against a read only replica.": Meaning.ELSEWHERE,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": Meaning.ELSEWHERE,
    "CLUSTERDOWN The cluster is down": Meaning.ELSEWHERE,
    "CLUSTERDOWN Hash slot not served": Meaning.ELSEWHERE,
    "LOADING Valkey is loading the dataset in memory": Meaning.LATER,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": Meaning.LATER,
    "OOM command not allowed when used memory > 'maxmemory'.": Meaning.LATER,
    "MISCONF Errors writing to the AOF file: No space left on device": Meaning.LATER,
    "NOREPLICAS Not enough good replicas to write.": Meaning.LATER,
    "ERR max number of clients reached": Meaning.LATER,
    "ERR something that no release has said so far": Meaning.LATER,
    "NOAUTH Authentication required.": Meaning.FINAL,
    "WRONGPASS invalid username-password pair or user is disabled.": Meaning.FINAL,
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your "
    "configuration is correct?": Meaning.FINAL,
    "ERR Client sent AUTH, but no password is set": Meaning.FINAL,
    "NOPERM this user has no permissions to run the 'mget' command": Meaning.FINAL,
    "WRONGTYPE Operation against a key holding the wrong kind of value": Meaning.FINAL,
    "DENIED Redis is running in protected mode": Meaning.FINAL,
    "ERR DB index is out of range": Meaning.FINAL,
    "ERR This instance has cluster support disabled": Meaning.FINAL,
    "ERR unknown command 'EVAL_RO'": Meaning.FINAL,
}
"""What servers say, word for word, and what it means."""


@pytest.mark.parametrize("said", SAID)
def test_each_answer_has_its_meaning_and_is_shown_in_the_servers_own_words(said: str) -> None:
    error = BaseParser.parse_error(said)  # type: ignore[no-untyped-call]  # so in redis-py
    assert meaning(error) is SAID[said]
    assert words(error) == said


def test_the_table_has_no_row_that_no_example_shows() -> None:
    unshown = [begin for begin in ANSWERS if not any(said.startswith(begin) for said in SAID)]
    assert unshown == [
        "CROSSSLOT", "NOPROTO", "ERR invalid password", "ERR SELECT", "ERR Unknown", "ERR wrong number of arguments",
        "ERR syntax error",
    ]  # fmt: skip


def test_a_failed_connection_is_no_answer() -> None:
    assert meaning(RedisTimeoutError("Timeout reading from socket")) is Meaning.SLOW
    assert meaning(RedisConnectionError("Connection refused")) is Meaning.LOST


@pytest.mark.parametrize(
    ("options", "suffix", "complaint"),
    [({"requirepass": "s3cret"}, "", "NOAUTH Authentication required"), ({}, "?buckets=8", "created with 64 buckets")],
)
def test_a_refusal_ends_a_service_that_starts_and_is_waited_for_by_one_that_runs(
    tmp_path: Path, options: dict[str, str], suffix: str, complaint: str
) -> None:
    server = Server(tmp_path / "server", **options)
    writer, reader = opened(server.url + suffix), opened(server.url + suffix, read_only=True)
    with server:
        if not options:
            opened(f"{server.url}?buckets=64").put([clip("x")])
        with pytest.raises(StoreError, match=complaint):
            opened(server.url + suffix)
        for work in (lambda: writer.put([clip("c")]), writer.ping, reader.ping):
            with pytest.raises(StoreUnavailableError, match=complaint):
                work()
        with pytest.raises(StoreUnavailableError):
            versions(reader, ["c"])
        if options:
            server.client(password="s3cret").config_set("requirepass", "")  # noqa: S106 - a test's own
        else:
            server.command("FLUSHALL")
        writer.put([clip("c")])
        wait_until(lambda: read_or_nothing(reader) == [1], "the reader reads again")
        reader.ping()


def read_or_nothing(reader: RedisStore) -> list[int | None]:
    try:
        return versions(reader, ["c"])
    except StoreUnavailableError:
        return []


def test_a_server_that_is_busy_with_somebodys_script_ends_nobody(tmp_path: Path) -> None:
    options: dict[str, Any] = {"busy-reply-threshold": 50}
    with Server(tmp_path / "server", **options) as server:
        opened(server.url).put([clip("c")])
        endless = threading.Thread(target=run_endless_script, args=[server])
        endless.start()
        wait_until(lambda: is_busy(server), "the server is busy")
        writer, reader = opened(server.url, timeout_s=5), opened(server.url, read_only=True, timeout_s=5)
        with pytest.raises(StoreUnavailableError, match="BUSY") as caught:
            writer.put([clip("d")])
        assert not isinstance(caught.value, StoreRefusedError)
        with pytest.raises(StoreUnavailableError, match="BUSY"):
            versions(reader, ["c"])
        server.command("SCRIPT", "KILL")
        endless.join()
        wait_until(lambda: read_or_nothing(reader) == [1], "the reader reads again")
        writer.put([clip("d")])


def run_endless_script(server: Server) -> None:
    with pytest.raises(Exception, match=r"(?i)killed"):
        server.command("EVAL", "while true do end", 0)


def is_busy(server: Server) -> bool:
    try:
        server.command("GET", "x")
    except Exception as error:  # noqa: BLE001 - what it was is shown where it is not the answer waited for
        return "busy" in str(error).lower()
    return False
