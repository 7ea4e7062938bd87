"""Prometheus metrics: the catalogue of all of them, and the registry of a process."""

from streamer.metrics.catalogue import CATALOGUE, LABELS, Metric
from streamer.metrics.registry import Metrics

__all__ = ["CATALOGUE", "LABELS", "Metric", "Metrics"]
