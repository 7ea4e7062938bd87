"""A video file of some 300 kB that takes a decoder minutes: a whole picture, and thousands that repeat it."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT = 8192, 4352
"""The largest frame that is accepted; a processor decodes some 15 of them a second."""
RATE = 25
_CYCLE = 16
"""After so many pictures H.264's frame numbers, of four bits, begin again, and so may the packets."""


def write_endless_clip(path: Path, frames: int = 6_000) -> Path:
    """Write H.264 in MP4 with one key frame, so that none of the frames can be passed over."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, RATE), Fraction(RATE)
    encoder.options = {"preset": "ultrafast", "g": "100000", "bf": "0", "x264-params": "scenecut=0:log-level=none"}
    grey = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    for plane in grey.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    packets = []
    for number in range(_CYCLE + 1):
        grey.pts = number
        packets += encoder.encode(grey)
    first, *repeats = [bytes(packet) for packet in (*packets, *encoder.encode(None))]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.extradata = encoder.extradata
        for number in range(frames):
            packet = av.Packet(first if number == 0 else repeats[(number - 1) % _CYCLE])
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, number == 0
            container.mux(packet)
    return path
