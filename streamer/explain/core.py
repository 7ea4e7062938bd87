"""How the score of each result came about. Pure functions on one answer.

A score is alpha * M' + (1 - alpha) * S', both normalized. Seen as a function of alpha it is a straight line from S' at
0 to M' at 1, so its two ends say everything. They come from :func:`streamer.scoring.blend` itself, which is called with
alpha 1 and alpha 0: what it multiplies by 0 is finite and vanishes, so each end is exact. Of a candidate without a
frame score that keeps its own score alone, both ends are that score.
"""

from __future__ import annotations

import decimal
import itertools
import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from streamer.method import method_of
from streamer.scoring import blend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.events import QueryReranked, RerankedCandidate
    from streamer.scoring import FloatArray

_EXACT = decimal.Context(prec=2_200, Emin=-10_000, Emax=10_000)
"""Enough digits for any sum of two doubles: their decimals reach from 1e308 down to 5e-324, in at most 17 digits."""


class Contributions(NamedTuple):
    """The two parts of a score, as decimals whose sum is the score as it is printed, to the last digit.

    ``engine`` is the product that the method computes, alpha * M'. ``frames`` is the score less that: the service adds
    two rounded products and rounds their sum, so its own second product may differ in its last digit.
    """

    engine: Decimal
    frames: Decimal


class Line(NamedTuple):
    """A score as a function of alpha: ``frames`` at alpha 0, ``engine`` at alpha 1, both finite."""

    frames: float
    engine: float

    def at(self, alpha: Fraction) -> Fraction:
        """Return the score at an alpha, exactly."""
        return alpha * Fraction(self.engine) + (1 - alpha) * Fraction(self.frames)


class Swap(NamedTuple):
    """Where a result changes places with the one above it: at ``alpha``, and beyond it towards 1 or towards 0."""

    alpha: float
    towards: Literal[0, 1]


class Explained(NamedTuple):
    """How one result within the depth got its score, and what would bring it up by one.

    ``recomputed``: the score as :func:`~streamer.scoring.blend` computes it now from the scores that the answer states;
    it differs from the answer's only if another release or another processor made that. ``has_frames``: whether a frame
    score went into it, its own or an imputed one. ``swap`` is None where no alpha brings the result above its neighbour
    ``above``, and both are None for the first one.
    """

    line: Line
    contributions: Contributions
    recomputed: float
    has_frames: bool
    above: str | None
    swap: Swap | None


def contributions(score: float, engine: float) -> Contributions:
    """Split a score into the engine's product and the rest. Both numbers are finite."""
    first = Decimal(repr(engine))
    # A difference of 0 would keep the exponent of what was subtracted, and be written as 0E-17.
    return Contributions(first, _EXACT.subtract(Decimal(repr(score)), first) or Decimal(0))


def swap(this: Line, above: Line, *, is_initially_above: bool) -> Swap | None:
    """Return from which alpha on a result would stand above the one that is directly above it now.

    The two lines meet where ``a * dm + (1 - a) * ds = 0``, dm and ds being what ``this`` has more than ``above`` at
    alpha 1 and at alpha 0, so at ds / (ds - dm), which is computed exactly and rounded once. None where they are
    parallel or meet outside 0 .. 1. ``is_initially_above``: whether ``this`` wins a tie, as its initial rank is
    smaller; where the lines meet at an end of 0 .. 1 it may be above at that point alone.
    """
    at_one = Fraction(this.engine) - Fraction(above.engine)
    at_zero = Fraction(this.frames) - Fraction(above.frames)
    if at_one == at_zero:
        return None
    meeting = at_zero / (at_zero - at_one)
    if not 0 <= meeting <= 1:
        return None
    towards: Literal[0, 1] = 1 if at_one > at_zero else 0
    if meeting == towards and not is_initially_above:
        return None
    return Swap(float(meeting), towards)


def explain(answer: QueryReranked) -> list[Explained | None]:
    """Explain each result of an answer, in its order; None for those without a score (degraded, or below the depth)."""
    method = method_of(answer)
    within = sorted((each for each in answer.results if each.score is not None), key=lambda each: each.initial_rank)
    if not within:
        return [None] * len(answer.results)
    initial = np.array([each.initial_score for each in within], dtype=np.float64)
    frame = np.array([math.nan if each.frame_score is None else each.frame_score for each in within], dtype=np.float64)

    def blended(alpha: float) -> FloatArray:
        return blend(initial, frame, alpha, method.normalization, method.missing)

    engine, frames, scores = (blended(alpha).tolist() for alpha in (1.0, 0.0, method.alpha))
    has_own = not np.isnan(frame).all()
    found: dict[str, Explained] = {}
    lines = {each.clip_id: Line(low, high) for each, low, high in zip(within, frames, engine, strict=True)}
    above = _above(answer.results)
    for each, score in zip(within, scores, strict=True):
        line = lines[each.clip_id]
        has_frames = each.frame_score is not None or (method.missing == "impute" and has_own)
        # With alpha for its factor alone where there is no frame score: such a candidate keeps its own score.
        product = method.alpha * line.engine if has_frames else line.engine
        served = each.score if each.score is not None else score
        neighbour = above.get(each.clip_id)
        found[each.clip_id] = Explained(
            line,
            contributions(served, product),
            score,
            has_frames,
            neighbour.clip_id if neighbour else None,
            swap(line, lines[neighbour.clip_id], is_initially_above=each.initial_rank < neighbour.initial_rank)
            if neighbour
            else None,
        )
    return [found.get(each.clip_id) for each in answer.results]


def _above(results: Sequence[RerankedCandidate]) -> dict[str, RerankedCandidate]:
    """Return the result above each one, where both have a score."""
    scored = [each for each in results if each.score is not None]
    return {below.clip_id: upper for upper, below in itertools.pairwise(scored)}
