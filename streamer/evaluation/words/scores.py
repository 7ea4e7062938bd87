"""The best-frame scores of pairs of queries: of stored clips, and of the same clips decoded anew with masked frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from streamer.evaluation.questions import ReplayError
from streamer.evaluation.words.masking import Masked
from streamer.store import StoreUnavailableError
from streamer.video.errors import ClipError
from streamer.video.isolation.pool import decoder_of_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from streamer.encoders import Encoder
    from streamer.evaluation.words.lists import WordPair
    from streamer.settings import Sandbox
    from streamer.store import Store
    from streamer.video.sampling.sample import Sampling

    FloatArray = npt.NDArray[np.float64]
    Texts = npt.NDArray[np.float32]

DRAWS = 3
"""So many times a sample is decoded with other masks."""
MAX_FILES = 1_000_000
_TEXTS, _CLIPS = 64, 1_000


class Scored(NamedTuple):
    """The scores (2, p, n) of both queries of p pairs for n clips, which are named in ``clips``."""

    clips: tuple[str, ...]
    scores: FloatArray


class Sensitivity(NamedTuple):
    """The scores of a sample of clips: ``plain`` (2, p, s), and with masked frames, ``masked`` (draws, 2, p, s).

    ``failed``: so many clips of the sample could not be decoded.
    """

    plain: FloatArray
    masked: FloatArray
    failed: int


def texts_of(encoder: Encoder, pairs: Sequence[WordPair]) -> Texts:
    """Return the vectors (2, p, d) of the first and of the second queries."""
    texts = [*(pair.first for pair in pairs), *(pair.second for pair in pairs)]
    vectors = [encoder.encode_texts(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
    found: Texts = np.concatenate(vectors).reshape(2, len(pairs), -1)
    return found


def drawn(clip_ids: Iterable[str], most: int, seed: int) -> list[str]:
    """Draw at most ``most`` of the clips; the same ones for the same seed and the same clips."""
    every = sorted(set(clip_ids))
    if len(every) <= most:
        return every
    chosen = np.random.default_rng(seed).choice(len(every), most, replace=False)
    return [every[each] for each in sorted(chosen.tolist())]


def of_store(store: Store, clip_ids: Sequence[str], texts: Texts) -> Scored:
    """Score clips as the service would; clips without a record are left out.

    Raises :class:`ReplayError` where none has one, and :class:`~streamer.store.StoreUnavailableError`.
    """
    parts = []
    for start in range(0, len(clip_ids), _CLIPS):
        some = clip_ids[start : start + _CLIPS]
        parts.append([[_cosines(store, some, text) for text in side] for side in texts])
    if not parts:
        raise ReplayError("there are no clips to ask for")
    scores = np.concatenate([np.array(each, np.float64) for each in parts], axis=2)
    known = ~np.isnan(scores).any(axis=(0, 1))
    if not known.any():
        raise ReplayError("none of the clips is embedded; see streamer store stats")
    return Scored(
        tuple(clip for clip, is_known in zip(clip_ids, known.tolist(), strict=True) if is_known), scores[:, :, known]
    )


def _cosines(store: Store, clip_ids: Sequence[str], text: npt.NDArray[np.float32]) -> FloatArray:
    scores = store.score(clip_ids, text, None)
    if scores.unavailable:
        raise StoreUnavailableError(scores.why)
    return scores.frame.cosines


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


def sensitivity(
    encoder: Encoder, texts: Texts, paths: Sequence[Path], sampling: Sampling, *, seed: int, sandbox: Sandbox
) -> Sensitivity | None:
    """Decode clips anew, plain and with masked frames, and score them; None where none can be decoded."""
    plain = _scores(encoder, texts, paths, sampling, encoder.prepare, sandbox)
    masked = [
        _scores(encoder, texts, paths, sampling, Masked(encoder.prepare, seed + draw), sandbox) for draw in range(DRAWS)
    ]
    every = np.stack([plain, *masked])
    known = ~np.isnan(every).any(axis=(0, 1, 2))
    if not known.any():
        return None
    return Sensitivity(plain[:, :, known], every[1:, :, :, known], int((~known).sum()))


def _scores(
    encoder: Encoder,
    texts: Texts,
    paths: Sequence[Path],
    sampling: Sampling,
    prepare: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
    sandbox: Sandbox,
) -> FloatArray:
    """Return the scores (2, p, s); NaN for a clip that cannot be decoded."""
    found = np.full((*texts.shape[:2], len(paths)), np.nan)
    flat = texts.reshape(-1, texts.shape[2]).astype(np.float64)
    with decoder_of_one(sampling, prepare, sandbox=sandbox) as decoder:
        for number, path in enumerate(paths):
            try:
                with decoder.sampled(path) as sampled:
                    vectors = encoder.encode_images(sampled.frames).reshape(-1, encoder.dim)
            except ClipError:
                continue
            found[:, :, number] = (flat @ vectors.T.astype(np.float64)).max(axis=1).reshape(texts.shape[:2])
    return found
