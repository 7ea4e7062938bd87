"""Reading and scoring a query's candidates, compared with only reading the same bytes: `python bench/cases/core.py`.

Three methods process the records of random clips, in one process and one thread:

- *read*: one new LMDB read transaction, a `get` of each key, and one copy of each value into the same allocated buffer
  of 1 MiB. This is the least work for any method that reads every byte. Keys are made before the clock starts.
- *core*: `store.score`, as the reranker calls it: from clip ids to a cosine and a moment for each
  candidate, with every checksum verified.
- *numpy*: the obvious implementation: `store.read`, and for each clip its matrix as float32, one product, one argmax.

Clips have 1 to 64 vectors, 16 on average (a truncated geometric distribution). The methods take turns, query by query.
All process the same sets of candidates, but shifted by a third of them, so that no method finds in the CPU's cache what
another one has just read; all records are in the page cache. Queries are divided into five parts. A ratio is the ratio
of a part's medians; its median over the parts is reported, with the smallest and the largest in brackets.

*Growth* compares *core* on a store of 20,000 clips with *core* on a store of 1,000,000. Vectors have length 128 in
float16 (6 GB), because the store must fit into the page cache. Both are read once before; queries alternate.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import statistics
import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bench.harness.report import spread
from streamer.store import Clip, Position, record_format
from streamer.store.lmdb.store import LmdbStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from streamer.settings import Precision

NAME = "core"

MODEL, AT = "bench", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MOST_VECTORS, MEAN_VECTORS = 64, 16
PRECISIONS: tuple[Precision, ...] = ("float16", "int8")
A_PUT = 2_000
PARTS = 5
CLOSE = 3e-5
"""Tolerated error of a cosine: a hundredth of that of int8 storage. float16 and float32 are far closer to float64."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a measurement."""

    clips: int = 20_000
    dim: int = 512
    candidates: tuple[int, ...] = (100, 300, 1_000)
    rounds: int = 300
    """Number of queries of 100 candidates; with more candidates there are proportionally fewer queries."""
    large: int = 1_000_000
    large_dim: int = 128


QUICK = Scale(clips=1_500, dim=64, candidates=(10, 100), rounds=10, large=3_000, large_dim=64)


class Bench:
    """A store of generated clips, and the methods to process it."""

    def __init__(self, folder: Path, *, clips: int, dim: int, precision: Precision) -> None:
        self.clips = clips
        self._random = np.random.default_rng(7)
        self._pool = _directions(self._random, 4_096, dim)
        self.query = _directions(self._random, 1, dim)[0]
        self._lengths = _lengths(self._random, clips)
        self._prefix = record_format.model_prefix(MODEL)
        self._target = memoryview(bytearray(1 << 20))
        self.store = LmdbStore(folder, model_id=MODEL, dim=dim, precision=precision)
        for start in range(0, clips, A_PUT):
            self.store.put([self._clip(number) for number in range(start, min(start + A_PUT, clips))])

    @property
    def mean_vectors(self) -> float:
        """Mean number of vectors per clip."""
        return float(self._lengths.mean())

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.store.stats().bytes

    def some_ids(self, count: int) -> list[str]:
        """Choose clips at random."""
        return [self._id(number) for number in self._random.integers(0, self.clips, count).tolist()]

    def warm(self) -> None:
        """Read the whole store once, so that it is in the page cache and mapped by this process."""
        for start in range(0, self.clips, A_PUT):
            self.core([self._id(number) for number in range(start, min(start + A_PUT, self.clips))])

    def read(self, ids: Sequence[str]) -> float:
        """Return the seconds of *read*."""
        keys = record_format.keys(self._prefix, ids)
        environment = self.store._opened()._lmdb
        assert environment is not None
        target = self._target
        began = time.perf_counter()
        with environment.begin(buffers=True) as transaction:
            get = cast("Callable[[bytes], memoryview]", transaction.get)
            for key in keys:
                value = get(key)
                target[: len(value)] = value
        return time.perf_counter() - began

    def core(self, ids: Sequence[str]) -> float:
        """Return the seconds of *core*."""
        began = time.perf_counter()
        self.store.score(ids, self.query, None)
        return time.perf_counter() - began

    def numpy(self, ids: Sequence[str]) -> float:
        """Return the seconds of *numpy*."""
        began = time.perf_counter()
        with self.store.read(ids) as records:
            for clip in records:
                assert clip is not None
                similarities = clip.matrix.astype(np.float32) @ self.query
                if clip.scales is not None:
                    similarities *= clip.scales
                best = similarities.argmax()
                _ = float(similarities[best]), int(clip.times_ms[best])
        return time.perf_counter() - began

    def check(self, ids: Sequence[str]) -> None:
        """Assert that *core* gives the same results as float64 arithmetic."""
        scores = self.store.score(ids, self.query, None).frame
        with self.store.read(ids) as records:
            for clip, cosine, moment in zip(records, *scores, strict=True):
                assert clip is not None
                similarities = clip.matrix.astype(np.float64) @ self.query
                if clip.scales is not None:
                    similarities *= clip.scales
                assert abs(similarities.max() - cosine) < CLOSE
                assert similarities.max() - similarities[int(moment) // 500] < CLOSE

    def _clip(self, number: int) -> Clip:
        length = int(self._lengths[number])
        first = number * 61 % (len(self._pool) - MOST_VECTORS)
        times = np.arange(length, dtype=np.uint32) * np.uint32(500)
        position = Position(1, number)
        return Clip(self._id(number), AT, position, 500 * length, self._pool[first : first + length], times)

    @staticmethod
    def _id(number: int) -> str:
        return f"clip-{number:08d}"


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    return run(QUICK if quick else Scale())


def run(scale: Scale, folder: Path | None = None) -> dict[str, Any]:
    """Measure at a given scale; stores are created in ``folder`` and removed afterwards."""
    figures: dict[str, Any] = {}
    for precision in PRECISIONS:
        with _bench(folder, scale.clips, scale.dim, precision) as bench:
            bench.check(bench.some_ids(100))
            sizes = {str(count): _ratios(bench, count, scale) for count in scale.candidates}
            first, last = sizes[str(scale.candidates[0])], sizes[str(scale.candidates[-1])]
            figures[precision] = {
                "clips": bench.clips,
                "dim": scale.dim,
                "mean_vectors": round(bench.mean_vectors, 2),
                "store_bytes": bench.bytes,
                "candidates": sizes,
                "candidate_of_most_to_of_fewest": last["core_us_a_candidate"] / first["core_us_a_candidate"],
            }
    figures["growth"] = _growth(scale, folder)
    return figures


def _ratios(bench: Bench, count: int, scale: Scale) -> dict[str, Any]:
    """Compare the three methods on queries of ``count`` candidates."""
    sets = [bench.some_ids(count) for _ in range(max(2 * PARTS, scale.rounds * 100 // count))]
    read, core, numpy = _in_turn([bench.read, bench.core, bench.numpy], sets)
    return {
        "read_us_a_candidate": _median_us(read, count),
        "core_us_a_candidate": _median_us(core, count),
        "core_to_read": _ratio(core, read),
        "numpy_to_read": _ratio(numpy, read),
        "numpy_to_core": _ratio(numpy, core),
    }


def _growth(scale: Scale, folder: Path | None) -> dict[str, Any]:
    """Compare *core* on a small and on a large store."""
    count, precision = 100, PRECISIONS[0]
    with (
        _bench(folder, scale.clips, scale.large_dim, precision) as small,
        _bench(folder, scale.large, scale.large_dim, precision) as large,
    ):
        small.warm()
        large.warm()
        few, many, few_read, many_read = [], [], [], []
        for _ in range(scale.rounds):
            few.append(small.core(small.some_ids(count)))
            many.append(large.core(large.some_ids(count)))
            few_read.append(small.read(small.some_ids(count)))
            many_read.append(large.read(large.some_ids(count)))
        return {
            "precision": precision,
            "dim": scale.large_dim,
            "clips": [small.clips, large.clips],
            "store_bytes": [small.bytes, large.bytes],
            "candidates": count,
            "core_us_a_candidate": [_median_us(few, count), _median_us(many, count)],
            "core_large_to_small": _ratio(many, few),
            "read_large_to_small": _ratio(many_read, few_read),
        }


def _in_turn(ways: Sequence[Callable[[Sequence[str]], float]], sets: Sequence[Sequence[str]]) -> Iterator[list[float]]:
    """Run each method on all sets, each shifted by a part of them; return the seconds of each method."""
    seconds: list[list[float]] = [[] for _ in ways]
    gc.collect()
    for turn in range(len(sets)):
        for number, way in enumerate(ways):
            seconds[number].append(way(sets[(turn + number * len(sets) // len(ways)) % len(sets)]))
    return iter(seconds)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the medians in each part of the run, as their median, smallest and largest."""
    parts = [(ours[part::PARTS], theirs[part::PARTS]) for part in range(PARTS)]
    return spread(statistics.median(one) / statistics.median(other) for one, other in parts if one)


def _median_us(seconds: Sequence[float], count: int) -> float:
    return statistics.median(seconds) / count * 1e6


def _directions(random: np.random.Generator, count: int, dim: int) -> npt.NDArray[np.float32]:
    vectors = random.standard_normal((count, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _lengths(random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Draw numbers of vectors from 1 to 64; truncating the distribution lowers its mean by 1.3."""
    drawn = random.geometric(1 / (MEAN_VECTORS + 1.3), 2 * count)
    return drawn[drawn <= MOST_VECTORS][:count]


@contextmanager
def _bench(folder: Path | None, clips: int, dim: int, precision: Precision) -> Iterator[Bench]:
    """Provide a filled store during the block."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="core-") as name:
        bench = Bench(Path(name), clips=clips, dim=dim, precision=precision)
        with closing(bench.store):
            yield bench


def main() -> None:
    """Measure and print."""
    scale = Scale()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=scale.clips)
    parser.add_argument("--dim", type=int, default=scale.dim)
    parser.add_argument("--rounds", type=int, default=scale.rounds, help="queries of 100 candidates")
    parser.add_argument("--large", type=int, default=scale.large, help="clips of the large store")
    parser.add_argument("--large-dim", type=int, default=scale.large_dim)
    parser.add_argument("--folder", type=Path, help="where stores are created, and removed afterwards")
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    figures = run(Scale(**options), folder)
    for precision in PRECISIONS:
        part = figures[precision]
        print(f"{precision}, {part['clips']} clips of {part['mean_vectors']} x {part['dim']}:")
        print("| candidates | read, us each | core, us each | core / read | numpy / read |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        for count, row in part["candidates"].items():
            cells = (row["read_us_a_candidate"], row["core_us_a_candidate"], row["core_to_read"], row["numpy_to_read"])
            print("|", " | ".join([count, *map(_text, cells)]), "|")
        relative = part["candidate_of_most_to_of_fewest"]
        print(f"time per candidate of the largest query relative to the smallest: {relative:.2f}")
    growth = figures["growth"]
    print(
        f"growth: {growth['clips']} clips of {growth['dim']} in {growth['precision']}, {growth['store_bytes']} bytes:"
    )
    for name in ("core_us_a_candidate", "core_large_to_small", "read_large_to_small"):
        print(f"{name}: {_text(growth[name])}")


def _text(figure: Any) -> str:
    if isinstance(figure, dict):
        return f"{figure['median']:.2f} ({figure['min']:.2f} to {figure['max']:.2f})"
    return ", ".join(map(_text, figure)) if isinstance(figure, list) else f"{figure:.2f}"


if __name__ == "__main__":
    main()
