"""The one catalogue of metrics: names, types, labels, units and help texts.

:class:`Metrics` makes them in a registry of its own, so that several can live in one test process. Labels
are bounded: :data:`LABELS` says by what. ``docs/reference/metrics.md`` is written from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import Metric as PrometheusMetric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

_LATENCY = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
            1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800)  # fmt: skip
_FRESHNESS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 7200, 86_400)
_WORK = (0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 3, 10, 30, 120)
_STORE = (0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

Unit = Literal["seconds", "bytes", "records", "events", "clips", "candidates", "frames", "partitions", "items", "count"]


@dataclass(frozen=True)
class Metric:
    """One line of the catalogue; ``name`` as it is exposed, ``question`` is what an operator reads it for."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Unit
    labels: tuple[str, ...]
    help: str
    question: str
    buckets: tuple[float, ...] = ()


LABELS = {
    "group": "on every metric of a service: its consumer group under its full name",
    "topic": "the topics that the command reads or writes, under their full names",
    "partition": "the input topic's partitions that this instance owns",
    "reason": "dead letters: the `dlq.reason` codes; degraded events: the values of `degraded`",
    "status": "the values of a candidate's `status`",
    "stage": "embed: read, load, fetch, decode, encode, store; rerank: rerank, text",
    "operation": "read, put, delete",
    "result": "hit, miss",
    "cause": "crashed, timeout",
    "kind": "assigned, revoked, lost",
    "outcome": "committed, aborted, unknown, restarted, fenced",
    "condition": "start, broker, authentication, topic, assignment, offsets, store, transactions",
    "version": "one value a process",
    "command": "embed, rerank",
    "model": "one value a process",
    "model_id": "one value a process",
    "dtype": "one value a process",
    "device": "one value a process",
}
"""Every label, and which values it takes: as many as are listed, or as the cluster has."""

CATALOGUE = {
    "consumed": Metric(
        "streamer_events_consumed_total", "counter", "events", ("topic",),
        "Records read from an input topic.", "Is anything coming in?",
    ),
    "produced": Metric(
        "streamer_events_produced_total", "counter", "events", ("topic",),
        "Records of committed transactions, without dead letters.", "Is anything going out?",
    ),
    "dead_lettered": Metric(
        "streamer_events_dead_lettered_total", "counter", "events", ("topic", "reason"),
        "Records that went to the dead letter topic of their input topic.", "What is refused, and why?",
    ),
    "deleted": Metric(
        "streamer_clips_deleted_total", "counter", "clips", (),
        "Deletes (null values) applied to the store.", "Do deletes arrive?",
    ),
    "superseded": Metric(
        "streamer_uploads_superseded_total", "counter", "clips", (),
        "Uploads that the store refused since it holds a newer upload or a delete.", "Do uploads arrive out of order?",
    ),
    "candidates": Metric(
        "streamer_candidates_total", "counter", "candidates", ("status",),
        "Candidates of result lists by what became of them.", "Which share of the candidates is embedded?",
    ),
    "unreadable": Metric(
        "streamer_unreadable_partitions", "gauge", "partitions", (),
        "Assigned partitions at which the consumer stands still: a batch that it cannot decode, or no valid offset.",
        "Is there anything that cannot be read?",
    ),
    "corrupt_records": Metric(
        "streamer_corrupt_records_total", "counter", "records", (),
        "Stored records that a read found damaged; their clips count as not embedded.", "Is the store's disk sound?",
    ),
    "degraded": Metric(
        "streamer_events_degraded_total", "counter", "events", ("reason",),
        "Valid events that were passed on in their initial order.", "How often do users see the engine's own order?",
    ),
    "lag": Metric(
        "streamer_consumer_lag_records", "gauge", "records", ("topic", "partition"),
        "Log end offset less the committed offset: the broker's own figure, as kafka-consumer-groups shows it.",
        "How much is behind?",
    ),
    "lag_seconds": Metric(
        "streamer_consumer_lag_seconds", "gauge", "seconds", ("topic", "partition"),
        "Age of the oldest readable record that is not done and committed, by its own timestamp; 0 when caught up.",
        "Does it keep up?",
    ),
    "done_ahead": Metric(
        "streamer_consumer_done_ahead_records", "gauge", "records", ("topic", "partition"),
        "Records after the committed offset that are committed out of order; the lag in records counts them.",
        "Does one slow record hold up the offset?",
    ),
    "partitions": Metric(
        "streamer_topic_partitions", "gauge", "partitions", ("topic",),
        "Partitions of the input topic, whoever owns them.",
        "Less the sum of the assigned: do partitions belong to nobody?",
    ),
    "latency": Metric(
        "streamer_event_latency_seconds", "histogram", "seconds", ("topic",),
        "From issued_at (query.results) or uploaded_at (clips.uploaded) to the commit of what the event caused.",
        "How long do users wait?", _LATENCY,
    ),
    "freshness": Metric(
        "streamer_clip_freshness_seconds", "histogram", "seconds", (),
        "From uploaded_at to the durable write from which on the clip's frames are searched.",
        "How fresh is search?", _FRESHNESS,
    ),
    "stage": Metric(
        "streamer_stage_seconds", "histogram", "seconds", ("stage",),
        "Time that one batch of a stage took, without its wait in the queue; load has the parts fetch and decode, "
        "rerank the part text.", "Where does the time go?", _WORK,
    ),
    "queue_wait": Metric(
        "streamer_queue_wait_seconds", "histogram", "seconds", ("stage",),
        "Time that an item waited in the queue before a stage.", "Which stage is the bottleneck?", _WORK,
    ),
    "batch": Metric(
        "streamer_batch_size", "histogram", "items", ("stage",),
        "Items in one batch of a stage: events, queries, frames or records.", "Do batches fill?", _SIZES,
    ),
    "frames_decoded": Metric(
        "streamer_frames_decoded_total", "counter", "frames", (),
        "Frames that the video decoder produced.", "What does sampling cost?",
    ),
    "partial": Metric(
        "streamer_clips_partial_total", "counter", "clips", (),
        "Clips of which a part is damaged and the rest was embedded.", "Do uploads arrive whole?",
    ),
    "decoders_replaced": Metric(
        "streamer_decoders_replaced_total", "counter", "count", ("cause",),
        "Decoder processes that ended with the clip they were at: crashed or timeout.", "Is somebody sending bombs?",
    ),
    "frames_encoded": Metric(
        "streamer_frames_encoded_total", "counter", "frames", (),
        "Frames that went through the image encoder.", "How much is embedded?",
    ),
    "frames_duplicate": Metric(
        "streamer_frames_duplicate_total", "counter", "frames", (),
        "Sampled frames that were not encoded, since one before them shows the same.", "What do duplicates save?",
    ),
    "store": Metric(
        "streamer_store_seconds", "histogram", "seconds", ("operation",),
        "Time of one call of the store, failed ones too: to read an event's candidates, to write a batch, to delete.",
        "Is the store slow?", _STORE,
    ),
    "scoring": Metric(
        "streamer_scoring_seconds", "histogram", "seconds", (),
        "Time that scoring, blending and ranking one event's candidates took; reading their records is not in it.",
        "Is scoring slow?", _STORE,
    ),
    "store_errors": Metric(
        "streamer_store_errors_total", "counter", "count", ("operation",),
        "Calls of the store that found it unavailable.",
        "Is the store there?",
    ),
    "store_cache": Metric(
        "streamer_store_cache_total", "counter", "records", ("result",),
        "Records of a store beyond this host by whether this process had their bytes already (hit) or not (miss).",
        "Is the cache of records large enough?",
    ),
    "store_clips": Metric(
        "streamer_store_clips", "gauge", "clips", (),
        "Clips of this model in the store, without tombstones; counted once a minute.",
        "How much can be searched?",
    ),
    "store_bytes": Metric(
        "streamer_store_bytes", "gauge", "bytes", (),
        "What the store occupies, for all models; measured once a minute.",
        "When is the disk full?",
    ),
    "query_cache": Metric(
        "streamer_query_cache_total", "counter", "count", ("result",),
        "Query texts looked up in the cache of query vectors: hit or miss.", "Is the cache large enough?",
    ),
    "retries": Metric(
        "streamer_retries_total", "counter", "count", ("stage",),
        "Repeated attempts after a transient fault.", "Which dependency is flaky?",
    ),
    "in_flight": Metric(
        "streamer_in_flight_records", "gauge", "records", (),
        "Records received and not yet committed.", "How much work is under way?",
    ),
    "in_flight_bytes": Metric(
        "streamer_in_flight_bytes", "gauge", "bytes", (),
        "Bytes of the records received and not yet committed.", "How near is the memory limit?",
    ),
    "assigned": Metric(
        "streamer_assigned_partitions", "gauge", "partitions", (),
        "Partitions that this instance owns.", "Is the work spread evenly?",
    ),
    "paused": Metric(
        "streamer_paused_partitions", "gauge", "partitions", (),
        "Owned partitions that are paused since their queue is full.", "Is it saturated?",
    ),
    "rebalances": Metric(
        "streamer_rebalances_total", "counter", "count", ("kind",),
        "Partition assignments, revocations and losses.", "Is the group stable?",
    ),
    "transactions": Metric(
        "streamer_transactions_total", "counter", "count", ("outcome",),
        "Transactions by outcome; unknown: the coordinator did not answer and is asked again, restarted: with another "
        "producer, fenced: the process ends.",
        "Is Kafka healthy?",
    ),
    "transaction": Metric(
        "streamer_transaction_seconds", "histogram", "seconds", (),
        "From begin to commit of a committed transaction.", "What does exactly once cost?", _WORK,
    ),
    "transaction_size": Metric(
        "streamer_transaction_records", "histogram", "records", (),
        "Input records whose offsets one transaction commits.", "Do micro-batches fill?", _SIZES,
    ),
    "build_info": Metric(
        "streamer_build_info", "gauge", "count", ("version", "command", "model_id"),
        "Always 1; the labels say what runs.", "Which version and model is this?",
    ),
    "model_info": Metric(
        "streamer_model_info", "gauge", "count", ("model", "model_id", "dtype", "device"),
        "Always 1; the labels say which model runs, in which arithmetic, where.",
        "Which arithmetic was chosen?",
    ),
    "ready": Metric(
        "streamer_ready", "gauge", "count", (),
        "1 while /readyz says ready.", "Is it fit to work?",
    ),
    "unready": Metric(
        "streamer_unready", "gauge", "count", ("condition",),
        "1 while the condition keeps /readyz from being ready, else 0.",
        "Why is it not ready?",
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
    lag_seconds: Gauge
    done_ahead: Gauge
    partitions: Gauge
    unreadable: Gauge
    latency: Histogram
    freshness: Histogram
    stage: Histogram
    queue_wait: Histogram
    batch: Histogram
    frames_decoded: Counter
    partial: Counter
    decoders_replaced: Counter
    frames_encoded: Counter
    frames_duplicate: Counter
    store: Histogram
    scoring: Histogram
    store_errors: Counter
    store_cache: Counter
    store_clips: Gauge
    store_bytes: Gauge
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
    model_info: Gauge
    ready: Gauge
    unready: Gauge

    def __init__(self, group: str | None = None) -> None:
        """``group``: the consumer group of the process, which every metric then carries as a label."""
        self.registry = registry = CollectorRegistry()
        if group is not None:
            registry = CollectorRegistry()
            self.registry.register(_Labelled(registry, group))
        for attribute, metric in CATALOGUE.items():
            setattr(self, attribute, _make(metric, registry))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)


class _Labelled(Collector):
    """All metrics of a registry with the label ``group``: a process is a member of one group as long as it lives."""

    def __init__(self, registry: CollectorRegistry, group: str) -> None:
        self._registry = registry
        self._group = group

    def collect(self) -> Iterator[PrometheusMetric]:
        """Give each sample the label."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, "group": self._group}) for sample in family.samples
            ]
            yield family


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.help, metric.labels, registry=registry)


def markdown() -> str:
    """Return the catalogue as the tables that the documentation shows: metrics, then labels."""
    lines = ["| metric | type | unit | labels | meaning | answers |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{m.name}` | {m.kind} | {m.unit} | {', '.join(m.labels)} | {m.help} | {m.question} |"
        for m in CATALOGUE.values()
    ]
    lines += ["", "| label | values |", "| --- | --- |", *(f"| {name} | {values} |" for name, values in LABELS.items())]
    return "\n".join(lines) + "\n"
