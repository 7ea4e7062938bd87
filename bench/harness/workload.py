"""What the reranker's benchmarks share: a model, a filled store, query events, and a broker with topics."""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import orjson
import torch
from safetensors.torch import save_model

from streamer.encoders import DEMO, load_encoder
from streamer.local_kafka.broker import LocalKafka
from streamer.store import Clip, Position, open_store
from tests.support.driver import RERANKED, RESULTS, Bus, Record, apply_topics, environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from streamer.encoders import Encoder
    from streamer.store import Store

__all__ = ["RERANKED", "RESULTS"]

MODEL = "ViT-B-32"
CANDIDATES = 100
TEXTS = [f"a {colour} {thing} in the {place}" for colour in ("red", "blue", "black", "yellow")
         for thing in ("bicycle", "car", "dog", "kite", "boat") for place in ("rain", "park", "street")]  # fmt: skip
"""The few query texts of a run in which query vectors are cached."""

_MEAN_FRAMES, _MAX_FRAMES = 16, 64
_CLIPS_A_WRITE = 1_000
_POOL = 4_096


def make_model(folder: Path, name: str = MODEL) -> dict[str, str]:
    """Write a model with random weights and return the settings that select it.

    Speed does not depend on the weights, and trained ones cannot be downloaded everywhere.
    """
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    save_model(open_clip.create_model(name, load_weights=False), str(path))
    return {"STREAMER_MODEL": name, "STREAMER_PRETRAINED": str(path)}


def frame_counts(clips: int, draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw each clip's number of frames, 1 to 64: many short clips and few long ones, 16 on average."""
    return draw.exponential(_MEAN_FRAMES, clips).round().clip(1, _MAX_FRAMES).astype(np.int64)


def clip_id(number: int) -> str:
    """Return the id of a clip, as long as ids of video platforms are."""
    return f"v{number:011d}"


def clips(count: int, dim: int) -> Iterator[Clip]:
    """Generate clips of random unit vectors; speed does not depend on their directions."""
    draw = np.random.default_rng(0)
    pool = draw.standard_normal((_POOL, dim), dtype=np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    uploaded_at = dt.datetime.now(dt.UTC)
    for number, frames in enumerate(frame_counts(count, draw).tolist()):
        first = int(draw.integers(_POOL - frames))
        times = np.arange(frames, dtype=np.uint32) * 500
        yield Clip(
            clip_id(number),
            uploaded_at,
            Position.of("bench", number),
            500 * frames,
            pool[first : first + frames],
            times,
        )


def fill(store: Store, count: int, dim: int) -> None:
    """Write ``count`` generated clips to the store."""
    waiting: list[Clip] = []
    for clip in clips(count, dim):
        waiting.append(clip)
        if len(waiting) == _CLIPS_A_WRITE:
            store.put(waiting)
            waiting = []
    if waiting:
        store.put(waiting)


def candidates(number: int, clip_count: int) -> list[str]:
    """Return the ids of a query's candidates, spread over the whole store."""
    draw = np.random.default_rng(number)
    return [clip_id(each) for each in draw.choice(clip_count, CANDIDATES, replace=False).tolist()]


def query(number: int, text: str, clip_ids: Sequence[str]) -> Record:
    """Return a record of query.results; with 100 candidates it has about 5 KB."""
    query_id = f"q{number}"
    event: dict[str, Any] = {
        "query_id": query_id,
        "query": text,
        "engine": "bm25-v3",
        "issued_at": dt.datetime.now(dt.UTC).isoformat(),
        "results": [
            {"clip_id": each, "score": 31.4159265358 - rank * 0.123456789} for rank, each in enumerate(clip_ids)
        ],
    }
    return Record(query_id.encode(), orjson.dumps(event))


def texts(count: int, *, first: int = 0, new_every: int = 0) -> Iterator[str]:
    """Yield ``count`` of :data:`TEXTS` in turn; one in ``new_every`` is made unique by its number, from ``first``."""
    for number in range(first, first + count):
        text = TEXTS[number % len(TEXTS)]
        yield f"{text} {number}" if new_every and not number % new_every else text


def queries(count: int, clip_count: int, *, first: int = 0, new_every: int = 0) -> list[Record]:
    """Return ``count`` queries with these :func:`texts`, numbered from ``first``."""
    # Choosing 100 of 20,000 clips takes longer than the rest, and a thousand different lists are enough.
    lists = [candidates(number, clip_count) for number in range(min(count, 1_000))]
    return [
        query(number, text, lists[number % len(lists)])
        for number, text in enumerate(texts(count, first=first, new_every=new_every), start=first)
    ]


@dataclass(frozen=True, slots=True)
class Setup:
    """A broker, a model and a filled store for one benchmark."""

    kafka: LocalKafka
    folder: Path
    settings: dict[str, str]
    """The settings that select the model."""
    encoder: Encoder
    clip_count: int
    store_path: Path

    def store(self) -> Store:
        """Open the store as the service does."""
        url = f"lmdb:{self.store_path}"
        return open_store(url, model_id=self.encoder.model_id, dim=self.encoder.dim, read_only=True)

    def bus(self, prefix: str) -> Bus:
        """Create the topics of topics.toml with a prefix, and return a client for them."""
        bus = Bus(self.kafka.bootstrap_servers, f"{prefix}.")
        apply_topics(self.variables(bus), self.folder)
        return bus

    def variables(self, bus: Bus, **settings: str) -> dict[str, str]:
        """Return the environment of a service on these topics."""
        return environment(bus, self.store_path, [], **({"STREAMER_METRICS_PORT": "0"} | self.settings | settings))


@contextmanager
def set_up(*, quick: bool, clip_count: int = 20_000) -> Iterator[Setup]:
    """Start a broker and fill a store; ``quick``: few clips, and the demo's small model."""
    count = min(clip_count, 500) if quick else clip_count
    with TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = {"STREAMER_MODEL": DEMO} if quick else make_model(folder)
        encoder = load_encoder(settings["STREAMER_MODEL"], settings.get("STREAMER_PRETRAINED"))
        store = open_store(f"lmdb:{folder / 'store'}", model_id=encoder.model_id, dim=encoder.dim)
        fill(store, count, encoder.dim)
        store.close()
        with LocalKafka() as kafka:
            yield Setup(kafka, folder, settings, encoder, count, folder / "store")


def publish(bus: Bus, records: Sequence[Record]) -> None:
    """Publish queries in the given order."""
    bus.publish(RESULTS, records)
