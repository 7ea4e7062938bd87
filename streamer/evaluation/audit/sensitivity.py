"""By how much an audit's figures move where a part of each frame is masked.

Masks say nothing of who is shown, and yet they move figures of bias (by up to 43 %: ICCV 2025, arXiv 2509.07596). So
some answers are made once more: their clips are decoded and encoded anew, plain and with masks, and ranked by the
method that the answer states. The sensitivity of a group is the most by which masks move its mean exposure in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.evaluation.audit.exposure import exposure
from streamer.method import method_of
from streamer.scoring import FrameScorer, rerank
from streamer.vectors import Block

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from streamer.evaluation.audit.groups import Catalogue, FloatArray, Groups
    from streamer.evaluation.audit.lists import Lists
    from streamer.evaluation.masks.anew import Anew, Vectors
    from streamer.events import QueryReranked

    Scores = dict[tuple[int, str], float]
    Texts = Sequence[npt.NDArray[np.float32]]

MOST_ANSWERS = 200
"""So many answers are kept in memory, of which some are made once more."""


class Masking(NamedTuple):
    """The sensitivity (g,) of each group of each attribute, and what it rests on.

    ``queries`` answers were made once more; ``clips`` were decoded anew, ``failed`` could not be. ``share`` of the
    candidates with a frame score were scored anew; the others keep the score that was served.
    """

    moves: list[FloatArray]
    queries: int
    clips: int
    failed: int
    share: float


class Drawn:
    """Passes lists on, and keeps some answers, each as likely; the same ones for the same seed and lists."""

    def __init__(self, lists: Iterable[Lists], seed: int) -> None:
        self._lists = lists
        self._rng = np.random.default_rng(seed)
        self._kept: list[QueryReranked] = []

    def __iter__(self) -> Iterator[Lists]:
        """Go through the lists once."""
        seen = 0
        for each in self._lists:
            yield each
            if each.answer is None or not _scored(each.answer):
                continue
            seen += 1
            if len(self._kept) < MOST_ANSWERS:
                self._kept.append(each.answer)
            elif (place := int(self._rng.integers(seen))) < MOST_ANSWERS:
                self._kept[place] = each.answer

    def answers(self) -> list[QueryReranked]:
        """Return the answers that were kept, in an order of chance."""
        return [self._kept[each] for each in self._rng.permutation(len(self._kept)).tolist()]


def chosen(
    answers: Iterable[QueryReranked], files: Mapping[str, Path], most: int
) -> tuple[list[QueryReranked], list[str]]:
    """Return the first answers of which at most ``most`` clips have a file (but one answer at least), and the clips.

    Answers of which no scored clip has a file are left out.
    """
    found: list[QueryReranked] = []
    clips: dict[str, None] = {}
    for answer in answers:
        own = [clip for clip in _scored(answer) if clip in files]
        if not own:
            continue
        together = clips | dict.fromkeys(own)
        if found and len(together) > max(most, len(clips)):
            break
        found.append(answer)
        clips = together
    return found, list(clips)


def measure(
    answers: Sequence[QueryReranked],
    clips: Sequence[str],
    *,
    texts: Texts,
    files: Mapping[str, Path],
    anew: Anew,
    groups: Sequence[Groups],
    catalogue: Catalogue,
    top: int,
) -> Masking | None:
    """Make answers once more from the files of some clips; ``texts`` are the vectors (d,) of the answers' queries.

    Returns None where no clip can be decoded.
    """
    paths = [files[clip] for clip in clips]
    every = [_scores(answers, clips, walk, texts) for walk in (anew.plain(paths), *anew.masked(paths))]
    # A clip counts only where it could be decoded each time.
    decoded = set.intersection(*({clip for _, clip in scores} for scores in every))
    if not decoded:
        return None

    def exposed(scores: Scores) -> list[FloatArray]:
        orders = [_order(answer, number, scores, decoded)[:top] for number, answer in enumerate(answers)]
        profiles = [[catalogue.of(clip) for clip in order] for order in orders]
        return [np.mean([exposure(each.membership(some)) for some in profiles], axis=0) for each in groups]

    plain, *masked = (exposed(scores) for scores in every)
    scored = [clip for answer in answers for clip in _scored(answer)]
    return Masking(
        [
            np.max([np.abs(moved[number] - unmasked) for moved in masked], axis=0)
            for number, unmasked in enumerate(plain)
        ],
        len(answers),
        len(decoded),
        len(clips) - len(decoded),
        sum(clip in decoded for clip in scored) / len(scored),
    )


def _scored(answer: QueryReranked) -> list[str]:
    """Return the clips that have a frame score."""
    return [result.clip_id for result in answer.results if result.frame_score is not None]


class _Clip(NamedTuple):
    """A clip's vectors, as :class:`~streamer.vectors.ClipVectors` has them."""

    matrix: Vectors
    times_ms: npt.NDArray[np.uint32]
    scales: None = None


def _scores(
    answers: Sequence[QueryReranked], clips: Sequence[str], walk: Iterable[Vectors | None], texts: Texts
) -> Scores:
    """Return the frame scores of the clips that could be decoded, by the number of the answer and the clip."""
    wanted: dict[str, list[int]] = {}
    for number, answer in enumerate(answers):
        for clip in _scored(answer):
            wanted.setdefault(clip, []).append(number)
    found: Scores = {}
    for clip, vectors in zip(clips, walk, strict=True):
        if vectors is None:
            continue
        block = Block.of(0, _Clip(vectors, np.zeros(len(vectors), np.uint32)))
        for number in wanted[clip]:
            scorer = FrameScorer(texts[number], 1, answers[number].pooling)
            scorer.add(block)
            found[number, clip] = float(scorer.scores.cosines[0])
    return found


def _order(answer: QueryReranked, number: int, scores: Scores, decoded: Container[str]) -> list[str]:
    """Rank an answer's candidates by other frame scores of the decoded clips, all else as it was."""
    within = sorted((each for each in answer.results if each.score is not None), key=lambda each: each.initial_rank)
    frame = [
        scores.get((number, each.clip_id), each.frame_score) if each.clip_id in decoded else each.frame_score
        for each in within
    ]
    method = method_of(answer)
    ranking = rerank(
        np.array([each.initial_score for each in within], np.float64),
        np.array(frame, np.float64),  # None becomes NaN
        alpha=method.alpha,
        depth=len(within),
        normalization=method.normalization,
        missing=method.missing,
    )
    below = [each.clip_id for each in answer.results if each.score is None]
    return [*(within[each].clip_id for each in ranking.order.tolist()), *below]
