"""Fixtures of all tests: a real Kafka and real servers of the Redis protocol for the session, shared by names."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import browser
import hypothesis
import pytest
from redis_servers import Cluster, Server

from streamer.local_kafka.broker import LocalKafka

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

# A busy machine is no failure: no example has a deadline, and making them may be slow. The same commit has the same
# examples each time, so that CI says the same of it; `make explore` draws others.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize="EXPLORE" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def kafka() -> Iterator[LocalKafka]:
    """One running broker; where it cannot start, each test that needs it fails with the broker's own words."""
    with LocalKafka() as broker:
        yield broker


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for a module's tests; :mod:`browser` says what to look at with it."""
    with browser.running() as running:
        yield running


@pytest.fixture
def topic_prefix() -> str:
    """Put before every topic and group name of a test, so that tests share the broker and nothing else."""
    return f"t{secrets.token_hex(3)}."


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Valkey server; tests take a ``?name=`` of their own."""
    with Server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Redis server, of the version that the system has."""
    with Server(tmp_path_factory.mktemp("redis"), "redis") as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries and three replicas of Valkey. Tests that break it make one of their own."""
    with Cluster(tmp_path_factory.mktemp("valkey-cluster")) as cluster:
        yield cluster
