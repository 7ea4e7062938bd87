"""Pooling: what softmax makes of a clip's cosines, exactly, whatever stands beside it."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import ValidationError, convert

from streamer import events
from streamer.method import score_clips
from streamer.pooling import MAX, parse, softmax_mean, temperature
from streamer.scoring import FrameScorer
from streamer.vectors import Block, ClipList
from tests.support.recompute_scores import pooled
from tests.unit.test_scoring import Vectors, units

if TYPE_CHECKING:
    from collections.abc import Sequence

taus = st.floats(0.01, 1)
cosines = st.lists(st.floats(-1, 1) | st.sampled_from([0.25, 0.25 + 2**-52, 0.3]), min_size=1, max_size=40)


def means(clips: Sequence[Sequence[float]], tau: float) -> list[float]:
    lengths = np.array([len(clip) for clip in clips])
    joined = np.concatenate([np.array(clip, float) for clip in clips])
    best = np.array([max(clip) for clip in clips])
    found: list[float] = softmax_mean(joined, best, lengths.cumsum() - lengths, lengths, tau).tolist()
    return found


@given(st.lists(cosines, min_size=1, max_size=8), taus)
def test_a_mean_is_that_of_exact_integers_whatever_stands_beside_it(clips: list[list[float]], tau: float) -> None:
    found = means(clips, tau)
    assert found == [pooled(clip, f"softmax:{tau!r}") for clip in clips]
    assert found == [means([clip[::-1]], tau)[0] for clip in clips]


@given(cosines, taus)
def test_a_mean_is_the_definitions_and_never_exceeds_the_best_cosine(clip: list[float], tau: float) -> None:
    (found,) = means([clip], tau)
    best = max(clip)
    weights = [math.exp((cosine - best) / tau) for cosine in clip]
    exact = math.fsum(weight * cosine for weight, cosine in zip(weights, clip, strict=True)) / math.fsum(weights)
    assert found == pytest.approx(exact, abs=1e-6)
    assert found <= best
    if min(clip) == best:
        assert found == best


@given(cosines)
def test_a_lower_temperature_is_nearer_to_the_best(clip: list[float]) -> None:
    found = [means([clip], tau)[0] for tau in (0.01, 0.05, 0.1, 0.5, 1.0)]
    assert all(colder >= warmer - 1e-6 for colder, warmer in itertools.pairwise(found))
    # The mean and tau times the weights' entropy, at most log(40), add up to a soft maximum.
    assert found[0] >= max(clip) - 0.01 * math.log(40) - 1e-6


def test_the_sums_of_a_very_long_clip_do_not_overflow() -> None:
    count = 300_000
    clip = [1.0] + [0.0] * (count - 1)
    (found,) = means([clip], 1.0)  # the distance at which weight times distance is largest
    assert found == pooled(clip, "softmax:1") == pytest.approx(1 / (1 + (count - 1) / math.e), abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("dim", [33, 512])
def test_scores_are_the_exact_cosines_pooled_and_the_moment_is_the_best_frames(dtype: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    query = units(rng, 1, dim)[0]
    exact_query = np.rint(query.astype(np.float64) * 2**26) / 2**26
    clips: list[Any] = []
    for frames in (1, 7, 700):  # the last one is widened in parts
        vectors = units(rng, 1, dim) + 0.5 * units(rng, frames, dim)
        vectors[-1] = vectors[0]  # a tie
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32) if dtype == "int8" else None
        clips.append(
            Vectors.of((vectors if scales is None else np.rint(vectors / scales[:, None])).astype(dtype), scales)
        )
    found, moments = score_clips(query, ClipList([*clips, None]), "softmax:0.1")
    largest, best_moments = score_clips(query, ClipList([*clips, None]))
    np.testing.assert_array_equal(moments, best_moments)
    assert np.isnan(found[-1])
    for clip, score, best in zip(clips, found.tolist(), largest.tolist(), strict=False):
        rows = clip.matrix.astype(np.float64)
        if dtype == "float32":
            rows = np.rint(rows * 2**26) / 2**26
        exact = [math.fsum((row * exact_query).tolist()) for row in rows]
        if clip.scales is not None:
            exact = (np.array(exact) * clip.scales).tolist()
        assert (score, best) == (pooled(exact, "softmax:0.1"), pooled(exact, MAX))


def test_clips_that_lie_between_unused_rows_are_pooled_like_separate_ones() -> None:
    rng = np.random.default_rng(1)
    matrix, query = units(rng, 20, 16).astype(np.float16), units(rng, 1, 16)[0]
    times = np.arange(20, dtype=np.uint32) * 10
    firsts, lengths = np.array([2, 9, 11]), np.array([5, 1, 8])
    scorer = FrameScorer(query, 3, "softmax:0.2")
    scorer.add(Block(np.array([2, 0, 1]), lengths, matrix, firsts, times, firsts, None, firsts))
    apart = [Vectors(matrix[a : a + n], None, times[a : a + n]) for a, n in zip(firsts, lengths, strict=True)]
    expected = score_clips(query, ClipList([apart[1], apart[2], apart[0]]), "softmax:0.2")
    np.testing.assert_array_equal(scorer.scores.cosines, expected.cosines)
    np.testing.assert_array_equal(scorer.scores.moments_ms, expected.moments_ms)


def test_a_query_that_is_not_finite_is_refused_by_any_pooling() -> None:
    for pooling in (MAX, "softmax:0.1"):
        with pytest.raises(ValueError, match="not finite"):
            FrameScorer(np.array([np.inf, 0], np.float32), 1, pooling)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("max", "max"), ("softmax:0.1", "softmax:0.1"), ("softmax:.10", "softmax:0.1"), ("softmax:1.0", "softmax:1"),
     ("softmax:0.01", "softmax:0.01"), ("softmax:0.123456789012345678", "softmax:0.12345678901234568")],
)  # fmt: skip
def test_a_pooling_has_one_spelling(text: str, spelled: str) -> None:
    assert parse(text) == parse(spelled) == spelled
    assert convert(spelled, events.Pooling) == spelled


@pytest.mark.parametrize(
    "text", ["", "mean", "Max", "softmax", "softmax:", "softmax:0", "softmax:0.009", "softmax:1.01", "softmax:-0.1",
             "softmax:nan", "softmax:1e-1", "softmax:0.1 ", "softmax:0.1,max", "softmax:\u0661", "softmax:0.1\n"]
)  # fmt: skip
def test_what_is_no_pooling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("expected max or softmax:TAU with TAU from 0.01 to 1")):
        temperature(text)


@given(taus)
def test_a_temperature_survives_its_text(tau: float) -> None:
    spelled = parse(f"softmax:{tau:.20f}")
    assert temperature(spelled) == float(f"{tau:.20f}")
    assert convert(spelled, events.Pooling) == spelled


def test_an_event_with_another_pooling_is_invalid() -> None:
    for text in ("mean", "softmax:", "softmax:2", "max "):
        with pytest.raises(ValidationError):
            convert(text, events.Pooling)
