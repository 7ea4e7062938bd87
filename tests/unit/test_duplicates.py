"""Near-duplicate frames: what counts as the same, and which frame stands for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.synthetic.write import write_h264
from streamer.video import Sampling
from streamer.video.sampling.sample import BLOCK, difference, distinct, sample

if TYPE_CHECKING:
    from pathlib import Path


def grey(level: int, size: tuple[int, int] = (64, 64)) -> Any:
    return np.full((*size, 3), level, np.uint8)


def test_the_difference_is_that_of_the_block_that_differs_most() -> None:
    one, other = grey(100), grey(100)
    other[20:24, 36:40] = 228
    assert difference(one, other) == pytest.approx(128 * 16 / BLOCK**2)
    assert difference(other, one) == difference(one, other)
    assert difference(one, one) == 0


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_blocks_at_the_edges_count_by_their_own_pixels(height: int, width: int, channels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = (draw.integers(0, 256, (height, width, channels), np.uint8) for _ in range(2))
    apart = np.abs(one.astype(int) - other.astype(int))
    blocks = [
        apart[top : top + BLOCK, left : left + BLOCK].mean()
        for top in range(0, height, BLOCK)
        for left in range(0, width, BLOCK)
    ]
    assert difference(one, other) == pytest.approx(max(blocks))


def test_frames_are_compared_with_the_first_of_their_run_so_that_slow_drift_ends_it() -> None:
    kept, stands_for = distinct([grey(level) for level in (10, 11, 12, 13, 14, 11, 90)], 2.5)
    assert [frame[0, 0, 0] for frame in kept] == [10, 13, 90]
    assert stands_for == [0, 0, 0, 1, 1, 1, 2]


def test_a_frame_equal_to_an_earlier_one_but_not_adjacent_is_no_duplicate() -> None:
    assert distinct([grey(10), grey(90), grey(10)], 1)[1] == [0, 1, 2]


def test_without_a_threshold_even_equal_frames_are_kept() -> None:
    frames = [grey(10), grey(10)]
    kept, stands_for = distinct(frames, 0)
    assert (kept, stands_for) == (frames, [0, 1])


def test_a_still_part_of_a_clip_is_one_frame_with_all_its_times(tmp_path: Path) -> None:
    moving = (np.roll(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3), 8 * n, axis=1) for n in range(10))
    path = tmp_path / "clip.mp4"
    write_h264(path, [*(grey(90) for _ in range(20)), *moving], fps=10)
    plain = sample(path, Sampling(0.25, 64), lambda frame: frame)
    clip = sample(path, Sampling(0.25, 64, duplicate_threshold=3), lambda frame: frame)
    assert clip.times_ms.tolist() == plain.times_ms.tolist()
    assert clip.frame_of.tolist() == [0] * 8 + [1, 2, 3, 4]
    assert plain.frame_of.tolist() == list(range(12))
    assert len(clip.frames) == 5
