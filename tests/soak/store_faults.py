"""A cluster whose servers hang, trickle, load and are lost under 200 queries a second; `make store-faults`.

Queries arrive on a clock and are answered by one thread, as in the reranker, so that waiting behind a slow query
counts. All servers are reached through ways that can lose or delay every byte. A quiet machine is needed, because the
limits are close to the store's time limit.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pytest

from streamer.store import StoreUnavailableError
from tests.support.cluster_faults import hanging
from tests.support.redis_servers import Cluster
from tests.support.redis_stores import DIM, clip, opened
from tests.support.waiting import wait_until
from tests.support.ways import Passage, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from streamer.store.redis.store import RedisStore

RATE = int(os.environ.get("RATE", "200"))
CANDIDATES = 100
IDS = [f"c{number}" for number in range(1_000)]
TIMEOUT_S = 1.0
LONGEST_S = 1.2
"""The longest time from a query's arrival to its answer."""
BACK_S = 2.0
"""All is well so long after the end of a fault."""
FAULT_S = 8.0
LEAST_SCORED = 0.5
VECTOR = np.eye(1, DIM, dtype=np.float32)[0]


class Answer(NamedTuple):
    """A query's arrival and wait, in seconds, and the share of its candidates that could be looked up."""

    at: float
    waited: float
    share: float


class Queries:
    """Queries at a steady rate, answered in their order by one thread, until the block ends."""

    def __init__(self, store: RedisStore) -> None:
        self.answers: list[Answer] = []
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        draw = random.Random(1)  # noqa: S311 - candidates, no secret
        begun = time.monotonic()
        number = 0
        while not self._over.is_set():
            due = begun + number / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            self.answers.append(self._answer(draw.sample(IDS, CANDIDATES), due))
            number += 1

    def _answer(self, ids: list[str], due: float) -> Answer:
        try:
            lost = len(self._store.score(ids, VECTOR, time.monotonic() + TIMEOUT_S).unavailable)
        except StoreUnavailableError:
            lost = len(ids)
        return Answer(due, time.monotonic() - due, 1 - lost / len(ids))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("faults")) as cluster:
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
            node.command("CONFIG", "SET", "cluster-node-timeout", 60_000)
            node.command("CONFIG", "SET", "appendonly", "yes")
            node.command("CONFIG", "SET", "appendfsync", "no")
        opened(cluster.url).put([clip(each) for each in IDS])
        yield cluster


@pytest.fixture
def ways(cluster: Cluster) -> Iterator[list[Way]]:
    made = [Way(node.port) for node in cluster.nodes]
    yield made
    for way in made:
        way.close()


def run(cluster: Cluster, ways: list[Way], name: str, fault: AbstractContextManager[object]) -> list[Answer]:
    """Have a fault while queries are answered; returns the answers during it."""
    places = zip(cluster.nodes, ways, strict=True)
    leading = {f"127.0.0.1:{node.port}": f"127.0.0.1:{way.port}" for node, way in places}
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{way.port}" for way in ways[:3])
    with contextlib.closing(opened(url, read_only=True, timeout_s=TIMEOUT_S, address_map=leading)) as store:
        store.score(IDS[:CANDIDATES], VECTOR, None)
        with Queries(store) as queries:
            time.sleep(2)
            struck = time.monotonic()
            with fault:
                time.sleep(FAULT_S)
                ended = time.monotonic()
            time.sleep(BACK_S + 2)
    spans = {"before": (0, struck), "during": (struck, ended), "after": (ended + BACK_S, float("inf"))}
    periods = {
        period: [each for each in queries.answers if low <= each.at < high] for period, (low, high) in spans.items()
    }
    for period, some in periods.items():
        sys.stdout.write(f"{name}, {period}: {described(some)}\n")
    assert max(each.waited for each in queries.answers) <= LONGEST_S
    assert {each.share for period in ("before", "after") for each in periods[period]} == {1.0}
    return periods["during"]


def described(answers: list[Answer]) -> str:
    assert answers, "no query that arrived then has been answered"
    waits = sorted(each.waited for each in answers)
    degraded = sum(each.share < LEAST_SCORED for each in answers) / len(answers)
    complete = sum(each.share == 1 for each in answers) / len(answers)
    return (
        f"{len(answers)} queries, longest wait {waits[-1]:.2f} s, median {waits[len(waits) // 2]:.4f} s, degraded "
        f"{degraded:.1%}, with all candidates {complete:.1%}"
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_servers_that_hang(cluster: Cluster, ways: list[Way], count: int) -> None:
    run(cluster, ways, f"{count} of 6 hang", hanging(cluster.nodes[:count]))


@pytest.mark.parametrize("passage", [Passage.BLOCKED, Passage.TRICKLING])
def test_ways_that_lose_or_delay_all_bytes(cluster: Cluster, ways: list[Way], passage: Passage) -> None:
    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        for way in ways:
            way.passage = passage
        yield
        for way in ways:
            way.passage = Passage.FREE

    run(cluster, ways, f"all ways {passage}", fault())


def test_a_server_that_loads(cluster: Cluster, ways: list[Way]) -> None:
    victim = cluster.nodes[0]
    victim.options["appendonly"] = "yes"
    victim.options["loading-process-events-interval-bytes"] = 1024
    victim.options["cluster-node-timeout"] = 60_000
    victim.options["key-load-delay"] = 10_000  # microseconds for each of some 340 records

    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        victim.kill()
        threading.Thread(target=victim.start, daemon=True).start()
        yield
        wait_until(cluster.is_whole, "the server has loaded")

    run(cluster, ways, "one loads", fault())


def test_a_shard_that_is_lost(cluster: Cluster, ways: list[Way]) -> None:
    during = run(cluster, ways, "one shard lost", hanging([cluster.nodes[1], cluster.nodes[4]]))
    reranked = [each for each in during if each.share >= LEAST_SCORED]
    assert len(reranked) >= 0.6 * len(during)
    assert all(each.share < 2 / 3 for each in during if each.share < LEAST_SCORED)
