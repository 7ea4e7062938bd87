"""From a decoded frame to upright RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from streamer.video.container import DAMAGE, decode_failed

if TYPE_CHECKING:
    import av


def to_rgb(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """Convert one frame to contiguous RGB (height, width, 3), upright. Raises ClipError: DECODE_FAILED.

    The frame's own colour matrix and range are used, BT.601 and the limited range where it states none. Bicubic
    is what the ffmpeg program takes; without ACCURATE_RND and the like even 8-bit 4:2:0 goes FFmpeg's fast
    way, as it does there, and the result is the same to the bit.
    """
    try:
        image = frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    except MemoryError:
        raise
    except DAMAGE as error:
        raise decode_failed(f"{frame.format.name} frames cannot be converted", error) from error
    return np.ascontiguousarray(_upright(image, frame), dtype=np.uint8)


def _upright(image: npt.NDArray[Any], frame: av.VideoFrame) -> npt.NDArray[Any]:
    """Apply the frame's display matrix where it is made of quarter turns and mirroring."""
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
