"""Fixtures of all tests: a real Kafka and real servers of the Redis protocol for the session, shared by names.

What a fixture needs is imported when the fixture is used: a test of one function waits for no browser and no client.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import secrets
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from streamer.local_kafka.broker import LocalKafka
    from tests.support.redis_servers import Cluster, Server

_BYTES_OF_A_NAME = 60
_SCHEDULING = os.sched_getscheduler(0)
_MANY_MORE_THREADS = 32
_threads = 0
"""How many threads were left when garbage was last collected."""

# A busy machine is no failure: no example has a deadline, and making them may be slow. The same commit has the same
# examples each time, so that CI says the same of it; `make explore` draws others.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize="EXPLORE" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# `make check` draws fewer examples; `make test` draws all of them.
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("steady"), max_examples=20)
hypothesis.settings.load_profile("quick" if "QUICK" in os.environ else "steady")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name the case of a file's bytes by its argument: a name that held the bytes would differ between workers."""
    return argname if isinstance(val, bytes) and len(val) > _BYTES_OF_A_NAME else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a test with a longer limit of its own to that: the one for code in C ends the whole process."""
    marker = item.get_closest_marker("timeout")
    if marker is not None and marker.args and marker.args[0] > float(item.config.getini("timeout")):
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Leave neither a real-time priority nor the clients of a loop that has ended.

    Some encoders set the priority for good: all that the process starts later inherits it and starves the machine. A
    loop's clients refer to each other, and until they are collected their threads go on looking for a broker.
    """
    global _threads  # noqa: PLW0603 - of this process, as the threads are
    yield
    # Only when there are many more: a collection takes up to a second in a process that has run many tests.
    if len(os.listdir("/proc/self/task")) > _threads + _MANY_MORE_THREADS:  # noqa: PTH208
        gc.collect()
        _threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if os.sched_getscheduler(0) != _SCHEDULING:
        os.sched_setscheduler(0, _SCHEDULING, os.sched_param(0))
        pytest.fail(f"{item.nodeid} has changed the scheduling policy of its process")


@pytest.fixture(scope="session")
def kafka() -> Iterator[LocalKafka]:
    """Start one broker; where it cannot start, each test that needs it fails with the broker's own words."""
    from streamer.local_kafka.broker import LocalKafka  # noqa: PLC0415 - only who uses the fixture pays for it

    with LocalKafka() as broker:
        yield broker


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start a browser for a module's tests; :mod:`tests.support.browser` says what to look at with it."""
    from tests.support import browser  # noqa: PLC0415 - only who uses the fixture pays for it

    with browser.running() as running:
        yield running


@pytest.fixture
def topic_prefix() -> str:
    """Return what is put before every topic and group name of a test, so that tests share the broker only."""
    return f"t{secrets.token_hex(3)}."


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one Valkey server; tests take a ``?name=`` of their own."""
    from tests.support.redis_servers import Server  # noqa: PLC0415 - only who uses the fixture pays for it

    with Server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one Redis server, of the version that the system has."""
    from tests.support.redis_servers import Server  # noqa: PLC0415 - only who uses the fixture pays for it

    with Server(tmp_path_factory.mktemp("redis"), "redis") as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start three primaries and three replicas of Valkey. Tests that break it make one of their own."""
    from tests.support.redis_servers import Cluster  # noqa: PLC0415 - only who uses the fixture pays for it

    with Cluster(tmp_path_factory.mktemp("valkey-cluster")) as cluster:
        yield cluster
