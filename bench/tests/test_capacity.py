"""docs/capacity.md agrees with the record format, and the benchmark behind it measures what the page says."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cases import capacity
from streamer.store import record_format

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]


def test_the_capacity_page_speaks_of_records_as_they_are_now() -> None:
    figures = json.loads((ROOT / "docs/bench/capacity.json").read_bytes())["figures"]
    assert figures["record_bytes"] == capacity.record_bytes()
    assert list(figures["stored"]) == list(capacity.PRECISIONS)
    shapes = [(row["vectors"], row["dim"], row["precision"]) for row in figures["memory"]]
    assert shapes == [(*shape, precision) for shape in capacity.MEMORY_SHAPES for precision in capacity.PRECISIONS]


def test_the_memory_of_a_clip_is_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 3 %, with both allocators."""
    figures = json.loads((ROOT / "docs/bench/capacity.json").read_bytes())["figures"]
    monkeypatch.setattr(capacity, "PRECISIONS", ("float16",))
    monkeypatch.setattr(capacity, "MEMORY_SHAPES", capacity.MEMORY_SHAPES[:1])
    [measured] = capacity.memory(count=1_000)
    [told] = [row for row in figures["memory"] if row.items() >= _what(measured).items()]
    for allocator in capacity.ALLOCATORS:
        assert abs(measured[allocator] / told[allocator] - 1) < 0.03
        assert measured[allocator] < 1.04 * measured["record"]


def _what(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("vectors", "dim", "precision", "record")}


def test_what_clips_and_queries_cost_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "PRECISIONS", ("int8",))
    began = time.process_time()
    figures = capacity.stored(count=200, rounds=5)["int8"]
    passed = time.process_time() - began
    ((clip,),) = capacity.clips(1, *capacity.SHAPES[0])
    size = len(record_format.encode(clip, "int8"))
    # A record in LMDB takes whole pages besides those of the tree; in the cluster it takes a block of the allocator.
    assert size < figures["lmdb"]["bytes_a_clip"] < size + 2 * mmap.PAGESIZE
    assert size < figures["cluster"]["bytes_a_clip"] < 1.5 * size
    cpu = [figures[engine]["reader_cpu_s_a_query"] for engine in ("lmdb", "cluster")]
    assert min(cpu) > 0
    assert 5 * sum(cpu) < passed
    assert capacity.CANDIDATES * size < figures["cluster"]["bytes_out_a_query"] < 1.1 * capacity.CANDIDATES * size
    assert 0 < figures["cluster"]["bytes_in_a_query"] < capacity.CANDIDATES * 200
