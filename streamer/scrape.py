"""Rates, quantiles and gauges from two scrapes of one process. Pure functions of exposition text."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STARTED = "process_start_time_seconds"

Labels = frozenset[tuple[str, str]]


class ExpositionError(ValueError):
    """The text is not in Prometheus' exposition format; the message is one line."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one scrape by name and labels; ``at``: seconds on a monotonic clock."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def parse(cls, text: str, *, at: float) -> Scrape:
        """Read exposition text. Raises :class:`ExpositionError`."""
        samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    samples[sample.name][frozenset(sample.labels.items())] = float(sample.value)
        except Exception as error:  # noqa: BLE001 - the parser raises whatever comes up
            raise ExpositionError(f"no metrics: {' '.join(str(error).split())[:100]}") from None
        return cls(at, samples)

    def series(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return the samples ``name`` with these labels."""
        return {key: value for key, value in self.samples.get(name, {}).items() if labels.items() <= key}

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples ``name`` with these labels; 0.0 if there are none."""
        return sum(self.series(name, **labels).values())

    def buckets(self, histogram: str) -> dict[float, float]:
        """Return a histogram's cumulative counts by upper bound, over all its labels."""
        return _by_bound(self.series(f"{histogram}_bucket").items())


@dataclass(frozen=True, slots=True)
class Window:
    """Two scrapes of one target in order of time; the process may have restarted in between."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        """The window's length in seconds."""
        return self.after.at - self.before.at

    def increases(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return each counter's increase, never below 0: after a reset the increase is the counter's value."""
        before = {} if self._restarted else self.before.series(name, **labels)
        return {
            key: value - known if value >= (known := before.get(key, 0.0)) else value
            for key, value in self.after.series(name, **labels).items()
        }

    def increase(self, name: str, **labels: str) -> float:
        """Return the summed increase of the counters with these labels."""
        return sum(self.increases(name, **labels).values())

    def rate(self, name: str, **labels: str) -> float:
        """Return the increase per second."""
        return self.increase(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def buckets(self, histogram: str) -> dict[float, float]:
        """Return a histogram's cumulative bucket counts for the observations within the window."""
        return _by_bound(self.increases(f"{histogram}_bucket").items())

    @property
    def _restarted(self) -> bool:
        return self.before.series(_STARTED) != self.after.series(_STARTED)


def _by_bound(samples: Iterable[tuple[Labels, float]]) -> dict[float, float]:
    counts: dict[float, float] = defaultdict(float)
    for labels, count in samples:
        counts[float(dict(labels)["le"])] += count
    return counts


def merged(histograms: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """Sum the cumulative bucket counts of one histogram over several processes."""
    counts: dict[float, float] = defaultdict(float)
    for histogram in histograms:
        for bound, count in histogram.items():
            counts[bound] += count
    return counts


def quantile(q: float, buckets: Mapping[float, float]) -> float:
    """Estimate a quantile as Prometheus' histogram_quantile does: linear inside its bucket; NaN if it is empty.

    ``buckets`` are cumulative counts by upper bound; in the bucket of infinity, the highest finite bound is returned.
    """
    total = buckets.get(math.inf, 0.0)
    if not total:
        return math.nan
    below, lower = 0.0, 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= q * total:
            if bound == math.inf or buckets[bound] == below:
                return lower
            return lower + (bound - lower) * (q * total - below) / (buckets[bound] - below)
        below, lower = buckets[bound], bound
    return lower
