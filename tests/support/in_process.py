"""A decoder without processes of its own, for tests whose encoders another process could not import."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streamer.video import SampledClip, Sampling
from streamer.video.sampling.sample import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class InProcessDecoder:
    """Samples every half second, one clip at a time in each of ``places``."""

    def __init__(self, prepare: Callable[[Any], Any], *, places: int = 2, duplicate_threshold: float = 0) -> None:
        self._prepare = prepare
        self._sampling = Sampling(interval=0.5, max_frames=64, duplicate_threshold=duplicate_threshold)
        self._places = threading.BoundedSemaphore(places)

    @contextmanager
    def sampled(self, path: Path) -> Iterator[SampledClip[Any]]:
        with self._places:
            yield sample(path, self._sampling, self._prepare)
