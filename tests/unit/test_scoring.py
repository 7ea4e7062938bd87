"""The method: properties that hold for any finite scores, and the formula on small numbers."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numkong
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamer import events, scoring
from streamer.method import score_clips
from streamer.scoring import Missing, normalize, on_grid, rerank
from streamer.vectors import ClipList
from tests.support.recompute_scores import predicted

if TYPE_CHECKING:
    from collections.abc import Iterator

NORMALIZATIONS = get_args(scoring.Normalization)

finite = st.floats(allow_nan=False, allow_infinity=False)
cosine = st.floats(-1, 1)
alphas = st.floats(0, 1)
normalizations = st.sampled_from(NORMALIZATIONS)


@st.composite
def result_lists(draw: st.DrawFn, scores: st.SearchStrategy[float] = finite) -> tuple[Any, Any, int]:
    """Initial scores (n,), frame scores of the first min(n, depth) with gaps, and the depth."""
    initial = draw(st.lists(scores, max_size=30))
    depth = draw(st.integers(1, 35))
    top = min(len(initial), depth)
    frame = draw(st.lists(cosine | st.just(float("nan")), min_size=top, max_size=top))
    return np.array(initial, dtype=float), np.array(frame, dtype=float), depth


def test_events_and_scoring_name_the_same_choices() -> None:
    assert get_args(events.Normalization) == NORMALIZATIONS
    assert get_args(events.Missing) == get_args(scoring.Missing)


@given(result_lists(), alphas, normalizations)
def test_the_order_is_a_permutation_and_below_the_depth_nothing_moves(
    lists: tuple[Any, Any, int], alpha: float, how: Any
) -> None:
    initial, frame, depth = lists
    ranking = rerank(initial, frame, alpha=alpha, depth=depth, normalization=how)
    assert sorted(ranking.order) == list(range(len(initial)))
    top = min(len(initial), depth)
    assert set(ranking.order[:top]) == set(range(top))
    assert list(ranking.order[top:]) == list(range(top, len(initial)))
    assert np.isfinite(ranking.scores[:top]).all()
    assert np.isnan(ranking.scores[top:]).all()


@given(result_lists(), alphas, normalizations)
def test_scores_fall_along_the_order_and_ties_keep_the_initial_order(
    lists: tuple[Any, Any, int], alpha: float, how: Any
) -> None:
    initial, frame, depth = lists
    ranking = rerank(initial, frame, alpha=alpha, depth=depth, normalization=how)
    ordered = ranking.order[: len(frame)]
    for earlier, later in itertools.pairwise(ordered):
        above, below = ranking.scores[earlier], ranking.scores[later]
        assert above > below or (above == below and earlier < later)


@given(result_lists(), normalizations)
def test_alpha_1_gives_the_initial_order_of_a_sorted_list(lists: tuple[Any, Any, int], how: Any) -> None:
    initial, frame, depth = lists
    ranking = rerank(np.sort(initial)[::-1], frame, alpha=1.0, depth=depth, normalization=how)
    assert list(ranking.order) == list(range(len(initial)))


@given(result_lists(), alphas, normalizations)
def test_without_records_nothing_but_the_engines_score_counts(
    lists: tuple[Any, Any, int], alpha: float, how: Any
) -> None:
    initial, frame, depth = lists
    missing = np.full_like(frame, np.nan)
    ranking = rerank(initial, missing, alpha=alpha, depth=depth, normalization=how)
    np.testing.assert_array_equal(ranking.scores[: len(frame)], normalize(initial[: len(frame)], how))


moderate = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 1.0 + 2**-50])


@given(result_lists(moderate), alphas, normalizations)
def test_what_is_imputed_is_the_least_squares_prediction_to_the_last_digit(
    lists: tuple[Any, Any, int], alpha: float, how: Any
) -> None:
    initial, frame, depth = lists
    scores = rerank(initial, frame, alpha=alpha, depth=depth, normalization=how, missing="impute").scores[: len(frame)]
    kept = rerank(initial, frame, alpha=alpha, depth=depth, normalization=how, missing="own").scores[: len(frame)]
    there = ~np.isnan(frame)
    np.testing.assert_array_equal(scores[there], kept[there])
    own = normalize(initial[: len(frame)], how)
    if not there.any():
        np.testing.assert_array_equal(scores, own)
        return
    known = normalize(frame[there], how)
    imputed = np.array(predicted(own[there].tolist(), known.tolist(), own[~there].tolist()), float)
    if how == "minmax":
        imputed = imputed.clip(0, 1)
    np.testing.assert_array_equal(scores[~there], alpha * own[~there] + (1 - alpha) * imputed)
    if np.ptp(own[there]) == 0:
        np.testing.assert_allclose(imputed, known.mean(), rtol=1e-12, atol=1e-12)


@given(st.floats(-2, 2), st.floats(-1, 1), st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(-10, 10))
def test_on_a_line_the_prediction_is_the_line(slope: float, start: float, own: list[float], of: float) -> None:
    assume(np.ptp(own) > 0.01)
    known = start + slope * np.array(own)
    (found,) = scoring.predict(np.array(own), known, np.array([of]))
    assert found == pytest.approx(start + slope * of, abs=1e-6)


@given(result_lists(), alphas, normalizations)
def test_imputing_gives_any_finite_list_finite_scores_between_its_extremes(
    lists: tuple[Any, Any, int], alpha: float, how: Any
) -> None:
    initial, frame, depth = lists
    ranking = rerank(initial, frame, alpha=alpha, depth=depth, normalization=how, missing="impute")
    scores = ranking.scores[: len(frame)]
    assert np.isfinite(scores).all()
    assert sorted(ranking.order) == list(range(len(initial)))
    if how == "minmax" and len(scores):
        assert scores.min() >= 0
        assert scores.max() <= 1


def test_imputing_on_small_numbers() -> None:
    initial = np.array([10.0, 8.0, 6.0, 2.0, 0.0])
    frame = np.array([0.1, np.nan, 0.3, 0.2, np.nan])
    ranking = rerank(initial, frame, alpha=0.4, depth=5, normalization="minmax", missing="impute")
    # M' = 1, .8, .6, .2, 0 and S' = 0, ?, 1, .5, ?: both means are over the three with a record, .6 and .5.
    slope = (0.4 * -0.5 + 0 * 0.5 + -0.4 * 0) / (0.4**2 + 0.4**2)
    np.testing.assert_allclose(
        ranking.scores,
        [0.4, 0.4 * 0.8 + 0.6 * (0.5 + slope * 0.2), 0.4 * 0.6 + 0.6, 0.4 * 0.2 + 0.3, 0.6 * (0.5 - slope * 0.6)],
    )


@given(result_lists(st.floats(-1e6, 1e6)), alphas, normalizations, st.data())
def test_a_higher_frame_score_never_lowers_the_rank(
    lists: tuple[Any, Any, int], alpha: float, how: Any, data: st.DataObject
) -> None:
    initial, frame, depth = lists
    assume(len(frame) and not np.isnan(frame).all())
    # Among candidates that all have records: one without keeps its own score, and the scale around it moves.
    frame = np.nan_to_num(frame, nan=0.0)
    position = data.draw(st.integers(0, len(frame) - 1))
    better = frame.copy()
    better[position] = min(1.0, better[position] + data.draw(st.floats(0.01, 2)))

    def rank_of(scores: Any) -> int:
        order = rerank(initial, scores, alpha=alpha, depth=depth, normalization=how).order
        return int(np.flatnonzero(order == position)[0])

    # Normalisation can round two different scores to one; a tie then goes by the initial order.
    slack = np.count_nonzero(np.abs(np.diff(np.sort(frame))) < 1e-9) + np.count_nonzero(
        np.abs(np.diff(np.sort(initial))) < 1e-9 * (1 + np.abs(initial).max())
    )
    assert rank_of(better) <= rank_of(frame) + slack


@given(hnp.arrays(float, st.integers(1, 20), elements=finite), normalizations)
def test_normalising_any_finite_scores_keeps_them_finite_and_in_order(scores: Any, how: Any) -> None:
    normal = normalize(scores, how)
    assert np.isfinite(normal).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(normal[order]) >= 0).all()
    if how == "minmax":
        assert normal.min() >= 0
        assert normal.max() <= 1


@given(st.integers(1, 20), finite)
def test_a_constant_side_is_one_half_or_nought(count: int, value: float) -> None:
    scores = np.full(count, value)
    assert (normalize(scores, "minmax") == 0.5).all()
    assert (normalize(scores, "zscore") == 0.0).all()
    assert (normalize(scores, "none") == value).all()


@given(hnp.arrays(float, st.integers(2, 20), elements=st.floats(-1e6, 1e6)))
def test_normalisations_are_what_their_names_say(scores: Any) -> None:
    assume(np.ptp(scores) > 1e-3)
    minmax, zscore = normalize(scores, "minmax"), normalize(scores, "zscore")
    assert minmax.min() == 0.0
    assert minmax.max() == 1.0
    assert abs(zscore.mean()) < 1e-6
    assert abs(zscore.std() - 1) < 1e-6


def test_the_formula_on_small_numbers() -> None:
    initial = np.array([10.0, 8.0, 6.0, 2.0, 1.0])
    frame = np.array([0.1, np.nan, 0.3, 0.2])
    # M' is 1, 0.75, 0.5, 0 and S' of those with a record 0, 1, 0.5: the slope is -0.5.
    seconds: dict[Missing, float] = {"impute": 0.4 * 0.75 + 0.6 * (0.5 - 0.5 * 0.25), "own": 0.75}
    for missing, second in seconds.items():
        ranking = rerank(initial, frame, alpha=0.4, depth=4, normalization="minmax", missing=missing)
        np.testing.assert_allclose(
            ranking.scores, [0.4 * 1.0 + 0.6 * 0.0, second, 0.4 * 0.5 + 0.6 * 1.0, 0.4 * 0.0 + 0.6 * 0.5, np.nan]
        )
        assert list(ranking.order) == [2, 1, 0, 3, 4]


def test_the_papers_raw_sum() -> None:
    ranking = rerank(np.array([0.5, 0.4]), np.array([0.1, 0.3]), alpha=0.4, depth=9, normalization="none")
    np.testing.assert_allclose(ranking.scores, [0.26, 0.34])
    assert list(ranking.order) == [1, 0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_frame_scores_must_cover_the_depth_exactly(count: int) -> None:
    with pytest.raises(ValueError, match="expected 2 frame scores"):
        rerank(np.array([1.0, 2.0, 3.0]), np.zeros(count), alpha=0.4, depth=2, normalization="minmax")


class Vectors(NamedTuple):
    """One clip."""

    matrix: Any
    scales: Any
    times_ms: Any

    @classmethod
    def of(cls, matrix: Any, scales: Any = None) -> Vectors:
        return cls(matrix, scales, np.arange(len(matrix), dtype=np.uint32) * 10 + 5)


@pytest.fixture(params=["best", "avx2", "plain"])
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Be on a processor with fewer instructions, where this is one that has them."""
    usable = [name for name, there in numkong.get_capabilities().items() if there and name != "serial"]
    kept = {"best": usable, "avx2": ["haswell"], "plain": []}[request.param]
    off = [name for name in usable if name not in kept]
    for name in off:
        numkong.disable_capability(name)
    yield
    for name in off:
        numkong.enable_capability(name)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_best_vector_counts_and_the_first_where_several_are(dtype: str) -> None:
    @given(st.lists(st.integers(0, 6), max_size=8), st.integers(0, 2**32 - 1))
    def scores_are_those_of_plain_loops(lengths: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        # Few distinct values, so that ties are common.
        clips = [Vectors.of(rng.integers(-2, 3, (n, 4)).astype(dtype), scales(rng, n)) if n else None for n in lengths]
        query = rng.integers(-2, 3, 4).astype(np.float32)
        cosines, moments = score_clips(query, ClipList(clips))
        assert cosines.shape == moments.shape == (len(clips),)
        for clip, cosine, moment in zip(clips, cosines, moments, strict=True):
            if clip is None:
                assert np.isnan(cosine)
                assert moment == 0
                continue
            plain = clip.matrix.astype(np.float64) @ query
            if clip.scales is not None:
                plain = plain * clip.scales
            assert cosine == pytest.approx(max(plain), abs=1e-6)
            assert moment == clip.times_ms[plain.argmax()]

    def scales(rng: np.random.Generator, count: int) -> Any:
        return rng.choice(np.array([0.5, 1, 2], np.float32), count) if dtype == "int8" else None

    scores_are_those_of_plain_loops()


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("dim", [1, 3, 33, 64, 100, 512])
def test_scores_are_those_of_float64_and_equal_vectors_tie_wherever_they_stand(dtype: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((65, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[64].astype(np.float32)
    scales = np.full(64, 1 / 127, np.float32) if dtype == "int8" else None
    matrix = np.rint(vectors[:64] * 127).astype(dtype) if dtype == "int8" else vectors[:64].astype(dtype)
    exact = (matrix.astype(np.float64) @ query) * (1 if scales is None else scales.astype(np.float64))
    clips = [Vectors.of(matrix[n : n + 1], None if scales is None else scales[:1]) for n in range(64)]
    np.testing.assert_allclose(score_clips(query, ClipList(clips)).cosines, exact, atol=1e-7, rtol=0)
    alike = [np.repeat(matrix[:1], count, axis=0) for count in (1, 2, 3, 7, 15, 16, 17, 64, 200)]
    clips = [Vectors.of(each, None if scales is None else np.repeat(scales[:1], len(each))) for each in alike]
    assert set(score_clips(query, ClipList(clips)).moments_ms) == {5}


def units(rng: np.random.Generator, count: int, dim: int) -> Any:
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("dim", [1, 33, 64, 512, 1024])
def test_anyone_with_numpy_gets_the_same_scores_to_the_last_bit(dtype: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    query = units(rng, 1, dim)[0]
    exact_query = np.rint(query.astype(np.float64) * 2**26) / 2**26
    for _ in range(20):
        # Frames of one clip are much alike: their products differ by less than a fast kernel's error.
        alike = units(rng, 1, dim) + rng.choice([0, 1e-9, 1e-7, 1e-5, 1e-3]) * units(rng, 40, dim)
        vectors = alike / np.linalg.norm(alike, axis=1, keepdims=True)
        scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32) if dtype == "int8" else None
        matrix = (vectors if scales is None else np.rint(vectors / scales[:, None])).astype(dtype)
        rows = matrix.astype(np.float64)
        if dtype == "float32":
            rows = np.rint(rows * 2**26) / 2**26
        # One product after the other, in an order of its own, is as good as any.
        backwards = [sum((row * exact_query).tolist()[::-1]) for row in rows]
        cosines = np.array(backwards) * (1.0 if scales is None else scales.astype(np.float64))
        (cosine,), (moment,) = score_clips(query, ClipList([Vectors.of(matrix, scales)]))
        assert cosine == cosines.max()
        assert moment == Vectors.of(matrix).times_ms[cosines.argmax()]


def test_clips_stored_in_different_precisions_are_scored_together() -> None:
    query = np.array([0.6, 0.8], np.float32)
    int8 = np.array([[100, 0], [0, 100]], np.int8)
    scales = np.array([0.01, 0.001], np.float32)
    floats = np.array([[0.0, 1.0]], np.float16)
    cosines, moments = score_clips(query, ClipList([Vectors.of(int8, scales), None, Vectors.of(floats)]))
    np.testing.assert_allclose(cosines, [0.6, np.nan, 0.8], atol=2e-5)
    assert list(moments) == [5, 0, 5]


def test_no_clips_have_no_scores() -> None:
    cosines, moments = score_clips(np.ones(4, np.float32), ClipList())
    assert cosines.shape == moments.shape == (0,)
    assert np.isnan(score_clips(np.ones(4, np.float32), ClipList([None, None])).cosines).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_query_that_is_not_finite_is_refused(dtype: str) -> None:
    scales = np.ones(2, np.float32) if dtype == "int8" else None
    with pytest.raises(ValueError, match="not finite"):
        score_clips(np.array([np.nan, 0.5], np.float32), ClipList([Vectors.of(np.ones((2, 2), dtype), scales)]))


def test_a_query_of_zeros_scores_nothing_but_zero() -> None:
    for matrix, scales in ((np.ones((2, 4), np.int8), np.ones(2, np.float32)), (np.ones((2, 4), np.float16), None)):
        assert list(score_clips(np.zeros(4, np.float32), ClipList([Vectors.of(matrix, scales)])).cosines) == [0.0]


def test_every_half_is_widened_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    assert np.array_equal(on_grid(halves).view(np.int64), halves.astype(np.float64).view(np.int64))
