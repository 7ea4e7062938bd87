"""Frames and vectors that wait are bounded in bytes, and the loop is never held up."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer import embedder
from tests.support.embedding import DIM, Harness, Recording, TwoVectorEncoder
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from streamer.store import Store


class Gated(TwoVectorEncoder):
    """Prepares frames of a mebibyte, and encodes none before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self._made: list[weakref.ref[Any]] = []

    @property
    def alive(self) -> int:
        return sum(made() is not None for made in self._made)

    def prepare(self, frame: Any) -> Any:
        made = np.full((1 << 18,), frame.reshape(-1, 3).mean(axis=0)[0], np.float32)
        self._made.append(weakref.ref(made))
        return made

    def encode_images(self, prepared: Sequence[Any]) -> Any:
        assert self.go.wait(60)
        return np.ones((len(prepared), 2, DIM), np.float32) / np.float32(np.sqrt(DIM))


def test_frames_that_wait_for_the_encoder_are_bounded_in_bytes_and_the_loop_is_never_held_up(
    tmp_path: Path, store: Store, red: Path
) -> None:
    gated = Gated()
    harness = Harness(tmp_path, store, gated, queue_bytes=6 << 20, image_batch=4)
    works = [harness.upload(f"c{number}", red) for number in range(30)]  # of 4 frames each
    harness.embedder.submit(works)
    wait_until(lambda: gated.alive >= 16)
    time.sleep(1)
    # A clip in the encoder, two in the queue, and one with each decoder.
    assert gated.alive <= 4 * 5
    began = time.monotonic()
    deletes = [harness.work(f"d{number}", None) for number in range(300)]
    assert len(harness.run(*deletes)) == 300
    assert time.monotonic() - began < 20
    gated.go.set()
    for _ in works:
        assert harness.done.acquire(timeout=20)
    wait_until(lambda: gated.alive == 0)


def test_vectors_that_wait_for_the_store_hold_back_the_encoder_and_no_frames(
    tmp_path: Path, store: Store, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(store)
    recording.go.clear()
    monkeypatch.setattr(embedder, "_bytes_to_store", lambda _item: 1 << 20)
    gated = Gated()
    gated.go.set()
    harness = Harness(tmp_path, recording, gated, queue_bytes=3 << 20, image_batch=4)
    works = [harness.upload(f"c{number}", red) for number in range(20)]
    harness.embedder.submit(works)
    assert recording.entered.wait(20)
    queue = harness.embedder._storing._queue
    wait_until(lambda: len(queue._entries) == 3)
    time.sleep(0.5)
    assert len(queue._entries) == 3
    # The queue is full for the loop's thread, and for the store's own, which queues what follows in a clip's turn.
    deletes = [harness.work(key, None) for key in ("unknown", *(f"c{number}" for number in range(20)))]
    loop = threading.Thread(target=harness.embedder.submit, args=(deletes,), daemon=True)
    loop.start()
    loop.join(10)
    assert not loop.is_alive()
    recording.go.set()
    for _ in range(len(works) + len(deletes)):
        assert harness.done.acquire(timeout=20)
    assert list(store.clip_ids()) == []
