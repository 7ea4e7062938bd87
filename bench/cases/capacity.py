"""Measures what stored clips and reads cost; writes docs/bench/capacity.json, from which docs/capacity.md is generated.

    make capacity

Sizes are measured on real stores: the growth of LMDB's disk space and of a Valkey cluster's memory by clips of 16
vectors of length 512. The cost of a query with 100 candidates is the CPU time and the traffic that the cluster's
servers report, because other work on the machine hardly affects these; the reader caches nothing.

The loss of quality by a precision is measured with clips and queries like those of the demo and with the small model:
each query's candidates are reranked with the service's defaults from records in each precision. The interval of a loss
is a bootstrap interval of its mean over the queries.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from bench.harness.machine import about
from bench.harness.report import print_figures
from streamer.encoders import DEMO, load_encoder
from streamer.method import score_clips
from streamer.scoring import rerank
from streamer.settings import Precision
from streamer.store import Clip, Position, Store, StoreOptions, open_store, record_format
from streamer.synthetic.clips import make_queries, render_clips
from streamer.synthetic.engine import BaseEngine
from streamer.synthetic.measures import average_precision
from streamer.vectors import ClipList
from streamer.video.sampling.sample import Sampling, sample
from tests.support.redis_servers import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from streamer.encoders import Encoder

OUT = Path(__file__).parents[2] / "docs" / "bench" / "capacity.json"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SHAPES = ((16, 512), (64, 512), (16, 768), (64, 768))
"""(vectors per clip, their length) for the table of record sizes; clips of the first shape are stored and read."""
CANDIDATES = 100
_A_PUT = 250
_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_UNCACHED = StoreOptions(timeout_s=60, cache_bytes=0)
_INTERVAL_S, _MAX_FRAMES, _ALPHA, _DEPTH = 0.5, 64, 0.4, 100
"""The service's defaults."""
_DRAWS = 2_000


def clips(count: int, vectors: int, dim: int) -> Iterator[list[Clip]]:
    """Generate clips of random vectors, with ids as long as a UUID, in batches."""
    random = np.random.default_rng(5)
    times = np.arange(vectors, dtype=np.uint32) * 500
    for start in range(0, count, _A_PUT):
        numbers = range(start, min(start + _A_PUT, count))
        matrices = random.standard_normal((len(numbers), vectors, dim)).astype(np.float32)
        matrices /= np.linalg.norm(matrices, axis=-1, keepdims=True)
        yield [
            Clip(f"{number:036}", _AT, Position.of("log", number), 8_000, matrix, times)
            for number, matrix in zip(numbers, matrices, strict=True)
        ]


def record_bytes() -> list[dict[str, Any]]:
    """Return the size of one clip's record in each precision, for each shape."""
    rows = []
    for vectors, dim in SHAPES:
        ((clip,),) = clips(1, vectors, dim)
        row: dict[str, Any] = {"vectors": vectors, "dim": dim}
        rows.append(row | {precision: len(record_format.encode(clip, precision)) for precision in PRECISIONS})
    return rows


def stored(count: int, rounds: int) -> dict[str, Any]:
    """Fill stores in each precision; return the size of a clip, and the mean cost of ``rounds`` queries."""
    vectors, dim = SHAPES[0]
    ids = [f"{number:036}" for number in range(count)]
    figures: dict[str, Any] = {}
    for precision in PRECISIONS:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-capacity-")))
            cluster = stack.enter_context(Cluster(folder / "cluster", replicas=False))
            stores = {
                name: stack.enter_context(
                    closing(open_store(url, model_id="m", dim=dim, precision=precision, options=_UNCACHED))
                )
                for name, url in (("lmdb", f"lmdb:{folder / 'store'}"), ("cluster", cluster.url))
            }
            empty = {name: store.stats().bytes for name, store in stores.items()}
            for some in clips(count, vectors, dim):
                for store in stores.values():
                    store.put(some)
            figures[precision] = {
                name: {"bytes_a_clip": (store.stats().bytes - empty[name]) / count} for name, store in stores.items()
            }
            figures[precision]["lmdb"] |= _reads(stores["lmdb"], ids, rounds)
            before = _servers(cluster)
            figures[precision]["cluster"] |= _reads(stores["cluster"], ids, rounds)
            after = _servers(cluster)
            figures[precision]["cluster"] |= {name: (after[name] - before[name]) / rounds for name in after}
    return figures


def _reads(store: Store, ids: list[str], rounds: int) -> dict[str, float]:
    random = np.random.default_rng(6)
    query = np.full(SHAPES[0][1], SHAPES[0][1] ** -0.5, np.float32)
    samples = [[ids[each] for each in random.choice(len(ids), CANDIDATES, replace=False)] for _ in range(rounds)]
    began = time.process_time()
    for wanted in samples:
        with store.read(wanted) as records:
            assert not np.isnan(score_clips(query, records).cosines).any()
    return {"reader_cpu_s_a_query": (time.process_time() - began) / rounds}


def _servers(cluster: Cluster) -> dict[str, float]:
    cpu = net_out = net_in = 0.0
    for node in cluster.nodes:
        with closing(node.client()) as client:
            stats, used = client.info("stats"), client.info("cpu")
        cpu += used["used_cpu_user"] + used["used_cpu_sys"]
        net_out += stats["total_net_output_bytes"]
        net_in += stats["total_net_input_bytes"]
    return {"servers_cpu_s_a_query": cpu, "bytes_out_a_query": net_out, "bytes_in_a_query": net_in}


def losses(clip_count: int, query_count: int, seed: int = 11) -> dict[str, Any]:
    """Rerank new clips from records in each precision; return mean average precision and its loss."""
    encoder = load_encoder(DEMO, None)
    with tempfile.TemporaryDirectory(prefix="bench-capacity-") as folder:
        rendered = render_clips(Path(folder), count=clip_count, seed=seed)
        queries = make_queries(rendered, count=query_count, seed=seed)
        paths = {clip.clip_id: clip.path for clip in rendered}
        engine = BaseEngine(encoder, paths)
        embedded = {clip_id: _embedded(encoder, clip_id, path) for clip_id, path in paths.items()}
        initial = [engine.rank(query.text, top=len(paths)) for query in queries]
    texts = encoder.encode_texts([query.text for query in queries])
    values = {
        precision: {clip_id: record_format.encode(clip, precision) for clip_id, clip in embedded.items()}
        for precision in PRECISIONS
    }
    found: dict[str, list[float]] = {name: [] for name in ("initial", *PRECISIONS)}
    errors: dict[str, float] = dict.fromkeys(PRECISIONS, 0.0)
    firsts: dict[str, int] = dict.fromkeys(PRECISIONS, 0)
    for query, text, ranked in zip(queries, texts, initial, strict=True):
        ids = [clip_id for clip_id, _ in ranked]
        found["initial"].append(average_precision(ids, query.relevant))
        exact: tuple[npt.NDArray[np.float64], str] | None = None
        for precision in PRECISIONS:  # float32 is first: the others are compared with it
            records = ClipList(
                record_format.decode(memoryview(values[precision][each]), each, encoder.dim) for each in ids[:_DEPTH]
            )
            scores, _ = score_clips(text, records)
            ranking = rerank(
                np.array([score for _, score in ranked]), scores, alpha=_ALPHA, depth=_DEPTH, normalization="minmax"
            )
            order = [ids[position] for position in ranking.order]
            found[precision].append(average_precision(order, query.relevant))
            exact = exact or (scores, order[0])
            errors[precision] = max(errors[precision], float(np.abs(scores - exact[0]).max()))
            firsts[precision] += order[0] == exact[1]
    figures: dict[str, Any] = {
        "clips": clip_count,
        "queries": query_count,
        "dim": encoder.dim,
        "initial_map": float(np.mean(found["initial"])),
    }
    for precision in PRECISIONS:
        loss = np.array(found["float32"]) - np.array(found[precision])
        draws = np.random.default_rng(1).choice(loss, (_DRAWS, len(loss))).mean(axis=1)
        figures[precision] = {
            "map": float(np.mean(found[precision])),
            "loss": float(loss.mean()),
            "loss_low": float(np.quantile(draws, 0.025)),
            "loss_high": float(np.quantile(draws, 0.975)),
            "largest_score_error": errors[precision],
            "same_first": firsts[precision] / query_count,
        }
    return figures


def _embedded(encoder: Encoder, clip_id: str, path: Path) -> Clip:
    sampled = sample(path, Sampling(_INTERVAL_S, _MAX_FRAMES), encoder.prepare)
    vectors = encoder.encode_images(sampled.frames).reshape(-1, encoder.dim)
    times = np.repeat(sampled.times_ms, encoder.vectors_per_frame).astype(np.uint32)
    return Clip(clip_id, _AT, Position.of("log", 0), sampled.duration_ms, vectors, times)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    return {
        "shape": {"vectors": SHAPES[0][0], "dim": SHAPES[0][1], "candidates": CANDIDATES},
        "record_bytes": record_bytes(),
        "stored": stored(500, 20) if quick else stored(5_000, 1_000),
        "precision": losses(10, 5) if quick else losses(150, 300),
    }


def main() -> None:
    """Measure, print, and write the figures of docs/capacity.md."""
    results = {**about(), "figures": measure(quick=False)}
    print_figures(results["figures"])
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{OUT}\n")


if __name__ == "__main__":
    main()
