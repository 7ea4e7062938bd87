"""Negated queries taken apart, and the vector that is their difference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from streamer.evaluation.negation import Negated, split, subtract

WORDS = st.lists(st.sampled_from(["red", "car", "ball", "tree", "a", "two", "dog"]), min_size=1, max_size=4).map(
    " ".join
)
CUES = st.sampled_from(["without", "without any", "and no", "with no", "but no", "but not", ", but without"])
PLACES = st.sampled_from(["", " in the snow", " on grass", " next to a house", ", running", " while it rains"])


@pytest.mark.parametrize(
    ("text", "rest", "part"),
    [
        ("a red car without a ball", "a red car", "a ball"),
        ("a red car and no ball", "a red car", "ball"),
        ("A car, but no people, at night", "A car at night", "people"),
        ("a man Without any hat in the snow", "a man in the snow", "hat"),
        ("a car but not on the beach", "a car", "on the beach"),
        ("a man without a hat is walking.", "a man is walking", "a hat"),
    ],
)
def test_a_negated_part_ends_where_another_phrase_begins(text: str, rest: str, part: str) -> None:
    assert split(text) == Negated(rest, part)


@pytest.mark.parametrize(
    "text",
    [
        "a red car and a ball", "no people", "nobody on a beach", "a knot and notes", "a sign that says no parking",
        "without", "a car without ", "a car without a ball and no tree", "", "not",
    ],
)  # fmt: skip
def test_texts_without_one_clear_negation_stay_whole(text: str) -> None:
    assert split(text) is None


@given(what=WORDS, cue=CUES, part=WORDS, place=PLACES)
def test_every_negation_is_taken_out_whole(what: str, cue: str, part: str, place: str) -> None:
    join = "" if cue.startswith(",") else " "
    found = split(f"{what}{join}{cue} {part}{place}")
    assert found is not None
    assert found.part == part
    assert found.rest == f"{what} {place.strip(', ')}".rstrip()


@given(st.text(max_size=60))
def test_any_text_is_taken_apart_into_parts_of_it_or_not_at_all(text: str) -> None:
    found = split(text)
    if found is not None:
        assert found.part in text
        assert all(word in text for word in found.rest.split())
        assert len(found.rest) + len(found.part) < len(text)


VECTORS = arrays.arrays(np.float32, 6, elements=st.floats(-1, 1, width=32)).filter(
    lambda each: np.linalg.norm(each) > 0.1
)


@given(rest=VECTORS, part=VECTORS, frames=arrays.arrays(np.float64, (5, 6), elements=st.floats(-1, 1)),
       weight=st.floats(0, 2))  # fmt: skip
def test_cosines_with_the_difference_are_differences_of_cosines(
    rest: np.ndarray, part: np.ndarray, frames: np.ndarray, weight: float
) -> None:
    rest, part = (each / np.linalg.norm(each) for each in (rest, part))
    found = subtract(rest, part, weight)
    assert found.dtype == np.float32
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    length = np.linalg.norm(rest.astype(float) - weight * part.astype(float))
    if length > 1e-3:
        expected = (frames @ rest.astype(float) - weight * (frames @ part.astype(float))) / length
        assert frames @ found.astype(float) == pytest.approx(expected, abs=1e-6)


def test_nothing_is_subtracted_where_nothing_would_remain() -> None:
    one = np.array([0.6, 0.8], np.float32)
    assert subtract(one, one, 1.0) is one
    assert subtract(one, np.array([0.8, -0.6], np.float32), 0.0) == pytest.approx(one)
