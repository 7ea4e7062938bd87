"""What the benchmarks must reach: each bar is a figure of one of them and its limit."""

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
        """Take it as it stands in the results."""
        if isinstance(value, int | float):
            return cls(value, value, value)
        return cls(value["median"], value["min"], value["max"])

    def text(self) -> str:
        """Write it with three significant digits, and its spread where it has one."""
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} [{_short(self.low)} .. {_short(self.high)}]"


def _short(value: float) -> str:
    if 0.99 < abs(value) < 1:  # noqa: PLR2004 - a cosine, of which only the distance to 1 says anything
        return f"{value:.5f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the table: at most or at least ``limit``; without one it is only reported."""

    number: int
    what: str
    benchmark: str
    path: tuple[str, ...]
    at_most: float | None = None
    at_least: float | None = None

    def figure(self, results: Mapping[str, Any]) -> Figure | None:
        """Find its figure; None where it was not measured."""
        node: Any = results.get("benchmarks", {}).get(self.benchmark, {}).get("figures", {})
        for name in self.path:
            if not isinstance(node, dict) or name not in node:
                return None
            node = node[name]
        return None if node is None else Figure.of(node)

    def target(self) -> str:
        """Write the limit."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    def is_met(self, results: Mapping[str, Any]) -> bool | None:
        """Compare the median; None where there is no figure or no limit."""
        figure = self.figure(results)
        if figure is None:
            return None
        if self.at_most is not None:
            return figure.median <= self.at_most
        return None if self.at_least is None else figure.median >= self.at_least


BARS = (
    *(
        Bar(
            1,
            f"Frames of {count} candidates read and scored, {precision}: times the time of reading the same bytes",
            "core",
            (precision, "candidates", count, "core_to_read"),
            at_most=3,
        )
        for precision in ("float16", "int8")
        for count in ("100", "1000")
    ),
    Bar(
        1,
        "A candidate's time among 1,000 to that among 100, float16",
        "core",
        ("float16", "candidate_of_most_to_of_fewest"),
        at_most=1.2,
    ),
    Bar(
        1,
        "A candidate's time with 1,000,000 clips in the store to that with 20,000",
        "core",
        ("growth", "core_large_to_small"),
        at_most=1.2,
    ),
    *(
        Bar(2, f"One query's text of {words} words: times the speed of plain open_clip at full context", "text",
            (f"one_query_of_{words}_words", "ratio_ours"), at_least=4)
        for words in (4, 12)
    ),
    Bar(2, "The least cosine of a text's vector to plain open_clip's, random weights", "text",
        ("one_query_of_12_words", "least_cosine_ours"), at_least=0.9998),
    Bar(2, "The least cosine of a text's vector to plain open_clip's, the trained small model", "text",
        ("trained_small_model", "one_query_of_12_words", "least_cosine_ours"), at_least=0.9998),
    Bar(3, "One reranker on a backlog: share of the ideal 1 / (t_loop + t_core)", "reranking_throughput",
        ("share_of_ideal",), at_least=0.7),
    Bar(3, "One reranker on a backlog, events/s", "reranking_throughput", ("events_per_s",)),
    Bar(4, "Latency at 100 events/s, cached texts: p50 to the hand-written loop's", "reranking_latency",
        ("p50_ratio",), at_most=1.5),
    Bar(4, "Latency at 100 events/s, cached texts: p99 to the hand-written loop's", "reranking_latency",
        ("p99_ratio",), at_most=1.5),
    Bar(4, "Latency at 100 events/s, cached texts: p50 in ms", "reranking_latency", ("service_p50_ms",)),
    Bar(4, "Latency at 100 events/s, cached texts: p99 in ms", "reranking_latency", ("service_p99_ms",)),
    Bar(4, "Latency of texts that are new: p50 to 1.5 times the loop's p50 and 1.5 encodings", "reranking_latency",
        ("uncached_p50_to_allowed_ratio",), at_most=1),
    *(
        Bar(5, f"Events/s to the reranker written with {peer}, {asked}", "reranking_peers", path, at_least=4)
        for peer in ("quixstreams", "faststream")
        for asked, path in (
            ("one text in ten is new", ("new", peer, "times")),
            ("known texts, its settings for a backlog", ("known", peer, "times")),
            ("known texts, its settings for latency", ("committed_each", peer, "times")),
        )
    ),
    *(
        Bar(5, f"p99 to that of {peer}, {asked}", "reranking_peers", (key, peer, "p99_ratio"), at_most=1)
        for peer in ("quixstreams", "faststream")
        for asked, key in (("one text in ten is new", "new"), ("known texts", "known"))
    ),
    Bar(6, "From files to stored vectors, generated 720p clips: times the plain pipeline's clips/s", "embedding",
        ("ratio_clips_per_s_generated",), at_least=3),
    Bar(6, "From files to stored vectors, real files: times the plain pipeline's clips/s", "embedding",
        ("ratio_clips_per_s_real",), at_least=3),
    Bar(6, "The least cosine of a frame's vector to the plain pipeline's", "embedding", ("least_cosine_to_plain",),
        at_least=0.9998),
    Bar(7, "Near-duplicate frames of slow and static clips: share of the encodes saved", "near_duplicates",
        ("small_model_saved_share_slow_and_static",), at_least=0.5),
    Bar(7, "Near-duplicate frames: the largest move of any clip's score", "near_duplicates",
        ("small_model_largest_move",), at_most=0.01),
    Bar(8, "Two rerankers: events per CPU-second of theirs to one's", "scaling", ("cpu_efficiency_of_2",),
        at_least=0.85),
    *(Bar(8, f"Events/s, processes: {count}", "scaling", (f"events_per_s_of_{count}",)) for count in (1, 2, 4)),
    *(
        Bar(8, f"Cores that the broker keeps busy, processes: {count}", "scaling", (f"broker_cores_busy_of_{count}",))
        for count in (1, 2, 4)
    ),
    Bar(10, "From uploaded_at to clips.embedded, idle: to 1.3 times fetch, decode and encode, and 50 ms", "freshness",
        ("idle_latency_to_allowed_ratio",), at_most=1),
    Bar(10, "Under a backlog: a clip's mean wait to what the throughput explains", "freshness",
        ("backlog_mean_to_explained_ratio",)),
    Bar(11, "A sweep of 198 points over 1,000 topics of 1,000 candidates: times one replay of them", "sweep",
        ("sweep_to_replay",), at_most=1.5),
    Bar(12, "Records of 100 candidates from a cluster of 3 nodes: p50 to LMDB's", "store_cluster",
        ("p50_to_lmdb", "buckets_64"), at_most=6),
    Bar(12, "Records of 100 candidates from a cluster of 3 nodes: p50 to one pipelined GET a clip's", "store_cluster",
        ("p50_to_gets", "buckets_64"), at_most=0.5),
    Bar(12, "The same of records that the reader has in memory: p50 to LMDB's", "store_cluster",
        ("p50_to_lmdb", "cached")),
)  # fmt: skip
"""In the order of the table."""
