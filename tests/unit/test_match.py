"""The percentile of a list's best frame score, calibrations, and the files of banks."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.match import BankError, Calibration, bank_file, read_bank, written
from streamer.match.bank import LEAST_OTHERS
from streamer.match.percentile import TAIL, levels, percentile
from streamer.method import score_clips
from streamer.vectors import ClipList
from tests.support.banks import DIM, LENGTHS, Vectors, bank, unit_vectors

if TYPE_CHECKING:
    from pathlib import Path

TRIALS = 3_000


def draws(rng: np.random.Generator, kind: str, count: int) -> Any:
    return {
        "normal": lambda: rng.standard_normal(count),
        "narrow cosines": lambda: 0.2 + 0.03 * rng.beta(2, 5, count),
        "heavy tail": lambda: rng.pareto(1.5, count),
    }[kind]()


@pytest.mark.parametrize("kind", ["normal", "narrow cosines", "heavy tail"])
@pytest.mark.parametrize(("count", "listed"), [(200, 1), (200, 40), (60, 100)])
def test_it_is_uniform_for_lists_of_clips_that_are_like_the_banks(kind: str, count: int, listed: int) -> None:
    rng = np.random.default_rng(5)
    found = np.array(
        [
            percentile(float(draws(rng, kind, listed).max()), draws(rng, kind, count), listed)
            for _ in range(TRIALS)
        ]
    )  # fmt: skip
    for step in (each for each in levels(count, listed).tolist() if 0.02 < each < 1):
        # Exactly so often, whatever the distribution; 4 standard errors of the simulation.
        assert np.mean(found <= step) == pytest.approx(step, abs=4 * math.sqrt(step * (1 - step) / TRIALS))
    assert (found > 0).all()
    assert (found < 1).all()


def test_a_step_is_the_probability_that_the_best_are_all_the_banks() -> None:
    steps = levels(7, 4)
    assert steps.tolist() == pytest.approx([math.comb(7, k) / math.comb(11, k) for k in range(8)])


@pytest.mark.parametrize("listed", [1, 10, 100])
def test_for_a_large_bank_it_is_the_share_below_to_the_power_of_the_lists_length(listed: int) -> None:
    rng = np.random.default_rng(3)
    others = rng.standard_normal(50_000)
    for best in (-1.0, 0.5, 2.0, 3.0):
        assert percentile(best, others, listed) == pytest.approx(float(np.mean(others < best)) ** listed, abs=2e-3)


scores = st.floats(-1, 1) | st.sampled_from([0.0, 0.25, 0.25 + 2**-54, 1.0])


@given(st.lists(scores, min_size=TAIL + 1, max_size=40), scores, scores, st.integers(1, 5_000))
def test_a_better_score_never_has_a_lower_percentile(others: list[float], one: float, other: float, n: int) -> None:
    low, high = sorted((one, other))
    below, above = (percentile(each, np.array(others), n) for each in (low, high))
    assert 0 <= below <= above <= 1


@given(st.lists(scores, min_size=TAIL + 1, max_size=40), scores, st.integers(1, 100))
def test_the_banks_order_is_of_no_account_and_a_longer_list_has_no_higher_percentile(
    others: list[float], best: float, n: int
) -> None:
    found = percentile(best, np.array(others), n)
    assert percentile(best, np.array(others[::-1]), n) == found
    assert percentile(best, np.array(others), n + 1) <= found


def test_equal_scores_share_the_mean_of_their_steps_and_what_lies_between_is_interpolated() -> None:
    others = np.array([0.1] * 10 + [0.2] * 3 + [0.3] * 7)
    steps = levels(20, 5)
    assert percentile(0.2, others, 5) == pytest.approx((steps[8] + steps[10]) / 2)
    assert percentile(0.3, others, 5) == pytest.approx((steps[1] + steps[7]) / 2)
    middle = percentile(0.25, others, 5)
    assert middle == pytest.approx((percentile(0.2, others, 5) + percentile(0.3, others, 5)) / 2)
    assert percentile(0.0, others, 5) == percentile(0.1, others, 5)


def test_beyond_the_best_it_approaches_1_by_the_scale_of_the_tail() -> None:
    others = np.linspace(0, 1, 101)
    top = levels(101, 10)[1]
    scale = others[-TAIL:].mean() - others[-TAIL - 1]
    assert percentile(1 + scale, others, 10) == pytest.approx(1 - (1 - top) / 2)
    assert top < percentile(1 + 1e-9, others, 10) < percentile(1 + scale, others, 10) < percentile(9.0, others, 10) < 1


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{TAIL} scores of other clips"):
        percentile(0.5, np.zeros(TAIL), 1)


# -- the bank ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["max", "softmax:0.1"])
def test_a_banks_scores_are_those_of_its_clips(pooling: str) -> None:
    made = bank()
    query = unit_vectors(np.random.default_rng(1), 1)[0]
    ends = np.cumsum(LENGTHS)
    clips = ClipList(Vectors(made.matrix[end - length : end]) for end, length in zip(ends, LENGTHS, strict=True))
    expected = score_clips(query, clips, pooling).cosines
    for _ in range(2):
        assert made.scores(query, pooling).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="numbers"):
        made.scores(query[:-1], pooling)


def test_a_match_is_the_percentile_of_the_best_known_score_among_clips_that_are_no_candidates() -> None:
    made = bank()
    query = unit_vectors(np.random.default_rng(2), 1)[0]
    others = made.scores(query, "max")
    best = float(np.sort(others)[-5])
    found = made.match(["a", "new", "b"], np.array([best, np.nan, 0.1]), query, "max")
    assert found == (percentile(best, others, 2), "percentile", made.version)
    listed = [made.clip_ids[each] for each in np.argsort(others)[-4:]]
    found = made.match(listed, np.array([best, 0.1, 0.1, 0.1]), query, "max")
    assert found is not None
    assert found.value == percentile(best, np.sort(others)[:-4], 4)
    assert made.match(["a"], np.array([np.nan]), query, "max") is None
    kept = len(made.clip_ids) - LEAST_OTHERS
    assert made.match(made.clip_ids[:kept], np.full(kept, 0.1), query, "max") is not None
    assert made.match(made.clip_ids[: kept + 1], np.full(kept + 1, 0.1), query, "max") is None


CALIBRATION = Calibration("max", 30, (0.2, 0.6, 0.9), (0.1, 0.1, 0.7))


def test_a_calibration_makes_it_a_probability_for_its_own_pooling() -> None:
    made = bank(CALIBRATION)
    query = unit_vectors(np.random.default_rng(2), 1)[0]
    plain = bank().match(["a"], np.array([0.3]), query, "max")
    found = made.match(["a"], np.array([0.3]), query, "max")
    assert plain is not None
    assert found == (CALIBRATION.of(plain.value), "probability", made.version)
    other = made.match(["a"], np.array([0.3]), query, "softmax:0.1")
    assert other is not None
    assert other.kind == "percentile"


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_probability_never_falls_with_the_percentile(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0.1 <= CALIBRATION.of(low) <= CALIBRATION.of(high) <= 0.7


def test_between_two_knots_it_is_a_straight_line_and_beyond_them_flat() -> None:
    found = [CALIBRATION.of(each) for each in (0.0, 0.2, 0.4, 0.75, 0.9, 1.0)]
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.4, 0.7, 0.7])


# -- its file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_a_bank_is_read_back_as_it_was_written(calibration: Calibration | None, tmp_path: Path) -> None:
    made, content = written(bank(calibration), seed=7)
    path = tmp_path / "bank"
    path.write_bytes(content)
    read = read_bank(path, "axes", DIM)
    for each in (made, read):
        assert each.version == content.split()[4][:16].decode()
        assert (each.model_id, each.clip_ids, each.calibration) == ("axes", bank().clip_ids, calibration)
        assert each.lengths.tolist() == LENGTHS
        assert each.matrix.tobytes() == bank().matrix.tobytes()
    assert written(bank(calibration), seed=7)[1] == content
    assert written(bank(calibration), seed=8)[0].version != made.version


CONTENT = written(bank(CALIBRATION), seed=0)[1]


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BankError) as error:
        read_bank(path, "axes", DIM)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


def test_what_is_no_whole_bank_of_the_model_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank"
    assert refused(path, b"") == refused(path, b"\0" * 5_000) == "not a bank of streamer match fit"
    assert refused(path, CONTENT[:-1]).startswith("damaged: ")
    assert refused(path, CONTENT + b"\0").startswith("damaged: ")
    assert refused(path, CONTENT.replace(b"bank 1 ", b"bank 2 ", 1)) == "a bank of format 2, this release reads 1"
    path.write_bytes(CONTENT)
    with pytest.raises(BankError, match="a bank of the model axes, not of other"):
        read_bank(path, "other", DIM)
    with pytest.raises(BankError, match="vectors of 8 numbers, those of the model have 9"):
        read_bank(path, "axes", DIM + 1)
    monkeypatch.setattr(bank_file, "MAX_BYTES", len(CONTENT) - 1)
    assert refused(path, CONTENT) == f"larger than {len(CONTENT) - 1:,} bytes"


def test_what_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="No such file or directory"):
        read_bank(tmp_path / "none", "axes", DIM)
    with pytest.raises(BankError, match="not a file"):
        read_bank(tmp_path, "axes", DIM)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BankError, match="not a file"):
        read_bank(tmp_path / "pipe", "axes", DIM)


def signed(body: bytes) -> bytes:
    return b"streamer match bank 1 " + bank_file._digest(body).encode() + b"\n" + body


def body_with(**changes: Any) -> bytes:
    contents = msgspec.msgpack.decode(CONTENT.partition(b"\n")[2])
    calibration = changes.pop("knots", {})
    return msgspec.msgpack.encode(contents | changes | {"calibration": contents["calibration"] | calibration})


NAN, COUNT = float("nan"), len(LENGTHS)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_id": ""}, "length >= 1"),
        ({"model_id": 5}, "Expected `str`"),
        ({"dim": 0}, "`int` >= 1"),
        ({"dim": 10**9}, "`int` <= "),
        ({"dim": 7}, "expected the numbers of all vectors"),
        ({"clip_ids": ["a"]}, "length >= "),
        ({"clip_ids": ["a"] * COUNT}, "expected each clip once"),
        ({"clip_ids": [str(each) for each in range(COUNT + 1)]}, "expected as many lengths as clips"),
        ({"lengths": [0] * COUNT}, "`int` >= 1"),
        ({"lengths": [100_000] * COUNT}, "expected at most 100,000 vectors"),
        ({"vectors": b""}, "expected the numbers of all vectors"),
        ({"vectors": np.full(DIM * sum(LENGTHS), np.nan, "<f2").tobytes()}, "expected vectors of length 1"),
        ({"vectors": np.full(DIM * sum(LENGTHS), 60_000, "<f2").tobytes()}, "expected vectors of length 1"),
        ({"more": 1}, "unknown field"),
        ({"knots": {"pooling": "mean"}}, "matching regex"),
        ({"knots": {"percentiles": [0.1], "probabilities": [0.1, 0.2]}}, "expected as many probabilities"),
        ({"knots": {"percentiles": [0.5, 0.5, 0.6]}}, "expected percentiles that increase"),
        ({"knots": {"probabilities": [0.5, 0.4, 0.6]}}, "expected probabilities that do not decrease"),
        ({"knots": {"probabilities": [0.5, 0.5, 1.1]}}, "`float` <= 1"),
        ({"knots": {"percentiles": [NAN], "probabilities": [0.5]}}, "`float` >= 0"),
        ({"knots": {"percentiles": [0.5], "probabilities": [NAN]}}, "`float` >= 0"),
    ],
    ids=str,
)
def test_contents_that_mean_nothing_are_refused_although_their_hash_is_right(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    said = refused(tmp_path / "bank", signed(body_with(**changes)))
    assert said.startswith("not the content of a bank: ")
    assert problem in said


@settings(max_examples=50)
@given(position=st.integers(0, len(CONTENT) - 1), flipped=st.integers(1, 255))
def test_any_damage_is_refused(position: int, flipped: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    damaged = bytearray(CONTENT)
    damaged[position] ^= flipped
    refused(tmp_path_factory.mktemp("damaged") / "bank", bytes(damaged))


def test_bytes_that_nest_deeply_are_refused(tmp_path: Path) -> None:
    nested = b"\x91" * 100_000
    assert refused(tmp_path / "bank", signed(nested)).startswith("not the content of a bank: ")


def test_a_bank_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(BankError, match="percentiles that increase"):
        written(bank(replace(CALIBRATION, percentiles=(0.9, 0.6, 0.2))), seed=0)
