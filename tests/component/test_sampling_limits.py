"""What bounds the sampling of one clip: pixels, packets and memory, whatever the file claims."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamer.events import Reason
from streamer.video import ClipError, Sampling
from streamer.video.sampling.sample import sample
from tests.support.clips import Rgb, make, refusal


@pytest.mark.parametrize(
    ("side", "reason"),
    [(0x3000, Reason.CLIP_TOO_LARGE), (0x8000, Reason.DECODE_FAILED)],
    ids=["over our limit", "over FFmpeg's own limit"],
)
def test_a_bomb_that_claims_a_huge_frame_is_refused(tmp_path: Path, side: int, reason: Reason) -> None:
    path = make(tmp_path / "bomb.mkv", range(2), codec="mjpeg", pix_fmt="yuvj420p", size=(320, 320))
    content = path.read_bytes()
    for size in (b"\xb0\x82", b"\xba\x82"):  # Matroska's PixelWidth and PixelHeight
        assert content.count(size + b"\x01\x40") == 1
        content = content.replace(size + b"\x01\x40", size + side.to_bytes(2))
    start_of_frame = b"\xff\xc0\x00\x11\x08"
    assert content.count(start_of_frame + b"\x01\x40\x01\x40") == 2
    content = content.replace(start_of_frame + b"\x01\x40\x01\x40", start_of_frame + side.to_bytes(2) * 2)
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refusal(path)
    assert error.reason is reason
    if reason is Reason.CLIP_TOO_LARGE:
        assert error.detail == "12288 x 12288 pixels a frame, the limit is 35651584 pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "a huge frame was allocated"


def test_a_bomb_that_the_container_does_not_announce_is_refused_by_the_decoder(tmp_path: Path) -> None:
    path = make(tmp_path / "bomb.gif", range(2), codec="gif", pix_fmt="rgb8")
    content = bytearray(path.read_bytes())
    content[6:10] = (12_000).to_bytes(2, "little") * 2  # the logical screen
    path.write_bytes(content)
    assert refusal(path).reason in {Reason.CLIP_TOO_LARGE, Reason.DECODE_FAILED}


def grow(tmp_path: Path, codec: str, suffix: str, options: dict[str, str]) -> Path:
    """Write a file whose frames are 64 x 48 at first and 640 x 480 later."""
    parts = []
    for number, size in enumerate(((64, 48), (640, 480))):
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        part = make(tmp_path / f"{number}{suffix}", range(30), codec=codec, size=size, pix_fmt=pix_fmt, options=options)
        parts.append(part)
    path = tmp_path / f"grown{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or container.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        assert packet.time_base
                        packet.pts += int(number / packet.time_base)
                        packet.dts += int(number / packet.time_base)
                        packet.stream = stream
                        container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("libx264", ".ts", {"g": "10"}), ("libx265", ".ts", {"x265-params": "keyint=10:log-level=error"})],
)
def test_frames_that_grow_over_the_limit_are_refused(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str]
) -> None:
    path = grow(tmp_path, codec, suffix, options)
    assert {image.shape for image in sample(path, Sampling(0.1, 64), np.copy).frames} == {(48, 64, 3), (480, 640, 3)}
    with pytest.raises(ClipError) as caught:
        sample(path, Sampling(0.1, 64, max_pixels=640 * 480 - 1), np.copy)
    assert caught.value.reason is Reason.CLIP_TOO_LARGE
    assert caught.value.detail == "640 x 480 pixels a frame, the limit is 307199 pixels"


@pytest.mark.parametrize(("codec", "suffix"), [("libvpx-vp9", ".webm"), ("mjpeg", ".avi")])
def test_frames_that_grow_over_the_limit_are_passed_over_where_the_decoder_hides_their_size(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    path = grow(tmp_path, codec, suffix, {"g": "10"})
    whole = sample(path, Sampling(0.1, 64), np.copy)
    assert {image.shape for image in whole.frames} == {(48, 64, 3), (480, 640, 3)}
    clip = sample(path, Sampling(0.1, 64, max_pixels=640 * 480 - 1), np.copy)
    assert {image.shape for image in clip.frames} == {(48, 64, 3)}
    assert (clip.partial, whole.partial) == (True, False)


def test_too_many_encoded_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = make(tmp_path / "many.mp4", range(30))
    assert len(sample(path, Sampling(0.5, 64, max_packets=30), np.copy).frames) == 2
    with pytest.raises(ClipError) as caught:
        sample(path, Sampling(0.5, 64, max_packets=29), lambda _: pytest.fail("a frame was decoded"))
    assert caught.value.reason is Reason.CLIP_TOO_LARGE
    assert caught.value.detail == "more than 29 encoded frames, which is the limit"


def test_full_size_frames_do_not_pile_up(tmp_path: Path) -> None:
    path = make(tmp_path / "large.mov", range(40), codec="mjpeg", pix_fmt="yuvj420p", size=(2048, 1536))
    used: list[int] = []

    def prepare(_: Rgb) -> None:
        used.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())

    gc.disable()  # what is held in circles stays
    try:
        sample(path, Sampling(0.01, 64), prepare)
    finally:
        gc.enable()
    assert len(used) == 40
    assert max(used) - used[1] < 10 * 2048 * 1536 * 3 // 2, "ten decoded frames"


def test_running_out_of_memory_is_a_decode_failure_that_is_retried_once(tmp_path: Path) -> None:
    path = make(tmp_path / "large.mp4", range(2), size=(4096, 2304))
    program = f"""
import resource
import subprocess
import sys
from pathlib import Path
from streamer.video import ClipError, Sampling, sample
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), -1))
try:
    sample(Path({str(path)!r}), Sampling(0.5, 64), bytes)
except ClipError as error:
    print(error.reason.value, error.detail, error.retry.name, sep="|")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "decode_failed|not enough memory|ONCE\n"
