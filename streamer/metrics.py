"""The one catalogue of metrics: names, types, labels, units and help texts.

:class:`Metrics` makes them in a registry of its own, so that several can live in one test process. Labels
are bounded: topics, reasons, statuses and stages are enumerations of ours, partitions are the cluster's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_LATENCY = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
            1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800)  # fmt: skip
_WORK = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Metric:
    """One line of the catalogue; ``name`` as it is exposed, ``question`` is what an operator reads it for."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    question: str
    buckets: tuple[float, ...] = ()


CATALOGUE = {
    "consumed": Metric(
        "streamer_events_consumed_total", "counter", ("topic",),
        "Records read from an input topic.", "Is anything coming in?",
    ),
    "produced": Metric(
        "streamer_events_produced_total", "counter", ("topic",),
        "Records of committed transactions, without dead letters.", "Is anything going out?",
    ),
    "dead_lettered": Metric(
        "streamer_events_dead_lettered_total", "counter", ("topic", "reason"),
        "Records that went to the dead letter topic of their input topic.", "What is refused, and why?",
    ),
    "deleted": Metric(
        "streamer_clips_deleted_total", "counter", (),
        "Deletes (null values) applied to the store.", "Do deletes arrive?",
    ),
    "superseded": Metric(
        "streamer_uploads_superseded_total", "counter", (),
        "Uploads that the store refused since it holds a newer upload or a delete.", "Do uploads arrive out of order?",
    ),
    "candidates": Metric(
        "streamer_candidates_total", "counter", ("status",),
        "Candidates of result lists by what became of them.", "Which share of the candidates is embedded?",
    ),
    "corrupt_records": Metric(
        "streamer_corrupt_records_total", "counter", (),
        "Stored records that a read found damaged; their clips count as not embedded.", "Is the store's disk sound?",
    ),
    "degraded": Metric(
        "streamer_events_degraded_total", "counter", ("reason",),
        "Valid events that were passed on in their initial order.", "How often do users see the engine's own order?",
    ),
    "lag": Metric(
        "streamer_consumer_lag_records", "gauge", ("topic", "partition"),
        "Records behind the last stable offset that are not committed yet.", "Does it keep up?",
    ),
    "latency": Metric(
        "streamer_event_latency_seconds", "histogram", ("topic",),
        "From issued_at (query.results) or uploaded_at (clips.uploaded) to the commit of what the event caused.",
        "How long do users wait? How fresh is search?", _LATENCY,
    ),
    "stage": Metric(
        "streamer_stage_seconds", "histogram", ("stage",),
        "Time that one batch of a stage took, without its wait in the queue.", "Where does the time go?", _WORK,
    ),
    "queue_wait": Metric(
        "streamer_queue_wait_seconds", "histogram", ("stage",),
        "Time that an item waited in the queue before a stage.", "Which stage is the bottleneck?", _WORK,
    ),
    "batch": Metric(
        "streamer_batch_size", "histogram", ("stage",),
        "Items in one batch of a stage: events, queries, frames or records.", "Do batches fill?", _SIZES,
    ),
    "frames_decoded": Metric(
        "streamer_frames_decoded_total", "counter", (),
        "Frames that the video decoder produced.", "What does sampling cost?",
    ),
    "partial": Metric(
        "streamer_clips_partial_total", "counter", (),
        "Clips of which a part is damaged and the rest was embedded.", "Do uploads arrive whole?",
    ),
    "decoders_replaced": Metric(
        "streamer_decoders_replaced_total", "counter", ("cause",),
        "Decoder processes that ended with the clip they were at: crashed or timeout.", "Is somebody sending bombs?",
    ),
    "frames_encoded": Metric(
        "streamer_frames_encoded_total", "counter", (),
        "Frames that went through the image encoder.", "How much is embedded?",
    ),
    "frames_duplicate": Metric(
        "streamer_frames_duplicate_total", "counter", (),
        "Sampled frames that were not encoded, since one before them shows the same.", "What do duplicates save?",
    ),
    "query_cache": Metric(
        "streamer_query_cache_total", "counter", ("result",),
        "Query texts looked up in the cache of query vectors: hit or miss.", "Is the cache large enough?",
    ),
    "retries": Metric(
        "streamer_retries_total", "counter", ("stage",),
        "Repeated attempts after a transient fault.", "Which dependency is flaky?",
    ),
    "in_flight": Metric(
        "streamer_in_flight_records", "gauge", (),
        "Records received and not yet committed.", "How much work is under way?",
    ),
    "in_flight_bytes": Metric(
        "streamer_in_flight_bytes", "gauge", (),
        "Bytes of the records received and not yet committed.", "How near is the memory limit?",
    ),
    "assigned": Metric(
        "streamer_assigned_partitions", "gauge", (),
        "Partitions that this instance owns.", "Is the work spread evenly?",
    ),
    "paused": Metric(
        "streamer_paused_partitions", "gauge", (),
        "Owned partitions that are paused since their queue is full.", "Is it saturated?",
    ),
    "rebalances": Metric(
        "streamer_rebalances_total", "counter", ("kind",),
        "Partition assignments, revocations and losses.", "Is the group stable?",
    ),
    "transactions": Metric(
        "streamer_transactions_total", "counter", ("outcome",),
        "Transactions by outcome: committed, aborted, undecided (asked again) or restarted.", "Is Kafka healthy?",
    ),
    "transaction": Metric(
        "streamer_transaction_seconds", "histogram", (),
        "From begin to commit of a committed transaction.", "What does exactly once cost?", _WORK,
    ),
    "transaction_size": Metric(
        "streamer_transaction_records", "histogram", (),
        "Input records whose offsets one transaction commits.", "Do micro-batches fill?", _SIZES,
    ),
    "build_info": Metric(
        "streamer_build_info", "gauge", ("version", "command", "model_id"),
        "Always 1; the labels say what runs.", "Which version and model is this?",
    ),
    "ready": Metric(
        "streamer_ready", "gauge", (),
        "1 while /readyz says ready.", "Is it fit to work?",
    ),
}  # fmt: skip
"""Every metric of ours under the attribute name that :class:`Metrics` gives it."""


class Metrics:
    """The catalogue in a registry, with the process's own metrics beside it."""

    consumed: Counter
    produced: Counter
    dead_lettered: Counter
    deleted: Counter
    superseded: Counter
    candidates: Counter
    corrupt_records: Counter
    degraded: Counter
    lag: Gauge
    latency: Histogram
    stage: Histogram
    queue_wait: Histogram
    batch: Histogram
    frames_decoded: Counter
    partial: Counter
    decoders_replaced: Counter
    frames_encoded: Counter
    frames_duplicate: Counter
    query_cache: Counter
    retries: Counter
    in_flight: Gauge
    in_flight_bytes: Gauge
    assigned: Gauge
    paused: Gauge
    rebalances: Counter
    transactions: Counter
    transaction: Histogram
    transaction_size: Histogram
    build_info: Gauge
    ready: Gauge

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for attribute, metric in CATALOGUE.items():
            setattr(self, attribute, _make(metric, self.registry))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.help, metric.labels, registry=registry)


def markdown() -> str:
    """Return the catalogue as the table that the documentation shows."""
    lines = ["| metric | type | labels | meaning | answers |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help} | {m.question} |" for m in CATALOGUE.values()
    ]
    return "\n".join(lines) + "\n"
