"""The heavy suite, `make crowds`: 5,000 clients of each bad kind on a loaded reranker's metrics port, a minute each.

The service may have 1,024 descriptors and 200 processes (root is not held to the latter). Not collected by `make test`,
which runs some hundred clients of each kind (tests/unit/test_front.py).
"""

from __future__ import annotations

import os
import resource
import statistics
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Self

import pytest

from streamer.scrape import Scrape, Window, quantile
from tests.soak.soak import report
from tests.support.crowd import KINDS, crowd
from tests.support.driver import RERANKED, RESULTS, Bus, Record, Service, apply_topics, environment
from tests.support.load import Metrics, await_produced, fill_store, query_event, read_answers

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

pytestmark = pytest.mark.timeout(3_600)

CLIENTS = int(os.environ.get("CLIENTS", "5000"))
SECONDS = float(os.environ.get("SECONDS", "60"))
LIMITS = {resource.RLIMIT_NOFILE: 1024, resource.RLIMIT_NPROC: 200}
RATE = 50
"""Queries a second."""


class Load:
    """Publishes queries at a steady rate until it is stopped."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stopped = threading.Event()
        self.published = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stopped.wait(0.02):
            now = datetime.now(UTC)
            due = int((time.monotonic() - began) * RATE)
            if due > self.published:
                numbers = range(self.published, due)
                events = (query_event(n, f"query {n % 500}", candidates=100, issued_at=now) for n in numbers)
                self._bus.publish(RESULTS, (Record(key, value) for key, value in events))
                self.published = due

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def ask(port: int, path: str) -> tuple[float, str]:
    """Return the seconds until the answer, and the body, or what went wrong."""
    began = time.monotonic()
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        try:
            connection.request("GET", path)
            text = connection.getresponse().read().decode()
        except (OSError, HTTPException) as error:
            text = repr(error)
    return time.monotonic() - began, text


def latency(service: Service) -> Scrape:
    return Scrape.parse(ask(service.port, "/metrics")[1], at=time.monotonic())


def test_crowds_neither_delay_a_probe_nor_the_queries(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, tmp_path / "store", [])
    apply_topics(variables, tmp_path)
    before = {limit: resource.getrlimit(limit) for limit in LIMITS}
    for limit, most in LIMITS.items():
        resource.setrlimit(limit, (most, before[limit][1]))
    with Service("rerank", variables, tmp_path) as service:
        for limit, (_, hard) in before.items():
            resource.setrlimit(limit, (hard, hard))  # for the clients
        model_id = Metrics(service.await_ready(seconds=150)).label("streamer_build_info", "model_id")
        fill_store(f"lmdb:{tmp_path / 'store'}", model_id, frames=16)
        kinds = os.environ.get("KINDS", " ".join(KINDS)).split()
        with Load(bus) as load:
            figures = {"nobody": during(service)}
            for kind in kinds:
                with crowd(service.port, kind, CLIENTS):
                    figures[kind] = during(service)
                print(kind, figures[kind], flush=True)  # noqa: T201 - each takes a minute
                service.check_alive()
        published = load.published
        await_produced(service, bus.prefix + RERANKED, published, seconds=300)
        service.stop()
    ids = [key for key, _ in read_answers(bus, seconds=300)]
    report(
        f"{CLIENTS:,} clients of each kind for {SECONDS:g} s, {RATE} queries a second",
        **{
            kind: f"/livez p50 {livez[0]:.3f} s, p99 {livez[1]:.3f} s, failed {failed}; queries p50 {p50 * 1000:.1f} ms"
            for kind, (livez, failed, p50) in figures.items()
        },
        answers=f"{len(ids):,} of {published:,}",
    )
    assert len(ids) == len(set(ids)) == published
    for livez, _failed, _p50 in figures.values():
        assert livez[1] < 1


def during(service: Service) -> tuple[tuple[float, float], int, float]:
    """Return p50 and p99 of /livez, how many probes failed, and the median latency of queries, over the time."""
    before = latency(service)
    seconds, failed, end = [], 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        took, text = ask(service.port, "/livez")
        failed += text != "ok\n"
        seconds.append(took)
        time.sleep(0.05)
    window = Window(before, latency(service))
    p50 = quantile(0.5, window.buckets("streamer_event_latency_seconds"))
    return (statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]), failed, p50
