"""Services on a real cluster of the Redis protocol and a real Kafka: no event is lost, and scores are LMDB's."""

from __future__ import annotations

import json
import random
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import pytest

from streamer.codec import JSON
from streamer.encoders import DEMO, load_encoder
from streamer.events import QueryResults, Status
from streamer.method import rerank_candidates
from streamer.settings import load
from streamer.store import Clip, StoreOptions, open_store, record_format
from streamer.store.redis.address import Buckets
from streamer.store.redis.store import RedisStore
from tests.support.driver import (
    EMBEDDED,
    RERANKED,
    RESULTS,
    UPLOADED,
    Bus,
    Service,
    apply_topics,
    environment,
)
from tests.support.footage import tiny_footage
from tests.support.load import Metrics, fill_store, publish, query_event, read_answers, stored_dim, upload
from tests.support.redis_servers import Cluster, move_slot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka
    from streamer.store import Store

pytestmark = pytest.mark.timeout(900)

PATIENT = {"STREAMER_STORE_TIMEOUT": "20"}
"""A machine that is busy is not to look like a server that hangs."""
DETERMINISTIC = PATIENT | {"STREAMER_THREADS": "1", "STREAMER_DTYPE": "float32", "STREAMER_QUERY_BATCH": "1"}
"""How many texts are encoded together, and by which arithmetic, may move the last bit of their vectors."""
READY_S = 400
"""Five services that start at once on two busy cores."""
QUERIES = 60
BUCKETS = 12


class Platform:
    """Topics of one's own, and a store for the services that work on them."""

    def __init__(self, kafka: LocalKafka, prefix: str, folder: Path, store: str, **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        self.bus = Bus(kafka.bootstrap_servers, prefix)
        self.folder = folder
        self.store = store
        clips = folder / "clips"
        clips.mkdir()
        self._variables = environment(self.bus, folder, [clips], STREAMER_STORE=store, **settings)
        apply_topics(self._variables, folder)

    def run(self, command: str, number: int = 0) -> Service:
        return Service(command, self._variables | {"STREAMER_INSTANCE_ID": f"{command}-{number}"}, self.folder)

    def answers(self) -> dict[str, Any]:
        """Read the answers, which must be one for each query, by its id."""
        events = [json.loads(value) for _, value in read_answers(self.bus, seconds=60)]
        by_id = {event["query_id"]: event for event in events}
        assert len(by_id) == len(events)
        return by_id

    def open_store(self, model_id: str, dim: int) -> RedisStore:
        opened = open_store(self.store, model_id=model_id, dim=dim, options=StoreOptions(timeout_s=30))
        assert isinstance(opened, RedisStore)
        return opened


def asked(clip_ids: list[str]) -> list[tuple[bytes, bytes]]:
    """Make query events over these clips, each in an order and with scores of its own."""
    draw = random.Random(4)  # noqa: S311 - an order, no secret
    events = []
    for number in range(QUERIES):
        results = [
            {"clip_id": clip_id, "score": draw.uniform(0, 30)} for clip_id in draw.sample(clip_ids, len(clip_ids))
        ]
        event = {
            "query_id": f"q{number}",
            "query": f"{draw.choice(['a red disc', 'a blue square', '黄色い円'])} number {number}",
            "engine": "bm25-v3",
            "issued_at": datetime.now(UTC).isoformat(),
            "results": results,
        }
        events.append((f"q{number}".encode(), json.dumps(event).encode()))
    return events


def test_three_rerankers_and_two_embedders_on_a_cluster_score_as_lmdb_does_to_the_last_bit(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, valkey_cluster: Cluster
) -> None:
    url = f"{valkey_cluster.url}?name={topic_prefix}store"
    platform = Platform(kafka, topic_prefix, tmp_path / "services", url, **DETERMINISTIC)
    films = tiny_footage(platform.folder / "clips")
    clip_ids = [f"clip {number}" for number in range(24)]
    uploads = [upload(clip_id, films[number % len(films)].path) for number, clip_id in enumerate(clip_ids)]
    questions = asked([*clip_ids, "unknown"])
    with ExitStack() as stack:
        embedders = [stack.enter_context(platform.run("embed", number)) for number in range(2)]
        rerankers = [stack.enter_context(platform.run("rerank", number)) for number in range(3)]
        for services in (embedders, rerankers):
            await_shares(services, 12 // len(services))
        platform.bus.publish(UPLOADED, uploads)
        platform.bus.await_group("streamer-embed", UPLOADED, seconds=120, alive=embedders)
        publish(platform.bus, questions)
        platform.bus.await_group("streamer-rerank", RESULTS, seconds=120, alive=rerankers)
        assert all(produced(each, platform.bus.prefix + EMBEDDED) for each in embedders)
        assert all(produced(each, platform.bus.prefix + RERANKED) for each in rerankers)
        assert all(Metrics(each).total("streamer_store_cache_total", result="hit") for each in rerankers)
        model_id = Metrics(rerankers[0]).label("streamer_build_info", "model_id")
        for service in (*embedders, *rerankers):
            service.stop()
    lmdb = copied_to_lmdb(platform.open_store(model_id, stored_dim()), f"lmdb:{tmp_path / 'store'}", clip_ids, model_id)
    answers = platform.answers()
    assert len(answers) == QUERIES
    encoder = load_encoder(DEMO, dtype="float32", threads=1, sides=["texts"])
    method = load().method
    for key, value in questions:
        event = JSON.decode(QueryResults, value, key)
        [vector] = encoder.encode_texts([event.query])
        expected = rerank_candidates(method, event.results, vector, lmdb).results
        assert answers[event.query_id]["results"] == msgspec.to_builtins(expected)
        assert [each.status for each in expected].count(Status.RERANKED) == len(clip_ids)
    lmdb.close()


def await_shares(services: list[Service], share: int) -> None:
    """Wait until each service is ready and has its share of the partitions."""
    for service in services:
        service.await_ready(seconds=READY_S)

    def shared() -> bool:
        return all(Metrics(service).total("streamer_assigned_partitions") == share for service in services)

    wait_until(shared, f"{share} partitions each", seconds=60, alive=services)


def produced(service: Service, topic: str) -> float:
    return Metrics(service).total("streamer_events_produced_total", topic=topic)


def copied_to_lmdb(store: RedisStore, url: str, clip_ids: list[str], model_id: str) -> Store:
    """Write the clips of the cluster to LMDB, and show that the bytes are the same there."""
    lmdb = open_store(url, model_id=model_id, dim=stored_dim())
    space = store._opened()
    assert space is not None
    keys = [record_format.key(record_format.model_prefix(model_id), clip_id) for clip_id in clip_ids]
    with store.read(clip_ids) as found:
        for clip_id, value, each in zip(clip_ids, space.get(keys), found, strict=True):
            assert value is not None
            assert each is not None
            version = record_format.version(memoryview(value))
            assert version is not None
            vectors = each.matrix.astype(np.float32)
            clip = Clip(clip_id, each.uploaded_at, version.position, each.duration_ms, vectors, each.times_ms)
            assert record_format.encode(clip, "float16") == value
            lmdb.put([clip])
    store.close()
    return lmdb


class Questions:
    """Queries that are asked in a steady stream, by a thread of its own, until the block ends."""

    def __init__(self, bus: Bus) -> None:
        self.asked = 0
        self._bus = bus
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def await_more(self, count: int, what: str, reranker: Service) -> None:
        """Wait until so many queries more are asked and as many more answered."""
        enough = self.asked + count
        topic = self._bus.prefix + RERANKED
        wait_until(lambda: min(self.asked, produced(reranker, topic)) >= enough, what, seconds=90, alive=[reranker])

    def _ask(self) -> None:
        while not self._over.wait(0.1):
            now = datetime.now(UTC)
            some = [query_event(self.asked + each, "a red disc", candidates=100, issued_at=now) for each in range(4)]
            publish(self._bus, some)
            self.asked += len(some)


def test_a_primary_that_is_killed_and_slots_that_move_cost_no_event(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        name = f"{topic_prefix}store"
        url = f"{cluster.url}?name={name}&buckets={BUCKETS}"
        platform = Platform(kafka, topic_prefix, tmp_path / "services", url, **PATIENT)
        buckets = Buckets(name, BUCKETS)
        with platform.run("rerank") as reranker:
            reranker.await_ready(seconds=READY_S)
            fill_store(url, Metrics(reranker).label("streamer_build_info", "model_id"), frames=4)
            with Questions(platform.bus) as questions:
                questions.await_more(40, "answers in peace", reranker)
                victim = cluster.primary_of(buckets.heads[0])
                wait_until(cluster.is_whole, "the replicas are in step")
                victim.kill()
                wait_until(lambda: noticed(reranker) > 0, "the kill to be noticed", seconds=60, alive=[reranker])
                await_answers_in_peace(questions, reranker)
                # It comes back empty: before its replica has taken over, it would be the primary, and empty that, too.
                wait_until(lambda: cluster.primary_of(buckets.heads[0]) is not victim, "the replica to take over")
                victim.start()
                wait_until(cluster.is_whole, "the old primary has come back as a replica")
                for number in range(0, BUCKETS, 2):
                    source = cluster.primary_of(buckets.heads[number])
                    target = next(node for node in cluster.primaries() if node is not source)
                    move_slot(buckets.slots[number], source, target, keys_at_once=2)
                    questions.await_more(4, "answers while slots move", reranker)
                await_answers_in_peace(questions, reranker)
            platform.bus.await_group("streamer-rerank", RESULTS, seconds=90, alive=[reranker])
            counted = degraded(reranker)
            reranker.stop()
    answers = platform.answers()
    assert sorted(answers) == sorted(f"q{number}" for number in range(questions.asked))
    reasons = [answers[f"q{number}"]["degraded"] for number in range(questions.asked)]
    assert {*reasons} <= {None, "store_unavailable"}
    assert reasons.count("store_unavailable") == counted
    for number in range(questions.asked):
        answer = answers[f"q{number}"]
        in_peace = number < 40 or number >= questions.asked - 40
        expected = {"below_depth"} if answer["degraded"] else {"reranked"} if in_peace else {"reranked", "unavailable"}
        assert {result["status"] for result in answer["results"]} <= expected
        assert not (in_peace and answer["degraded"])


def degraded(reranker: Service) -> float:
    return Metrics(reranker).total("streamer_events_degraded_total", reason="store_unavailable")


def incomplete(reranker: Service) -> float:
    """Return how many answers and candidates the store has left without scores."""
    return degraded(reranker) + Metrics(reranker).total("streamer_candidates_total", status="unavailable")


def noticed(reranker: Service) -> float:
    """Return how often the store was found wanting: replicas are read where a primary does not answer."""
    return incomplete(reranker) + Metrics(reranker).total("streamer_store_replica_reads_total")


def await_answers_in_peace(questions: Questions, reranker: Service) -> None:
    """Wait until a stretch of answers has gone by of which none lacked a score."""
    while True:
        before = incomplete(reranker)
        questions.await_more(60, "answers", reranker)
        if incomplete(reranker) == before:
            return
