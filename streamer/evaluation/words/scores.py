"""The best-frame scores of pairs of queries: of stored clips, and of the same clips decoded anew with masked frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from streamer.evaluation.questions import ReplayError
from streamer.store import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from streamer.encoders import Encoder
    from streamer.evaluation.masks.anew import Anew, Vectors
    from streamer.evaluation.words.lists import WordPair
    from streamer.store import Store

    FloatArray = npt.NDArray[np.float64]
    Texts = npt.NDArray[np.float32]

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


def sensitivity(anew: Anew, texts: Texts, paths: Sequence[Path]) -> Sensitivity | None:
    """Decode clips anew, plain and with masked frames, and score them; None where none can be decoded."""
    every = np.stack([_scores(vectors, texts, len(paths)) for vectors in (anew.plain(paths), *anew.masked(paths))])
    known = ~np.isnan(every).any(axis=(0, 1, 2))
    if not known.any():
        return None
    return Sensitivity(every[0][:, :, known], every[1:, :, :, known], int((~known).sum()))


def _scores(clips: Iterable[Vectors | None], texts: Texts, count: int) -> FloatArray:
    """Return the scores (2, p, count); NaN for a clip that cannot be decoded."""
    found = np.full((*texts.shape[:2], count), np.nan)
    flat = texts.reshape(-1, texts.shape[2]).astype(np.float64)
    for number, vectors in enumerate(clips):
        if vectors is not None:
            found[:, :, number] = (flat @ vectors.T.astype(np.float64)).max(axis=1).reshape(texts.shape[:2])
    return found
