"""The arithmetic of the embedder's benchmarks; the compared methods give the same frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import numpy as np
import pytest

from bench.cases import decode
from bench.cases.near_duplicates import Sampled, judge, largest_move, saved_share
from bench.harness.clips import encode, real
from bench.harness.plain_embedder import sampled
from streamer.video import Sampling
from streamer.video.sampling.sample import sample

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine"])
def test_the_plain_embedder_samples_the_times_that_the_product_samples(name: str) -> None:
    clip = sample(real()[name], Sampling(0.5, 64), lambda frame: frame)
    times, images = sampled(real()[name])
    assert [round(1000 * each) for each in times] == clip.times_ms.tolist()
    for image, frame in zip(images, clip.frames, strict=True):
        assert np.abs(np.asarray(image).astype(int) - frame).mean() < 3


def test_generated_clips_have_the_requested_size_and_length(tmp_path: Path) -> None:
    path = encode(tmp_path / "c.mp4", ["-f", "lavfi", "-i", "testsrc2=s=64x64:r=25"], seconds=1.2, size="96x64")
    clip = sample(path, Sampling(0.5, 64), lambda frame: frame.shape)
    assert (clip.duration_ms, clip.frames) == (1200, [(64, 96, 3)] * 3)


def test_a_threshold_is_judged_by_what_it_saves_and_how_far_scores_move() -> None:
    still, other = np.full((32, 32, 3), 10, np.uint8), np.full((32, 32, 3), 200, np.uint8)
    axes = np.eye(3, dtype=np.float32)
    near = np.array([0.8, 0.6, 0], dtype=np.float32)
    clips = [
        Sampled("static", "a", [still, still + 1, other], np.stack([axes[0], near, axes[1]])),
        Sampled("fast", "b", [still, other], np.stack([axes[0], axes[2]])),
    ]
    found = judge(clips, near[None], 2)
    assert (found["static"].frames, found["static"].saved, found["fast"].saved) == (3, 1, 0)
    assert found["static"].by_texts == pytest.approx(0.2)
    assert found["fast"].by_any == 0
    assert saved_share(found, "static", "fast") == pytest.approx(1 / 5)
    assert largest_move(axes, axes, axes[:2]) == pytest.approx(1)


def test_decoding_is_compared_on_real_and_generated_files(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {decode.by_sample: 2.0, decode.by_every_frame: 6.0}
    monkeypatch.setattr(decode, "timed", lambda way, _path, _interval: seconds[way])
    assert decode.measure(quick=True) == {
        f"{name}, every 0.5 s: ratio": {"median": 3.0, "min": 3.0, "max": 3.0}
        for name in (list(real())[-1], "gif 240p")
    }


def test_two_ways_of_decoding_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "by_every_frame", lambda path, interval: decode.by_sample(path, interval)[::-1])
    with pytest.raises(click.ClickException, match="the two methods differ in"):
        decode.compare(real()["bikes"], 0.5, 1)
