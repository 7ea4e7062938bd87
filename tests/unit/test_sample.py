"""Sampling against a reference that decodes everything with plain PyAV and applies the definition literally."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import streamer
from streamer.events import Reason
from streamer.video import ClipError, SampledClip, Sampling
from streamer.video.sampling.container import Source, breaks_off
from streamer.video.sampling.sample import sample
from streamer.video.sampling.timeline import BestEffort, select
from tests.support.clips import Rgb, make, picture, pts_of, refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def plain_sample(path: Path, interval: float, max_frames: int) -> tuple[list[int], list[Rgb], int, int]:
    """Times, frames, duration and number of decoded frames; for files whose frames all have a pts."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [(pts_of(p), p.duration or 0) for p in container.demux(stream) if p.size and not p.is_discard]
        tick = stream.time_base
        assert tick is not None
        duration = (max(pts + length for pts, length in shown) - min(pts for pts, _ in shown)) * tick
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    frames.sort(key=pts_of)
    step = max(Fraction(str(interval)), duration / max_frames)
    times = [(pts_of(frame) - pts_of(frames[0])) * tick for frame in frames]
    chosen: list[int] = []
    for k in range(max_frames):
        if k * step > times[-1]:
            break
        index = max(i for i, time in enumerate(times) if time <= k * step)
        if index not in chosen:
            chosen.append(index)
    images = [np.asarray(frames[i].to_ndarray(format="rgb24"), np.uint8) for i in chosen]
    return [round(times[i] * 1000) for i in chosen], images, round(duration * 1000), len(frames)


def assert_as_defined(path: Path, *, interval: float = 0.5, max_frames: int = 64) -> SampledClip[Rgb]:
    times, images, duration, decoded = plain_sample(path, interval, max_frames)
    clip = sample(path, Sampling(interval, max_frames), np.copy)
    assert clip.times_ms.dtype == np.uint32
    assert clip.times_ms.tolist() == times
    assert clip.duration_ms == duration
    assert clip.decoded <= decoded
    assert len(clip.frames) == len(images)
    for frame, image in zip(clip.frames, images, strict=True):
        assert np.array_equal(frame, image)
    return clip


def wipe_pictures(path: Path, numbers: Iterable[int]) -> None:
    """Overwrite some of a Motion JPEG file's pictures, which begin with a start-of-image marker, by zeros."""
    content = path.read_bytes()
    starts = [match.start() for match in re.finditer(b"\xff\xd8\xff", content)]
    for number in numbers:
        end = content.index(b"\xff\xd9", starts[number]) + 2
        content = content[: starts[number]] + bytes(end - starts[number]) + content[end:]
    path.write_bytes(content)


def literal_selection(times: Sequence[int], step: Fraction, limit: int, length: int) -> list[int]:
    """The definition as the module's text puts it: running maximum, then a search for every t_k."""
    kept = [i for i, time in enumerate(times) if time == max(times[: i + 1])]
    start, last = times[0], times[kept[-1]]
    chosen: list[int] = []
    for k in range(limit):
        if start + k * step > last and k * step >= length:
            break
        index = [i for i in kept if times[i] <= start + k * step][-1]
        if index not in chosen:
            chosen.append(index)
    return chosen


@given(
    times=st.lists(st.integers(-50, 200), min_size=1, max_size=40).flatmap(
        lambda times: st.sampled_from([times, sorted(times)])
    ),
    step=st.fractions(min_value=Fraction(1, 7), max_value=100, max_denominator=30),
    limit=st.integers(1, 50),
    length=st.integers(0, 300),
)
def test_selection_is_the_literal_one_for_any_times_and_interval(
    times: list[int], step: Fraction, limit: int, length: int
) -> None:
    picked = list(select([(time, index) for index, time in enumerate(times)], step, limit, Fraction(length)))
    assert [index for _, index in picked] == literal_selection(times, step, limit, length)
    assert [offset for offset, _ in picked] == [times[index] - times[0] for _, index in picked]


def test_selection_gives_each_frame_before_it_asks_for_the_next_but_one() -> None:
    asked: list[int] = []

    def frames() -> Iterable[tuple[int, int]]:
        for number in range(5):
            asked.append(number)
            yield number, number

    for _, number in select(frames(), Fraction(1), 3, Fraction(5)):
        assert asked[-1] == number + 1
    assert asked == [0, 1, 2, 3]


def test_b_frames_come_in_presentation_order(tmp_path: Path) -> None:
    path = make(tmp_path / "b.mp4", range(60), options={"bf": "3", "b-adapt": "0", "g": "30"})
    with av.open(str(path)) as container:
        order = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert order != sorted(order)
    clip = assert_as_defined(path, interval=0.1)
    assert clip.times_ms.tolist() == [100 * k for k in range(20)]


def test_variable_frame_rate_takes_the_last_frame_before_each_time(tmp_path: Path) -> None:
    times = [0, 40, 90, 499, 501, 1000, 3100, 3140, 3600]
    path = make(tmp_path / "vfr.mkv", times, tick=Fraction(1, 1000))
    clip = assert_as_defined(path)
    assert clip.times_ms.tolist() == [0, 499, 1000, 3140]


def test_a_stream_that_starts_late_is_timed_from_its_first_frame(tmp_path: Path) -> None:
    path = make(tmp_path / "late.ts", range(3000, 3045), options={"bf": "2"})
    clip = assert_as_defined(path)
    assert clip.times_ms.tolist() == [0, 500, 1000]
    assert clip.duration_ms == 1500


def test_a_long_clip_is_spread_over_max_frames(tmp_path: Path) -> None:
    path = make(tmp_path / "long.mp4", range(0, 3000, 10))
    clip = assert_as_defined(path, interval=0.5, max_frames=7)
    assert len(clip.frames) == 7
    assert clip.times_ms[-1] > clip.duration_ms * 5 / 6
    assert clip.decoded < 300, "decoding goes on after the last sample"


def test_one_frame_is_one_sample(tmp_path: Path) -> None:
    clip = assert_as_defined(make(tmp_path / "one.mp4", [0]))
    assert clip.times_ms.tolist() == [0]
    assert clip.decoded == 1


def test_a_rotation_by_other_than_quarter_turns_is_ignored(tmp_path: Path) -> None:
    path = make(tmp_path / "s.mp4", [0], alter=lambda stream: stream.set_display_rotation(30))
    assert_as_defined(path)


def test_rotation_is_found_beside_side_data_that_pyav_cannot_name(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees
    jpeg = io.BytesIO()
    Image.fromarray(picture(0, 64, 48)).save(jpeg, "jpeg", exif=exif)
    path = tmp_path / "exif.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        packet = av.Packet(jpeg.getvalue())
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
        packet.time_base = Fraction(1)
        container.mux(packet)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    with pytest.raises(ValueError, match="is not a valid Type"):
        frame.side_data.get("DISPLAYMATRIX")
    clip = sample(path, Sampling(0.5, 64), np.copy)
    assert np.array_equal(clip.frames[0], np.rot90(frame.to_ndarray(format="rgb24"), -1))


def test_a_raw_stream_without_any_timestamps_is_timed_by_its_rate(tmp_path: Path) -> None:
    path = make(tmp_path / "raw.h264", range(60), options={"bf": "2"})
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert {(frame.pts, frame.dts) for frame in frames} == {(None, None)}
    clip = sample(path, Sampling(0.5, 64), np.copy)
    assert clip.times_ms.tolist() == [0, 500, 1000, 1500]
    assert clip.duration_ms == 2000
    for image, frame in zip(clip.frames, frames[::15], strict=True):
        assert np.array_equal(image, frame.to_ndarray(format="rgb24"))


def test_pts_that_libavformat_makes_up_for_avi_are_not_used(tmp_path: Path) -> None:
    # Its guess for H.264 with B-frames is wrong.
    path = make(tmp_path / "b.avi", range(60), options={"bf": "2"})
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    guesses = [pts_of(frame) for frame in frames]
    assert guesses != sorted(guesses)
    clip = sample(path, Sampling(0.1, 64), np.copy)
    expected = [frame.to_ndarray(format="rgb24") for frame in frames]
    shown = [next(n for n, rgb in enumerate(expected) if np.array_equal(rgb, image)) for image in clip.frames]
    assert clip.decoded == 60
    assert len(shown) == 20
    for number, time in zip(shown, clip.times_ms.tolist(), strict=True):
        assert time == round(number * 1000 / 30)


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([(1, 0), (2, 1), (3, 2)], [1, 2, 3]),
        ([(1, 2), (3, 3), (4, 4), (2, 5), (6, 6)], [1, 3, 4, 5, 6]),
        ([(None, 0), (None, 1), (7, None), (8, 8)], [0, 1, 7, 8]),
        ([(0, 0), (0, 0), (5, 0), (6, 9)], [0, 0, 5, 6]),
        ([(None, None), (3, None)], [None, 3]),
    ],
)
def test_best_effort_times_are_those_of_ffmpegs_guess(
    stamps: list[tuple[int | None, int | None]], times: list[int | None]
) -> None:
    best_effort = BestEffort()
    assert [best_effort.time(pts, dts) for pts, dts in stamps] == times


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"no video at all\n" * 400, bytes(range(256)) * 40])
def test_garbage_is_a_decode_failure_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.mp4"
    path.write_bytes(content)
    error = refusal(path)
    assert error.reason is Reason.DECODE_FAILED
    assert error.detail


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.mp4").reason is Reason.NOT_FOUND


def test_a_playlist_or_pattern_that_names_other_files_is_not_followed(tmp_path: Path) -> None:
    segment = make(tmp_path / "segment.ts", range(30))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment.name}\n#EXT-X-ENDLIST\n"
    hls = tmp_path / "hls.m3u8"
    hls.write_text(playlist)
    concat = tmp_path / "list.ffconcat"
    concat.write_text(f"ffconcat version 1.0\nfile {segment.name}\n")
    Image.fromarray(picture(0, 64, 48)).save(tmp_path / "frame-1.png")
    pattern = tmp_path / "frame-%d.png"
    pattern.write_bytes((tmp_path / "frame-1.png").read_bytes())
    for path in (hls, concat, pattern):
        with av.open(str(path)) as container:  # FFmpeg by itself does follow it
            assert len(list(container.decode(video=0))) >= 1
        assert refusal(path).reason is Reason.DECODE_FAILED


def test_a_truncated_file_gives_its_good_part(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mkv", range(120), options={"g": "10", "bf": "0"})
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    full = sample(whole, Sampling(0.5, 64), np.copy)
    part = sample(cut, Sampling(0.5, 64), np.copy)
    assert 2 <= len(part.frames) < len(full.frames)
    assert part.times_ms.tolist() == full.times_ms[: len(part.times_ms)].tolist()
    assert np.array_equal(part.frames[0], full.frames[0])


def test_damage_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    path = make(tmp_path / "hole.mkv", range(120), codec="mjpeg", pix_fmt="yuvj420p")
    whole = sample(path, Sampling(0.5, 64), np.copy)
    wipe_pictures(path, range(40, 50))
    clip = sample(path, Sampling(0.5, 64), np.copy)
    assert (clip.partial, whole.partial) == (True, False)
    assert clip.duration_ms == whole.duration_ms
    # The frame of 1.5 s is among those that are gone; the one before them stands in.
    assert clip.times_ms.tolist() == [0, 500, 1000, 1300, 2000, 2500, 3000, 3500]


def test_a_video_without_one_good_frame_fails_with_ffmpegs_words(tmp_path: Path) -> None:
    path = make(tmp_path / "bad.mkv", range(5), codec="mjpeg", pix_fmt="yuvj420p")
    wipe_pictures(path, range(5))
    error = refusal(path)
    assert error.reason is Reason.DECODE_FAILED
    assert error.detail == "no frame could be decoded: Invalid data found when processing input"


def test_too_long_a_clip_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "long.mkv", [0, 13 * 3600 * 1000], tick=Fraction(1, 1000))
    error = refusal(path)
    assert error.reason is Reason.CLIP_TOO_LARGE
    assert error.detail == "46800 s, the limit is 43200 s"
    assert sample(path, Sampling(0.5, 64, max_seconds=13 * 3600 + 1), np.copy).duration_ms == 46_800_033


def is_cut_short(path: Path) -> bool:
    with path.open("rb") as file:
        return breaks_off(Source(file.fileno()))


MDAT = (24).to_bytes(4) + b"mdat" + bytes(16)
RIFF = b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16)
EBML = b"\x1a\x45\xdf\xa3\x84abcd\x18\x53\x80\x67"


@pytest.mark.parametrize(
    ("content", "ends"),
    [
        (b"\0\0\0\x10ftypabcdefgh" + MDAT, False),
        (b"\0\0\0\x10ftypabcdefgh" + MDAT[:-1], True),
        (b"\0\0\0\x10ftypabcdefgh" + b"\0\0\0\0mdat" + bytes(9), False),  # up to the end
        (b"\0\0\0\x01mdat" + (25).to_bytes(8) + bytes(9), False),  # a 64-bit length
        (b"\0\0\0\x01mdat" + (25).to_bytes(8) + bytes(8), True),
        (MDAT + b"\0\0\x10\0free", False),  # nothing of the video is missing
        (MDAT + b"\0\0\0\x02free" + bytes(99), False),  # no box
        (RIFF, False),
        (RIFF[:-1], True),
        (RIFF + RIFF, False),
        (RIFF + RIFF[:-2], True),
        (RIFF + b"trailing bytes", False),
        (b"RIFF" + bytes(4) + b"AVI " + bytes(16), False),  # written to a pipe
        (EBML + b"\x85" + bytes(5), False),
        (EBML + b"\x85" + bytes(4), True),
        (EBML + b"\x01" + (300).to_bytes(7) + bytes(299), True),
        (EBML + b"\xff" + bytes(4), False),  # of unknown length
        (EBML + b"\x01" + b"\xff" * 7, False),
        (EBML, False),
        (b"G" + bytes(187) + b"G" + bytes(187) + b"G" + bytes(187), False),
        (b"G" + bytes(187) + b"G" + bytes(187) + b"G" + bytes(180), True),
        (b"", False),
        (b"GIF89a" + bytes(600), False),
    ],
)
def test_a_truncated_container_is_detected_by_its_own_lengths(tmp_path: Path, content: bytes, ends: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_cut_short(path) == ends


def test_metadata_that_is_not_utf8_does_no_harm(tmp_path: Path) -> None:
    path = make(tmp_path / "meta.mkv", range(3), metadata={"title": "needle"})
    path.write_bytes(path.read_bytes().replace(b"needle", b"\xff\xfe\xe9dle"))
    assert sample(path, Sampling(0.01, 64), np.copy).decoded == 3


def test_what_prepare_raises_passes_through(tmp_path: Path) -> None:
    def prepare(_: Rgb) -> None:
        raise ValueError("no decoding fault")

    with pytest.raises(ValueError, match="no decoding fault"):
        sample(make(tmp_path / "p.mp4", range(3)), Sampling(0.5, 64), prepare)


def test_mutated_files_end_in_a_clip_or_a_clip_error(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    outcomes: dict[Any, int] = {}
    for name, codec in (("m.mp4", "libx264"), ("m.mkv", "mpeg4"), ("m.avi", "mjpeg"), ("m.ts", "libx264")):
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        good = make(tmp_path / name, range(12), codec=codec, pix_fmt=pix_fmt).read_bytes()
        for _ in range(40):
            bad = np.frombuffer(good, np.uint8).copy()
            head = random.integers(2) * 600 or len(bad)
            where = random.integers(0, min(head, len(bad)), size=random.integers(1, 30))
            bad[where] = random.integers(0, 256, size=len(where))
            path = tmp_path / f"bad-{name}"
            path.write_bytes(bad.tobytes()[: random.integers(len(bad) // 2, len(bad) + 1)])
            try:
                sample(path, Sampling(0.1, 8), np.copy)
            except ClipError as error:
                outcomes[error.reason] = outcomes.get(error.reason, 0) + 1
            else:
                outcomes["sampled"] = outcomes.get("sampled", 0) + 1
    assert sum(outcomes.values()) == 160
    assert outcomes["sampled"] > 10
    assert outcomes[Reason.DECODE_FAILED] > 10


def test_the_product_decodes_in_confined_processes_only() -> None:
    """The renderer's writing apart, whatever opens a video goes through the module that a decoder's process runs."""
    root = Path(streamer.__file__).parent
    opening = re.compile(r"\bav\.open\(|\bsample_descriptor\(|(?<![\w.])sample\(|import .*\bsample\b")
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if opening.search(path.read_text())}
    assert found == {
        "synthetic/write.py",  # writes
        "video/__init__.py",  # hands on the name, for scripts and tests
        "video/isolation/worker.py",
        "video/sampling/container.py",
        "video/sampling/sample.py",
    }
