"""The jars of the local Kafka, fetched by the real jgo from a repository that the test serves."""

from __future__ import annotations

import hashlib
import http.server
import re
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from streamer.local_kafka import jars
from streamer.local_kafka.jars import BrokerError, Jar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"PK\x03\x04 bytes of a jar" * 1000
JAR = Jar("org.example", "thing", "1.2", hashlib.sha256(CONTENT).hexdigest())


class Handler(http.server.SimpleHTTPRequestHandler):
    served: list[str]

    def do_GET(self) -> None:
        self.served.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve JAR as a mirror of Central set in the user's jgo.conf; yields the paths that were asked for."""
    published = tmp_path / "repository" / "org" / "example" / "thing" / "1.2"
    published.mkdir(parents=True)
    (published / JAR.filename).write_bytes(CONTENT)
    Handler.served = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "repository"))
    config = tmp_path / "jgo.conf"
    config.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(config))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Handler.served
    server.shutdown()
    thread.join()
    server.server_close()


def use_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the lock hold JAR alone, in the broker's name, and the cache be empty; returns where JAR will be."""
    lock = tmp_path / "broker.lock"
    lock.write_text(f"# comment\norg.example:thing:1.2 sha256:{JAR.sha256}\n")
    monkeypatch.setattr(jars, "_LOCK", lock)
    monkeypatch.setattr(jars, "_BROKER", "org.example:thing")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cliprerank-streamer" / "kafka-1.2" / JAR.filename


def test_the_lock_pins_the_broker_and_its_log_binding_under_distinct_names_with_whole_hashes() -> None:
    locked = jars.read_lock()
    names = {f"{jar.group}:{jar.artifact}" for jar in locked}
    assert {"org.apache.kafka:kafka_2.13", "org.apache.logging.log4j:log4j-slf4j-impl"} <= names
    assert len({jar.filename for jar in locked}) == len(locked) == 45
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in locked)


def test_the_log_binding_is_of_the_same_release_as_the_log_library_in_the_lock() -> None:
    versions = {jar.version for jar in jars.read_lock() if jar.group == "org.apache.logging.log4j"}
    assert len(versions) == 1


def test_a_jar_is_fetched_once_into_the_users_cache(
    repository: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = use_lock(tmp_path, monkeypatch)
    assert jars.class_path() == [path]
    assert path.read_bytes() == CONTENT
    asked = len(repository)
    assert jars.class_path() == [path]
    assert len(repository) == asked > 0
    assert list(path.parent.iterdir()) == [path]


def test_a_corrupt_jar_in_the_cache_is_replaced(
    repository: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = use_lock(tmp_path, monkeypatch)
    jars.class_path()
    path.write_bytes(CONTENT[:-1])
    repository.clear()
    jars.class_path()
    assert path.read_bytes() == CONTENT
    assert repository


@pytest.mark.usefixtures("repository")
def test_a_jar_with_other_bytes_than_the_lock_says_is_refused_and_not_kept(tmp_path: Path) -> None:
    altered = Jar(JAR.group, JAR.artifact, JAR.version, "0" * 64)
    with pytest.raises(BrokerError, match=r"org\.example:thing:1\.2 .*SHA-256 is not the 0{64}"):
        jars.fetch(altered, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("repository")
def test_a_jar_that_no_repository_has_is_an_error_that_names_it(tmp_path: Path) -> None:
    absent = Jar(JAR.group, "other", "9", JAR.sha256)
    with pytest.raises(BrokerError, match=r"cannot fetch org\.example:other:9"):
        jars.fetch(absent, tmp_path / "cache")


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(BrokerError, match=r"platformdirs.*cliprerank-streamer\[broker\]"):
        jars.class_path()
