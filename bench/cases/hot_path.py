"""The time of each step of one query: decode, text, fetch, score, blend, answer, encode, produce, commit.

    python bench/cases/hot_path.py

The steps up to *encode* are those of the service's own pipeline, in this process and without Kafka, on micro-batches of
a backlog. The pipeline's functions are timed by wrapping them; *answer* is the rest of a batch's time (making the
result event, updating metrics). *Produce* is the call that passes a result event to the Kafka client. *Commit* is the
rest of a transaction's time in the metrics of a running service, divided by the transaction's queries. The service does
both in a separate thread in parallel to the pipeline, so the sum of all steps exceeds the time between two results. The
report also has the figures of the same service at 100 queries per second, where most transactions contain a single
query.
"""

from __future__ import annotations

import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

from confluent_kafka import Producer

from bench.cases.reranking_latency import RATE, Requester
from bench.harness.contestants import Contestant
from bench.harness.report import print_figures, spread
from bench.harness.workload import RERANKED, queries, set_up, texts
from streamer import method, reranker, scoring
from streamer.codec import JSON, JsonCodec
from streamer.events import now
from streamer.health import Health
from streamer.kafka import InFlightRecord, Output, Record
from streamer.kafka.records import enqueue
from streamer.method import FixedPolicy
from streamer.metrics import Metrics
from streamer.scrape import Scrape
from streamer.settings import load
from tests.support.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from bench.harness.workload import Setup
    from streamer.scoring import ClipScores
    from streamer.store import Store

NAME = "hot_path"
BATCH = 64
_CALLS = {
    "decode": (JsonCodec, "decode"),
    "score": (scoring.FrameScorer, "add"),
    "blend": (method, "rerank"),
    "encode": (JsonCodec, "encode"),
}
"""Step -> the object and the name by which the pipeline looks up the step's function."""


class Clock:
    """Sums the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of the block to a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, wrapped so that the time of its calls is added to a step."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.step(name):
                return function(*arguments, **named)

        return call


class TimedStore:
    """A store that adds the time of its reads, without that of scoring what it has read, to the step *fetch*."""

    def __init__(self, store: Any, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str
    ) -> ClipScores:
        """Score as the wrapped store does."""
        self._clock.seconds.setdefault("fetch", 0.0)  # before the step that comes after it
        with self._clock.step("fetch"):
            scores: ClipScores = self._store.score(clip_ids, vector, deadline, pooling)
        self._clock.seconds["fetch"] -= scores.seconds
        return scores


class Pipeline:
    """The service's pipeline without Kafka."""

    def __init__(self, setup: Setup) -> None:
        self.clock = Clock()
        self._metrics = Metrics()
        self._store = setup.store()
        vectors = reranker.QueryVectors(setup.encoder, 20_000)
        self._patches = [
            mock.patch.object(module, name, self.clock.timed(step, getattr(module, name)))
            for step, (module, name) in _CALLS.items()
        ]
        self._patches.append(mock.patch.object(vectors, "get", self.clock.timed("text", vectors.get)))
        for patch in self._patches:
            patch.start()
        self._reranker = reranker.Reranker(
            load({"query_batch": BATCH}),
            FixedPolicy(load({}).method),
            codec=JSON,
            queries=vectors,
            model_id=setup.encoder.model_id,
            store=cast("Store", TimedStore(self._store, self.clock)),
            metrics=self._metrics,
            health=Health(self._metrics),
        )

    def close(self) -> None:
        """Undo all patches."""
        for patch in self._patches:
            patch.stop()
        self._store.close()

    def run(self, records: Sequence[Record]) -> list[InFlightRecord]:
        """Process records, one full batch at a time."""
        works = [InFlightRecord(record, lambda: None) for record in records]
        for first in range(0, len(works), BATCH):
            batch = works[first : first + BATCH]
            self._reranker.submit(batch)
            while any(work.outputs is None for work in batch):
                time.sleep(0.001)
        return works

    def seconds(self) -> float:
        """Return the total seconds of all batches."""
        return self._metrics.registry.get_sample_value("streamer_stage_seconds_sum", {"stage": "rerank"}) or 0.0


def steps(pipeline: Pipeline, records: Sequence[Record]) -> dict[str, float]:
    """Process records; return the microseconds of each step per query."""
    pipeline.clock.seconds.clear()
    before = pipeline.seconds()
    works = pipeline.run(records)
    assert all(work.outputs and work.outputs[0].topic == RERANKED for work in works)
    total = pipeline.seconds() - before
    seconds = pipeline.clock.seconds
    seconds["answer"] = total - sum(seconds.values())
    return {name: 1e6 * each / len(records) for name, each in seconds.items()}


def produce_us(servers: str, outputs: Sequence[Output]) -> float:
    """Return the microseconds of passing one result event to the Kafka client."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5, "enable.idempotence": True})
    seconds = 0.0
    for output in outputs:
        began = time.perf_counter()
        enqueue(producer, output, lambda *_: None)
        seconds += time.perf_counter() - began
        producer.poll(0)
    producer.flush(30)
    return 1e6 * seconds / len(outputs)


class Reported:
    """The increases of a running service's metrics between two scrapes."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._before = self._scrape()

    def _scrape(self) -> Scrape:
        with urllib.request.urlopen(self._url, timeout=10) as response:  # noqa: S310 - our own loopback URL
            return Scrape.parse(response.read().decode(), at=time.monotonic())

    def figures(self) -> dict[str, float]:
        """Return the means since the last call, or since the beginning."""
        now_ = self._scrape()

        def more(name: str, **labels: str) -> float:
            return now_.total(name, **labels) - self._before.total(name, **labels)

        transactions = more("streamer_transaction_seconds_count")
        queries_ = more("streamer_transaction_records_sum")
        seconds = more("streamer_transaction_seconds_sum")
        batches = more("streamer_stage_seconds_count", stage="rerank")
        figures = {
            "queries_a_transaction": queries_ / transactions,
            "transaction_ms": 1e3 * seconds / transactions,
            "transaction_us_a_query": 1e6 * seconds / queries_,
            "queries_a_batch": queries_ / batches,
            "batch_ms": 1e3 * more("streamer_stage_seconds_sum", stage="rerank") / batches,
            "wait_before_the_batch_ms": 1e3 * more("streamer_queue_wait_seconds_sum", stage="rerank") / queries_,
        }
        self._before = now_
        return figures


def in_process(setup: Setup, rounds: int, count: int) -> tuple[list[dict[str, float]], list[Output]]:
    """Process a backlog once as a warm-up and then ``rounds`` times; return the steps' times and the outputs."""
    log = [
        Record(RERANKED, 0, offset, each.key, each.value, (), now())
        for offset, each in enumerate(queries(count, setup.clip_count))
    ]
    pipeline = Pipeline(setup)
    try:
        found = [steps(pipeline, log) for _ in range(rounds + 1)][1:]
        outputs = [output for work in pipeline.run(log) for output in work.outputs or ()]
    finally:
        pipeline.close()
    return found, outputs


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, count, asked = (1, 64, 20) if quick else (5, 640, 500)
    with set_up(quick=quick) as setup:
        found, outputs = in_process(setup, rounds, count)
        began = time.perf_counter()
        setup.encoder.encode_texts(["a text that is not cached"])
        new_text_ms = 1e3 * (time.perf_counter() - began)
        bus, port = setup.bus("hot"), free_port()
        warm = [Output(bus.prefix + each.topic, each.key, each.value, each.headers) for each in outputs]
        with Contestant.service(setup, bus, STREAMER_METRICS_PORT=str(port)) as service:
            service.warm_up(setup, seconds=1 if quick else 5)
            reported = Reported(port)
            service.drain(setup)
            backlog = reported.figures()
            produced = [produce_us(bus.bootstrap_servers, warm) for _ in range(rounds)]
            with asking(service, setup) as requester:
                requester.send(texts(asked), RATE)
                steady = reported.figures()
    us = {name: spread(each[name] for each in found) for name in ("decode", "text", "fetch", "score", "blend")}
    us |= {name: spread(each[name] for each in found) for name in ("answer", "encode")}
    us["produce"] = spread(produced)
    us["commit"] = spread([max(0.0, backlog["transaction_us_a_query"] - us["produce"]["median"])])
    return {"us_a_query": us, "new_text_ms": new_text_ms, "backlog": backlog, "at_100_queries_per_s": steady}


@contextmanager
def asking(contestant: Contestant, setup: Setup) -> Iterator[Requester]:
    """Provide a requester for a service whose backlog is empty."""
    requester = Requester(contestant, setup)
    try:
        yield requester
    finally:
        with suppress(RuntimeError):
            requester.close()


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
