"""The heavy suite, `make soak`: a backlog of 500 MB against the reranker's memory, a minute's decode against eviction.

Not collected by `make test`, which runs the same on a smaller scale (tests/integration/test_overload.py).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.support.driver import RERANKED, Bus, Service, apply_topics, environment
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

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

pytestmark = pytest.mark.timeout(2_400)

BACKLOG, EVENT_BYTES, CANDIDATES = 100_000, 5_000, 100
TEXTS = 30_000
"""Distinct queries: more than the cache of query vectors holds, so that it fills."""
MAX_GROWTH = 300_000_000


def report(title: str, **figures: str) -> None:
    lines = [f"  {name.replace('_', ' '):34}{figure}" for name, figure in figures.items()]
    print("\n".join(["", title, *lines]))  # noqa: T201 - the report is what the suite is run for


def mib(count: float) -> str:
    return f"{count / MIB:,.1f} MiB"


def test_a_backlog_of_500_mb_grows_the_reranker_by_300_mb_at_most(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, tmp_path / "store", [])
    apply_topics(variables, tmp_path)
    with Service("rerank", variables, tmp_path) as service:
        model_id = Metrics(service.await_ready(seconds=150)).label("streamer_build_info", "model_id")
        fill_store(f"lmdb:{tmp_path / 'store'}", model_id, frames=16)
        # Ready, assigned, nothing consumed.
        idle = Memory(service.pid)
        service.stop()
    now = datetime.now(UTC)
    texts = [f"a query, number {number} of those that users ask again and again" for number in range(TEXTS)]
    publish(
        bus,
        (
            query_event(n, texts[n * 7 % TEXTS], candidates=CANDIDATES, issued_at=now, size=EVENT_BYTES)
            for n in range(BACKLOG)
        ),
    )
    with Service("rerank", variables, tmp_path) as service:
        service.await_ready(seconds=150)
        began = time.monotonic()
        with Watch(service) as watch:
            await_produced(service, bus.prefix + RERANKED, BACKLOG, seconds=1_500)
        seconds = time.monotonic() - began
        last = Memory(service.pid)
        service.stop()
    ids = [key for key, _ in read_answers(bus, seconds=300)]
    report(
        f"{BACKLOG:,} query events of {EVENT_BYTES:,} bytes, {CANDIDATES} candidates each",
        events_a_second=f"{BACKLOG / seconds:,.0f}",
        answers=f"{len(ids):,}, {len(set(ids)):,} distinct",
        in_flight_at_most=mib(max(watch.in_flight_bytes)),
        resident_idle=f"{mib(idle.rss)} (anonymous {mib(idle.anonymous)}, files {mib(idle.file)})",
        resident_at_most=f"{mib(watch.peak_rss)} (anonymous at most {mib(watch.peak_anonymous)})",
        resident_at_the_end=f"{mib(last.rss)} (anonymous {mib(last.anonymous)}, files {mib(last.file)})",
        growth=f"{mib(watch.peak_rss - idle.rss)} (anonymous {mib(watch.peak_anonymous - idle.anonymous)})",
    )
    assert len(ids) == len(set(ids)) == BACKLOG
    assert watch.peak_rss - idle.rss <= MAX_GROWTH


DECODE_SECONDS = 60.0


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"STREAMER_KAFKA__SESSION_TIMEOUT_MS": "6000", "STREAMER_KAFKA__HEARTBEAT_INTERVAL_MS": "1000"},
    ],
    ids=["newest-group-protocol", "classic-group-protocol"],
)
def test_a_minutes_decode_with_a_poll_interval_of_10_s_never_evicts_the_embedder(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, properties: dict[str, str]
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    slow = slow_clip(clips / "slow.mp4", seconds=1.3 * DECODE_SECONDS)
    small = [video.path for video in tiny_footage(clips)]
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, tmp_path / "store", [clips], STREAMER_KAFKA__MAX_POLL_INTERVAL_MS="10000")
    apply_topics(variables, tmp_path)
    with Service("embed", variables | properties, tmp_path) as embedder:
        embedder.await_ready(seconds=150)
        seconds = embed_beside(bus, embedder, slow, small, wait=600)
        decoded = Metrics(embedder).total("streamer_frames_decoded_total")
        check_never_evicted(embedder)
        embedder.stop()
    report(
        "A slow clip beside small ones, max.poll.interval.ms at 10 s",
        size_of_the_file=mib(slow.stat().st_size),
        seconds_of_loading_and_decoding=f"{seconds:.1f}",
        frames_decoded=f"{decoded:,.0f}",
        rebalances="one assignment, nothing revoked or lost",
    )
    assert seconds >= DECODE_SECONDS
