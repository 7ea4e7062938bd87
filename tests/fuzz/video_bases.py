"""Small whole files of many codecs and containers, which the mutations damage."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import numpy as np

from tests.support.footage import BLUE, RED, WHITE, YELLOW, scenes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FRAMES = 15
RATE = 12


@dataclass(frozen=True, slots=True)
class Base:
    """A codec in a container, which the name's ending chooses."""

    encoder: str
    ending: str
    pixels: str = "yuv420p"
    size: tuple[int, int] = (96, 64)
    options: dict[str, str] = field(default_factory=dict)
    muxing: dict[str, str] = field(default_factory=dict)
    sound: bool = False

    @property
    def name(self) -> str:
        return f"{self.encoder}.{self.ending}"


_X264 = {"preset": "veryfast", "bf": "2", "g": "6"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}
_VPX = {"deadline": "realtime", "cpu-used": "8", "g": "6"}
_AV1 = {"preset": "12", "svtav1-params": "lp=1"}

BASES = [
    Base("libx264", "mp4", options=_X264, sound=True),
    Base("libx264", "mov", options=_X264, muxing={"movflags": "+faststart"}),
    Base("libx264", "mkv", options=_X264),
    Base("libx264", "ts", options=_X264),
    Base("libx264", "flv", options=_X264),
    Base("libx264", "mp4", "yuv444p", options=_X264, muxing={"movflags": "+frag_keyframe+empty_moov"}),
    Base("libx265", "mp4", options=_X265),
    Base("libx265", "mkv", "yuv420p10le", options=_X265),
    Base("libvpx-vp9", "webm", options=_VPX),
    Base("libvpx", "webm", options=_VPX),
    Base("libsvtav1", "mp4", options=_AV1),
    Base("libsvtav1", "mkv", "yuv420p10le", options=_AV1),
    Base("mpeg4", "avi", options={"g": "6", "bf": "2"}),
    Base("mpeg4", "mp4", options={"g": "6"}),
    Base("mpeg2video", "ts", options={"g": "6", "bf": "1"}),
    Base("mjpeg", "avi", "yuvj420p"),
    Base("mjpeg", "mov", "yuvj422p"),
    Base("prores_ks", "mov", "yuv422p10le"),
    Base("ffv1", "mkv", "yuv422p"),
    Base("gif", "gif", "rgb8"),
    Base("apng", "apng", "rgb24"),
]
"""The endings of mp4 and mov hold boxes, those of mkv and webm EBML elements."""


def write_bases(folder: Path) -> dict[str, bytes]:
    """Make the files; return their contents by a name that ends as a file's does."""
    paths = [folder / f"{number:02}-{base.name}" for number, base in enumerate(BASES)]
    # In a process of its own: where it may, libsvtav1 gives the thread that uses it a real-time priority for good, and
    # all that such a process starts afterwards keeps the rest of the machine waiting.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        for _ in process.map(_write, paths, BASES):
            pass
    contents = {path.name: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    return contents


os.environ.setdefault("SVT_LOG", "1")  # libsvtav1 prints its settings otherwise


def _write(path: Path, base: Base) -> None:
    with av.open(path, "w", options=base.muxing) as container:
        stream = cast("av.VideoStream", container.add_stream(base.encoder, rate=RATE, options=base.options))
        stream.width, stream.height = base.size
        stream.pix_fmt = base.pixels
        stream.codec_context.thread_count = 1
        sound = container.add_stream("aac", rate=8000, layout="mono") if base.sound else None
        for image in scenes(FRAMES // 2 + 1, (RED, WHITE), (YELLOW, BLUE), size=base.size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
        if sound is not None:
            for frame in _tone():
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def _tone() -> Iterator[av.AudioFrame]:
    for block in range(8):
        at = np.arange(block * 1024, (block + 1) * 1024) / 8000
        frame = av.AudioFrame.from_ndarray(np.sin(at * 2764)[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), block * 1024
        yield frame
