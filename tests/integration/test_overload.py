"""More than a service can do: late events are shed, memory stays bounded, a slow clip costs no membership."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.driver import RERANKED, RESULTS, Bus, Service, apply_topics, environment
from tests.support.footage import tiny_footage
from tests.support.load import (
    MIB,
    Memory,
    Metrics,
    Watch,
    await_produced,
    check_never_evicted,
    embed_beside,
    fill_store,
    publish,
    query_event,
    read_answers,
    slow_clip,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

DEADLINE_EXCEEDED = "deadline_exceeded"


class Platform:
    """Topics, a folder and the settings of one test's services."""

    def __init__(self, kafka: LocalKafka, prefix: str, folder: Path) -> None:
        self.bus = Bus(kafka.bootstrap_servers, prefix)
        self.folder = folder
        self.clips = folder / "clips"
        self.clips.mkdir()
        self._variables = environment(self.bus, folder / "store", [self.clips])
        apply_topics(self._variables, folder)

    def run(self, command: str, **settings: str) -> Service:
        return Service(command, self._variables | settings, self.folder)

    def fill_store(self, service: Service, *, frames: int) -> None:
        model_id = Metrics(service).label("streamer_build_info", "model_id")
        fill_store(f"lmdb:{self.folder / 'store'}", model_id, frames=frames)

    def answers(self) -> dict[str, Any]:
        """Read the answers, which must be one for each query, by its id."""
        events = [json.loads(value) for _, value in read_answers(self.bus, seconds=60)]
        by_id = {event["query_id"]: event for event in events}
        assert len(by_id) == len(events)
        return by_id

    def topic(self, name: str) -> str:
        return self.bus.prefix + name


@pytest.fixture
def platform(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Platform:
    return Platform(kafka, topic_prefix, tmp_path)


def shed(answers: Iterable[Any]) -> list[Any]:
    return [answer for answer in answers if answer["degraded"] == DEADLINE_EXCEEDED]


def check_initial_order(answer: Any, asked: Any) -> None:
    results = answer["results"]
    assert [result["clip_id"] for result in results] == [result["clip_id"] for result in asked["results"]]
    assert [result["rank"] for result in results] == [result["initial_rank"] for result in results]
    assert {(result["score"], result["status"]) for result in results} == {(None, "below_depth")}


def test_a_late_backlog_is_passed_on_in_its_initial_order_and_fresh_events_are_reranked(platform: Platform) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    backlog = [query_event(n, f"late {n}", candidates=20, issued_at=hour_ago) for n in range(3_000)]
    publish(platform.bus, backlog)
    with platform.run("rerank", STREAMER_DEADLINE_MS="60000") as reranker:
        reranker.await_ready(seconds=150)
        fresh = [query_event(n, f"fresh {n}", candidates=20, issued_at=datetime.now(UTC)) for n in range(3_000, 3_200)]
        publish(platform.bus, fresh)
        platform.bus.await_group("streamer-rerank", RESULTS, seconds=90, alive=[reranker])
        counted = Metrics(reranker).total("streamer_events_degraded_total", reason=DEADLINE_EXCEEDED)
        reranker.stop()
    answers = platform.answers()
    for key, value in backlog:
        answer = answers.pop(key.decode())
        assert answer["degraded"] == DEADLINE_EXCEEDED
        check_initial_order(answer, json.loads(value))
    assert sorted(answers) == sorted(key.decode() for key, _ in fresh)
    assert {answer["degraded"] for answer in answers.values()} == {None}
    assert counted == len(backlog)


LOAD_SECONDS = 8.0
EXCESS = 3
"""How many times its capacity the reranker is given."""
DEADLINE_S = 1.0
QUERY_BATCH = 16


def test_under_a_load_beyond_its_capacity_the_reranker_sheds_answers_in_time_and_recovers(platform: Platform) -> None:
    settings = {
        "STREAMER_DEADLINE_MS": str(round(1000 * DEADLINE_S)),
        "STREAMER_QUERY_BATCH": str(QUERY_BATCH),
        "STREAMER_DEPTH": "400",
    }
    with platform.run("rerank", **settings) as reranker:
        platform.fill_store(reranker.await_ready(seconds=150), frames=64)
        load = Load(platform, reranker)
        cost = load.measure()
        load.publish_for(LOAD_SECONDS, rate=EXCESS / cost)
        load.settle()
        under_load = load.asked - load.calm
        load.await_recovery()
        counted = Metrics(reranker).total("streamer_events_degraded_total", reason=DEADLINE_EXCEEDED)
        reranker.stop()

    answers = platform.answers()
    assert len(answers) == load.asked
    assert {answer["degraded"] for answer in answers.values()} == {None, DEADLINE_EXCEEDED}
    assert len(shed(answers.values())) == counted
    during = [answers[f"q{n}"] for n in range(load.calm, load.calm + under_load)]
    reranked = [answer for answer in during if answer["degraded"] is None]
    assert shed(during), "the load did not exceed the capacity"
    assert reranked, "an overloaded reranker must go on answering"
    # Lateness is judged when a batch begins. Without shedding the last ones would have waited for the excess of all.
    in_time = DEADLINE_S + 3 * QUERY_BATCH * cost + 2
    assert in_time < (EXCESS - 1) * LOAD_SECONDS
    assert max(map(latency, reranked)) < in_time


def latency(answer: Any) -> float:
    moments = [datetime.fromisoformat(answer[name]) for name in ("reranked_at", "issued_at")]
    return (moments[0] - moments[1]).total_seconds()


class Load:
    """Distinct queries over many large candidates, published while the reranker works."""

    def __init__(self, platform: Platform, reranker: Service) -> None:
        self.asked = 0
        self.calm = 0
        """How many of them came before the load."""
        self._platform = platform
        self._reranker = reranker

    def publish(self, count: int) -> None:
        events = []
        for _ in range(count):
            text = f"query number {self.asked} of its kind"
            events.append(query_event(self.asked, text, candidates=400, issued_at=datetime.now(UTC)))
            self.asked += 1
        publish(self._platform.bus, events)

    def settle(self) -> None:
        """Wait until all that was asked is answered."""
        await_produced(self._reranker, self._platform.topic(RERANKED), self.asked, seconds=90)

    def measure(self) -> float:
        """Return the seconds that one event costs, from a few that do not have to wait."""
        for _ in range(6):
            self.publish(QUERY_BATCH // 2)
            self.settle()
        self.calm = self.asked
        return Metrics(self._reranker).total("streamer_stage_seconds_sum", stage="rerank") / self.asked

    def publish_for(self, seconds: float, *, rate: float) -> None:
        began = time.monotonic()
        published = 0
        while (passed := time.monotonic() - began) < seconds:
            due = round(rate * passed) - published
            self.publish(due)
            published += due
            time.sleep(0.05)

    def await_recovery(self) -> None:
        """Ask in small rounds until one is reranked as a whole; on a busy machine an event of the first may be late."""

        def degraded() -> float:
            return Metrics(self._reranker).total("streamer_events_degraded_total")

        def is_whole() -> bool:
            before = degraded()
            self.publish(QUERY_BATCH)
            self.settle()
            return degraded() == before

        wait_until(is_whole, "a round without a degraded answer")


BACKLOG, EVENT_BYTES, CANDIDATES = 6_000, 5_000, 100
QUEUE_BYTES = 2 * MIB
MAX_ANSWER_BYTES = 25_000
"""More than an answer of so many candidates takes."""
CLIENT_RECORDS = 32
"""Records that the client hands over at once, by which the budget may be overrun."""


def test_a_backlog_of_30_mb_stays_within_the_bound_of_bytes_in_flight(platform: Platform) -> None:
    with platform.run("rerank", STREAMER_QUEUE_BYTES=str(QUEUE_BYTES)) as idle:
        platform.fill_store(idle.await_ready(seconds=150), frames=16)
        at_rest = Memory(idle.pid)
        idle.stop()
    now = datetime.now(UTC)
    publish(
        platform.bus,
        (query_event(n, f"query {n}", candidates=CANDIDATES, issued_at=now, size=EVENT_BYTES) for n in range(BACKLOG)),
    )
    with platform.run("rerank", STREAMER_QUEUE_BYTES=str(QUEUE_BYTES)) as reranker:
        reranker.await_ready(seconds=150)
        with Watch(reranker) as watch:
            await_produced(reranker, platform.topic(RERANKED), BACKLOG, seconds=120)
        reranker.stop()
    ids = [key for key, _ in read_answers(platform.bus, seconds=60)]
    assert len(set(ids)) == len(ids) == BACKLOG
    # A busy machine hands over less at once; a sixteenth is far more than without a backlog.
    assert max(watch.in_flight_bytes) > QUEUE_BYTES / 16, "the queue was never in use"
    # Records are let in as long as there is room, and each of them may then be answered before any is committed.
    records = CLIENT_RECORDS + QUEUE_BYTES / EVENT_BYTES
    assert max(watch.in_flight_bytes) <= records * (EVENT_BYTES + MAX_ANSWER_BYTES)
    assert watch.peak_rss - at_rest.rss <= 150 * MIB


DECODE_SECONDS = 15.0


def test_a_clip_that_decodes_for_longer_than_the_poll_interval_costs_no_membership(platform: Platform) -> None:
    slow = slow_clip(platform.clips / "slow.mp4", seconds=1.4 * DECODE_SECONDS)
    small = [video.path for video in tiny_footage(platform.clips)]
    properties = {
        "STREAMER_KAFKA__MAX_POLL_INTERVAL_MS": "6000",
        "STREAMER_KAFKA__SESSION_TIMEOUT_MS": "6000",
        "STREAMER_KAFKA__HEARTBEAT_INTERVAL_MS": "1000",
    }
    with platform.run("embed", **properties) as embedder:
        embedder.await_ready(seconds=150)
        seconds = embed_beside(platform.bus, embedder, slow, small, wait=10 * DECODE_SECONDS)
        check_never_evicted(embedder)
        embedder.stop()
    assert seconds >= DECODE_SECONDS
