"""Decoding by need: what is left out is what no sample needs, and nothing else."""

from __future__ import annotations

import importlib
import itertools
from array import array
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.video import Sampling
from streamer.video.sampling.bitstream import Kind, reader
from streamer.video.sampling.sample import sample
from streamer.video.sampling.timeline import Survey, choose, plan, select
from tests.formats.clips import AV1, H264, HEVC, MJPEG, MPEG2, MPEG4, PRORES, VP8, VP9, encode

if TYPE_CHECKING:
    from pathlib import Path

sample_module = importlib.import_module("streamer.video.sampling.sample")

CODECS = {
    "h264.mp4": f"{H264} -bf 3 -x264-params b-pyramid=normal:b-adapt=0",
    "h264-open-gop.ts": f"{H264} -x264-params open-gop=1:b-adapt=0",
    "hevc.mkv": HEVC,
    "hevc-closed-gop.mp4": f"{HEVC}:open-gop=0",
    "vp9.webm": VP9,
    "av1.mp4": AV1,
    "mpeg4.mkv": MPEG4,
    "mpeg2.ts": MPEG2,
    "mjpeg.mov": MJPEG,
    "prores.mov": PRORES,
}

GROUPS = st.lists(
    # A START, its leading frames, and what follows it: each either needed by those that come later or not.
    st.tuples(st.lists(st.booleans(), max_size=3), st.lists(st.booleans(), max_size=5)),
    min_size=1,
    max_size=6,
)


def surveyed(groups: list[tuple[list[bool], list[bool]]]) -> Survey:
    """Lay out groups of pictures in decoding order; leading frames are shown before their START."""
    found = Survey(0, Fraction(1, 10), Fraction(0), array("q"), bytearray(), exact=True)
    shown = 0
    for leading, others in groups:
        droppable = [Kind.DROPPABLE if drop else Kind.PLAIN for drop in (*leading, *others)]
        lead = len(leading)
        found.pts.extend([shown + lead, *range(shown, shown + lead)])
        found.pts.extend(range(shown + lead + 1, shown + lead + 1 + len(others)))
        found.kinds.extend([Kind.START, *(Kind.LEADING | kind for kind in droppable[:lead]), *droppable[lead:]])
        shown += lead + 1 + len(others)
    return found


def needs(found: Survey, n: int) -> set[int]:
    """Return all that a frame may refer to, by the meaning of the kinds, and itself."""
    starts = [i for i in range(n + 1) if found.kinds[i] & Kind.START] or [0]
    begin = starts[-1]
    if found.kinds[n] & Kind.LEADING:
        # Back to a START that was followed by frames which let go of all before it.
        settled = [
            start
            for start, following in itertools.pairwise(starts)
            if any(not found.kinds[i] & Kind.LEADING for i in range(start + 1, following))
        ]
        begin = settled[-1] if settled else 0
    earlier = {i for i in range(begin, n) if not found.kinds[i] & Kind.DROPPABLE}
    if begin > 0:  # what leads there could not be decoded, and what comes now does not need it
        end = next((i for i in range(begin + 1, n) if not found.kinds[i] & Kind.LEADING), n)
        earlier -= set(range(begin + 1, end))
    return earlier | {n}


@given(groups=GROUPS, data=st.data())
def test_a_plan_holds_all_that_the_wanted_frames_need_in_order(
    groups: list[tuple[list[bool], list[bool]]], data: st.DataObject
) -> None:
    found = surveyed(groups)
    wanted = data.draw(st.sets(st.sampled_from(list(found.pts)), min_size=1))
    runs = plan(found, wanted)
    flat = [n for run in runs for n in run]
    assert flat == sorted(set(flat))
    for n, pts in enumerate(found.pts):
        if pts in wanted:
            run = next(run for run in runs if n in run)
            assert needs(found, n) <= set(run)
    for run in runs:
        assert run[0] == 0 or found.kinds[run[0]] & Kind.START
        assert found.pts[run[-1]] in wanted, "nothing is decoded behind the last wanted frame"
    for n in flat:
        assert found.pts[n] in wanted or not found.kinds[n] & Kind.DROPPABLE


def test_groups_without_a_wanted_frame_are_passed_over() -> None:
    found = surveyed([([], [False, True, False])] * 4)
    assert plan(found, {0, 14}) == [[0], [12, 13, 14]]
    assert plan(found, {2, 3, 5}) == [[0, 1, 2, 3], [4, 5]]


def test_leading_frames_are_decoded_from_the_group_before() -> None:
    found = surveyed([([], [False]), ([False, True], [False]), ([False, True], [False])])
    assert list(found.pts) == [0, 1, 4, 2, 3, 5, 8, 6, 7, 9]
    assert plan(found, {9}) == [[6, 9]]
    assert plan(found, {6}) == [[2, 5, 6, 7]]


@given(
    pts=st.lists(st.integers(-50, 300), min_size=1, max_size=30, unique=True),
    step=st.fractions(min_value=Fraction(1, 7), max_value=30, max_denominator=30),
    limit=st.integers(1, 40),
    lost=st.sets(st.integers(0, 29)),
    length=st.fractions(0, 400, max_denominator=10),
)
def test_what_packets_choose_is_what_frames_would_whichever_others_do_not_decode(
    pts: list[int], step: Fraction, limit: int, lost: set[int], length: Fraction
) -> None:
    # A clip lasts as long as its last frame is shown, at least.
    length = max(length, Fraction(max(pts) - min(pts) + 1))
    found = Survey(0, Fraction(1), length, array("q", pts), bytearray(len(pts)), exact=True)
    offsets = choose(found, step, limit)
    assert offsets is not None
    kept = sorted(p for n, p in enumerate(pts) if n not in lost or p in offsets)
    assert [(offset, p) for p, offset in offsets.items()] == list(select(((p, p) for p in kept), step, limit, length))


def test_two_packets_of_one_time_leave_the_choice_to_the_decoder() -> None:
    found = Survey(0, Fraction(1), Fraction(0), array("q", [0, 1, 1, 2]), bytearray(4), exact=True)
    assert choose(found, Fraction(1), 9) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("by-need")


@pytest.mark.parametrize("name", CODECS)
def test_any_sampling_gives_the_same_frames_by_need_as_in_full(name: str, folder: Path) -> None:
    path = folder / name
    encode(CODECS[name])(path)
    by_need = 0

    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(interval=st.integers(10, 1900).map(lambda ms: ms / 1000), max_frames=st.integers(1, 60))
    def compare(interval: float, max_frames: int) -> None:
        nonlocal by_need
        sampling = Sampling(interval, max_frames)
        got = sample(path, sampling, np.copy)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_module, "_from_needed", lambda *_: None)
            full = sample(path, sampling, np.copy)
        assert got.times_ms.tolist() == full.times_ms.tolist()
        assert all(np.array_equal(one, other) for one, other in zip(got.frames, full.frames, strict=True))
        by_need += got.decoded < full.decoded

    compare()
    assert by_need >= 3, "fewer frames are decoded"


@pytest.mark.parametrize(
    ("name", "arguments", "least"),
    [
        ("h264.mp4", f"{H264} -bf 2 -x264-params b-adapt=0", Kind.START | Kind.DROPPABLE),
        ("h264.ts", f"{H264} -bf 2 -x264-params b-adapt=0", Kind.START | Kind.DROPPABLE),
        ("hevc.mp4", HEVC, Kind.START | Kind.LEADING | Kind.DROPPABLE),
        ("hevc.ts", HEVC, Kind.START | Kind.LEADING | Kind.DROPPABLE),
        ("vp8.webm", VP8, Kind.START),
        ("vp9.webm", VP9, Kind.START),
        ("vp9-profile-3.webm", f"{VP9} -pix_fmt yuv444p10le -profile:v 3", Kind.START),
        ("av1.mp4", AV1, Kind.START),
        ("av1.obu", AV1, Kind.START),
        ("mpeg4.mp4", MPEG4, Kind.START | Kind.LEADING | Kind.DROPPABLE),
        ("mpeg2.ts", MPEG2, Kind.START | Kind.LEADING | Kind.DROPPABLE),
    ],
)
def test_starts_are_read_from_the_frames_themselves(name: str, arguments: str, least: Kind, tmp_path: Path) -> None:
    path = tmp_path / name
    encode(arguments)(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        read = reader(stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
        assert read is not None
        packets = [packet for packet in container.demux(stream) if packet.size]
        kinds = [read.kind(bytes(packet)) for packet in packets]
    assert read.valid == Kind.START | Kind.LEADING | Kind.DROPPABLE | Kind.HIDDEN
    for kind, packet in zip(kinds, packets, strict=True):
        if kind & Kind.START:
            assert packet.is_keyframe, "where the container's flag is right, it agrees"
    assert 3 <= sum(bool(kind & Kind.START) for kind in kinds) <= 8
    for part in (Kind.LEADING, Kind.DROPPABLE):
        assert any(kind & part for kind in kinds) == bool(least & part)


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "prores"])
@given(frames=st.lists(st.binary(max_size=200), max_size=6), extradata=st.none() | st.binary(max_size=40))
def test_any_bytes_are_read_without_an_error(codec: str, frames: list[bytes], extradata: bytes | None) -> None:
    read = reader(codec, extradata)
    assert read is not None
    for frame in frames:
        read.kind(frame)


def test_new_headers_take_all_that_was_read_back() -> None:
    sequence, picture, slice_ = b"\0\0\1\x67one", b"\0\0\1\x68two", b"\0\0\1\x65\x88data"
    read = reader("h264", None)
    assert read is not None
    assert read.kind(sequence + picture + slice_) == Kind.START
    assert read.kind(sequence + slice_) == Kind.START
    assert read.valid & Kind.START
    read.kind(sequence + b"\0\0\1\x68new" + slice_)
    assert not read.valid & Kind.START


def test_a_containers_keyframe_flag_does_not_make_a_start(tmp_path: Path) -> None:
    path = tmp_path / "open.mp4"
    encode(f"{H264} -x264-params open-gop=1:b-adapt=0")(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        read = reader("h264", stream.codec_context.extradata)
        assert read is not None
        packets = [packet for packet in container.demux(stream) if packet.size]
        starts = [bool(read.kind(bytes(packet)) & Kind.START) for packet in packets]
    assert sum(packet.is_keyframe for packet in packets) >= 4
    assert starts == [True] + [False] * 49
