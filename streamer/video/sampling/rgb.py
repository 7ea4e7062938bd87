"""From a decoded frame to upright RGB."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from streamer.video.sampling.container import DAMAGE, decode_failed


class RgbConverter:
    """Converts frames as the ffmpeg program does, to the bit where its version is the same.

    The frame's own colour matrix and range are used, BT.601 and the limited range where it states none. Bicubic
    is what the program takes; without ACCURATE_RND and the like 8-bit 4:2:0 and 4:2:2 go FFmpeg's fast way, as
    they do there. Where chroma is interpolated, the program takes its samples to lie between those of the luma,
    wherever the file says that they lie, and every frame to be progressive.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, int, str] | None = None
        self._graph = av.filter.Graph()

    def __call__(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """Convert to contiguous RGB (height, width, 3), upright. Raises ClipError: DECODE_FAILED."""
        try:
            plain = frame if _is_fast(frame) else self._plain(frame)
            image = plain.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
            # PyAV's side data and their frame hold each other until the garbage collector comes by, and large
            # frames would pile up. A copy of a few pixels has the same side data.
            small = frame.reformat(width=8, height=8, format="gray", interpolation=Interpolation.POINT, threads=1)
        except MemoryError:
            raise
        except DAMAGE as error:
            raise decode_failed(f"{frame.format.name} frames cannot be converted", error) from error
        return np.ascontiguousarray(_upright(image, small), dtype=np.uint8)

    def _plain(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Take away where the chroma samples lie, and the fields, which PyAV does by a filter only."""
        shape = frame.width, frame.height, frame.format.name
        if shape != self._shape:
            self._shape = shape
            self._graph = av.filter.Graph()
            self._graph.threads = 1
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
            )
            without = self._graph.add("setparams", "chroma_location=unspecified:field_mode=prog")
            self._graph.link_nodes(source, without, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        return self._graph.vpull()


def _is_fast(frame: av.VideoFrame) -> bool:
    """Whether FFmpeg repeats chroma samples (yuv2rgb in libswscale) and does not interpolate between them."""
    if frame.interlaced_frame or frame.height % 2:
        return False
    return frame.format.name in {"yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p"}


def _upright(image: npt.NDArray[Any], frame: av.VideoFrame) -> npt.NDArray[Any]:
    """Apply a frame's display matrix where it is made of quarter turns and mirroring."""
    try:
        side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV cannot name some kinds of side data (EXIF); its own reading of the matrix is left then.
        turns, rest = divmod(frame.rotation, 90)
        return image if rest else np.rot90(image, turns)
    if side_data is None:
        return image
    # FFmpeg's libavutil/display.h: nine numbers (a b u, c d v, x y w); x' = a x + c y, y' = b x + d y.
    a, b, _, c, d, *_ = np.frombuffer(bytes(side_data), dtype=np.int32).tolist()
    if a == d == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    elif b or c:
        return image
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
