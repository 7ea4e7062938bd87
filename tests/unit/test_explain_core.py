"""The parts of a score, and where two results change places, for any list and any method."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamer.events import Candidate, Degraded, QueryReranked, QueryResults, RerankedCandidate
from streamer.explain.core import Line, Swap, contributions, explain, swap
from streamer.method import Method, answer, rerank_candidates, unscored
from streamer.pooling import MAX
from streamer.scoring import ClipScores, FrameScores, blend

if TYPE_CHECKING:
    from collections.abc import Sequence

AT = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
any_float = st.floats(allow_nan=False, allow_infinity=False)
engine_score = st.one_of(any_float, st.sampled_from([0.0, 1.0, 2.0, -3.5]), st.floats(-50, 50))
frame_score = st.one_of(st.none(), st.floats(-1, 1), st.sampled_from([0.0, 0.25, 0.3]))
methods = st.builds(
    Method,
    alpha=st.floats(0, 1),
    depth=st.integers(1, 12),
    normalization=st.sampled_from(["minmax", "zscore", "none"]),
    missing=st.sampled_from(["own", "impute"]),
)


class Scored:
    """Answers with given frame scores, as a store does."""

    def __init__(self, cosines: list[float | None]) -> None:
        self._cosines = cosines

    def score(self, clip_ids: Sequence[str], _vector: Any, _deadline: float | None, _pooling: str = MAX) -> ClipScores:
        given = np.array([np.nan if each is None else each for each in self._cosines[: len(clip_ids)]], np.float64)
        return ClipScores(FrameScores(given, np.zeros(len(given), np.int64)))


@st.composite
def answers(draw: st.DrawFn) -> QueryReranked:
    """Draw an answer that the method's own code has made."""
    pairs = draw(st.lists(st.tuples(engine_score, frame_score), min_size=1, max_size=10))
    method = draw(methods)
    results = [Candidate(clip_id=f"c{number}", score=score) for number, (score, _) in enumerate(pairs)]
    event = QueryResults(query_id="q", query="text", engine="e", issued_at=AT, results=results)
    scored = Scored([cosine for _, cosine in pairs])
    reranked = rerank_candidates(method, results, np.zeros(4, np.float32), scored)
    return answer(method, event, reranked.results, "m")


def exact_sum(*parts: Decimal) -> Decimal:
    with localcontext(prec=3_000, Emin=-10_000, Emax=10_000):
        return sum(parts, Decimal(0))


@given(answers())
def test_the_contributions_of_every_result_sum_to_its_score_to_the_last_digit(served: QueryReranked) -> None:
    for result, found in zip(served.results, explain(served), strict=True):
        assert (found is None) == (result.score is None)
        if found is None or result.score is None:
            continue
        assert exact_sum(*found.contributions) == Decimal(repr(result.score))
        # As they are written in JSON and on the page, too.
        written = [Decimal(str(part)) for part in found.contributions]
        assert exact_sum(*written) == Decimal(repr(result.score))
        assert found.recomputed == result.score
        if not found.has_frames:
            assert found.contributions.frames == 0


@given(answers())
def test_the_engines_contribution_is_the_product_that_the_method_adds(served: QueryReranked) -> None:
    for result, found in zip(served.results, explain(served), strict=True):
        if found is None or result.score is None or not found.has_frames:
            continue
        first, second = served.alpha * found.line.engine, (1 - served.alpha) * found.line.frames
        assert first + second == result.score
        assert Decimal(repr(first)) == found.contributions.engine
        largest = max(map(abs, map(Fraction, (first, second, result.score))))
        assert abs(Fraction(found.contributions.frames) - Fraction(second)) <= largest / 2**50


@given(any_float, any_float)
def test_any_two_numbers_are_split_without_rounding(score: float, engine: float) -> None:
    assert exact_sum(*contributions(score, engine)) == Decimal(repr(score))


def order(served: QueryReranked, alpha: float) -> dict[str, int]:
    """Return the clips' ranks among those with a score, by the method's own code with another alpha."""
    within = sorted((each for each in served.results if each.score is not None), key=lambda each: each.initial_rank)
    initial = np.array([each.initial_score for each in within])
    frame = np.array([np.nan if each.frame_score is None else each.frame_score for each in within])
    blended = blend(initial, frame, alpha, served.normalization, served.missing)
    return {within[place].clip_id: rank for rank, place in enumerate((-blended).argsort(kind="stable"))}


@given(answers())
def test_two_neighbours_change_places_just_where_it_is_said(served: QueryReranked) -> None:
    every = explain(served)
    lines = {each.clip_id: found.line for each, found in zip(served.results, every, strict=True) if found}
    for result, found in zip(served.results, every, strict=True):
        if found is None or found.above is None:
            continue
        this, above = lines[result.clip_id], lines[found.above]
        if found.swap is None:
            for alpha in (Fraction(part, 16) for part in range(17)):
                assert this.at(alpha) <= above.at(alpha) or rounding(this, above) > this.at(alpha) - above.at(alpha)
            continue
        at, towards = found.swap
        step = 1 / 64 if towards else -1 / 64
        beyond, before = at + step, at - step
        # The scores are recomputed by the method, whose sums are rounded; closer than that nothing can be told apart.
        apart = abs(this.at(Fraction(beyond)) - above.at(Fraction(beyond)))
        assume(apart > 4 * rounding(this, above))
        if 0 <= beyond <= 1:
            assert order(served, beyond)[result.clip_id] < order(served, beyond)[found.above]
        if 0 <= before <= 1:
            assert order(served, before)[result.clip_id] > order(served, before)[found.above]


def rounding(*lines: Line) -> Fraction:
    """Return how far rounding can move a score along these lines."""
    return max(abs(Fraction(end)) for line in lines for end in line) / 2**50 + Fraction(1, 2**1_070)


@given(st.lists(st.integers(-8, 8), min_size=4, max_size=4), st.booleans(), st.integers(0, 32))
def test_the_swap_is_the_border_of_the_alphas_that_bring_it_up(ends: list[int], wins: bool, at: int) -> None:
    this, above = Line(*map(float, ends[:2])), Line(*map(float, ends[2:]))
    alpha = Fraction(at, 32)

    def is_above(where: Fraction) -> bool:
        mine, other = this.at(where), above.at(where)
        return mine > other or (mine == other and wins)

    assume(not is_above(alpha))
    found = swap(this, above, is_initially_above=wins)
    grid = [Fraction(part, 5_040) for part in range(0, 5_041, 7)]
    rising = [where for where in grid if is_above(where)]
    if found is None:
        assert not rising
        return
    assert 0 <= found.alpha <= 1
    border, rounded = Fraction(found.alpha), Fraction(1, 2**53)
    assert all(where >= border - rounded if found.towards else where <= border + rounded for where in rising)
    inside = border + (1 - border) / 2 if found.towards else border / 2
    assert is_above(inside)


@pytest.mark.parametrize(
    ("this", "above", "wins", "expected"),
    [
        (Line(0.0, 1.0), Line(1.0, 0.0), False, Swap(0.5, 1)),
        (Line(1.0, 0.0), Line(0.0, 1.0), False, Swap(0.5, 0)),
        (Line(0.25, 0.5), Line(0.5, 0.75), True, None),
        (Line(0.0, 0.5), Line(1.0, 0.75), False, None),
        (Line(0.0, 1.0), Line(1.0, 1.0), False, None),
        (Line(0.0, 1.0), Line(1.0, 1.0), True, Swap(1.0, 1)),
        (Line(0.5, 0.0), Line(0.5, 1.0), True, Swap(0.0, 0)),
        (Line(0.5, 0.0), Line(0.5, 1.0), False, None),
    ],
)
def test_where_lines_meet(this: Line, above: Line, wins: bool, expected: Swap | None) -> None:
    assert swap(this, above, is_initially_above=wins) == expected


def test_a_degraded_answer_has_nothing_to_explain() -> None:
    method = Method(alpha=0.4, depth=9, normalization="minmax")
    candidates = [Candidate(clip_id=clip, score=1.0) for clip in "ab"]
    event = QueryResults(query_id="q", query="text", engine="e", issued_at=AT, results=candidates)
    results: list[RerankedCandidate] = [unscored(each, rank) for rank, each in enumerate(candidates, start=1)]
    assert explain(answer(method, event, results, "m", Degraded.ENCODER_FAILED)) == [None, None]
