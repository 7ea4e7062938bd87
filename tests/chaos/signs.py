"""What services show of a fault: transactions that fail, dead letters, conditions of readiness."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from streamer.scrape import Scrape
    from tests.chaos.services import Instance


OF_THE_STORE = frozenset(
    {
        "degraded",
        "candidates unavailable",
        "reads of replicas",
        "retries of the store",
        "not ready: store",
        "not ready: eviction",
    }
)
"""What shows that something is amiss with the store."""


class Signs:
    """What has grown or appeared since the first look, over all the processes that an instance has had.

    ``only``: what counts; None is everything.
    """

    def __init__(self, instances: Iterable[Instance], only: Container[str] | None = None) -> None:
        self._instances = list(instances)
        self._only = only
        self._last: dict[str, dict[str, float]] = {}
        self._seen: Counter[str] = Counter()
        self.look()

    def look(self) -> None:
        """Look once more."""
        for instance in self._instances:
            metrics = instance.metrics()
            if metrics is None:
                continue
            found = counters(metrics)
            last = self._last.get(instance.name)
            if last is not None:
                # A counter that is lower than before is that of another process.
                self._seen.update(
                    {
                        name: round(value - last.get(name, 0) if value >= last.get(name, 0) else value)
                        for name, value in found.items()
                        if value != last.get(name, 0)
                    }
                )
            self._last[instance.name] = found
            self._seen.update(f"not ready: {condition}" for condition in instance.conditions(metrics))

    def __bool__(self) -> bool:
        return bool(self._counted())

    def __str__(self) -> str:
        return ", ".join(f"{name} ({count})" for name, count in sorted(self._counted().items()))

    def _counted(self) -> Counter[str]:
        return Counter({name: n for name, n in self._seen.items() if n and (self._only is None or name in self._only)})


class Rise:
    """How far a counter has risen at each of some instances since the beginning."""

    def __init__(self, instances: Iterable[Instance], name: str, **labels: str) -> None:
        self._instances = list(instances)
        self._name = name
        self._labels = labels
        self._last: dict[Instance, float] = {}
        self.counts = dict.fromkeys(self._instances, 0.0)
        self.look()

    def look(self) -> bool:
        """Look at those that answer, and tell whether it has risen at each."""
        for instance in self._instances:
            metrics = instance.metrics()
            if metrics is not None:
                value = metrics.total(self._name, **self._labels)
                last = self._last.get(instance, value)
                # A counter that is lower than before is that of another process.
                self.counts[instance] += value - last if value >= last else value
                self._last[instance] = value
        return self.everywhere

    @property
    def everywhere(self) -> bool:
        """Whether it has risen at each of them, as of the last look."""
        return all(self.counts.values())

    def __str__(self) -> str:
        return ", ".join(f"{instance.name} {count:.0f}" for instance, count in self.counts.items())


def counters(metrics: Scrape) -> dict[str, float]:
    """Return the counters of what goes wrong, by the words of the report; some are of several metrics or labels."""
    found: dict[str, float] = defaultdict(float)
    for labels, value in metrics.series("streamer_transactions_total").items():
        outcome = dict(labels)["outcome"]
        if outcome != "committed":
            found[f"transactions {outcome}"] += value
    for reason in ("too_large", "unreadable"):
        found[f"dead letters {reason}"] += metrics.total("streamer_events_dead_lettered_total", reason=reason)
    found["log resets"] += metrics.total("streamer_log_resets_total")
    found["records lost to retention"] += metrics.total("streamer_retention_lost_offsets_total")
    found["machine faults"] += metrics.total("streamer_machine_faults_total")
    found["decoders crashed"] += metrics.total("streamer_decoder_failures_total")
    found["degraded"] += metrics.total("streamer_events_degraded_total")
    for stage in ("store", "delete"):
        found["retries of the store"] += metrics.total("streamer_retries_total", stage=stage)
    found["candidates unavailable"] += metrics.total("streamer_candidates_total", status="unavailable")
    found["reads of replicas"] += metrics.total("streamer_store_replica_reads_total")
    return found
