"""The embedder's pipeline in this process, with an encoder that sees a frame's mean colour."""

from __future__ import annotations

import datetime as dt
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.codec import JSON
from streamer.embedder import Embedder
from streamer.events import ClipUploaded
from streamer.health import Health
from streamer.kafka import InFlightRecord, Record
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.synthetic.write import write_h264
from streamer.video.fetching.fetcher import Fetcher
from tests.support.encoders import FakeEncoder
from tests.support.in_process import InProcessDecoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.kafka import Output
    from streamer.store import Clip, Position, Store

DIM = 3
T0 = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


class TwoVectorEncoder(FakeEncoder):
    """Gives two vectors a frame: its mean colour, and the same with the channels reversed. Refuses pure black."""

    vectors_per_frame = 2

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare_square(self, frame: Any) -> Any:
        """Return the frame as it is, so that near duplicates can be told."""
        return frame

    def encode_images(self, prepared: Sequence[Any]) -> Any:
        """Return (n, 2, 3), and note the size of the batch. Raises RuntimeError for a frame that is nearly black."""
        self.batches.append(len(prepared))
        colours = np.stack([frame.reshape(-1, DIM).mean(axis=0) for frame in prepared]).astype(np.float32)
        if (colours.max(axis=1) < 20).any():
            raise RuntimeError("too dark")
        unit = colours / np.linalg.norm(colours, axis=1, keepdims=True)
        return np.stack([unit, unit[:, ::-1]], axis=1)


def clip(path: Path, colour: tuple[int, int, int], *, frames: int = 20) -> Path:
    """Write a clip of one colour, 10 frames per second."""
    write_h264(path, (np.full((64, 64, 3), colour, np.uint8) for _ in range(frames)), fps=10)
    return path


class Harness:
    """Runs records through an embedder and waits until each is done."""

    def __init__(self, folder: Path, store: Any, encoder: TwoVectorEncoder | None = None, **settings: Any) -> None:
        made = load({"fetch_retry_timeout": 0, **settings})
        self.encoder = encoder or TwoVectorEncoder()
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.done = threading.Semaphore(0)
        self.offset = 0
        self.embedder = Embedder(
            made,
            codec=JSON,
            encoder=self.encoder,
            store=store,
            fetcher=Fetcher([folder.as_uri()], max_bytes=1 << 24, timeout=5),
            decoder=InProcessDecoder(self.encoder.prepare),
            metrics=self.metrics,
            health=self.health,
        )

    def work(self, key: str | None, value: bytes | None, at: dt.datetime = T0) -> InFlightRecord:
        """Return the next record of the log; without a value it deletes."""
        self.offset += 1
        encoded = key.encode() if key is not None else None
        record = Record("clips.uploaded", 0, self.offset, encoded, value, (("ce_id", b"9"),), at, log="uploads-0")
        return InFlightRecord(record, self.done.release)

    def upload(self, clip_id: str, path: Path, *, seconds: float = 0) -> InFlightRecord:
        """Return an upload, so many seconds after T0."""
        at = T0 + dt.timedelta(seconds=seconds)
        return self.work(clip_id, JSON.encode(ClipUploaded(clip_id=clip_id, uri=path.as_uri(), uploaded_at=at)))

    def run(self, *works: InFlightRecord) -> list[Sequence[Output]]:
        """Return the outputs of each record."""
        self.embedder.submit(works)
        for _ in works:
            assert self.done.acquire(timeout=20)
        return [work.outputs or () for work in works]


def reason(outputs: Sequence[Output]) -> str:
    """Return the reason of the dead letter that these outputs must be."""
    (output,) = outputs
    assert output.topic == "clips.uploaded.dlq"
    return (dict(output.headers)["dlq.reason"] or b"").decode()


def dominant(store: Store, clip_id: str) -> int | None:
    """Return the strongest channel of a stored clip's first vector, None where it is not stored."""
    with store.read([clip_id]) as (embedding,):
        return None if embedding is None else int(np.argmax(embedding.matrix[0]))


class Recording:
    """A real store that notes what is asked of it, and fails on certain clips for no reason it knows."""

    def __init__(self, store: Store, *, failing: frozenset[str] = frozenset()) -> None:
        self._store = store
        self._failing = failing
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.puts: list[list[tuple[str, Position]]] = []
        self.deletes: list[tuple[str, Position]] = []

    def put(self, clips: Sequence[Clip]) -> Any:
        """Wait until ``go`` is set, and put. Raises ValueError where a clip is among the failing."""
        self.entered.set()
        assert self.go.wait(20)
        self.puts.append([(each.clip_id, each.position) for each in clips])
        if any(each.clip_id in self._failing for each in clips):
            raise ValueError("unforeseen")
        return self._store.put(clips)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> Any:
        """Delete. Raises ValueError where the clip is among the failing."""
        self.deletes.append((clip_id, position))
        if clip_id in self._failing:
            raise ValueError("unforeseen")
        return self._store.delete(clip_id, deleted_at, position)
