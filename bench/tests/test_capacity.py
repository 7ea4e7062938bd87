"""docs/capacity.md agrees with the record format, and the benchmark behind it measures what the page says."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cases import capacity
from streamer.store import record_format

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]


def test_the_capacity_page_speaks_of_records_as_they_are_now() -> None:
    figures = json.loads((ROOT / "docs/bench/capacity.json").read_bytes())["figures"]
    assert figures["record_bytes"] == capacity.record_bytes()
    assert list(figures["stored"]) == list(capacity.PRECISIONS)


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
