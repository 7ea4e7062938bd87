"""Files as phones, cameras and editors write them: turned, cropped, encrypted, with several streams, without times."""

from __future__ import annotations

import io
import itertools
import math
import statistics
import struct
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from streamer.events import Reason
from streamer.video import ClipError, SampledClip, Sampling
from streamer.video.sampling import bitstream
from streamer.video.sampling.bitstream import Kind
from streamer.video.sampling.container import Source, open_container, pick, videos
from streamer.video.sampling.decode import stated_crop
from streamer.video.sampling.orientation import exif_matrix
from streamer.video.sampling.sample import sample
from streamer.video.sampling.timeline import implausible
from tests.formats.clips import H264, HEVC, PATTERN, encode
from tests.formats.ffmpeg import Rgb, make, psnr, show

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLING = Sampling(0.5, 64)
ONE = 1 << 16
BAR = 40.0


def sampled(path: Path) -> SampledClip[Rgb]:
    return sample(path, SAMPLING, np.copy)


def assert_as_shown(path: Path, stream: str = "0:v:0") -> SampledClip[Rgb]:
    """Sample a file of which each frame is there, and compare the samples with the program's frames at these times."""
    shown = show(path, stream)
    times = [round((time - shown.times[0]) * 1000) for time in shown.times]
    clip = sampled(path)
    for time, frame in zip(clip.times_ms.tolist(), clip.frames, strict=True):
        expected = shown.frames[times.index(time)]
        assert frame.shape == expected.shape
        assert psnr(frame, expected) > BAR
    return clip


# -- turned ----------------------------------------------------------------------------------------------------


def with_matrix(path: Path, *matrix: int) -> Path:
    """Write a file whose track has the display matrix (a, b, c, d), in 16.16 fixed point."""
    encode(H264)(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def turned(degrees: float, *, mirrored: bool = False) -> tuple[int, int, int, int]:
    cos, sin = (round(ONE * each(math.radians(degrees))) for each in (math.cos, math.sin))
    return (-cos, -sin, -sin, cos) if mirrored else (cos, sin, -sin, cos)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 0.4, 89.6, 90, 90.4, 179.7, 180, 269.6, 270, 359.6])
def test_what_rounds_to_quarter_turns_is_turned_as_the_program_does(
    degrees: float, mirrored: bool, tmp_path: Path
) -> None:
    assert_as_shown(with_matrix(tmp_path / "turned.mp4", *turned(degrees, mirrored=mirrored)))


@pytest.mark.parametrize(
    "matrix", [(1, ONE, -ONE, 1), (-3, -ONE, -ONE, 2), (ONE, 0, 0, 2 * ONE), (0, ONE, -2 * ONE, 0)]
)
def test_a_turn_that_a_writer_has_rounded_or_scaled_is_one(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    assert_as_shown(with_matrix(tmp_path / "turned.mp4", *matrix))


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (ONE, 0, 0, 0), (0, ONE, 0, 0), (0, 0, ONE, 0), (0, 0, 0, -ONE)])
def test_a_singular_matrix_turns_nothing(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    clip = assert_as_shown(with_matrix(tmp_path / "singular.mp4", *matrix))
    assert clip.frames[0].shape == (120, 160, 3)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["webp", "mov"])
def test_the_orientation_in_exif_turns_and_mirrors(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (6, 8, 3), np.uint8)).resize((64, 48))
    path, encoded = tmp_path / f"exif.{kind}", io.BytesIO()
    if kind == "webp":
        picture.save(path, exif=exif, lossless=True)
        encoded.write(path.read_bytes())
    else:
        picture.save(encoded, "jpeg", exif=exif, quality=95)
        (tmp_path / "exif.jpg").write_bytes(encoded.getvalue())
        make("-i", tmp_path / "exif.jpg", "-c", "copy", path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(encoded)).convert("RGB"))
    (frame,) = sampled(path).frames
    assert frame.shape == expected.shape
    assert psnr(frame, expected) > 30  # two decoders of JPEG


@pytest.mark.parametrize("length", range(0, 90, 3))
def test_exif_data_that_are_cut_or_wrong_turn_nothing_and_raise_nothing(length: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "jpeg", exif=exif)
    whole = encoded.getvalue()
    assert exif_matrix(whole) is not None
    end = whole.index(b"\1\x12\0\3") + 12
    assert (exif_matrix(whole[:length]) is not None) == (length >= end)
    exif_matrix(whole[:20] + b"\xff" * length + whole[20 + length :])


def test_a_turn_that_comes_with_a_frame_holds_until_another_one(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    # The message stands before the first picture alone, which is one of several at which decoding may start.
    encode(f"{H264} -bsf:v h264_metadata=display_orientation=insert:rotate=90")(path)
    with av.open(str(path)) as container:
        turns = [bool(frame.side_data.get("DISPLAYMATRIX")) for frame in container.decode(video=0)]
    assert (turns[0], any(turns[1:])) == (True, False)
    clip = assert_as_shown(path)
    assert [frame.shape for frame in clip.frames] == [(160, 120, 3)] * 4


def message(kind: int, payload: bytes) -> bytes:
    return bytes([*[255] * (kind // 255), kind % 255, *[255] * (len(payload) // 255), len(payload) % 255]) + payload


TURN, CANCELLED = message(47, b"\x08\x00\x09"), message(47, b"\x80")
OTHER = message(5, bytes(600)) + message(300, b"x")


def h264(start: bool, *messages: bytes) -> bytes:
    units = [b"\x06" + b"".join(messages) + b"\x80"] * bool(messages) + [b"\x65\x88" if start else b"\x41\x9a"]
    return b"".join(b"\0\0\1" + unit for unit in units)


def hevc(start: bool, *messages: bytes) -> bytes:
    units = [b"\x4e\x01" + b"".join(messages) + b"\x80"] * bool(messages) + [b"\x26\x01" if start else b"\x02\x01"]
    return b"".join(b"\0\0\1" + unit for unit in units)


@pytest.mark.parametrize(("codec", "frame"), [("h264", h264), ("hevc", hevc)])
@pytest.mark.parametrize(
    ("frames", "oriented", "starts"),
    [
        ([(True, OTHER), (False,), (True,)], False, True),
        ([(True, OTHER + TURN), (False,), (True, TURN)], True, True),
        ([(True,), (False,), (True, TURN)], True, True),
        ([(True, TURN), (False,), (True,)], True, False),
        ([(True,), (False, TURN)], True, False),
        ([(True, TURN), (True, CANCELLED)], False, True),
    ],
)
def test_decoding_may_start_where_it_is_known_how_the_picture_is_turned(
    codec: str,
    frame: Callable[..., bytes],
    frames: list[tuple[bool, bytes]],
    oriented: bool,
    starts: bool,
) -> None:
    reader = bitstream.reader(codec, None)
    assert reader is not None
    for each in frames:
        reader.kind(frame(*each))
    assert reader.oriented is oriented
    assert bool(reader.valid & Kind.START) is starts


# -- cropped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [2, 6, 14, 30])
@pytest.mark.parametrize(("codec", "unit"), [(H264, "h264"), (HEVC, "hevc")])
def test_a_crop_in_the_parameter_set_is_applied_to_the_pixel(codec: str, unit: str, left: int, tmp_path: Path) -> None:
    path = tmp_path / "cropped.mp4"
    encode(f"{codec} -bsf:v {unit}_metadata=crop_left={left}:crop_top=10")(path)
    clip = assert_as_shown(path)
    assert clip.frames[0].shape == (110, 160 - left, 3)


def inserted(content: bytes, path: tuple[bytes, ...], box: bytes) -> bytes:
    """Return an MP4 file with a box at the end of the last one of a path; no offsets follow it."""
    found, begin, end, at = bytearray(content), 0, len(content), []
    for kind in path:
        while found[begin + 4 : begin + 8] != kind:
            begin += int.from_bytes(found[begin : begin + 4])
        at.append(begin)
        end = begin + int.from_bytes(found[begin : begin + 4])
        begin += 8 + {b"stsd": 8}.get(kind, 0)
    found[end:end] = box
    for each in at:
        found[each : each + 4] = (int.from_bytes(found[each : each + 4]) + len(box)).to_bytes(4)
    return bytes(found)


def with_aperture(path: Path, width: int, height: int, across: int, down: int, *, before: str = "") -> Path:
    """Write a film of 160 x 120 of which a part is to be shown; the offset of its centre is in halves of a pixel."""
    plain = path.with_name(f"plain-{path.name}")
    encode(H264)(plain)
    make(*before.split(), "-i", plain, "-c", "copy", path)
    box = struct.pack(">I4s4IiIiI", 40, b"clap", width, 1, height, 1, across, 2, down, 2)
    entry = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")
    path.write_bytes(inserted(path.read_bytes(), entry, box))
    return path


APERTURES = [(128, 72, 0, 0), (100, 120, 20, 0), (158, 100, -2, 8), (160, 120, 0, 0)]


@pytest.mark.parametrize("aperture", APERTURES)
@pytest.mark.parametrize("before", ["", "-display_rotation 90"])
def test_what_the_container_cuts_off_is_not_shown(
    aperture: tuple[int, int, int, int], before: str, tmp_path: Path
) -> None:
    path = with_aperture(tmp_path / "aperture.mp4", *aperture, before=before)
    clip = assert_as_shown(path)
    sides = aperture[1], aperture[0]
    assert clip.frames[0].shape == (*(reversed(sides) if before else sides), 3)
    copied = tmp_path / "copied.mkv"
    make("-i", path, "-c", "copy", copied)
    assert_as_shown(copied)


@pytest.mark.parametrize("aperture", [(161, 120, 0, 0), (160, 120, 2, 0), (0, 0, 0, 0), (100, 100, 200, 0)])
def test_an_aperture_that_is_not_inside_the_picture_cuts_nothing(
    aperture: tuple[int, int, int, int], tmp_path: Path
) -> None:
    assert sampled(with_aperture(tmp_path / "aperture.mp4", *aperture)).frames[0].shape == (120, 160, 3)


@pytest.mark.parametrize("name", ["aperture.mp4", "aperture.mkv"])
def test_a_header_with_any_byte_changed_does_no_harm_where_the_crop_is_read(name: str, tmp_path: Path) -> None:
    path = with_aperture(tmp_path / "aperture.mp4", 128, 72, 0, 0)
    if name.endswith("mkv"):
        make("-i", path, "-c", "copy", tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    begin = whole.index(b"moov") if name.endswith("mp4") else 0
    rng = np.random.default_rng(1)
    for _ in range(400):
        changed = bytearray(whole)
        for at in rng.integers(begin, min(begin + 900, len(whole)), 3).tolist():
            changed[at] = int(rng.integers(256))
        (tmp_path / "changed").write_bytes(changed)
        with (tmp_path / "changed").open("rb") as file, suppress(ClipError, MemoryError):
            source = Source(file.fileno())
            with open_container(source, 1 << 20) as container:
                stream = pick(container, videos(container)[0].index, 1 << 20)
                found = stated_crop(source, container, stream)
            assert found is None or min(found[:4]) >= 0


# -- without times, and with odd ones ----------------------------------------------------------------------------


def test_a_raw_stream_without_a_rate_is_sampled_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"
    encode("-c:v libopenh264", "testsrc2=s=64x48:r=25:d=10")(path)
    clip = assert_as_shown(path)
    assert (clip.duration_ms, len(clip.frames)) == (10_000, 20)


def test_a_long_last_frame_is_sampled(tmp_path: Path) -> None:
    path, whole = tmp_path / "slides.mp4", tmp_path / "whole.mp4"
    encode(f"{H264} -bf 0", "testsrc2=s=160x120:r=10:d=0.2")(whole)
    make("-i", whole, "-c", "copy", "-bsf:v", "setts=duration=if(eq(N\\,0)\\,1024\\,102400)", path)
    clip = sampled(path)
    assert clip.times_ms.tolist() == [0, 100]
    assert clip.duration_ms == 10_100


# -- which stream ------------------------------------------------------------------------------------------------


def test_a_film_is_preferred_to_a_still_and_to_an_empty_stream(tmp_path: Path) -> None:
    blue = ("-f", "lavfi", "-i", "color=blue:s=64x48:r=1:d=1")
    film = ("-f", "lavfi", "-i", PATTERN)
    still = tmp_path / "still-first.mp4"
    make(*blue, *film, "-map", "0", "-map", "1", *H264.split(), still)
    clip = assert_as_shown(still, "0:v:1")
    assert len(clip.frames) == 4
    empty = tmp_path / "empty-first.ts"
    make(*blue, *film, "-map", "0", "-map", "1", *H264.split(), empty)
    packets = [empty.read_bytes()[at : at + 188] for at in range(0, empty.stat().st_size, 188)]
    first_video = 0x100
    empty.write_bytes(b"".join(each for each in packets if (each[1] & 31) << 8 | each[2] != first_video))
    assert len(sampled(empty).frames) == 4


def test_of_two_films_that_are_both_marked_the_larger_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    small = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2")
    large = ("-f", "lavfi", "-i", PATTERN)
    both = ("-disposition:v:0", "default", "-disposition:v:1", "default")
    make(*small, *large, "-map", "0", "-map", "1", *H264.split(), *both, path)
    assert assert_as_shown(path, "0:v:1").frames[0].shape == (120, 160, 3)


def test_an_animated_avif_is_no_still(tmp_path: Path) -> None:
    path = tmp_path / "animated.avif"
    encode("-c:v libaom-av1 -cpu-used 8 -usage realtime -crf 40 -f avif", "testsrc2=s=96x72:r=10:d=2")(path)
    clip = sampled(path)
    assert clip.times_ms.tolist() == [0, 500, 1000, 1500]


# -- what must not pass for a picture ----------------------------------------------------------------------------


def test_an_encrypted_film_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.mp4"
    key, number = "76a6c65c5ea762046bd749a2e632ccbb", "a7e61c373e219033c21091fa607bf3b8"
    scheme = f"-encryption_scheme cenc-aes-ctr -encryption_key {key} -encryption_kid {number}"
    encode(f"{H264} {scheme}")(path)
    with pytest.raises(ClipError) as caught:
        sampled(path)
    assert (caught.value.reason, caught.value.detail) == (Reason.DECODE_FAILED, "the video is encrypted")


@pytest.mark.parametrize(("more", "partial"), [(0, False), (8, False), (9, True), (1000, True)])
def test_a_riff_length_that_counts_its_own_header_is_not_taken_for_a_cut(
    more: int, partial: bool, tmp_path: Path
) -> None:
    path = tmp_path / "length.avi"
    encode("-c:v mjpeg -q:v 8")(path)
    content = bytearray(path.read_bytes())
    content[4:8] = (int.from_bytes(content[4:8], "little") + more).to_bytes(4, "little")
    path.write_bytes(content)
    assert sampled(path).partial is partial


@pytest.mark.parametrize("stated", [8, 10, 14])
@pytest.mark.parametrize(("size", "matrix"), [("160x120", 6), ("1280x720", 1)])
def test_a_matrix_that_does_not_fit_the_format_is_replaced_by_the_usual_one(
    size: str, matrix: int, stated: int, tmp_path: Path
) -> None:
    path, expected = tmp_path / "stated.mp4", tmp_path / "usual.mp4"
    pattern = f"testsrc2=s={size}:r=25:d=1"
    encode(f"{H264} -pix_fmt yuv420p -bsf:v h264_metadata=matrix_coefficients={stated}", pattern)(path)
    encode(f"{H264} -bsf:v h264_metadata=matrix_coefficients={matrix}", pattern)(expected)
    clip, usual = sampled(path), sampled(expected)
    assert (clip.recoloured, usual.recoloured) == (True, False)
    assert all(np.array_equal(one, other) for one, other in zip(clip.frames, usual.frames, strict=True))


def shifted(content: bytes, first: int, shift: int) -> bytes:
    """Return an FLV file in which the times of the video tags from the one with that number on are later, in ms."""
    found, at, seen = bytearray(content), 13, 0
    while at + 11 <= len(found):
        length = int.from_bytes(found[at + 1 : at + 4])
        if found[at] & 31 == 9 and found[at + 12] == 1:  # a video tag with a picture
            if seen >= first:
                time = shift + (found[at + 7] << 24 | int.from_bytes(found[at + 4 : at + 7]))
                found[at + 4 : at + 8] = (time & 0xFFFFFF).to_bytes(3) + bytes([time >> 24])
            seen += 1
        at += 11 + length + 4
    return bytes(found)


@pytest.mark.parametrize("shift", [7 * 3600 * 1000, 1_500_000_000])
@pytest.mark.parametrize("first", [1, 25, 49])
def test_one_wrong_time_does_not_cost_the_clip(first: int, shift: int, tmp_path: Path) -> None:
    path = tmp_path / "jump.flv"
    encode(f"{H264} -bf 0")(path)
    expected = sampled(path)
    path.write_bytes(shifted(path.read_bytes(), first, shift))
    clip = sampled(path)
    assert clip.duration_ms == 2_000
    assert clip.times_ms.tolist() == expected.times_ms.tolist()
    assert all(np.array_equal(one, other) for one, other in zip(clip.frames, expected.frames, strict=True))


def test_a_gap_that_the_file_itself_states_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "pause.mkv"
    encode(f"{H264} -fps_mode vfr", f"{PATTERN},setpts='PTS+gt(N,20)*7200/TB'")(path)
    clip = assert_as_shown(path)
    assert clip.duration_ms == 7_202_000
    assert clip.times_ms.tolist() == [0, 800]  # the frame before the pause is the frame of all times within it


@given(
    st.lists(st.integers(1, 50), min_size=3, max_size=40),
    st.integers(0, 39),
    st.integers(10_000, 10**9),
)
def test_gaps_are_found_and_taken_out_whatever_steps_are_usual(steps: list[int], place: int, wrong: int) -> None:
    times = [0, *itertools.accumulate(steps)]
    at = place % len(steps)
    jumped = [time + wrong * (n > at) for n, time in enumerate(times)]
    usual = statistics.median_low(sorted([*steps[:at], steps[at] + wrong, *steps[at + 1 :]]))
    gaps, end = implausible(jumped, [1] * len(jumped), Fraction(times[-1] + 1))
    expected = [time + (usual - steps[at]) * (n > at) for n, time in enumerate(times)]
    assert [gaps.without(time) for time in jumped] == expected
    assert end == expected[-1] + 1


def test_a_last_frame_of_two_hours_in_a_short_clip_is_no_long_clip(tmp_path: Path) -> None:
    path, whole = tmp_path / "long.mp4", tmp_path / "whole.mp4"
    encode(f"{H264} -bf 0", "testsrc2=s=160x120:r=25:d=2")(whole)
    make("-i", whole, "-c", "copy", "-bsf:v", "setts=duration=if(eq(N\\,49)\\,92160000\\,512)", path)
    content = bytearray(path.read_bytes())
    for name, seconds_at in ((b"mvhd", 12), (b"mdhd", 12)):  # version, two dates, then the scale and the length
        at = content.index(name) + 4 + seconds_at
        scale = int.from_bytes(content[at : at + 4])
        content[at + 4 : at + 8] = (2 * scale).to_bytes(4)
    path.write_bytes(content)
    clip = sampled(path)
    assert (clip.duration_ms, len(clip.frames)) == (2_000, 4)


@pytest.mark.parametrize("suffix", ["ts", "flv"])
def test_of_two_recordings_in_one_file_the_clip_is_partial(suffix: str, tmp_path: Path) -> None:
    one, other, both = (tmp_path / f"{name}.{suffix}" for name in ("one", "other", "both"))
    encode(f"{H264} -bf 0")(one)
    encode(f"{H264} -bf 0", "mandelbrot=s=160x120:r=25,trim=duration=2")(other)
    both.write_bytes(one.read_bytes() + other.read_bytes()[13 if suffix == "flv" else 0 :])
    assert sampled(both).partial
    assert not sampled(one).partial


@pytest.mark.parametrize("more", [8, 16, 5000])
def test_a_box_of_media_that_is_said_to_be_longer_than_it_is_is_no_cut(more: int, tmp_path: Path) -> None:
    path = tmp_path / "length.mp4"
    encode(f"{H264} -movflags +faststart")(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") - 4
    content[at : at + 4] = (int.from_bytes(content[at : at + 4]) + more).to_bytes(4)
    path.write_bytes(content)
    assert not sampled(path).partial
    path.write_bytes(content[: len(content) * 3 // 4])
    assert sampled(path).partial
