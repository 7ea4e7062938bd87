"""The benchmarks' targets: each is a figure of one benchmark and its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Figure(NamedTuple):
    """A figure of a run: the median and the smallest and largest of its repetitions; one number has no spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float | Mapping[str, float]) -> Figure:
        """Read a figure from the results."""
        if isinstance(value, int | float):
            return cls(value, value, value)
        return cls(value["median"], value["min"], value["max"])

    def text(self) -> str:
        """Format the median with three significant digits, and the spread if there is one."""
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} [{_short(self.low)} .. {_short(self.high)}]"


def _short(value: float) -> str:
    if 0.99 < abs(value) < 1:  # noqa: PLR2004 - a cosine: its distance from 1 must be visible
        return f"{value:.5f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table: a figure and its limit. Without a limit, the figure is only reported."""

    what: str
    benchmark: str
    path: tuple[str, ...]
    at_most: float | None = None
    at_least: float | None = None

    def figure(self, results: Mapping[str, Any]) -> Figure | None:
        """Return the figure; None if it was not measured."""
        node: Any = results.get("benchmarks", {}).get(self.benchmark, {}).get("figures", {})
        for name in self.path:
            if not isinstance(node, dict) or name not in node:
                return None
            node = node[name]
        return None if node is None else Figure.of(node)

    def limit(self) -> str:
        """Return the limit as text."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    def is_met(self, results: Mapping[str, Any]) -> bool | None:
        """Return whether the median meets the limit; None without a figure or a limit."""
        figure = self.figure(results)
        if figure is None:
            return None
        if self.at_most is not None:
            return figure.median <= self.at_most
        return None if self.at_least is None else figure.median >= self.at_least


_PEERS = {"quixstreams": "Quix Streams", "faststream": "FastStream"}

TARGETS = (
    *(
        Target(
            f"Read and score the frames of {count} candidates, {precision}: time relative to reading the same bytes",
            "core",
            (precision, "candidates", count, "core_to_read"),
            at_most=3,
        )
        for precision in ("float16", "int8")
        for count in ("100", "1000")
    ),
    Target(
        "Time per candidate with 1,000 candidates relative to 100, float16",
        "core",
        ("float16", "candidate_of_most_to_of_fewest"),
        at_most=1.2,
    ),
    Target(
        "Time per candidate with 1,000,000 clips in the store relative to 20,000",
        "core",
        ("growth", "core_large_to_small"),
        at_most=1.2,
    ),
    *(
        Target(f"Encode one query of {words} words: speed relative to open_clip at full context length", "text",
            (f"one_query_of_{words}_words", "ratio_ours"), at_least=4)
        for words in (4, 12)
    ),
    Target("Smallest cosine between a text vector and open_clip's, random weights", "text",
        ("one_query_of_12_words", "least_cosine_ours"), at_least=0.9998),
    Target("Smallest cosine between a text vector and open_clip's, small demo model", "text",
        ("trained_small_model", "one_query_of_12_words", "least_cosine_ours"), at_least=0.9998),
    Target("One reranker with a backlog: share of the ideal throughput 1 / (t_loop + t_core)", "reranking_throughput",
        ("share_of_ideal",), at_least=0.7),
    Target("One reranker with a backlog: events/s", "reranking_throughput", ("events_per_s",)),
    Target("Latency at 100 events/s, cached queries: p50 relative to the hand-written loop", "reranking_latency",
        ("p50_ratio",), at_most=1.5),
    Target("Latency at 100 events/s, cached queries: p99 relative to the hand-written loop", "reranking_latency",
        ("p99_ratio",), at_most=1.5),
    Target("Latency at 100 events/s, cached queries: p50 in ms", "reranking_latency", ("service_p50_ms",)),
    Target("Latency at 100 events/s, cached queries: p99 in ms", "reranking_latency", ("service_p99_ms",)),
    Target("Latency of uncached queries: p50 relative to 1.5 x (the loop's p50 + one encoding)", "reranking_latency",
        ("uncached_p50_to_allowed_ratio",), at_most=1),
    *(
        Target(f"Throughput relative to a {name} implementation, {queries}", "reranking_peers", path, at_least=4)
        for peer, name in _PEERS.items()
        for queries, path in (
            ("10 % uncached queries", ("new", peer, "times")),
            ("cached queries, tuned for throughput", ("known", peer, "times")),
            ("cached queries, tuned for latency", ("committed_each", peer, "times")),
        )
    ),
    *(
        Target(f"p99 latency relative to a {name} implementation, {queries}", "reranking_peers",
            (key, peer, "p99_ratio"), at_most=1)
        for peer, name in _PEERS.items()
        for queries, key in (("10 % uncached queries", "new"), ("cached queries", "known"))
    ),
    Target("Files to stored vectors, generated 720p clips: clips/s relative to a plain pipeline", "embedding",
        ("ratio_clips_per_s_generated",), at_least=3),
    Target("Files to stored vectors, real files: clips/s relative to a plain pipeline", "embedding",
        ("ratio_clips_per_s_real",), at_least=3),
    Target("Smallest cosine between a frame vector and the plain pipeline's", "embedding", ("least_cosine_to_plain",),
        at_least=0.9998),
    Target("Near-duplicate frames of slow and static clips: share of encodings saved", "near_duplicates",
        ("small_model_saved_share_slow_and_static",), at_least=0.5),
    Target("Near-duplicate frames: largest change of a clip's score", "near_duplicates",
        ("small_model_largest_move",), at_most=0.01),
    Target("Two rerankers: events per CPU-second relative to one reranker", "scaling", ("cpu_efficiency_of_2",),
        at_least=0.85),
    *(
        Target(f"Events/s, number of rerankers: {count}", "scaling", (f"events_per_s_of_{count}",))
        for count in (1, 2, 4)
    ),
    *(
        Target(f"Cores used by the broker, number of rerankers: {count}", "scaling", (f"broker_cores_busy_of_{count}",))
        for count in (1, 2, 4)
    ),
    Target("From uploaded_at to clips.embedded when idle: relative to 1.3 x (fetch + decode + encode) + 50 ms",
        "freshness", ("idle_latency_to_allowed_ratio",), at_most=1),
    Target("With a backlog: mean wait of a clip relative to what the throughput explains", "freshness",
        ("backlog_mean_to_explained_ratio",)),
    Target("A sweep of 198 points over 1,000 topics with 1,000 candidates: time relative to one replay", "sweep",
        ("sweep_to_replay",), at_most=1.5),
    Target("Read 100 candidates from a cluster of 3 nodes: p50 relative to LMDB", "store_cluster",
        ("p50_to_lmdb", "buckets_64"), at_most=6),
    Target("Read 100 candidates from a cluster of 3 nodes: p50 relative to one pipelined GET per clip", "store_cluster",
        ("p50_to_gets", "buckets_64"), at_most=0.5),
    Target("The same with all records in the reader's cache: p50 relative to LMDB", "store_cluster",
        ("p50_to_lmdb", "cached")),
)  # fmt: skip
"""All targets, in the order of the table."""
