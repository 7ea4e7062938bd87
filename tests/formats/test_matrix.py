"""Sampled frames against the ffmpeg program's: times to the millisecond, pixels over 40 dB.

What the program shows is sampled here by the letter of the definition at the head of ``streamer/video/sample.py``,
without its code. The program is not of the version of FFmpeg that PyAV brings along (9.0 and 8.1 as this is
written); where that makes a difference, the file's entry says so.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from formats.clips import Clip, Refused, clips, real, refused
from formats.ffmpeg import Rgb, Shown, psnr, show

from streamer.video import ClipError, SampledClip, Sampling, sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

sample_module = importlib.import_module("streamer.video.sample")

BAR = 40.0
SAMPLINGS = [Sampling(0.1, 64), Sampling(0.36, 64), Sampling(0.01, 5), Sampling(1.5, 64)]


@dataclass
class Ways:
    """Which of the two ways of decoding were gone."""

    by_need: int = 0
    in_full: int = 0


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    counted = Ways()
    from_all = sample_module._from_all

    def counting(*arguments: object) -> object:
        counted.in_full += 1
        return from_all(*arguments)

    monkeypatch.setattr(sample_module, "_from_all", counting)
    return counted


def defined(shown: Shown, duration: Fraction, sampling: Sampling) -> list[tuple[int, int]]:
    """Apply the definition to what is shown: (number of the frame, its time in ms)."""
    step = max(Fraction(str(sampling.interval)), duration / sampling.max_frames)
    kept = [n for n, time in enumerate(shown.times) if time == max(shown.times[: n + 1])]
    start, last = shown.times[0], shown.times[kept[-1]]
    chosen: list[int] = []
    for k in range(sampling.max_frames):
        if start + k * step > last:
            break
        n = [n for n in kept if shown.times[n] <= start + k * step][-1]
        if n not in chosen:
            chosen.append(n)
    return [(n, round((shown.times[n] - start) * 1000)) for n in chosen]


def assert_as_shown(clip: SampledClip[Rgb], shown: Shown, sampling: Sampling, seconds: Fraction) -> None:
    expected = defined(shown, seconds, sampling)
    assert clip.times_ms.tolist() == [time for _, time in expected]
    for (n, _), frame in zip(expected, clip.frames, strict=True):
        assert frame.shape == shown.frames[n].shape
        assert psnr(frame, shown.frames[n]) > BAR, f"frame {n}"
        for other in (n - 1, n + 1):
            if 0 <= other < len(shown.frames) and shown.frames[other].shape == frame.shape:
                assert psnr(frame, shown.frames[other]) < BAR, "a neighbouring frame would pass"


@pytest.mark.parametrize("clip", clips(), ids=lambda clip: clip.name)
def test_the_frames_are_those_of_the_ffmpeg_program(clip: Clip, tmp_path: Path, ways: Ways) -> None:
    path = tmp_path / clip.name
    clip.write(path)
    shown = show(path, clip.stream)
    for sampling in SAMPLINGS:
        got = sample(path, sampling, np.copy)
        seconds = length(clip, shown)
        if not clip.partial:
            assert abs(got.duration_ms - seconds * 1000) <= 1
        assert_as_shown(got, shown, sampling, seconds if not clip.partial else Fraction(got.duration_ms, 1000))
        assert got.partial == clip.partial
        assert got.decoded <= len(shown.frames)
    if clip.sparse is not None:
        assert ways.in_full == (0 if clip.sparse else len(SAMPLINGS))


def length(clip: Clip, shown: Shown) -> Fraction:
    if clip.seconds is not None:
        return Fraction(str(clip.seconds))
    ends = [time + duration for time, duration in zip(shown.times, shown.durations, strict=True)]
    return max(ends) - min(shown.times)
