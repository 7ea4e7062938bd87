"""The sweep's arithmetic: each point's value is that of the run which a replay with these settings gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation.infap import InferredAP
from streamer.evaluation.sweep import Grid, TopicSweep
from streamer.evaluation.trec import Judgments
from streamer.scoring import rerank

GRID = Grid((0.0, 0.1, 0.4, 0.75, 1.0), (1, 3, 10, 40, 2000), ("minmax", "zscore", "none"))


def judged(rng: np.random.Generator, shots: list[str], strata: int) -> Judgments:
    """Judge some of the shots and a few that the run does not have."""
    pool = [shot for shot in [*shots, *(f"x{number}" for number in range(9))] if rng.random() < 0.7]
    names = [f"s{number}" for number in rng.integers(0, strata, len(pool))]
    return Judgments.of(pool, names, rng.choice([-1, 0, 0, 1], len(pool)).tolist())


@given(st.integers(0, 2**32 - 1), st.integers(0, 120), st.integers(1, 6), st.booleans())
def test_each_value_is_that_of_the_replayed_run_to_the_last_bit(seed: int, count: int, strata: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    shots = [f"c{number}" for number in range(count)]
    initial = np.sort(rng.integers(0, 6, count).astype(float) if tied else rng.standard_normal(count))[::-1]
    cosines = rng.integers(0, 4, count) / 4 if tied else rng.standard_normal(count)
    cosines[rng.random(count) < 0.1] = np.nan
    judgments = judged(rng, shots, strata)
    measure = InferredAP(judgments)
    codes = measure.codes(shots)
    values = TopicSweep(measure, codes, initial).values(cosines, GRID)
    assert values.shape == (len(GRID),)
    for value, point in zip(values.tolist(), GRID.points(), strict=True):
        order = rerank(initial, cosines[: point.depth], **point._asdict()).order
        assert value == measure.of_codes(codes[order]), point


def test_of_long_lists_what_is_beyond_rank_1000_adds_nothing() -> None:
    rng = np.random.default_rng(0)
    shots = [f"c{number}" for number in range(2_500)]
    initial, cosines = -np.arange(2_500.0), rng.standard_normal(2_500)
    measure = InferredAP(judged(rng, shots, 5))
    codes = measure.codes(shots)
    values = TopicSweep(measure, codes, initial).values(cosines, GRID)
    for value, point in zip(values.tolist(), GRID.points(), strict=True):
        order = rerank(initial, cosines[: point.depth], **point._asdict()).order
        np.testing.assert_allclose(value, measure.of_codes(codes[order]), rtol=1e-13)
