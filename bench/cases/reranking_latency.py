"""Latency from producing query.results until a read_committed consumer gets the query.reranked event.

    python bench/cases/reranking_latency.py

100 queries per second are sent in an open loop: a late result does not delay later queries. The service and the best
hand-written transactional loop (``baseline.py``) run side by side; one process sends queries to each in turn for a few
seconds, and also reads the results. Then the service gets queries with new texts, at no more than a fifth of the text
encoder's maximum rate, so that texts are encoded one at a time, without a queue.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from bench.harness.contestants import Contestant
from bench.harness.report import print_figures, spread
from bench.harness.workload import RERANKED, RESULTS, TEXTS, candidates, query, set_up, texts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.harness.workload import Setup

NAME = "reranking_latency"
RATE = 100.0
LOOP = str(Path(__file__).parents[1] / "harness" / "baseline.py")
_GRACE_S = 5.0
_UNCACHED_SHARE = 0.2
_FIRST = 10_000_000
"""Number of the first query; greater than the numbers of the queries in backlogs."""


class Requester:
    """Sends queries at their due times and reads the results, in a single thread, which other threads cannot delay."""

    def __init__(self, contestant: Contestant, setup: Setup) -> None:
        self._bus = contestant.bus
        self._contestant = contestant
        self._setup = setup
        self._asked = _FIRST
        servers = {"bootstrap.servers": self._bus.bootstrap_servers}
        self._producer = Producer(servers | {"linger.ms": 0, "acks": "all"})
        self._consumer = Consumer(
            servers
            | {
                "group.id": f"{self._bus.prefix}requester",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        topic = self._bus.prefix + RERANKED
        partitions = self._consumer.list_topics(topic, 10).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in partitions])

    def send(self, texts: Iterable[str], rate: float) -> list[float]:
        """Send queries at ``rate`` per second; return their latencies in ms. AssertionError if one has no result."""
        asked: dict[bytes, float] = {}
        waits: list[float] = []
        gc.collect()
        gc.disable()
        begin = time.perf_counter()
        due = begin
        for text in texts:
            self._asked += 1
            self._contestant.published += 1
            record = query(self._asked, text, candidates(self._asked, self._setup.clip_count))
            self._listen(due, asked, waits)
            assert record.key is not None
            asked[record.key] = time.perf_counter()
            self._producer.produce(self._bus.prefix + RESULTS, record.value, record.key)
            self._producer.poll(0)
            due += 1 / rate
        self._listen(time.perf_counter() + _GRACE_S, asked, waits, until_all=True)
        gc.enable()
        assert not asked, f"{len(asked)} queries have no result {_GRACE_S} s after the last one was sent"
        return waits

    def _listen(self, until: float, asked: dict[bytes, float], waits: list[float], *, until_all: bool = False) -> None:
        """Read results until the time ``until``, or with ``until_all`` until none is missing."""
        while (left := until - time.perf_counter()) > 0 and not (until_all and not asked):
            message = self._consumer.poll(left)
            now = time.perf_counter()
            if message is None:
                continue
            error = message.error()
            assert error is None, error
            key = message.key()
            assert key is not None
            if key in asked:  # false for queries of an earlier backlog
                waits.append(1000 * (now - asked.pop(key)))

    def skip(self) -> None:
        """Skip the results of queries that this object has not sent."""
        low_high = [(each, self._consumer.get_watermark_offsets(each, 10)) for each in self._consumer.assignment()]
        for each, (_, end) in low_high:
            self._consumer.seek(TopicPartition(each.topic, each.partition, end))

    def close(self) -> None:
        """Close the clients."""
        self._producer.flush(5)
        self._consumer.close()


def percentiles(waits: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    p50, p99 = np.percentile(waits, [50, 99])
    return float(p50), float(p99)


def text_ms(setup: Setup, count: int, prefix: str, *, pause: float = 0.0) -> float:
    """Return the median milliseconds in which this process encodes one new text.

    There is a pause of ``pause`` seconds before each text, after which caches and threads are as cold as for a query.
    """
    waits = []
    for number in range(count):
        time.sleep(pause)
        began = time.perf_counter()
        setup.encoder.encode_texts([f"{prefix} {number} {TEXTS[number % len(TEXTS)]}"])
        waits.append(1000 * (time.perf_counter() - began))
    return statistics.median(waits)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, count = (1, 30) if quick else (6, 300)
    results: dict[str, list[list[float]]] = {"loop": [], "service": [], "uncached": []}
    alone: list[float] = []
    with set_up(quick=quick) as setup:
        buses = setup.bus("loop"), setup.bus("ours")
        with (
            Contestant.script("loop", setup, buses[0], [LOOP, "latency"]) as loop,
            Contestant.service(setup, buses[1]) as service,
        ):
            for contestant in (loop, service):
                contestant.warm_up(setup, seconds=0)
            loop_requester, service_requester = Requester(loop, setup), Requester(service, setup)
            rate = min(RATE, _UNCACHED_SHARE * 1000 / text_ms(setup, 20, "warm"))
            for number in range(-1, rounds):
                one = loop_requester.send(texts(count), RATE)
                other = service_requester.send(texts(count), RATE)
                fewer = max(10, round(0.7 * count * rate / RATE))
                new = texts(fewer, first=(number + 2) * count, new_every=1)  # texts of 8 words and a number
                third = service_requester.send(new, rate)
                if number < 0:
                    continue
                alone.append(text_ms(setup, 20, f"round {number}", pause=1 / rate))
                for name, waits in (("loop", one), ("service", other), ("uncached", third)):
                    results[name].append(waits)
                    p50, p99 = percentiles(waits)
                    sys.stderr.write(f"{name}: p50 {p50:.2f}, p99 {p99:.2f} ms\n")
            loop_requester.close()
            service_requester.close()
    return figures(results, alone, rate)


def figures(results: dict[str, list[list[float]]], alone: list[float], rate: float) -> dict[str, Any]:
    """Summarise the rounds: medians over the rounds, also of the ratios within a round."""
    at = {name: [percentiles(waits) for waits in rounds] for name, rounds in results.items()}
    summary: dict[str, Any] = {"queries_per_s": RATE, "queries": sum(map(len, results["service"]))}
    for name in ("loop", "service", "uncached"):
        summary[f"{name}_p50_ms"] = spread(p50 for p50, _ in at[name])
        summary[f"{name}_p99_ms"] = spread(p99 for _, p99 in at[name])
        summary[f"{name}_all_p99_ms"] = percentiles([each for waits in results[name] for each in waits])[1]
    pairs = list(zip(at["service"], at["loop"], strict=True))
    summary["p50_ratio"] = spread(one[0] / other[0] for one, other in pairs)
    summary["p99_ratio"] = spread(one[1] / other[1] for one, other in pairs)
    summary["uncached_queries_per_s"] = rate
    summary["text_ms"] = spread(alone)
    # The target: at most 1.5 times the sum of the loop's p50 and one encoding.
    summary["uncached_p50_to_allowed_ratio"] = spread(
        uncached[0] / (1.5 * loop[0] + 1.5 * text)
        for uncached, loop, text in zip(at["uncached"], at["loop"], alone, strict=True)
    )
    return summary


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
