"""A sweep, compared with one replay of the same run: `python -m bench sweep`.

There are 1,000 topics with 1,000 candidates each, drawn from 20,000 clips of 12 frames (vectors of length 512 in
float16), and 11 alphas, 6 depths and 3 normalizations. *Replay* does what `streamer replay` does: read the run, rerank
it, write the run. *Sweep* does what `streamer sweep` does: read the run and the judgments, measure 198 points, choose
one, cross-validate. In both, text encoding is replaced by a table look-up, and there is one thread. CPU times are
compared, because both only compute and read memory. Half of the first 250 candidates and a tenth of the others are
judged, as in a TRECVID pool.

*Allocated* is the peak of memory allocated while points are measured, without the files' contents, for a twentieth and
for a tenth of the topics (tracing allocations is slow). More topics may only add the measured values.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
import tracemalloc
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.harness.report import spread
from streamer.evaluation import sweep_report, sweep_run, trec
from streamer.evaluation.choice import Caution
from streamer.evaluation.questions import questions_of
from streamer.evaluation.replay import Replay, offline
from streamer.evaluation.sweep import Grid
from streamer.evaluation.variants import Variant
from streamer.method import Method
from streamer.store import Clip, Position, Store, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

NAME = "sweep"
MODEL, AT = "bench", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
FRAMES, A_PUT = 12, 2_000
GRID = Grid(
    tuple(round(0.1 * each, 1) for each in range(11)), (20, 50, 100, 200, 500, 1000), ("minmax", "zscore", "none")
)
STRATA = (("1", 250, 0.5), ("2", 1_000, 0.1))


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a measurement."""

    clips: int = 20_000
    dim: int = 512
    topics: int = 1_000
    candidates: int = 1_000
    rounds: int = 3


QUICK = Scale(clips=300, dim=64, topics=10, candidates=100, rounds=1)


class Texts:
    """An encoder that gives each text a random vector, at almost no cost."""

    model_id = MODEL
    computes_in = "float32"
    computes_on = "cpu"
    vectors_per_frame = 1
    image_batch = 1

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._vectors = _directions(np.random.default_rng(1), 1_000, dim)

    def prepare(self, frame: Any) -> Any:
        """Return the frame unchanged."""
        return frame

    def encode_images(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Raise RuntimeError, because a sweep reads stored vectors."""
        raise RuntimeError(f"a sweep must not encode images, but encodes {len(prepared)}")

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Look up the texts' vectors."""
        return self._vectors[[int(query.split()[-1]) % len(self._vectors) for query in queries]]

    def warm_up(self) -> None:
        """Do nothing."""


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    scale = QUICK if quick else Scale()
    with tempfile.TemporaryDirectory(prefix="sweep-") as name:
        folder = Path(name)
        store = open_store(f"lmdb:{folder / 'store'}", model_id=MODEL, dim=scale.dim)
        with closing(store):
            _fill(store, scale)
            fewest, few, all_topics = (folder / name for name in ("fewest", "few", "all"))
            for part, divisor in ((fewest, 20), (few, 10), (all_topics, 1)):
                part.mkdir()
                _write_files(part, max(2, scale.topics // divisor), scale)
            allocated = [_allocated_mb(part, store, scale) for part in (fewest, few)]
            swept, replayed = [], []
            for _ in range(scale.rounds):
                swept.append(sweep(all_topics, store, scale))
                replayed.append(replay(all_topics, store, scale))
    return {
        "points": len(GRID),
        "topics": scale.topics,
        "candidates": scale.candidates,
        "replay_s": spread(replayed),
        "sweep_s": spread(swept),
        "sweep_to_replay": spread(one / other for one, other in zip(swept, replayed, strict=True)),
        "allocated_mb_of_a_twentieth": allocated[0],
        "allocated_mb_of_a_tenth": allocated[1],
    }


def replay(folder: Path, store: Store, scale: Scale) -> float:
    """Rerank the run at the depth of all its candidates; return the CPU seconds."""
    method = Method(alpha=0.4, depth=scale.candidates, normalization="minmax")
    began = time.process_time()
    run, topics = trec.read_run(folder / "run"), trec.read_topics(folder / "topics")
    made = Replay(offline(method, questions_of(run, topics), Texts(scale.dim), store))
    trec.write_run(folder / "reranked", trec.Run(made.topics, "bench"))
    return time.process_time() - began


def sweep(folder: Path, store: Store, scale: Scale) -> float:
    """Measure all points; return the CPU seconds."""
    began = time.process_time()
    _sweep(*_read(folder), store, scale)
    return time.process_time() - began


def _read(folder: Path) -> tuple[trec.Run, dict[str, str], trec.Qrels]:
    return (
        trec.read_run(folder / "run"),
        trec.read_topics(folder / "topics"),
        trec.read_qrels(folder / "qrels"),
    )


def _sweep(run: trec.Run, topics: dict[str, str], qrels: trec.Qrels, store: Store, scale: Scale) -> None:
    model = sweep_run.Model(MODEL, Texts(scale.dim), store)
    found = sweep_run.sweep(run, topics, qrels, [model], [Variant()], GRID)
    sweep_report.data(found, Caution(), folds=2 if scale is QUICK else 5)


def _allocated_mb(folder: Path, store: Store, scale: Scale) -> float:
    """Sweep files that are already in memory; return the peak of allocated memory, numpy's included, in MiB."""
    files = _read(folder)
    tracemalloc.start()
    _sweep(*files, store, scale)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def _directions(rng: np.random.Generator, count: int, dim: int) -> npt.NDArray[np.float32]:
    vectors = rng.standard_normal((count, dim), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _fill(store: Store, scale: Scale) -> None:
    pool = _directions(np.random.default_rng(0), 4_096, scale.dim)
    times = np.arange(FRAMES, dtype=np.uint32) * np.uint32(500)
    for start in range(0, scale.clips, A_PUT):
        store.put(
            [
                Clip(f"v{number:08d}", AT, Position(1, number), 500 * FRAMES, pool[first : first + FRAMES], times)
                for number in range(start, min(start + A_PUT, scale.clips))
                for first in (number * 61 % (len(pool) - FRAMES),)
            ]
        )


def _write_files(folder: Path, topics: int, scale: Scale) -> None:
    run, judged = {}, {}
    for number in range(topics):
        rng = np.random.default_rng([2, number])
        shots = [f"v{each:08d}" for each in rng.choice(scale.clips, scale.candidates, replace=False).tolist()]
        run[str(number)] = trec.Ranking(tuple(shots), np.sort(rng.standard_normal(len(shots)))[::-1])
        strata, rels = [], []
        for rank in range(len(shots)):
            name, _, rate = next(each for each in STRATA if rank < each[1])
            strata.append(name)
            rels.append(int(rng.random() < 0.15) if rng.random() < rate else -1)  # noqa: PLR2004 - relevant ones
        judged[str(number)] = trec.Judgments.of(shots, strata, rels)
    trec.write_run(folder / "run", trec.Run(run))
    trec.write_qrels(folder / "qrels", trec.Qrels(judged))
    trec.write_topics(folder / "topics", {topic: f"text {topic}" for topic in run})
