"""The heavy suite, `make crowds`: 5,000 clients of each bad kind on a loaded reranker's metrics port, a minute each.

The service runs as an ordinary user, with 1,024 descriptors and 200 processes (threads count) at most. Not collected by
`make test`, which runs some hundred clients of each kind (tests/unit/test_front.py).

What a crowd does to the reranker's latency is a ratio within one run: its median with the crowd, by the median of what
it was right before and right after, at the same load. The clients run on the same processors as the service, so the
ratio would for the most part be what 5,000 clients cost that have no machine of their own. Therefore they run at the
kernel's idle priority: they get what nobody else wants. And each crowd also visits, for a while, the port of another
process on this machine, which has the same front and nothing to do with the reranker. That is what the network and the
front cost whoever shares the processors. POLITE=0 lets the clients have the priority of everybody else.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from streamer.scrape import ExpositionError, Scrape, Window, quantile
from tests.soak.soak import report
from tests.support import ordinary
from tests.support.crowd import KINDS, crowd
from tests.support.driver import RERANKED, RESULTS, Bus, Record, Service, apply_topics, environment
from tests.support.load import await_produced, fill_store, query_event, read_answers
from tests.support.lone_endpoints import lone_endpoints
from tests.support.processes import children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.local_kafka.broker import LocalKafka

pytestmark = pytest.mark.timeout(3_600)

CLIENTS = int(os.environ.get("CLIENTS", "5000"))
SECONDS = float(os.environ.get("SECONDS", "60"))
REST = SECONDS / 3
"""Seconds of each measurement without a crowd, and of each with the crowd elsewhere."""
POLITE = os.environ.get("POLITE", "1") != "0"
LIMITS = ["prlimit", "--nofile=1024:1024", "--nproc=200:200"]
USER = 64_016
"""Nobody else's, since the limit of processes is one of all that a user has."""
RATE = 50
"""Queries a second."""
_FEW = 3
"""Descriptors, or threads, by which a service differs from itself a minute ago."""
MOST_TIMES = 1.5
"""By how much a crowd may raise the median latency of queries."""


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


def scraped(service: Service) -> Scrape:
    """Return the service's metrics; in a crowd of scrapers one may have to ask again."""
    while True:
        service.check_alive()
        try:
            scrape = Scrape.parse(ask(service.port, "/metrics")[1], at=time.monotonic())
        except ExpositionError:
            continue
        if scrape.series("streamer_build_info"):
            return scrape


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def held(pid: int) -> tuple[int, int]:
    """Return how many descriptors and threads a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir()))


@dataclass(frozen=True)
class Figures:
    """What was measured for a while: /livez in seconds, the latency of queries, and shares of a processor."""

    livez_p50: float
    livez_p99: float
    failed: int
    probes: int
    query_p50: float
    front: float
    service: float

    def __str__(self) -> str:
        return (
            f"queries p50 {1000 * self.query_p50:5.1f} ms, /livez p50 {self.livez_p50:.3f} p99 {self.livez_p99:.3f} s, "
            f"unanswered {self.failed} of {self.probes}, processor: front {self.front:.0%}, service {self.service:.0%}"
        )


def measured(service: Service, seconds: float) -> Figures:
    """Probe the service for so many seconds, under whatever load there is."""
    [front] = [pid for pid in children(service.pid) if b"endpoints" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    before, used = scraped(service), (processor_s(front), processor_s(service.pid))
    took, failed, began = [], 0, time.monotonic()
    while time.monotonic() < began + seconds:
        needed, text = ask(service.port, "/livez")
        failed += text != "ok\n"
        took.append(needed if text == "ok\n" else math.inf)
        time.sleep(0.05)
    elapsed = time.monotonic() - began
    shares = (processor_s(front) - used[0]) / elapsed, (processor_s(service.pid) - used[1]) / elapsed
    p50 = quantile(0.5, Window(before, scraped(service)).buckets("streamer_event_latency_seconds"))
    took.sort()  # an unanswered probe took for ever
    p99 = took[math.ceil(0.99 * len(took)) - 1]
    return Figures(statistics.median(took), p99, failed, len(took), p50, *shares)


def visits(service: Service) -> Iterator[tuple[str, Figures, float]]:
    """Have each kind of crowd, between rests; yield what was measured, and the ratio of the queries' medians."""
    rested = measured(service, REST)
    for kind in os.environ.get("KINDS", " ".join(KINDS)).split():
        with lone_endpoints() as other, crowd(other.port, kind, CLIENTS, politely=POLITE):
            elsewhere = measured(service, REST)
        own = held(service.pid)
        with crowd(service.port, kind, CLIENTS, politely=POLITE) as there:
            found = measured(service, SECONDS)
            now = held(service.pid)
            assert all(more - less < _FEW for more, less in zip(now, own, strict=True)), f"{own} became {now}"
        service.check_alive()
        before, rested = rested, measured(service, REST)
        usual = statistics.mean([before.query_p50, rested.query_p50])
        print(  # noqa: T201 - each takes minutes
            f"{kind}: {there.connections / SECONDS:,.0f} connections/s; queries p50 {found.query_p50 / usual:.2f} "
            f"times the usual {1000 * usual:.1f} ms; with the crowd elsewhere {elsewhere.query_p50 / usual:.2f} times",
            f"\n  before    {before}\n  elsewhere {elsewhere}\n  crowd     {found}\n  after     {rested}",
            flush=True,
        )
        yield kind, found, found.query_p50 / usual


def test_crowds_neither_delay_a_probe_nor_the_queries(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    with ordinary.open_folder() as folder:
        store = folder / "store"
        variables = environment(bus, store, []) | {"HOME": str(folder)}
        apply_topics(variables, tmp_path)
        with Service("rerank", variables, tmp_path, before=[*LIMITS, *ordinary.becoming(USER)]) as service:
            service.await_ready(seconds=150)
            [build] = scraped(service).series("streamer_build_info")
            fill_store(f"lmdb:{store}", dict(build)["model_id"], frames=16)
            with Load(bus) as load:
                time.sleep(REST / 2)  # the first queries are slower
                figures = list(visits(service))
            await_produced(service, bus.prefix + RERANKED, load.published, seconds=300)
            service.stop()
        ids = [key for key, _ in read_answers(bus, seconds=300)]
    report(
        f"{CLIENTS:,} clients of each kind for {SECONDS:g} s, {RATE} queries a second",
        **{
            kind: f"/livez p99 {found.livez_p99:.3f} s, unanswered {found.failed}; queries p50 {ratio:.2f} times"
            for kind, found, ratio in figures
        },
        answers=f"{len(ids):,} of {load.published:,}",
    )
    assert len(ids) == len(set(ids)) == load.published
    assert all(found.livez_p99 < 1 for _, found, _ in figures)
    assert all(ratio <= MOST_TIMES for _, _, ratio in figures)
