"""The stand-in base engine and average precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.synthetic.engine import BaseEngine
from streamer.synthetic.measures import average_precision
from streamer.synthetic.write import write_h264
from tests.support.mean_colour import AXES, MeanColour

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.encoders import Encoder


@pytest.fixture
def encoder() -> Encoder:
    return MeanColour()


def write_clip(folder: Path, name: str, colours: Sequence[str], *, seconds_each: int = 2) -> Path:
    frames = []
    for colour in colours:
        frame = np.full((48, 64, 3), 12, np.uint8)
        frame[..., AXES[colour]] = 220
        frames += [frame] * (5 * seconds_each)
    path = folder / f"{name}.mp4"
    write_h264(path, frames, fps=5)
    return path


def test_clips_rank_by_the_share_of_them_that_fits(encoder: Encoder, tmp_path: Path) -> None:
    clips = {
        "all": write_clip(tmp_path, "all", ["blue"] * 4),
        "half": write_clip(tmp_path, "half", ["blue", "blue", "red", "red"]),
        "none": write_clip(tmp_path, "none", ["red"] * 4),
        "one": write_clip(tmp_path, "one", ["red", "red", "blue", "red"]),
    }
    ranked = BaseEngine(encoder, clips).rank("blue", top=10)
    assert [clip_id for clip_id, _ in ranked] == ["all", "half", "one", "none"]
    scores = dict(ranked)
    assert scores["all"] > 0.95
    assert scores["half"] == pytest.approx(2**-0.5, abs=0.1)


def test_only_the_top_is_returned_and_ties_keep_the_order_of_the_index(encoder: Encoder, tmp_path: Path) -> None:
    path = write_clip(tmp_path, "same", ["green"])
    engine = BaseEngine(encoder, dict.fromkeys("bac", path))
    assert [clip_id for clip_id, _ in engine.rank("green", top=2)] == ["b", "a"]


def test_a_file_that_cannot_be_decoded_is_left_out(encoder: Encoder, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    engine = BaseEngine(encoder, {"broken": broken, "fine": write_clip(tmp_path, "fine", ["red"])})
    assert [clip_id for clip_id, _ in engine.rank("red", top=5)] == ["fine"]


def test_an_empty_index_answers_with_nothing(encoder: Encoder) -> None:
    assert BaseEngine(encoder, {}).rank("red", top=5) == []


@pytest.mark.parametrize(
    ("ranked", "relevant", "expected"),
    [
        ("abcd", "a", 1.0),
        ("abcd", "ab", 1.0),
        ("abcd", "d", 0.25),
        ("abcd", "ac", (1 + 2 / 3) / 2),
        ("abcd", "ax", 0.5),
        ("", "x", 0.0),
    ],
)
def test_average_precision_of_known_lists(ranked: str, relevant: str, expected: float) -> None:
    assert average_precision(ranked, set(relevant)) == pytest.approx(expected)


@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefghxy"), min_size=1))
def test_average_precision_is_the_library_s(ranked: list[str], relevant: set[str]) -> None:
    scores = {clip: -float(rank) for rank, clip in enumerate(ranked)}
    (found,) = ir_measures.iter_calc([ir_measures.AP], {"q": dict.fromkeys(relevant, 1)}, {"q": scores})
    assert average_precision(ranked, relevant) == pytest.approx(found.value, abs=1e-12)


def test_average_precision_needs_something_relevant() -> None:
    with pytest.raises(ValueError, match="undefined"):
        average_precision(["a"], set())


@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_average_precision_is_one_exactly_where_the_relevant_come_first(ranked: list[str], relevant: set[str]) -> None:
    value = average_precision(ranked, relevant)
    assert 0 < value <= 1
    assert (value == pytest.approx(1.0)) == (set(ranked[: len(relevant)]) == relevant)
