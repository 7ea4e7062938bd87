"""Servers that hang, trickle or are gone: what a query waits, which of its clips are scored, and when all are again."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer.store import StoreUnavailableError, record_format
from tests.support.redis_servers import Cluster, Server
from tests.support.redis_stores import DIM, IDS, buckets, clip, opened, versions
from tests.support.waiting import wait_until
from tests.support.ways import Passage, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.scoring import ClipScores
    from streamer.store.redis.store import RedisStore

TIMEOUT_S = 3.0
ONE_WAIT_S = 1.9 * TIMEOUT_S
"""Within which a call returns that waits until its deadline once: two such waits, one after the other, take longer."""
NO_WAIT_S = 0.9 * TIMEOUT_S
"""Within which a call returns that waits for no server that hangs, however busy the machine."""
VECTOR = np.eye(1, DIM, dtype=np.float32)[0]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose nodes may hang for long: no replica takes over."""
    with Cluster(tmp_path_factory.mktemp("slow"), replicas=True) as cluster:
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
            node.command("CONFIG", "SET", "cluster-node-timeout", 60_000)
        yield cluster


@contextlib.contextmanager
def hung(servers: list[Server]) -> Iterator[None]:
    for server in servers:
        server.freeze()
    try:
        yield
    finally:
        for server in servers:
            server.thaw()


def score(store: RedisStore) -> tuple[ClipScores, float]:
    """Score all clips within the time limit; return also the seconds that it took."""
    began = time.monotonic()
    scores = store.score(IDS, VECTOR, began + TIMEOUT_S)
    return scores, time.monotonic() - began


def on_node(cluster: Cluster, store: RedisStore, node: Server) -> list[int]:
    """Return which of the clips are on a node."""
    layout = buckets(store)
    keys = record_format.keys(record_format.model_prefix("m"), IDS)
    ours = {number for number, head in enumerate(layout.heads) if cluster.primary_of(head) is node}
    return [place for place, key in enumerate(keys) if layout.of(key) in ours]


@pytest.mark.parametrize("count", [1, 2])
def test_nodes_that_hang_are_waited_for_once_and_together_and_the_other_clips_are_scored(
    slow: Cluster, count: int
) -> None:
    url = f"{slow.url}?name=hung{count}"
    opened(url).put([clip(each) for each in IDS])
    store = opened(url, read_only=True, timeout_s=TIMEOUT_S, staleness_s=0)
    expected, _ = score(store)
    assert not np.isnan(expected.frame.cosines).any()
    lost = sorted(place for node in slow.nodes[:count] for place in on_node(slow, store, node))
    assert lost
    with hung(slow.nodes[:count]):
        scores, took_s = score(store)
        assert took_s < ONE_WAIT_S
        again, at_once_s = score(store)
        assert at_once_s < NO_WAIT_S
        for found in (scores, again):
            assert [*found.unavailable] == lost
            assert found.why
            kept = np.setdiff1d(np.arange(len(IDS)), lost)
            np.testing.assert_array_equal(found.frame.cosines[kept], expected.frame.cosines[kept])
            assert np.isnan(found.frame.cosines[lost]).all()
        with pytest.raises(StoreUnavailableError):
            versions(store, IDS)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.ping()
        assert time.monotonic() - began < ONE_WAIT_S
    wait_until(lambda: not score(store)[0].unavailable, "all clips are scored again", seconds=10)
    np.testing.assert_array_equal(score(store)[0].frame.cosines, expected.frame.cosines)


def test_a_node_that_hangs_after_its_answer_is_not_waited_for_after_the_one_that_hung_before(slow: Cluster) -> None:
    url = f"{slow.url}?name=staggered"
    opened(url).put([clip(each) for each in IDS])
    first, second = slow.nodes[:2]
    store = opened(url, read_only=True, timeout_s=3 * TIMEOUT_S, staleness_s=0, cache_bytes=0)
    lost = sorted([*on_node(slow, store, first), *on_node(slow, store, second)])

    def staggered() -> bool:
        """Let the second one hang soon after its answer, while the first one is waited for; return whether so soon."""
        wait_until(lambda: not score_by(store).unavailable, "all clips are scored", seconds=20)
        before = reads(second)
        with ThreadPoolExecutor(1) as pool, hung([first]):
            began = time.monotonic()
            waiting = pool.submit(score_by, store)
            wait_until(lambda: reads(second) > before, "the second one answers", seconds=20)
            time.sleep(0.05)
            with hung([second]):
                if time.monotonic() - began > 0.2 * 3 * TIMEOUT_S:
                    waiting.result()
                    return False
                assert set(waiting.result().unavailable) < set(lost)
                began = time.monotonic()
                assert [*score_by(store).unavailable] == lost
                assert time.monotonic() - began < NO_WAIT_S
                return True

    assert any(staggered() for _ in range(10))


def score_by(store: RedisStore) -> ClipScores:
    """Score all clips within the store's own time limit."""
    return store.score(IDS, VECTOR, None)


def reads(server: Server) -> int:
    """Return how many reads of several keys a server has served."""
    served = server.command("INFO", "commandstats").get("cmdstat_mget", {"calls": 0})
    return int(served["calls"])


def test_a_store_is_opened_read_and_probed_within_the_deadline_while_a_node_hangs(slow: Cluster) -> None:
    url = f"{slow.url}?name=opening"
    writer = opened(url)
    writer.put([clip(each) for each in IDS])
    beside = slow.primary_of(b"opening")
    victim = next(node for node in slow.nodes[:3] if node is not beside)
    lost = on_node(slow, writer, victim)
    with hung([victim]):
        began = time.monotonic()
        store = opened(url, read_only=True, timeout_s=TIMEOUT_S, staleness_s=0)
        assert time.monotonic() - began < ONE_WAIT_S
        scores, took_s = score(store)
        assert took_s < ONE_WAIT_S
        assert [*scores.unavailable] == lost


def test_a_replica_is_read_while_its_primary_hangs_as_far_as_it_is_fresh(slow: Cluster) -> None:
    url = f"{slow.url}?name=replicas"
    opened(url, replicas=1).put([clip(each) for each in IDS])
    store = opened(url, read_only=True, timeout_s=TIMEOUT_S)
    strict = opened(url, read_only=True, timeout_s=TIMEOUT_S, staleness_s=0)
    expected, _ = score(store)
    victim = slow.nodes[0]
    lost = on_node(slow, store, victim)
    with hung([victim]):
        score(strict)
        found: list[tuple[ClipScores, float]] = []

        def is_read_from_the_replica() -> bool:
            found[:] = [score(store)]
            # A replica that does not say in time how fresh it is is left out for that moment.
            return bool(found[0][0].replica_reads and not found[0][0].unavailable)

        wait_until(is_read_from_the_replica, "the replica is read", seconds=20)
        [(scores, took_s)] = found
        assert took_s < NO_WAIT_S
        np.testing.assert_array_equal(scores.frame.cosines, expected.frame.cosines)
        assert [*score(strict)[0].unavailable] == lost
    wait_until(lambda: not score(store)[0].replica_reads, "the primary is read again", seconds=10)


def test_an_answer_that_trickles_is_waited_for_until_the_deadline_and_queries_do_not_wait_again(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server, contextlib.closing(Way(server.port)) as way:
        opened(server.url).put([clip(each) for each in IDS])
        store = opened(f"redis://127.0.0.1:{way.port}", read_only=True, timeout_s=TIMEOUT_S, cache_bytes=0)
        assert versions(store, IDS) == [1] * len(IDS)
        way.passage = Passage.TRICKLING
        scores, took_s = score(store)
        assert took_s < ONE_WAIT_S
        assert scores.unavailable
        waits = []
        until = time.monotonic() + 3
        while time.monotonic() < until:
            waits.append(score(store)[1])
            time.sleep(0.02)
        assert max(waits) < NO_WAIT_S
        way.passage = Passage.FREE
        wait_until(lambda: not score(store)[0].unavailable, "all clips are scored again", seconds=10)


def test_servers_to_which_no_packet_gets_through_cost_one_wait(slow: Cluster) -> None:
    url = f"{slow.url}?name=blackholed"
    opened(url).put([clip(each) for each in IDS])
    store = opened(url, read_only=True, timeout_s=TIMEOUT_S)
    with hung(slow.nodes):
        scores, took_s = score(store)
        assert took_s < ONE_WAIT_S
        assert len(scores.unavailable) == len(IDS)
        assert score(store)[1] < NO_WAIT_S
        began = time.monotonic()
        new = opened(url, read_only=True, timeout_s=TIMEOUT_S)
        assert time.monotonic() - began < ONE_WAIT_S
        with pytest.raises(StoreUnavailableError):
            score(new)
    wait_until(lambda: is_whole_for(store) and is_whole_for(new), "both score all clips", seconds=10)


def is_whole_for(store: RedisStore) -> bool:
    with contextlib.suppress(StoreUnavailableError):
        return not score(store)[0].unavailable
    return False
