"""Clips that are decoded and encoded anew, from their files: plain, and several times with other masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamer.evaluation.masks.masking import Masked
from streamer.evaluation.questions import ReplayError
from streamer.video.errors import ClipError
from streamer.video.isolation.pool import decoder_of_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from streamer.encoders import Encoder
    from streamer.settings import Sandbox
    from streamer.video.sampling.sample import Sampling

    Vectors = npt.NDArray[np.float32]
    Prepare = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]

DRAWS = 3
"""So many times clips are decoded with other masks."""
MAX_FILES = 1_000_000


def drawn(names: Iterable[str], most: int, seed: int) -> list[str]:
    """Draw at most ``most`` of the names; the same ones for the same seed and the same names."""
    every = sorted(set(names))
    if len(every) <= most:
        return every
    chosen = np.random.default_rng(seed).choice(len(every), most, replace=False)
    return [every[each] for each in sorted(chosen.tolist())]


def files_of(folder: Path, clip_ids: Iterable[str]) -> dict[str, Path]:
    """Return the files below ``folder`` that are called as clips, with or without an ending.

    Links out of the folder are passed over. Raises :class:`ReplayError` for a folder with too many files.
    """
    wanted, root = set(clip_ids), folder.resolve()
    found: dict[str, Path] = {}
    for number, path in enumerate(folder.rglob("*")):
        if number >= MAX_FILES:
            raise ReplayError(f"{folder}: expected at most {MAX_FILES:,} files")
        relative = path.relative_to(folder)
        for name in (relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem):
            if name in wanted and name not in found and path.resolve().is_relative_to(root) and path.is_file():
                found[name] = path
    return found


class Anew:
    """Decodes clips as the embedder does, and encodes their frames: as they are, or masked."""

    def __init__(self, encoder: Encoder, sampling: Sampling, *, seed: int, sandbox: Sandbox) -> None:
        self._encoder = encoder
        self._sampling = sampling
        self._seed = seed
        self._sandbox = sandbox

    def plain(self, paths: Sequence[Path]) -> Iterator[Vectors | None]:
        """Go through the clips' vectors (n, d); None for a clip that cannot be decoded."""
        return self._vectors(paths, self._encoder.prepare)

    def masked(self, paths: Sequence[Path]) -> list[Iterator[Vectors | None]]:
        """Return :data:`DRAWS` walks through the same clips, each with other masks."""
        prepares = [Masked(self._encoder.prepare, self._seed + draw) for draw in range(DRAWS)]
        return [self._vectors(paths, prepare) for prepare in prepares]

    def _vectors(self, paths: Sequence[Path], prepare: Prepare) -> Iterator[Vectors | None]:
        with decoder_of_one(self._sampling, prepare, sandbox=self._sandbox) as decoder:
            for path in paths:
                try:
                    with decoder.sampled(path) as sampled:
                        vectors = self._encoder.encode_images(sampled.frames)
                except ClipError:
                    yield None
                else:
                    yield vectors.reshape(-1, self._encoder.dim)
