"""The metrics of one process, in a registry of their own, so that several can coexist in one test process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import Metric as PrometheusMetric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from streamer.metrics.catalogue import CATALOGUE, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator


class Metrics:
    """The catalogue in a registry, together with Prometheus' process metrics."""

    consumed: Counter
    produced: Counter
    dead_lettered: Counter
    retimed: Counter
    passed_over: Counter
    deleted: Counter
    superseded: Counter
    candidates: Counter
    corrupt_records: Counter
    degraded: Counter
    lag: Gauge
    lag_seconds: Gauge
    completed_ahead: Gauge
    unstable: Gauge
    unstable_seconds: Gauge
    log_resets: Counter
    topics_recreated: Counter
    retention_lost: Counter
    commits_shortened: Counter
    partitions: Gauge
    unreadable: Gauge
    latency: Histogram
    freshness: Histogram
    stage: Histogram
    queue_wait: Histogram
    batch: Histogram
    frames_decoded: Counter
    partial: Counter
    recoloured: Counter
    decoder_failures: Counter
    decoder_sandbox: Gauge
    machine_faults: Counter
    frames_encoded: Counter
    frames_duplicate: Counter
    store: Histogram
    scoring: Histogram
    match: Histogram
    store_errors: Counter
    store_cache: Counter
    store_replica_reads: Counter
    store_clips: Gauge
    store_bytes: Gauge
    store_evicted_keys: Counter
    store_memory: Gauge
    store_replica_lag: Gauge
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
    connections_refused: Counter
    exposure: Counter
    exposure_queries: Counter
    exposure_left_out: Counter

    def __init__(self, group: str | None = None) -> None:
        """``group``: the consumer group of the process; if given, every metric has it as a label."""
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
    """All metrics of a registry with the label ``group``: a process is a member of one group for its whole life."""

    def __init__(self, registry: CollectorRegistry, group: str) -> None:
        self._registry = registry
        self._group = group

    def collect(self) -> Iterator[PrometheusMetric]:
        """Add the label to each sample."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, "group": self._group}) for sample in family.samples
            ]
            yield family


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    # OpenMetrics has a unit only where the name ends in it.
    unit = metric.unit if metric.name.removesuffix("_total").endswith(f"_{metric.unit}") else ""
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, unit=unit, buckets=metric.buckets, registry=registry)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.help, metric.labels, unit=unit, registry=registry)
