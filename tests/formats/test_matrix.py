"""Sampled frames against the ffmpeg program's: times to the millisecond, pixels over 40 dB.

What the program shows is sampled here by the letter of the definition at the head of
``streamer/video/sampling/sample.py``, without its code. The program is not of the version of FFmpeg that PyAV brings
along (9.0 and 8.1 as this is written); where that makes a difference, the file's entry says so.
"""

from __future__ import annotations

import importlib
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer.video import ClipError, Retry, SampledClip, Sampling
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.container import Source, breaks_off
from streamer.video.sampling.sample import sample
from tests.formats.clips import Clip, Refused, clips, real, refused
from tests.formats.ffmpeg import Rgb, Shown, psnr, show
from tests.support.prepares import digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

sample_module = importlib.import_module("streamer.video.sampling.sample")

BAR = 40.0
SAMPLINGS = [Sampling(0.1, 64), Sampling(0.36, 64), Sampling(0.01, 5), Sampling(1.5, 64)]


class Ways:
    """The two ways of decoding, told apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_full = 0
        self._from_all = sample_module._from_all
        self._from_needed = sample_module._from_needed
        self._by_need = True
        monkeypatch.setattr(sample_module, "_from_all", self._count)
        monkeypatch.setattr(sample_module, "_from_needed", self._try)

    def sample_in_full(self, path: Path, sampling: Sampling) -> SampledClip[Rgb]:
        self._by_need = False
        try:
            return sample(path, sampling, np.copy)
        finally:
            self._by_need = True

    def _count(self, *arguments: object) -> object:
        self.in_full += self._by_need
        return self._from_all(*arguments)

    def _try(self, *arguments: object) -> object:
        return self._from_needed(*arguments) if self._by_need else None


@pytest.fixture(scope="module")
def confined() -> Iterator[dict[Sampling, DecodePool]]:
    """Pools whose processes are confined as those of the service are."""
    pools = {each: DecodePool(each, digest, workers=1, timeout=60, memory=2 << 30) for each in SAMPLINGS}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def defined(shown: Shown, duration: Fraction, sampling: Sampling) -> list[tuple[int, int]]:
    """Apply the definition to what is shown: (number of the frame, its time in ms)."""
    step = max(Fraction(str(sampling.interval)), duration / sampling.max_frames)
    kept = [n for n, time in enumerate(shown.times) if time == max(shown.times[: n + 1])]
    start, last = shown.times[0], shown.times[kept[-1]]
    chosen: list[int] = []
    for k in range(sampling.max_frames):
        if start + k * step > last and k * step >= duration:
            break
        n = [n for n in kept if shown.times[n] <= start + k * step][-1]
        if n not in chosen:
            chosen.append(n)
    return [(n, round((shown.times[n] - start) * 1000)) for n in chosen]


def assert_as_shown(
    clip: SampledClip[Rgb], shown: Shown, sampling: Sampling, seconds: Fraction, *, moves: bool
) -> None:
    expected = defined(shown, seconds, sampling)
    assert clip.times_ms.tolist() == [time for _, time in expected]
    for (n, _), frame in zip(expected, clip.frames, strict=True):
        assert frame.shape == shown.frames[n].shape
        assert psnr(frame, shown.frames[n]) > BAR, f"frame {n}"
        for other in (n - 1, n + 1):
            if moves and 0 <= other < len(shown.frames) and shown.frames[other].shape == frame.shape:
                assert psnr(frame, shown.frames[other]) < BAR, "a neighbouring frame would pass"


def length(clip: Clip, shown: Shown) -> Fraction:
    if clip.seconds is not None:
        return Fraction(str(clip.seconds))
    ends = [time + duration for time, duration in zip(shown.times, shown.durations, strict=True)]
    return max(ends) - min(shown.times)


@pytest.mark.parametrize("clip", clips(), ids=lambda clip: clip.name)
def test_the_frames_are_those_of_the_ffmpeg_program(
    clip: Clip, tmp_path: Path, ways: Ways, confined: dict[Sampling, DecodePool]
) -> None:
    path = tmp_path / clip.name
    clip.write(path)
    assert_matches(path, clip, ways)
    assert_same_in_a_confined_process(path, confined)


@pytest.mark.parametrize("path", real(), ids=lambda path: path.stem)
def test_the_frames_of_real_files_are_those_of_the_ffmpeg_program(
    path: Path, ways: Ways, confined: dict[Sampling, DecodePool]
) -> None:
    assert_matches(path, Clip(path.name, lambda _: None, moves=False), ways)
    assert_same_in_a_confined_process(path, confined)


def assert_same_in_a_confined_process(path: Path, confined: dict[Sampling, DecodePool]) -> None:
    for sampling, pool in confined.items():
        here = sample(path, sampling, digest)
        with pool.sampled(path) as there:
            assert [frame.tobytes() for frame in there.frames] == [frame.tobytes() for frame in here.frames]
            assert there.times_ms.tolist() == here.times_ms.tolist()
            assert (there.duration_ms, there.decoded, there.partial) == (here.duration_ms, here.decoded, here.partial)


def is_cut_short(path: Path) -> bool:
    with path.open("rb") as file:
        return breaks_off(Source(file.fileno()))


def assert_matches(path: Path, clip: Clip, ways: Ways) -> None:
    shown = show(path, clip.stream)
    for sampling in SAMPLINGS:
        before = ways.in_full
        got = sample(path, sampling, np.copy)
        assert got.decoded <= len(shown.frames)
        # A hole in what no sample needs is not noticed; a cut always is.
        assert got.partial == (clip.partial and (ways.in_full > before or is_cut_short(path)))
        seconds = Fraction(got.duration_ms, 1000) if clip.partial else length(clip, shown)
        assert abs(got.duration_ms - seconds * 1000) <= 1
        assert_as_shown(got, shown, sampling, seconds, moves=clip.moves)
        assert_same(got, ways.sample_in_full(path, sampling))
    if clip.sparse is not None:
        assert ways.in_full == (0 if clip.sparse else len(SAMPLINGS))
    assert not clip.partial or ways.in_full or is_cut_short(path)


def assert_same(got: SampledClip[Rgb], in_full: SampledClip[Rgb]) -> None:
    assert got.times_ms.tolist() == in_full.times_ms.tolist()
    assert got.duration_ms == in_full.duration_ms
    assert got.decoded <= in_full.decoded
    for one, other in zip(got.frames, in_full.frames, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("clip", refused(), ids=lambda clip: clip.name)
def test_what_is_no_video_is_refused_in_words(
    clip: Refused, tmp_path: Path, confined: dict[Sampling, DecodePool]
) -> None:
    path = tmp_path / clip.name
    clip.write(path)
    with pytest.raises(ClipError) as caught:
        sample(path, Sampling(0.5, 64), np.copy)
    assert (caught.value.reason, caught.value.detail) == (clip.reason, clip.detail)
    assert caught.value.retry is Retry.NEVER
    with pytest.raises(ClipError) as there, confined[SAMPLINGS[0]].sampled(path):
        pass
    assert there.value.args == caught.value.args


def test_the_matrix_of_formats_has_at_least_60_files_with_unique_names() -> None:
    names = [clip.name for clip in clips()] + [each.name for each in refused()]
    assert len(names) == len(set(names))
    assert len(names) >= 60
    assert {"bigbuckbunny", "bikes", "carphone_pristine"} <= {path.stem for path in real()}
